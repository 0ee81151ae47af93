"""Fine-tune a converted ResNet with frozen BatchNorm: a new head, the first stages frozen.

Shows both ways to freeze: BatchNorm in eval mode, and torchvision's FrozenBatchNorm2d, as its detectors have it.
Data: scikit-learn's digits. Pretrained on the digits 0 to 4, fine-tuned for the digits 5 to 9.

python examples/finetune_frozen_batchnorm.py
"""

import torch
from torch import nn
from utils import library

import resnet_fused

torchvision, datasets = library("torchvision"), library("sklearn.datasets")


def digits(first):
    """Returns images (N, 3, 32, 32) and labels 0 to 4 of five digits: for training, and for testing."""
    data = datasets.load_digits()
    chosen = torch.tensor((data.target >= first) & (data.target < first + 5))
    images = nn.functional.interpolate(torch.tensor(data.images, dtype=torch.float32)[chosen, None] / 8 - 1, size=32)
    images, labels = images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target)[chosen] - first
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:640], order[640:]
    return images[train], labels[train], images[test], labels[test]


def small_resnet(**options):
    """A ResNet of one block per stage and without the last stage: trains in seconds."""
    resnet = torchvision.models.resnet
    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **options)
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, 5)
    return model


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def train(model, images, labels, epochs, lr, frozen_batchnorm=False):
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)
    model.train()
    if frozen_batchnorm:  # after every model.train(), which also sets BatchNorm to training mode
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def prepare(model):
    """Gives the model a new head, and freezes the stem and the first two stages."""
    model.fc = nn.Linear(model.fc.in_features, 5)
    for part in (model.conv1, model.bn1, model.layer1, model.layer2):
        part.requires_grad_(False)


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


torch.manual_seed(0)
images, labels, *_ = digits(0)
pretrained = resnet_fused.convert(small_resnet())
train(pretrained, images, labels, epochs=2, lr=0.02)

# The same weights with FrozenBatchNorm2d: its state_dict has the names of BatchNorm2d.
frozen = small_resnet(norm_layer=torchvision.ops.FrozenBatchNorm2d)
frozen.load_state_dict(pretrained.state_dict())
resnet_fused.convert(frozen)

images, labels, test_images, test_labels = digits(5)
for name, model in (("BatchNorm2d in eval mode", pretrained), ("FrozenBatchNorm2d", frozen)):
    prepare(model)
    statistics_before, before = statistics(model), accuracy(model, test_images, test_labels)
    train(model, images, labels, epochs=3, lr=0.02, frozen_batchnorm=True)
    # train() has left the model in the mode that it trains in.
    explanation = resnet_fused.explain(model, images[:32])
    after = accuracy(model, test_images, test_labels)
    print(f"{name}\n{explanation}")
    print(f"accuracy {before:.1%} before, {after:.1%} after")
    unchanged = all(torch.equal(statistics_before[key], value) for key, value in statistics(model).items())
    print(f"running statistics {'unchanged' if unchanged else 'changed'}\n")
