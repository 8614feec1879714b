from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import secateur


def test_every_public_name_has_a_home():
    assert set(secateur.__all__) == {*secateur._MODULE_OF, "__version__"}
    assert dir(secateur) == sorted(secateur.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="prunee"):
        _ = secateur.prunee


def test_a_submodule_does_not_hide_the_function_of_its_name():
    error = import_module("secateur.errors")
    secateur.cost = error  # what the import system does after importing secateur.cost
    assert secateur.__dict__.get("cost") is not error


def test_import_is_light():
    code = "import sys, secateur; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
