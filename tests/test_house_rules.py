from __future__ import annotations

import ast
import re
from collections import Counter
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
