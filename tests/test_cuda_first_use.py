"""First use of CUDA kernels in the emulated op layer: when they are compared, and what happens to a wrong one."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cuda_cases.op_layer import (
    args_of_every_op,
    batch_norm,
    conv_bn_act_args,
    randn,
)
from cuda_on_cpu import op_layer
from cuda_on_cpu.host_calls import calls

from resnet_fused import first_use, ops, plans, reference
from resnet_fused.cli._gpus import GPUS


@pytest.fixture(autouse=True)
def _new_process(library):
    """Starts without verified families and without records of checks, as a new process does."""
    first_use._outcomes.clear()
    first_use._tries.clear()
    library.set_verified([])
    library.set_check("first")
    yield
    library.set_check("0")
    library.set_fault("")
    library.set_capturing(False)
    library.set_verified([])


@pytest.fixture
def compared(monkeypatch):
    """Returns the ops that were compared, in order."""
    seen, judge = [], first_use.judge
    monkeypatch.setattr(first_use, "judge", lambda call, got: (seen.append(call.op), judge(call, got))[1])
    return seen


def eager_conv(args):
    return reference.conv_bn_act(*args[:14])


def addition(dtype=torch.float32):
    x = randn(2, 8, 5, 4, dtype=dtype, memory_format=torch.channels_last)
    return [x, *batch_norm(8), x.flip(0), True]


def launched(on):
    return [name.removesuffix("_kernel<Config>") for name in on.reports[-1]["launched"]]


# ---- which ops, which kernels ----


def test_every_cuda_op_has_an_eager_reference():
    known, has = torch._C._dispatch_has_kernel, torch._C._dispatch_has_kernel_for_dispatch_key
    names = [f"{op_layer.NAME}::{name}" for name in vars(ops)]
    on_cuda = {name.split("::")[1] for name in names if known(name) and has(name, "CPU")}
    assert on_cuda == set(first_use.OPS)
    for op in first_use.OPS:
        schema = getattr(torch.ops.resnet_fused, op).default._schema
        twin = getattr(torch.ops.resnet_fused, f"eager_{op}").default._schema
        assert str(twin).partition("(")[2] == str(schema).partition("(")[2]


def test_every_variant_has_its_own_state(library):
    variants = library.variants()
    places, names = [place for place, _ in variants], [name for _, name in variants]
    assert len(variants) > 300
    assert len(set(places)) == len(set(names)) == len(variants)
    assert 0 <= min(places) <= max(places) < library.most_variants()
    families = {family.name for family in plans.families(ops.explain_trust(90))}
    assert {name.split()[0] for name in names} == families, "no family without a kernel, no kernel without a family"


@pytest.mark.parametrize("op", first_use.OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_right_kernels_are_compared_once(layer, compared, op, dtype):
    args = args_of_every_op(torch.float32 if dtype is torch.float64 else dtype)[op]
    if dtype is torch.float64:
        args = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    on = layer("a100", "sm80:64x64:1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = getattr(on, op)(*args)
        before = launched(on)
        second = getattr(on, op)(*args)
    assert compared == [op]
    assert launched(on) == before != []
    assert set(first_use.outcomes().values()) == {"right"}
    for a, b in zip(first_use._list(first), first_use._list(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ["sm90:128x128", "sm90:rows", "sm90:block", "sm80:64x64:3"])
def test_hopper_kernels_pass(layer, compared, engine):
    on = layer("h200", engine)
    args = conv_bn_act_args(shape=(2, 64, 9, 8, 64, 3, 1, 1, 1))
    on.conv_bn_act(*args)
    on.conv_bn_act(*args)
    block = [randn(64, 64, 3, 3, dtype=torch.bfloat16) / 24, None, *batch_norm(64)]
    on.basic_block(args[0], *block, *block, False, False)
    assert set(first_use.outcomes().values()) == {"right"}
    assert compared == ["conv_bn_act", *["basic_block"] * (engine in ("sm90:block", "sm90:rows"))]


def test_each_dtype_tile_and_mode_is_checked(layer, compared):
    on = layer("a100", "sm80:64x64:1")
    on.conv_bn_act(*conv_bn_act_args(torch.bfloat16))
    on.conv_bn_act(*conv_bn_act_args(torch.bfloat16, residual=False))
    assert len(compared) == 1
    on.conv_bn_act(*conv_bn_act_args(torch.float16))
    on = layer("a100", "sm80:128x64:1")
    on.conv_bn_act(*conv_bn_act_args(torch.bfloat16))
    on = layer("a100", "sm80:128x64:3")
    on.conv_bn_act(*conv_bn_act_args(torch.bfloat16))
    assert len(compared) == 4
    assert list(first_use.outcomes()) == [
        "cpu sm80/conv_fwd bfloat16 64x64 plain",
        "cpu sm80/conv_fwd float16 64x64 plain",
        "cpu sm80/conv_fwd bfloat16 128x64 plain",
        "cpu sm80/conv_fwd bfloat16 128x64 plain, in parts",
    ]


def test_tf32_is_judged_as_tf32(layer, compared):
    """Eager uses full float32 here, as cuDNN may, but a kernel that may use TF32 is judged by TF32's error."""
    on, args = layer("a100", "sm80:64x64:1"), conv_bn_act_args(torch.float32, tf32=True)
    got = on.conv_bn_act(*args)
    assert launched(on) == ["conv_fwd"]
    assert (got - eager_conv(args)).abs().max() > 1e-5, "it was TF32"
    assert first_use.outcomes() and set(first_use.outcomes().values()) == {"right"}


