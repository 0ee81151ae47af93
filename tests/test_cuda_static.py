"""Machine code of the CUDA kernels in the built library, for every architecture. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import cuda_on_cpu
import pytest
import sass

from resnet_fused import _build_info

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
EMULATOR = ROOT / "tests" / "cuda_on_cpu" / "include" / "cuda"
LIBRARY = ROOT / "resnet_fused" / "_C_cuda.abi3.so"
ARCHS = [label for label in _build_info.CUDA_ARCHS if label.startswith("sm_")]
AFFINE, PROJECTION, MOMENTS, GRADIENT_SUMS = range(4)  # Epilogue of csrc/cuda/kernels/conv.h
HALF = {"1": ".F32", "2": ".F32.BF16"}  # HMMA's suffix for the element type, by Dtype

compiled = pytest.mark.skipif(
    not ARCHS or sass.disassembler() is None,
    reason=_build_info.CUDA_OMITTED
    or "no cuobjdump or nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm",
)
HOPPERS = {"conv_sm90_kernel", "conv_sm90_finish_kernel", "conv_rows_kernel", "block_fwd_kernel"}  # sm_90a only
each_arch = pytest.mark.parametrize("arch", ARCHS)


def family(name: str) -> str:
    """Returns the kernel's name, such as conv_fwd_kernel, from the mangled name."""
    return re.search(r"4cuda\d+([a-z]\w*?_kernel)I", name)[1]


def named(arch: str, kernel: str) -> dict[str, list[str]]:
    found = {name: code for name, code in sass.code(LIBRARY, arch).items() if family(name) == kernel}
    assert found, f"no {kernel} for {arch}"
    return found


def bn_add_act_variant(mangled: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.search(r"DtypeE(\d)ELi(\d)E.*LayoutE(\d)E.*ShortcutE(\d)E", mangled).groups())


def bn_train_variant(mangled: str) -> tuple[int | None, ...]:
    """dtype, vector, layout, mask or None"""
    found = re.search(r"DtypeE(\d)ELi(\d)E.*?LayoutE(\d)E(?:.*?MaskE(\d)E)?", mangled).groups()
    return tuple(None if n is None else int(n) for n in found)


def pool_variant(mangled: str) -> tuple[int, ...]:
    """dtype, vector, side, argmax"""
    return tuple(int(n) for n in re.search(r"DtypeE(\d)ELi(\d)ELi(\d)E(?:Lb(\d)E)?", mangled).groups(default=1))


def conv_variant(mangled: str) -> tuple[int, ...]:
    """dtype, tile, prologue, epilogue"""
    found = re.search(r"DtypeE(\d)ELi(\d)EL.*PrologueE(\d)EL.*EpilogueE(\d)E", mangled)
    return tuple(int(n) for n in found.groups())


def tile_variant(mangled: str) -> tuple[int, ...]:
    """dtype, tile (the channels' index for block_fwd)"""
    return tuple(int(n) for n in re.search(r"DtypeE(\d)ELi(\d)E", mangled).groups())


@compiled
def test_every_architecture_has_every_kernel():
    kernels = sass.kernels(LIBRARY)
    per_arch = {arch: {k.name for k in kernels if k.arch == arch} for arch in {k.arch for k in kernels}}
    assert set(per_arch) == {*ARCHS, "sm_90a"}
    everywhere = [{n for n in per_arch[arch] if family(n) not in HOPPERS} for arch in ARCHS]
    names = everywhere[0]
    assert all(found == names for found in everywhere)
    training = {"bn_stats_kernel", "bn_backward_reduce_kernel", "bn_backward_kernel", "bn_finish_kernel"}
    training |= {"bn_pool_kernel", "pool_backward_kernel"}
    assert {family(n) for n in names} == {"bn_add_act_kernel", "conv_fwd_kernel", "conv_finish_kernel"} | training
    tied = {arch for arch, found in per_arch.items() if found - names}
    assert tied == {"sm_90a"}, "wgmma is Hopper's alone, and compiled whatever the other architectures are"


@compiled
def test_no_spills_and_no_stack():
    """Spilled registers live in local memory. Kernels have no stack or local memory, and no instruction accesses it."""
    assert [k for k in sass.kernels(LIBRARY) if k.stack or k.local] == []
    for arch in {*ARCHS, "sm_90a"}:
        for name, code in sass.code(LIBRARY, arch).items():
            assert not [i for i in code if i.startswith(("STL", "LDL"))], f"{name} on {arch}"


