"""Base class of the fused blocks: takes the fused path if it is equivalent, else runs the eager block."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .. import chain
from ..chain import layers, read
from ..chain.memory_format import contiguous, has_channels_last_weight, is_channels_last
from ..chain.patches import constant_while_tracing
from ..chain.policy import Setting
from ..chain.program import nhwc
from ..chain.spec import ALL_VISIBLE, Branch, Reason, Visibility
from ._eager import Methods
from ._packing import OwnsPackedWeights


class FusedBlock(OwnsPackedWeights):
    """A fused block. ``_eager_class`` is its specification, its fallback, and the class that ``revert`` restores.

    ``_spec`` says what the block computes; ``resnet_fused/chain/read.py`` decides on every call whether that is
    what calling its modules would compute. Inference runs one op per convolution if no gradient is needed and every
    BatchNorm of the block uses its running statistics (``bn.training`` decides, not ``self.training``). Otherwise the
    block is one op with one autograd formula (docs/training.md). :func:`resnet_fused.explain` says why a block runs
    eagerly.

    Attributes that can be set on a block:

    - ``recompute = True`` recomputes the outputs of 1x1 convolutions in backward (bit-identical, slower, less memory).
    - ``fused_training = False`` trains with the eager code. Set on a network, it applies to its fused stem.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    _spec: ClassVar[Any]  # a layers.Spec
    _spec_with_shortcut: ClassVar[Any]  # the same if the caller gives the shortcut
    _watched: ClassVar[tuple[tuple[type, str, Any], ...]] = ()  # attributes of a user's classes: owner, name, value
    recompute: bool = False
    fused_training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.fused_forward(x)
        if y is not None:
            return y if is_channels_last(x) or self.outputs_channels_last() else contiguous(y)
        if _is_traced_by_fx(x):
            _warn_about_fx_tracing()
        return self._eager_class.forward(self, x)

    def fused_with_shortcut(self, x: Tensor, shortcut: Tensor) -> Tensor | None:
        """The output of a block whose caller gives the shortcut, or None if eager must run."""
        y = self.fused_forward(x, shortcut=shortcut)
        if y is None:
            return None
        return y if is_channels_last(x) or self.outputs_channels_last(self._spec_with_shortcut) else contiguous(y)

    def fused_forward(
        self,
        x: Tensor,
        visibility: Visibility = ALL_VISIBLE,
        setting: Setting | Reason | None = None,
        shortcut: Tensor | None = None,
    ) -> Tensor | None:
        """The output of a fused path in any memory format, or None if the eager block must run.

        ``setting``: that of x, if known. ``shortcut``: an argument of the block that it adds.
        """
        for name, function in self._eager_methods.items():
            if getattr(self._eager_class, name) is not function or name in self.__dict__:
                read.record(self, self._spec, Reason("{} of {} was replaced", "", name, self._eager_class))
                return None
        changed = changed_attribute(type(self))
        if changed:
            read.record(self, self._spec, Reason("{} of {} was changed", "", changed, self._eager_class))
            return None
        how = read.block(self, self._spec if shortcut is None else self._spec_with_shortcut, x, setting)
        if isinstance(how, Reason):
            return None
        if shortcut is not None:
            if shortcut.requires_grad and torch.is_grad_enabled() and not how.trains:
                return None
            assert how.chain.shortcut is not None
            given = how.chain.shortcut._replace(module=lambda _: shortcut)
            how = how._replace(chain=how.chain._replace(shortcut=given))
        if not how.trains and self.shows_memory_format():
            how = _with_shortcut_of(x, how)
        return chain.run(x if how.trains else nhwc(x), how, keep_packed=True, visibility=visibility)

    def _kernel_weights(self) -> Iterator[Any]:
        yield from (module._parameters.get("weight") for module in self.modules() if isinstance(module, nn.Conv2d))

    def shows_memory_format(self) -> bool:
        """Whether the block passes its input to a user's code."""
        return getattr(self.__dict__.get("_matches"), "call_user_code", False)

    def outputs_channels_last(self, spec: layers.Spec | None = None) -> bool:
        """Whether a channels_last weight makes the eager block return channels_last for a contiguous x."""
        names = read.names(self, self._spec if spec is None else spec)
        if isinstance(names, Reason):
            return False
        shortcut, convs = names.shortcut, names.convs
        if isinstance(shortcut, Branch) and shortcut.leads:
            convs = () if shortcut.conv is None else (shortcut.conv,)
        return any(has_channels_last_weight(layers.find(self, name)) for name in convs)


def _with_shortcut_of(x: Tensor, how: read.Read) -> read.Read:
    """``how`` with a shortcut whose function is called with ``x``, not with a copy in channels_last."""
    shortcut = how.chain.shortcut
    assert shortcut is not None
    module, transform = shortcut.module, shortcut.transform
    shortcut = shortcut._replace(
        module=None if module is None else lambda _: module(x),
        transform=None if transform is None else lambda _: transform(x),
    )
    return how._replace(chain=how.chain._replace(shortcut=shortcut))


# torch.compile cannot trace the dictionary of a class.
@constant_while_tracing
def changed_attribute(fused: Any) -> str:
    """The name of the first watched attribute of the eager class that has changed; "" if none has."""
    return next((name for owner, name, value in fused._watched if vars(owner).get(name) is not value), "")


def _is_traced_by_fx(x: Any) -> bool:
    return isinstance(x, Proxy)


@functools.cache  # warn once: a network has many blocks, and torchvision traces it twice
def _warn_about_fx_tracing() -> None:
    warnings.warn(
        "torch.fx traces through fused blocks, so its graph contains their eager layers. To keep blocks fused, make "
        "them leaf modules: create_feature_extractor(model, ..., tracer_kwargs={'leaf_modules': "
        "[resnet_fused.modules.FusedBlock]}), or override is_leaf_module in your own torch.fx.Tracer.",
        stacklevel=3,
    )
