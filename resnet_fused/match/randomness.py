"""The states of random number generators: ``forward`` may draw numbers while it is traced or compared."""

import random
import sys
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes


class States(NamedTuple):
    """The states of the generators of torch, Python and, if it is loaded, numpy."""

    torch: list[int]
    python: Any
    numpy: Any

    @staticmethod
    def now() -> "States":
        with _disable_current_modes():
            of_torch = torch.get_rng_state().tolist()
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return States(of_torch, random.getstate(), None)
        name, keys, *rest = numpy.random.get_state()
        return States(of_torch, random.getstate(), (name, keys.tolist(), *rest))

    def restore(self) -> None:
        """Sets the generators to these states."""
        with _disable_current_modes():
            torch.set_rng_state(torch.tensor(self.torch, dtype=torch.uint8))
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