# ---- wrong kernels ----


@pytest.mark.parametrize(("gpu", "engine", "kernel"), [("a100", "", "conv_fwd"), ("h200", "sm90", "conv_sm90")])
def test_wrong_convolution_is_not_used_again(layer, library, gpu, engine, kernel):
    on, args = layer(gpu, engine), conv_bn_act_args()
    library.set_fault(kernel)
    with pytest.warns(RuntimeWarning) as warned:
        got = on.conv_bn_act(*args)
    assert torch.equal(got, eager_conv(args))
    first = launched(on)
    assert first[0].startswith(kernel)
    (text,) = (str(w.message) for w in warned)
    for part in (
        r"resnet_fused: sm\d0/conv_\w+ bfloat16 \d+x\d+ plain(, in parts)? gave a wrong result in conv_bn_act on cpu ",
        r"error \S+ where \S+ is allowed, output 0, first at \[0, \d+, \d+, \d+\]; torch.bfloat16, x \[2, 64, 6, 5\], ",
        r"weight \[72, 64, 3, 3\], residual \[2, 72, 6, 5\]",
        r"`python -m resnet_fused verify` and post its report and this message on the project's issue tracker",
    ):
        assert re.search(part, text), (part, text)
    found = re.search(r"error (\S+) where (\S+) is", text)
    assert float(found[1]) > float(found[2])
    (refused,) = (name.removeprefix("cpu ") for name, outcome in first_use.outcomes().items() if outcome != "right")

    # The next best candidate: other tiles, until each has been wrong once, then another kernel.
    with warnings.catch_warnings(record=True) as more:
        warnings.simplefilter("always")
        for _ in range(5):
            assert torch.equal(on.conv_bn_act(*args), eager_conv(args)) or not launched(on)[0].startswith(kernel)
    assert launched(on)[0] == {"conv_fwd": "bn_add_act", "conv_sm90": "conv_fwd"}[kernel]
    others = [re.search(r"(sm\d0/\S+ \S+ \S+ plain)", str(w.message))[1] for w in more]
    assert len(set(others)) == len(others) == 2
    assert refused not in others


