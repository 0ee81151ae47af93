"""register_block: a wrong spec is refused with a sentence, and so is what cannot be registered."""

import pytest
import torch
import torch.nn.functional as F
from registered_blocks import conv
from support import randomise
from torch import nn

import resnet_fused
from resnet_fused import BlockSpec, modules, reference
from resnet_fused.chain.spec import IDENTITY
from resnet_fused.recognise import registered


@pytest.fixture(autouse=True)
def _clear():
    registered._registered.clear()
    yield
    registered._registered.clear()


class Base(nn.Module):
    """Matches ``RIGHT``; the classes below differ from it in one thing."""

    def __init__(self, planes=8):
        super().__init__()
        self.conv_a, self.norm_a = conv(8, planes), nn.BatchNorm2d(planes)
        self.conv_b, self.norm_b = conv(planes, planes), nn.BatchNorm2d(planes)
        self.proj = nn.Sequential(conv(8, planes, 1), nn.BatchNorm2d(planes))

    def main(self, x):
        return self.norm_b(self.conv_b(F.relu(self.norm_a(self.conv_a(x)))))

    def forward(self, x):
        return F.relu(self.main(x) + self.proj(x))


RIGHT = BlockSpec(("conv_a", "conv_b"), (None, "norm_a", "norm_b"), relus=(), shortcut="proj")


class ReLUBeforeAddition(Base):
    def forward(self, x):
        return F.relu(self.main(x)) + self.proj(x)


class NoFinalReLU(Base):
    def forward(self, x):
        return self.main(x) + self.proj(x)


class NoInnerReLU(Base):
    def forward(self, x):
        return F.relu(self.norm_b(self.conv_b(self.norm_a(self.conv_a(x)))) + self.proj(x))


class SwapsNorms(Base):
    def forward(self, x):
        return F.relu(self.norm_a(self.conv_b(F.relu(self.norm_b(self.conv_a(x))))) + self.proj(x))


class ScalesShortcut(Base):
    def forward(self, x):
        return F.relu(self.main(x) + 0.5 * self.proj(x))


class AddsInput(Base):
    def forward(self, x):
        return F.relu(self.main(x) + x)


class DropsOut(Base):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.3, self.training)


class DropsPath(Base):
    def forward(self, x):
        keep = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) if self.training else 1.0
        return F.relu(self.main(x) * keep + self.proj(x))


class StridesInForward(Base):
    def main(self, x):
        return self.norm_b(F.conv2d(F.relu(self.norm_a(self.conv_a(x))), self.conv_b.weight, None, 2, 1))

    def forward(self, x):
        return F.relu(self.main(x) + self.proj(x)[:, :, ::2, ::2])


class PadsInForward(Base):
    def main(self, x):
        return self.norm_b(F.conv2d(F.relu(self.norm_a(self.conv_a(x))), self.conv_b.weight, None, 1, 0))

    def forward(self, x):
        return F.relu(self.main(x) + self.proj(x)[:, :, 1:-1, 1:-1])


class DilatesInForward(Base):
    def main(self, x):
        return self.norm_b(F.conv2d(F.relu(self.norm_a(self.conv_a(x))), self.conv_b.weight, None, 1, 2, 2))


class KeepsStatistics(Base):
    def main(self, x):
        y = F.relu(self.norm_a(self.conv_a(x)))
        norm = self.norm_b
        mean, var = (None, None) if self.training else (norm.running_mean, norm.running_var)
        return F.batch_norm(self.conv_b(y), mean, var, norm.weight, norm.bias, self.training, 0.1, norm.eps)


class UsesOtherEps(Base):
    def main(self, x):
        norm = self.norm_b
        y = self.conv_b(F.relu(self.norm_a(self.conv_a(x))))
        mean, var = norm.running_mean, norm.running_var
        return F.batch_norm(y, mean, var, norm.weight, norm.bias, self.training, norm.momentum, 1e-3)


class DetachesShortcut(Base):
    def forward(self, x):
        return F.relu(self.main(x) + self.proj(x.detach()))


class WritesInput(Base):
    def forward(self, x):
        y = super().forward(x)
        x.data.add_(1)
        return y


