"""Whatever changes after a hand-written block was converted, it computes what eager would: fused again, or eagerly."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from handwritten_blocks import Basic, ConvBNReLU, Flagged, Helpers, NamesOfNorms, SharedReLU, TwoConvs, Units, part
from handwritten_changes import CHANGES, HARMLESS, sequential
from handwritten_parity import MODES, PROJECTED, channels_of, compare, how, input_of, pair, projected, runs_fused, step
from handwritten_shortcuts import Lambda
from handwritten_traps import DropsOut, HalvesInTraining
from support import ROOT, ops_of, randomise, run_python
from torch import nn

import resnet_fused


def changed(make, change):
    torch.manual_seed(0)
    block = randomise(make())
    torch.manual_seed(1)
    change(block)
    return block.double()


@pytest.mark.parametrize("name", [*CHANGES, *HARMLESS])
def test_change_is_seen(name):
    make, change = (CHANGES | HARMLESS)[name]
    eager, fused = pair(make)
    for block in (eager, fused):
        torch.manual_seed(1)
        change(block)
        block.double()
    for _ in range(2):  # what is remembered of the change is right, too
        compare(eager, fused)


@pytest.mark.parametrize("name", CHANGES)
def test_change_shows(name):
    """Else :func:`test_change_is_seen` would prove nothing."""
    make, change = CHANGES[name]
    blocks = changed(make, lambda block: None), changed(make, change)
    x = input_of(channels_of(blocks[0]))
    for mode in MODES.values():
        before, after = (step(block, x, mode) for block in blocks)
        common = before.keys() & after.keys()
        same = all(before[k].shape == after[k].shape and torch.allclose(before[k], after[k]) for k in common)
        if not same or before.keys() != after.keys():
            return
    pytest.fail("eager computes the same")


@pytest.mark.parametrize("name", [*CHANGES, *HARMLESS])
def test_change_before_conversion(name):
    eager, fused = (changed(*(CHANGES | HARMLESS)[name]) for _ in range(2))
    compare(eager, resnet_fused.convert(fused))


FLAGS = [("skip", False), ("use_relu", False), ("scale", 0.5), ("scale", 2)]


@pytest.mark.parametrize(("flag", "value"), FLAGS)
def test_runs_fused_once_its_flag_is_back(flag, value):
    eager, fused = pair(Flagged)
    for _ in range(2):
        original = getattr(eager, flag)
        for each in (value, original):
            setattr(eager, flag, each)
            setattr(fused, flag, each)
            compare(eager, fused)
        assert runs_fused(fused)


@pytest.mark.parametrize("part_of_block", ["conv1", "bn2", "relu", ""])
def test_runs_fused_once_a_hook_is_gone(part_of_block):
    eager, fused = pair(SharedReLU)
    module = fused.get_submodule(part_of_block)
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    fused.eval()(input_of())
    assert seen
    handle.remove()
    assert runs_fused(fused)
    compare(eager, fused)


@pytest.mark.parametrize("path", ["conv1", "bn1", "relu"])
def test_runs_fused_once_a_layer_is_back(path):
    eager, fused = pair(SharedReLU)
    original = fused.get_submodule(path)
    for block in (eager, fused):
        setattr(block, path, nn.Identity())
    compare(eager, fused)
    setattr(eager, path, copy.deepcopy(original))
    setattr(fused, path, original)
    compare(eager, fused)
    assert runs_fused(fused)


def norms_in_eval(block):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


MIXTURES = {
    "norms-in-eval": norms_in_eval,
    "one-norm-in-eval": lambda block: block.bn1.eval(),
    "norm-trains": lambda block: block.bn2.train(),
    "only-block-trains": lambda block: (block.eval(), setattr(block, "training", True)),
    "only-block-in-eval": lambda block: (block.train(), setattr(block, "training", False)),
    "relu-in-eval": lambda block: block.relu.eval(),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("make", [part(SharedReLU, 6, 8, 2), Flagged, Helpers], ids=["projected", "flags", "helpers"])
def test_mixed_modes_equal_eager(make, name):
    eager, fused = pair(make)
    compare(eager, fused, prepare=MIXTURES[name])
    compare(eager, fused)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("make", [HalvesInTraining, DropsOut])
def test_modes_of_traps(make, name):
    eager = randomise(make()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    compare(eager, fused)
    compare(eager, fused, prepare=MIXTURES[name])


def test_norm_eval_trains_fused():
    class KeepsNormsInEval(SharedReLU):
        def train(self, mode=True):
            super().train(mode)
            norms_in_eval(self)
            return self

    _, fused = pair(KeepsNormsInEval)
    assert how(fused, input_of(), MODES["train"]) == "training"


def test_mode_changes_between_calls():
    eager = randomise(HalvesInTraining()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager), strict=True)
    for name in ("eval", "train", "eval", "train", "eval-grad", "eval"):
        compare(eager, fused, modes=[MODES[name]])
        assert (how(fused, input_of(), MODES[name]) == "eager") == (name == "train")


class Toggled(TwoConvs):
    skip = True

    def forward(self, x):
        return self.relu(self.branch(x) + x) if self.skip else self.relu(self.branch(x))


def twice(original):
    return lambda self, x: 2 * original(self, x)


PATCHES = {
    "forward": (Basic, Basic, "forward", twice(Basic.forward)),
    "helper": (Helpers, Helpers, "main", twice(Helpers.main)),
    "inherited-helper": (SharedReLU, TwoConvs, "branch", twice(TwoConvs.branch)),
    "helper-defined-in-subclass": (SharedReLU, SharedReLU, "branch", twice(TwoConvs.branch)),
    "forward-of-unit": (Units, ConvBNReLU, "forward", twice(ConvBNReLU.forward)),
    "helper-of-unit": (Units, ConvBNReLU, "normalise", twice(ConvBNReLU.normalise)),
    "property": (NamesOfNorms, NamesOfNorms, "norm1", property(lambda self: self.bn2)),
    "attribute-of-class": (Toggled, Toggled, "skip", False),
    "call-of-unit": (Units, ConvBNReLU, "__call__", twice(ConvBNReLU.__call__)),
    "call-of-block": (Basic, Basic, "__call__", twice(Basic.__call__)),
    "relu": (Basic, F, "relu", lambda x, inplace=False: F.elu(x)),
    "forward-of-relu": (SharedReLU, nn.ReLU, "forward", lambda self, x: F.elu(x)),
    "forward-of-norm": (Basic, nn.BatchNorm2d, "forward", twice(nn.BatchNorm2d.forward)),
    "forward-of-sequential": (sequential, nn.Sequential, "forward", twice(nn.Sequential.forward)),
}


@pytest.mark.parametrize("name", PATCHES)
def test_class_patched_after(name, monkeypatch):
    make, owner, attribute, value = PATCHES[name]
    eager, fused = pair(make)
    x = input_of()
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, value, raising=False)
        compare(eager, fused)
        patched = step(eager, x, MODES["eval"])["output"]
    assert not torch.allclose(patched, step(eager, x, MODES["eval"])["output"]), "the patch shows"
    compare(eager, fused)
    assert runs_fused(fused)


@pytest.mark.parametrize("name", PATCHES)
def test_class_patched_before(name, monkeypatch):
    make, owner, attribute, value = PATCHES[name]
    eager = randomise(make()).double()
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, value, raising=False)
        fused = resnet_fused.convert(copy.deepcopy(eager))
        compare(eager, fused)
    compare(eager, fused)


def test_lambda_that_refers_to_its_block():
    def make():
        block = sequential()
        block.shortcut = Lambda(lambda x: block.body[3](x))
        return block

    eager = randomise(make()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    compare(eager, fused, modes=[MODES["eval"]])
    with torch.no_grad():
        eager.body[3].weight.mul_(2)  # which the lambda of the copy calls, too
    fused.body.load_state_dict(eager.body.state_dict())
    compare(eager, fused, modes=[MODES["eval"]])


def test_class_that_registers_its_subclasses():
    names = []

    class Registered(Basic):
        def __init_subclass__(cls, *, key, **kwargs):
            names.append(key)

    eager = randomise(Registered()).double()
    compare(eager, resnet_fused.convert(copy.deepcopy(eager)))


def test_class_with_names_of_fused_blocks():
    class Taken(Basic):
        _spec, recompute = "mine", "also mine"

        def forget_packed(self):
            return "still mine"

    eager = randomise(Taken()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    compare(eager, fused)
    assert (fused._spec, fused.recompute, fused.forget_packed()) == ("mine", "also mine", "still mine")


def test_attribute_that_has_no_truth_value():
    eager, fused = pair(Basic)
    for block in (eager, fused):
        block.note = torch.ones(3)
    compare(eager, fused)


def test_error_of_a_missing_layer_is_eagers():
    _, fused = pair(Basic)
    del fused.bn2
    with pytest.raises(AttributeError, match="bn2"):
        fused(input_of())


def test_input_of_other_channels_raises():
    _, fused = pair(Basic)
    with pytest.raises(RuntimeError):
        fused(input_of(7))


def scaled(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.5)


def without_skip(block):
    block.skip = False


def with_new_layers(block):
    torch.manual_seed(7)
    block.bn1, block.relu = nn.BatchNorm2d(6, eps=0.1).double(), nn.LeakyReLU()


COPIED = [(make, scaled) for make in PROJECTED.values()] + [(Flagged, without_skip), (SharedReLU, with_new_layers)]
ids = [*(f"{name}-scaled" for name in PROJECTED), "flag", "layers"]


@pytest.mark.parametrize("original", [False, True], ids=["copy", "original"])
@pytest.mark.parametrize(("make", "change"), COPIED, ids=ids)
def test_a_deep_copy_is_independent(make, change, original):
    eager, fused = pair(make)
    eager_copy, fused_copy = copy.deepcopy(eager), copy.deepcopy(fused)
    assert type(fused_copy) is type(fused)
    for block in (eager, fused) if original else (eager_copy, fused_copy):
        change(block)
    compare(eager, fused)
    compare(eager_copy, fused_copy)
    assert runs_fused(fused if not original else fused_copy)


def pickled(block):
    return pickle.loads(pickle.dumps(block))


def saved(block):
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [pickled, saved, copy.copy])
@projected
def test_copies_and_pickles_run_fused(make, copied):
    eager, fused = pair(make)
    other = copied(fused)
    assert type(other) is type(fused)
    assert runs_fused(other)
    compare(eager, other)
    assert type(resnet_fused.revert(other)) is type(eager)


def test_a_pickle_loads_in_another_process(tmp_path):
    block, x = resnet_fused.convert(randomise(Units()).eval(), strict=True), input_of(dtype=torch.float32)
    with torch.no_grad():
        torch.save((block, x, block(x)), tmp_path / "block.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[2])\n"
        "block, x, y = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad(): print(type(block).__name__, torch.equal(block(x), y))"
    )
    done = run_python("-c", code, tmp_path / "block.pt", ROOT / "tests")
    assert done.stdout.split() == ["FusedUnits", "True"], done.stderr


@projected
def test_states_pass_between_blocks(make):
    eager, fused = pair(make)
    scaled(fused)
    other = make().double()
    other.load_state_dict(fused.state_dict())
    compare(other, fused)
    fused.load_state_dict(eager.state_dict())
    compare(eager, fused)
    assert list(fused.state_dict()) == list(eager.state_dict())


@projected
def test_reverted_block_is_eager_again(make):
    eager, fused = pair(make)
    resnet_fused.revert(fused)
    assert type(fused) is type(eager)
    compare(eager, fused)
    x = input_of(dtype=torch.float64)
    assert not ops_of(fused.eval(), x)
