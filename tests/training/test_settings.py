from __future__ import annotations

import pytest

from secateur.errors import UsageError
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        FitSettings(epochs=-1, label_smoothing=3, schedule="linear", colour="red")
    message = str(caught.value)
    for part in ("epochs", "label_smoothing", "schedule", "colour", "'linear'"):
        assert part in message
    assert "\n" not in message


def test_a_mistake_inside_is_named_with_its_place() -> None:
    with pytest.raises(UsageError, match=r"optimizer.momentum: .*\(is 2\)"):
        FitSettings(optimizer={"momentum": 2})


@pytest.mark.parametrize("rate", [0, -1, "autom", float("nan"), True, None])
def test_a_learning_rate_is_a_number_above_zero_or_auto(rate: object) -> None:
    with pytest.raises(UsageError) as caught:
        FitSettings(optimizer={"learning_rate": rate})
    assert str(caught.value).count("must be a number above 0, or auto") == 1
    assert str(caught.value).count("learning_rate") == 1


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(UsageError, match="nesterov needs a momentum"):
        OptimizerSettings(nesterov=True, momentum=0)


def test_settings_cannot_be_changed_and_keep_their_values() -> None:
    settings = DeviceSettings(precision="bf16")
    with pytest.raises(ValueError, match="frozen"):
        settings.precision = "float32"
    assert settings.model_dump() == {
        "accelerator": "auto",
        "devices": 1,
        "nodes": 1,
        "precision": "bf16",
        "channels_last": "auto",
    }
