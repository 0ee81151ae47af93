"""A ``torch.fx`` tracer that keeps fused blocks."""

import torch.fx
from torch import nn

from .modules import FusedBlock


class Tracer(torch.fx.Tracer):
    """Traces a converted model with its fused blocks as leaf modules.

    >>> import resnet_fused, torch
    >>> model = resnet_fused.convert(resnet_fused.models.small_resnet())
    >>> traced = torch.fx.GraphModule(model, resnet_fused.Tracer().trace(model))
    >>> [node.target for node in traced.graph.nodes if "layer" in str(node.target)]
    ['layer1.0', 'layer2.0']

    ``torch.fx.symbolic_trace`` traces into the blocks instead, so that its graph has the eager layers.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FusedBlock) or super().is_leaf_module(m, module_qualified_name)
