"""Train a ResNet of fused blocks: one process or many, with AMP, a cosine schedule and checkpoints that resume.

python examples/train.py                                     # scikit-learn's digits, a small network, seconds
python examples/train.py --data cifar10 --root DIR           # DIR/cifar-10-batches-py, as torchvision unpacks it
python examples/train.py --data folder --root DIR --model resnet50 --amp bfloat16 --batch 256 --epochs 90
torchrun --nproc-per-node 4 examples/train.py ...            # DDP; --sync-bn synchronises BatchNorm

Checkpoints contain only tensors and numbers. ``torch.load(file, weights_only=True)["model"]`` is a state_dict that the
eager network loads too.
"""

import argparse
import contextlib
import math
import os
from pathlib import Path

import torch
import torch.distributed.nn  # imported first: its default arguments keep an existing process group until exit
from rich.progress import track
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import resnet_fused

# ImageNet's statistics; CIFAR-10's are close.
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def digits():
    """Returns train set, test set, channels and classes of scikit-learn's digits: 1797 images of 8x8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1500], order[1500:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test]), 1, 10


class Cifar10(Dataset):
    """CIFAR-10 from ``cifar-10-batches-py``. Training images are randomly shifted by up to 4 pixels and mirrored."""

    def __init__(self, root, train):
        import pickle

        folder = Path(root) / "cifar-10-batches-py"
        names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]  # trusted
        self.images = torch.cat([torch.from_numpy(b[b"data"]).view(-1, 3, 32, 32) for b in batches])
        self.labels = [label for b in batches for label in b[b"labels"]]
        self.train = train

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = (self.images[i] / 255 - MEAN) / STD
        if self.train:
            top, left = torch.randint(9, (2,)).tolist()
            image = nn.functional.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image, self.labels[i]


def folder(root):
    """Returns ImageNet-like data in root/train and root/val, with a folder per class, through torchvision."""
    from torchvision import datasets, transforms

    end = [transforms.ToTensor(), transforms.Normalize(MEAN.flatten(), STD.flatten())]
    augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *end]
    center = [transforms.Resize(256), transforms.CenterCrop(224), *end]
    train = datasets.ImageFolder(Path(root) / "train", transforms.Compose(augment))
    test = datasets.ImageFolder(Path(root) / "val", transforms.Compose(center))
    return train, test, 3, len(train.classes)


def data_of(args):
    if args.data == "digits":
        return digits()
    if args.data == "cifar10":
        return Cifar10(args.root, True), Cifar10(args.root, False), 3, 10
    return folder(args.root)


def small(channels, classes):
    """Returns two basic blocks and a pre-activation block, for small images."""
    projection = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        resnet_fused.FusedBasicBlock(16, 16),
        resnet_fused.FusedBasicBlock(16, 32, 2, projection),
        resnet_fused.FusedPreActBlock(32, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def model_of(args, channels, classes):
    if args.model == "small":
        model = small(channels, classes)
    else:
        model = resnet_fused.convert(getattr(resnet_fused.models, args.model)(num_classes=classes))
    if args.recompute:
        for module in model.modules():
            if isinstance(module, resnet_fused.modules.FusedBlock):
                module.recompute = True
    return model.to(memory_format=torch.channels_last)


def learning_rate(step, steps, warmup):
    """Returns the factor of the learning rate: warm-up, then cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def accuracy(model, loader, device, autocast):
    """Returns the fraction of correct predictions over all processes."""
    model.eval()
    counts = torch.zeros(2, device=device)
    with torch.no_grad(), autocast():
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last)
            right = (model(images).argmax(1) == labels.to(device)).sum()
            counts += torch.stack([right, torch.tensor(len(labels), device=device)])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def save(path, model, optimiser, scheduler, scaler, epoch):
    """Writes a checkpoint atomically: after a crash, also of the machine, the file is the old or the new one."""
    parts = {"model": model, "optimiser": optimiser, "scheduler": scheduler, "scaler": scaler}
    aside = path.with_name(f".{path.name}.partial")  # with the suffix: run.a and run.b differ
    with aside.open("wb") as file:
        torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # fsync of the folder makes the rename durable
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def resume(path, model, optimiser, scheduler, scaler, device):
    """Loads a checkpoint and returns the next epoch."""
    state = torch.load(path, map_location=device, weights_only=True)
    parts = {"model": model, "optimiser": optimiser, "scheduler": scheduler, "scaler": scaler}
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["epoch"] + 1


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cifar10", "folder"), default="digits")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--model", default="small", help="small, or the name of a function in resnet_fused.models")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images per process and step")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--amp", choices=("none", "bfloat16", "float16"), default="none")
    parser.add_argument("--sync-bn", action="store_true", help="synchronise BatchNorm over all processes")
    parser.add_argument("--recompute", action="store_true", help="recompute 1x1 convolutions in backward: less memory")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="written after each epoch; resumed from if it exists")
    args = parser.parse_args(argv)
    if args.data != "digits" and args.root is None:
        parser.error(f"--data {args.data} needs --root")
    return args


