from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from secateur.errors import CheckpointError
from secateur.training import resume as module
from secateur.training.resume import Entry, Journal


def filled(path: Path) -> bytes:
    kept = Journal(path, lambda: {"lines": 7})
    kept.put("recipe", Entry({"step": 2, "scores": [0.1, -3e-8]}))
    kept.record("fit", Entry({"epoch": 1}, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)}))
    return path.read_bytes()


def test_parts_come_back_once_and_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    filled(file)
    again = Journal(file)
    assert again.about == {"lines": 7}
    recipe, fit = again.recall("recipe"), again.recall("fit")
    assert recipe is not None
    assert recipe.facts == {"step": 2, "scores": [0.1, -3e-8]}
    assert fit is not None
    assert torch.equal(fit.tensors["a"], torch.arange(6.0).view(2, 3))
    assert fit.tensors["b"].dtype == torch.bool
    assert again.recall("fit") is None
    assert again.recall("nothing") is None


def test_without_a_path_nothing_is_kept() -> None:
    nothing = Journal()
    nothing.record("fit", Entry({}))
    nothing.flush()
    nothing.close()
    assert not nothing


def test_what_is_put_is_written_with_the_next_record_only(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    kept = Journal(file)
    kept.record("fit", Entry({"epoch": 1}))
    kept.put("recipe", Entry({"step": 1}))
    kept.flush()
    assert Journal(file).recall("recipe") is None
    kept.drop("fit")
    kept.record("recipe", Entry({"step": 2}))
    kept.flush()
    again = Journal(file)
    assert again.recall("fit") is None
    assert again.recall("recipe") == Entry({"step": 2})


def test_writing_takes_a_small_part_of_the_time_and_a_flush_catches_up(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    now = [0.0]

    def write(*arguments: object) -> None:
        now[0] += 1.0
        original(*arguments)

    original = module._write
    with patch.object(module.time, "monotonic", lambda: now[0]), patch.object(module, "_write", write):
        kept = Journal(file)
        kept.record("fit", Entry({"epoch": 0}))  # takes a second, so nothing is written for ten
        for epoch in range(1, 9):
            now[0] += 1.0
            kept.record("fit", Entry({"epoch": epoch}))
        assert Journal(file).recall("fit") == Entry({"epoch": 0})
        kept.flush()
        assert Journal(file).recall("fit") == Entry({"epoch": 8})
        written = now[0]
        kept.flush()
        assert now[0] == written
        now[0] += 10.0
        kept.record("fit", Entry({"epoch": 9}))
        assert Journal(file).recall("fit") == Entry({"epoch": 9})


def test_a_finished_run_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    filled(file)
    kept = Journal(file)
    kept.record("fit", Entry({}))
    kept.close()
    kept.flush()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("state") / "state.safetensors"
    whole = filled(file)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.write_bytes(whole[:at])
    else:
        flipped = whole[at] ^ (1 << data.draw(st.integers(0, 7)))
        file.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    with pytest.raises(CheckpointError, match="cannot be resumed from.*--overwrite"):
        Journal(file)


@pytest.mark.parametrize(
    "state", [{"state": 2, "facts": {}, "about": {}}, {"state": 1}, [], {"state": 1, "facts": 3}]
)
def test_files_of_another_kind_are_refused(state: object, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_file({}, file, metadata=module.with_checksum(json.dumps(state), {}))
    with pytest.raises(CheckpointError):
        Journal(file)
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="Secateur did not write it"):
        Journal(file)


def test_a_journal_of_another_process_is_read_and_not_written(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    Journal(file, lambda: {"metrics": 3}).record("fit", Entry({"epoch": 3}))
    journal = Journal(file, writes=False)
    assert (journal.parts, journal.about, bool(journal)) == (["fit"], {"metrics": 3}, False)
    journal.record("fit", Entry({"epoch": 4}))
    journal.flush()
    journal.close()
    again = Journal(file).recall("fit")
    assert again is not None
    assert again.facts == {"epoch": 3}
    assert Journal(tmp_path / "absent", writes=False).parts == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    before = filled(file)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="the state before is kept"):
            filled(file)
    finally:
        tmp_path.chmod(0o700)
    assert file.read_bytes() == before


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    before = filled(file)
    full = OSError(28, "No space left on device")
    with (
        patch.object(module, "save_file", side_effect=full),
        pytest.raises(CheckpointError, match=r"No space left on device; the state before is kept"),
    ):
        filled(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
