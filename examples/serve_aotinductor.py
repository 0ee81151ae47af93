"""Serve a converted model with AOTInductor: compile it to a package, load it and compare with eager.

AOTInductor calls resnet_fused's ops, which the serving process registers with ``import resnet_fused``. Without it,
loading fails: "Could not find schema for resnet_fused::conv_bn_act". The package holds the weights as they were:
after a change of the model, compile again. Needs g++; compiling takes half a minute, mostly g++.

python examples/serve_aotinductor.py
"""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from utils import compare

import resnet_fused

if shutil.which("g++") is None:
    raise SystemExit("This example needs g++, with which AOTInductor compiles.")

torch.manual_seed(0)
eager = resnet_fused.models.small_resnet().eval()
fused = resnet_fused.convert(copy.deepcopy(eager))
x = torch.randn(4, 3, 32, 32)

with torch.no_grad():
    batch = torch.export.Dim("batch", min=1, max=32)  # any batch size from 1 to 32
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: batch},))
names = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("resnet_fused")}
print("the package calls", ", ".join(sorted(names)))

with tempfile.TemporaryDirectory() as folder:
    package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/resnet.pt2")
    print(f"compiled {Path(package).name}, {Path(package).stat().st_size / 1e6:.1f} MB")

    # In the serving process: import resnet_fused, then
    served = torch._inductor.aoti_load_package(package)
    for size in (1, 4, 32):
        images = torch.randn(size, 3, 32, 32)
        with torch.inference_mode():
            exact = copy.deepcopy(eager).double()(images.double())
            compare(f"batch of {size}: served output", served(images), eager(images), exact)
