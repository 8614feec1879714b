"""Export a network: write to a temporary file, read back, compare, and only then replace the target."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateur.errors import ExportError, TraceError, UsageError, VerificationError
from secateur.export.check import FileCheck, check_file
from secateur.export.onnx import write_onnx
from secateur.export.program import Exportable
from secateur.export.pt2 import write_pt2
from secateur.files import EXPORTED, replacing
from secateur.graph.capture.program import ExampleInputs
from secateur.models import InputSpec
from secateur.network_cost import cost
from secateur.runtimes import ExportMetadata, open_exported
from secateur.untouched import untouched

Writer = Callable[[Path, Exportable, ExportMetadata, "Sequence[Tensor] | None"], None]
WeightsAs = Literal["float32", "float16", "bfloat16", "int8"]
WEIGHTS_AS: tuple[WeightsAs, ...] = ("float32", "float16", "bfloat16", "int8")

_WRITERS: dict[str, Writer] = {"onnx": write_onnx, "pt2": write_pt2}
"""What writes each format, whose name is also the ending of its files."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: the file.
        format: ``onnx`` or ``pt2``.
        bytes: of the file.
        metadata: the metadata in the file.
        check: how the outputs of the file compare with the network's.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(f"{folder}/line.pt2", nn.Linear(3, 2), torch.randn(2, 3))
        >>> done.format, done.metadata.params, done.check.ok
        ('pt2', 8, True)
    """

    path: Path
    format: str
    bytes: int
    metadata: ExportMetadata
    check: FileCheck

    def __str__(self) -> str:
        return f"{self.path}: {self.bytes:,} bytes, weights in {self.metadata.weights}\n{self.check}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for files."""
        return {
            "file": str(self.path),
            "format": self.format,
            "file_bytes": self.bytes,
            "weights_as": self.metadata.weights,
            "params": self.metadata.params,
            "macs": self.metadata.macs,
            "check": self.check.to_dict(),
        }


@dataclass(frozen=True)
class Description:
    """Describe a network for the metadata of its exported file.

    Attributes:
        images: size, mean and deviation of the inputs.
        classes: names of the outputs.
        network: name of the network; by default its class.
    """

    images: InputSpec | None = None
    classes: Sequence[str] | None = None
    network: str | None = None


def export(
    path: str | Path,
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    format: str | None = None,  # noqa: A002  # the usual word
    weights_as: str = "float32",
    calibration: Sequence[Tensor] | None = None,
    check_inputs: Tensor | Sequence[Tensor] | None = None,
    description: Description | None = None,
) -> Exported:
    """Write a network, pruned or not, for another runtime, and check that the file computes the same.

    The batch size is free. A temporary file is written, read back, run in its runtime on several batch sizes
    and compared with the network. It replaces the target only if it agrees; otherwise an older file is not
    changed. The file contains nothing about the machine that wrote it.

    Args:
        path: the file.
        model: the network; left as it is.
        example_inputs: one tensor, or a tuple of them, the batch first in each.
        format: ``onnx`` or ``pt2``; by default from the ending of the file's name (``.onnx``, ``.pt2``).
        weights_as: ``float32``; ``float16`` or ``bfloat16``, which halve the file and compute in float32; or
            ``int8``, for which weights and activations are quantised by ONNX Runtime.
        calibration: batches of real inputs, for ``int8``: they set the range of every activation.
        check_inputs: real inputs to compare on; images of random pixels if not given.
        description: of inputs and outputs, for the file's metadata.

    Returns:
        The file, its size, its metadata, and the result of the comparison.

    Raises:
        UsageError: an argument is wrong, or what the format needs is not installed.
        ExportError: the network cannot be written in this format.
        VerificationError: the file does not compute what the network computes.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(f"{folder}/small.pt2", nn.Linear(4, 2), torch.randn(2, 4))
        >>> done.check.ok, done.check.batches
        (True, (1, 3, 8))
    """
    path = Path(path)
    format = _format(path, format)  # noqa: A001
    batches = _calibration(weights_as, calibration)
    with untouched(model):
        exportable = Exportable.of(model, example_inputs)
    if batches is not None and len(exportable.inputs) > 1:
        raise UsageError("int8 is for networks with one input")
    said = description or Description()
    metadata = _make_metadata(
        exportable, said.network or type(model).__name__, weights_as, said.images, said.classes
    )
    given = (check_inputs,) if isinstance(check_inputs, Tensor) else check_inputs
    with untouched(model), _aside(path) as folder:
        file = folder / f"network.{format}"
        _WRITERS[format](file, exportable, metadata, batches)
        check = check_file(open_exported(file, trusted=True), exportable, weights_as, given, said.images)
        if not check.ok:
            raise VerificationError(f"{path} was not written, since the file would be wrong: {check}")
        size = file.stat().st_size
        with replacing(path) as part:
            file.replace(part)
    return Exported(path, format, size, metadata, check)


def _format(path: Path, wanted: str | None) -> str:
    if wanted is None:
        if path.suffix not in EXPORTED:
            raise UsageError(f"{path}: end its name in {', '.join(EXPORTED)}, or give the format")
        return path.suffix[1:]
    if wanted not in _WRITERS:
        raise UsageError(f"there is no format {wanted!r}: choose {', '.join(_WRITERS)}")
    if path.suffix != f".{wanted}":
        raise UsageError(f"{path}: files of {wanted} end in .{wanted}")
    return wanted


def _calibration(weights_as: str, batches: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    if weights_as not in WEIGHTS_AS:
        raise UsageError(f"weights are kept as {', '.join(WEIGHTS_AS)}, not as {weights_as!r}")
    if (weights_as == "int8") != (batches is not None):
        raise UsageError("int8 needs calibration, a list of batches of real inputs; nothing else takes it")
    if batches is not None and not len(batches):
        raise UsageError("calibration holds no batch")
    return batches


def _make_metadata(
    exportable: Exportable,
    network: str,
    weights_as: str,
    images: InputSpec | None,
    classes: Sequence[str] | None,
) -> ExportMetadata:
    try:
        needs = cost(exportable.model, exportable.inputs)
    except TraceError as error:
        raise ExportError(str(error)) from error
    names = tuple(map(str, classes)) if classes is not None else None
    return ExportMetadata(network, weights_as, images, names, needs.params, needs.macs)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside the file."""
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
