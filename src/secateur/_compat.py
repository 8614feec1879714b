"""Import the private parts of PyTorch that Secateur uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.fx.config
from torch._C._functorch import is_batchedtensor as is_batched
from torch._export.utils import _compiling_state_context as said_to_be_exported
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module as lazy_graph_modules
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    SUPPORTED_NODES,
    register_constant,
    tree_any,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

__all__ = [
    "SUPPORTED_NODES",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "_BatchNorm",
    "is_batched",
    "lazy_graph_modules",
    "make_fx",
    "register_constant",
    "said_to_be_exported",
    "stack_traces",
    "tree_any",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
]


@contextmanager
def stack_traces(wanted: bool) -> Iterator[None]:
    """Choose whether the source line of each operator of a captured program is recorded."""
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = not wanted
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before
