"""Shapes of a model's convolutions, found with fake tensors (nothing is computed)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ._errors import CommandError


@dataclass(frozen=True)
class ConvCall:
    """One call of a convolution: the arguments of ``ops.explain_cpu``."""

    name: str  # fully qualified
    input: list[int]
    weight: list[int]
    output: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    channels_last: bool  # the input's memory format

    def __str__(self) -> str:
        size = "x".join(map(str, self.weight[2:]))
        extras = [f"/{self.stride[0]}"] if self.stride != [1, 1] else []
        extras += [f"dilation {self.dilation[0]}"] if self.dilation != [1, 1] else []
        extras += [f"{self.groups} groups"] if self.groups != 1 else []
        return f"{_dims(self.input)} -> {_dims(self.output)}, {' '.join([size, *extras])}"


def conv_calls(model: nn.Module, shape: list[int], dtype: torch.dtype, channels_last: bool) -> list[ConvCall]:
    """Every convolution that one forward pass of the eager ``model`` calls, in order.

    Raises:
        CommandError: the model does not accept an input of this shape.
    """
    calls: list[ConvCall] = []
    model = model.to(dtype)
    hooks = [
        module.register_forward_hook(_recorder(name, calls))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.empty(shape, dtype=dtype)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            model(x)
    except Exception as error:  # an arbitrary model may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"the model does not accept an input of shape {shape}: {reason[0]}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _recorder(name: str, calls: list[ConvCall]):  # type: ignore[no-untyped-def]
    def record(conv: nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(
            ConvCall(
                name,
                list(args[0].shape),
                list(conv.weight.shape),
                list(output.shape),
                list(conv.stride),
                _padding(conv),
                list(conv.dilation),
                conv.groups,
                args[0].is_contiguous(memory_format=torch.channels_last),
            )
        )

    return record


def _padding(conv: nn.Conv2d) -> list[int]:
    """The padding in pixels, also for "same" and "valid"."""
    if isinstance(conv.padding, str):
        same = conv.padding == "same"
        return [d * (k - 1) // 2 if same else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return list(conv.padding)


def _dims(shape: list[int]) -> str:  # without the batch
    return "x".join(map(str, shape[1:]))
