"""The tolerance of all tests: at most twice the error of eager PyTorch in the same dtype, plus a few ulps."""

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
    """Compares the error of ``actual`` with that of ``eager`` (same dtype), both against ``truth`` in float64.

    The error is the largest absolute difference from the truth over the whole tensor. An ulp is that of the largest
    finite value of the truth, or of ``before_relu`` if given: rounding happens before the ReLU, which may hide the
    rounded values. Eager's error is measured against ``eager_truth`` if given, for networks in which rounding changed
    eager's ReLU masks. Non-finite values must equal eager's, in the same positions.
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
