"""Exchanging the blocks of trained networks, and the gradient by path length, as the studies do it."""

import itertools

import pytest

pytest.importorskip("matplotlib")

import torch

from resnet_fused.models import cifar_resnet
from studies import ensemble
from studies.common.blocks import arranged, blocks_of, deleted
from studies.common.training import check_fused, logits, network


def small(fused, depth=14, residual=True):
    return network(lambda: cifar_resnet(depth, residual=residual, in_channels=1), 0, fused)


@pytest.mark.parametrize("residual", [True, False])
def test_eager_and_fused_agree_in_another_order_of_blocks(residual):
    eager, fused = small(False, residual=residual), small(True, residual=residual)
    x = torch.randn(4, 1, 8, 8)
    whole = logits(eager, x)
    for order, chosen in (((0, 1, 2, 3, 4, 5), (1, 2)), ((1, 0, 2, 3, 4, 5), ()), ((0, 1, 2, 3, 4, 5), range(6))):
        found = []
        for model in (eager, fused):
            with arranged(model, [deleted(model, chosen)[i] for i in order]):
                found += [logits(model, x) for _ in range(3)][-1:]  # the fused network replays its calls
        torch.testing.assert_close(*found)
        assert not torch.allclose(found[0], whole)
    for model in (eager, fused):
        torch.testing.assert_close(logits(model, x), whole)


def test_eager_blocks_are_noticed():
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        check_fused(small(True).eval(), x)
        with pytest.raises(RuntimeError, match="not all ran fused"):
            check_fused(small(False).eval(), x)


@pytest.mark.parametrize("fused", [False, True])
def test_paths_of_a_length_add_up(fused):
    model = small(fused, depth=8).train().requires_grad_(False)
    x, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    steps, gradient = ensemble.forward(model, x, labels, fused)
    sums = ensemble.summed(steps, gradient)
    assert len(sums) == 4
    for k, found in enumerate(sums):
        paths = [ensemble.along(steps, gradient, chosen) for chosen in itertools.combinations(range(3), k)]
        torch.testing.assert_close(found, torch.stack(paths).sum(0))
    y = start = steps[0].x.detach().requires_grad_()
    for block in blocks_of(model):
        y = block(y)
    loss = torch.nn.functional.cross_entropy(model.fc(y.mean((2, 3))), labels)
    torch.testing.assert_close(torch.stack(sums).sum(0), torch.autograd.grad(loss, start)[0])


def test_path_of_branches_is_the_gradient_without_shortcuts():
    model = small(False, depth=8).train().requires_grad_(False)
    steps, gradient = ensemble.forward(model, torch.randn(8, 1, 8, 8), torch.arange(8), False)
    found = ensemble.along(steps, gradient, range(3))
    for step, block in zip(reversed(steps), reversed(blocks_of(model)), strict=True):
        x = step.x.detach().requires_grad_()
        branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        gradient = torch.autograd.grad(branch, x, gradient * step.active)[0]
    torch.testing.assert_close(found, gradient)


def test_kendall_tau():
    assert ensemble.kendall_tau((0, 1, 2, 3), [[0, 1, 2, 3]]) == 1
    assert ensemble.kendall_tau((3, 2, 1, 0), [[0, 1, 2, 3]]) == -1
    assert ensemble.kendall_tau((1, 0, 2, 3), [[0, 1], [2, 3]]) == 0
