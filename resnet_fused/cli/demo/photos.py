"""Crops of scikit-learn's two photographs, and networks with matching BatchNorm statistics."""

import random

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from resnet_fused import models

SEED = 0
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crops(count: int, size: int) -> Tensor:
    """(count, 3, size, size) float32, ImageNet-normalised, cut alternately from the two photographs."""
    photos = [torch.tensor(photo).permute(2, 0, 1) for photo in load_sample_images().images]  # 3 x 427 x 640
    chance = random.Random(SEED)
    cut = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top = chance.randrange(photo.shape[1] - size + 1)
        left = chance.randrange(photo.shape[2] - size + 1)
        cut.append(photo[:, top : top + size, left : left + size])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.stack(cut) / 255 - mean) / std


def network(name: str, x: Tensor, batches: int = 2) -> nn.Module:
    """``resnet_fused.models.<name>`` in eval mode on ``x``'s device, with BatchNorm statistics computed on ``x``.

    Weights are random, since pretrained ones would need a download. Matching statistics keep activations at the scale
    of a trained network, so that errors are meaningful.
    """
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(SEED)
        model = getattr(models, name)().to(x.device)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative average over the batches
    with torch.no_grad():
        for batch in x.chunk(batches):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
