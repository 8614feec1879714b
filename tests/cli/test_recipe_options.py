from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from secateur.jobs import prune as jobs
from secateur.jobs.settings import PruneJob
from secateur.recipes import Recipe

Command = Callable[..., Result]

OPTIONS: dict[str, tuple[object, Callable[[Recipe], Any]]] = {
    "--criterion": ("taylor-squared", lambda recipe: recipe.criterion),
    "--charge": ("params", lambda recipe: recipe.cost_regularization.unit),
    "--allocate": ("uniform", lambda recipe: recipe.allocation),
    "--repair-batches": (7, lambda recipe: recipe.reconstruct_batches),
    "--curve-batches": (3, lambda recipe: recipe.curve_batches),
    "--distill": (0.25, lambda recipe: recipe.distillation.weight),
    "--temperature": (6.5, lambda recipe: recipe.distillation.temperature),
    "--steps": (4, lambda recipe: recipe.steps),
    "--channels-per-step": (9, lambda recipe: recipe.channels_per_step),
    "--epochs-between": (2, lambda recipe: recipe.between.epochs),
    "--updates-between": (30, lambda recipe: recipe.between.updates),
    "--epochs-after": (6, lambda recipe: recipe.finetune.epochs),
    "--scoring-batches": (11, lambda recipe: recipe.scoring_batches),
    "--round-to": (8, lambda recipe: recipe.widths.multiple_of),
    "--min-channels": (5, lambda recipe: recipe.widths.min_channels),
    "--optimizer": ("adamw", lambda recipe: recipe.finetune.optimizer.name),
    "--lr": (0.0123, lambda recipe: recipe.finetune.optimizer.learning_rate),
    "--momentum": (0.8, lambda recipe: recipe.between.optimizer.momentum),
    "--weight-decay": (0.003, lambda recipe: recipe.between.optimizer.weight_decay),
    "--schedule": ("one-cycle", lambda recipe: recipe.finetune.schedule),
    "--average": (0.95, lambda recipe: recipe.finetune.average),
    "--patience": (3, lambda recipe: recipe.finetune.patience),
    "--warmup": (0.2, lambda recipe: recipe.finetune.warmup),
    "--label-smoothing": (0.15, lambda recipe: recipe.between.label_smoothing),
    "--clip-norm": (2.5, lambda recipe: recipe.finetune.clip_norm),
}
SWITCHES: dict[str, tuple[object, Callable[[Recipe], Any]]] = {
    "--no-repair": (False, lambda recipe: recipe.reconstruct),
    "--filters-only": (True, lambda recipe: recipe.filters_only),
    "--mirror": (True, lambda recipe: recipe.distillation.flip),
    "--nesterov": (True, lambda recipe: recipe.finetune.optimizer.nesterov),
    "--no-finetune": (0, lambda recipe: recipe.finetune.epochs),
}


@pytest.fixture
def asked(secateur: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Recipe]:
    """The recipe that a command line comes to; nothing is pruned."""

    class CaughtError(Exception):
        pass

    jobs_seen: list[PruneJob] = []

    def catch(job: PruneJob, *_: object) -> None:
        jobs_seen.append(job)
        raise CaughtError

    monkeypatch.setattr(jobs, "prune", catch)

    def run(*words: object) -> Recipe:
        common = ("--data", "digits", "--macs", 0.5, "--out", tmp_path / "out")
        result = secateur("prune", "secateur:digits", *common, *words)
        assert isinstance(result.exception, CaughtError), result.output
        return jobs_seen.pop().recipe

    return run


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_its_setting(option: str, asked: Callable[..., Recipe]) -> None:
    value, setting = OPTIONS[option]
    assert setting(Recipe()) != value
    several_cuts = ("--steps", 2) if option.endswith("-between") else ()
    assert setting(asked(option, value, *several_cuts)) == value


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_its_setting(switch: str, asked: Callable[..., Recipe]) -> None:
    value, setting = SWITCHES[switch]
    assert setting(Recipe()) != value
    assert setting(asked(switch)) == value


def test_without_options_the_recipe_is_as_it_stands(asked: Callable[..., Recipe]) -> None:
    assert asked() == Recipe()
    assert asked("--recipe", "plain") == Recipe.preset("plain")


TRAINS = [
    *(option for option in OPTIONS if re.search("epochs|updates|distill|temperature", option)),
    *list(OPTIONS)[list(OPTIONS).index("--optimizer") :],
    *("--mirror", "--nesterov", "--mixup"),
]


@pytest.mark.parametrize("option", TRAINS)
def test_options_of_training_are_refused_where_nothing_is_trained(
    option: str, secateur: Command, tmp_path: Path
) -> None:
    """``--no-finetune --lr 0.1`` is a slip; so is ``--lr 0.1`` without data. Either is said, none ignored."""
    words: tuple[object, ...] = (option,) if option in SWITCHES else (option, OPTIONS.get(option, (0.2,))[0])
    out = tmp_path / "out"
    common = ("prune", "secateur:digits", "--weights", "none", "--macs", 0.5, "--out", out, *words)
    for where, message in (
        (("--data", "digits", "--no-finetune"), f"--no-finetune and {option} exclude each other"),
        ((), f"without --data nothing is trained; give --data, or leave out {option}"),
    ):
        refused = secateur(*common, *where)
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
        assert not out.exists()


def test_no_epochs_are_no_training(asked: Callable[..., Recipe]) -> None:
    assert asked("--no-finetune", "--epochs-after", 0, "--distill", 0).finetune.epochs == 0


def test_a_pace_in_channels_is_kept_without_training(asked: Callable[..., Recipe]) -> None:
    assert asked("--no-finetune", "--channels-per-step", 9).channels_per_step == 9
    paced = asked("--no-finetune", "--recipe", "original")
    assert paced.channels_per_step == Recipe.preset("original").channels_per_step
    assert paced.finetune.epochs == 0
    assert asked("--no-finetune").steps == 1
    assert asked("--no-finetune", "--steps", 3).steps == 3
    assert asked("--no-finetune", "--steps", 3, "--recipe", "original").channels_per_step is None
