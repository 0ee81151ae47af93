"""Fused convolution + BatchNorm + residual + ReLU as functions, and the policy on when kernels may run.

BatchNorm here is inference's: running statistics, as ``module.eval()`` (Ioffe & Szegedy 2015,
arXiv:1502.03167, section 3.1, algorithm 2). Every function computes what its "Equivalent" says. Where a gradient is
needed, a block or a layer is one differentiable op that keeps its input, the raw outputs of its convolutions and its
output (docs/training.md). On devices without that op, inside ``torch.func`` transforms, and while ``torch.jit.trace``
or ``torch.onnx.export`` makes its graph, the eager definition in :mod:`resnet_fused.reference` runs, with autograd as
usual.
Under ``torch.autocast`` convolutions run in autocast's dtype, as eager's do.

Activations are ``(N, C, H, W)`` of any strides in float32, bfloat16, float16 or float64, on the CPU, or on CUDA
where the CUDA kernels are installed (else eager runs). Weights are ``(K, C / groups, R, S)`` of x's dtype; a
BatchNorm's tensors are ``(K,)`` of any of these dtypes. The result has x's dtype; its memory format is torch's
own choice: channels_last if x or weight is. Wrong shapes, dtypes or devices raise ``RuntimeError``, wrong Python
arguments ``ValueError`` or ``TypeError``, each with the offending values.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from . import _library, autograd, ops, reference
from ._chain import NO_NORM, chain
from ._indexing import Window, indexable, window

Pair = int | Sequence[int]

# Subclasses may carry meaning that a kernel would drop (DTensor, quantised weights, vmap's wrappers).
# FakeTensor stands for a plain tensor while torch.export traces.
PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, FakeTensor})

FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def kernel_dtype(x: Tensor) -> tuple[torch.dtype | None, tuple[bool, bool]]:
    """``(dtype, (keep_packed, allow_tf32))`` for a convolution of x, dtype being None where eager must run.

    The pair is the ops' last two arguments. Under autocast the dtype is autocast's and the weights are
    temporaries, not worth keeping packed. Float32 on CUDA may be multiplied as TF32 where torch's own may.
    """
    if type(x) not in PLAIN_TENSORS or x.layout is not torch.strided or x.dim() != 4:
        return None, (False, False)
    dtype, device = x.dtype, x.device.type
    if dtype not in FLOATING or not (device == "cpu" or (device == "cuda" and _library.CUDA_LOADED)):
        return None, (False, False)
    if x.requires_grad and torch.is_grad_enabled():
        return None, (False, False)
    if _is_transformed() or is_exporting_elsewhere() or _has_any_global_hook():
        return None, (False, False)
    if torch.is_autocast_enabled(device):
        return (None if dtype is torch.float64 else torch.get_autocast_dtype(device)), (False, False)
    return dtype, (True, dtype is torch.float32 and device == "cuda" and torch_allows_tf32())


def training_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which the training path convolves x, None where eager must run. See :func:`kernel_dtype`."""
    if type(x) not in PLAIN_TENSORS or x.layout is not torch.strided or x.dim() != 4:
        return None
    if x.dtype not in FLOATING or x.device.type not in autograd.DEVICES:
        return None
    if _is_transformed() or is_exporting_elsewhere() or _has_any_global_hook():
        return None
    if torch.is_autocast_enabled(x.device.type):
        return None if x.dtype is torch.float64 else torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _is_transformed() -> bool:
    """Inside torch.func (vmap, grad, jvp, ...) or forward-mode AD, whose rules the ops do not have."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_exporting_elsewhere() -> bool:
    """While a graph is made for somebody who may not have our ops: by torch.jit.trace, or by either ONNX exporter."""
    if torch.jit.is_tracing():
        return True
    # torch.jit.trace compares its graph with the module: this says that it is not done yet.
    if getattr(torch.jit._trace, "_trace_module_map", None) is not None:
        return True
    # It imports on every call, so it is asked only while something is exported.
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# torch.compile and torch.export cannot follow the switch: they take its value while they trace.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def torch_allows_tf32() -> bool:
    """Whether torch's own float32 convolutions on CUDA are multiplied as TF32 (the default).

    ``torch.backends.cudnn.allow_tf32`` and the newer ``fp32_precision`` switches both end here, while reading
    the former raises once the latter were used.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def pre_activates_on_reading(x: Tensor) -> bool:
    """Whether convolutions of x apply a BatchNorm and ReLU to what they read: CUDA's kernels do.

    CPU kernels read an activation several times, so there ``relu(bn(x))`` is made once, for all of its readers.
    Under autocast so it is everywhere: eager normalises before it rounds.
    """
    return x.device.type == "cuda" and not torch.is_autocast_enabled("cuda")


