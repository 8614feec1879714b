"""Find the module and the line of the user's code that an error is about."""

from __future__ import annotations

import inspect
import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.fx import Graph

_OURS, _TORCH = Path(__file__).resolve().parents[1], Path(torch.__file__).resolve().parent
_STANDARD = Path(sysconfig.get_paths()["stdlib"]).resolve()


@dataclass(frozen=True)
class SourceLocation:
    """Where an error was raised: a module and a line of the user's code, as far as they are known."""

    module: str = ""
    line: str = ""
    source: str = ""

    def __str__(self) -> str:
        source = f", `{self.source}`" if self.source else ""
        line = f" at {self.line}{source}" if self.line else ""
        return (f" in {self.module}" if self.module else "") + line


def location_of(model: nn.Module, *errors: BaseException) -> SourceLocation:
    """Find the innermost module and the innermost line of the user's code in the traceback of an error.

    Args:
        model: the network.
        errors: the error; then the one that was caught before it, if that is the one to find.
    """
    paths = {id(module): (path, module) for path, module in model.named_modules()}
    location = SourceLocation()
    for frame, number in _frames(*errors):
        first = frame.f_code.co_varnames[:1]
        owner = paths.get(id(frame.f_locals.get(first[0]))) if first else None
        module = named(*owner) if owner is not None else location.module
        if _is_users(frame.f_code.co_filename):
            file = frame.f_code.co_filename
            location = SourceLocation(module, f"{file}:{number}", linecache.getline(file, number).strip())
        else:
            location = SourceLocation(module, location.line, location.source)
    return location


def _frames(*errors: BaseException) -> Iterator[tuple[FrameType, int]]:
    """List the frames of tracebacks from torch's first one: those before it only ask for the capture."""
    inside = False
    for error in errors:
        for frame, number in traceback.walk_tb(error.__traceback__):
            inside = inside or _below(frame.f_code.co_filename, _TORCH)
            if inside:
                yield frame, number


def location_in_stack(text: str, modules: Sequence[str]) -> SourceLocation:
    """Find the innermost module and the innermost line of the user's code in a stack that is kept as text."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', text)
    own = [(file, number, source) for file, number, source in lines if _is_users(file)]
    module = f"'{modules[-1]}'" if modules and modules[-1] else ""
    if not own:
        return SourceLocation(module)
    file, number, source = own[-1]
    return SourceLocation(module, f"{file}:{number}", source.strip())


def _is_users(file: str) -> bool:
    if file.startswith("<") or _below(file, _TORCH) or _below(file, _OURS):
        return False
    return not _below(file, _STANDARD) or "site-packages" in file or "dist-packages" in file


def _below(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)


def lines_with(model: nn.Module, pattern: str) -> list[tuple[str, str]]:
    """Find the lines of the user's forward passes that match a pattern: location and text."""
    found = []
    for kind in {type(module) for module in model.modules()}:
        try:
            lines, start = inspect.getsourcelines(kind.forward)
            file = inspect.getsourcefile(kind) or ""
        except (OSError, TypeError):  # made without a source file
            continue
        if _is_users(file):
            found += [
                (f"{file}:{start + number}", line.strip())
                for number, line in enumerate(lines)
                if re.search(pattern, line)
            ]
    return sorted(found)


def named(path: str, module: nn.Module) -> str:
    """Name a module by its path and class."""
    return f"'{path}' ({type(module).__name__})" if path else f"the network itself ({type(module).__name__})"


def name_modules(model: nn.Module, graph: Graph) -> None:
    """Let operators name their modules as ``named_modules`` does, in place.

    A program names a module that has several names by the one that was called, and one that was called in a
    piece of a container by its position in that piece: ``layers.slice(2, 4, None).0``.

    Args:
        model: the network.
        graph: its captured program.
    """
    names = {id(module): path for path, module in model.named_modules()}
    known: dict[str, str] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        for call, (path, kind) in (stack or {}).items():
            if path not in known:
                known[path] = names.get(id(_module_at(model, path)), path)
            if known[path] != path:
                stack[call] = (known[path], kind)


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    """Find a module by its path, in which pieces of containers may occur."""
    module: nn.Module | None = model
    children: dict[str, nn.Module | None] = dict(model._modules)
    for name in path.split(".") if path else ():
        piece = re.fullmatch(r"slice\((.+), (.+), (.+)\)", name)
        if piece is None:
            module = children.get(name)
            children = {} if module is None else dict(module._modules)
            continue
        borders = [None if border == "None" else int(border) for border in piece.groups()]
        items = list(children.items())[slice(*borders)]
        named = isinstance(module, nn.Sequential)  # other containers count from the front again
        children = {key if named else str(number): child for number, (key, child) in enumerate(items)}
    return module
