"""Create the settings of commands without a run folder from their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from secateur.cli.processes import process_counts
from secateur.errors import UsageError

if TYPE_CHECKING:
    from secateur.jobs.settings import DataChoice, NetworkChoice
    from secateur.training.settings import DeviceSettings


def network_choice(
    source: str,
    *,
    weights: str | None = None,
    builder: str | None = None,
    size: int | None = None,
    classes: int | None = None,
    trusted: bool = False,
) -> NetworkChoice:
    """Choose a network.

    Raises:
        UsageError: a value is wrong.
    """
    from secateur.jobs.settings import NetworkChoice

    with option_names({"source": "", "weights": "--weights: ", "builder": "--builder: "}):
        return NetworkChoice(
            source=source, weights=weights, builder=builder, size=size, classes=classes, trusted=trusted
        )


def data_choice(
    source: str, batch_size: int | None, strict: bool, text: Mapping[str, object] | None = None
) -> DataChoice:
    """Choose images or text.

    Raises:
        UsageError: a value is wrong.
    """
    from secateur.jobs.settings import DataChoice

    with option_names({"source": "--data: "}):
        return DataChoice(source=source, batch_size=batch_size, strict=strict, text=text or {})


def device_choice(accelerator: str, precision: str = "float32", devices: int | None = None) -> DeviceSettings:
    """Choose where to compute, and in how many processes.

    Raises:
        UsageError: a value is wrong, or ``torchrun`` has started another number of processes.
    """
    from secateur.training.settings import DeviceSettings

    with option_names({"accelerator": "--device: ", "precision": "--precision: "}):
        return DeviceSettings(accelerator=accelerator, precision=precision, **process_counts(devices))


@contextmanager
def option_names(names: Mapping[str, str]) -> Iterator[None]:
    """Name options instead of settings in error messages.

    Args:
        names: the text before a message, by the first name of a setting's path.
    """
    from secateur.settings import SettingsError

    try:
        yield
    except SettingsError as error:
        lines = [f"{names.get(path.partition('.')[0], f'{path}: ')}{text}" for path, text in error.mistakes]
        raise UsageError("; ".join(lines)) from None
