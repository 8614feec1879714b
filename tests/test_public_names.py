from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import secateur

MODULE_OF = {name: module for module, names in secateur._NAMES.items() for name in names.split()}


def test_every_public_name_has_a_home():
    assert set(secateur.__all__) == {*MODULE_OF, "__version__"}
    assert dir(secateur) == sorted(secateur.__all__)


def test_type_checkers_and_the_interpreter_find_the_same_names():
    tree = ast.parse(Path(secateur.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"secateur.{module}" for name, module in MODULE_OF.items()}


def test_a_name_is_imported_when_it_is_asked_for():
    assert secateur.build is import_module("secateur.models").build


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="prunee"):
        _ = secateur.prunee


def test_a_submodule_hides_no_public_name():
    for module in set(MODULE_OF.values()):
        import_module(f"secateur.{module}")
    assert not [name for name in secateur.__all__ if isinstance(getattr(secateur, name), ModuleType)]


def test_import_is_light():
    code = "import sys, secateur; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
