"""Packs a :class:`Chain` into the arguments of the training op: a list of tensors, and numbers that a schema can carry.

All tensors except x are passed in one list, since ``torch.library`` differentiates lists. :class:`Layout` holds each
tensor's index in it. The layout is packed into a list of ints and a list of floats (the eps of every norm).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from .spec import Chain, Conv, Norm, Pair, Pool, Shortcut, Visibility


class ConvSlots(NamedTuple):
    """A convolution of a :class:`Layout`: indices of its tensors, and its geometry."""

    weight: int
    bias: int | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class NormSlots(NamedTuple):
    """A BatchNorm of a :class:`Layout`: indices of its tensors, and its eps."""

    gamma: int | None
    beta: int | None
    mean: int | None
    var: int | None
    eps: float
    sync: bool

    @property
    def trains(self) -> bool:
        """Whether it uses batch statistics."""
        return self.mean is None


class Layout(NamedTuple):
    """The structure of a chain, with indices into its list of tensors."""

    convs: tuple[ConvSlots, ...]
    norms: tuple[NormSlots | None, ...]  # len(convs) + 1: one before each convolution, one after the last
    projection: ConvSlots | None
    projection_norm: NormSlots | None
    residual: int | None
    identity: bool
    relu: bool
    recompute: bool
    visibility: Visibility
    pool: Pool | None = None

    @property
    def has_shortcut(self) -> bool:
        return self.identity or self.residual is not None or self.projection is not None

    @property
    def reads_output(self) -> bool:
        """Whether backward takes the last ReLU's mask from the output; otherwise from the last pre-BN output."""
        return self.relu and (self.has_shortcut or self.norms[-1] is None)

    def norm_of(self, key: int) -> NormSlots | None:
        """The BatchNorm that reads ``pre_bn[key]``; the last key is the projection's."""
        return self.norms[key] if key < len(self.norms) else self.projection_norm

    def all_norms(self) -> Iterator[tuple[int, NormSlots]]:
        """``(key, norm)`` of every BatchNorm, the projection's last; keys are indices of ``norms``."""
        for key, norm in enumerate((*self.norms, self.projection_norm)):
            if norm is not None:
                yield key, norm

    def chain(self, tensors: Sequence[Tensor]) -> Chain:
        """The chain of these tensors."""

        def get(slot: int | None) -> Tensor | None:
            return None if slot is None else tensors[slot]

        def conv(c: ConvSlots) -> Conv:
            return Conv(tensors[c.weight], get(c.bias), *c[2:])

        def norm(n: NormSlots | None) -> Norm | None:
            return n if n is None else Norm(get(n.gamma), get(n.beta), get(n.mean), get(n.var), n.eps, sync=n.sync)

        shortcut = None
        if self.projection is not None:
            shortcut = Shortcut(conv(self.projection), norm(self.projection_norm))
        elif self.has_shortcut:
            shortcut = Shortcut(residual=get(self.residual))
        return Chain(tuple(map(conv, self.convs)), tuple(map(norm, self.norms)), shortcut, self.relu, self.pool)


def running_slots(layout: Layout) -> dict[int, tuple[int, int]]:
    """Indices of the running mean and variance of each BatchNorm that uses them, by key."""
    norms = layout.all_norms()
    return {key: (norm.mean, norm.var) for key, norm in norms if norm.mean is not None and norm.var is not None}


_HEADER, _CONV, _NORM = 15, 8, 5
_NO_POOL = ((0, 0), (0, 0), (0, 0))


def pack(chain: Chain, visibility: Visibility, recompute: bool) -> tuple[list[Tensor], list[int], list[float]]:
    """``(tensors, layout, eps)``: the op's arguments after x. A residual is the last tensor."""
    shortcut = chain.shortcut
    residual = None if shortcut is None else shortcut.residual
    projection = None if shortcut is None else shortcut.conv
    identity = shortcut is not None and shortcut.is_identity
    tensors: list[Tensor] = []
    flags = [identity, chain.relu, recompute, *visibility, projection is not None, residual is not None]
    ints = [len(chain.convs), *map(int, flags), *(size for pair in chain.pool or _NO_POOL for size in pair)]
    eps: list[float] = []
    for conv in (*chain.convs, *(() if projection is None else (projection,))):
        tensors.append(conv.weight)
        if conv.bias is not None:
            tensors.append(conv.bias)
        ints += [*conv.stride, *conv.padding, *conv.dilation, conv.groups, int(conv.bias is not None)]
    for norm in chain.norms if projection is None else chain.all_norms():
        if norm is None:
            ints += [0, 0, 0, 0, 0]
            eps.append(0.0)
            continue
        given = [t is not None for t in norm[:3]]
        tensors += [t for t in norm[:4] if t is not None]
        ints += [1, *map(int, given), int(norm.sync)]
        eps.append(norm.eps)
    if residual is not None:
        tensors.append(residual)
    return tensors, ints, eps


def unpack(ints: Sequence[int], eps: Sequence[float]) -> Layout:
    """The inverse of :func:`pack`."""
    count, identity, relu, recompute, *rest = ints[:_HEADER]
    hidden, internal_input, internal_output, has_projection, has_residual, *pool = rest
    slots = iter(range(5 * (count + 1) * 2))  # an upper bound of the number of tensors

    def conv(at: int) -> ConvSlots:
        a, b, c, d, e, f, groups, bias = ints[at : at + _CONV]
        return ConvSlots(next(slots), next(slots) if bias else None, (a, b), (c, d), (e, f), groups)

    def norm(at: int, eps: float) -> NormSlots | None:
        present, gamma, beta, statistics, sync = ints[at : at + _NORM]
        if not present:
            return None
        tensors = [next(slots) if each else None for each in (gamma, beta, statistics, statistics)]
        return NormSlots(tensors[0], tensors[1], tensors[2], tensors[3], eps, bool(sync))

    convs = [conv(_HEADER + i * _CONV) for i in range(count + has_projection)]
    at = _HEADER + len(convs) * _CONV
    norms = [norm(at + i * _NORM, each) for i, each in enumerate(eps)]
    return Layout(
        tuple(convs[:count]),
        tuple(norms[: count + 1]),
        convs[count] if has_projection else None,
        norms[count + 1] if has_projection else None,
        next(slots) if has_residual else None,
        bool(identity),
        bool(relu),
        bool(recompute),
        Visibility(bool(hidden), bool(internal_input), bool(internal_output)),
        Pool((pool[0], pool[1]), (pool[2], pool[3]), (pool[4], pool[5])) if pool[0] else None,
    )
