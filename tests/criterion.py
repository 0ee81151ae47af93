"""The one tolerance: at most twice the error that eager PyTorch makes in the same dtype, plus a few ulps."""

import torch
from torch import Tensor

from resnet_fused.criterion import ULPS, allowed_error, largest_error


def assert_close(
    actual: Tensor,
    eager: Tensor,
    truth: Tensor,
    before_relu: Tensor | None = None,
    eager_truth: Tensor | None = None,
) -> None:
    """``actual`` against ``eager`` of the same dtype, both measured by ``truth`` in float64.

    Errors are the largest absolute difference from the truth over the whole tensor; an ulp is one of the
    largest finite value of the truth: of ``before_relu``, where given, because rounding happens before a ReLU
    that may hide the values that were rounded. ``eager_truth`` measures eager's error where rounding made eager
    another of the functions that a network of ReLUs is. Values that are not finite must be at eager's places, and be
    eager's.
    """
    assert actual.shape == eager.shape == truth.shape, f"{actual.shape}, {eager.shape}, {truth.shape}"
    assert actual.dtype == eager.dtype, f"dtype {actual.dtype}, but eager's is {eager.dtype}"
    assert truth.dtype == torch.float64
    finite = torch.isfinite(eager)
    torch.testing.assert_close(actual[~finite], eager[~finite], rtol=0, atol=0, equal_nan=True)
    assert torch.isfinite(actual[finite]).all(), "values that are not finite where eager's are"
    judged = finite & torch.isfinite(truth)
    if not judged.any():
        return
    rounded = truth if before_relu is None else before_relu
    error = largest_error(actual, truth, judged)
    allowed = allowed_error(eager, truth if eager_truth is None else eager_truth, judged, rounded)
    assert error <= allowed, f"error {error:.3e} exceeds {allowed:.3e} (twice eager's, plus {ULPS} ulps)"
