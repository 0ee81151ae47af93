"""Build a network of fused blocks, train it briefly and run inference.

python examples/own_network.py
"""

import torch
from torch import nn

from resnet_fused import FusedBasicBlock, FusedPreActBlock, functional


def projection(inplanes, planes, stride):
    """A projection shortcut. On CUDA the block's last convolution computes it."""
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


class Network(nn.Module):
    """Maps images (N, 3, H, W) to logits (N, classes). Blocks take torchvision's constructor arguments."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(
            FusedBasicBlock(32, 32),
            FusedBasicBlock(32, 64, stride=2, downsample=projection(32, 64, 2)),
            FusedPreActBlock(64, 64),  # its output is not normalised: last_bn does that
        )
        self.last_bn = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.last_bn(self.blocks(x)))
        return self.fc(x.mean((2, 3)))


torch.manual_seed(0)
model = Network()
optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 10
for step in range(20):  # with gradients, the fused training path runs
    loss = nn.functional.cross_entropy(model(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 5 == 4:
        print(f"step {step + 1}: loss {loss.item():.3f}")

model.eval()
with torch.inference_mode():  # without gradients, the fused inference path runs
    logits = model(images)
print(f"{(logits.argmax(1) == labels).sum().item()} of {len(labels)} right after 20 steps")

# The same kernels as functions.
with torch.inference_mode():
    x = torch.randn(1, 8, 12, 12)
    y = functional.conv_bn_act(x, torch.randn(16, 8, 3, 3), padding=1, relu=True)
print("conv_bn_act:", tuple(x.shape), "->", tuple(y.shape))
