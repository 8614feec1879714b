from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import secateur

ROOT = Path(secateur.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def test_every_file_says_what_it_holds() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_file_or_function_is_defined_twice_in_one_place() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        assert not [name for name, count in names.items() if count > 1], path


def test_private_parts_of_torch_are_imported_in_one_file() -> None:
    private = re.compile(r"torch(\.\w+)*\._")
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            else:
                continue
            found = [name for name in names if private.match(name) and not name.endswith("__")]
            assert not found or path.name == "_compat.py", f"{path}: import {found[0]} from secateur._compat"


def definitions() -> Iterator[tuple[Path, ast.AST]]:
    """Every class and function of the package, with its file."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_docstrings_begin_in_plain_words() -> None:
    """A function returns a string, and does not "say" it; and "X whose Y" is shorter than "X of which Y"."""
    for path, node in definitions():
        first, *_ = (ast.get_docstring(node) or "").splitlines() or [""]  # type: ignore[arg-type]
        assert not first.startswith("Say "), f"{path}: {first}"
        assert " of which " not in first, f"{path}: {first}"


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path, node in definitions():
        if isinstance(node, ast.ClassDef):
            places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_function_has_more_than_eight_parameters() -> None:
    # A command has a parameter for each of its options.
    many = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, node in definitions()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and path.relative_to(ROOT).parts[0] != "cli"
        and len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        - any(argument.arg in ("self", "cls") for argument in node.args.args[:1])
        > 8
    ]
    assert many == []