class ReturnsPair(Base):
    def forward(self, x):
        return super().forward(x), x


class Raises(Base):
    def forward(self, x):
        raise ValueError("no size is right")


class ProjectsToStride2(Base):
    def __init__(self):
        super().__init__()
        self.proj = conv(8, 8, 1, 2)

    def forward(self, x):
        return F.relu(self.main(x) + self.proj(x)[:, :, :1, :1])


DIFFERS = r"its spec does not match its forward: in {} mode, {} differs by \S+ \(relative norm of the difference\)"
IN_EVAL = DIFFERS.format("eval", "the output")
IN_TRAINING = DIFFERS.format("training", "the output")
NO_SUCH_CONV = r"conv_x is None, not a torch\.nn\.Conv2d module"
UNNAMED = r"proj is torch\.nn\.Sequential, which the spec does not name"
WRONG = [  # class, spec, reason
    (ReLUBeforeAddition, RIGHT, IN_EVAL),
    (NoFinalReLU, RIGHT, IN_EVAL),
    (NoInnerReLU, RIGHT, IN_EVAL),
    (SwapsNorms, RIGHT, IN_EVAL),
    (ScalesShortcut, RIGHT, IN_EVAL),
    (AddsInput, RIGHT, IN_EVAL),
    (DropsOut, RIGHT, r".* in training mode, it draws random numbers"),
    (DropsPath, RIGHT, r".* in training mode, it draws random numbers"),
    (
        StridesInForward,
        RIGHT,
        r".* in eval mode, the output is a tensor of shape \[2, 8, 5, 4\], but the spec gives .*",
    ),
    (PadsInForward, RIGHT, r".* in eval mode, the output is .* shape \[2, 8, 7, 6\], .* shape \[2, 8, 9, 8\]"),
    (DilatesInForward, RIGHT, IN_EVAL),
    (KeepsStatistics, RIGHT, DIFFERS.format("training", "norm_b.running_mean")),
    (UsesOtherEps, RIGHT, IN_EVAL),
    (DetachesShortcut, RIGHT, DIFFERS.format("eval", "the gradient of the input")),
    (WritesInput, RIGHT, DIFFERS.format("eval", "the input after the call")),
    (ReturnsPair, RIGHT, r".* the output is a tuple, but the spec gives a tensor of shape \[2, 8, 9, 8\]"),
    (Raises, RIGHT, r".* it raises ValueError for an input of shape \[2, 8, 9, 8\]: no size is right"),
    (ProjectsToStride2, RIGHT, r".* the fused block runs eagerly: the shortcut has another shape than \[2, 8, 9, 8\]"),
    (Base, RIGHT._replace(relu=False), IN_EVAL),
    (Base, RIGHT._replace(norms=(None, "norm_b", "norm_a")), IN_EVAL),
    (Base, RIGHT._replace(norms=("norm_a", "norm_b", None)), IN_EVAL),
    (Base, RIGHT._replace(convs=("conv_b", "conv_a")), IN_EVAL),
    (Base, RIGHT._replace(shortcut=None), UNNAMED),
    (Base, RIGHT._replace(shortcut=IDENTITY), UNNAMED),
    (Base, RIGHT._replace(convs=("conv_x", "conv_b")), NO_SUCH_CONV),
    (Base, lambda block: RIGHT._replace(convs=("conv_x", "conv_b")), NO_SUCH_CONV),
    (Base, RIGHT._replace(convs=("norm_a", "conv_b")), r"norm_a is torch\.nn\.BatchNorm2d, not torch\.nn\.Conv2d"),
    (Base, RIGHT._replace(norms=(None, "norm_x", "norm_b")), r"norm_x is None, not a torch\.nn\.BatchNorm2d module"),
    (Base, RIGHT._replace(relus=("relu_x",)), r"relu_x is None, not a torch\.nn\.ReLU module"),
    (Base, RIGHT._replace(shortcut="proj_x"), r"it has no attribute proj_x"),
]


