from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from secateur.latency.surroundings import Surroundings

SCRIPT = """
import resource
import torch
from secateur.latency.surroundings import settle_allocator
settle_allocator()
def forward():
    blocks = [torch.zeros(3 << 18) for _ in range(4)]
for _ in range(3):
    forward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    forward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_values_keep_their_numbers_and_are_written_anew() -> None:
    around = Surroundings(torch.device("cpu"))
    values = [torch.rand(2, 3, 4), torch.rand(5)]
    before = [value.clone() for value in values]
    versions = [value._version for value in values]
    around.restore(values)
    assert all(torch.equal(value, old) for value, old in zip(values, before, strict=True))
    assert [value._version for value in values] > versions


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again() -> None:
    """Else most processes fetch each of these blocks page by page at every pass: 30,000 faults."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 1000