class BatchNorm(NamedTuple):
    """A BatchNorm in eval mode: ``weight * (y - running_mean) / sqrt(running_var + eps) + bias``, by channel.

    Absent weight is 1, absent bias 0. ``BatchNorm.of(module)`` reads an ``nn.BatchNorm2d``.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "BatchNorm":
        """The statistics and parameters of ``module``, shared, not copied."""
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                "the BatchNorm keeps no running statistics (track_running_stats=False), and without them "
                "nothing but the batch can say how to normalise"
            )
        return cls(module.running_mean, module.running_var, module.weight, module.bias, module.eps)


class Projection(NamedTuple):
    """A projection shortcut: a 1x1 convolution ``weight (K, C, 1, 1)``, strided, with or without a BatchNorm.

    With ``pre``, a BatchNorm of C channels, it reads ``relu(pre(x))`` where it would read ``x``.
    """

    weight: Tensor
    bn: BatchNorm | None = None
    bias: Tensor | None = None
    stride: Pair = 1
    pre: BatchNorm | None = None


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(x, weight)) + residual)`` in one kernel: each activation is read once and written once.

    Equivalent::

        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return F.relu(y + residual)

    ``bn=None``, ``residual=None`` and ``relu=False`` leave the respective step out. ``residual`` has the
    output's shape ``(N, K, OH, OW)``. The layer of He et al. 2015 (arXiv:1512.03385, sections 3.2 and 3.4).

    ``keep_packed=True`` keeps the weight in the kernel's own order for later calls with a weight of the same bytes at
    the same address; :func:`forget_packed` frees it.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    cast = _caster(x, _windows((weight, *args[5:8])), weight, bias, *args[:4], residual)
    # Under autocast eager adds in the wider of the two dtypes, and that is the result's.
    if cast is None or (cast.autocast and residual is not None and residual.dtype is not cast.dtype):
        trained = _trained(x, [(weight, bias, *args[5:])], [NO_NORM, args[:5]], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, weight, bias, *args, residual, relu)
        return reference.conv_bn_act(*eager) if trained is None else trained
    return ops.conv_bn_act(cast(x), cast(weight), bias, *args, residual, relu, *cast.how(keep_packed))


def bn_relu_conv_bn_act(
    x: Tensor,
    pre: BatchNorm,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(relu(pre(x)), weight)) + residual)``: on CUDA one kernel, elsewhere a pass before it.

    Equivalent: ``conv_bn_act(bn_add_act(x, pre), weight, bn, ...)``. ``pre`` is a BatchNorm of x's C channels; what
    pads the convolution's input stays zero. The beginning of a pre-activation block, He et al. 2016
    (arXiv:1603.05027, figure 4e), up to its second BatchNorm. Other arguments as :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    before = _bn(pre)
    cast = _caster(x, _windows((weight, *args[5:8])), weight, bias, *before[:4], *args[:4], residual)
    if cast is None or (cast.autocast and residual is not None and residual.dtype is not cast.dtype):
        trained = _trained(x, [(weight, bias, *args[5:])], [before, args[:5]], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, *before, weight, bias, *args, residual, relu)
        return reference.bn_relu_conv_bn_act(*eager) if trained is None else trained
    how = cast.how(keep_packed)
    if cast.autocast:  # eager normalises before it rounds
        activated = ops.bn_add_act(x, *before, None, True)
        return ops.conv_bn_act(cast(activated), cast(weight), bias, *args, residual, relu, *how)
    return ops.bn_relu_conv_bn_act(x, *before, weight, bias, *args, residual, relu, *how)


def conv_bn_proj_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None,
    proj_x: Tensor,
    projection: Projection,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(x)) + bn'(conv1x1(proj_x)))``: the projection needs no tensor of its own.

    Equivalent::

        a = proj_x if projection.pre is None else bn_add_act(proj_x, projection.pre)
        shortcut = conv_bn_act(a, projection.weight, projection.bn, stride=projection.stride, relu=False)
        return conv_bn_act(x, weight, bn, stride=stride, padding=padding, residual=shortcut)

    Option B of He et al. 2015 (arXiv:1512.03385, sections 3.3 and 4.1). Other arguments as :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    proj_args: tuple[Any, ...] = (*_bn(projection.bn), _pair("projection.stride", projection.stride))
    before = _bn(projection.pre)
    proj_weight, proj_bias = projection.weight, projection.bias
    others = (proj_x, proj_weight, proj_bias, *proj_args[:4], *before[:4])
    cast = _caster(x, _windows((weight, *args[5:8])), weight, bias, *args[:4], *others)
    if proj_x.dim() == 4 and not indexable(proj_x):
        cast = None
    if cast is None:  # the shortcut has a tensor of its own
        shortcut_of: dict[str, Any] = {"bias": proj_bias, "stride": projection.stride, "relu": False}
        if projection.pre is None:
            shortcut = conv_bn_act(proj_x, proj_weight, projection.bn, **shortcut_of)
        else:
            shortcut = bn_relu_conv_bn_act(proj_x, projection.pre, proj_weight, projection.bn, **shortcut_of)
        shape: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return conv_bn_act(x, weight, bn, bias=bias, residual=shortcut, relu=relu, **shape)
    if cast.autocast and projection.pre is not None:  # eager normalises before it rounds
        proj_x, before = ops.bn_add_act(proj_x, *before, None, True), _bn(None)
    main = (cast(x), cast(weight), bias, *args)
    side = (cast(proj_x), cast(proj_weight), proj_bias, *proj_args, *before)
    return ops.conv_bn_proj_act(*main, *side, relu, *cast.how(keep_packed))


def conv_bn_relu_pool(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 2,
    padding: Pair = 3,
    dilation: Pair = 1,
    groups: int = 1,
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
    keep_packed: bool = False,
) -> Tensor:
    """``max_pool2d(relu(bn(conv2d(x))))``: the stem of an ImageNet ResNet (arXiv:1512.03385, table 1).

    Equivalent::

        y = conv_bn_act(x, weight, bn, stride=stride, padding=padding)
        return F.max_pool2d(y, pool_kernel, pool_stride, pool_padding)

    Defaults are the paper's 7x7 stride-2 convolution and 3x3 stride-2 pooling. NaN wins over any number in
    a pooling window, as in torch. Other arguments as :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    pool = (_pair("pool_kernel", pool_kernel), _pair("pool_stride", pool_stride), _pair("pool_padding", pool_padding))
    cast = _caster(x, _windows((weight, *args[5:8]), pool=pool), weight, bias, *args[:4])
    if cast is None:
        end = None if bn is None else autograd.pool_in(x.device, *pool)
        trained = _trained(x, [(weight, bias, *args[5:])], [NO_NORM, args[:5]], pool=end)
        if trained is None:
            eager: tuple[Any, ...] = (x, weight, bias, *args, *pool)
            return reference.conv_bn_relu_pool(*eager)
        return F.max_pool2d(trained, *pool) if end is None else trained
    return ops.conv_bn_relu_pool(cast(x), cast(weight), bias, *args, *pool, *cast.how(keep_packed))