@pytest.mark.parametrize(
    ("kind", "spec", "reason"), WRONG, ids=[f"{i}-{kind.__name__}" for i, (kind, *_) in enumerate(WRONG)]
)
def test_wrong_specs_are_refused_with_a_sentence(kind, spec, reason):
    resnet_fused.register_block(kind, spec)
    block = randomise(kind())
    with pytest.raises(
        ValueError, match=rf"strict=True, and these modules cannot be converted:\n  \(root\) \(\S+\): {reason}$"
    ):
        resnet_fused.convert(block, strict=True)
    resnet_fused.convert(block)
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert (entry.kind, entry.status) == (kind.__name__, "refused")


def test_the_right_spec_of_the_same_block_converts():
    resnet_fused.register_block(Base, RIGHT)
    assert isinstance(resnet_fused.convert(randomise(Base()), strict=True), modules.FusedBlock)


def test_one_wrong_block_does_not_stop_the_others():
    class Scaled(Base):
        scale = 1.0

        def forward(self, x):
            return F.relu(self.main(x) * self.scale + self.proj(x))

    resnet_fused.register_block(Scaled, RIGHT)
    model = nn.Sequential(Scaled(), Scaled(), Scaled())
    model[1].scale = 0.5
    resnet_fused.convert(model)
    assert [isinstance(block, modules.FusedBlock) for block in model] == [True, False, True]
    assert resnet_fused.report(model)["1"].reason.startswith("its spec does not match its forward: in eval mode")


@pytest.mark.parametrize("value", [nn.ReLU(), "BasicBlock", int, None], ids=str)
def test_what_is_not_a_class_of_modules_is_refused(value):
    with pytest.raises(TypeError, match=r"register_block expects a class derived from torch\.nn\.Module, but got "):
        resnet_fused.register_block(value, RIGHT)
    assert not registered._registered


@pytest.mark.parametrize("spec", [None, ("conv1", "conv2"), {"convs": ("conv1",)}], ids=str)
def test_what_is_not_a_spec_is_refused(spec):
    with pytest.raises(TypeError, match="register_block expects a BlockSpec or a function that returns one, but got "):
        resnet_fused.register_block(Base, spec)
    assert not registered._registered


@pytest.mark.parametrize(
    ("convs", "norms"), [(("conv1",), ("bn1",)), (("conv1",), (None, "bn1", "bn2")), ((), ("bn1",)), ((), ())]
)
def test_a_wrong_number_of_norms_is_refused(convs, norms):
    with pytest.raises(ValueError, match=r"has convs \(.*\) and norms \(.*\); tuples of names expected, a norm"):
        resnet_fused.register_block(Base, BlockSpec(convs, norms))
    assert not registered._registered


KNOWN = {
    reference.BasicBlock: "resnet_fused.reference.*BasicBlock is already known as a basic block",
    type("Derived", (reference.Bottleneck,), {}): "Derived is already known as a bottleneck",
    modules.FusedBasicBlock: "FusedBasicBlock is already known as a basic block",
    resnet_fused.models.ResNet: "ResNet is already known as a stem",
    type("Derived", (modules.FusedPreActBlock,), {}): "Derived is already known",
}


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_known_classes_are_refused(kind):
    with pytest.raises(ValueError, match=KNOWN[kind]):
        resnet_fused.register_block(kind, RIGHT)
    assert not registered._registered


def test_a_class_is_registered_once():
    class Derived(Base):
        pass

    resnet_fused.register_block(Base, RIGHT)
    fused = type(resnet_fused.convert(Base(), strict=True))
    for kind in (Base, Derived, fused):
        with pytest.raises(ValueError, match=r"is already known as a Base$"):
            resnet_fused.register_block(kind, RIGHT)
    assert list(registered._registered) == [Base]


USED = ["recompute", "fused_training", "fused_forward", "outputs_channels_last"]
USED += ["_kernel_weights"]


@pytest.mark.parametrize("name", USED)
def test_classes_with_attributes_of_fused_blocks_are_refused(name):
    kind = type("Taken", (Base,), {name: lambda self: None})
    with pytest.raises(ValueError, match=f"Taken defines {name}, which fused blocks use; rename it"):
        resnet_fused.register_block(kind, RIGHT)
    assert not registered._registered
