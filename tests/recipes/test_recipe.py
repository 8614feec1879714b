from __future__ import annotations

import pytest

from secateur.errors import UsageError
from secateur.recipes import RECIPES, recipe


def test_a_name_alone_is_the_recipe_itself() -> None:
    for name, settings in RECIPES.items():
        assert recipe(name) == settings


def test_single_settings_can_be_changed_and_all_others_stay() -> None:
    changed = recipe(
        "original", epochs_between=2, epochs_after=3, optimizer={"learning_rate": 0.1}, round_to=8
    )
    original = RECIPES["original"]
    assert (changed.between.epochs, changed.after.epochs) == (2, 3)
    assert changed.between.optimizer.learning_rate == changed.after.optimizer.learning_rate == 0.1
    assert changed.between.optimizer.momentum == original.between.optimizer.momentum
    assert (changed.channels_per_step, changed.filters_only, changed.round_to) == (512, True, 8)


def test_steps_and_channels_per_step_replace_each_other() -> None:
    assert recipe("original", steps=4).channels_per_step is None
    assert recipe(channels_per_step=7).channels_per_step == 7
    assert recipe("paper", epochs_between=1).between.updates is None
    assert recipe(steps=2, updates_between=9).between.updates == 9


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="choose one of default, plain, original, paper"):
        recipe("stew")
    with pytest.raises(UsageError, match="steps and channels per step exclude"):
        recipe(steps=1, channels_per_step=1)
    with pytest.raises(UsageError, match="epochs and updates between"):
        recipe(epochs_between=1, updates_between=1)
    with pytest.raises(UsageError, match="one cut, and nothing between; give more steps"):
        recipe(epochs_between=1)
    with pytest.raises(UsageError, match=r"steps: .*between.optimizer.name: .*after.schedule: "):
        recipe(steps=0, optimizer={"name": "adam"}, after={"schedule": "linear"})


@pytest.mark.parametrize(
    ("setting", "value", "switched_off", "message"),
    [
        ("mirror", True, {"distill": 0.0}, "mirror: without effect while distill is 0.0; set distill to 0.9"),
        ("temperature", 3.0, {"distill": 0.0}, "temperature: without effect .*or leave temperature out"),
        ("repair_batches", 5, {"repair": False}, "while repair is false; set repair to true"),
        ("curve_batches", 5, {"allocate": "global"}, "while allocate is global; set allocate to curves"),
    ],
)
def test_a_setting_of_what_is_not_done_is_a_mistake(
    setting: str, value: object, switched_off: dict[str, object], message: str
) -> None:
    assert getattr(recipe(**{setting: value}), setting) == value
    with pytest.raises(UsageError, match=message):
        recipe(**{setting: value}, **switched_off)
    with pytest.raises(UsageError, match="without effect"):
        recipe("plain", **{setting: value})


def test_both_phases_or_only_the_last_are_changed() -> None:
    changed = recipe(both={"clip_norm": 2.0}, after={"average": 0.9, "warmup": None})
    assert (changed.between.clip_norm, changed.after.clip_norm) == (2.0, 2.0)
    assert (changed.between.average, changed.after.average, changed.after.warmup) == (0.0, 0.9, 0.0)


def test_charges_are_for_scores_that_are_compared_between_groups() -> None:
    assert recipe().allocate == "curves"
    assert recipe(charge="macs").allocate == "global"
    assert recipe(charge="macs", allocate="uniform").allocate == "uniform"


def test_the_named_protocols_have_nothing_that_their_authors_had_not() -> None:
    for name in ("plain", "original", "paper"):
        settings = RECIPES[name]
        assert (settings.allocate, settings.repair, settings.distill) == ("global", False, 0.0)
