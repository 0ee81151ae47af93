"""The op basic_block: an identity BasicBlock in one call, bit-identical to its two convolutions."""

import gc
import itertools

import pytest
import torch
from criterion import assert_close
from op_case import DTYPES, Case, layout_of
from support import randomise

from resnet_fused import functional, modules, ops, reference
from resnet_fused.chain.spec import norm_args

SAME = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups


def case_of(dtype=torch.float32, layout="contiguous", n=2, c=16, h=9, w=7, bias=True):
    """Returns x, then weight, bias, gamma, beta, mean, var, eps of each convolution."""
    first, second = (
        Case(n, c, h, w, c, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, layout=layout, bias=bias, seed=seed)
        for seed in (0, 1)
    )
    return first.x, (first.weight, first.bias, *first.bn, 1e-5), (second.weight, second.bias, *second.bn, 1e-3)


def call(x, first, second, keep_packed=False):
    return ops.basic_block(x, *first, *second, keep_packed, False)


def two_calls(x, first, second):
    y = ops.conv_bn_act(x, *first, *SAME, None, True, False, False)
    return ops.conv_bn_act(y, *second, *SAME, x, True, False, False)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("shape", [(2, 16, 9, 7), (1, 64, 14, 14), (1, 3, 1, 1)], ids=str)
def test_basic_block_equals_two_calls_bitwise(dtype, layout, shape, engine):
    args = case_of(dtype, layout, *shape)
    got, want = call(*args), two_calls(*args)
    assert torch.equal(got, want)
    assert layout_of(got) == layout_of(want)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)  # eager does not mix float32 BatchNorm with float64
def test_matches_eager(dtype):
    x, first, second = case_of(dtype, "channels_last")
    double = [
        [None if t is None else t.double() if isinstance(t, torch.Tensor) else t for t in args]
        for args in (first, second)
    ]
    truth = reference.basic_block(x.double(), *double[0], *double[1])
    assert_close(call(x, first, second), reference.basic_block(x, *first, *second), truth)


@pytest.mark.parametrize(
    ("x_last", "w1_last", "w2_last"),
    list(itertools.product([False, True], repeat=3)),
    ids=lambda last: "nhwc" * last or "nchw",
)
def test_memory_format_equals_that_of_two_calls(x_last, w1_last, w2_last):
    x, first, second = case_of()
    formats = [torch.channels_last if last else torch.contiguous_format for last in (x_last, w1_last, w2_last)]
    x, w1, w2 = (t.contiguous(memory_format=f) for t, f in zip((x, first[0], second[0]), formats, strict=True))
    args = (x, (w1, *first[1:]), (w2, *second[1:]))
    assert call(*args).stride() == two_calls(*args).stride()


def test_opcheck():
    x, first, second = case_of()
    torch.library.opcheck(ops.basic_block, (x, *first, *second, False, True))
    x, first, second = case_of(layout="channels_last", bias=False)
    checked = torch.library.opcheck(ops.basic_block, (x, *first, *second, False, True))
    assert set(checked.values()) == {"SUCCESS"}


def test_keeps_both_weights_packed():
    x, first, second = case_of(c=64, h=14, w=14)
    want = call(x, first, second)
    gc.collect()  # frees packed weights of earlier tests now, not while this test counts
    before = ops.packed_bytes()
    assert torch.equal(call(x, first, second, keep_packed=True), want)
    both = ops.packed_bytes() - before
    ops.forget_packed([first[0]])
    one = ops.packed_bytes() - before
    ops.forget_packed([second[0]])
    assert (one, ops.packed_bytes()) == (both / 2, before)