@compiled
def test_registers_leave_room_to_hide_latency():
    """bn_* and pool_*: at least two CTAs of 256 threads per SM, so 64 KiB of loads in flight, more than 4.3 TB/s needs.

    conv_fwd: two CTAs of the large tile per SM where shared memory has room for them.
    """
    # at the start, 384 threads (512 with a prologue) share an SM's registers
    limits = {"conv_finish_kernel": 128, **dict.fromkeys(HOPPERS, 168)}
    limits["conv_sm90_finish_kernel"] = 80  # 24 warps per SM
    for k in sass.kernels(LIBRARY):
        limit = 128 if family(k.name).startswith(("bn_", "pool_")) else limits.get(family(k.name))
        if family(k.name) == "conv_fwd_kernel":
            dtype, tile, prologue, epilogue = conv_variant(k.name)
            plain = (prologue, epilogue) == (0, AFFINE) and dtype in (1, 2)
            limit = 128 if tile == 0 and (plain or epilogue == GRADIENT_SUMS) else 255
        assert k.registers <= limit, k


@compiled
def test_library_holds_the_listed_variants():
    if reason := cuda_on_cpu.missing():
        pytest.skip(f"the kernel emulator, which lists the compiled variants, needs a compiler: {reason}")
    emulated = cuda_on_cpu.load()
    compiled = {(d, v, 0 if nhwc else 1, s) for d, v, nhwc, s in emulated.compiled_bn_add_act()}
    assert {bn_add_act_variant(n) for n in named(ARCHS[0], "bn_add_act_kernel")} == compiled
    tiles = [(128, 128), (128, 64), (64, 64)]
    compiled = {(d, tiles.index((m, n)), *axes) for d, m, n, *axes in emulated.compiled_conv_fwd()}
    assert {conv_variant(n) for n in named(ARCHS[0], "conv_fwd_kernel")} == compiled
    for kernel, variants in (
        ("bn_stats_kernel", [(*v, None) for v in emulated.compiled_bn_stats()]),
        ("bn_backward_reduce_kernel", emulated.compiled_bn_backward_reduce()),
        ("bn_backward_kernel", emulated.compiled_bn_backward()),
    ):
        compiled = {(d, v, 0 if nhwc else 1, mask) for d, v, nhwc, mask in variants}
        assert {bn_train_variant(n) for n in named(ARCHS[0], kernel)} == compiled
    for kernel, variants in (
        ("bn_pool_kernel", emulated.compiled_bn_pool()),
        ("pool_backward_kernel", emulated.compiled_pool_backward()),
    ):
        assert {pool_variant(n) for n in named(ARCHS[0], kernel)} == set(variants)
    compiled = {(d, SM90_TILES.index((m, n)), *axes) for d, m, n, *axes in emulated.compiled_conv_sm90()}
    assert {conv_variant(n) for n in named("sm_90a", "conv_sm90_kernel")} == compiled
    compiled = {(d, ROWS_TILES.index((m, n))) for d, m, n, *_ in emulated.compiled_conv_rows()}
    assert {tile_variant(n) for n in named("sm_90a", "conv_rows_kernel")} == compiled
    compiled = {(d, BLOCK_CHANNELS.index(channels)) for d, channels in emulated.compiled_block_fwd()}
    assert {tile_variant(n) for n in named("sm_90a", "block_fwd_kernel")} == compiled


@compiled
@each_arch
def test_bn_add_act_moves_16_bytes_per_thread(arch):
    for name, code in named(arch, "bn_add_act_kernel").items():
        _, vector, _, shortcut = bn_add_act_variant(name)
        stores = [i for i in code if i.startswith("STG")]
        wide_loads = [i for i in code if i.startswith("LDG") and ".128" in i]
        if vector == 1:
            assert not wide_loads, name
            continue
        assert stores, name
        assert all(".128" in i for i in stores), f"{name}: {stores}"
        # per thread 4 loads in flight and 1 in the remainder loop, of x and of the shortcut
        assert len(wide_loads) == 5 * (1 if shortcut == 0 else 2), f"{name}: {wide_loads}"


