"""Runtimes: what runs a network, or an exported file, on a batch.

Each is made ready once and is then a :class:`Runner`: it takes a batch and hands back the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secateur.errors import UsageError
from secateur.runtimes import onnx, openvino, pt2
from secateur.runtimes.base import Runner
from secateur.runtimes.card import Card, preprocessing
from secateur.runtimes.pytorch import IN_PYTORCH, prepare

__all__ = [
    "IN_PYTORCH",
    "SUFFIXES",
    "Card",
    "Runner",
    "is_exported",
    "open_exported",
    "prepare",
    "preprocessing",
]

_OPENERS: dict[str, Callable[[str | Path, int | None], Runner]] = {
    ".onnx": onnx.open_onnx,
    ".xml": openvino.open_openvino,
    ".pt2": pt2.open_pt2,
}
SUFFIXES = tuple(_OPENERS)
"""Ends of the names of files that can be opened."""


def is_exported(source: str | Path) -> bool:
    """Whether a word names an exported file, by the end of its name.

    >>> is_exported("small.onnx"), is_exported("small.safetensors")
    (True, False)
    """
    return Path(source).suffix in SUFFIXES


def open_exported(path: str | Path, *, threads: int | None = None) -> Runner:
    """Opens an exported file in its runtime.

    Nothing in a file is imported or run but the operators of its network. An exported file is still someone's
    arithmetic, run by large libraries in C++: open files of strangers in a place where they can do no harm.

    Args:
        path: ``.onnx`` (ONNX Runtime), ``.xml`` (OpenVINO) or ``.pt2`` (PyTorch).
        threads: of the runtime for one batch; by default what PyTorch is set to. PyTorch runs with its own.

    Returns:
        What runs it: call it with one tensor for each input, the batch first. Its ``card`` says how
        pictures are to be prepared.

    Raises:
        UsageError: there is no such file or format, or the runtime is not installed.
        CheckpointError: the file is damaged, or holds more than a network.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from secateur.export import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(f"{folder}/line.pt2", torch.nn.Linear(3, 2), torch.randn(2, 3))
        ...     print(open_exported(done.path)(torch.randn(5, 3))[0].shape)
        torch.Size([5, 2])
    """
    opener = _OPENERS.get(Path(path).suffix)
    if opener is None:
        raise UsageError(f"{path} is no exported file: its name ends in none of {', '.join(SUFFIXES)}")
    return opener(path, threads)
