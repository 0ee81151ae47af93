"""TF32 in the tests on a GPU: what multiplies as such is compared with eager that does."""

import pytest
import torch

from resnet_fused import criterion

# dtype, and whether float32 may be multiplied as TF32
KINDS = [(torch.float16, False), (torch.bfloat16, False), (torch.float32, False), (torch.float32, True)]
by_kind = pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=["float16", "bfloat16", "float32", "tf32"])


def less_exact(eager, truth, in_float64):
    """Of eager's result, whose factors cuDNN may have rounded or not, and ``in_float64()`` with TF32 factors."""
    with criterion.TF32Factors():
        in_tf32 = in_float64().float()
    return max(eager, in_tf32, key=lambda y: (y - truth).abs().max())
