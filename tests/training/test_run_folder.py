from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import StoppedError, UsageError
from secateur.training.run_folder import (
    RunError,
    RunFolder,
    find_checkpoint,
    note_exported,
    read_config,
    read_metrics,
    read_summary,
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "new" / "run") as run:
        run.configure({"command": "train", "fit": {"epochs": 3, "clip_norm": None}})
        run.log({"epoch": 1, "loss": 0.5})
        run.log({"epoch": 2, "loss": float("nan")})
        run.summarise(model="a", seconds={"training": 1.0})
        run.summarise(model="b")
    assert read_config(run.path) == {"command": "train", "fit": {"epochs": 3}}
    assert read_metrics(run.path) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    assert read_summary(run.path) == {"status": "done", "model": "b", "seconds": {"training": 1.0}}
    assert run.summary == read_summary(run.path)


def test_the_folder_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.log({"epoch": 1})
        assert read_metrics(run.path) == [{"epoch": 1}]


def test_an_earlier_run_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.summarise(model="first")
        run.checkpoint("best").write_bytes(b"weights")
    with pytest.raises(RunError, match="--overwrite"):
        RunFolder(tmp_path / "run")
    assert read_summary(run.path)["model"] == "first"
    with RunFolder(tmp_path / "run", overwrite=True) as again:
        assert not again.checkpoint("best").exists()
        assert read_summary(again.path) == {"status": "running"}


def test_measurements_are_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.remember({"curves": [1.0]})
    with pytest.raises(RunError, match="--overwrite"):
        RunFolder(tmp_path)
    RunFolder(tmp_path, overwrite=True).close()
    assert not (tmp_path / "measured.json").exists()


