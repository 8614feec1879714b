"""Libraries that only some users have: imported when needed, and kept from calling home."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from secateur.errors import UsageError

_EXTRA_OF = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
}
_TELEMETRY = "openvino_telemetry"


def optional(name: str) -> Any:
    """A module that belongs to an extra.

    OpenVINO and NNCF report what they are used for to their makers unless the user has refused in a file in
    the home folder. Here they are imported as if their telemetry package were not installed, for which both
    have a stand-in that sends nothing. If a program has imported them before, its choice stands.

    Args:
        name: ``onnx``, ``onnxscript``, ``onnxruntime``, ``openvino`` or ``nncf``.

    Raises:
        UsageError: it is not installed; the message says what to install.

    >>> optional("onnx").__name__
    'onnx'
    """
    if find_spec(name) is None:
        raise UsageError(f"{name} is not installed: pip install 'secateur[{_EXTRA_OF[name]}]'")
    with _without_telemetry(), warnings.catch_warnings():
        # What these libraries deprecate among themselves is not for our users to mend.
        warnings.simplefilter("ignore")
        module = import_module(name)
    if name == "onnxruntime":
        module.disable_telemetry_events()
    return module


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Makes the import of the telemetry package fail for the length of a block."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: there is no such module
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
