"""benchmarks.predict_training counts bytes, multiplications and parameters."""

import pytest

from benchmarks import predict_training
from benchmarks.predict_training import Block, Conv
from resnet_fused import models


def test_flops_and_parameters_match_the_network():
    """ResNet-50 at 224x224: 4.09e9 multiply-adds per image without the classifier, 25.6 million parameters."""
    blocks, parameters = predict_training.read(models.resnet50(), 1)
    assert sum(c.flops for b in blocks for c in b.convs()) == pytest.approx(2 * 4.09e9, rel=0.005)
    assert parameters == 25_557_032
    assert [len(b.main) for b in blocks] == [1] + 16 * [3]


def test_passes_of_an_identity_block():
    """Passes over one activation. Eager: 5 + 8 forward, 16 + 3 backward. Ours: none between the two convolutions."""
    conv = Conv(0.0, 1.0, 1.0, 0.0, ours=True, unit_stride=True)
    block = Block("basic", [conv, conv._replace(x=1.0)], None, True)

    def count(cost):
        return cost.passes / predict_training.SIZE

    assert count(predict_training.eager_forward(block)) == 5 + 8
    assert count(predict_training.eager_backward(block)) == 8 + 8 + 3
    assert count(predict_training.our_forward(block, 1e30)) == 3
    # 5 per BatchNorm (3 if a convolution computes its sums), 2 to recompute the activation, 2 for the last ReLU. The
    # first convolution adds the two gradients.
    assert count(predict_training.our_backward(block)) == 3 + 5 + 2 + 2
    strided = block._replace(main=[conv._replace(unit_stride=False), conv])
    assert count(predict_training.our_backward(strided)) == 3 + 5 + 2 + 2 + 3
    first, second = conv, conv._replace(unit_stride=False)
    assert count(predict_training.our_backward(block._replace(main=[first, second]))) == 5 + 5 + 2 + 2


def test_passes_of_a_stem():
    """Eager: 5 for BatchNorm and ReLU; pooling reads the activation and writes a quarter of it and 8-byte indices.

    Ours writes one byte per pooled value instead of the indices.
    """
    block = Block("stem", [Conv(0.0, 0.0, 1.0, 0.0, ours=False, unit_stride=False)], None, False)

    def count(cost):
        return cost.passes / predict_training.SIZE

    assert count(predict_training.eager_forward(block)) == 5 + 2.25
    assert count(predict_training.eager_backward(block)) == 8 + 2.25
    assert count(predict_training.our_forward(block, 1e30)) == 1 + 1.375
    assert count(predict_training.our_backward(block)) == 5 + 1.375


def test_gradient_sums_are_fused_only_where_cheaper():
    conv = Conv(0.0, 1e9, 1e9, 1e6, ours=True, unit_stride=True)
    cheap, expensive = (predict_training.gradient_with_sums(conv._replace(flops=flops)) for flops in (1e9, 1e15))
    assert cheap.seconds < 0
    assert expensive == predict_training.Cost(0, 0)
