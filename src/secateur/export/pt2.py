"""Write ``.pt2`` files: programs of ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.export.program import Exportable, captured
from secateur.runtimes.metadata import ExportMetadata
from secateur.runtimes.pt2 import METADATA


def write_pt2(
    path: Path, exportable: Exportable, metadata: ExportMetadata, calibration: Sequence[Tensor] | None
) -> None:
    """Write a network as a program of PyTorch.

    Args:
        path: the file.
        exportable: the network.
        metadata: written into the archive as an extra file; says how weights are stored.
        calibration: must be ``None``.

    Raises:
        UsageError: int8 is requested.
        ExportError: the network cannot be captured.
    """
    if calibration is not None:
        raise UsageError("int8 is for onnx; PyTorch quantises by torchao, in memory")
    program = exportable.program()
    if metadata.weights != "float32":
        program = captured(_Rounded(exportable.model, getattr(torch, metadata.weights)), exportable.inputs)
    program.example_inputs = None  # they would be written into the file
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, path, extra_files={METADATA: metadata.to_json()})


class _Rounded(nn.Module):
    """A network whose parameters are kept in fewer bits and widened in each pass.

    Args:
        model: the network; not changed.
        dtype: type that its parameters are kept in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._network = (model,)  # in a tuple, so that its parameters are not registered here
        self._names = [name for name, item in model.named_parameters() if item.is_floating_point()]
        self._types = {name: model.get_parameter(name).dtype for name in self._names}
        self.kept = nn.ParameterList(
            nn.Parameter(model.get_parameter(name).detach().to(dtype), requires_grad=False)
            for name in self._names
        )
        for name, buffer in model.named_buffers():
            self.register_buffer(name.replace(".", "-"), buffer)

    def forward(self, *inputs: Tensor) -> object:
        """Run the network with its rounded parameters."""
        widened = {name: self.kept[place].to(self._types[name]) for place, name in enumerate(self._names)}
        buffers = {
            name: getattr(self, name.replace(".", "-")) for name, _ in self._network[0].named_buffers()
        }
        return torch.func.functional_call(self._network[0], {**widened, **buffers}, inputs)
