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


def test_the_demonstration_starts_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"EPOCHS": 1, "EPOCHS_AFTER": 1, "STEPS": 2}.items():
        monkeypatch.setattr(f"secateur.jobs.demo.{name}", number)
    found = demo(tmp_path)
    assert found["pruned"]["verification"]["ok"]
    assert (tmp_path / "trained" / "checkpoints" / "best.safetensors").is_file()
