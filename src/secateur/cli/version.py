"""Define the option ``secateur --version``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import secateur

_NEEDED = ("torch", "torchvision")
_OPTIONAL = ("timm", "onnx", "onnxruntime")


def version_lines() -> Iterator[str]:
    """List the versions of Secateur and of the packages that it needs, the devices, and the extras."""
    yield f"secateur {secateur.__version__}"
    parts = [f"python {platform.python_version()}", *filter(None, map(_named, _NEEDED))]
    yield ", ".join(parts)
    yield f"devices: {', '.join(_devices())}"
    extras = list(filter(None, map(_named, _OPTIONAL)))
    yield f"optional: {', '.join(extras) or 'none'}"


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[str]:
    """List where networks can run."""
    import torch

    threads = torch.get_num_threads()
    yield f"cpu ({threads} thread{'s' * (threads != 1)})"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index} ({torch.cuda.get_device_name(index)})"
    if torch.backends.mps.is_available():
        yield "mps"
