"""Compares a registered block's spec with its ``forward``: a wrong spec must not change a model silently."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..chain import read
from ..chain.spec import Chain, Reason

# Rounding in float64 stays orders of magnitude below this; a missing layer or another order is far above.
TOLERANCE = 1e-6
SIZE = (2, 9, 8)  # N, H, W: odd and even, so that a wrong stride or padding shows


def mismatch(module: nn.Module, fused: Any, chain: Chain) -> str | None:
    """How ``forward`` of ``module`` and the fused class differ on a random float64 input; None if they agree.

    Compares the output, the gradient and the final value of the input, and all buffers, in eval and training mode, with
    random parameters of the block's shapes.
    """
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        eager = copy.deepcopy(module).to_empty(device="cpu").double().requires_grad_(False)
        for tensor in (*eager.parameters(), *eager.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        for parameter in eager.parameters():
            if parameter.dim() == 4:
                parameter.normal_().div_(parameter[0].numel() ** 0.5)
        own = copy.deepcopy(eager)
        own.__class__ = fused
        x = torch.randn(SIZE[0], _in_channels(chain), *SIZE[1:], dtype=torch.float64)
        for training in (False, True):
            difference = _difference(eager.train(training), own.train(training), x)
            if difference is not None:
                mode = "training" if training else "eval"
                return f"its spec does not match its forward: in {mode} mode, {difference}"
    return None


def _in_channels(chain: Chain) -> int:
    first = chain.norms[0]
    if first is not None and first.module is not None:
        return int(first.module.num_features)  # type: ignore[arg-type]
    return chain.convs[0].weight.shape[1] * chain.convs[0].groups


def _difference(eager: nn.Module, own: Any, x: Tensor) -> str | None:
    try:
        expected = list(_results(eager, own._eager_class.forward, x))
    except Exception as error:  # the user's code may raise anything
        return f"it raises {type(error).__name__} for an input of shape {list(x.shape)}: {str(error)[:200]}"
    with read.recording() as records:
        found = list(_results(own, type(own).forward, x))
    reason = next((how for _, _, how in records if isinstance(how, Reason)), None)
    if reason is not None:
        return f"the fused block runs eagerly: {reason}"
    for (name, a), (_, b) in zip(found, expected, strict=True):
        if not isinstance(b, Tensor) or a.shape != b.shape:
            return f"{name} is {_shape(b)}, but the spec gives {_shape(a)}"
        relative = (a - b).norm() / b.norm().clamp(min=1e-30)
        if not relative <= TOLERANCE:
            return f"{name} differs by {relative:.1e} (relative norm of the difference)"
    return None


def _results(module: nn.Module, forward: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    leaf = x.clone().requires_grad_()
    given = leaf * 1.0  # not a leaf, so that it may be modified in place
    y = forward(module, given)
    yield "the output", y
    if isinstance(y, Tensor):
        direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        yield "the input's gradient", torch.autograd.grad((y * direction).sum(), leaf)[0]
    yield "the input after the call", given
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


def _shape(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
