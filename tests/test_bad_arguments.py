"""Invalid arguments of every CPU op give one sentence that begins with the op's name, never a crash."""

import pytest
import torch
from op_case import pre_args

from resnet_fused import first_use, ops
from resnet_fused.cli._gpus import GPUS

C, K, N, SIZE = 8, 16, 2, 9
ONE, NO_NORM = [1, 1], (None, None, None, None, 0.0)


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def bn(prefix, channels):
    names = ("gamma", "beta", "mean", "var", "eps")
    return dict(zip((prefix + name for name in names), pre_args(channels), strict=True))


def filters(channels=C):
    return dict(weight=randn(K, channels, 3, 3), bias=randn(K))


GEOMETRY = dict(stride=ONE, padding=ONE, dilation=ONE, groups=1)
HOW = dict(keep_packed=False, allow_tf32=False)
POOL = dict(pool_kernel=[3, 3], pool_stride=[2, 2], pool_padding=[1, 1])


def image(channels=C):
    return randn(N, channels, SIZE, SIZE)


def numbered(i):
    named = {f"weight{i}": randn(C, C, 3, 3), f"bias{i}": randn(C)}
    return named | {name + i: value for name, value in bn("", C).items()}


# Arguments in the order of the op's schema.
CALLS = {
    "conv_bn_act": lambda: (
        dict(x=image()) | filters() | bn("", K) | GEOMETRY | dict(residual=image(K), relu=True) | HOW
    ),
    "bn_relu_conv_bn_act": lambda: (
        dict(x=image()) | bn("pre_", C) | filters() | bn("", K) | GEOMETRY | dict(residual=image(K), relu=True) | HOW
    ),
    "conv_bn_proj_act": lambda: (
        dict(x=image()) | filters() | bn("", K) | GEOMETRY
        | dict(proj_x=image(), proj_weight=randn(K, C, 1, 1), proj_bias=randn(K)) | bn("proj_", K)
        | dict(proj_stride=ONE) | bn("pre_", C) | dict(relu=True) | HOW
    ),
    "basic_block": lambda: dict(x=image()) | numbered("1") | numbered("2") | HOW,
    "conv_bn_relu_pool": lambda: dict(x=image()) | filters() | bn("", K) | GEOMETRY | POOL | HOW,
    "avg_pool_linear": lambda: dict(x=image(), weight=randn(K, C), bias=randn(K)),
    "bn_add_act": lambda: dict(x=image()) | bn("", C) | dict(residual=image(), relu=True),
    "bn_stats": lambda: dict(x=image()),
    "conv_stats": lambda: dict(x=image()) | bn("pre_", C) | filters() | GEOMETRY | HOW,
    "bn_add_bn_act": lambda: (
        dict(x=image()) | bn("", C) | dict(shortcut=image()) | bn("shortcut_", C) | dict(relu=True)
    ),
    "bn_act_backward_reduce": lambda: dict(grad=image(), x=image()) | bn("", C) | dict(out=image(), relu=True),
    "bn_add_act_backward_reduce": lambda: dict(grad=image(), x=image()) | bn("", C) | dict(out=image()),
    "conv_forward": lambda: (
        dict(x=image()) | filters() | GEOMETRY | dict(residual=image(K), relu=True)
    ),
    "conv_backward_reduce": lambda: (
        dict(grad=image(K), weight=randn(K, C, 3, 3), padding=ONE, dilation=ONE, x=image()) | bn("", C)
        | dict(grad_addend=image(), allow_tf32=False)
    ),
    "conv_backward_input": lambda: dict(
        grad=image(K), weight=randn(K, C, 3, 3), padding=ONE, dilation=ONE, grad_addend=image(), allow_tf32=False
    ),
    "conv_backward_weight": lambda: (
        dict(grad=image(K), x=image()) | bn("pre_", C) | dict(weight=randn(K, C, 3, 3)) | GEOMETRY
    ),
    "bn_act_backward": lambda: (
        dict(grad=image(), x=image()) | bn("", C) | dict(out=image(), relu=True, sum_g=randn(C), sum_g_xhat=randn(C))
        | dict(count=float(N * SIZE * SIZE))
    ),
    "bn_relu_max_pool": lambda: dict(x=image()) | bn("", C) | POOL,
    "bn_relu_max_pool_backward": lambda: (
        dict(grad=randn(N, C, 5, 5), argmax=torch.zeros(N, C, 5, 5, dtype=torch.uint8), x=image()) | POOL
    ),
    "explain_cpu": lambda: dict(x=[N, C, SIZE, SIZE], weight=[K, C, 3, 3]) | GEOMETRY | dict(dtype="float32"),
}  # fmt: skip

