"""Compares a registered block's spec with its ``forward``: a wrong spec must not change a model silently."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..chain import read
from ..chain.spec import Chain, Reason
from ..match.randomness import States

# Rounding in float64 stays orders of magnitude below this; a missing layer or another order is far above.
TOLERANCE = 1e-6
SIZES = ((2, 9, 8), (2, 33, 32))  # N, H, W: odd and even, so that a wrong stride shows; the first that forward accepts
NONE, EVEN, ODD = slice(0, 0), slice(0, None, 2), slice(1, None, 2)  # the BatchNorms in eval mode
MODES = (("eval", NONE), ("training", NONE), ("mixed training", EVEN), ("mixed training", ODD))
SCALES = (1.0, 1e3)  # of the input and of gamma: a clamp such as relu6 shows


class Extent(NamedTuple):
    """How much is compared. ``may_run_eagerly``: modes in which the fused block runs eagerly are right as they are."""

    scales: tuple[float, ...] = SCALES
    may_run_eagerly: bool = False


REGISTERED, MATCHED = Extent(), Extent(SCALES[:1], may_run_eagerly=True)


def mismatch(module: nn.Module, fused: Any, chain: Chain, extent: Extent = REGISTERED) -> str | None:
    """How ``forward`` of ``module`` and the fused class differ on random float64 inputs; None if they agree.

    Compares the output, the final value of the input, all gradients and all buffers, in eval mode with and without
    gradients and in training, with random parameters of the block's shapes. A ``forward`` that draws random numbers is
    refused.
    """
    inference, grad, states = torch.inference_mode(False), torch.enable_grad(), States.now()
    with inference, grad, torch.device("cpu"), torch.autocast("cpu", enabled=False):
        try:
            return next(_differences(module, fused, chain, extent), None)
        except Exception as error:  # the user's code may raise anything
            return f"comparing it with its spec raises {type(error).__name__}: {_line(error)}"
        finally:
            states.restore()


def _differences(module: nn.Module, fused: Any, chain: Chain, extent: Extent) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    for scale in extent.scales:
        eager = _with_random_tensors(module, scale, generator)
        own = copy.deepcopy(eager)
        own.__class__ = fused
        shapes = [(n, _in_channels(chain), h, w) for n, h, w in SIZES]
        accepted = (shape for shape in shapes if _accepts(eager, fused._eager_class.forward, shape))
        shape = next(accepted, shapes[0])
        x = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
        for (mode, frozen), grad in itertools.product(MODES, (True, False)):
            for each in (eager, own):
                each.train(mode != "eval")
                norms = [part for part in each.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
                for norm in norms[frozen]:
                    norm.eval()
            with torch.set_grad_enabled(grad):
                difference = _difference(eager, own, x, extent)
            if difference is not None:
                where = f"in {mode} mode{'' if grad else ' without gradients'}"
                yield f"its spec does not match its forward: {where}, {difference}"


def _with_random_tensors(module: nn.Module, scale: float, generator: torch.Generator) -> nn.Module:
    """A copy of the block in float64 on the CPU, with the attributes of a new block and positive statistics."""
    memo = {id(value): None for value in vars(module).values() if isinstance(value, Tensor)}  # a stored output
    made = copy.deepcopy(module, memo).to_empty(device="cpu").double().requires_grad_()
    vars(made).pop("fused_training", None)
    variances = {tensor.data_ptr() for name, tensor in made.named_buffers() if name.endswith("running_var")}
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.dim() == 4:
            tensor.data.normal_(generator=generator).div_(tensor[0].numel() ** 0.5)
        elif tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator).mul_(scale)
            if tensor.data_ptr() not in variances:  # of either sign: an absolute value or a clamp shows
                tensor.data.mul_(torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1)
        else:
            tensor.zero_()
    return made


def _in_channels(chain: Chain) -> int:
    first = chain.norms[0]
    if first is not None and first.module is not None:
        return int(first.module.num_features)  # type: ignore[arg-type]
    if first is not None and first.mean is not None:
        return len(first.mean)
    return chain.convs[0].weight.shape[1] * chain.convs[0].groups


def _difference(eager: nn.Module, own: Any, x: Tensor, extent: Extent) -> str | None:
    if extent.may_run_eagerly and isinstance(read.block(own, own._spec, x), Reason):
        return None
    before = States.now()
    try:
        expected = list(_results(eager, own._eager_class.forward, x))
    except Exception as error:  # the user's code may raise anything
        return f"it raises {type(error).__name__} for an input of shape {list(x.shape)}: {_line(error)}"
    if States.now() != before:
        return "it draws random numbers"
    with read.recording() as records:
        found = list(_results(own, type(own).forward, x))
    changed = next((name for name, value in _attributes(eager).items() if _attributes(own).get(name) != value), None)
    if changed is not None:
        return f"it sets its attribute {changed}"
    reason = next((how for _, _, how in records if isinstance(how, Reason)), None)
    if reason is not None:
        return f"the fused block runs eagerly: {reason}"
    # Rounding of a gradient that is 0, such as a bias's before a BatchNorm, is relative to the other gradients.
    largest = max(value.double().norm().item() for _, value in expected if isinstance(value, Tensor))
    for (name, a), (_, b) in zip(found, expected, strict=True):
        if a is None and b is None:
            continue
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
            return f"{name} is {_shape(b)}, but the spec gives {_shape(a)}"
        relative = (a.double() - b.double()).norm() / b.double().norm().clamp(min=TOLERANCE * largest)
        if not relative <= TOLERANCE:
            return f"{name} differs by {relative:.1e} (relative norm of the difference)"
    return None


def _results(module: nn.Module, forward: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    learning = torch.is_grad_enabled()
    leaf = x.clone().requires_grad_(learning)
    given = leaf * 1.0  # not a leaf, so that it may be modified in place
    y = forward(module, given)
    yield "the output", y
    yield "the input after the call", given
    if learning and isinstance(y, Tensor):
        direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad((y * direction).sum(), [leaf, *parameters], allow_unused=True)
        yield from zip(("the gradient of the input", *(f"the gradient of {n}" for n in names)), gradients, strict=True)
    yield from module.named_buffers()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The block's own attributes: numbers, strings and tuples of them by value, others by type."""
    own = {name: value for name, value in vars(module).items() if name not in (*vars(nn.Module()), "_seen", "_matches")}
    return {name: v if isinstance(v, bool | int | float | str | tuple) else type(v) for name, v in own.items()}


def _accepts(module: nn.Module, forward: Any, shape: tuple[int, ...]) -> bool:
    try:
        forward(copy.deepcopy(module), torch.zeros(shape, dtype=torch.float64))
    except Exception:  # such as an image that is smaller than a filter
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _shape(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
