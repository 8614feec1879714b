from __future__ import annotations

import json

import pytest

from secateur.errors import UsageError
from secateur.recipes import PRESETS, Recipe
from secateur.training.settings import FitSettings


def test_the_class_defaults_are_the_default_recipe() -> None:
    assert Recipe() == Recipe.preset("default")


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_comes_back_from_its_plain_values(name: str) -> None:
    recipe = Recipe.preset(name)
    assert Recipe(**json.loads(recipe.model_dump_json())) == recipe
    assert recipe.changed({}) == recipe


def test_single_settings_can_be_changed_and_all_others_stay() -> None:
    optimizer = {"learning_rate": 0.1}
    changed = Recipe.preset(
        "original",
        between={"epochs": 2, "optimizer": optimizer},
        finetune={"epochs": 3, "optimizer": optimizer},
        widths={"multiple_of": 8},
    )
    original = Recipe.preset("original")
    assert (changed.between.epochs, changed.finetune.epochs) == (2, 3)
    assert changed.between.optimizer.learning_rate == changed.finetune.optimizer.learning_rate == 0.1
    assert changed.between.optimizer.momentum == original.between.optimizer.momentum
    assert (changed.channels_per_step, changed.filters_only, changed.widths.multiple_of) == (512, True, 8)


def test_whole_settings_replace_what_was() -> None:
    phase = FitSettings(epochs=3)
    assert Recipe.preset("original", finetune=phase).finetune == phase


def test_partial_settings_are_completed_from_the_default_recipe() -> None:
    assert Recipe(finetune={"epochs": 4}) == Recipe().changed({"finetune": {"epochs": 4}})
    assert Recipe(finetune={"epochs": 4}).finetune.clip_norm == Recipe().finetune.clip_norm == 5.0
    assert Recipe(steps=3, between={"updates": 30}).between.epochs is None
    assert Recipe(distillation={"flip": True}).distillation.weight == 0.9


def test_alternatives_replace_each_other() -> None:
    assert Recipe.preset("original", steps=4).channels_per_step is None
    assert Recipe.preset("plain", channels_per_step=7).steps == 1
    assert Recipe.preset("paper", between={"epochs": 1}).between.updates is None
    assert Recipe(steps=2).changed({"between": {"updates": 9}}).between.epochs is None


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="choose one of default, plain, one-shot, original, paper"):
        Recipe.preset("stew")
    with pytest.raises(UsageError, match="steps and channels_per_step exclude"):
        Recipe.preset("plain", steps=2, channels_per_step=1)
    with pytest.raises(UsageError, match="between.epochs and between.updates exclude"):
        Recipe.preset("plain", between={"epochs": 1, "updates": 1})
    with pytest.raises(UsageError, match="between.epochs: no effect while there is one cut; set steps"):
        Recipe().changed({"between": {"epochs": 1}})
    with pytest.raises(UsageError, match=r"steps: .*between.optimizer.name: .*finetune.schedule: "):
        Recipe().changed(
            {
                "steps": 0,
                "between": {"optimizer": {"name": "adam"}},
                "finetune": {"schedule": "linear"},
            }
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"epoch": 4}}, "finetune.epoch: unknown; did you mean 'finetune.epochs'"),
        (
            {"finetune": {"optimizer": {"learning_rat": 1}}},
            "finetune.optimizer.learning_rat: unknown; did you mean 'finetune.optimizer.learning_rate'",
        ),
        ({"criterium": "taylor"}, "criterium: unknown; did you mean 'criterion'"),
        ({"widths": {"min_channel": 4}}, "widths.min_channel: unknown; did you mean 'widths.min_channels'"),
        ({"xyz": 1}, "xyz: unknown; choose one of criterion, normalize, "),
        ({"widths": {"multiple_of": 0}}, "widths.multiple_of: must be an integer of at least 1, not 0"),
    ],
)
def test_a_wrong_name_or_value_is_named_by_its_path(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe().changed(changes)
    with pytest.raises(UsageError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("setting", "switched_off", "message"),
    [
        (
            {"distillation": {"flip": True}},
            {"distillation": {"weight": 0}},
            "distillation.flip: no effect while distillation.weight is 0; set distillation.weight to 0.9",
        ),
        (
            {"distillation": {"temperature": 3.0}},
            {"distillation": {"weight": 0}},
            "distillation.temperature: no effect .*or leave distillation.temperature out",
        ),
        (
            {"reconstruct_batches": 5},
            {"reconstruct": False},
            "reconstruct_batches: no effect while reconstruct is false; set reconstruct to true",
        ),
        (
            {"curve_batches": 5},
            {"allocation": "global"},
            "curve_batches: no effect while allocation is 'global'; set allocation to 'curves'",
        ),
    ],
)
def test_a_setting_of_what_is_not_done_is_a_mistake(
    setting: dict[str, object], switched_off: dict[str, object], message: str
) -> None:
    Recipe().changed(setting)
    with pytest.raises(UsageError, match=message):
        Recipe().changed(switched_off).changed(setting)
    with pytest.raises(UsageError, match="no effect"):
        Recipe.preset("plain", **setting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize": "l1"}, "normalize: no effect while allocation is 'curves'"),
        (
            {"cost_regularization": {"rate": 0.5}},
            "cost_regularization.rate: no effect while",
        ),
        (
            {"steps": 3, "between": {"epochs": 0, "warmup": 0.1}},
            "warmup: no effect while between.epochs is 0",
        ),
        ({"between": {"epochs": 1, "warmup": 0.1}}, "between.warmup: no effect while there is one cut"),
        (
            {"finetune": {"epochs": 0, "clip_norm": 1.0}},
            "finetune.clip_norm: no effect while finetune.epochs is 0",
        ),
        (
            {"finetune": {"optimizer": {"name": "adamw", "momentum": 0.5}}},
            "finetune.optimizer.momentum: no effect while finetune.optimizer.name is 'adamw'",
        ),
        (
            {"steps": 3, "between": {"epochs": 1, "patience": 2}},
            "between.patience: no effect while .* after the last cut only; set finetune.patience",
        ),
    ],
)
def test_a_setting_that_another_one_switches_off_is_a_mistake(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe().changed(changes)
    assert Recipe.from_table(changes)  # a file may hold all settings


def test_cost_regularization_is_for_scores_that_are_compared_between_groups() -> None:
    assert Recipe().allocation == "curves"
    cost = {"quantity": "macs"}
    assert Recipe().changed({"cost_regularization": cost}).allocation == "global"
    assert Recipe.preset("default", cost_regularization=cost, allocation="uniform").allocation == "uniform"
    with pytest.raises(
        UsageError, match="cost_regularization.quantity: no effect while allocation is 'curves'"
    ):
        Recipe(cost_regularization=cost, allocation="curves")


def test_the_named_protocols_have_nothing_that_their_authors_had_not() -> None:
    for name in ("plain", "original", "paper"):
        recipe = Recipe.preset(name)
        assert (recipe.allocation, recipe.reconstruct, recipe.distillation.weight) == ("global", False, 0.0)


def test_one_shot_neither_reconstructs_nor_trains() -> None:
    recipe = Recipe.preset("one-shot")
    assert (recipe.steps, recipe.reconstruct, recipe.between.epochs, recipe.finetune.epochs) == (
        1,
        False,
        0,
        0,
    )
