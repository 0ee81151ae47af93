"""Compares a registered block's spec with its ``forward``: a wrong spec must not change a model silently."""

import copy
import functools
import itertools
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..chain import read
from ..chain.geometry import output_shape
from ..chain.spec import Chain, Reason
from ..match import Match, of_copy, remember

# Rounding in float64 stays orders of magnitude below this; a missing layer or another order is far above.
TOLERANCE = 1e-6
SIZES = ((2, 9, 8), (2, 33, 32))  # N, H, W: odd and even, so that a wrong stride shows; the first that forward accepts
NONE, EVEN, ODD = slice(0, 0), slice(0, None, 2), slice(1, None, 2)  # the BatchNorms in eval mode
MODES = (("eval", NONE), ("training", NONE), ("mixed training", EVEN), ("mixed training", ODD))
NOT_COMPARED = "it cannot be compared with its spec"
SCALES = (1.0, 1e3)  # of the input and of gamma: a clamp such as relu6 shows


def mismatch(module: nn.Module, fused: Any, chain: Chain, matches: tuple[Match, ...] = ()) -> str | None:
    """How ``forward`` of ``module`` and the fused class differ on random float64 inputs; None if they agree.

    Compares the output, the final value of the input, all gradients and all buffers, in eval mode with and without
    gradients and in training, with random parameters of the block's shapes. A ``forward`` that draws random numbers is
    refused.

    ``matches``: of a block whose spec was derived. Then modes in which it has none are not compared, nor larger inputs:
    the trace has every operation.
    """
    inference, grad, states = torch.inference_mode(False), torch.enable_grad(), States.now()
    with inference, grad, torch.device("cpu"), torch.autocast("cpu", enabled=False):
        try:
            return next(_differences(module, fused, chain, matches), None)
        except Exception as error:  # the user's code may raise anything
            return f"comparing it with its spec raises {type(error).__name__}: {_line(error)}"
        finally:
            states.restore()


def _differences(module: nn.Module, fused: Any, chain: Chain, matches: tuple[Match, ...]) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    reason: Reason | None = None
    compared = False
    for scale in SCALES[:1] if matches else SCALES:
        eager = _with_random_tensors(module, scale, generator)
        own = copy.deepcopy(eager)
        own.__class__ = fused
        if matches:
            matches = of_copy(own, fused._eager_class, matches)
            remember(own, matches)
        shapes = [(n, _in_channels(chain), h, w) for n, h, w in SIZES]
        accepted = (shape for shape in shapes if _accepts(eager, fused._eager_class.forward, shape))
        shape = next(accepted, shapes[0])
        x = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
        variants: list[tuple[dict[str, Tensor], Any]] = [({}, fused._spec)]
        argument = next((each.argument for each in matches if each.argument), "")
        if argument:
            added = torch.randn(output_shape(x, chain.convs), dtype=torch.float64, generator=generator)
            variants.append(({argument: added}, fused._spec_with_shortcut))
        for (mode, frozen), grad, (given, spec) in itertools.product(MODES, (True, False), variants):
            for block in (eager, own):
                block.train(mode != "eval")
                norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
                for norm in norms[frozen]:
                    norm.eval()
            with torch.set_grad_enabled(grad):
                how = read.block(own, spec, x) if matches else None
                if isinstance(how, Reason):
                    reason = how
                    continue
                difference = _difference(eager, own, x, given, draws=not matches)
            compared = True
            if difference is not None:
                where = f"in {mode} mode{'' if grad else ' without gradients'}"
                yield f"its spec does not match its forward: {where}, {difference}"
    if not compared:
        yield f"{NOT_COMPARED}: {reason}"


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


def _difference(eager: nn.Module, own: Any, x: Tensor, given: dict[str, Tensor], draws: bool) -> str | None:
    """``given``: other arguments of ``forward``. ``draws``: whether to look for random numbers."""
    before = States.now() if draws else None
    try:
        expected = list(_results(eager, functools.partial(own._eager_class.forward, **given), x))
    except Exception as error:  # the user's code may raise anything
        return f"it raises {type(error).__name__} for an input of shape {list(x.shape)}: {_line(error)}"
    if before is not None and States.now() != before:
        return "it draws random numbers"
    with read.recording() as records:
        found = list(_results(own, functools.partial(type(own).forward, **given), x))
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
        forward(copy.deepcopy(module).eval(), torch.zeros(shape, dtype=torch.float64))
    except Exception:  # such as an image that is smaller than a filter
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _shape(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class States(NamedTuple):
    """The states of the generators of torch, Python and, if it is loaded, numpy."""

    torch: list[int]
    python: Any
    numpy: Any

    @staticmethod
    def now() -> "States":
        with _disable_current_modes():
            of_torch = torch.get_rng_state().tolist()
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return States(of_torch, random.getstate(), None)
        name, keys, *rest = numpy.random.get_state()
        return States(of_torch, random.getstate(), (name, keys.tolist(), *rest))

    def restore(self) -> None:
        """Sets the generators to these states."""
        with _disable_current_modes():
            torch.set_rng_state(torch.tensor(self.torch, dtype=torch.uint8))
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
