"""Build networks from a user's file: ``nets/mine.py:network``.

This runs the file. That happens only for a specification that the user wrote, on the command line or in a
call, and never for one that was read from a checkpoint.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType

from torch import nn

from secateur.errors import UsageError, closest


def names_a_file(spec: str) -> bool:
    """Return whether a specification names a function in a file.

    >>> names_a_file("nets/mine.py:network"), names_a_file("torchvision:resnet18")
    (True, False)
    """
    path, colon, _ = spec.rpartition(":")
    return bool(colon) and Path(path).suffix == ".py"


def find_function(spec: str) -> Callable[..., nn.Module]:
    """Run the file and return the function that the specification names.

    Args:
        spec: ``path/to/file.py:function``.

    Raises:
        UsageError: if there is no such file or function, or if running the file fails.
    """
    path, _, name = spec.rpartition(":")
    module = _run(Path(path))
    function = getattr(module, name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{path} has no function {name!r}{closest(name, public)}")
    return function  # type: ignore[no-any-return]  # its result is checked where it is called


def takes(function: Callable[..., object], argument: str) -> bool:
    """Return whether a function can be called with this keyword argument.

    >>> takes(lambda num_classes: None, "num_classes"), takes(lambda: None, "num_classes")
    (True, False)
    """
    parameters = signature(function).parameters
    return argument in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())


_RUN: dict[Path, tuple[bytes, ModuleType]] = {}
"""The content and module of each file that was run: a file may contain what can be done only once."""


def _run(path: Path) -> ModuleType:
    """Return the module of a file, which is run only once while its content stays the same."""
    if not path.is_file():
        raise UsageError(f"no file {path}: give an existing file as path/to/file.py:function")
    place = path.resolve()
    try:
        content = place.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if place in _RUN and _RUN[place][0] == content:
        return _RUN[place][1]
    # A unique name, so that the file hides no module; registered, since data classes need that.
    number = hashlib.sha256(str(place).encode()).hexdigest()[:12]
    spec = spec_from_file_location(f"_secateur_user_{path.stem}_{number}", place)
    assert spec is not None  # a file whose name ends in .py always has a loader
    assert spec.loader is not None
    module = module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module
    # The file may import files in its folder, as a script may.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        # Compiled here, since the loader's cache misses changes within the same second.
        exec(compile(content, str(place), "exec"), vars(module))  # the user named this file
    except BaseException as error:
        if before is None:
            sys.modules.pop(spec.name, None)
        else:
            sys.modules[spec.name] = before
        if not isinstance(error, Exception):
            raise
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    _RUN[place] = content, module
    return module
