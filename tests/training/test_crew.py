"""What goes wrong in one process is told, in its own words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from secateur.errors import DataError, SecateurError, UsageError
from secateur.training import crew
from secateur.training.crew import AsideError, LostError, one_voice
from secateur.training.devices import Machine
from tests.crew import free_port, in_crew


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the socket of the camera is closed"),
        RuntimeError("cannot parse 'nccl' in settings"),
        ValueError("connection reset by peer"),
        DataError("no pictures"),
    ],
)
def test_errors_that_only_mention_a_connection_are_not_those_of_one(error: Exception) -> None:
    assert crew._seen(error) is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]"
        ),
        RuntimeError("NCCL communicator was aborted on rank 1"),
        dist.DistNetworkError("The client socket has failed to connect"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1"),
    ],
)
def test_errors_of_a_connection_keep_their_text(error: Exception) -> None:
    seen = crew._seen(error)
    assert isinstance(seen, LostError)
    assert str(error)[:60] in str(seen)


def fails_on_one(machine: Machine, kind: str, who: int) -> list[str]:
    """What each process raises where one of them alone fails, and the others wait for it."""
    kinds: dict[str, Exception] = {
        "usage": UsageError(f"no file on machine {who}"),
        "data": DataError(f"no pictures on machine {who}"),
    }
    try:
        with one_voice(machine):
            if machine.ranks.index == who:
                raise kinds[kind]
            raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer") from None
    except SecateurError as error:
        return [type(error).__name__, str(error)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["usage", "data"])
def test_what_one_process_alone_meets_is_never_lost(tmp_path: Path, kind: str) -> None:
    found = in_crew(fails_on_one, 2, tmp_path, kind, 1)
    told = [member for member in found if member[0] != "AsideError"]
    assert len(told) == 1  # whoever comes first tells
    assert all(member[1] == told[0][1] for member in found)


class Alone:
    """The machine of one process that is said to have others."""

    class ranks:  # noqa: N801
        together, index, first = True, 1, False


def test_a_usage_error_of_a_process_that_is_not_the_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    machine: Any = Alone
    with pytest.raises(UsageError, match="^only here$"), one_voice(machine):
        raise UsageError("only here")
    machine.ranks.index = 0
    with pytest.raises(AsideError, match="^only here$"), one_voice(machine):
        raise UsageError("here too")
    monkeypatch.setattr(crew, "_runs", 7)  # the next run of these processes begins with an empty board
    with pytest.raises(UsageError, match="^later$"), one_voice(machine):
        raise UsageError("later")


def test_without_anybody_to_ask_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_PATIENCE", crew.timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    machine: Any = Alone
    with pytest.raises(DataError, match="^mine$"), one_voice(machine):
        raise DataError("mine")
    assert not [
        name for name in vars(crew) if name.startswith("_BOARD")
    ]  # no connection outlives its question
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
