"""Import a library that need not be installed, and look at files that describe networks."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import secateur._torchvision  # noqa: F401  declares the operators without which these libraries fail
from secateur.errors import UsageError
from secateur.inputs import Json

PACKAGES = {
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "diffusers": "diffusers",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
}
"""Names on the package index, by module, of libraries that Secateur does not require."""

EXTRAS = {
    "timm": "timm",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "sklearn": "demo",
    "tensorboard": "tensorboard",
}
"""The extra that installs a module."""


def library(name: str) -> Any:
    """Import a library.

    Args:
        name: of its module, or of one within it.

    Raises:
        UsageError: it is not installed; the message has the command that installs it.
    """
    module = name.partition(".")[0]
    if find_spec(module) is None:
        package = PACKAGES.get(module, module)
        install = f"'torch-secateur[{EXTRAS[module]}]'" if module in EXTRAS else package
        raise UsageError(f"{package} is not installed: pip install {install}")
    with warnings.catch_warnings(action="ignore"):
        # Users cannot fix deprecations between these libraries.
        return import_module(name)


@contextmanager
def quiet_logs(level: int) -> Iterator[None]:
    """Switch off all logs up to a level within a block.

    >>> with quiet_logs(logging.ERROR):
    ...     logging.getLogger("of a library").error("not shown")
    """
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Switch off the progress bars of transformers, and its log, which comments on what it loads."""
    bars: Any = library("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with quiet_logs(logging.ERROR):
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


def config_file(origin: str, name: str) -> Path:
    """Find the ``config.json`` of a network.

    Args:
        origin: what stands before the colon, for messages.
        name: the folder that holds it, or the file.

    Raises:
        UsageError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UsageError(
            f"{origin}:{name} is neither a folder with a config.json nor such a file, and nothing is "
            f"downloaded; fetch it first (hf download NAME --local-dir FOLDER) and write {origin}:FOLDER"
        )
    return path


def read_config(origin: str, name: str) -> dict[str, Any]:
    """Read the ``config.json`` of a network.

    Raises:
        UsageError: it is not there, or no JSON object.
    """
    path = config_file(origin, name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__}, not a JSON object of settings")
    return data


def positive(origin: str, key: str, value: Json) -> int | None:
    """Check a setting that is a positive whole number, or missing.

    Raises:
        UsageError: it is something else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise UsageError(f"{origin}: {key} is a positive whole number, not {value!r}")


class LocalFolders:
    """What families have in common whose networks are folders with a ``config.json``.

    Attributes:
        origin: what stands before the colon in a specification.
    """

    origin: ClassVar[str]

    def names(self) -> list[str]:
        """Return no names: networks are folders."""
        return []

    def known(self, name: str) -> bool:
        """Check that the folder or file is there."""
        return config_file(self.origin, name).is_file()

    def has_weights(self, name: str) -> bool:
        """Look for ``*.safetensors`` beside the config."""
        return any(config_file(self.origin, name).parent.glob("*.safetensors"))
