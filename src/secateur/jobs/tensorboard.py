"""TensorBoard as one more listener: epochs and cuts as curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import UsageError
from secateur.jobs.records import as_record
from secateur.training.events import Event, Listener
from secateur.training.run_folder import TENSORBOARD, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EPOCH = {
    "loss": "training/loss",
    "learning_rate": "training/learning rate",
    "top1": "validation/accuracy",
    "validation_loss": "validation/loss",
}


@contextmanager
def curves(run: Path, listener: Listener) -> Iterator[Listener]:
    """A listener that writes ``RUN/tensorboard`` and hands everything on.

    Nothing is written before the first epoch or cut: until then the run folder is not the run's own.

    Args:
        run: the run folder.
        listener: hears every event afterwards.

    Yields:
        The listener.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs TensorBoard: pip install 'torch-secateur[tensorboard]'"
        ) from error
    board = _Board(run, SummaryWriter)
    try:
        yield board.after(listener)
    finally:
        board.close()


class _Board:
    """Turns events into points of curves.

    Args:
        run: the run folder.
        make: makes a writer for a folder.
    """

    def __init__(self, run: Path, make: type[SummaryWriter]) -> None:
        self._run, self._make = run, make
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def after(self, listener: Listener) -> Listener:
        """A listener that writes first, and hands on then."""

        def hear(event: Event) -> None:
            record = as_record(event)
            if record is not None and record["event"] in ("epoch", "cut"):
                self._write(record)
            listener(event)

        return hear

    def close(self) -> None:
        """Brings everything to the disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            # What a run that goes on has behind it; the line of this event is there already.
            known = [line["event"] for line in read_metrics(self._run)]
            self._epoch = known.count("epoch") - (record["event"] == "epoch" and bool(known))
            self._writer = self._make(str(self._run / TENSORBOARD))
        if record["event"] == "epoch":
            self._epoch += 1
            points = {curve: record[key] for key, curve in _EPOCH.items() if record[key] is not None}
        else:
            points = {f"network/{name}": value for name, value in record["cost"].items()}
            points["verification/largest relative difference"] = record["verification"]["max_error"]
        for curve, value in points.items():
            self._writer.add_scalar(curve, value, self._epoch)
