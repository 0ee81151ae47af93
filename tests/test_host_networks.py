"""The benchmark of networks' host time. No time is asserted."""

import pytest
import torch

from benchmarks import host_networks
from resnet_fused import ops


@pytest.fixture(scope="module")
def resnet18():
    return host_networks.network("resnet18")


@torch.no_grad()
def test_replay_gives_the_recorded_output(resnet18):
    model, x = resnet18
    expected = model(x)
    results = host_networks.record(lambda: model(x))
    with host_networks.replaced(host_networks.stubs(results)):
        for _ in range(2):
            assert torch.equal(model(torch.zeros_like(x)), expected), "nothing is computed from the input"
    assert torch.equal(model(x), expected), "the ops are back"


@torch.no_grad()
def test_ops_that_launch_nothing_make_the_same_calls(host, resnet18):
    model, x = resnet18
    results = host_networks.record(lambda: model(x))
    with host_networks.replaced(host_networks.host_ops()):
        launched_nothing = host_networks.record(lambda: model(x))
    for made, real in zip(launched_nothing, results, strict=True):
        assert (made.shape, made.stride(), made.dtype) == (real.shape, real.stride(), real.dtype)


def test_a_network_that_calls_no_op_is_an_error():
    before = ops.conv_bn_act
    with pytest.raises(RuntimeError, match="called no op"):
        host_networks.record(lambda: None)
    assert ops.conv_bn_act is before


def test_one_round_gives_positive_times(host):
    times = host_networks.measure(rounds=1, each=1)
    assert list(times) == list(host_networks.NETWORKS)
    for found in times.values():
        assert found.calls > 0
        assert len(found.python) == len(found.host) == 1
        assert min(found.median(column) for column in host_networks.COLUMNS) > 0
    assert all(name in host_networks.table(times) for name in times)


def test_comparing_with_a_checkout_that_is_not_built_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="is not a checkout of resnet_fused"):
        host_networks.compare(host_networks.CHECKOUT, tmp_path, rounds=1, each=1, runs=1)
    (tmp_path / "resnet_fused").mkdir()
    (tmp_path / "resnet_fused" / "__init__.py").touch()
    with pytest.raises(RuntimeError, match=r"is not built; run there: python setup\.py build_ext --inplace"):
        host_networks.compare(host_networks.CHECKOUT, tmp_path, rounds=1, each=1, runs=1)


def test_comparing_a_checkout_with_itself(host):
    compared = host_networks.compare(host_networks.CHECKOUT, host_networks.CHECKOUT, rounds=1, each=1, runs=1)
    rows = [line.split(" | ") for line in compared.splitlines() if line.startswith("| resnet")]
    assert len(rows) == len(host_networks.NETWORKS) * len(host_networks.COLUMNS)
    assert all(row[2] == row[3] and float(row[-1].rstrip(" |")) > 0 for row in rows)
