// Constants of the cost model (cost_model.cpp, and each kernel's planner), each with unit and source. `python -m
// benchmarks.fit_model` parses kFamilies and rewrites the values that a run determines, so each value has its own line:
// "value,  // field: source".
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

// GPUs of one compute capability. A share is the fraction of `macs` that a main loop reaches when its SM is full of
// warps. The sources quote it as FLOP/s: share * 2 * macs * clock * SMs.
struct Family {
  int32_t oldest;           // arch: the row covers GPUs from this one up to the row above
  const char* measured_by;  // folder of benchmarks/results that the row was fitted to; "": none
  double launch;            // ns between the starts of two empty kernels
  double clock;             // GHz under load
  double macs;              // float16 multiply-adds with float32 sums per clock and SM; TF32: half
  double sm80_share;        // of conv_fwd
  double torch_share;       // of cuDNN's best kernel
  double sm90_share;        // of conv_sm90 and block_fwd; 0: no wgmma
  double rows_share;        // of conv_rows; 0: no wgmma
  double l2;                // bytes per clock and SM from L2
  double dram;              // bytes per ns and SM from memory, when all SMs load
  double l2_size;           // MiB
};

// EVERY ROW WITHOUT A RUN IS AN UNMEASURED PREDICTION from data sheets, estimates and, where cited, measurements by
// others. [1]: github.com/te42kyfo/gpu-benches at 1c36d50, its gpu-l2-cache, gpu-stream and gpu-small-kernels. [2]:
// public bf16 matrix products on an H100; without multicast they get 31 bytes per clock from L2.
inline constexpr Family kFamilies[] = {
    // sm_120: RTX 5090. No wgmma and no tcgen05, so cuDNN uses the same instructions as our kernels
    {
        120,   // oldest
        "",    // measured_by
        2500,  // launch: estimate
        2.4,   // clock: data sheet
        256,   // macs: data sheet
        0.75,  // sm80_share: estimate, 157 TFLOP/s of 170 SMs
        0.8,   // torch_share: estimate, 167 TFLOP/s
        0,     // sm90_share
        0,     // rows_share
        16,    // l2: estimate, 6.5 TB/s
        9,     // dram: 85 % of the data sheet's, 1.5 TB/s
        96,    // l2_size: data sheet
    },
    // sm_100: B200
    {
        100,   // oldest
        "",    // measured_by
        2500,  // launch: estimate
        1.8,   // clock: data sheet
        4096,  // macs: data sheet
        0.23,  // sm80_share: mma.sync taken to do what it does on sm_90, a third of tcgen05's
        0.6,   // torch_share: estimate, 1310 TFLOP/s of 148 SMs
        0,     // sm90_share
        0,     // rows_share
        48,    // l2: estimate, 12.8 TB/s
        46,    // dram: 85 % of the data sheet's, 6.8 TB/s
        126,   // l2_size: data sheet
    },
    // sm_90: H200, and H100 with other memory
    {
        90,             // oldest
        "nvidia-h200",  // measured_by
        3080,           // launch: fitted
        1.7,            // clock: estimate: large products on 700 W run below the 1.98 of a data sheet
        2048,           // macs: data sheet
        0.321,          // sm80_share: fitted
        0.65,           // torch_share: estimate, 597 TFLOP/s; [2] matrix products 700 to 760, 0.76 to 0.83
        0.813,          // sm90_share: fitted
        0.75,           // rows_share: estimate, the same
        38.6,           // l2: fitted
        32.4,           // dram: fitted
        50,             // l2_size: data sheet
    },
    // sm_89: RTX 4090, L40 and L4
    {
        89,    // oldest
        "",    // measured_by
        2500,  // launch: estimate
        2.4,   // clock: data sheet
        256,   // macs: data sheet
        0.75,  // sm80_share: estimate, 118 TFLOP/s of 128 SMs
        0.8,   // torch_share: estimate, 126 TFLOP/s
        0,     // sm90_share
        0,     // rows_share
        15,    // l2: 4.6 TB/s of 128 SMs; [1] L40 5.2 of 142, 15.3 a clock
        6,     // dram: between [1] L40 5.4 to 5.9, and 85 % of data sheets: RTX 4090 6.7, L4 4.4
        48,    // l2_size: data sheet of the L4, the smallest
    },
    // sm_86: RTX 3090, A40 and A10
    {
        86,    // oldest
        "",    // measured_by
        2500,  // launch: estimate
        1.7,   // clock: data sheet
        256,   // macs: data sheet
        0.75,  // sm80_share: estimate, 54 TFLOP/s of 82 SMs
        0.8,   // torch_share: estimate, 57 TFLOP/s
        0,     // sm90_share
        0,     // rows_share
        20,    // l2: estimate, 2.8 TB/s of 82 SMs
        9,     // dram: between [1] A40 7.8, and 85 % of data sheets: RTX 3090 9.7, A10 7.1
        6,     // l2_size: data sheet
    },
    // sm_80: A100
    {
        80,    // oldest
        "",    // measured_by
        2500,  // launch: estimate
        1.41,  // clock: data sheet
        1024,  // macs: data sheet
        0.65,  // sm80_share: estimate, 203 TFLOP/s of 108 SMs
        0.75,  // torch_share: estimate, 234 TFLOP/s
        0,     // sm90_share
        0,     // rows_share
        35.5,  // l2: [1] A100 5.4 TB/s up to 28 MB
        15,    // dram: between [1] triad of 80 GB 16.2, of 40 GB 12.6
        40,    // l2_size: data sheet
    },
};

constexpr double kFill = 1500;            // clocks per block: its first copies and its epilogue
constexpr double kSm90Epilogue = 1500;    // clocks per tile; does not delay the next tile's copies
constexpr double kMomentsOfValue = 5;     // instructions per value to add it and its square, in conv_sm90
constexpr double kLanes = 128;            // per SM, one instruction per clock each
constexpr double kL2Latency = 700;        // clocks from a load to its use
constexpr double kHopperSmemClock = 115;  // bytes per clock of an SM's shared memory, 90 % of its peak
constexpr double kPortBytesClock = 64;    // bytes per clock that an SM receives by multicast
constexpr double kBlockEpilogues = 2000;  // clocks: both epilogues of a tile that no other tile hides
constexpr double kFullWarps = 8;          // warps from which on an SM reaches its share
constexpr double kOneWarp = 0.3;          // fraction of the share reached with next to no warps
constexpr double kPrologueStep = 1.25;    // time factor of a step whose pixels pass through registers
constexpr int32_t kThreadsPerSm = 512;    // that fit with 128 registers each
constexpr int32_t kReservedSmem = 1024;   // bytes per block, reserved by CUDA

}  // namespace resnet_fused::cuda