@pytest.mark.parametrize(("kernel", "op"), [("bn_add_act", "bn_add_act"), ("bn_stats", "bn_stats")])
def test_wrong_pass_is_replaced_by_eager(layer, library, kernel, op):
    on, args = layer(), addition() if op == "bn_add_act" else [addition()[0]]
    on.may_give_up = True
    library.set_fault(kernel)
    with pytest.warns(RuntimeWarning, match=f"bn/{kernel} float32"):
        first = getattr(on, op)(*args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = getattr(on, op)(*args)
    assert launched(on) == []
    for a, b, c in zip(*map(first_use._list, (first, second, getattr(reference, op)(*args))), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    library.set_fault("")
    getattr(on, op)(*args)
    assert launched(on) == [], "for good"


def test_wrong_pass_inside_a_convolution_is_found(layer, library):
    on, args = layer("a100", "torch"), conv_bn_act_args()
    library.set_fault("bn_add_act")
    with pytest.warns(RuntimeWarning, match="bn/bn_add_act bfloat16 16 bytes an access NHWC shortcut gave a wrong"):
        assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    assert launched(on) == []


def test_eager_results_have_the_ops_strides(layer, library):
    """Eager results have the same format as x and never alias x."""
    library.set_fault("bn_add_act")
    on = layer()
    on.may_give_up = True
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = randn(2, 8, 5, 4, memory_format=memory_format)[:, :, ::2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = on.bn_add_act(x, None, None, None, None, 0.0, None, False)
        assert torch.equal(got, x)
        assert got.data_ptr() != x.data_ptr()
        assert got.stride() == ops.bn_add_act(x, None, None, None, None, 0.0, None, False).stride()


# ---- when it is compared ----


def test_check_0_compares_nothing(layer, library, compared):
    library.set_check("0")
    library.set_fault("conv_fwd")
    on, args = layer("a100", "sm80"), conv_bn_act_args()
    assert not torch.equal(on.conv_bn_act(*args), eager_conv(args))
    assert compared == []


def test_check_always_compares_every_call(layer, library, compared):
    library.set_check("always")
    library.set_verified([("sm80/conv_fwd", 80)])
    on, args = layer("a100", "sm80"), conv_bn_act_args()
    for _ in range(3):
        on.conv_bn_act(*args)
    assert len(compared) == 3
    library.set_fault("conv_fwd")
    with pytest.warns(RuntimeWarning):
        assert torch.equal(on.conv_bn_act(*args), eager_conv(args))


def test_verified_family_is_not_compared(layer, library, compared):
    library.set_verified([("sm80/conv_fwd", 80)])
    layer("a100", "sm80").conv_bn_act(*conv_bn_act_args())
    assert compared == []
    layer("h200", "sm80").conv_bn_act(*conv_bn_act_args(torch.float16))
    assert len(compared) == 1, "another GPU has proven it"


@pytest.mark.parametrize("text", ["1", "never", "first "])
def test_unknown_check_is_an_error(library, text):
    with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_CHECK is {text}; one of 0, first, always expected, or"):
        library.set_check(text)


def test_graph_capture_skips_unchecked_kernels(layer, library, compared):
    on, args = layer("a100", "sm80:64x64:1"), conv_bn_act_args()
    library.set_capturing(True)
    assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    assert launched(on) == []
    library.set_capturing(False)
    assert compared == []
    on.conv_bn_act(*args)
    assert launched(on) == ["conv_fwd"]
    assert len(compared) == 1, "it was left unchecked"
    library.set_capturing(True)
    on.conv_bn_act(*args)
    assert launched(on) == ["conv_fwd"], "what is trusted is captured"
    library.set_check("always")
    on.conv_bn_act(*args)
    assert launched(on) == ["conv_fwd"]
    assert len(compared) == 1, "nothing can be compared in a capture"


def test_comparison_out_of_memory_is_retried(layer, library, monkeypatch):
    on, args, judge = layer("a100", "sm80:64x64:1"), conv_bn_act_args(), first_use.judge

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(first_use, "judge", out_of_memory)
    for _ in range(2):
        assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    assert first_use.outcomes() == {}
    monkeypatch.setattr(first_use, "judge", judge)
    on.conv_bn_act(*args)
    assert set(first_use.outcomes().values()) == {"right"}


def test_comparison_out_of_memory_is_retried_a_few_times(layer, library, monkeypatch):
    on, args, tries = layer("a100", "sm80:64x64:1"), conv_bn_act_args(), []

    def out_of_memory(*_):
        tries.append(1)
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(first_use, "judge", out_of_memory)
    for _ in range(first_use.MAX_TRIES - 1):
        assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    with pytest.warns(RuntimeWarning, match="could not be compared .* in 3 calls of conv_bn_act .CUDNN_STATUS_ALLOC"):
        assert torch.equal(on.conv_bn_act(*args), eager_conv(args))
    on.conv_bn_act(*args)
    # The convolution is not tried again. The pass after torch's convolution has its own attempts.
    assert launched(on) == ["bn_add_act"]
    assert len(tries) == first_use.MAX_TRIES + 1


@pytest.mark.parametrize("hidden", ["gamma", "nan", "zeros"])
def test_uninformative_inputs_are_not_judged(layer, library, hidden):
    """Zero scales, NaN inputs and closed ReLUs hide the convolution, so they do not count as a check."""
    on, args = layer("a100", "sm80:64x64:1"), conv_bn_act_args()
    library.set_fault("conv_fwd")
    blind = list(args)
    if hidden == "gamma":
        blind[3] = torch.zeros(72)
    elif hidden == "nan":
        blind[0] = torch.full_like(args[0], torch.nan)
    else:
        blind[4], blind[12] = torch.full((72,), -1e4), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(on.conv_bn_act(*blind), eager_conv(blind), rtol=0, atol=0, equal_nan=True)
    assert first_use.outcomes() == {}
    with pytest.warns(RuntimeWarning):
        on.conv_bn_act(*args)


@pytest.mark.parametrize("op", ["bn_add_act", "bn_stats", "bn_act_backward_reduce", "bn_relu_max_pool"])
def test_empty_batch_matches_eager(layer, op):
    x, bn = torch.randn(0, 8, 6, 6), batch_norm(8)
    args = {
        "bn_add_act": [x, *bn, None, True],
        "bn_stats": [x],
        "bn_act_backward_reduce": [x, x, *bn, None, True],
        "bn_relu_max_pool": [x, *bn, [3, 3], [2, 2], [1, 1]],
    }[op]
    on = layer()
    on.may_give_up = True
    found, expected = getattr(on, op)(*args), getattr(ops, op)(*args)
    for a, b in zip(*map(first_use._list, (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert a.dtype == b.dtype
    assert first_use.outcomes() == {}


def test_requires_grad_autocast_and_inference_mode(layer, compared):
    """The check works below torch's autograd formulas, under autocast and in inference mode."""
    on, args = layer("a100", "sm80:64x64:1"), conv_bn_act_args()
    for tensor in args[:2]:
        tensor.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        on.library.begin(op_layer.buffers(args), "stay", 1)
        found = torch.ops.resnet_fused_on_cpu.conv_bn_act(*args)
        assert not on.library.end()["errors"]
    assert found.dtype is torch.bfloat16
    with torch.inference_mode():
        on.bn_add_act(*addition())
    assert compared == ["conv_bn_act", "bn_add_act"]
    assert set(first_use.outcomes().values()) == {"right"}


def test_elements_near_a_kink_are_not_errors(layer):
    """Where bn(x) is 0 up to rounding, kernel, eager and float64 may disagree about its sign."""
    x = randn(4, 64, 8, 8, memory_format=torch.channels_last)
    gamma, beta, mean, var, eps = batch_norm(64)
    scale = gamma / torch.sqrt(var + eps)
    x[:, :, ::2] = (mean - beta / scale)[:, None, None]  # bn(x) as close to 0 as float32 allows
    grad, on = torch.randn_like(x), layer()
    bn = [gamma, beta, mean, var, eps]
    on.bn_act_backward_reduce(grad, x, *bn, None, True)
    on.bn_act_backward(grad, x, *bn, None, True, None, None, 0.0)
    weight = randn(64, 64, 3, 3, memory_format=torch.channels_last) / 24
    layer("a100", "sm80").conv_backward_reduce(grad.half(), weight.half(), [1, 1], [1, 1], x.half(), *bn, None, False)
    assert set(first_use.outcomes().values()) == {"right"}


def test_ops_that_run_during_a_comparison_keep_verdicts_apart(layer, monkeypatch):
    """Python may run anything meanwhile: a finalizer, a signal handler."""
    on, args = layer("a100", "sm80:64x64:1"), conv_bn_act_args()
    bn_stats, judge, judged = getattr(torch.ops, op_layer.NAME).bn_stats.default, first_use.judge, []

    def with_another_op(call, got):
        judged.append(call.op)
        if judged != ["conv_bn_act"]:
            return judge(call, got)
        bn_stats(args[0])
        return [first_use.Difference(1.0, 0.0, [0, 0, 0, 0])]

    monkeypatch.setattr(first_use, "judge", with_another_op)
    with pytest.warns(RuntimeWarning, match="sm80/conv_fwd bfloat16 64x64 plain gave a wrong result"):
        on.conv_bn_act(*args)
    assert judged == ["conv_bn_act", "bn_stats"]
    on.conv_bn_act(*args)
    assert launched(on) == ["bn_add_act"], "the wrong kernel is not used again"
    on.bn_stats(args[0])
    assert judged == ["conv_bn_act", "bn_stats", "conv_bn_act"], "bn_stats is trusted"


def test_threads_warn_once_and_return_eager(host):
    """Launches do nothing in this build of the op layer, so every kernel is wrong."""
    host.set_device(*GPUS["h200"])
    host.set_engine("sm80:64x64:1")
    host.set_verified([])
    host.set_check("first")
    try:
        op, args = calls(channels=64, size=8)["conv_bn_act"]
        eager = eager_conv(args)
        with warnings.catch_warnings(record=True) as warned, ThreadPoolExecutor(8) as pool:
            warnings.simplefilter("always")
            results = list(pool.map(lambda _: op(*args), range(32)))
        told = [str(w.message) for w in warned if "64x64 plain" in str(w.message)]
        assert len(told) == 1
        assert all(torch.equal(r, eager) for r in results)
    finally:
        host.set_check("0")
        host.set_verified([])
