"""All that a job works with besides its network and its data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.jobs.figures import Clock, Figures, figures, latencies
from secateur.jobs.networks import Network
from secateur.jobs.records import STATE, recorded, recording
from secateur.jobs.settings import Job
from secateur.models.inputs import Json
from secateur.training.devices import Machine, make_machine
from secateur.training.evaluate import Batches, Evaluation, evaluate
from secateur.training.events import Listener, Note, Progress
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
        listener: hears how it goes, and writes it down.
        interruption: asked between steps.
        clock: seconds by part of the job.
        journal: keeps what is needed to go on after a kill.
    """

    job: Job
    run: Run
    machine: Machine
    listener: Listener
    interruption: Interruption
    clock: Clock
    journal: Journal

    def surroundings(self, keep: Keep) -> Surroundings:
        """The workplace as a fit sees it.

        Args:
            keep: writes the network to disk.
        """
        return Surroundings(self.machine, self.listener, self.interruption, keep, self.journal)

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
                listener=self.listener,
                interruption=self.interruption,
            )

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
        if not file.is_file():
            self.save("best", network)
        network.reload(file)
        self.listener(Note(f"saved and read back bit for bit: {file}"))
        return file

    def compare(
        self, networks: dict[str, Network], evaluations: dict[str, Evaluation]
    ) -> tuple[dict[str, Figures], dict[str, Any]]:
        """The figures of networks of one kind, with times measured in turn.

        Args:
            networks: by name, each with its file.
            evaluations: by the same names, as far as they were judged.

        Returns:
            The figures by name, and the conditions under which the times hold.
        """
        self.listener(Progress("measuring", 0, 1))
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
        self.listener(Progress("measuring", 1, 1))
        return rows, conditions


@contextmanager
def at_work(command: str, job: Job, listener: Listener) -> Iterator[Workplace]:
    """Everything that a job needs, for its length: folder, seed, device, and ears for Ctrl-C.

    Args:
        command: name of the job.
        job: what it was told.
        listener: hears how it goes.

    Yields:
        The workplace.

    Raises:
        RunError: the run folder cannot be used.
    """
    clock = Clock()
    with recorded(command, job) as run, seeded(job.seed), interruptible() as interruption:
        machine = make_machine(job.device)
        file = run.checkpoint(STATE)
        if not job.resume:
            file.unlink(missing_ok=True)
        journal = Journal(file, lambda: {"metrics": run.logged})
        run.forget(int(journal.about.get("metrics", 0)))
        yield Workplace(job, run, machine, recording(run, listener), interruption, clock, journal)
        run.summarise(seed=job.seed, seconds=clock.total())
        journal.close()
