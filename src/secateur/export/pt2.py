"""``.pt2``: the program of ``torch.export`` itself."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.export.program import Subject, captured
from secateur.runtimes.archive import CARD, objects
from secateur.runtimes.card import Card

_KEPT = ("nn_module_stack", "torch_fn")
"""What a file says of where an operator comes from: modules and functions, but no places in files."""


def write_pt2(path: Path, subject: Subject, card: Card, calibration: Sequence[Tensor] | None) -> None:
    """Writes a network as a program of PyTorch.

    Args:
        path: the file.
        subject: the network.
        card: goes into the archive as an extra file; says how weights are kept.
        calibration: not used by this format.

    Raises:
        UsageError: eight bits are asked for.
        ExportError: the network cannot be captured.
    """
    if calibration is not None:
        raise UsageError("int8 is for onnx and openvino; PyTorch quantises by torchao, in memory")
    program = subject.program()
    if card.weights != "float32":
        program = captured(_Rounded(subject.model, getattr(torch, card.weights)), subject.inputs)
    whole = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, whole, extra_files={CARD: card.to_json()})
    path.write_bytes(_without_places(whole))


class _Rounded(nn.Module):
    """A network whose parameters are kept in fewer bits and widened for each pass.

    Args:
        model: the network; not changed.
        dtype: what its parameters are kept in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._network = (model,)  # within a tuple, so that its own parameters are none of this module's
        self._names = [name for name, item in model.named_parameters() if item.is_floating_point()]
        self._types = {name: model.get_parameter(name).dtype for name in self._names}
        self.kept = nn.ParameterList(
            nn.Parameter(model.get_parameter(name).detach().to(dtype), requires_grad=False)
            for name in self._names
        )
        for name, buffer in model.named_buffers():
            self.register_buffer(name.replace(".", "-"), buffer)

    def forward(self, *inputs: Tensor) -> object:
        """What the network returns with its rounded parameters."""
        widened = {name: self.kept[place].to(self._types[name]) for place, name in enumerate(self._names)}
        buffers = {
            name: getattr(self, name.replace(".", "-")) for name, _ in self._network[0].named_buffers()
        }
        return torch.func.functional_call(self._network[0], {**widened, **buffers}, inputs)


def _without_places(archive: io.BytesIO) -> bytes:
    """The archive without the operators' places in source files."""
    fresh = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(data)
                for entry in objects(program):
                    told = entry.get("metadata")
                    if isinstance(told, dict):
                        entry["metadata"] = {key: told[key] for key in _KEPT if key in told}
                data = json.dumps(program).encode()
            new.writestr(name, data)
    return fresh.getvalue()
