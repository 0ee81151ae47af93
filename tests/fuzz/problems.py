"""The kinds of problems. Each draws arguments, calls the library, and compares by the project's criterion."""

import copy

import criterion
import torch
from op_case import Case, lay_out, layout_of
from relu_sides import assert_trains_as_computed
from support import randomise
from torch import Tensor
from training import CLASSES, WITH_SHORTCUT, identity, in_channels, projected

import resnet_fused
from resnet_fused import models, ops, reference

from .draw import LAYOUTS, Draw

FLOATS = [torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float16, torch.float64]


def solve(number: int) -> None:
    """Solves a problem. If the library is wrong, raises AssertionError with a description of the problem."""
    draw = Draw(number)
    draw.surroundings()
    kind = draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
    draw.said.append(kind.__name__)
    torch.manual_seed(number)
    try:
        with torch.set_grad_enabled(kind is training_block):
            kind(draw)
    except Exception as error:
        raise AssertionError(f"{' '.join(draw.said)}: {type(error).__name__}: {error}") from error


def assert_close(actual: Tensor, eager: Tensor, truth: Tensor, before_relu: Tensor | None = None) -> None:
    """The criterion, or for float64 a fixed tolerance, because the reference is no more precise than the result."""
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, truth, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        criterion.assert_close(actual, eager, truth, before_relu)


def conv(draw: Draw) -> None:
    case = draw.conv(draw.choice(FLOATS))
    draw.guard_case(case)
    keep = draw.of("keep_packed", [False, True])
    y = case.fused(keep)
    close(y, case, lambda c: reference.conv_bn_act(*c.args()))
    if y.numel():
        assert layout_of(y) == layout_of(case.eager()), "layout"
    if keep:
        assert torch.equal(case.fused(True).nan_to_num(7.0), y.nan_to_num(7.0)), "another result from a packed weight"
        ops.forget_packed([case.weight])


def pre_activation(draw: Draw) -> None:
    case = draw.conv(draw.choice(FLOATS))
    draw.guard_case(case)
    wide = torch.float64 if case.x.dtype == torch.float64 else torch.float32
    pre = [*map(draw.guard, draw.vectors(case.x.shape[1], wide)), 1e-3]
    x, *rest = case.args()
    y = ops.bn_relu_conv_bn_act(x, *pre, *rest, False, False)
    case.x = ops.bn_add_act(x, *pre, None, True)
    close(y, case, lambda c: reference.conv_bn_act(*c.args()))


def pool(draw: Draw) -> None:
    case = draw.conv(draw.choice(FLOATS), residual=False)
    out = case._output_shape()
    window, stride, padding = draw.of("pool", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 1, 0)])
    if min(out[2:]) + 2 * padding < window:
        return  # the op would refuse: the window is larger than its padded input
    draw.guard_case(case)
    pairs = [[p, p] for p in (window, stride, padding)]
    y = ops.conv_bn_relu_pool(*case.args()[:-2], *pairs, False, False)
    close(y, case, lambda c: reference.conv_bn_relu_pool(*c.args()[:-2], *pairs))


def projection(draw: Draw) -> None:
    dtype = draw.choice(FLOATS)
    main = draw.conv(dtype, residual=False)
    n, k, oh, ow = main._output_shape()
    stride, c = draw.of("stride", [1, 2]), draw.of("channels", [3, 16, 24, 64])
    h, w = ((size - 1) * stride + 1 + draw.randint(0, stride - 1) for size in (oh, ow))
    layout = draw.of("layout", ["contiguous", "channels_last"])
    side = Case(
        n, c, h, w, k, 1, 1, (stride,) * 2, (0, 0), (1, 1), dtype=dtype, layout=layout, seed=draw.randint(0, 99)
    )
    if dtype == torch.float64:
        side.bn = [t.double() for t in side.bn]
    draw.guard_case(main)
    draw.guard_case(side)
    pre = [None] * 4 + [0.0]
    if draw.maybe():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        pre = [*map(draw.guard, draw.vectors(c, wide)), 1e-3]
    rest = (side.x, side.weight, side.bias, *side.bn, side.eps, [stride] * 2, *pre, main.relu)
    y = ops.conv_bn_proj_act(*main.args()[:-2], *rest, False, False)
    close(y, main, lambda c: reference.conv_bn_proj_act(*c.args()[:-2], *like(c, rest)))


def like(case: Case, args):
    """``args`` converted to float64 if the case is in float64."""
    if case.x.dtype != torch.float64:
        return args
    return [a.double() if isinstance(a, Tensor) else a for a in args]


def close(y: Tensor, case: Case, of) -> None:
    """Compares y with ``of(case)``, computed eagerly (in NHWC if the plan uses oneDNN) and in float64."""
    twin = copy.copy(case)
    if case.plan().kernel == "onednn":
        twin.x = lay_out(case.x, "channels_last")
    exact = copy.copy(case)
    for name in ("x", "weight", "bias", "residual"):
        t = getattr(case, name)
        setattr(exact, name, None if t is None else t.double())
    exact.bn = [None if t is None else t.double() for t in case.bn]
    unmasked = copy.copy(exact)
    unmasked.relu = False
    truth = of(exact)
    before_relu = of(unmasked)
    with case.correct_eager():
        eager = of(twin)
    assert_close(y, eager, truth, before_relu if before_relu.shape == truth.shape else None)


