"""Importing resnet_fused and converting a model load no large part of torch that ``import torch`` does not load."""

import pytest
import torch
from support import run_python

from resnet_fused.chain import patches

LARGE = ("torch._dynamo", "torch._inductor", "sympy", "torch.distributed.fsdp")

# Forks for each program after importing torch, which takes most of the time.
REPORT = f"""
import os, sys
import torch
before = set(sys.modules)
for program in sys.argv[1:]:
    if os.fork() == 0:
        exec(program)
        new = set(sys.modules) - before
        print([name for name in {LARGE!r} if name in new])
        break
    assert os.wait()[1] == 0
"""

IMPORT = "import resnet_fused"
CONVERT = """
import resnet_fused
model = resnet_fused.convert(resnet_fused.models.small_resnet(), strict=True)
assert resnet_fused.report(model).count("converted") == 3
"""
REGISTERED = """
import resnet_fused
class Block(resnet_fused.FusedBasicBlock._eager_class):
    def forward(self, x):
        return super().forward(x)
names = dict(convs=("conv1", "conv2"), norms=(None, "bn1", "bn2"), shortcut="downsample")
resnet_fused.register_block(Block, resnet_fused.BlockSpec(**names))
assert resnet_fused.report(resnet_fused.convert(Block(8, 8), strict=True)).count("converted") == 1
"""
INFERENCE = (
    CONVERT
    + """
with torch.no_grad():
    model.eval()(torch.randn(2, 3, 8, 8))
"""
)


PROGRAMS = dict(imported=IMPORT, converted=CONVERT, registered=REGISTERED, inferred=INFERENCE)
PROGRAMS["large"] = "import torch._dynamo"


@pytest.fixture(scope="module")
def loaded():
    """Maps programs to the large modules that they load."""
    shown = run_python("-c", REPORT, *PROGRAMS.values())
    assert shown.returncode == 0, shown.stderr
    return dict(zip(PROGRAMS, shown.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "large"])
def test_no_large_module_is_loaded(loaded, program):
    assert loaded[program] == "[]"


def test_a_large_module_would_be_noticed(loaded):
    assert "torch._dynamo" in loaded["large"]


def test_constants_are_marked_as_torch_compiler_marks_them():
    def ours():
        return 1

    def theirs():
        return 1

    assert patches.constant_while_tracing(ours) is ours
    assert torch.compiler.assume_constant_result(theirs) is theirs
    assert vars(ours) == vars(theirs)
    assert vars(ours)