@compiled
@each_arch
def test_training_kernels_move_16_bytes_per_thread(arch):
    """4 loads (bn_stats) or 2 loads of each tensor are in flight; the remainder is loaded one by one."""
    for kernel, batch, samples in (
        ("bn_stats_kernel", 4, 3),
        ("bn_backward_reduce_kernel", 2, 0),
        ("bn_backward_kernel", 2, 0),
    ):
        for name, code in named(arch, kernel).items():
            _, vector, layout, mask = bn_train_variant(name)
            wide = [i for i in code if i.startswith("LDG") and ".128" in i]
            # in NCHW an access holds one channel, and a sample is its first element
            count = {None: 1, 0: 2, 1: 2, 2: 3}[mask] * (batch + 1) + (samples if layout == 0 else 0)
            assert len(wide) == (0 if vector == 1 else count), f"{name}: {wide}"
            stores = [i for i in code if i.startswith("STG")]
            if kernel == "bn_backward_kernel":
                assert stores, name
                assert vector == 1 or all(".128" in i for i in stores), f"{name}: {stores}"


@compiled
@each_arch
def test_pooling_moves_16_bytes_per_thread(arch):
    """In flight: nine loads of a 3x3 window forward, four gradients and their argmax bytes per pixel backward.

    Without an argmax, max instructions reduce a window, without comparisons.
    """
    for kernel, side, count in (("bn_pool_kernel", 3, 9), ("pool_backward_kernel", 2, 4)):
        for name, code in named(arch, kernel).items():
            _, vector, found, argmax = pool_variant(name)
            wide = [i for i in code if i.startswith("LDG") and ".128" in i]
            assert (len(wide) == count) if found == side else bool(wide) == (vector > 1), f"{name}: {wide}"
            assert not [i for i in wide if "NA" in i.split(".")], f"{name}: what neighbours read stays in L1"
            stores = [i for i in code if i.startswith("STG")]
            values = [i for i in stores if ".128" in i]
            writes_argmax = kernel == "bn_pool_kernel" and argmax
            argmax_store = {8: ".64", 4: "STG.E", 1: ".U8"}[vector]
            assert len(values) == (vector > 1), f"{name}: {stores}"
            assert len(stores) == 1 + writes_argmax, f"{name}: {stores}"
            assert not writes_argmax or any(i.endswith(argmax_store) for i in stores), f"{name}: {stores}"
            if found == 3:
                comparisons = sum(i.startswith("FSETP") for i in code)
                assert (comparisons > 9 * vector) if argmax else (comparisons < 9), f"{name}: {comparisons}"


@compiled
@each_arch
def test_conv_fwd_runs_on_tensor_cores(arch):
    """All products use tensor cores, fed by ldmatrix and asynchronous 16-byte copies; all stores are 16 bytes wide."""
    for name, code in named(arch, "conv_fwd_kernel").items():
        dtype, tile, _, epilogue = conv_variant(name)
        products = {i for i in code if i.startswith("HMMA")}
        assert products == {f"HMMA.16816{HALF[str(dtype)]}"} if dtype else {"HMMA.1688.F32.TF32"}, f"{name}: {products}"
        rows, loops = (2 if tile == 2 else 4), (2 if epilogue == PROJECTION else 1)
        # fragments x columns x steps of 32 bytes, or a multiple where the compiler unrolls or peels a loop
        assert sum(i.startswith("HMMA") for i in code) % (rows * 4 * 4 * loops) == 0, name
        assert any(i.startswith("LDSM.16.M88.4") for i in code), name
        copies = [i for i in code if i.startswith("LDGSTS")]
        assert copies, name
        assert all(".128" in i and ".BYPASS" in i for i in copies), f"{name}: {copies}"
        stores = [i for i in code if i.startswith("STG")]
        assert stores, name
        assert all(".128" in i for i in stores), f"{name}: {stores}"
        wide_loads = [i for i in code if i.startswith("LDG.") and ".128" in i]
        reads = epilogue in (AFFINE, GRADIENT_SUMS)
        assert bool(wide_loads) == reads, f"{name}: the residual, and what a BatchNorm read, are 16 bytes a thread"


@compiled
@each_arch
def test_conv_finish_moves_16_bytes_per_thread(arch):
    for name, code in named(arch, "conv_finish_kernel").items():
        stores = [i for i in code if i.startswith("STG")]
        assert stores, name
        assert all(".128" in i for i in stores), f"{name}: {stores}"
        assert any(i.startswith("LDG") and ".128" in i for i in code), name


