"""Fixtures that every test may use."""

import os

import pytest
import torch
import torchvision_shim
from hypothesis import settings

torchvision_shim.install()

# The same examples on every run: a red test is a change's doing. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


# "": what the plan prefers
CPU_ENGINES = ["", "direct", "onednn", "composed"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=CPU_ENGINES, ids=lambda e: e or "preferred")
def engine(request, monkeypatch):
    """Leaves out every CPU engine that the plan prefers to this one."""
    if request.param:
        monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", request.param)
    return request.param


@pytest.fixture(scope="module")
def planted(request):
    """The kernels with one of the module's bugs, as its ``plant(bug)`` says. Those to be tested compile together."""
    import cuda_on_cpu

    of_module = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    wanted = [item.callspec.params["bug"] for item in of_module if "bug" in item.callspec.params]
    cuda_on_cpu.prepare([request.module.plant(bug) for bug in wanted])
    return lambda bug: cuda_on_cpu.load(*request.module.plant(bug))
