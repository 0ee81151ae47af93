"""TF32 in the tests on a GPU: what multiplies as such is compared with eager that does."""

import pytest
import torch
import torch.nn.functional as F

# dtype, and whether float32 may be multiplied as TF32
KINDS = [(torch.float16, False), (torch.bfloat16, False), (torch.float32, False), (torch.float32, True)]
by_kind = pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=["float16", "bfloat16", "float32", "tf32"])


def rounded(x):
    """In x's dtype: 10 bits of fraction, ties away from zero."""
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)


def less_exact(eager, truth, in_float64):
    """Of eager's result, whose factors cuDNN may have rounded or not, and ``in_float64()`` with TF32 factors."""
    conv2d = F.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", lambda x, w, *rest: conv2d(rounded(x), rounded(w), *rest))
        in_tf32 = in_float64().float()
    return max(eager, in_tf32, key=lambda y: (y - truth).abs().max())
