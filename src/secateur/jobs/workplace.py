"""All that a job works with besides its network and its data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.data import ImageData
from secateur.errors import UsageError
from secateur.jobs.figures import Clock, Figures, figures, latencies
from secateur.jobs.networks import Network
from secateur.jobs.records import STATE, RunRecorder, recorded
from secateur.jobs.settings import Job
from secateur.jobs.tensorboard import TensorBoard
from secateur.models.inputs import Json
from secateur.ranks import Ranks
from secateur.recipes import Callback, fingerprint
from secateur.training.devices import Machine
from secateur.training.evaluate import Batches, Evaluation, evaluate
from secateur.training.events import report_note, report_progress
from secateur.training.fit import Keep, Surroundings
from secateur.training.interrupt import Interruption, interruptible
from secateur.training.journal import Journal
from secateur.training.run import Run
from secateur.training.seeds import seeded


@dataclass(frozen=True)
class Workplace:
    """Where a job works; made by :func:`at_work`.

    Attributes:
        job: what it was told.
        run: where everything that comes of it goes.
        machine: where to compute.
        callbacks: receive how it goes; the first writes it to the run folder.
        interruption: asked between steps.
        clock: seconds by part of the job.
        journal: keeps what is needed to go on after a kill.
    """

    job: Job
    run: Run
    machine: Machine
    callbacks: Sequence[Callback]
    interruption: Interruption
    clock: Clock
    journal: Journal

    def surroundings(self, keep: Keep) -> Surroundings:
        """The workplace as a fit sees it.

        Args:
            keep: writes the network to disk.
        """
        return Surroundings(self.machine, self.callbacks, self.interruption, keep, self.journal)

    def evaluate(self, model: nn.Module, batches: Batches) -> Evaluation:
        """Judges a network.

        Args:
            model: the network.
            batches: pairs of inputs and class indices.
        """
        with self.clock("evaluation"):
            return evaluate(
                model,
                batches,
                machine=self.machine,
                callbacks=self.callbacks,
                interruption=self.interruption,
            )

    def begin(self, network: Network, data: ImageData | None) -> None:
        """Writes down what the job starts from.

        Args:
            network: with its weights.
            data: the pictures, already read; ``None`` if there are none.
        """
        pictures = {}
        if data is not None:
            pictures = {"train": len(data.train), "val": len(data.validation), "test": len(data.test)}
        self.run.summarise(start={"weights": fingerprint(network.model), "pictures": pictures})

    def save(self, name: str, network: Network, evaluation: Evaluation | None = None) -> Path:
        """Writes a network to the run's checkpoints.

        Args:
            name: of the checkpoint.
            network: as it is now.
            evaluation: of the network on the validation pictures.
        """
        metrics: dict[str, Json] = {}
        if evaluation is not None:
            metrics = {"validation_top1": evaluation.top1, "validation_loss": evaluation.loss}
        file = self.run.checkpoint(name)
        if self.machine.ranks.first:
            network.save(file, metrics)
        return file

    def finish(self, network: Network) -> Path:
        """Makes sure that the best checkpoint gives back this network, bit for bit.

        Args:
            network: as it came out of the job.

        Raises:
            CheckpointError: the file gives back something else.
        """
        file = self.run.checkpoint("best")
        if not self.machine.ranks.first:
            return file
        if not file.is_file():
            self.save("best", network)
        network.reload(file)
        report_note(self.callbacks, f"saved and read back bit for bit: {file}")
        return file

    def compare(
        self, networks: dict[str, Network], evaluations: dict[str, Evaluation]
    ) -> tuple[dict[str, Figures], dict[str, Any]]:
        """The figures of networks of one kind, with times measured in turn.

        Args:
            networks: by name, each with its file.
            evaluations: by the same names, as far as they were judged.

        Returns:
            The figures by name, and the conditions under which the times hold; nothing of either in
            processes that only help.
        """
        if not self.machine.ranks.first:
            return {}, {}
        report_progress(self.callbacks, "measuring", 0, 1)
        with self.clock("measuring"):
            models = {name: network.model for name, network in networks.items()}
            inputs = next(iter(networks.values())).example(self.job.latency_batch)
            milliseconds, conditions = latencies(models, inputs, self.job.latency_seconds)
            rows = {
                name: {
                    **figures(network.model, network.example(), network.file, evaluations.get(name)),
                    "latency_ms": milliseconds[name],
                }
                for name, network in networks.items()
            }
        report_progress(self.callbacks, "measuring", 1, 1)
        return rows, conditions


@contextmanager
def at_work(command: str, job: Job, machine: Machine, callbacks: Sequence[Callback]) -> Iterator[Workplace]:
    """Everything that a job needs, for its length: folder, seed, journal, and ears for Ctrl-C.

    Args:
        command: name of the job.
        job: what it was told.
        machine: where to compute, and with which other processes.
        callbacks: receive how it goes.

    Yields:
        The workplace.

    Raises:
        RunError: the run folder cannot be used.
    """
    clock, ranks = Clock(), machine.ranks
    board = TensorBoard(job.out) if job.tensorboard and ranks.first else None
    with (
        closing(board) if board else nullcontext(),
        recorded(command, job, machine) as run,
        seeded(job.seed),
        interruptible(ranks) as interruption,
    ):
        journal = _journal(job, run, ranks)
        run.forget(int(journal.about.get("metrics", 0)))
        heard = [RunRecorder(run), *([board] if board else ()), *(callbacks if ranks.first else ())]
        yield Workplace(job, run, machine, heard, interruption, clock, journal)
        run.summarise(seconds=clock.total())
        journal.close()
        if ranks.together:
            run.adopt(ranks.same(json.loads(json.dumps(run.summary, default=str))))


def _journal(job: Job, run: Run, ranks: Ranks) -> Journal:
    """What an interrupted job goes on from: written by the first process, read by all."""
    file = run.checkpoint(STATE)
    if ranks.first and not job.resume:
        file.unlink(missing_ok=True)
    ranks.wait()  # until the folder is ready
    if ranks.first:
        journal = Journal(file, lambda: {"metrics": run.logged})
    else:
        journal = Journal.of_another(file if job.resume else None)
    found = ranks.gather(journal.parts)
    if any(parts != found[0] for parts in found):
        raise UsageError(f"{run.path} is not the same folder for all processes; put it on a shared disk")
    return journal
