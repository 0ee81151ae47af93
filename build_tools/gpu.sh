#!/usr/bin/env bash
# gpu.sh PYTHON OUT: builds in place with PYTHON's own torch for this machine's GPU, tests, and times. Downloads nothing.
# Every step runs even if one before it failed; OUT/summary.txt has each one's status, and the worst is ours.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1 out=$2
mkdir -p "$out"
out=$(cd "$out" && pwd)
summary=$out/summary.txt
: >"$summary"

limit=${GPU_SECONDS:-570} # ten minutes, less what starting takes
deadline=$((SECONDS + limit))
reserve=0 # seconds of it that the next step must leave to later ones
worst=0

say() { echo "gpu: $*" | tee -a "$summary"; }
has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

step() { # NAME COMMAND...: what is left of the time is the limit
  local name=$1 status left=$((deadline - SECONDS - reserve)) start=$SECONDS
  shift
  if ((left <= 0)); then
    say "$name: not run, no time left"
    worst=1
    return
  fi
  timeout --kill-after=10 "$left" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  say "$name: exit $status after $((SECONDS - start)) s"
  ((status == 0)) || worst=1
}

export RESNET_FUSED_CUDA=1 PYTHONUNBUFFERED=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>"$out/device.log") || {
    say "no GPU that torch can use: $(tail -n 1 "$out/device.log")"
    exit 1
  }
  export TORCH_CUDA_ARCH_LIST
fi

step device "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_properties(0))'
step build "$python" setup.py build_ext --inplace

# What only a GPU can tell comes first; what CI also runs comes last, in the time that is left.
step primitives "$python" -m tests.cuda_primitives.gpu "$out"
on_gpu=(tests/test_cuda_{ops,blocks,training,graphs}.py)
step cuda-tests "$python" -m pytest "${on_gpu[@]}" \
  --junitxml="$out/cuda-tests.xml"
for engine in sm80 sm90 torch; do
  [ $engine = sm90 ] && [ "$TORCH_CUDA_ARCH_LIST" != 9.0 ] && continue
  step "kernels-$engine" env RESNET_FUSED_CUDA_ENGINE=$engine \
    "$python" -m benchmarks.gpu_kernels "$out" --contenders ours,cudnn,eager --budget 0.4
done
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  # Small shapes of every kernel: each access is slowed down a hundredfold.
  for tool in memcheck racecheck; do
    step "$tool" timeout 90 "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest tests/test_cuda_ops.py -q \
      -k "(shapes_that_kernels_take or pre_activation or test_projection) and bfloat16 and nhwc"
  done
else
  say "left out: memcheck, racecheck (compute-sanitizer is not installed)"
fi
# Latency and throughput of whole networks; the table of the peers that autotune is made in a longer run (GPU_SECONDS).
step models timeout 90 "$python" -m benchmarks.gpu_models "$out" --budget 0.5 \
  --contenders "resnet_fused,eager channels_last,torch.compile,JAX" --networks ResNet-18,ResNet-50
((limit > 1200)) && step models-all timeout 900 "$python" -m benchmarks.gpu_models "$out/all"
# Autotuning takes most of it: cut short where time is.
step kernels timeout 150 "$python" -m benchmarks.gpu_kernels "$out" --budget 0.4
if has pytest_benchmark; then
  reserve=$((limit / 5))
  step benchmarks "$python" -m pytest benchmarks --benchmark-only --benchmark-json="$out/benchmark.json"
  reserve=0
else
  say "left out: benchmarks (pytest-benchmark is not installed)"
fi

# Test files whose third-party modules are not here are left out by name; so is the wheel, which is made and tested in CI.
ignored=(--ignore=tests/test_wheel.py "${on_gpu[@]/#/--ignore=}")
say "left out: tests/test_wheel.py (the wheel is tested where it is made)"
for module in hypothesis pybind11 torchvision sklearn; do
  has "$module" && continue
  while read -r file; do
    ignored+=("--ignore=$file")
    say "left out: $file ($module is not installed)"
  done < <(grep -rlE "^(import|from) $module\b" tests --include='*.py')
done
step tests "$python" -m pytest tests "${ignored[@]}" --junitxml="$out/tests.xml"

say "$([ $worst = 0 ] && echo passed || echo FAILED)"
exit $worst
