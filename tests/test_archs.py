"""Which GPU architectures are compiled: defaults, lists in torch's syntax, and invalid lists."""

import pytest
from support import CUDA_13

from build_tools import BuildError, archs


def flags(text, known=CUDA_13, version=(13, 0)):
    return [arch.flag.removeprefix("-gencode=") for arch in archs.choose(text, known, version)]


def test_default_architectures():
    assert [arch.label for arch in archs.choose(None, CUDA_13, (13, 0))] == [
        *("sm_80", "ptx_80", "sm_89", "sm_90a", "sm_100f", "sm_120")
    ]


def test_default_drops_archs_unknown_to_old_nvcc():
    assert [arch.label for arch in archs.choose(None, (70, 80, 89, 90), (12, 4))] == [
        "sm_80",
        "ptx_80",
        "sm_89",
        "sm_90a",
    ]
    # nvcc 12.8 knows architecture 100, but not its family code 100f
    assert "sm_100f" not in [arch.label for arch in archs.choose(None, CUDA_13, (12, 8))]


@pytest.mark.parametrize("text", ["8.0;9.0a+PTX", "8.0 9.0a+PTX", "8.0, 9.0a+PTX;8.0"])
def test_arch_list_in_torchs_syntax(text):
    assert flags(text) == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_90a,code=compute_90a",
    ]


def test_hopper_gets_sm_90a_code_and_portable_ptx():
    assert flags("9.0+PTX") == ["arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90"]
    assert flags("Hopper") == flags("9.0+PTX")


def test_architectures_too_old_for_the_kernels_are_dropped():
    assert flags("7.5 8.6") == ["arch=compute_80,code=sm_86"]


def test_architectures_without_new_instructions_share_ptx():
    assert {flag.partition(",")[0] for flag in flags("8.0+PTX;8.6;8.9")} == {"arch=compute_80"}
    assert flags("8.6+PTX") == ["arch=compute_80,code=sm_86", "arch=compute_86,code=compute_86"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8.0;hopper", r"TORCH_CUDA_ARCH_LIST='8.0;hopper' holds 'hopper', which is no architecture; write"),
        ("sm_90", r"holds 'sm_90'"),
        (
            "7.0",
            r"TORCH_CUDA_ARCH_LIST='7.0' leaves nothing to compile: the kernels need 8.0 or newer, and nvcc 13.0 knows",
        ),
    ],
)
def test_bad_arch_lists_are_refused(text, sentence):
    with pytest.raises(BuildError, match=sentence):
        archs.choose(text, CUDA_13, (13, 0))


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], "8.0+PTX;9.0a"),
        (["9.0"], "9.0"),
        (["8.9", "8.0"], "8.9;8.0"),
        (["7.5"], "8.0+PTX;9.0a"),  # too old for the kernels
        (["13.0"], "8.0+PTX;9.0a"),  # too new for this nvcc: the driver compiles the PTX
        (["7.5", "8.6"], "8.6"),
    ],
)
def test_in_place_build_targets_this_machines_gpus(gpus, expected):
    assert archs.of_machine(gpus, CUDA_13, (13, 0)) == expected


def test_arch_labels_round_trip():
    for text in (archs.DEFAULT, archs.WITHOUT_GPU, "9.0+PTX", "9.0a+PTX", "8.6", "10.0"):
        chosen = archs.choose(text, CUDA_13, (13, 0))
        assert archs.choose(archs.as_list(arch.label for arch in chosen), CUDA_13, (13, 0)) == chosen
