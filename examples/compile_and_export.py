"""Export and compile a converted model. Its kernels are torch ops, so both keep them.

python examples/compile_and_export.py
"""

import copy
import shutil

import torch
from utils import compare

import resnet_fused

torch.manual_seed(0)
eager = resnet_fused.models.resnet18(num_classes=10).eval()
model = resnet_fused.convert(copy.deepcopy(eager))
x = torch.randn(2, 3, 64, 64)
with torch.inference_mode():
    expected, exact = eager(x), copy.deepcopy(eager).double()(x.double())

# Any batch size from 1 to 32. The graph has one op per convolution.
with torch.no_grad():
    batch = torch.export.Dim("batch", min=1, max=32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
ops = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
print(f"exported: {len(ops)} calls, among them", ", ".join(sorted({op for op in ops if op.startswith("resnet_fused")})))
with torch.inference_mode():
    compare("exported model", program.module()(x), expected, exact)
    print("another batch:", tuple(program.module()(x[:1].repeat(5, 1, 1, 1)).shape))

# Convert first, then compile.
if shutil.which("g++") is None:
    raise SystemExit("not compiled: torch.compile needs g++ on the CPU")
with torch.inference_mode():
    compare("compiled model", torch.compile(model)(x), expected, exact)
