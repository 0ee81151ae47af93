"""Captured calls: what a program holds, and the op that runs it."""

import weakref

import pytest
import torch

from resnet_fused import ops
from resnet_fused.chain import program


def captured(x, weight):
    with program.capture(x) as capture, torch.no_grad():
        args = (None, None, None, None, None, 0.0, (1, 1), (0, 0), (1, 1), 1)
        y = program.call(ops.conv_bn_act, x, weight, *args, None, False, False, False, True)
        z = program.call(ops.conv_bn_act, y, weight, *args, x, True, False, False, False)
    return capture.program(z, {id(weight)}), z


def test_a_program_frees_what_it_no_longer_reads():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
    made, z = captured(x, weight)
    assert torch.equal(made(x), z)
    # op, x, weight ... and the first result ends with the second call, which x does not
    assert made.code.tolist()[-2:] == [1, 1]
    assert made.tensors == [weight]


def test_a_capture_keeps_no_result_alive():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
    args = (None, None, None, None, None, 0.0, (1, 1), (0, 0), (1, 1), 1, None, False, False, False, False)
    with program.capture(x) as capture:
        y = program.call(ops.conv_bn_act, x, weight, *args)
        first = weakref.ref(y)
        for _ in range(20):  # whose memory, and ids, are used again and again
            y = program.call(ops.conv_bn_act, y, weight, *args)
    assert first() is None
    assert torch.equal(capture.program(y, {id(weight)})(x), y)


def test_a_tensor_from_elsewhere_makes_no_program():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
    with program.capture(x) as capture:
        args = (None, None, None, None, None, 0.0, (1, 1), (0, 0), (1, 1), 1, None, False, False, False, False)
        y = program.call(ops.conv_bn_act, x * 1, weight, *args)
    assert capture.program(y, {id(weight)}) is None


BROKEN = [
    ("no op 99", [99]),
    ("no op -1", [-1]),
    ("the code ends inside a call", [1, 0]),
    ("value 7, which does not exist", [0, 14, 0]),
    ("tensor 3, which does not exist", [0, 7, 0]),
    ("value 1, which does not exist", [0, 0, 1, 1, 0, 2, 0]),
    ("the code ends its own result", [0, 0, 1, 1]),
]


@pytest.mark.parametrize(("message", "code"), BROKEN)
def test_broken_code_is_refused(message, code):
    with pytest.raises(RuntimeError, match=message):
        ops.run_program(torch.randn(1, 4, 5, 5), [], torch.tensor(code))


def test_tensors_of_another_shape_are_noticed():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
    made, _ = captured(x, weight)
    for other in (torch.randn(4, 4, 1, 2), torch.randn(4, 4, 1), weight.double(), weight.swapaxes(0, 1)):
        assert ops.run_program(x, [other], made.code) is None


def test_code_of_another_dtype_is_refused():
    with pytest.raises(RuntimeError, match="not a contiguous CPU vector of int64"):
        ops.run_program(torch.randn(1, 4, 5, 5), [], torch.zeros(3))


def test_every_op_of_a_program_exists():
    assert [name for name in ops.program_ops().split(", ") if not hasattr(ops, name)] == ["channels_last"]