@pytest.mark.parametrize(
    ("which", "at", "value", "sentence"),
    [
        (
            1,
            0,
            torch.ones(16, 16, 1, 1),
            r"first convolution: weight has shape \[16, 16, 1, 1\]; \[16, 16, 3, 3\] expec",
        ),
        (
            2,
            0,
            torch.ones(8, 16, 3, 3),
            r"second convolution: weight has shape \[8, 16, 3, 3\]; \[16, 16, 3, 3\] expec",
        ),
        (1, 0, torch.ones(16, 16, 3, 3).bfloat16(), "first convolution: weight has dtype BFloat16 but x has Float"),
        (2, 2, torch.ones(15), r"second convolution: gamma has shape \[15\]; \[16\] expected"),
        (1, 5, None, "first convolution: mean without var"),
        (2, 6, -1.0, "second convolution: eps is -1"),
    ],
)
def test_bad_input(which, at, value, sentence):
    args = [*case_of()]
    changed = list(args[which])
    changed[at] = value
    args[which] = changed
    with pytest.raises(RuntimeError, match=f"basic_block, {sentence}"):
        call(*args)


def spy(op, name, seen):
    return lambda *args, **how: (seen.append(name), op(*args, **how))[1]


@pytest.fixture
def calls(monkeypatch):
    """Records the names of the ops that ran."""
    seen = []
    for name in ("basic_block", "conv_bn_act", "conv_bn_proj_act"):
        monkeypatch.setattr(ops, name, spy(getattr(ops, name), name, seen))
    return seen


TWO = ["conv_bn_act", "conv_bn_act"]


@torch.no_grad()
def test_an_identity_block_is_one_call(calls):
    block = randomise(modules.FusedBasicBlock(16, 16)).eval()
    x = torch.randn(2, 16, 9, 7)
    y = block(x)
    assert calls == ["basic_block"]
    first, second = (
        (b[0].weight, None, *norm_args(functional._norm(functional.BatchNorm.of(b[1])))) for b in pairs(block)
    )
    assert torch.equal(y, two_calls(x, first, second))


def pairs(block):
    return (block.conv1, block.bn1), (block.conv2, block.bn2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "want"),
    [
        (
            {"stride": 2, "downsample": torch.nn.Sequential(torch.nn.Conv2d(16, 16, 1, 2))},
            ["conv_bn_act", "conv_bn_proj_act"],
        ),
        ({"downsample": torch.nn.Identity()}, ["basic_block"]),
        ({"conv1": torch.nn.Conv2d(16, 16, 5, padding=2)}, TWO),
        ({"conv2": torch.nn.Conv2d(16, 16, 3, padding=2, dilation=2)}, TWO),
        ({"conv2": torch.nn.Conv2d(16, 16, 3, padding=1, groups=2)}, TWO),
    ],
    ids=["projection", "identity module", "5x5", "dilated", "grouped"],
)
def test_other_blocks_are_two_calls(calls, change, want):
    block = modules.FusedBasicBlock(16, 16, change.pop("stride", 1), change.pop("downsample", None))
    for name, module in change.items():
        setattr(block, name, module)
    x = torch.randn(2, 16, 8, 8)
    y = randomise(block).eval()(x)
    assert calls == want
    torch.testing.assert_close(y, block._eager_class.forward(block, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_functional_basic_block_is_one_call(calls):
    x, first, second = case_of(bias=False)
    bns = [functional.BatchNorm(mean, var, gamma, beta, eps) for _, _, gamma, beta, mean, var, eps in (first, second)]
    y = functional.basic_block(x, first[0], bns[0], second[0], bns[1])
    assert calls == ["basic_block"]
    assert torch.equal(y, two_calls(x, first, second))
    with torch.enable_grad():
        weight = second[0].clone().requires_grad_()
        assert functional.basic_block(x, first[0], bns[0], weight, bns[1]).requires_grad
    assert calls.count("basic_block") == 1, "not with a gradient"
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.basic_block(x, first[0], bns[0], second[0], bns[1])
    assert calls.count("basic_block") == 2
    halves = ((args[0].bfloat16(), *args[1:]) for args in (first, second))
    assert torch.equal(y, two_calls(x.bfloat16(), *halves))
