"""Run a network, or an exported file, on a batch in several runtimes.

A network is prepared once for a runtime. The result is a :class:`Runner`, which takes a batch and returns the
outputs.
"""

from __future__ import annotations

from pathlib import Path

from secateur.errors import UsageError
from secateur.files import EXPORTED
from secateur.runtimes.base import Runner
from secateur.runtimes.metadata import ExportMetadata, preprocessing
from secateur.runtimes.onnx import open_onnx
from secateur.runtimes.pt2 import open_pt2
from secateur.runtimes.pytorch import IN_PYTORCH, prepare

__all__ = [
    "IN_PYTORCH",
    "ExportMetadata",
    "Runner",
    "is_exported",
    "open_exported",
    "prepare",
    "preprocessing",
]


def is_exported(source: str | Path) -> bool:
    """Return whether a name is that of an exported file, by its ending.

    >>> is_exported("small.onnx"), is_exported("small.safetensors")
    (True, False)
    """
    return Path(source).suffix in EXPORTED


def open_exported(path: str | Path, *, threads: int | None = None, trusted: bool = False) -> Runner:
    """Open an exported file in its runtime.

    An ONNX file holds arithmetic only. A ``.pt2`` file is read by ``torch.export.load``, which unpickles
    parts of it and can run any code in the file. So it is opened only with ``trusted=True``; use that only
    for files that you trust.

    Args:
        path: ``.onnx`` (ONNX Runtime) or ``.pt2`` (PyTorch).
        threads: of ONNX Runtime within an operator; by default PyTorch's number.
        trusted: whether the file comes from a source that you trust; needed for ``.pt2``.

    Returns:
        The runner: call it with one tensor for each input, the batch first. Its ``metadata`` says how
        images are to be prepared.

    Raises:
        UsageError: there is no such file or format, the runtime is not installed, or a ``.pt2`` file is
            not trusted.
        CheckpointError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from secateur.export import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(f"{folder}/line.pt2", torch.nn.Linear(3, 2), torch.randn(2, 3))
        ...     print(open_exported(done.path, trusted=True)(torch.randn(5, 3))[0].shape)
        torch.Size([5, 2])
    """
    suffix = Path(path).suffix
    if suffix not in EXPORTED:
        raise UsageError(f"{path} is not an exported file: its name ends in none of {', '.join(EXPORTED)}")
    if suffix == ".onnx":
        return open_onnx(path, threads)
    if not trusted:
        raise UsageError(
            f"{path} is a program, and opening it can run any code that it holds: if you trust where it "
            "comes from, give trusted=True, or --trusted on the command line"
        )
    return open_pt2(path)
