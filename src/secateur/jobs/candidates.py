"""What can be held side by side: networks in PyTorch, and exported files in their runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import DataError, UsageError
from secateur.export import export
from secateur.jobs.networks import Network, open_network
from secateur.jobs.settings import NetworkChoice
from secateur.models import InputSpec
from secateur.runtimes import IN_PYTORCH, Runner, is_exported, open_exported, prepare

_BY_EXPORT = {"onnxruntime": ".onnx", "openvino": ".xml"}
RUNTIMES = (*IN_PYTORCH, *_BY_EXPORT)
"""In what a network can be run; an exported file has a runtime of its own."""


@dataclass(frozen=True)
class Candidate:
    """One of what is held side by side.

    Attributes:
        source: what the user called it.
        network: if it is one.
        file: if it is an exported file, the file opened.
    """

    source: str
    network: Network | None = None
    file: Runner | None = None

    @property
    def name(self) -> str:
        """Of what builds it."""
        if self.network is not None:
            return self.network.name
        return self.file.card.network if self.file is not None and self.file.card else Path(self.source).name

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of one input.

        Raises:
            UsageError: it takes several, or any.
        """
        if self.network is not None:
            return self.network.input.size
        shapes = self.file.shapes if self.file is not None else ()
        if len(shapes) != 1:
            raise UsageError(
                f"{self.source} takes {len(shapes) or 'any'} inputs; only networks with one are compared"
            )
        return shapes[0]

    @property
    def pictures(self) -> InputSpec | None:
        """How pictures are prepared for it, if that is known."""
        if self.network is not None:
            return self.network.input
        return self.file.card.pictures if self.file is not None and self.file.card is not None else None

    @property
    def file_bytes(self) -> int | None:
        """Bytes of its file, and of the weights beside it."""
        if self.network is not None:
            return self.network.file.stat().st_size if self.network.file is not None else None
        beside = Path(self.source).with_suffix(".bin")
        more = beside.stat().st_size if self.source.endswith(".xml") and beside.is_file() else 0
        return Path(self.source).stat().st_size + more

    def runtimes(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of some runtimes in which it can be run: a file always in its own.

        Args:
            wanted: names out of ``RUNTIMES``.
        """
        return tuple(wanted) if self.file is None else (self.file.runtime,)

    def ready(self, runtime: str, threads: int | None, folder: Path) -> Runner:
        """Makes it ready in a runtime.

        Args:
            runtime: one of :meth:`runtimes`.
            threads: for runtimes that have threads of their own.
            folder: where to put what has to be exported for it.

        Raises:
            SecateurError: it cannot be run there.
        """
        if self.network is None:
            return open_exported(self.source, threads=threads)
        if runtime in IN_PYTORCH:
            return prepare(runtime, self.network.model)
        return open_exported(self.exported(runtime, folder), threads=threads)

    def exported(self, runtime: str, folder: Path) -> Path:
        """A file of it for a runtime, written when first asked for.

        Args:
            runtime: ``onnxruntime`` or ``openvino``.
            folder: where to.
        """
        assert self.network is not None
        path = folder / f"{id(self)}{_BY_EXPORT[runtime]}"
        if not path.exists():
            export(path, self.network.model, self.network.example(), pictures=self.network.input)
        return path


class AsModule(nn.Module):
    """A runtime in the form that judging takes.

    Args:
        runner: what runs the network.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def forward(self, inputs: Tensor) -> Tensor:
        """Its first output."""
        return self._runner(inputs)[0]


def open_candidate(choice: NetworkChoice, classes: Sequence[str] | None = None) -> Candidate:
    """What a user calls by a name, a run, a checkpoint or an exported file.

    Args:
        choice: which.
        classes: of the data that it is to be judged on, if any.

    Raises:
        SecateurError: it cannot be opened.
        DataError: it tells other classes apart.
    """
    if not is_exported(choice.source):
        return Candidate(choice.source, network=open_network(choice, classes))
    file = open_exported(choice.source)
    known = file.card.classes if file.card is not None else None
    if known is not None and classes is not None and tuple(classes) != known:
        raise DataError(f"{choice.source} tells other classes apart than those of the data")
    return Candidate(choice.source, file=file)


def check_scores(runner: Runner, source: str, size: Sequence[int], classes: Sequence[str]) -> None:
    """Makes sure that a file tells as many classes apart as the data has.

    Raises:
        DataError: it does not.
    """
    scores = runner(torch.zeros(2, *size))[0]
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise DataError(
            f"{source} returns scores of shape {tuple(scores.shape)} for 2 examples, the data has "
            f"{len(classes)} classes"
        )
