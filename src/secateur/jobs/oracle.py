"""Measure the importance of each channel and compare criteria with it: the job behind ``secateur oracle``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.nn.functional import cross_entropy

from secateur.ablation import Ablation, ablate, compare_ranking
from secateur.criteria import resolve, score
from secateur.data import ImageData
from secateur.errors import DataError, StoppedError, UsageError
from secateur.files import write_text
from secateur.graph import ChannelGraph, trace
from secateur.jobs.images import open_images, report_skipped
from secateur.jobs.networks import Network, check_outputs, input_of, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.ranks import Ranks
from secateur.recipes import Callback
from secateur.training.context import launch
from secateur.training.events import report_note, report_progress
from secateur.training.interrupt import Interruption, interruptible
from secateur.training.settings import DeviceSettings

PAPER_CRITERIA = ("taylor", "magnitude", "activation-mean", "apoz", "mutual-information", "random")
"""The criteria that the paper compares, and random scores."""

_SECONDS_BETWEEN_WRITES = 20.0


def oracle(
    choice: NetworkChoice,
    data_choice: DataChoice,
    out: Path,
    criteria: Sequence[str] = PAPER_CRITERIA,
    examples: int = 256,
    callbacks: Sequence[Callback] = (),
    processes: DeviceSettings | None = None,
) -> dict[str, Any]:
    """Mask each channel alone, and compare criteria with the resulting changes of the loss.

    Measurements are written to ``out`` regularly; a second call continues from there.

    Args:
        choice: the network.
        data_choice: the images; training images without augmentation are used.
        out: a JSON file.
        criteria: names of criteria.
        examples: how many images.
        callbacks: receive progress and notes.
        processes: how many processes share the work; one if not given.

    Returns:
        The content of the file: the changes of the loss, and the rank correlations of each criterion.

    Raises:
        SecateurError: the message says what is wrong.
        UsageError: a criterion is unknown.
        StoppedError: the user stopped it; the measurements so far are in the file.
    """
    with launch(processes or DeviceSettings(accelerator="cpu")) as context:
        return _oracle(choice, data_choice, out, criteria, examples, callbacks, context.ranks)


def _oracle(
    choice: NetworkChoice,
    data_choice: DataChoice,
    out: Path,
    criteria: Sequence[str],
    examples: int,
    callbacks: Sequence[Callback],
    ranks: Ranks,
) -> dict[str, Any]:
    callbacks = callbacks if ranks.is_main else ()
    data = open_images(data_choice, input_of(choice), seed=0)
    known = _known(out)
    ranks.barrier()  # until all have read the file that the first will write
    with interruptible(ranks) as interruption:
        network = open_network(choice, data.classes)
        check_outputs(network, data.classes)
        for name in criteria:
            resolve(name)  # an unknown one is refused before the long measurement
        network.model.eval()
        graph = trace(network.model, network.example())
        batches = _batches(data, examples)
        if known is not None:
            report_note(callbacks, f"continues from {out}: {known.measured:,} channels are measured")
        watch = _Watch(out, callbacks, interruption, ranks)
        together = ranks.is_distributed
        found = ablate(
            network.model, graph, batches, cross_entropy, resume=known, progress=watch, across_ranks=together
        )
        rows = _agreements(network, graph, found, batches, criteria, callbacks, together)
    report_skipped(data, callbacks)
    result = {**found.to_dict(), "network": choice.source, "model": network.name, "agreement": rows}
    if ranks.is_main:
        _write(out, result)
    return result


class _Watch:
    """Report progress, write the measurements regularly, and stop if the user asks for it."""

    def __init__(
        self, out: Path, callbacks: Sequence[Callback], interruption: Interruption, ranks: Ranks
    ) -> None:
        self._out, self._callbacks, self._interruption = out, callbacks, interruption
        self._ranks = ranks
        self._written = time.monotonic()

    def __call__(self, found: Ablation, total: int) -> None:
        report_progress(self._callbacks, "measuring channels", found.measured, total)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write(found)
        try:
            self._interruption.check()
        except StoppedError:
            self._write(found)
            raise

    def _write(self, found: Ablation) -> None:
        if self._ranks.is_main:
            _write(self._out, found.to_dict())
        self._written = time.monotonic()


def _batches(data: ImageData, examples: int) -> list[Any]:
    """Return the given number of training images without augmentation, or all of them if there are fewer."""
    found, left = [], examples
    for inputs, targets in data.training_batches(augment=False):
        found.append((inputs[:left], targets[:left]))
        left -= len(found[-1][1])
        if not left:
            break
    return found


def _agreements(
    network: Network,
    graph: ChannelGraph,
    found: Ablation,
    batches: Sequence[Any],
    criteria: Sequence[str],
    callbacks: Sequence[Callback],
    across_ranks: bool,
) -> list[dict[str, Any]]:
    """Compute the rank correlations of each criterion, on the images of the measurement."""
    rows = []
    for number, name in enumerate(criteria):
        report_progress(callbacks, "criteria", number, len(criteria))
        scores = score(network.model, graph, name, batches, cross_entropy, across_ranks=across_ranks)
        row = compare_ranking(found, scores)
        mean = None if math.isnan(row.per_group) else row.per_group
        rows.append({**asdict(row), "groups": dict(row.groups), "per_group": mean})
    report_progress(callbacks, "criteria", len(criteria), len(criteria))
    return rows


def _known(out: Path) -> Ablation | None:
    """Read the measurements of an earlier call."""
    if not out.exists():
        if not out.parent.is_dir():
            raise UsageError(f"{out}: there is no folder {out.parent}")
        return None
    try:
        held: Mapping[str, Any] = json.loads(out.read_text())
        return Ablation.from_dict(held)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{out} holds no measured channels ({type(error).__name__}); choose another --out"
        ) from error


def _write(out: Path, result: Mapping[str, Any]) -> None:
    write_text(out, json.dumps(result, indent=1))
