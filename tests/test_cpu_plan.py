"""The CPU's plan for each purpose, as fields: every rule of csrc/cpu/plan.cpp, just inside it and just outside."""

import json

import pytest
import torch
from op_case import OpsOfTorch, isa_of_kernels, lay_out, reason_against

from resnet_fused import ops, plans

NO_NORM = (None, None, None, None, 0.0)
PURPOSES = ["forward", "input gradient", "weight gradient"]
KERNELS = ["winograd", "direct", "onednn", "composed"]
ISAS = ["avx2", "avx512", "avx512_bf16", "amx"]


def plan(purpose="forward", n=4, c=32, k=32, size=(16, 16), kernel=3, stride=1, padding=None, dilation=1, groups=1,
         dtype="float32"):  # fmt: skip
    padding = dilation * (kernel // 2) if padding is None else padding
    geometry = [[v, v] for v in (stride, padding, dilation)]
    return plans.read(
        ops.explain_cpu([n, c, *size], [k, c // groups, kernel, kernel], *geometry, groups, dtype, purpose)
    )


def is_ours(*args, **call):
    return plan(*args, **call).kernel in ("winograd", "direct")


@pytest.fixture
def isa(monkeypatch):
    """Caps the instruction set; skips the test if our kernels of this type then use another one."""
    names = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx": "AMX"}

    def cap(at, dtype="float32", uses=None):
        monkeypatch.setenv("RESNET_FUSED_CPU_ISA", at)
        if isa_of_kernels(dtype) != (uses or names[at]):
            pytest.skip(f"the kernels of {dtype} do not use {at} here")

    return cap


@pytest.mark.parametrize("purpose", ["inference", *PURPOSES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_fields_say_what_the_text_says(purpose, dtype):
    for kernel, n in ((1, 2), (3, 2), (3, 64)):
        text, fields = ops.explain_cpu(
            [n, 64, 14, 14], [64, 64, kernel, kernel], [1, 1], [kernel // 2] * 2, [1, 1], 1, dtype, purpose
        )
        found = json.loads(fields)
        assert found["purpose"] == purpose
        lines = [f"  not {each['kernel']}: {each['reason']}" for each in found["rejected"]]
        assert text.startswith(f"{found['kernel']}: ") and text.splitlines()[1:] == lines
        assert [each["kernel"] for each in found["rejected"]] == KERNELS[: KERNELS.index(found["kernel"])]
        assert ("isa" in found) == (found["kernel"] in ("winograd", "direct"))
        assert found.get("isa", "") in text
        assert ("in_float32" in found) == (purpose != "inference")
        if found["kernel"] == "composed":
            assert found.get("in_float32", 0) == ("in float32" in text)


def test_default_purpose_is_inference():
    call = ([2, 64, 14, 14], [64, 64, 3, 3], [1, 1], [1, 1], [1, 1], 1, "float32")
    assert ops.explain_cpu(*call) == ops.explain_cpu(*call, "inference")


def test_unknown_purpose_is_refused():
    with pytest.raises(RuntimeError, match=r"^explain_cpu: purpose is x; inference, forward, input"):
        plan("x")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_packing_needs_pixels(purpose, isa):
    isa("avx512")
    assert is_ours(purpose, n=4, size=(16, 16))
    few = plan(purpose, n=3, size=(17, 20))
    assert few.kernel == "composed"
    reasons = {reason_against(kernel, few) for kernel in ("winograd", "direct")}
    assert any("only 1020 pixels, fewer than the 1024" in reason for reason in reasons)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("at", ISAS)
def test_grouped_convolutions_are_left_to_torch(purpose, at, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", at)
    for dtype in ("float32", "bfloat16", "float16"):
        assert plan(purpose, n=32, c=64, k=64, groups=4, dtype=dtype).kernel == "composed"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_amx_computes_any_shape(purpose, isa):
    isa("amx", "bfloat16")
    for kernel, size in ((1, (1, 1)), (3, (7, 7)), (7, (9, 9))):
        found = plan(purpose, n=1, c=20, k=24, size=size, kernel=kernel, dtype="bfloat16")
        assert (found.kernel, found.fields["isa"]) == ("direct", "AMX")
    strided = plan(purpose, n=1, stride=2, dtype="bfloat16").kernel
    assert strided == ("composed" if purpose == "input gradient" else "direct")


def test_direct_weight_gradient_needs_amx(isa):
    isa("avx512")
    found = plan("weight gradient", n=32, kernel=1)
    assert (found.kernel, reason_against("direct", found)) == (
        "composed",
        "its weight gradient is computed with AMX only",
    )
    assert reason_against("onednn", found) == "it computes no gradient of a weight"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("at", ["avx2", "avx512"])
def test_slow_16_bits_are_ours_or_in_float32(dtype, at, isa):
    """No instruction multiplies 16 bits and sums in float32."""
    isa(at, dtype)
    for purpose in ("forward", "input gradient"):
        assert is_ours(purpose, kernel=1, dtype=dtype)
    for purpose in PURPOSES:
        assert plan(purpose, n=1, kernel=1, dtype=dtype).fields["in_float32"] == 1
        assert plan(purpose, groups=4, dtype=dtype).fields["in_float32"] == 1
    assert plan("input gradient", stride=2, dtype=dtype).fields["in_float32"] == 1
    assert plan("inference", n=1, groups=4, c=8, kernel=9, dtype=dtype).fields.get("in_float32", 0) == 0


def test_fast_types_are_computed_as_they_are(isa):
    isa("avx512_bf16", "bfloat16")
    for purpose in PURPOSES:
        assert plan(purpose, n=1, kernel=1, dtype="bfloat16").fields["in_float32"] == 0
        assert plan(purpose, n=1, kernel=1, size=(9, 9)).fields["in_float32"] == 0


def test_float32_with_avx512_is_ours(isa):
    isa("avx512")
    for purpose in ("forward", "input gradient"):
        assert is_ours(purpose, kernel=1)
        assert is_ours(purpose, kernel=5)


def test_float32_with_avx2_is_left_to_torch(isa):
    isa("avx2")
    for purpose in PURPOSES:
        found = plan(purpose, kernel=5)
        assert found.kernel == "composed"
    assert reason_against("direct", plan("forward", kernel=5)) == "torch's is as fast, and packs no weight for it"


def test_images_are_ours(isa):
    """oneDNN vectorises over the input channels, of which there are few."""
    isa("avx2")
    assert is_ours("forward", c=4, kernel=5) and is_ours("forward", c=3, kernel=7, stride=2)
    assert not is_ours("forward", c=5, kernel=5) and not is_ours("input gradient", c=3, k=4, kernel=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_pointwise_results_are_ours(dtype, isa):
    """torch's page faults take as long as the convolution."""
    isa("avx2" if dtype == "float32" else "avx512_bf16", dtype)
    k = 16 * 1024 * (1 if dtype == "float32" else 2) // 64  # 16 MiB of 64x64 pixels, batch 4
    assert is_ours("forward", c=32, k=k, size=(64, 64), kernel=1, dtype=dtype)
    assert not is_ours("forward", c=32, k=k - 1, size=(64, 64), kernel=1, dtype=dtype)
    assert not is_ours("forward", c=32, k=k, size=(64, 64), kernel=1, stride=2, dtype=dtype)
    assert is_ours("input gradient", c=k, k=32, size=(64, 64), kernel=1, dtype=dtype)
    assert not is_ours("input gradient", c=k - 1, k=32, size=(64, 64), kernel=1, dtype=dtype)
    assert not is_ours("weight gradient", c=32, k=k, size=(64, 64), kernel=1, dtype=dtype)


def test_float32_winograd_is_ours(isa):
    isa("avx2")
    for purpose in PURPOSES:
        assert plan(purpose).kernel == "winograd"
        assert not is_ours(purpose, dilation=2)
    assert plan("forward", c=20).kernel == "direct"
    assert not is_ours("forward", stride=2) and not is_ours("weight gradient", stride=2)


def test_flipping_in_float32_must_save_100_pixels(isa):
    """Time of a partial tile: 0.55 of a pixel's for each pixel of whole 2x2 tiles."""
    isa("avx2")
    partial = {"n": 128, "size": (3, 3)}  # 9 pixels, 16 in whole tiles, of which 8.8 pay
    assert plan("input gradient", **partial).kernel == "composed"  # saves 25
    assert plan("forward", **partial).kernel == plan("weight gradient", **partial).kernel == "winograd"
    assert plan("input gradient", n=512, size=(3, 3)).kernel == "winograd"  # saves 102
    assert plan("input gradient", n=499, size=(3, 3)).kernel == "composed"  # saves 99.8
    why = reason_against("winograd", plan("input gradient", **partial))
    assert why == "1152 pixels, 2048 in whole tiles of 2x2: too few for what transformed weights cost"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_winograd_in_16_bits_must_save_600_pixels(purpose, isa):
    """0.75 of a pixel's time for each pixel of whole 4x4 tiles; inference asks for less (0.7 and 300)."""
    isa("avx512_bf16", "bfloat16")
    enough, less = {"n": 1, "size": (50, 48)}, {"n": 1, "size": (49, 48)}
    assert plan(purpose, **{**enough, "size": (52, 48)}, dtype="bfloat16").kernel == "winograd"  # saves 624
    found = plan(purpose, **less, dtype="bfloat16")  # 2352 - 0.75 * 2496 = 480
    assert found.kernel == "composed"
    assert "2352 pixels, 2496 in whole tiles of 4x4" in reason_against("winograd", found)
    assert plan("inference", **less, dtype="bfloat16").kernel == "winograd"


@pytest.mark.parametrize("c", [16, 40])
def test_16_bit_winograd_needs_whole_channels(c, isa):
    isa("avx512_bf16", "bfloat16")
    for purpose in PURPOSES:
        assert not is_ours(purpose, n=32, c=c, dtype="bfloat16")


def test_strided_input_gradients_are_torchs(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "winograd")
    found = plan("input gradient", stride=2)
    assert found.kernel == "composed"
    assert {each.reason for each in found.rejected} == {"with a stride of 2x2 the input gradient is no convolution"}
    wide = plan("input gradient", padding=3)
    assert wide.kernel == "composed"
    assert "a padding of 3x3 is wider than the kernel reaches" in reason_against("direct", wide)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wide_filters_are_ours_where_torch_fails(dtype, isa, monkeypatch):
    """With AMX, oneDNN's input gradient fails in bfloat16 if the dilated filter is too wide."""
    isa("avx512_bf16", dtype, {"float32": "AVX-512", "bfloat16": "AVX512-BF16"}[dtype])

    def found(purpose, dilation):
        geometry = ([1, 1], [0, 0], [1, dilation], 1, dtype)
        return plans.read(ops.explain_cpu([1, 8, 3, 1100], [8, 8, 1, 3], *geometry, purpose))

    assert found("input gradient", 512).kernel == "composed"
    assert found("input gradient", 513).kernel == ("direct" if dtype == "bfloat16" else "composed")
    assert found("forward", 513).kernel == ("composed" if dtype == "bfloat16" else "direct")
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    flips = "torch's convolution with the flipped filter" in found("input gradient", 513).summary
    assert flips == (dtype == "bfloat16")


@pytest.mark.skipif(isa_of_kernels("bfloat16") != "AMX", reason="oneDNN is wrong with AMX only")
def test_what_onednn_gets_wrong_is_in_float32():
    """In bfloat16, with AMX: outputs one pixel wide; gradients with a stride wider than the image."""
    one_wide = {"n": 1, "groups": 4, "size": (9, 1), "dtype": "bfloat16"}
    strided = {"n": 1, "groups": 4, "size": (9, 2), "stride": 3, "padding": 3, "dtype": "bfloat16"}
    for purpose in ("input gradient", "weight gradient"):
        assert plan(purpose, **one_wide).fields["in_float32"] == 1
        assert plan(purpose, **strided).fields["in_float32"] == 1
    assert plan("forward", **one_wide).fields["in_float32"] == 1
    assert plan("forward", **strided).fields["in_float32"] == 0
    assert plan("input gradient", n=1, groups=4, dtype="bfloat16").fields["in_float32"] == 0


@pytest.mark.parametrize(
    ("change", "in_float32"),
    [({}, 1), (dict(dilation=1), 0), (dict(groups=8), 0), (dict(k=64), 0), (dict(dtype="float32"), 0)],
    ids=str,
)
def test_dilated_depthwise_gradients_are_in_float32(change, in_float32, isa):
    """oneDNN's weight gradient is wrong in bfloat16. One call computes both gradients; the forward pass is right."""
    isa("avx512_bf16", "bfloat16")
    depthwise = dict(n=2, c=32, k=32, groups=32, padding=2, dilation=2, dtype="bfloat16") | change
    for purpose in ("input gradient", "weight gradient"):
        assert plan(purpose, **depthwise).fields["in_float32"] == in_float32
    assert plan("forward", **depthwise).fields["in_float32"] == 0


@pytest.mark.parametrize("purpose", PURPOSES)
def test_types_that_torch_multiplies_slowly_are_in_float32(purpose, isa, monkeypatch):
    """Where our kernels convert 16 bits; not if the environment forces torch's convolutions, to time them."""
    isa("avx2")
    small = {"n": 1, "size": (5, 5), "groups": 4}
    for dtype in ("bfloat16", "float16"):
        assert plan(purpose, dtype=dtype, **small).fields["in_float32"] == 1
    assert plan(purpose, **small).fields["in_float32"] == 0
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    assert plan(purpose, dtype="float16", **small).fields["in_float32"] == 0


@pytest.mark.parametrize("purpose", PURPOSES)
def test_environment_overrides_what_is_faster(purpose, isa, monkeypatch):
    """With RESNET_FUSED_CPU_ENGINE, training uses a kernel wherever it can run."""
    isa("avx2")
    small = {"n": 1, "size": (13, 13)}
    assert plan(purpose, **small).kernel == "composed"
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "winograd")
    assert plan(purpose, **small).kernel == "winograd"
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    assert plan(purpose, **small).kernel == ("composed" if purpose == "weight gradient" else "direct")
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    found = plan(purpose, n=32)
    assert found.kernel == "composed"
    assert {each.reason for each in found.rejected} == {"RESNET_FUSED_CPU_ENGINE is composed"}


def tensors(layout, n=4, size=17):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(n, 32, size, size, generator=g), torch.randn(32, 32, 3, 3, generator=g) / 17
    return lay_out(x, layout), weight, lay_out(torch.randn(n, 32, size, size, generator=g), layout)


PAIRS = ([1, 1], [1, 1], [1, 1], 1)


def calls(x, weight, grad):
    return {
        "forward": lambda: ops.conv_forward(x, weight, None, *PAIRS, None, False),
        "statistics": lambda: ops.conv_stats(x, *NO_NORM, weight, None, *PAIRS, False, False),
        "input gradient": lambda: ops.conv_backward_input(grad, weight, [1, 1], [1, 1], None, False),
        "weight gradient": lambda: ops.conv_backward_weight(grad, x, *NO_NORM, weight, *PAIRS),
    }


@pytest.mark.parametrize("purpose", ["forward", "statistics", "input gradient", "weight gradient"])
def test_ops_follow_the_plan_of_their_purpose(purpose, isa):
    isa("avx2")
    for layout, n, ours in [("channels_last", 4, True), ("channels_last", 3, False), ("contiguous", 4, False)]:
        with OpsOfTorch() as called:
            calls(*tensors(layout, n))[purpose]()
        assert called.convolved() != ours, (layout, n)


def test_inference_ignores_the_rules_of_training(isa):
    isa("avx2")
    x, weight, _ = tensors("contiguous", n=1)
    one = torch.ones(32)
    for norm in (NO_NORM, (one, one, one, one, 1e-5)):
        for keep_packed in (False, True):
            with OpsOfTorch() as called:
                ops.conv_bn_act(x, weight, None, *norm, *PAIRS, None, False, keep_packed, False)
            assert not called.convolved()


def test_bias_alone_needs_no_pass_after_torchs_convolution(isa):
    """Training's convolution with a bias is torch's, bit for bit."""
    isa("avx2")
    x, weight, bias = torch.randn(1, 8, 9, 9), torch.randn(8, 8, 3, 3), torch.randn(8)
    found = ops.conv_forward(x, weight, bias, *PAIRS, None, False)
    assert torch.equal(found, torch.ops.aten.convolution.default(x, weight, bias, *PAIRS[:3], False, [0, 0], 1))
