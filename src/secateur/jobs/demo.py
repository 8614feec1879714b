"""Train and prune on handwritten digits: the job behind ``secateur demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.recipes import Callback, Recipe
from secateur.training.events import report_note

EPOCHS, EPOCHS_AFTER, STEPS, MACS_LEFT, BATCH = 12, 10, 5, 0.1, 64


def demo(
    out: Path, seed: int = 0, callbacks: Sequence[Callback] = (), *, command_line: str | None = None
) -> dict[str, Any]:
    """Train a network, then prune it: two ordinary jobs, with settings that suit digits.

    Args:
        out: folder for the two run folders, ``trained`` and ``pruned``; those of an earlier
            demonstration are replaced.
        seed: start of all random numbers.
        callbacks: receive progress and notes.
        command_line: the command line of this call, for the record.

    Returns:
        The summaries of both runs, under ``trained`` and ``pruned``.

    Raises:
        RunError: the folder cannot be used.
    """
    data = {"source": "digits", "batch_size": 32}
    trained, pruned = out / "trained", out / "pruned"
    train_job = TrainJob(
        network={"source": "secateur:digits", "weights": "none"},
        data=data,
        out=trained,
        overwrite=True,
        seed=seed,
        command_line=command_line,
        fit={"epochs": EPOCHS, "optimizer": {"learning_rate": 0.05, "weight_decay": 5e-4}},
    )
    report_note(callbacks, "first, a network is trained that is far larger than the task needs")
    first = train(train_job, callbacks)
    optimizer = {"learning_rate": 0.02, "weight_decay": 5e-4}
    prune_job = PruneJob(  # its network exists only now
        network={"source": str(trained)},
        data=data,
        out=pruned,
        overwrite=True,
        seed=seed,
        command_line=command_line,
        budget={"macs": MACS_LEFT},
        latency_batch=BATCH,
        # The task is easy: without measured widths and a teacher, the result is as good in half the time.
        recipe=Recipe.preset(
            "plain",
            steps=STEPS,
            between={"optimizer": optimizer},
            finetune={"epochs": EPOCHS_AFTER, "optimizer": optimizer},
        ),
    )
    report_note(callbacks, f"now, it is cut to {MACS_LEFT:.0%} of its MACs in {STEPS} steps, and fine-tuned")
    return {"trained": first, "pruned": prune(prune_job, callbacks)}
