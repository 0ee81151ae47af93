"""Converted models can be copied, saved, moved, trained, compiled, exported and shared by threads."""

import concurrent.futures
import copy
import functools
import gc
import io
import pickle
import weakref

import pytest
import torch
from criterion import assert_close
from support import needs_compiler, randomise, truth
from torch import nn
from training import eager_twin

import resnet_fused
from resnet_fused import models, ops

# Many outputs make the largest error meaningful; over only ten, eager's may be small by chance.
CLASSES = 500


@pytest.fixture(params=[models.small_resnet, models.small_preact_resnet], ids=lambda build: build.__name__)
def model(request, device):
    return resnet_fused.convert(randomise(request.param(CLASSES))).eval().to(device)


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 12, 12, device=device)


def classes(model):
    return [type(m) for m in model.modules()]


def assert_matches_eager(model, x, call=None):
    """Compares the fused path of ``model`` (or ``call``, made from it) with its current eager twin."""
    twin = eager_twin(model)
    with torch.no_grad():
        actual = model(x) if call is None else call(x)
        assert_close(actual, twin(x), truth(twin, x))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_fused_independent_and_revertible(model, x, copied):
    with torch.no_grad():
        expected = model(x)
        other = copied(model)
        assert classes(other) == classes(model)
        assert torch.equal(other(x), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(model(x), expected)
        assert not torch.equal(other(x), expected)
    assert_matches_eager(other, x)
    assert not any(type(m).__name__.startswith("Fused") for m in resnet_fused.revert(other).modules())


def test_a_state_dict_saves_as_weights_only(model, x):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = eager_twin(model)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(resnet_fused.convert(fresh)(x), model(x))


def step(model, x):
    optimiser = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    model(x).square().sum().backward()
    optimiser.step()
    return model


def fused_adam_step(model, x):
    optimiser = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    model(x).square().sum().backward()
    optimiser.step()
    return model


def load(model, x):
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def load_assigning(model, x):
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


@torch.no_grad()
def edit_in_place(model, x):
    for parameter in model.parameters():
        parameter.mul_(1.5)
    return model


def edit_data(model, x):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    return model


def exchange_data(model, x):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5
    return model


def edit_statistics(model, x):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(0.3)
            module.running_var.mul_(1.5)
            module.eps = 0.1
    return model


def exchange_a_module(model, x):
    old = model.layer1[0].conv1
    model.layer1[0].conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1).to(old.weight.device)
    return model


def round_trip(model, x):
    return model.to(torch.bfloat16).to(torch.float32)


def train_a_little(model, x):
    model.train()
    step(model, x)
    return model.eval()


def reformat(model, x):
    return model.to(memory_format=torch.channels_last)


CHANGES = [
    step,
    fused_adam_step,
    load,
    load_assigning,
    edit_in_place,
    edit_data,
    exchange_data,
    edit_statistics,
    exchange_a_module,
    round_trip,
    train_a_little,
    reformat,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_by_the_next_call(model, x, change):
    with torch.no_grad():
        before = model(x)
        model(x)
    model = change(model, x)
    assert_matches_eager(model, x)
    if change is not reformat:
        with torch.no_grad():
            assert not torch.equal(model(x), before)


@pytest.mark.parametrize("change", [step, load, edit_in_place, edit_statistics, train_a_little, round_trip])
def test_changes_are_seen_by_compiled_models(x, device, change):
    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).eval().to(device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
    change(model, x)
    assert_matches_eager(model, x, compiled)


def test_a_model_made_in_inference_mode(x, device):
    with torch.inference_mode():
        model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).eval().to(device)
        first = model(x)
        for parameter in model.parameters():
            parameter.mul_(2)
        second = model(x)
        twin = resnet_fused.revert(model)
        assert not torch.equal(first, second)
        assert_close(second, twin(x), twin.double()(x.double()))


def test_packed_weights_are_freed_with_their_block(x, device):
    gc.collect()
    before = ops.packed_bytes()
    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).eval().to(device)
    with torch.no_grad():
        model(x)
        resnet_fused.revert(model)
        assert ops.packed_bytes() == before, "revert"
        resnet_fused.convert(model)(x)
        model.double()
        assert ops.packed_bytes() == before, "moved"
        model.float()(x)
        model.load_state_dict(model.state_dict(), assign=True)
        assert ops.packed_bytes() == before, "loaded"
        model(x)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert ops.packed_bytes() == before, "deleted"


def test_deleting_a_block_while_tracing_adds_no_nodes(device, recwarn):
    from torch.fx.experimental.proxy_tensor import make_fx

    blocks = [resnet_fused.FusedBasicBlock(8, 8).eval().to(device)]
    with torch.no_grad():
        blocks[0](torch.randn(1, 8, 8, 8, device=device))  # packs the weights

    def function(y):
        blocks.clear()
        gc.collect()
        return y + 1

    graph = make_fx(function, tracing_mode="fake")(torch.randn(1, device=device))
    assert not blocks
    assert "storage_ended" not in graph.code
    assert not recwarn.list, "an exception in a callback is a warning"


