"""Files of the user's are run once, and whatever they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur.errors import UsageError
from secateur.models import ModelSpec, build
from secateur.models.userfile import find_function

COUNTS = """
import sys
from torch import nn
sys.modules["sys"].runs = getattr(sys, "runs", 0) + 1
def network(num_classes={classes}):
    return nn.Linear(2, num_classes)
"""


def test_a_file_is_run_once_for_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    file = tmp_path / "net.py"
    file.write_text(COUNTS.format(classes=4))
    assert ModelSpec.parse(f"{file}:network", classes=3).build().out_features == 3
    monkeypatch.chdir(tmp_path)
    assert build("net.py:network").out_features == 4  # the same file under another name
    assert vars(sys)["runs"] == 1
    file.write_text(COUNTS.format(classes=5))
    assert build("net.py:network").out_features == 5  # it has changed
    assert vars(sys)["runs"] == 2


def test_a_file_may_register_a_rule(tmp_path: Path) -> None:
    file = tmp_path / "ruled.py"
    file.write_text(
        "import torch\n"
        "from secateur.graph import register_rule\n"
        "from torch import nn\n"
        "@torch.library.custom_op('userfile_test::scaled', mutates_args=())\n"
        "def scaled(x: torch.Tensor) -> torch.Tensor:\n"
        "    return x * 2\n"
        "@register_rule('userfile_test.scaled')\n"
        "def rule(site):\n"
        "    return None\n"
        "def network(num_classes=2):\n"
        "    return nn.Linear(2, num_classes)\n"
    )
    assert build(f"{file}:network", classes=3).out_features == 3
    assert build(f"{file}:network", classes=3).out_features == 3


def test_files_of_one_name_are_different_modules(tmp_path: Path) -> None:
    functions = []
    for classes in (3, 4):
        folder = tmp_path / str(classes)
        folder.mkdir()
        (folder / "net.py").write_text(COUNTS.format(classes=classes))
        functions.append(find_function(f"{folder}/net.py:network"))
    assert len({function.__module__ for function in functions}) == 2
    for function, classes in zip(functions, (3, 4), strict=True):
        assert vars(sys.modules[function.__module__])["network"] is function
        assert function().out_features == classes


def test_a_broken_file_leaves_no_module_behind(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    for text in ("x = 1\nraise RuntimeError('halfway')\n", "def network(:\n"):
        file.write_text(text)
        before = set(sys.modules)
        with pytest.raises(UsageError, match="broken.py cannot be run: (RuntimeError: halfway|SyntaxError)"):
            find_function(f"{file}:network")
        assert set(sys.modules) == before
    file.write_text(COUNTS.format(classes=2))
    assert build(f"{file}:network").out_features == 2