def bn_add_act(x: Tensor, bn: BatchNorm | None, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """``relu(bn(x) + residual)`` in one pass, e.g. the pre-activation of He et al. 2016 (arXiv:1603.05027, sec. 4.2).

    Equivalent: ``F.relu(F.batch_norm(x, ...) + residual)``. Autocast leaves its dtype alone, as it does eager's.
    """
    args = _bn(bn)
    dtype, _ = kernel_dtype(x)
    if dtype is None or not indexable(x) or _needs_eager(*args[:4], residual):
        trained = None if bn is None else _trained(x, [], [args], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, *args, residual, relu)
        return reference.bn_add_act(*eager) if trained is None else trained
    return ops.bn_add_act(x, *args, residual, relu)


def basic_block(
    x: Tensor,
    conv1: Tensor,
    bn1: BatchNorm,
    conv2: Tensor,
    bn2: BatchNorm,
    *,
    stride: Pair = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut)``, both convolutions 3x3 with padding 1.

    ``conv1 (P, C, 3, 3)`` takes the stride, ``conv2`` is ``(P, P, 3, 3)``. The shortcut is the projection of x, or x
    itself. He et al. 2015 (arXiv:1512.03385), figure 5 left; equivalent to
    :class:`resnet_fused.reference.BasicBlock` in eval mode.
    """
    convs = [(conv1, stride, _same(conv1), 1, 1), (conv2, 1, _same(conv2), 1, 1)]
    trained = _trained_block(x, convs, [None, bn1, bn2], projection)
    if trained is not None:
        return trained
    if projection is None and _pair("stride", stride) == (1, 1) and _keeps_shape(x, conv1) and _keeps_shape(x, conv2):
        first, second = _bn(bn1), _bn(bn2)
        cast = _caster(x, (), conv1, conv2, *first[:4], *second[:4])
        if cast is not None and not cast.autocast:
            return ops.basic_block(x, conv1, None, *first, conv2, None, *second, *cast.how(keep_packed))
    y = conv_bn_act(x, conv1, bn1, stride=stride, padding=_same(conv1), keep_packed=keep_packed)
    return _conv_add(y, conv2, bn2, x, projection, _same(conv2), True, keep_packed)


def bottleneck(
    x: Tensor,
    conv1: Tensor,
    bn1: BatchNorm,
    conv2: Tensor,
    bn2: BatchNorm,
    conv3: Tensor,
    bn3: BatchNorm,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    groups: int = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut)``: 1x1, 3x3, 1x1 convolutions.

    ``conv2 (W, W / groups, 3, 3)`` takes stride, dilation and groups (ResNeXt: Xie et al. 2017,
    arXiv:1611.05431, figure 3c). The shortcut is the projection of x, or x itself. He et al. 2015
    (arXiv:1512.03385), figure 5 right; equivalent to :class:`resnet_fused.reference.Bottleneck` in eval mode.
    """
    padding = _same(conv2, dilation)
    convs = [(conv1, 1, (0, 0), 1, 1), (conv2, stride, padding, dilation, groups), (conv3, 1, (0, 0), 1, 1)]
    trained = _trained_block(x, convs, [None, bn1, bn2, bn3], projection)
    if trained is not None:
        return trained
    y = conv_bn_act(x, conv1, bn1, keep_packed=keep_packed)
    y = conv_bn_act(
        y, conv2, bn2, stride=stride, padding=padding, dilation=dilation, groups=groups, keep_packed=keep_packed
    )
    return _conv_add(y, conv3, bn3, x, projection, 0, True, keep_packed)


def preact_block(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    conv2: Tensor,
    *,
    stride: Pair = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, both convolutions 3x3 with padding 1.

    The shortcut is the projection of a, or x itself. He et al. 2016 (arXiv:1603.05027), figure 4e; equivalent to
    :class:`resnet_fused.reference.PreActBlock` in eval mode.
    """
    convs = [(conv1, stride, _same(conv1), 1, 1), (conv2, 1, _same(conv2), 1, 1)]
    trained = _trained_block(x, convs, [bn1, bn2, None], projection)
    if trained is not None:
        return trained
    first: dict[str, Any] = {"stride": stride, "padding": _same(conv1), "keep_packed": keep_packed}
    y, shortcut, projection = _pre_activated(x, bn1, conv1, bn2, projection, first)
    return _conv_add(y, conv2, None, shortcut, projection, _same(conv2), False, keep_packed)


def preact_bottleneck(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    conv2: Tensor,
    bn3: BatchNorm,
    conv3: Tensor,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    groups: int = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut`` with ``a = relu(bn1(x))``.

    Arguments as :func:`bottleneck`, shortcut as :func:`preact_block`. He et al. 2016 (arXiv:1603.05027), section 4.2;
    equivalent to :class:`resnet_fused.reference.PreActBottleneck` in eval mode.
    """
    padding = _same(conv2, dilation)
    convs = [(conv1, 1, (0, 0), 1, 1), (conv2, stride, padding, dilation, groups), (conv3, 1, (0, 0), 1, 1)]
    trained = _trained_block(x, convs, [bn1, bn2, bn3, None], projection)
    if trained is not None:
        return trained
    y, shortcut, projection = _pre_activated(x, bn1, conv1, bn2, projection, {"keep_packed": keep_packed})
    y = conv_bn_act(
        y, conv2, bn3, stride=stride, padding=padding, dilation=dilation, groups=groups, keep_packed=keep_packed
    )
    return _conv_add(y, conv3, None, shortcut, projection, 0, False, keep_packed)


def forget_packed(weights: Tensor | Iterable[Tensor]) -> None:
    """Frees what ``keep_packed=True`` keeps for these weights. Never changes a result; safe from any thread."""
    ops.forget_packed([weights] if isinstance(weights, Tensor) else list(weights))


def _pre_activated(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    projection: Projection | None,
    first: dict[str, Any],
) -> tuple[Tensor, Tensor, Projection | None]:
    """A pre-activation block's ``relu(bn2(conv1(relu(bn1(x)))))``, and its shortcut as :func:`_conv_add` takes it."""
    if pre_activates_on_reading(x):
        projection = None if projection is None else projection._replace(pre=bn1)
        return bn_relu_conv_bn_act(x, bn1, conv1, bn2, **first), x, projection
    a = bn_add_act(x, bn1)
    return conv_bn_act(a, conv1, bn2, **first), x if projection is None else a, projection


def _conv_add(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None,
    shortcut: Tensor,
    projection: Projection | None,
    padding: Pair,
    relu: bool,
    keep_packed: bool,
) -> Tensor:
    """The last convolution of a block. Blocks add in place: the result has x's dtype, also under autocast."""
    last: dict[str, Any] = {"padding": padding, "relu": relu, "keep_packed": keep_packed}
    if projection is None:
        return conv_bn_act(x, weight, bn, residual=shortcut.to(x.dtype), **last)
    return conv_bn_proj_act(x, weight, bn, shortcut, projection, **last)


def _trained(
    x: Tensor,
    convs: Sequence[tuple[Any, ...]],
    norms: Sequence[tuple[Any, ...]],
    *,
    projection: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None,
    residual: Tensor | None = None,
    identity: bool = False,
    relu: bool = True,
    pool: autograd.Pool | None = None,
) -> Tensor | None:
    """The differentiable op's result (arguments as :func:`._chain.chain`'s); None without gradients, and for eager."""
    if not torch.is_grad_enabled():
        return None
    tensors = [x, *(t for conv in convs for t in conv[:2]), *(t for norm in norms for t in norm[:4]), residual]
    if projection is not None:
        tensors += [*projection[0][:2], *projection[1][:4]]
    given = [t for t in tensors if t is not None]
    if not any(t.requires_grad for t in given) or any(type(t) not in PLAIN_TENSORS for t in given):
        return None
    dtype = training_dtype(x)
    if dtype is None or not indexable(x, _windows(*(conv[:1] + conv[2:5] for conv in convs), pool=pool)):
        return None
    return chain(x, dtype, convs, norms, projection, residual, identity, relu, pool)


def _trained_block(
    x: Tensor, convs: Sequence[tuple[Any, ...]], norms: Sequence[BatchNorm | None], projection: Projection | None
) -> Tensor | None:
    """A block as one differentiable op, or None. ``convs`` are ``weight, stride, padding, dilation, groups``."""
    if not torch.is_grad_enabled() or (projection is not None and projection.pre is not None):
        return None
    side = None
    if projection is not None:
        stride = _pair("projection.stride", projection.stride)
        side = (projection.weight, projection.bias, stride, (0, 0), (1, 1), 1), _bn(projection.bn)
    read = [
        (weight, None, _pair("stride", stride), padding, _pair("dilation", dilation), groups)
        for weight, stride, padding, dilation, groups in convs
    ]
    bns = [_bn(norm) for norm in norms]
    return _trained(x, read, bns, projection=side, identity=side is None, relu=norms[-1] is not None)


class _Cast(NamedTuple):
    """What autocast does to a convolution's input and weight: without it, nothing."""

    dtype: torch.dtype
    autocast: bool
    allow_tf32: bool

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if self.autocast else x

    def how(self, keep_packed: bool) -> tuple[bool, bool]:
        """The ops' last two arguments."""
        return keep_packed and not self.autocast, self.allow_tf32


def _caster(x: Tensor, windows: Sequence[Window], weight: Tensor, *others: Tensor | None) -> _Cast | None:
    """How to call the op, which makes ``windows`` of x; or None for eager."""
    dtype, (plain, allow_tf32) = kernel_dtype(x)
    if dtype is None or not indexable(x, windows) or _needs_eager(weight, *others):
        return None
    if not plain and weight.dtype is torch.float64:  # which autocast leaves alone: eager says that dtypes differ
        return None
    return _Cast(dtype, not plain, allow_tf32)


def _windows(*convs: tuple[Any, ...], pool: autograd.Pool | None = None) -> list[Window]:
    """Convolutions as ``weight, stride, padding, dilation``, and a pooling, for :func:`indexable`."""
    if any(conv[0].dim() != 4 for conv in convs):  # the op says what is wrong
        return []
    found = [window(*conv) for conv in convs]
    if pool is not None and found:
        found.append((found[-1][0], *pool[0], pool[1], pool[2], 1))
    return found


def _needs_eager(*tensors: Tensor | None) -> bool:
    """A gradient, or a tensor subclass that kernels would not understand."""
    grad = torch.is_grad_enabled()
    return any(t is not None and (type(t) not in PLAIN_TENSORS or (grad and t.requires_grad)) for t in tensors)


def _bn(bn: BatchNorm | None) -> tuple[Any, ...]:
    """``gamma, beta, mean, var, eps``, the ops' order."""
    if bn is None:
        return None, None, None, None, 0.0
    if isinstance(bn, nn.Module):
        raise TypeError(f"bn is the module {type(bn).__name__}; pass BatchNorm.of(module)")
    return bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps


def _conv_args(bn: BatchNorm | None, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> tuple[Any, ...]:
    """The ops' arguments between bias and residual."""
    pairs = (_pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation))
    return (*_bn(bn), *pairs, groups)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{name} is {value!r}; an int or two ints (height, width) expected")
    return pair  # type: ignore[return-value]


def _keeps_shape(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution with padding 1 is 3x3 and gives as many channels as x has."""
    return x.dim() == 4 and weight.shape == (x.shape[1], x.shape[1], 3, 3)


def _same(weight: Tensor, dilation: Pair = 1) -> tuple[int, int]:
    """The padding that keeps height and width at stride 1, for odd kernels."""
    height, width = _pair("dilation", dilation)
    return height * (weight.shape[2] // 2), width * (weight.shape[3] // 2)
