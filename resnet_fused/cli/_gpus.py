"""GPUs by name, described by the numbers that the CUDA plan needs."""

import torch

from ._errors import CommandError

AUTO = "auto"

# The argument of ops.explain_cuda: compute capability, number of SMs, shared memory in bytes per block and per SM.
GPUS = {
    "a100": [80, 108, 166912, 167936],
    "a10": [86, 72, 101376, 102400],
    "rtx3090": [86, 82, 101376, 102400],
    "l4": [89, 58, 101376, 102400],
    "rtx4090": [89, 128, 101376, 102400],
    "h100": [90, 132, 232448, 233472],
    "h200": [90, 132, 232448, 233472],
    "b200": [100, 148, 232448, 233472],
    "rtx5090": [120, 170, 101376, 102400],
}


def numbers(name: str) -> list[int]:
    """The numbers of a GPU in :data:`GPUS`, or with "auto" of torch's current GPU."""
    if name != AUTO:
        return GPUS[name]
    if not torch.cuda.is_available():
        raise CommandError(f"--gpu auto: torch finds no CUDA device; choose one of {', '.join(GPUS)}")
    p = torch.cuda.get_device_properties(torch.cuda.current_device())
    arch = 10 * p.major + p.minor
    block = p.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    return [arch, p.multi_processor_count, block, p.shared_memory_per_multiprocessor]