def test_a_folder_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(RunError, match=r"holds other files \(holiday.jpg\)"):
        RunFolder(tmp_path, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["holiday.jpg"]


def test_files_that_were_exported_into_a_run_do_not_keep_it_from_replacement(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.remember({"curves": [1.0]})
    for name in ("small.onnx", "hf"):
        place = tmp_path / "run" / name
        place.mkdir() if name == "hf" else place.write_bytes(b"")
        note_exported(place)
    (tmp_path / "run" / "pruned.onnx").write_bytes(b"")  # as ultralytics writes it beside pruned.pt
    (tmp_path / "run" / "pruned_saved_model").mkdir()
    with pytest.raises(RunError, match="--overwrite"):
        RunFolder(tmp_path / "run")
    (tmp_path / "run" / "pruned.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files \(pruned.txt\)"):
        RunFolder(tmp_path / "run", overwrite=True)
    (tmp_path / "run" / "pruned.txt").unlink()
    with RunFolder(tmp_path / "run", overwrite=True):
        left = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert left == {".lock", "checkpoints", "summary.json"}


def test_a_file_that_is_exported_elsewhere_is_noted_nowhere(tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(b"")
    note_exported(tmp_path / "small.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.onnx"]


def test_a_run_that_came_to_nothing_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two\nlines"), RunFolder(tmp_path / "run"):
        raise ValueError("two\nlines")
    assert read_summary(tmp_path / "run") == {"status": "failed", "error": "two lines"}
    (tmp_path / "run" / ".summary.json.0a1b.part").write_text("half-written when killed")
    with RunFolder(tmp_path / "run") as run:
        assert not list(run.path.glob(".*.part"))


@pytest.mark.parametrize("error", [StoppedError(2), KeyboardInterrupt()])
def test_the_summary_says_how_a_run_ended(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path / "run"):
        raise error
    assert read_summary(tmp_path / "run") == {"status": "interrupted"}


def test_a_folder_with_files_of_the_same_names_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine = true")
    with pytest.raises(RunError, match=r"holds other files \(config.toml\)"):
        RunFolder(tmp_path, overwrite=True)
    assert (tmp_path / "config.toml").read_text() == "mine = true"


def test_a_folder_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from secateur.training.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(RunError, match="in use by another process"):
        RunFolder(tmp_path / "run", overwrite=True)
    other.kill()
    other.communicate()
    with RunFolder(tmp_path / "run", overwrite=True):  # a killed process leaves no lock behind
        pass


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        RunFolder(tmp_path / "file")
    with pytest.raises(RunError, match="cannot write the run folder"):
        RunFolder(tmp_path / "file" / "run")


def test_the_best_checkpoint_stands_for_the_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        with pytest.raises(RunError, match="holds no checkpoint"):
            find_checkpoint(run.path)
        run.checkpoint("last").write_bytes(b"")
        assert find_checkpoint(run.path) == run.checkpoint("last")
        run.checkpoint("best").write_bytes(b"")
        assert find_checkpoint(run.path) == run.checkpoint("best")
        assert find_checkpoint(run.checkpoint("last")) == run.checkpoint("last")
    with pytest.raises(RunError, match="does not exist"):
        find_checkpoint(tmp_path / "absent")


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    with pytest.raises(RunError, match=r"no summary.json"):
        read_summary(tmp_path)
    with pytest.raises(RunError, match=r"no config.toml"):
        read_config(tmp_path)


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.summarise(model="kept")

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device; what was there is kept"):
            run.summarise(model="lost")
        assert read_summary(run.path) == {"status": "running", "model": "kept"}
        monkeypatch.undo()


def test_the_lock_file_stays_so_that_two_never_own_a_folder(tmp_path: Path) -> None:
    """A process that opened the lock before its owner let go must not lock another file than the next."""
    with RunFolder(tmp_path / "run"):
        before = (tmp_path / "run" / ".lock").stat().st_ino
    assert (tmp_path / "run" / ".lock").stat().st_ino == before
    with RunFolder(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").stat().st_ino == before


def test_lines_are_added_to_the_log_and_nothing_is_written_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.log({"step": 0})
        file = run.path / "metrics.jsonl"
        inode = file.stat().st_ino
        for step in range(1, 5):
            run.log({"step": step, "text": "é\u2028"})
        assert file.stat().st_ino == inode
        assert [record["step"] for record in read_metrics(run.path)] == list(range(5))
        assert not list(run.path.glob(".*.part"))
        run.forget(2)
        run.log({"step": "again"})
        assert [record["step"] for record in read_metrics(run.path)] == [0, 1, "again"]


def test_a_torn_last_line_is_left_out_and_mended(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run") as run:
        _torn(run)
    with RunFolder(tmp_path / "run", resume=True) as run:
        assert run.logged == 1
        run.log({"step": 1})
        assert read_metrics(run.path) == [{"step": 0}, {"step": 1}]


def test_a_log_that_cannot_be_added_to_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path / "run") as run:
        run.log({"step": 0})
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            with pytest.raises(RunError, match="No space left on device; what was there is kept"):
                run.log({"step": 1})
        assert (run.path / "metrics.jsonl").read_text() == '{"step": 0}\n'
        run.log({"step": 2})
        assert [record["step"] for record in read_metrics(run.path)] == [0, 1, 2]


def _torn(run: RunFolder) -> None:
    run.log({"step": 0})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 1, "name": "é'.encode()[:-1])  # killed within a character
    assert read_metrics(run.path) == [{"step": 0}]
    raise KeyboardInterrupt


names = st.text(min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
values = plain | st.lists(plain.filter(lambda value: value is not None), max_size=3)
tables = st.recursive(
    st.dictionaries(names, values, max_size=4),
    lambda inner: st.dictionaries(names, values | inner, max_size=4),
    max_leaves=8,
)


def without_none(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    return value


@given(tables)
def test_settings_are_read_back_as_they_were_written(table: dict[str, object]) -> None:
    with TemporaryDirectory() as folder, RunFolder(folder) as run:
        run.configure(table)
        assert read_config(folder) == without_none(table)


def test_paths_are_written_as_text(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.configure({"data": Path("a") / "b"})
        assert read_config(run.path) == {"data": str(Path("a") / "b")}


def test_what_toml_cannot_hold_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run, pytest.raises(UsageError, match=r"config\.toml.*complex"):
        run.configure({"weird": 1j})


def test_a_process_that_does_not_write_leaves_the_folder_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", is_writer=False) as run:
        run.configure({"seed": 1})
        run.log({"epoch": 1})
        run.summarise(outcome=1)
        assert (run.logged, run.summary) == (1, {"outcome": 1})
    assert not (tmp_path / "run").exists()
