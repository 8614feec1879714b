from __future__ import annotations

from pathlib import Path

import pytest

from secateur.jobs.demo import demo


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demonstration_keeps_its_promise(tmp_path: Path, seed: int) -> None:
    found = demo(tmp_path, seed)["pruned"]
    assert found["pruned"]["macs"] * 4 <= found["baseline"]["macs"]
    assert found["baseline"]["top1"] >= 0.97
    assert found["pruned"]["top1"] >= found["baseline"]["top1"] - 0.01
    assert found["verification"]["ok"]