def main(argv=None):
    """Trains and returns the test accuracy after the last epoch."""
    args = arguments(argv)
    many = "RANK" in os.environ  # set by torchrun
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    if many:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return run(args, device, many)
    finally:
        if many:
            torch.distributed.destroy_process_group()


def run(args, device, many):
    first = not many or torch.distributed.get_rank() == 0
    torch.manual_seed(0)  # the same weights in all processes
    train_set, test_set, channels, classes = data_of(args)
    model = model_of(args, channels, classes).to(device)
    network = DistributedDataParallel(model) if many else model
    if many and args.sync_bn:  # after wrapping, because on the CPU DDP refuses SyncBatchNorm
        nn.SyncBatchNorm.convert_sync_batchnorm(model)

    sampler = DistributedSampler(train_set, seed=0) if many else None
    options = {"num_workers": args.workers, "pin_memory": device.type == "cuda"}
    shuffled = torch.Generator()
    loader = DataLoader(
        train_set, args.batch, sampler=sampler, shuffle=not many, generator=shuffled, drop_last=True, **options
    )
    tests = DataLoader(
        test_set, args.batch, sampler=DistributedSampler(test_set, shuffle=False) if many else None, **options
    )

    decayed = [p for p in model.parameters() if p.dim() > 1]  # no weight decay for BatchNorm and biases
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True)
    steps = args.epochs * len(loader)
    factor = lambda step: learning_rate(step, steps, max(1, steps // 20))  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "float16")
    dtype = getattr(torch, args.amp, None)
    autocast = contextlib.nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype)

    start = 0
    if args.checkpoint is not None and args.checkpoint.exists():
        start = resume(args.checkpoint, model, optimiser, scheduler, scaler, device)
    if start > args.epochs:
        raise SystemExit(
            f"{args.checkpoint} has done {start} epochs and --epochs is {args.epochs}: give {start} or more, or "
            "another --checkpoint"
        )
    right = 0.0
    if start == args.epochs:
        right = accuracy(network, tests, device, autocast)
        if first:
            print(f"all {start} epochs were done before: test accuracy {100 * right:.1f} %")
    for epoch in range(start, args.epochs):
        network.train()
        shuffled.manual_seed(epoch)  # a resumed run sees the same order as an uninterrupted one
        if sampler is not None:
            sampler.set_epoch(epoch)
        seen, total = 0, 0.0
        for images, labels in track(loader, f"epoch {epoch + 1}/{args.epochs}", disable=not first, transient=True):
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            with autocast():
                loss = nn.functional.cross_entropy(network(images).float(), labels.to(device, non_blocking=True))
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            scheduler.step()
            seen, total = seen + 1, total + loss.detach()
        right = accuracy(network, tests, device, autocast)
        if first:
            print(f"epoch {epoch + 1}: loss {float(total) / max(1, seen):.3f}, test accuracy {100 * right:.1f} %")
            if args.checkpoint is not None:
                save(args.checkpoint, model, optimiser, scheduler, scaler, epoch)
    return right


if __name__ == "__main__":
    main()
