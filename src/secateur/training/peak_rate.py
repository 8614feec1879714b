"""Find the peak learning rate of a training by short trials on copies of the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from statistics import fmean, stdev
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from secateur.data.loader import at_epoch, epoch_of
from secateur.errors import DataError, TrainingError
from secateur.graph.cutting.tensors import copy_with
from secateur.training.evaluate import Batches
from secateur.training.optimizers import learning_rate_factors, make_optimizer
from secateur.training.random_state import seeded
from secateur.training.settings import FitSettings
from secateur.training.step import NotFiniteError, take_step

BatchLoss = Callable[[nn.Module, Any], Tensor]
"""Computes the training loss of a network on a batch."""

AfterStep = Callable[[int, int], None]
"""Called after each step of the trials with the number of steps so far, and the most there may be."""

_FIRST: Mapping[str, float] = {"sgd": 3e-4, "adamw": 3e-5}
"""The rate that is tried first; that of SGD is for a momentum of 0.9."""

_APART, _UP, _DOWN = 10**0.5, 5, 4
"""Ratio of two rates that are tried one after the other, and the largest number of them up and down."""

_LOWER = 3.0
"""A training on labels is far longer than a trial, so it takes a third of the highest of the best rates. With
a teacher it takes the rate of the lowest loss: higher rates destroy features that few images cannot
restore."""

_STEPS, _HELD_BACK, _REPEATS = 12, 3, 4
"""Steps of a trial, batches held back, and how often a trial uses a batch at most: overfitting a few batches
says nothing about training with augmentation."""
_WARMUP = 0.25

_CHANCE = 0.05
"""Share of the loss before training by which losses of a few batches differ by chance: other augmentations
alone move them so far."""


@dataclass(frozen=True)
class PeakRate:
    """The peak learning rate of a training.

    Attributes:
        value: the rate, which schedules multiply.
        reason: how it was chosen, in words.
        start_loss: training loss before training on the first batches, if trials were made.
        margin: half of its confidence interval of 95%, from the differences between batches.
    """

    value: float
    reason: str
    start_loss: float | None = None
    margin: float = 0.0

    def is_exceeded_by(self, loss: float) -> bool:
        """Return whether the mean loss of an epoch is above that at the start, by more than chance."""
        if self.start_loss is None:
            return False
        return not loss <= self.start_loss + max(self.margin, _CHANCE * abs(self.start_loss))

    def lowered(self) -> PeakRate:
        """Return the rate for a second start after a divergence, which is not checked again."""
        return PeakRate(self.value / 10, f"a tenth of {self.value:.3g}, at which training diverged")


@dataclass(frozen=True)
class RateTrials:
    """The result of trials.

    Attributes:
        rate: the rate that was found.
        seconds_per_step: mean time of one optimizer step in the trials.
    """

    rate: PeakRate
    seconds_per_step: float


def find_peak_rate(
    model: nn.Module,
    batches: Batches,
    settings: FitSettings,
    loss_of: BatchLoss,
    after_step: AfterStep | None = None,
    *,
    taught: bool = False,
) -> RateTrials:
    """Find the peak learning rate of a training by short trials on copies of the network.

    At each rate, a copy is trained for a few steps with the optimizer, clipping and schedule of the settings;
    its loss is then measured on batches that it was not trained on. From a low rate, higher ones are
    tried until one raises the loss; or lower ones until one does not, if the first rate raises it. Losses
    that differ by less than the standard error of their difference are equal; of a single batch, those that
    differ by less than a twentieth of the loss before training. A third of the highest rate with the lowest
    loss is taken; with a teacher, the rate with the lowest loss.

    Neither the network nor any random generator is changed; the result depends on network and batches alone.

    Args:
        model: the network before training.
        batches: the training batches.
        settings: of the training.
        loss_of: computes the training loss.
        after_step: called after each step with the number of steps so far, and the most there may be.
        taught: whether the loss compares with a teacher.

    Raises:
        DataError: there are no batches.
        TrainingError: the loss is not finite before training.
    """
    with seeded(0), at_epoch(batches, epoch_of(batches) or 0):
        samples = _samples(batches)
        losses, others = (_losses(copy_with(model, {}), part, loss_of) for part in reversed(samples))
        start, began = fmean(losses), time.perf_counter()
        if not math.isfinite(start):
            raise TrainingError(
                f"the loss is {start} before training; check the weights, the inputs and the targets"
            )
        found: dict[float, list[float]] = {}
        steps = _steps(samples[0])
        chance = _CHANCE * abs(start)

        def is_too_high(rate: float) -> bool:
            return not _equals(found[rate], losses, chance)

        for rate in _rates(settings, is_too_high):
            made, most = len(found) * steps, (1 + _UP) * steps
            tell = None if after_step is None else partial(_tell, after_step, made, most)
            found[rate] = _trial(model, rate, settings, samples, loss_of, tell)
        seconds = (time.perf_counter() - began) / (len(found) * steps)
    lowest = min(found, key=lambda rate: fmean(found[rate]))
    if taught:
        value, how = lowest, ""
    else:
        equal = (rate for rate, after in found.items() if _equals(after, found[lowest], chance))
        highest = max(equal, default=min(found))
        value, how = highest / _LOWER, f"a third of {highest:.2g}, "
    shown = ", ".join(f"{fmean(after):.3g} at {rate:.2g}" for rate, after in sorted(found.items()))
    reason = (
        f"{how}the best of {len(found)} tried on copies for {steps} steps each; loss on batches held back "
        f"for this: {start:.3g} before, then {shown}"
    )
    every = [loss for loss in losses + others if math.isfinite(loss)]
    return RateTrials(PeakRate(value, reason, fmean(every), _margin(every)), seconds)


def _equals(losses: Sequence[float], lowest: Sequence[float], chance: float) -> bool:
    """Return whether losses are at most as high as others on the same batches, or higher by chance only.

    Chance is the standard error of the difference; for a single batch, ``chance``.

    >>> _equals([0.50, 0.41], [0.51, 0.39], 0.0), _equals([0.55, 0.45], [0.51, 0.39], 0.0)
    (True, False)
    >>> _equals([0.42], [0.40], 0.03), _equals([0.44], [0.40], 0.03)
    (True, False)
    """
    differences = [one - other for one, other in zip(losses, lowest, strict=True)]
    if not all(map(math.isfinite, differences)):
        return False
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else chance
    return fmean(differences) <= error


def _margin(losses: Sequence[float]) -> float:
    """Return half of the confidence interval of 95% of the mean of some losses, by Student's distribution.

    >>> round(_margin([1.0, 2.0, 3.0]), 2)  # 4.30 standard errors with two degrees of freedom
    2.48
    """
    count = len(losses)
    if count < 2:
        return 0.0
    return float(stats.t.ppf(0.975, count - 1)) * stdev(losses) / math.sqrt(count)


def _rates(settings: FitSettings, is_too_high: Callable[[float], bool]) -> Iterator[float]:
    """List the rates to try; each is judged by ``is_too_high`` before the next is taken."""
    first = _FIRST[settings.optimizer.name]
    if settings.optimizer.name == "sgd":
        first *= (1 - settings.optimizer.momentum) / 0.1
    yield first
    upwards = not is_too_high(first)
    for step in range(1, (_UP if upwards else _DOWN) + 1):
        rate = first * _APART ** (step if upwards else -step)
        yield rate
        if is_too_high(rate) == upwards:
            return


def _samples(batches: Batches) -> tuple[list[Any], list[Any]]:
    """Return batches to train on, and others that are held back; the same where there is only one.

    Where a pass is short, there are batches of several passes, each with augmentations of its own.
    """
    wanted = _STEPS + _HELD_BACK
    taken = list(islice(iter(batches), wanted))
    while 0 < len(taken) < wanted and epoch_of(batches) is not None:
        taken += islice(iter(batches), wanted - len(taken))
    if not taken:
        raise DataError("there are no batches to train on: the batch size is larger than the data set")
    held_back = min(_HELD_BACK, max(1, len(taken) // 4))
    return taken[held_back:] or taken, taken[:held_back]


def _tell(after_step: AfterStep, before: int, most: int, number: int) -> None:
    after_step(before + number, most)


def _steps(trained_on: Sequence[Any]) -> int:
    return min(_STEPS, _REPEATS * len(trained_on))


def _trial(
    model: nn.Module,
    rate: float,
    settings: FitSettings,
    batches: tuple[Sequence[Any], Sequence[Any]],
    loss_of: BatchLoss,
    after_step: Callable[[int], None] | None,
) -> list[float]:
    """Train a copy at a rate; return the loss on each held-back batch, infinity if one is not finite."""
    trained_on, held_back = batches
    copy = copy_with(model, {}).train()
    optimizer = make_optimizer(copy, settings.with_rate(rate).optimizer)
    factors = learning_rate_factors(settings.schedule, _steps(trained_on), max(settings.warmup, _WARMUP))
    with seeded(0):  # the same random numbers for each rate
        for number, (batch, factor) in enumerate(zip(cycle(trained_on), factors, strict=False), 1):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            try:
                take_step(copy, optimizer, partial(loss_of, copy, batch), settings.clip_norm)
            except NotFiniteError:
                return [math.inf] * len(held_back)
            if after_step is not None:
                after_step(number)
        after = _losses(copy, held_back, loss_of)
    return after if all(map(math.isfinite, after)) else [math.inf] * len(held_back)


@torch.no_grad()
def _losses(copy: nn.Module, batches: Sequence[Any], loss_of: BatchLoss) -> list[float]:
    """Compute the training loss of each batch, in training mode as during training."""
    copy.train()
    with seeded(0):
        return [float(loss_of(copy, batch)) for batch in batches]
