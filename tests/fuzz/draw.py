"""Draws a problem's random choices from its number."""

import os
import random

import torch
from op_case import Case, lay_out
from torch import Tensor

from .guard import guarded

ENGINES = ["", "", "winograd", "direct", "onednn", "composed"]
ISAS = ["", "", "", "avx512_bf16", "avx512", "avx2"]
LAYOUTS = ["contiguous", "channels_last", "channels_last", "sliced", "expanded"]
SIZES = [1, 2, 3, 5, 7, 8, 13, 14, 16, 17, 23, 30]


class Draw(random.Random):
    """The random choices of one problem; ``said`` describes them."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.said: list[str] = []

    def of(self, what: str, values):
        """One of ``values``; recorded in ``said`` as ``what``."""
        value = self.choice(values)
        self.said.append(f"{what}={value}")
        return value

    def maybe(self, probability: float = 0.5) -> bool:
        return self.random() < probability

    def surroundings(self) -> None:
        """Sets engine, instruction set and number of threads."""
        for variable, values in (("RESNET_FUSED_CPU_ENGINE", ENGINES), ("RESNET_FUSED_CPU_ISA", ISAS)):
            os.environ[variable] = self.of(variable, values)
        torch.set_num_threads(self.of("threads", [1, 2, 3]))

    def guard(self, t: Tensor | None) -> Tensor | None:
        return None if t is None else guarded(t, at_end=self.maybe(0.7))

    def conv(self, dtype: torch.dtype, **fixed) -> Case:
        """A convolution of any geometry with an output; 30 % suit Winograd."""
        if self.maybe(0.3):
            c, k = self.choice([32, 48, 64]), self.choice([32, 48, 80])
            r, s, stride, dilation, groups = 3, 3, (1, 1), (1, 1), 1
            n, h, w = self.randint(1, 3), self.randint(3, 40), self.randint(3, 40)
        else:
            groups = self.choice([1, 1, 1, 1, 2, 4])
            c, k = (groups * self.choice([1, 2, 3, 8, 17, 24]) for _ in range(2))
            r, s = self.choice([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (2, 4)])
            stride, dilation = ((self.choice([1, 1, 2, 3]), self.choice([1, 1, 2, 3])) for _ in range(2))
            n, h, w = self.choice([0, 1, 1, 2, 3]), self.choice(SIZES), self.choice(SIZES)
        reach = dilation[0] * (r - 1), dilation[1] * (s - 1)
        # Torch's channels_last convolution and its oneDNN crash on windows that contain only padding.
        padding = tuple(self.randint(0, min(3, most)) for most in reach)
        limits = zip((h, w), reach, padding, dilation, strict=True)
        h, w = (max(size, most + 1 - 2 * pad, step) for size, most, pad, step in limits)
        choices = dict(
            layout=self.choice(LAYOUTS), residual=self.maybe(), relu=self.maybe(), bias=self.maybe(0.3),
            affine=self.maybe(0.8), seed=self.randint(0, 1 << 30),
        )  # fmt: skip
        choices.update(fixed)
        sizes = (n, c, h, w, k, r, s, stride, padding, dilation, groups)
        self.said.append(f"Case{sizes} {dtype} {choices}")
        case = Case(*sizes, dtype=dtype, **choices)
        self.change_norm(case)
        self.plant(case)
        return case

    def change_norm(self, case: Case) -> None:
        """Sometimes makes BatchNorm absent, strided or of x's dtype; for a float64 x, always float64 or absent."""
        how = self.of("norm", ["as it is"] * 4 + ["absent", "in x's dtype", "strided"])
        if how == "absent":
            case.bn = [None] * 4
        elif how == "in x's dtype" or case.x.dtype == torch.float64:
            case.bn = [None if t is None else t.to(case.x.dtype) for t in case.bn]
        elif how == "strided":
            case.bn = [None if t is None else torch.stack([t, torch.full_like(t, torch.nan)], 1)[:, 0] for t in case.bn]

    def plant(self, case: Case) -> None:
        """Sometimes plants a NaN or Inf."""
        # torch 2.13's bfloat16 channels_last convolution with odd channels leaks a NaN into the neighbouring pixel
        if not self.maybe(0.15) or (case.x.dtype == torch.bfloat16 and case.x.shape[1] % 2):
            return
        where = self.of("planted in", ["x", "weight", "residual"])
        if where == "weight" and case.eager_is_wrong() and any(case.geometry[1]):
            return  # with and without oneDNN, eager multiplies different zeros of the padding
        t = getattr(case, where)
        if t is not None and t.numel():
            value = self.of("value", [torch.nan, torch.inf, -torch.inf])
            t[tuple(self.randrange(size) for size in t.shape)] = value

    def guard_case(self, case: Case) -> None:
        case.x, case.weight, case.bias, case.residual = map(self.guard, (case.x, case.weight, case.bias, case.residual))
        case.bn = [self.guard(t) for t in case.bn]

    def activations(self, *shape: int, dtype: torch.dtype) -> Tensor:
        layout = self.of("layout", LAYOUTS)
        generator = torch.Generator().manual_seed(self.randint(0, 1 << 30))
        return lay_out(torch.randn(shape, generator=generator).to(dtype), layout)

    def vectors(self, channels: int, dtype: torch.dtype) -> list[Tensor]:
        """gamma, beta, mean, var"""
        generator = torch.Generator().manual_seed(self.randint(0, 1 << 30))
        made = [torch.rand(channels, generator=generator) + 0.5]
        made += [torch.randn(channels, generator=generator) for _ in range(2)]
        made.append(torch.rand(channels, generator=generator) + 0.5)
        return [v.to(dtype) for v in made]
