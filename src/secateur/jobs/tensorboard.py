"""Write epochs and cuts as TensorBoard curves, as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.integrations.libraries import library
from secateur.jobs.records import cut_record, epoch_record
from secateur.recipes import Callback, Cut
from secateur.training.events import EpochDone
from secateur.training.metrics import kind_named
from secateur.training.run_folder import TENSORBOARD, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EPOCH = {
    "loss": "training/loss",
    "learning_rate": "training/learning rate",
    "validation_loss": "validation/loss",
}


class TensorBoard(Callback):
    """Write ``RUN/tensorboard``; close it at the end.

    Nothing is written before the first epoch or cut: until then, the folder may belong to another run.

    Args:
        run: the run folder.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        library("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._run, self._make = run, SummaryWriter
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """Write the points of an epoch."""
        record = epoch_record(epoch)
        writer = self._opened("epoch")
        self._epoch += 1
        curves = {**_EPOCH, "metric": f"validation/{kind_named(epoch.metric_name).title}"}
        self._write(writer, {curve: record[key] for key, curve in curves.items() if record[key] is not None})

    def on_cut(self, cut: Cut) -> None:
        """Write the points of a cut."""
        record = cut_record(cut)
        writer = self._opened("cut")
        points = {f"network/{name}": value for name, value in record["cost"].items()}
        points["verification/largest relative difference"] = record["verification"]["max_error"]
        self._write(writer, points)

    def close(self) -> None:
        """Write everything to the disk."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, event: str) -> SummaryWriter:
        if self._writer is None:
            # The earlier part of a resumed run; metrics.jsonl already has the line of this event.
            known = [line["event"] for line in read_metrics(self._run)]
            self._epoch = known.count("epoch") - (event == "epoch" and bool(known))
            self._writer = self._make(str(self._run / TENSORBOARD))
        return self._writer

    def _write(self, writer: SummaryWriter, points: Mapping[str, Any]) -> None:
        for curve, value in points.items():
            writer.add_scalar(curve, value, self._epoch)