def norm(draw: Draw) -> None:
    """bn_add_act, bn_add_bn_act and bn_stats."""
    dtype = draw.choice(FLOATS)
    shape = [draw.choice([0, 1, 2, 5]), draw.choice([1, 3, 16, 33, 64, 130]), draw.choice(SIDES), draw.choice(SIDES)]
    draw.said.append(f"{shape} {dtype}")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, other = (draw.guard(draw.activations(*shape, dtype=dtype)) for _ in range(2))
    bn, other_bn = ([*map(draw.guard, draw.vectors(shape[1], wide)), 1e-5] for _ in range(2))
    relu = draw.maybe()
    compare("bn_add_act", x, *bn, draw.choice([None, other]), relu)
    compare("bn_add_bn_act", x, *bn, other, *draw.choice([other_bn, [None] * 4 + [0.0]]), relu)
    if x.numel():
        compare("bn_stats", x)


def head(draw: Draw) -> None:
    dtype = draw.choice(FLOATS)
    n, c, k = draw.choice([0, 1, 1, 2, 4, 7]), draw.choice([1, 3, 16, 17, 40, 131]), draw.choice([1, 3, 8, 10, 33])
    h, w = draw.choice(SIDES), draw.choice(SIDES)
    layout = draw.of("layout", LAYOUTS)
    x = lay_out(torch.randn(n, c, h, w).to(dtype), layout)
    weight, bias = (torch.randn(shape).to(dtype) for shape in ((k, c), (k,)))
    draw.said.append(f"{[n, c, h, w]} x {[k, c]} {dtype}")
    compare("avg_pool_linear", draw.guard(x), draw.guard(weight), draw.choice([None, draw.guard(bias)]))


SIDES = [1, 2, 5, 7, 14, 31]


def compare(op: str, *args) -> None:
    double = [a.double() if isinstance(a, Tensor) else a for a in args]
    found, eager, truth = getattr(ops, op)(*args), getattr(reference, op)(*args), getattr(reference, op)(*double)
    if isinstance(found, Tensor):
        found, eager, truth = (found,), (eager,), (truth,)
    for triple in zip(found, eager, truth, strict=True):
        assert_close(*triple)


def input_gradient(draw: Draw) -> None:
    """A convolution of the drawn x with the drawn filter is the gradient of one with the flipped filter.

    So is training's forward with the drawn filter.
    """
    dtype = draw.choice(FLOATS)
    stride, groups = [0, 0], 0
    while stride != [1, 1] or groups != 1:
        case = draw.conv(dtype, relu=False, bias=False)
        stride, padding, dilation, groups = case.geometry
    case.bn = [None] * 4
    draw.guard_case(case)
    weight = lay_out(case.weight.flip(2, 3).transpose(0, 1).contiguous(), draw.of("weight", LAYOUTS[:2]))
    reach = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    of_forward = [r - p for r, p in zip(reach, padding, strict=True)]
    y = ops.conv_backward_input(case.x, draw.guard(weight), of_forward, dilation, case.residual, False)
    close(y, case, lambda c: reference.conv_bn_act(*c.args()))
    again = ops.conv_forward(case.x, case.weight, None, *case.geometry, case.residual, False)
    close(again, case, lambda c: reference.conv_bn_act(*c.args()))


def weight_gradient(draw: Draw) -> None:
    dtype = draw.choice(FLOATS)
    case = draw.conv(dtype, residual=False, bias=False)
    generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
    grad = lay_out(torch.randn(case._output_shape(), generator=generator).to(dtype), "channels_last")
    draw.guard_case(case)
    grad = draw.guard(grad)
    rest = (case.x, case.weight, None, *case.geometry[:3], False, [0, 0], case.geometry[3], [False, True, False])
    backward = torch.ops.aten.convolution_backward.default
    double = [t.double() if isinstance(t, Tensor) else t for t in (grad, *rest)]
    found = ops.conv_backward_weight(grad, case.x, *[None] * 4, 0.0, case.weight, *case.geometry)
    with case.correct_eager():
        eager = backward(grad, *rest)[1]
    assert_close(found, eager, backward(*double)[1])


def block(draw: Draw, training: bool = False):
    cls = draw.choice(list(CLASSES))
    scale = draw.of("scale", [1, 2, 4])
    made = projected(cls, scale=scale) if cls in WITH_SHORTCUT and draw.maybe() else identity(cls, scale)
    n, h, w = draw.randint(2 if training else 1, 4), draw.choice([5, 7, 14, 17, 24]), draw.choice([5, 8, 14, 21, 30])
    x = torch.randn(n, in_channels(made), h, w)
    if draw.maybe(0.7):
        x = x.contiguous(memory_format=torch.channels_last)
    draw.said.append(f"{cls.__name__} {list(x.shape)} {x.stride()}")
    return made, draw.guard(x)


def inference_block(draw: Draw) -> None:
    made, x = block(draw)
    dtype = draw.of("dtype", [torch.float32, torch.bfloat16])
    judge(made.to(dtype).eval(), draw.guard(x.to(dtype)))


def training_block(draw: Draw) -> None:
    made, x = block(draw, training=True)
    assert_trains_as_computed(made, x.requires_grad_())


def network(draw: Draw) -> None:
    made = randomise(draw.choice([models.small_resnet, models.small_preact_resnet])()).eval()
    resnet_fused.convert(made)
    x = torch.randn(draw.randint(1, 3), 3, draw.randint(8, 40), draw.randint(8, 40))
    draw.said.append(str(list(x.shape)))
    judge(made, draw.guard(x))


def judge(made: torch.nn.Module, x: Tensor) -> None:
    """Compares inference of the fused module with its eager twin, in its dtype and in float64."""
    twin = resnet_fused.revert(copy.deepcopy(made))
    assert_close(made(x), twin(x), copy.deepcopy(twin).double()(x.double()))


# Kinds of problems and their weights.
KINDS = {
    conv: 10, pre_activation: 3, pool: 3, projection: 4, norm: 3, input_gradient: 4, weight_gradient: 4,
    inference_block: 3, training_block: 2, network: 1, head: 2,
}  # fmt: skip
