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
    with pytest.raises(UsageError, match=r"optimizer.learning_rate: .*\(is 0\)"):
        FitSettings(optimizer={"learning_rate": 0})


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
