"""What a block computes, as data: a chain of convolutions and BatchNorms with a shortcut.

    pre_bn[0]     = x
    act[i]        = relu(norms[i](pre_bn[i]))            or pre_bn[i], without norms[i]
    pre_bn[i + 1] = convs[i](act[i])
    out           = relu(norms[n](pre_bn[n]) + shortcut)

- ``norms[0]`` absent: a block of He et al. 2015 (arXiv:1512.03385, figure 5), or a network's stem, which may end with
  max-pooling.
- ``norms[n]`` and the last ReLU absent: a pre-activation block of He et al. 2016 (arXiv:1603.05027, figure 4e).
- No convolutions: the BatchNorm and ReLU that end a pre-activation network.

A :class:`BlockSpec` names the modules of a block; :mod:`.read` turns it into a :class:`Chain` of tensors on every call.
The records are tuples: they are made on every call, and a dataclass takes four times as long.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

Pair = tuple[int, int]

IDENTITY = ""  # the shortcut of a BlockSpec that always adds x itself


class Branch(NamedTuple):
    """The shortcut of a block whose spec was derived from its ``forward``.

    Attributes:
        conv: the path of its last convolution, or None.
        norm: the path of the BatchNorm after ``conv``, or None.
        function: called with the block and its input; computes what ``conv`` reads, or without ``conv`` the shortcut.
        reads_x: in a pre-activation block, whether the input is x and not ``act[0]``.
        leads: whether it is the first operand of the addition, whose memory format the output has.
        in_place: whether the addition modifies the main path's tensor, whose dtype and shape the output then has.
        calls_user_code: whether ``function`` calls code that was not traced, and must see x in eager's memory format.
    """

    conv: str | None = None
    norm: str | None = None
    function: Callable[[nn.Module, Tensor], Any] | None = None
    reads_x: bool = False
    leads: bool = False
    in_place: bool = False
    calls_user_code: bool = False


class BlockSpec(NamedTuple):
    """Names the parts of a block, as attributes or dotted paths such as ``"body.0"``.

    Attributes:
        convs: the convolutions, in the order of their calls.
        norms: one more than ``convs``: the BatchNorm before each convolution, then the one after the last; None for
            none. A ReLU follows each BatchNorm except the last.
        relus: the ReLU modules that ``forward`` calls. Leave it empty if it calls ``F.relu``.
        shortcut: the module that computes the shortcut, "" to add x itself, None for no shortcut. An
            attribute that holds None means x itself too. The shortcut reads ``act[0]``, that is ``relu(bn(x))`` if the
            block begins with a BatchNorm. Derived specs have a ``Branch``.
        relu: whether a ReLU follows the addition.
        pool: the max-pooling after the last ReLU.
        complete: eager runs if the block has other modules than these, apart from ``nn.Identity``, or containers on the
            way that are not ``nn.Sequential``, ``ModuleList`` or ``ModuleDict``. ``register_block`` sets it.
        part: a network with two chains, such as a stem and a tail, names each.
        derived: the spec was derived from the block's ``forward`` (``resnet_fused/match``), and holds while nothing
            in the block changes.
    """

    convs: tuple[str, ...]
    norms: tuple[str | None, ...]
    relus: tuple[str, ...] = ("relu",)
    shortcut: str | Branch | None = None
    relu: bool = True
    pool: str | None = None
    complete: bool = False
    part: str = ""
    derived: bool = False


class Conv(NamedTuple):
    """A convolution with ``weight (K, C / groups, R, S)``."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Norm(NamedTuple):
    """A BatchNorm with vectors of shape (C). Without mean and var it uses batch statistics."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    module: nn.Module | None = None  # its running statistics are updated
    sync: bool = False  # whether batch statistics span the processes of the module's group
    promotes: bool = False  # whether eager's output has the wider dtype of x and the parameters


def norm_args(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float]:
    """A BatchNorm's arguments of the ops, or those that stand for none."""
    # Not a constant: torch.compile(dynamic=True) would make its 0.0 an input of the graph.
    return (None, None, None, None, 0.0) if norm is None else norm[:5]


class Pool(NamedTuple):
    """A max-pooling."""

    kernel: Pair
    stride: Pair
    padding: Pair


class Shortcut(NamedTuple):
    """What a block adds to its last layer: x itself, a projection ``norm(conv(.))``, or a given tensor."""

    conv: Conv | None = None
    norm: Norm | None = None
    residual: Tensor | None = None
    module: Callable[[Tensor], Any] | None = (
        None  # computes ``residual`` from x (from act[0] in a pre-activation block)
    )
    source: Tensor | None = None  # what ``conv`` reads instead of act[0]
    pre: Norm | None = None  # applied to ``source`` with a ReLU
    transform: Callable[[Tensor], Any] | None = None  # applied to what ``conv`` reads, such as a pooling
    reads_x: bool = False  # ``conv``, ``transform`` or ``module`` reads x and not act[0]
    leads: bool = False  # the output has the memory format of ``residual``, the first operand of the addition
    in_place: bool = True  # the output has the dtype and shape of the main path, else those that torch promotes to

    @property
    def is_identity(self) -> bool:
        return self.conv is None and self.residual is None and self.module is None

    @property
    def reads_elsewhere(self) -> bool:
        """Whether training computes it apart from the chain."""
        return self.module is not None or (self.conv is not None and (self.transform is not None or self.reads_x))


class Chain(NamedTuple):
    """A block: see the head of this file. ``norms`` has one entry more than ``convs``."""

    convs: tuple[Conv, ...]
    norms: tuple[Norm | None, ...]
    shortcut: Shortcut | None = None
    relu: bool = True
    pool: Pool | None = None

    def all_norms(self) -> tuple[Norm | None, ...]:
        """``norms``, then that of the projection."""
        return (*self.norms, None if self.shortcut is None else self.shortcut.norm)

    def tensors(self) -> list[Tensor]:
        """All tensors except x."""
        shortcut = self.shortcut or Shortcut()
        given: list[Any] = [shortcut.residual, shortcut.source]
        for conv in (*self.convs, shortcut.conv):
            given += () if conv is None else conv[:2]
        for norm in (*self.norms, shortcut.norm, shortcut.pre):
            given += () if norm is None else norm[:4]
        return [t for t in given if t is not None]


class Visibility(NamedTuple):
    """Which tensors of a chain only fused blocks can see."""

    hidden: bool = False  # x is channels_last, but eager's x would be contiguous
    internal_input: bool = False  # only this chain reads x, and only the chain that produced x reads its gradient
    internal_output: bool = False  # only the next chain reads the output


ALL_VISIBLE = Visibility()


class Reason:
    """Why eager runs. Formatted only if it is shown: ``str(reason)``, or ``reason.at(path)`` in a larger model."""

    def __init__(self, text: str, name: str = "", *values: Any) -> None:
        self.text, self.name, self.values = text, name, values

    def at(self, path: str) -> str:
        """The sentence with names relative to the model in which the block is ``path``."""
        name = ".".join(part for part in (path, self.name) if part)
        return self.text.format(*(class_name(v) if isinstance(v, type) else v for v in self.values), name=name)

    def __str__(self) -> str:
        return self.at("")


def class_name(kind: type) -> str:
    """The class name with its package as users import it: ``torch.nn.Conv2d``, not ``torch.nn.modules.conv.Conv2d``."""
    if getattr(nn, kind.__name__, None) is kind:
        return f"torch.nn.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"
