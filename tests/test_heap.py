from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")

SCRIPT = """
import contextlib, ctypes, resource
import torch
from secateur.heap import kept_heap

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

def mapped(size):
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Info
    block = torch.empty(size, dtype=torch.uint8)
    return library.mallinfo2().hblkhd // size

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def passes():
    for _ in range(5):
        blocks = [torch.zeros(12 << 20) for _ in range(4)]
        del blocks

def counted():
    passes()
    before = faults()
    passes()
    return faults() - before

before = resident()
with kept_heap():
    with contextlib.suppress(ValueError), kept_heap():
        inside = counted()
        raise ValueError("leaves the inner block")
    still = counted()
    held = resident() - before
    within = mapped(1 << 30)
print(inside, still, held, within, resident() - before, mapped(1 << 31))
"""
BLOCKS = 4 * 48 << 20
PAGES = 5 * BLOCKS // 4096


def counts(**environment: str) -> list[int]:
    """What the script prints."""
    around = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=around, capture_output=True, text=True, check=True
    )
    return [int(word) for word in run.stdout.split()]


def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    inside, still, held, mapped_within, left, mapped_after = counts()
    assert inside < PAGES / 100
    assert still < PAGES / 100
    assert held > 0.9 * BLOCKS
    assert mapped_within == 0
    assert left < BLOCKS / 10
    assert mapped_after == 1  # a larger block comes from the system again


def test_what_the_environment_says_of_memory_is_left_alone() -> None:
    """Each of these blocks is fetched from the system page by page then."""
    inside, *_ = counts(MALLOC_MMAP_THRESHOLD_="1000000")
    assert inside > 0.9 * PAGES


LIBRARY = """
import torch
from torch import nn
import secateur as sec
from secateur import heap
from secateur.training.evaluate import evaluate
from secateur.training.loop import fit
from secateur.training.settings import FitSettings

calls = []
heap._apply = calls.append
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]

def work():
    graph = sec.trace(net, torch.randn(2, 4))
    sec.score(net, graph, "taylor", batches, nn.functional.cross_entropy)
    sec.measure_latency(net, torch.randn(2, 4), min_runs=1, min_seconds=0)
    fit(net, batches, FitSettings(epochs=1))
    evaluate(net, batches)
    return len(calls)

before = work()
with heap.kept_heap():
    pass
asked = len(calls)
heap.keep_in_this_process()
print(before, asked, work() > asked)
"""


def test_the_library_leaves_the_process_alone_unless_it_is_asked() -> None:
    around = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", LIBRARY], env=around, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0", "2", "True"]


def test_the_program_keeps_memory() -> None:
    code = "import sys; sys.argv = ['secateur', '--version']\nfrom secateur import cli, heap\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nprint(heap._allowed)"
    around = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=around, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "True"
