"""Serve a converted model: from a CUDA graph on a GPU, by the CPU kernels without one.

A graph launches all kernels of the network at once. That helps small batches, where launching takes longer than
computing. Its input and output are fixed tensors: copy images in, replay, and read the output.

python examples/serve_cuda_graph.py
"""

import copy

import torch
from utils import compare

import resnet_fused


def captured(model, x):
    """Returns a function that replays ``model`` for inputs of the shape of ``x``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up: cuDNN chooses its algorithms, and new kernels are compared with eager
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(x)

    def serve(images):
        x.copy_(images)
        graph.replay()
        return output.clone()

    return serve


cuda = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
torch.manual_seed(0)
eager = resnet_fused.models.resnet18().eval().to(device, dtype, memory_format=torch.channels_last)
fused = resnet_fused.convert(copy.deepcopy(eager))


def images():
    return torch.randn(1, 3, 224, 224, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)


with torch.inference_mode():
    if cuda:
        print(f"serving from a CUDA graph on {torch.cuda.get_device_name()}")
        serve = captured(fused, images())
    else:
        print("no CUDA device: serving by the CPU kernels, without a graph")
        serve = resnet_fused.freeze(fused)  # the weights stay: do not check them on each call
    exact = copy.deepcopy(eager).double()
    for request in range(3):
        x = images()
        compare(f"request {request}", serve(x), eager(x), exact(x.double()))