def test_threads_share_a_model(model, x):
    inputs = [torch.randn(2, 3, 12 + 2 * i, 12, device=x.device) for i in range(8)]
    with torch.no_grad():
        expected = [model(each) for each in inputs]
        model.to(torch.float64).to(torch.float32)  # nothing is packed yet: the threads race to pack

    def work(i):
        with torch.no_grad():
            return [model(inputs[i]) for _ in range(10)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, results in enumerate(pool.map(work, range(8))):
            assert all(torch.equal(result, expected[i]) for result in results)


def targets(graph):
    return [str(node.target) for node in graph.nodes if "resnet_fused" in str(node.target)]


def fused_ops(model):
    """Returns the number of calls of the fused model.

    Each block and each end of the network makes its own calls; an identity BasicBlock makes one. On CUDA a
    pre-activated convolution normalises its input in the prologue, without a call before it.
    """
    if type(model).__name__ == "FusedCifarResNet":
        return 4
    return 6 if next(model.parameters()).is_cuda else 8


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_the_ops_into_one_graph(model, x, dynamic):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    assert_matches_eager(model, x, compiled)
    assert [len(targets(g.graph)) for g in graphs] == [fused_ops(model)]
    with torch.no_grad():
        compiled(torch.randn(3, 3, 14, 14, device=x.device))
    assert len(graphs) == (1 if dynamic else 2)


@needs_compiler
def test_inductor_matches_eager(model, x):
    compiled = torch.compile(model, fullgraph=True)
    assert_matches_eager(model, x, compiled)
    with torch.autocast(x.device.type, torch.bfloat16), torch.no_grad():
        assert compiled(x).dtype is torch.bfloat16


def test_compiled_training_matches_eager(model, x):
    model.train()
    twin = eager_twin(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for network in (compiled, twin):
        network(x).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("strict", [False, True])
def test_export_contains_the_ops(model, x, strict):
    with torch.no_grad():
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: batch},))
        assert len(targets(program.graph)) == fused_ops(model)
        larger = torch.cat([x, x, x])
        torch.testing.assert_close(program.module()(larger), model(larger))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


def test_convert_after_compile_of_a_function_is_seen(x, device):
    model = randomise(models.small_resnet(CLASSES)).eval().to(device)
    graphs = []

    def backend(graph, _):
        graphs.append(len(targets(graph.graph)))
        return graph.forward

    compiled = torch.compile(lambda x: model(x), backend=backend)
    with torch.no_grad():
        compiled(x)
        resnet_fused.convert(model)
        compiled(x)
    assert graphs == [0, fused_ops(model)]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_convert_works_before_ddp_and_is_refused_after(process_group):
    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES)))
    twin = copy.deepcopy(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(2, 3, 12, 12)
    for network in (wrapped, twin):
        network(x).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    wrapped.eval()
    assert_matches_eager(model, x, wrapped)
    with pytest.raises(ValueError, match="the model is wrapped by DistributedDataParallel; convert the bare model"):
        resnet_fused.convert(wrapped)
    bare = models.small_resnet()
    twice = nn.Sequential(nn.parallel.DistributedDataParallel(models.small_resnet()), bare)
    report = resnet_fused.report(resnet_fused.convert(twice))
    assert report["0"].reason.startswith("it is wrapped by DistributedDataParallel")
    assert type(bare) is not models.CifarResNet, "what is beside a wrapped part converts"
    assert type(twice[0].module) is models.CifarResNet


def test_fsdp_models_run_and_convert_refuses_them(process_group):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    from torch.distributed.device_mesh import init_device_mesh

    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = model(x)
    fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        changed = model(x)
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(changed, model(x).detach(), msg="eager, with gradients")
    with pytest.raises(ValueError, match="wrapped by FSDP"):
        resnet_fused.convert(model)
    assert {(e.status, e.reason) for e in resnet_fused.report(model).values()} == {("converted", "")}


def test_data_parallel_replicas_match_their_block(x):
    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).eval()
    block = model.layer1[0]
    replica = block._replicate_for_data_parallel()
    for name, child in block._modules.items():
        replica._modules[name] = child
    y = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        assert torch.equal(replica(y), block(y))


def test_checkpointed_model_trains(x, device):
    model = resnet_fused.convert(randomise(models.small_resnet(CLASSES))).to(device)
    plain = copy.deepcopy(model)
    checkpointed = functools.partial(torch.utils.checkpoint.checkpoint, model, use_reentrant=False)
    gradients = []
    for module, call in ((plain, plain), (model, checkpointed)):
        inputs = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(call(inputs).square().sum(), [inputs, *module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_meta_device_model_converts_and_fills(x, device):
    with torch.device("meta"):
        model = resnet_fused.convert(models.small_resnet(CLASSES)).eval()
    model.to_empty(device=device)
    model.load_state_dict(randomise(models.small_resnet(CLASSES)).state_dict())
    assert_matches_eager(model, x)
