"""Open the candidates of `measure`: networks in PyTorch, and exported files in their runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import DataError, UsageError
from secateur.export import Description, export
from secateur.jobs.networks import Network, captured_network, open_network
from secateur.jobs.settings import NetworkChoice
from secateur.models import InputSpec, NamedInputs
from secateur.runtimes import IN_PYTORCH, Runner, is_exported, open_exported, prepare


@dataclass(frozen=True)
class Candidate:
    """A network or an exported file that is compared with others.

    Attributes:
        source: its name, as the user wrote it.
        network: the network, if it is not an exported file.
        file: the opened file, if it is an exported file.
    """

    source: str
    network: Network | None = None
    file: Runner | None = None

    @property
    def name(self) -> str:
        """Return the name of its builder."""
        if self.network is not None:
            return self.network.name
        if self.file is not None and self.file.metadata is not None:
            return self.file.metadata.network
        return Path(self.source).name

    @property
    def reads_tokens(self) -> bool:
        """Return whether it is a network that reads token ids."""
        inputs = self.network.inputs if self.network is not None else None
        return isinstance(inputs, NamedInputs) and "input_ids" in inputs.tensors

    @property
    def size(self) -> tuple[int, ...]:
        """Return the shape of one input.

        Raises:
            UsageError: it takes several inputs, or inputs of any shape.
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
    def images(self) -> InputSpec | None:
        """Return the size and normalisation of its input images, if known."""
        if self.network is not None:
            return self.network.input
        return self.file.metadata.images if self.file is not None and self.file.metadata is not None else None

    @property
    def file_bytes(self) -> int | None:
        """Return the bytes of its file, if it has one."""
        if self.network is not None:
            return self.network.file.stat().st_size if self.network.file is not None else None
        return Path(self.source).stat().st_size

    def runtimes(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Choose the runtimes in which it is run; an exported file has only its own.

        Args:
            wanted: runtimes of PyTorch, or ``onnxruntime``.
        """
        return tuple(wanted) if self.file is None else (self.file.runtime,)

    def ready(self, runtime: str, threads: int | None, folder: Path) -> Runner:
        """Prepare it in a runtime.

        Args:
            runtime: one of :meth:`runtimes`.
            threads: of ONNX Runtime.
            folder: for the file, if it must be exported first.

        Raises:
            SecateurError: it cannot be run there.
        """
        if self.network is None:
            # `open_candidate` has opened it, so the user trusts it.
            return open_exported(self.source, threads=threads, trusted=True)
        if runtime in IN_PYTORCH:
            return prepare(runtime, self.network.model)
        path = folder / f"{id(self)}.onnx"
        about = Description(self.network.input)
        if not path.exists():
            export(path, self.network.model, self.network.example(), description=about)
        return open_exported(path, threads=threads)


class AsModule(nn.Module):
    """Wrap a runtime as a module, so that it can be evaluated.

    Args:
        runner: the network in its runtime.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first output."""
        return self._runner(inputs)[0]


def open_candidate(choice: NetworkChoice, classes: Sequence[str] | None = None) -> Candidate:
    """Open a network by name, a run, a checkpoint or an exported file.

    Args:
        choice: the network or file.
        classes: of the data that it is evaluated on, if any.

    Raises:
        SecateurError: it cannot be opened.
        DataError: it has other classes.
    """
    if not is_exported(choice.source):
        return Candidate(choice.source, network=captured_network(open_network(choice, classes)))
    file = open_exported(choice.source, trusted=choice.trusted)
    known = file.metadata.classes if file.metadata is not None else None
    if known is not None and classes is not None and tuple(classes) != known:
        raise DataError(f"{choice.source} has other classes than the data")
    return Candidate(choice.source, file=file)


def check_scores(runner: Runner, source: str, size: Sequence[int], classes: Sequence[str]) -> None:
    """Check that a file has as many classes as the data.

    Raises:
        DataError: the numbers differ.
    """
    scores = runner(torch.zeros(2, *size))[0]
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise DataError(
            f"{source} returns scores of shape {tuple(scores.shape)} for 2 examples, the data has "
            f"{len(classes)} classes"
        )
