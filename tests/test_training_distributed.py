"""Several CPU processes: SyncBatchNorm equals one process with the whole batch; DDP and FSDP2 wrap fused blocks."""

import copy
import faulthandler
import multiprocessing
import os
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import is_trained, projection

import resnet_fused
from resnet_fused import modules
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = [
    pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        modules.FusedBasicBlock(6, 6),
        modules.FusedBottleneck(6, 3, 2, projection(6, 12, 2)),
        modules.FusedPreActBlock(12, 12),
    ).double()


def batch(n):
    return torch.randn(n, 6, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def loss_of(y, total):
    """Sums over the batch, so that the gradients of all processes add up to those of the whole batch."""
    direction = torch.linspace(-1, 1, y.shape[1:].numel(), dtype=y.dtype).view(y.shape[1:])
    return (y * direction).square().sum() / total


def worker(rank, world, path, checks):
    faulthandler.enable()  # prints a traceback if a signal kills the process
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    try:
        for check, args in checks:
            print(f"process {rank}: {check.__name__}{args}", flush=True)
            check(rank, world, *args)
    finally:
        torch.distributed.destroy_process_group()
    # Skips Python's finalisation, as a forked process does: a gloo thread that drops its last tensor meanwhile aborts
    # the process ("terminate called without an active exception", pytorch/pytorch#190489).
    sys.stdout.flush()
    os._exit(0)


SHARES = {
    "equal": lambda rank: 4,
    "uneven": lambda rank: 3 + 2 * rank,
    "empty": lambda rank: 5 * (rank == 0),  # except on the first process
}


def synchronised_is_the_whole_batch(rank, world, shares):
    sizes = [SHARES[shares](each) for each in range(world)]
    whole = resnet_fused.revert(network())
    everything = batch(sum(sizes)).requires_grad_()
    expected = whole(everything)
    loss_of(expected, 1).backward()

    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert type(model[0]) is modules.FusedBasicBlock
    x = everything.detach().split(sizes)[rank].clone().requires_grad_()
    y = model(x)
    assert is_trained(y)
    loss_of(y, 1).backward()
    torch.testing.assert_close(y, expected.split(sizes)[rank])
    torch.testing.assert_close(x.grad, everything.grad.split(sizes)[rank])
    for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.distributed.all_reduce(a.grad)
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, a), b in zip(model.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    with pytest.raises(RuntimeError, match=r"gradients of gradients .* SyncBatchNorm"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


def statistics_survive_a_large_mean(rank, world):
    x = 1000 + torch.randn(8 + rank, 5, 9, 9, generator=torch.Generator().manual_seed(rank))
    name = torch.distributed.group.WORLD.group_name
    from resnet_fused.chain.statistics import batch_statistics

    mean, var, count = batch_statistics(x, name)
    everything = [None] * world
    torch.distributed.all_gather_object(everything, x)
    exact = torch.cat(everything).double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)
    assert count == exact.numel() // 5
    empty = batch_statistics(x[:0] if rank else x, name)
    torch.testing.assert_close(
        empty[1].double(), everything[0].double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0
    )


def data_parallel(rank, world, synchronise, compiled):
    whole = resnet_fused.revert(network())
    model = network()
    wrapped = DistributedDataParallel(model)
    if synchronise:  # after wrapping: on the CPU, DDP refuses SyncBatchNorm, which fused blocks support
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    call = torch.compile(wrapped, backend="aot_eager") if compiled else wrapped
    optimisers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (wrapped, whole)]
    for _ in range(2):
        everything = batch(4 * world)
        loss_of(call(everything.split(4)[rank]), 4).backward()
        if synchronise:
            loss_of(whole(everything), 4 * world).backward()
        else:  # each process uses the statistics of its own share
            for i, share in enumerate(everything.split(4)):
                if i != rank:
                    backup = copy.deepcopy(whole.state_dict())
                loss_of(whole(share), 4 * world).backward()
                if i != rank:
                    with torch.no_grad():
                        for buffer, old in whole.named_buffers():
                            old.copy_(backup[buffer])
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    for (name, a), b in zip(model.state_dict().items(), whole.state_dict().values(), strict=True):
        if synchronise or rank == 0 or "running" not in name:  # DDP broadcasts rank 0's buffers before each forward
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def fully_sharded(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, whole = network(), DistributedDataParallel(resnet_fused.revert(network()))
    mesh = init_device_mesh("cpu", (world,))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, whole)]
    for _ in range(2):
        share = batch(4 * world).split(4)[rank]
        y = model(share)
        loss_of(y, 4).backward()
        loss_of(whole(share), 4).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.full_tensor(), b.detach(), msg=lambda m, name=name: f"{name}: {m}")


# All checks share their processes, because starting a process takes most of the time.
CHECKS = {
    2: [
        (synchronised_is_the_whole_batch, ("equal",)),
        (synchronised_is_the_whole_batch, ("uneven",)),
        (synchronised_is_the_whole_batch, ("empty",)),
        (statistics_survive_a_large_mean, ()),
        (data_parallel, (False, False)),
        (data_parallel, (True, False)),
        (data_parallel, (True, True)),
        (fully_sharded, ()),
    ],
    4: [(synchronised_is_the_whole_batch, ("uneven",)), (data_parallel, (True, False)), (fully_sharded, ())],
}


@pytest.mark.parametrize("world", CHECKS)
def test_distributed_checks_pass(tmp_path, world):
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch._dynamo"])  # imported once
    arguments = (world, str(tmp_path / "init"), CHECKS[world])
    torch.multiprocessing.start_processes(worker, arguments, nprocs=world, start_method="forkserver")
