"""The fuzzer (tests/fuzz): the first problems pass, and it finds planted faults."""

import subprocess
import sys

import pytest
import torch
from fuzz import problems
from fuzz.__main__ import TESTS, attack
from fuzz.guard import PAGE, guarded

from resnet_fused import ops

COMMAND = [sys.executable, "-m", "tests.fuzz"]


@pytest.fixture
def _surroundings(monkeypatch):
    """Resets the settings that a problem may change."""
    for variable in ("RESNET_FUSED_CPU_ENGINE", "RESNET_FUSED_CPU_ISA"):
        monkeypatch.setenv(variable, "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_first_200_problems_pass():
    done = subprocess.run(COMMAND, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "200 problems from 1 on, 0 failed"


@pytest.mark.usefixtures("_surroundings")
@pytest.mark.parametrize("kind", problems.KINDS, ids=lambda kind: kind.__name__)
def test_wrong_results_of_every_kind_fail(kind, monkeypatch):
    """Scales every result by 1.1."""

    def wrong(op):
        def call(*args, **how):
            found = op(*args, **how)
            return tuple(t * 1.1 for t in found) if isinstance(found, tuple) else found * 1.1

        return call

    for name in ("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "conv_bn_relu_pool", "basic_block",
                 "bn_add_act", "bn_add_bn_act", "bn_stats", "conv_forward", "conv_backward_input",
                 "conv_backward_weight", "avg_pool_linear"):  # fmt: skip
        monkeypatch.setattr(ops, name, wrong(getattr(ops, name)))
    monkeypatch.setattr(problems, "KINDS", {kind: 1})
    failed = 0
    for number in range(8):
        try:
            problems.solve(number)
        except AssertionError:
            failed += 1
    assert failed > 0


@pytest.mark.usefixtures("_surroundings")
def test_problem_whose_eager_nans_depend_on_onednn():
    """A NaN weight that only meets padding, in bfloat16 with an output one pixel wide."""
    problems.solve(103197)


def test_dying_process_fails_one_problem_only(capfd):
    """The second of five problems kills its process, as an access out of bounds would; the first and last fail."""
    code = """if True:
        import os, pathlib, sys
        at_hand, first, count = pathlib.Path(sys.argv[2]), int(sys.argv[4]), int(sys.argv[6])
        failed = 0
        for number in range(first, first + count):
            at_hand.write_text(f"{number} {failed}")
            if number == 8:
                os.abort()
            failed += number in (7, 11)
        at_hand.write_text(f"done {failed}")
    """
    assert attack(range(7, 12), [sys.executable, "-c", code]) == 3
    assert "python -m tests.fuzz --problems 1 --seed 8 # the process died with status -6" in capfd.readouterr().out


ACCESSES = {
    "read past the end": "flat[size]",
    "read before the start": "flat[-1 - (-size % 1024)]",
    "write": "flat.__setitem__(0, 1.0)",
}


@pytest.fixture(scope="module")
def printed():
    """Lines by kind of access. The process forks after importing torch, which takes most of the time."""
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {str(TESTS)!r})
        import ctypes, torch
        from fuzz.guard import guarded
        size = 10
        t = guarded(torch.arange(size, dtype=torch.float32))
        assert t.tolist() == list(range(size))
        class Flat:
            pointer = ctypes.cast(t.data_ptr(), ctypes.POINTER(ctypes.c_float))
            def __getitem__(self, at): return self.pointer[at]
            def __setitem__(self, at, value): self.pointer[at] = value
        flat = Flat()
        for access in sys.argv[1:]:
            if os.fork() == 0:
                print("reached", end=" ", flush=True)
                exec(access)
                print("survived", end=" ", flush=True)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.wait()[1])
            print("killed" if status < 0 else status, flush=True)
    """
    command = [sys.executable, "-c", code, *ACCESSES.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(ACCESSES, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("access", ACCESSES)
def test_forbidden_access_ends_the_process(access, printed):
    assert printed[access] == "reached killed"


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_guarded_copy_equals_the_tensor(at_end, layout):
    t = torch.randn(2, 3, 5, 7).to(memory_format=layout)
    copy = guarded(t, at_end)
    assert torch.equal(copy, t)
    assert copy.stride() == t.stride()
    assert (copy.data_ptr() + (t.numel() * 4 if at_end else 0)) % PAGE == 0
    expanded = t[:1, :, :1].expand(t.shape)
    assert torch.equal(guarded(expanded, at_end), expanded)
