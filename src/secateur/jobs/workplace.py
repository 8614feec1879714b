"""Set up what a job needs besides its network and data: run folder, device, seed, journal and callbacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.inputs import Json
from secateur.jobs.figures import Clock, Figures, figures, latencies
from secateur.jobs.networks import Network
from secateur.jobs.records import STATE, RunRecorder, recorded
from secateur.jobs.settings import Job
from secateur.jobs.task import Task
from secateur.jobs.tensorboard import TensorBoard
from secateur.ranks import Ranks
from secateur.recipes import Callback, LatencyFit, RecipeContext, fingerprint
from secateur.training.context import RunContext
from secateur.training.evaluate import Evaluation
from secateur.training.events import report_note, report_progress
from secateur.training.interrupt import interruptible
from secateur.training.random_state import seeded
from secateur.training.resume import Journal
from secateur.training.run_folder import RunFolder


@dataclass(frozen=True)
class Workplace:
    """Store what a job needs besides network and data; created by :func:`open_workplace`.

    Attributes:
        job: its settings.
        run: the folder of its results.
        context: device, callbacks, interruption and journal.
        clock: seconds by part of the job.
    """

    job: Job
    run: RunFolder
    context: RecipeContext
    clock: Clock

    @property
    def callbacks(self) -> Sequence[Callback]:
        """Return the callbacks; the first of them writes to the run folder."""
        return self.context.callbacks

    def evaluate(self, model: nn.Module, task: Task, answers: list[Tensor] | None = None) -> Evaluation:
        """Evaluate a network on the data to report on.

        Args:
            model: the network.
            task: the data and the metric.
            answers: receives the answers, as for :func:`secateur.training.evaluate.evaluate`.
        """
        with self.clock("evaluation"):
            return task.evaluate(model, self.context, answers=answers)

    def begin(self, network: Network, task: Task | None) -> None:
        """Record the weights and the data at the start of the job.

        Args:
            network: with its weights.
            task: the data, already read; ``None`` if there is none.
        """
        found = {"images": {}, "tested_on": None} if task is None else task.start()
        self.run.summarise(start={"weights": fingerprint(network.model), **found})

    def save(self, name: str, network: Network, evaluation: Evaluation | None = None) -> Path:
        """Write a network to the run's checkpoints.

        Args:
            name: of the checkpoint.
            network: the network in its current state.
            evaluation: of the network on the validation data.
        """
        metrics: dict[str, Json] = {}
        if evaluation is not None:
            metric = f"validation_{evaluation.kind.key}"
            metrics = {metric: evaluation.metric, "validation_loss": evaluation.loss}
        file = self.run.checkpoint(name)
        if self.context.ranks.is_main:
            network.save(file, metrics)
        return file

    def finish(self, network: Network) -> Path:
        """Check that the best checkpoint restores this network, bit for bit.

        Args:
            network: the result of the job.

        Raises:
            CheckpointError: the file restores something else.
        """
        file = self.run.checkpoint("best")
        if not self.context.ranks.is_main:
            return file
        if not file.is_file():
            self.save("best", network)
        network.reload(file)
        report_note(self.callbacks, f"saved and read back bit for bit: {file}")
        return file

    def note_time(self, fit: LatencyFit | None) -> None:
        """Report and record the measured time together with the requested one.

        Args:
            fit: the measurement; ``None`` if no time was requested.
        """
        if fit is not None:
            report_note(self.callbacks, str(fit))
            self.run.summarise(asked={"latency": fit.to_dict()})

    def compare(
        self, networks: dict[str, Network], evaluations: dict[str, Evaluation]
    ) -> tuple[dict[str, Figures], dict[str, Any]]:
        """Collect the figures of networks with equal inputs; their timed passes alternate.

        Args:
            networks: by name, each with its file.
            evaluations: by the same names, for networks that were evaluated.

        Returns:
            The figures by name, and the conditions of the times; both are empty in all processes
            except the main one.
        """
        if not self.context.ranks.is_main:
            return {}, {}
        report_progress(self.callbacks, "measuring", 0, 1)
        with self.clock("measuring"):
            models = {name: network.model for name, network in networks.items()}
            inputs = next(iter(networks.values())).timed(self.job)
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
def open_workplace(
    command: str,
    job: Job,
    context: RunContext,
    callbacks: Sequence[Callback],
    unused: Collection[str] = (),
) -> Iterator[Workplace]:
    """Provide what a job needs while it runs: folder, seed, journal, and handling of Ctrl-C.

    Args:
        command: name of the job.
        job: its settings.
        context: the device, and the processes that share the job.
        callbacks: receive progress and notes.
        unused: dotted paths of the settings that have no effect on this job, and are not recorded.

    Yields:
        The workplace.

    Raises:
        RunError: the run folder cannot be used.
    """
    clock, ranks = Clock(), context.ranks
    board = TensorBoard(job.out) if job.tensorboard and ranks.is_main else None
    with (
        closing(board) if board else nullcontext(),
        recorded(command, job, context, unused) as run,
        seeded(job.seed),
        interruptible(ranks) as interruption,
    ):
        journal = _journal(job, run, ranks)
        run.forget(int(journal.about.get("metrics", 0)))
        receivers = [RunRecorder(run), *([board] if board else ()), *(callbacks if ranks.is_main else ())]
        yield Workplace(
            job=job,
            run=run,
            context=RecipeContext(
                settings=context.settings,
                fabric=context.fabric,
                callbacks=receivers,
                interruption=interruption,
                journal=journal,
            ),
            clock=clock,
        )
        run.summarise(seconds=clock.total())
        journal.close()
        if ranks.is_distributed:
            run.adopt(ranks.broadcast(dict(run.summary)))


def _journal(job: Job, run: RunFolder, ranks: Ranks) -> Journal:
    """Open the journal from which an interrupted job continues: the first process writes it, all read it."""
    file = run.checkpoint(STATE)
    if ranks.is_main and not job.resume:
        file.unlink(missing_ok=True)
    ranks.barrier()  # until the folder is ready
    is_read = ranks.is_main or job.resume
    journal = Journal(file if is_read else None, lambda: {"metrics": run.logged}, writes=ranks.is_main)
    found = ranks.all_gather(journal.parts)
    if any(parts != found[0] for parts in found):
        raise UsageError(f"{run.path} is not the same folder for all processes; put it on a shared disk")
    return journal