@compiled
@each_arch
def test_kernels_wait_for_the_grids_before_them(arch):
    """From sm_90 on, exactly the LAUNCH_DEPENDENT kernels have griddepcontrol.wait and .launch_dependents."""
    sources = "".join(path.read_text() for path in CUDA.rglob("*.cu*"))
    dependent = set(re.findall(r"\bLAUNCH_DEPENDENT\((\w+)<", sources))
    for name, code in sass.code(LIBRARY, arch).items():
        overlaps = family(name) in dependent and int(re.match(r"sm_(\d+)", arch)[1]) >= 90
        assert ("ACQBULK" in code, "PREEXIT" in code) == (overlaps, overlaps), name


GLOBAL_ACCESS = re.compile(r"LDG|STG|LD\.|ST\.|ATOM|RED\.|UTMALDG|UTMASTG|UTMAPF|UBLK")  # LDG also matches LDGSTS


@compiled
@each_arch
def test_no_global_access_before_the_grid_wait(arch):
    """ptxas may move loads of read-only memory across independent instructions; it must not do so here."""
    for name, code in sass.code(LIBRARY, arch).items():
        if "ACQBULK" in code:
            assert code.count("ACQBULK") == 1, name
            early = [i for i in code[: code.index("ACQBULK")] if GLOBAL_ACCESS.match(i)]
            assert not early, f"{name}: {early}"
            assert [i for i in code if GLOBAL_ACCESS.match(i)], name


BLOCK_CHANNELS = [64, 128]
SM90_TILES = [(256, 128), (256, 64), (128, 128)]
ROWS_TILES = [(4, 56), (7, 32), (8, 32), (16, 16), (8, 8)]


@compiled
def test_conv_sm90_runs_on_wgmma_and_tma():
    """Operands come by TMA, products use wgmma of the tile's width; stmatrix transposes the output for TMA stores."""
    for name, code in named("sm_90a", "conv_sm90_kernel").items():
        dtype, tile, prologue, epilogue = conv_variant(name)
        pingpong = tile == 1 and not prologue and epilogue != PROJECTION  # one warp group per tile
        columns = 256 if tile == 0 or pingpong else 128
        kind = f"HGMMA.64x{columns}x16{HALF[str(dtype)]}"
        products = [i for i in code if "MMA" in i]
        assert set(products) == {kind}, f"{name}: {set(products)}"
        # four steps of depth 16 per stage; a projection has a second main loop
        assert len(products) % (4 * (2 if epilogue == PROJECTION else 1)) == 0, name
        loads = {i for i in code if i.startswith("UTMALDG")}
        assert loads == {"UTMALDG.4D.IM2COL", "UTMALDG.2D"}, f"{name}: {loads}"
        assert {i for i in code if i.startswith("UTMASTG")} == {"UTMASTG.2D"}, name
        assert "STSM.16.MT88.4" in code, name
        assert any(i.startswith("LDSM.16.MT88.4") for i in code) == (epilogue == AFFINE), f"{name}: the residual"
        stores = [i for i in code if i.startswith("STG")]
        if epilogue == MOMENTS:
            assert set(stores) == {"STG.E"}, f"{name}: a lane's number of each of its channels, and nothing else"
            continue
        assert stores, f"{name}: partial tiles"
        assert all(".128" in i for i in stores), f"{name}: every other store is TMA's: {stores}"


@compiled
def test_conv_sm90_finish_moves_16_bytes_per_thread():
    """Eight loads of partial tiles and one of the residual are in flight."""
    for name, code in named("sm_90a", "conv_sm90_finish_kernel").items():
        projects = name.split("ConvSm90FinishConfigIL")[1].split("EEE")[0].endswith("b1")
        stores = [i for i in code if i.startswith("STG")]
        assert len(stores) == 1, name
        assert ".128" in stores[0], f"{name}: {stores}"
        wide = [i for i in code if i.startswith("LDG") and ".128" in i]
        assert len(wide) >= (2 * 8 if projects else 8 + 1), f"{name}: {wide}"


