"""What is shipped installs, runs from anywhere, and holds what its own tests need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import secateur as sec
from secateur.integrations.libraries import EXTRAS, PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    place = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert re.findall(r'^__version__ = "(.+)"$', place.read_text(), re.MULTILINE) == [sec.__version__]


def test_the_package_says_that_it_is_typed():
    assert (Path(sec.__file__).parent / "py.typed").is_file()


def test_every_extra_that_is_named_exists():
    extras = PROJECT["project"]["optional-dependencies"]
    named = {
        name
        for path in Path(sec.__file__).parent.rglob("*.py")
        for name in re.findall(r"secateur\[(\w+)\]", path.read_text())
    }
    assert named | set(EXTRAS.values()) <= extras.keys()
    for module, extra in EXTRAS.items():
        package = PACKAGES.get(module, module)
        assert any(re.match(rf"{package}\b", entry) for entry in extras[extra])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell):
    words = {"COMP_WORDS": "secateur ex", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "secateur ex"}
    environment = os.environ | words | {"_SECATEUR_COMPLETE": f"complete_{shell}"}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys; sys.argv[0] = 'secateur'; from secateur.cli import app; app(prog_name='secateur')"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "export" in found.stdout
    assert "measure" not in found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not installed")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "from hatchling.build import build_sdist, build_wheel; import sys; "
        "build_wheel(sys.argv[1]); build_sdist(sys.argv[1])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment, check=True)
    return folder


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_need(built: Path, tmp_path: Path):
    [file] = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, filter="data")
    [root] = tmp_path.iterdir()
    assert root.name == f"torch_secateur-{sec.__version__}"
    shipped = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    for folder in ("src", "tests", "docs", "benchmarks"):
        needed = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".pyo") and ".pytest_cache" not in path.parts
        }
        assert needed <= shipped
    quick = ["tests/test_public_names.py", "tests/test_files.py"]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_an_environment_of_its_own(built: Path, tmp_path: Path):
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "secateur/py.typed" in names
    assert all(name.startswith(("secateur/", "torch_secateur-")) for name in names)
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    binaries = home / ("Scripts" if os.name == "nt" else "bin")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # pip from outside puts nothing but the wheel itself into the new environment.
    pip = [sys.executable, "-m", "pip", "--python", str(home), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], env=environment, check=True)
    # The heavy libraries are lent by this environment; Secateur itself must come from the wheel.
    [site] = (home / "lib").glob("python*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("\n".join(lent))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = str(binaries / "python")
    assert Path(run(python, "-c", "import secateur; print(secateur.__file__)").strip()).is_relative_to(home)
    assert run(str(binaries / "secateur"), "--version").startswith(f"secateur {sec.__version__}\n")
    assert "verified:" in run(python, "-m", "secateur", "demo", "--out", "runs/demo")
    assert (elsewhere / "runs" / "demo" / "pruned" / "summary.json").is_file()
