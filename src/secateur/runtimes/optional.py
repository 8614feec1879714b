"""Import libraries that belong to an extra."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from secateur.errors import UsageError

EXTRA_OF = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}
"""The extra that installs a module."""


def optional(name: str) -> Any:
    """Import a module that belongs to an extra.

    Args:
        name: ``onnx``, ``onnxscript`` or ``onnxruntime``.

    Raises:
        UsageError: it is not installed; the message says what to install.

    >>> optional("onnx").__name__
    'onnx'
    """
    if find_spec(name) is None:
        raise UsageError(f"{name} is not installed: pip install 'torch-secateur[{EXTRA_OF[name]}]'")
    with warnings.catch_warnings():
        # A user can do nothing about deprecations between these libraries.
        warnings.simplefilter("ignore")
        module = import_module(name)
    if name == "onnxruntime":
        module.disable_telemetry_events()
    return module