@compiled
def test_conv_rows_runs_on_wgmma_and_tma():
    """A tile has 9 taps of 4 steps, each one wgmma of the tile's width; loads and stores are TMA boxes."""
    for name, code in named("sm_90a", "conv_rows_kernel").items():
        dtype, tile = tile_variant(name)
        rows, columns = ROWS_TILES[tile]
        products = [i for i in code if "MMA" in i]
        assert products == [f"HGMMA.64x{rows * columns}x16{HALF[str(dtype)]}"] * 36, f"{name}: {set(products)}"
        loads = {i for i in code if i.startswith("UTMALDG")}
        assert loads == {"UTMALDG.2D", "UTMALDG.4D"}, f"{name}: the filter by taps, patches and the residual by boxes"
        assert {i for i in code if i.startswith("UTMASTG")} == {"UTMASTG.4D"}, name
        assert "STSM.16.MT88.4" in code, name
        assert "LDSM.16.MT88.4" in code, f"{name}: the residual"
        assert not [i for i in code if i.startswith("STG")], f"{name}: every store is TMA's"


@compiled
def test_block_fwd_runs_on_wgmma_and_tma():
    """Weights come by TMA, pixels by 16-byte copies; products use wgmma of each convolution's width, then stmatrix."""
    columns = {0: (128, 96), 1: (96, 64)}
    for name, code in named("sm_90a", "block_fwd_kernel").items():
        dtype, shape = tile_variant(name)
        products = {i for i in code if "MMA" in i}
        assert products == {f"HGMMA.64x{n}x16{HALF[str(dtype)]}" for n in columns[shape]}, f"{name}: {products}"
        loads = {i for i in code if i.startswith("UTMALDG")}
        assert loads == {"UTMALDG.2D.MULTICAST" if shape else "UTMALDG.2D"}, f"{name}: {loads}"
        copies = [i for i in code if i.startswith("LDGSTS")]
        assert copies, name
        assert all(".128" in i and ".BYPASS" in i for i in copies), f"{name}: {copies}"
        assert "STSM.16.MT88.4" in code, name
        assert "LDSM.16.MT88.4" in code, f"{name}: the shortcut"
        fences = [i for i in code if i.startswith(("MEMBAR", "ERRBAR", "CCTL")) and not i.endswith(".CTA")]
        meetings = code.count("UCGABAR_ARV")
        assert meetings == (2 if shape else 0), name
        own = ["MEMBAR.ALL.GPU", "ERRBAR", "CCTL.IVALL"]
        assert sorted(fences) == sorted(own * meetings), f"{name}: fences but those of the cluster's barriers: {fences}"
        stores = [i for i in code if i.startswith("STG")]
        assert stores, name
        assert all(".128" in i for i in stores), f"{name}: {stores}"


@pytest.mark.parametrize(
    "source", ["conv_sm90_bf16.cu", "conv_sm90_stats_bf16.cu", "conv_rows_bf16.cu", "block_fwd_bf16.cu"]
)
def test_ptxas_does_not_serialise_wgmma(tmp_path, source):
    """Warnings C7508 to C7514 mean that ptxas ignored setmaxnreg or serialised wgmma."""
    nvcc = sass.toolkit().nvcc
    command = [nvcc, "-cubin", "-arch=sm_90a", "-std=c++17", "-O3", "--expt-relaxed-constexpr"]
    command += [f"-I{ROOT / 'csrc'}", CUDA / "kernels/sm90/instantiations" / source, "-o", tmp_path / "cubin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"C75\d\d|warning", done.stdout + done.stderr)


def declarations(path: Path) -> set[str]:
    """Signatures of the namespace's __device__ functions, one line each."""
    text = path.read_text()
    found = re.findall(r"__device__ __forceinline__ (\w+ \w+\([^{;]*\)) \{", text)
    return {" ".join(f.split()) for f in found}


@pytest.mark.parametrize("twin", sorted(p.name for p in (CUDA / "device/ptx").glob("*.cuh")))
def test_every_instruction_is_emulated(twin):
    ours, theirs = declarations(CUDA / "device/ptx" / twin), declarations(EMULATOR / "device/ptx" / twin)
    assert ours
    assert ours == theirs


def test_kernel_sources_include_no_cuda_runtime():
    """Kernels include only our headers and a few standard ones, launch through LAUNCH, and keep assembly in ptx/."""
    standard = {"<algorithm>", "<cstdint>", "<stdexcept>", "<type_traits>", "<utility>", "<vector>"}
    for path in [*CUDA.rglob("*.cuh"), *CUDA.rglob("*.cu"), CUDA / "kernels/kernels.h"]:
        text = path.read_text()
        for include in re.findall(r'#include ([<"][^>"]+[>"])', text):
            assert include.startswith('"cuda/') or include in standard, f"{path}: {include}"
        assert "<<<" not in text, path
        assert "asm" not in text or path.parent.name == "ptx", path