CONVOLVES = ("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "conv_bn_relu_pool", "conv_stats")
CONVOLVES += ("conv_forward", "conv_backward_weight", "explain_cpu")
OF_TENSORS = [op for op in CALLS if op not in ("explain_cpu", "basic_block", "conv_backward_input")]


def call(op, **change):
    arguments = CALLS[op]()
    assert set(change) <= set(arguments)
    return getattr(ops, op)(*(arguments | change).values())


def test_every_op_has_a_call_in_this_file():
    known = {name.removeprefix("resnet_fused::") for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("resnet_fused::")}  # fmt: skip
    others = {
        "forget_packed",
        "freeze_packed",
        "packed_bytes",
        "release_memory",
        "release_pool",
    }  # tested below, or without arguments
    others |= {"watch_packed", "storage_ended", "in_format", "sum_over_processes"}  # only for the package itself
    others |= {"cuda_engines", "predict_cuda", "explain_trust", "run_program", "program_ops"}  # tested elsewhere
    others |= {name for name in known if name.startswith(("explain_cuda", "train_chain"))}
    others |= {f"{how}_{op}" for op in first_use.OPS for how in ("eager", "compare")}  # called by CUDA ops
    assert known - others == set(CALLS)


@pytest.mark.parametrize("op", CALLS)
def test_unchanged_arguments_are_accepted(op):
    call(op)


TABLE = [
    # every op with an x
    *((op, dict(x=image()[0]), r"x has shape \[8, 9, 9\]; \(N, C, H, W\) expected") for op in OF_TENSORS),
    *((op, dict(x=image().int()), "x has dtype Int; float32, float16, bfloat16 or float64") for op in OF_TENSORS),
    *((op, dict(x=torch.zeros(()).expand(2**10, C, 2**20)[..., None]), "more than 2147483647") for op in OF_TENSORS),
    # every convolution
    *(
        (op, change, sentence)
        for op in CONVOLVES
        for change, sentence in (
            (dict(stride=[0, 1]), r"stride is \[0, 1\]; two integers of at least 1 expected"),
            (dict(stride=[1, -3]), r"stride is \[1, -3\]; two integers of at least 1 expected"),
            (dict(stride=[1, 1, 1]), r"stride is \[1, 1, 1\]; two integers of at least 1 expected"),
            (dict(stride=[]), r"stride is \[\]; two integers of at least 1 expected"),
            (dict(padding=[-1, 1]), r"padding is \[-1, 1\]; two integers of at least 0 expected"),
            (dict(padding=[]), r"padding is \[\]; two integers of at least 0 expected"),
            (dict(dilation=[1, 0]), r"dilation is \[1, 0\]; two integers of at least 1 expected"),
            (dict(dilation=[9, 1]), r"a 3x3 kernel with dilation \[9, 1\] is larger than the input 9x9"),
            (dict(groups=0), "groups is 0; at least 1 expected"),
            (dict(groups=-2), "groups is -2; at least 1 expected"),
            (dict(groups=2**62), "Given groups=4611686018427387904, weight of size"),
            (dict(groups=3), "Given groups=3, weight of size .* to have 24 channels, but got 8 channels instead"),
        )
    ),
    *(
        (op, dict(weight=randn(K, 3, 3, 3)), r"Given groups=1, weight of size \[16, 3, 3, 3\], expected "
         r"input\[2, 8, 9, 9\] to have 3 channels, but got 8 channels instead; weight must be \(K, C / groups, R, S\)")
        for op in (*CONVOLVES[:-1], "conv_backward_reduce")
    ),
    *(
        (op, change, sentence)
        for op in (*CONVOLVES[:-1], "conv_backward_reduce")
        for change, sentence in (
            (dict(weight=randn(K, C, 3)), r"weight has shape \[16, 8, 3\]; \(K, C / groups, R, S\) expected"),
            (dict(weight=randn(K, C, 3, 3).half()), "weight has dtype Half but x has Float; cast one of them"),
            (dict(weight=randn(K, C, 0, 3)), "leave nothing to convolve"),
            (dict(weight=randn(0, C, 3, 3)), "leave nothing to convolve"),
        )
    ),
    *((op, dict(weight=randn(7, 4, 3, 3), groups=2), "expected weight to be divisible by 2 at dimension 0, but got")
      for op in CONVOLVES[:-1]),
    *((op, dict(bias=randn(7)), r"bias has shape \[7\]; \[16\] expected, one value a channel")
      for op in CONVOLVES[:5]),
    *((op, dict(residual=image(K)[:1]), r"residual has shape \[1, 16, 9, 9\]; \[2, 16, 9, 9\] expected")
      for op in CONVOLVES[:2]),
    # every BatchNorm
    *(
        (op, change, sentence)
        for op, prefix, channels in (
            *((op, "", K) for op in ("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "conv_bn_relu_pool")),
            *((op, "", C) for op in CALLS if op.startswith("bn_") and "gamma" in CALLS[op]()),
            ("conv_backward_reduce", "", C), ("bn_relu_conv_bn_act", "pre_", C), ("conv_bn_proj_act", "pre_", C),
            ("conv_bn_proj_act", "proj_", K), ("conv_stats", "pre_", C), ("conv_backward_weight", "pre_", C),
            ("bn_add_bn_act", "shortcut_", C),
        )
        for change, sentence in (
            ({prefix + "gamma": randn(7)}, rf"{prefix}gamma has shape \[7\]; \[{channels}\] expected, one value"),
            ({prefix + "var": randn(channels, 1)}, rf"{prefix}var has shape \[{channels}, 1\]; \[{channels}\] exp"),
            ({prefix + "beta": torch.ones(channels, dtype=torch.int64)}, f"{prefix}beta has dtype Long; float32"),
            ({prefix + "eps": -1.0}, f"{prefix}eps is -1; at least 0 expected"),
        )
        if not (op == "bn_relu_conv_bn_act" and prefix == "")
    ),
    *((op, dict(var=None), "mean without var; give both running statistics") for op in ("conv_bn_act", "bn_add_act")),
    ("conv_stats", dict(pre_var=None), "pre_mean without pre_var; give both running statistics"),
    ("conv_backward_weight", dict(pre_mean=None), "pre_var without pre_mean; give both running statistics"),
    *((op, dict(mean=None, var=None, gamma=None, beta=None), "mean and var are absent")
      for op in ("conv_backward_reduce", "bn_act_backward", "bn_act_backward_reduce", "bn_relu_max_pool")),
    # gradients and addends
    ("conv_backward_reduce", dict(grad=image(K)[:1]), r"grad has shape \[1, 16, 9, 9\]; \[2, 16, 9, 9\] expected"),
    ("conv_backward_reduce", dict(grad=image(K).double()), "grad has dtype Double but x has Float; cast one of them"),
    ("conv_backward_reduce", dict(grad_addend=image()[:1]), r"addend has shape \[1, 8, 9, 9\] but x"),
    ("conv_backward_reduce", dict(padding=[0, -1]), r"padding is \[0, -1\]; two integers of at least 0 expected"),
    ("conv_backward_reduce", dict(dilation=[5, 5], padding=[0, 0]), r"dilation \[5, 5\] is larger than the input 9x9"),
    *(
        ("conv_backward_input", change, sentence)
        for change, sentence in (
            (dict(grad=image(K)[0]), r"grad has shape \[16, 9, 9\]; \(N, C, H, W\) expected"),
            (dict(grad=image(K).int()), "grad has dtype Int; float32, float16, bfloat16 or float64 expected"),
            (dict(grad=torch.zeros(()).expand(2**10, K, 2**20)[..., None]), "grad of shape .* more than 2147483647"),
            (dict(grad=image(7)), r"\[16, 8, 3, 3\] makes 16 channels but grad of shape \[2, 7, 9, 9\] has 7; the"),
            (dict(weight=randn(K, C, 3)), r"weight has shape \[16, 8, 3\]; \(K, C, R, S\) expected"),
            (dict(weight=randn(K, C, 3, 3).half()), "weight has dtype Half but grad has Float; cast one of them"),
            (dict(weight=randn(K, C, 0, 3)), "leave nothing to convolve"),
            (dict(weight=randn(K, 0, 3, 3)), "leave nothing to convolve"),
            (dict(padding=[0, -1]), r"padding is \[0, -1\]; two integers of at least 0 expected"),
            (dict(padding=[1]), r"padding is \[1\]; two integers of at least 0 expected"),
            (dict(padding=[1, 3]), r"padding is \[1, 3\], more than the reach of a 3x3 kernel with dilation \[1, 1\]"),
            (dict(padding=[2, 2], grad=image(K)[..., :2]), "leave an input without pixels"),
            (dict(dilation=[0, 1]), r"dilation is \[0, 1\]; two integers of at least 1 expected"),
            (dict(dilation=[2**62, 1]), "a 3x3 kernel with dilation .* is past what 64 bits count; a smaller dilation"),
            (dict(dilation=[2**31, 2**31]), "the output of shape .* has more than 2147483647 elements"),
            (dict(grad_addend=image()[:1]), r"grad_addend has shape \[1, 8, 9, 9\]; \[2, 8, 9, 9\] expected, the"),
            (dict(grad_addend=image().double()), "grad_addend has dtype Double but grad has Float; cast one of them"),
        )
    ),
    ("conv_backward_weight", dict(grad=image(K)[:1]), r"grad has shape \[1, 16, 9, 9\]; \[2, 16, 9, 9\] expected"),
    ("conv_backward_weight", dict(grad=image(K).half()), "grad has dtype Half but x has Float; cast one of them"),
    *((op, dict(grad=image()[:1]), r"grad has shape \[1, 8, 9, 9\] but x has \[2, 8, 9, 9\]; the same shape expected")
      for op in ("bn_act_backward", "bn_act_backward_reduce", "bn_add_act_backward_reduce")),
    ("bn_act_backward", dict(sum_g=None), "sum_g_xhat without sum_g; give both"),
    ("bn_act_backward", dict(count=0.0), "count is 0; the number of elements"),
    ("bn_add_act", dict(residual=image()[:, :4]), r"residual has shape \[2, 4, 9, 9\]; \[2, 8, 9, 9\] expected"),
    ("bn_add_bn_act", dict(shortcut=image()[:, :4]), r"shortcut has shape \[2, 4, 9, 9\] but x has \[2, 8, 9, 9\]"),
    # projections and blocks
    ("conv_bn_proj_act", dict(proj_weight=randn(K, C, 3, 3)), r"proj_weight has shape \[16, 8, 3, 3\]; a 1x1"),
    ("conv_bn_proj_act", dict(proj_stride=[2, 2]), r"the projection gives \[2, 16, 5, 5\] but the convolution gives"),
    ("conv_bn_proj_act", dict(proj_x=image(3)), r"expected input\[2, 3, 9, 9\] to have 8 channels, but got 3 channels"),
    # pooling windows
    *(
        (op, change, sentence)
        for op in ("conv_bn_relu_pool", "bn_relu_max_pool", "bn_relu_max_pool_backward")
        for change, sentence in (
            (dict(pool_kernel=[0, 3]), r"pool_kernel is \[0, 3\]; two integers of at least 1 expected"),
            (dict(pool_kernel=[3]), r"pool_kernel is \[3\]; two integers of at least 1 expected"),
            (dict(pool_stride=[]), r"pool_stride is \[\]; two integers of at least 1 expected"),
            (dict(pool_stride=[2, 0]), r"pool_stride is \[2, 0\]; two integers of at least 1 expected"),
            (dict(pool_padding=[2, 1]), r"pool_padding \[2, 1\] is more than half of pool_kernel \[3, 3\]"),
            (dict(pool_kernel=[12, 12]), r"a pooling window of \[12, 12\] is larger than its input 9x9"),
        )
    ),
    ("bn_relu_max_pool_backward", dict(grad=randn(N, C, 4, 5)), r"grad has shape \[2, 8, 4, 5\]; \[2, 8, 5, 5\]"),
    ("bn_relu_max_pool_backward", dict(argmax=randn(N, C, 5, 5)), r"argmax has shape .* and dtype Float; .* Byte"),
    # avg_pool_linear
    ("avg_pool_linear", dict(weight=randn(K, 7)), r"weight has shape \[16, 7\]; \(K, 8\) expected, one column"),
    ("avg_pool_linear", dict(weight=randn(C)), r"weight has shape \[8\]; \(K, 8\) expected"),
    ("avg_pool_linear", dict(weight=randn(K, C).half()), "weight has dtype Half but x has Float; cast one of them"),
    ("avg_pool_linear", dict(bias=randn(7)), r"bias has shape \[7\]; \[16\] expected"),
    ("avg_pool_linear", dict(bias=randn(K).double()), "bias has dtype Double but x has Float; cast one of them"),
    ("avg_pool_linear", dict(x=image()[..., :0]), r"x has shape \[2, 8, 9, 0\]; at least one channel and one pixel"),
    # explain_cpu
    ("explain_cpu", dict(x=[C, SIZE, SIZE]), r"x_shape is \[8, 9, 9\]; four sizes of at least 0 expected"),
    ("explain_cpu", dict(x=[]), r"x_shape is \[\]; four sizes of at least 0 expected"),
    ("explain_cpu", dict(x=[N, C, -9, SIZE]), r"x_shape is \[2, 8, -9, 9\]; four sizes of at least 0 expected"),
    ("explain_cpu", dict(weight=[K, C, 3]), r"weight_shape is \[16, 8, 3\]; four sizes of at least 0 expected"),
    ("explain_cpu", dict(weight=[K, 3, 3, 3]), r"expected input\[2, 8, 9, 9\] to have 3 channels, but got 8 channels"),
    ("explain_cpu", dict(weight=[7, 4, 3, 3], groups=2), "expected weight to be divisible by 2 at dimension 0"),
    ("explain_cpu", dict(dtype="int8"), "dtype is int8; float32, float16, bfloat16 or float64 expected"),
    ("explain_cpu", dict(x=[2**40, C, SIZE, SIZE]), "more than 2147483647 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "change", "sentence"), TABLE, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_arguments(op, change, sentence):
    with pytest.raises(RuntimeError) as error:
        call(op, **change)
    message = str(error.value)
    assert message.startswith(f"{op}: ")
    error.match(sentence)
    assert "\n" not in message


BLOCK = [
    (dict(weight1=randn(C, 4, 3, 3)), r"first convolution: weight has shape \[8, 4, 3, 3\]; \[8, 8, 3, 3\] expected"),
    (dict(weight2=randn(C, C, 1, 1)), r"second convolution: weight has shape \[8, 8, 1, 1\]; \[8, 8, 3, 3\] expected"),
    (dict(gamma2=randn(7)), r"second convolution: gamma has shape \[7\]; \[8\] expected"),
    (dict(x=image().int()), "first convolution: x has dtype Int"),
]


@pytest.mark.parametrize(("change", "sentence"), BLOCK)
def test_bad_arguments_of_basic_block(change, sentence):
    with pytest.raises(RuntimeError, match=f"^basic_block, {sentence}"):
        call("basic_block", **change)


def test_channel_error_contains_torchs_sentence():
    """Users search for torch's wording."""
    x, weight = randn(2, 1, 64, 64), randn(64, 3, 7, 7)
    with pytest.raises(RuntimeError) as torchs:
        torch.conv2d(x, weight)
    with pytest.raises(RuntimeError) as ours:
        ops.conv_bn_relu_pool(x, weight, None, *NO_NORM, [2, 2], [3, 3], ONE, 1, *POOL.values(), False, False)
    assert "expected input[2, 1, 64, 64] to have 3 channels, but got 1 channels instead" in str(torchs.value)
    assert str(torchs.value) in str(ours.value)


def freed():
    weight = randn(4, 4, 3, 3)
    weight.untyped_storage().resize_(0)
    return weight


def test_freezing_unusable_weights_is_refused():
    with pytest.raises(RuntimeError, match=r"a weight of shape \[4, 4, 3, 3\] is not on the CPU"):
        ops.freeze_packed([randn(4, 4, 3, 3).to("meta")])
    with pytest.raises(RuntimeError, match="needs 576 bytes but its storage has 0"):
        ops.freeze_packed([freed()])


def test_forgetting_unpacked_weights_is_allowed():
    ops.forget_packed([randn(4, 4, 3, 3), freed(), randn(0, 4, 3, 3), torch.tensor(1.0)])
    ops.freeze_packed([randn(0, 4, 3, 3)])


@pytest.mark.parametrize(
    ("x", "weight", "padding", "wrong"),
    [
        ([65536, 8, 2**20, 2**20], [2**24, 8, 1, 1], 0, "x_shape"),
        ([1, 8, 65536, 65536], [2**31 - 8, 8, 3, 3], 1, "the output"),
    ],
)
def test_explain_cuda_refuses_what_64_bits_do_not_count(x, weight, padding, wrong):
    geometry = (x, weight, [1, 1], [padding, padding], [1, 1], 1, "bfloat16", "plain", [], [1, 1])
    with pytest.raises(RuntimeError, match=f"explain_cuda: {wrong} is .*, more bytes than 64 bits count"):
        ops.explain_cuda(*geometry, False, True, True, GPUS["h200"])
