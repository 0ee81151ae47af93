"""benchmarks.predict_inference: contenders are charged for their passes, and a fused block is counted once."""

import pytest

from benchmarks import predict_inference


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_predicted_times_fall_from_eager_to_cudnn(name):
    whole, blocks = predict_inference.Network(name, 256).times()
    assert whole.eager > whole.compiled > whole.cudnn > 0
    assert whole.ours > blocks.ours > 0
    tensor = 256 * 256 * 56 * 56  # at the end of a bottleneck BatchNorm, addition and ReLU are three passes or one
    more = 2 * predict_inference.sweep(tensor, tensor)
    assert whole.eager - whole.compiled > (more if name == "resnet50" else more / 4)


def test_fused_pooling_saves_a_pass_and_the_indices():
    """Saves one read and write of the stem's output, and an 8-byte index for each pooled value (a quarter of them)."""
    network, y = predict_inference.Network("resnet18", 256), 256 * 64 * 112 * 112
    fused, with_indices = network.pooling()
    assert with_indices - fused == pytest.approx(2 * y / predict_inference.MEMORY / 1e3)
    stem = network.conv(network.calls[0])
    assert stem.compiled - stem.ours == pytest.approx(predict_inference.sweep(y, y))
    assert network.fused_pooling_saves() == pytest.approx(stem.compiled - stem.ours + with_indices - fused)


def test_a_one_launch_block_is_counted_once():
    """At batch 1 each block of the first stage is one launch, so its second convolution adds no time."""
    network = predict_inference.Network("resnet18", 1)
    first, second = (next(c for c in network.calls if c.name == f"layer1.0.conv{i}") for i in (1, 2))
    assert network.plan(first, "all").kernel == "sm90/block_fwd"
    assert network.conv(first).ours > 0
    assert network.conv(second).ours == 0
    assert network.conv(second).compiled > 0
