"""What the GPU benchmark times, on the CPU as far as that goes."""

import torch
from criterion import assert_close

from benchmarks import gpu_kernels


def test_contenders_compute_the_same_layer():
    layer = gpu_kernels.Layer.random(16, 7, 2, torch.float32, device="cpu")
    calls, expected = gpu_kernels.calls_of(layer), layer.expected([0, 1])
    assert_close(calls[gpu_kernels.OURS](), calls[gpu_kernels.EAGER](), expected)
    activation, weight = 2 * 16 * 7 * 7, 16 * 16 * 3 * 3
    assert layer.work() == (2 * activation * 16 * 9, (3 * activation + weight) * 4)
