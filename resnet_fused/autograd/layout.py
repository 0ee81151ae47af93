"""What a training op computes, as numbers that an op's schema can carry.

A chain is ``raw[0] = x``, ``raw[i + 1] = conv[i](act[i])`` with ``act[i] = relu(norm[i](raw[i]))``, or ``raw[i]`` where
``norm[i]`` is absent, and at its end ``act(norm[n](raw[n]) + shortcut)``. The shortcut is x itself, a tensor that the
caller computed, or a projection ``norm(conv(act[0]))``. With ``norm[0]`` absent that is a block of He et al. 2015
(arXiv:1512.03385, figure 5) or a network's stem; with ``norm[n]`` absent a pre-activation block of He et al. 2016
(arXiv:1603.05027, figure 4e); without convolutions the BatchNorm and ReLU that end a pre-activation network. A chain
with a BatchNorm and a ReLU at its end and no shortcut may be max-pooled: an ImageNet ResNet's stem.

All tensors but x travel in one list, because that is what ``torch.library`` differentiates. :class:`Layout` says which
of them is what; it is packed into a list of ints and a list of floats (every eps).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

Pair = tuple[int, int]
Pool = tuple[Pair, Pair, Pair]  # kernel, stride, padding


class Conv(NamedTuple):
    """A convolution: the tensors, or in a :class:`Layout` their places in the list."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Norm(NamedTuple):
    """A BatchNorm. Without mean and var it takes the batch's own, with ``sync`` that of all processes."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    sync: bool = False


class ConvSlots(NamedTuple):
    weight: int
    bias: int | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class NormSlots(NamedTuple):
    gamma: int | None
    beta: int | None
    mean: int | None
    var: int | None
    eps: float
    sync: bool

    @property
    def trains(self) -> bool:
        """Whether it normalises by the batch's own statistics."""
        return self.mean is None


class Place(NamedTuple):
    """What nobody but fused blocks can see of a chain's input and output."""

    hidden: bool = False  # x is channels_last where eager's would be contiguous
    internal_input: bool = False  # x was made for this chain alone, which returns its gradient to whoever made it
    internal_output: bool = False  # the output is for the next chain alone


ALONE = Place()


class Layout(NamedTuple):
    convs: tuple[ConvSlots, ...]
    norms: tuple[NormSlots | None, ...]  # one more than convs: before each, and after the last
    projection: ConvSlots | None
    projection_norm: NormSlots | None
    residual: int | None
    identity: bool
    relu: bool
    recompute: bool
    place: Place
    pool: Pool | None = None

    @property
    def has_shortcut(self) -> bool:
        return self.identity or self.residual is not None or self.projection is not None

    @property
    def reads_output(self) -> bool:
        """Whether the last ReLU's mask is the output's: elsewhere the last BatchNorm's input tells it."""
        return self.relu and (self.has_shortcut or self.norms[-1] is None)

    def norm_of(self, key: int) -> NormSlots | None:
        """The BatchNorm that reads ``raw[key]``, the projection's being the last."""
        return self.norms[key] if key < len(self.norms) else self.projection_norm

    def all_norms(self) -> Iterator[tuple[int, NormSlots]]:
        """``(key, norm)`` of every BatchNorm there is, the projection's last; keys are indices of ``norms``."""
        for key, norm in enumerate((*self.norms, self.projection_norm)):
            if norm is not None:
                yield key, norm


def running_slots(layout: Layout) -> dict[int, tuple[int, int]]:
    """Where the running mean and variance are of each BatchNorm, by key, that normalises by them."""
    norms = layout.all_norms()
    return {key: (norm.mean, norm.var) for key, norm in norms if norm.mean is not None and norm.var is not None}


_HEADER, _CONV, _NORM = 15, 8, 5
_NO_POOL = ((0, 0), (0, 0), (0, 0))


def pack(
    convs: Sequence[Conv],
    norms: Sequence[Norm | None],
    *,
    projection: tuple[Conv, Norm | None] | None = None,
    residual: Tensor | None = None,
    identity: bool = False,
    relu: bool = True,
    recompute: bool = False,
    place: Place = ALONE,
    pool: Pool | None = None,
) -> tuple[list[Tensor], list[int], list[float]]:
    """``tensors, layout, eps``, the op's arguments after x."""
    tensors: list[Tensor] = []
    flags = [identity, relu, recompute, *place, projection is not None, residual is not None]
    ints = [len(convs), *map(int, flags), *(size for pair in pool or _NO_POOL for size in pair)]
    eps: list[float] = []
    for conv in (*convs, *(() if projection is None else (projection[0],))):
        tensors.append(conv.weight)
        if conv.bias is not None:
            tensors.append(conv.bias)
        ints += [*conv.stride, *conv.padding, *conv.dilation, conv.groups, int(conv.bias is not None)]
    for norm in (*norms, *(() if projection is None else (projection[1],))):
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
    """The layout that :func:`pack` wrote."""
    count, identity, relu, recompute, hidden, made, makes, projected, has_residual, *pool = ints[:_HEADER]
    place = iter(range(5 * (count + 1) * 2))  # more places than there can be tensors

    def conv(at: int) -> ConvSlots:
        a, b, c, d, e, f, groups, bias = ints[at : at + _CONV]
        return ConvSlots(next(place), next(place) if bias else None, (a, b), (c, d), (e, f), groups)

    def norm(at: int, eps: float) -> NormSlots | None:
        present, gamma, beta, statistics, sync = ints[at : at + _NORM]
        if not present:
            return None
        tensors = [next(place) if each else None for each in (gamma, beta, statistics, statistics)]
        return NormSlots(tensors[0], tensors[1], tensors[2], tensors[3], eps, bool(sync))

    convs = [conv(_HEADER + i * _CONV) for i in range(count + projected)]
    at = _HEADER + len(convs) * _CONV
    norms = [norm(at + i * _NORM, each) for i, each in enumerate(eps)]
    return Layout(
        tuple(convs[:count]),
        tuple(norms[: count + 1]),
        convs[count] if projected else None,
        norms[count + 1] if projected else None,
        next(place) if has_residual else None,
        bool(identity),
        bool(relu),
        bool(recompute),
        Place(bool(hidden), bool(made), bool(makes)),
        ((pool[0], pool[1]), (pool[2], pool[3]), (pool[4], pool[5])) if pool[0] else None,
    )
