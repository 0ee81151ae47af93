"""Export and compile a converted model. Its kernels are torch ops.

python examples/compile_and_export.py
"""

import torch

import resnet_fused

model = resnet_fused.convert(resnet_fused.models.resnet18(num_classes=10).eval())
x = torch.randn(2, 3, 64, 64)

with torch.inference_mode():
    expected = model(x)

# Any batch size from 1 to 32. The graph has one op per convolution.
batch = torch.export.Dim("batch", min=1, max=32)
with torch.no_grad():
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
ops = [node.target for node in program.graph.nodes if node.op == "call_function"]
names = sorted({str(op) for op in ops if str(op).startswith("resnet_fused")})
print(f"exported: {len(ops)} calls, among them {', '.join(names)}")
with torch.inference_mode():
    torch.testing.assert_close(program.module()(x), expected)
    print("another batch:", tuple(program.module()(x[:1].repeat(5, 1, 1, 1)).shape))

# Convert first, then compile.
try:
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model)(x), expected)
    print("compiled: same output")
except torch._inductor.exc.InductorError as error:  # this machine has no C++ compiler
    print("not compiled:", str(error).splitlines()[0])
