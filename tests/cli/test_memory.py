from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")

SCRIPT = """
import resource, sys
import torch
from secateur.cli.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def passes():
    for _ in range(5):
        blocks = [torch.zeros(12 << 20) for _ in range(4)]
        del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

passes()
before = faults()
passes()
print(faults() - before)
"""
PAGES = 5 * 4 * (48 << 20) // 4096


def faults(mode: str, **environment: str) -> int:
    """Count the page faults of passes in a process."""
    unset = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, mode],
        env=unset | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_memory_is_kept_unless_the_environment_configures_it() -> None:
    assert faults("kept") < PAGES / 100
    ordinary = faults("ordinary")
    assert ordinary > PAGES / 100
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072") > PAGES / 100


def test_the_library_never_changes_how_memory_is_kept() -> None:
    code = (
        "import ctypes, sys\n"
        "class Library(ctypes.CDLL):\n"
        "    def __getattr__(self, name):\n"
        "        print(name) if name == 'mallopt' else None\n"
        "        return super().__getattr__(name)\n"
        "ctypes.CDLL = Library\n"
        "import torch\nimport secateur as sec\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "sec.measure_latency(net, torch.randn(2, 4), min_seconds=0)\n"
        "sec.prune(net, torch.randn(2, 4), sec.Budget(macs=0.5), 'magnitude')\n"
        "from secateur.cli import main\n"
        "print('command line')\n"
        "sys.argv = ['secateur', '--version']\n"
        "try: main()\nexcept SystemExit: pass\n"
    )
    unset = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=unset | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    library, _, command_line = done.stdout.partition("command line")
    assert "mallopt" not in library
    assert "mallopt" in command_line
