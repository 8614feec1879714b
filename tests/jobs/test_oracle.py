from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from secateur.errors import DataError, StoppedError, UsageError
from secateur.jobs.oracle import oracle
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.training.events import Progress
from tests.recorder import Recorder

DIGITS = DataChoice(source="digits", batch_size=64)


def test_the_file_holds_changes_and_agreements_and_is_gone_on_from(trained: Path, tmp_path: Path) -> None:
    out, choice = tmp_path / "oracle.json", NetworkChoice(source=str(trained))

    class Stop(Recorder):
        def on_progress(self, progress: Progress) -> None:
            if progress.task == "measuring channels" and progress.done == 5:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError):
        oracle(choice, DIGITS, out, ["taylor", "random"], 64, [Stop()])
    changes = json.loads(out.read_text())["changes"]
    assert sum(value is not None for values in changes.values() for value in values) == 5

    heard = Recorder()
    found = oracle(choice, DIGITS, out, ["taylor", "random"], 64, [heard])
    done = [
        event.done for event in heard if isinstance(event, Progress) and event.task == "measuring channels"
    ]
    total = sum(len(values) for values in found["changes"].values())
    assert (done[0], done[-1]) == (6, total)
    assert done == sorted(set(done))
    # Channels that are zero already are known at once, the others one by one.
    zero = sum(value == 0 for values in found["changes"].values() for value in values)
    assert 0 < total - 5 - len(done) < zero
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    taylor, chance = found["agreement"]
    assert taylor["per_group"] > 0.4 > abs(chance["per_group"])


def test_a_file_of_something_else_is_refused_and_kept(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "note.json"
    out.write_text("[1, 2]")
    with pytest.raises(DataError, match="holds no measured channels"):
        oracle(NetworkChoice(source=str(trained)), DIGITS, out, ["magnitude"], 64)
    assert out.read_text() == "[1, 2]"
    with pytest.raises(UsageError, match="there is no folder"):
        oracle(NetworkChoice(source=str(trained)), DIGITS, tmp_path / "no" / "o.json", ["magnitude"], 64)


def test_an_unknown_criterion_is_refused_before_the_measurement(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tailor"):
        oracle(NetworkChoice(source=str(trained)), DIGITS, tmp_path / "o.json", ["taylor", "tailor"], 64)
    assert not (tmp_path / "o.json").exists()
