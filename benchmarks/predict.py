"""Writes docs/predictions.md, the predictions of the cost model for an H200: ``python -m benchmarks.predict --write``.

Without ``--write`` it prints the page. Run it after ``benchmarks.fit_model --write`` and a build.
"""

import argparse
from pathlib import Path

from . import predict_inference, predict_layers, predict_training
from .predict_inference import GPU_SMS, L2, LAUNCH, MEMORY, MODEL
from .predict_training import CUDNN, SM80, SM90

FILE = Path(__file__).resolve().parents[1] / "docs" / "predictions.md"


def page() -> str:
    """The whole page, in Markdown."""
    return f"""<!-- Written by python -m benchmarks.predict --write -->
# Predictions
What the cost model (`csrc/cuda/plan/cost_model.cpp`) predicts for an H200 in bf16. **Nothing here is measured**;
measurements are in [benchmarks/results/nvidia-h200](../benchmarks/results/nvidia-h200/README.md).

The model assumes {GPU_SMS} SMs at {MODEL["clock"]:g} GHz, {MODEL["macs"]:g} multiply-adds a clock and SM,
{MEMORY / 1e3:.1f} TB/s of memory, {L2 / MODEL["clock"] / GPU_SMS:.1f} bytes a clock from L2 to an SM, and
{LAUNCH / 1e3:.1f} us between the starts of two kernels. `benchmarks.fit_model` fits these to measured layers
(`csrc/cuda/plan/cost_constants.h`).

## Inference of whole networks
Channels_last, CUDA graphs on all sides, microseconds. Ours: the fastest kernel by the model. Peers: PyTorch's
convolutions as the model has them, and between them one pass over memory a convolution for torch.compile, one for each
of BatchNorm, ReLU and add for eager, none for cuDNN's fused kernel. Peers are charged their bytes and multiplications
only, so this is eager at its best. The last column: what a separate `bn_add_act` and pooling behind the stem would add.

{predict_inference.tables()}

## Convolutions with batch statistics, and stream-K
Batch 256, microseconds; the fastest is bold. Then `sm90/conv_sm90`, 3x3 with residual, data-parallel and with
[stream-K](kernels/sm90_conv_fwd.md).

{predict_layers.tables()}

## A training step
Batch 256, autocast, SGD with momentum, milliseconds. A pass takes its bytes over {MEMORY / 1e3:.1f} TB/s; a convolution
the longer of its bytes and its multiplications at {CUDNN / 1e12:.0f} TFLOP/s (cuDNN), {SM80 / 1e12:.0f}
(`sm80/conv_fwd`) or {SM90 / 1e12:.0f} (`sm90/conv_sm90`, in the rows "all"). There are no gaps between kernels and no
host time, so a measured step is longer. Tensors moved, in tensors of a layer's output:

| | eager | ours |
|---|---|---|
| BatchNorm, forward | 3 | 0 where `conv_stats` is faster, else 3 |
| ReLU in place; add | 2; 3 | 0 |
| end of a block | in the above | 3 |
| BatchNorm, backward | 5 | 5, or 3 and one more read where the convolution takes its sums |
| ReLU; sum of two gradients | 3; 3 | 0; 3, or one read where a convolution adds them |
| recomputed activation | 0 | 2 |
| stem's pooling | activation, a quarter, 64-bit indices | pre-BN output, a quarter, a byte a value |

{predict_training.tables()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    if parser.parse_args().write:
        FILE.write_text(page())
    else:
        print(page())


if __name__ == "__main__":
    main()
