from __future__ import annotations

import os
import signal
import threading

import pytest

from secateur.errors import StoppedError
from secateur.training.events import Progress, tracked
from secateur.training.interrupt import interruptible
from tests.recorder import Recorder


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_item_being_worked_on_is_finished(number: signal.Signals, name: str) -> None:
    heard = Recorder()
    finished = []
    before = signal.getsignal(number)

    def work() -> None:
        with interruptible() as interruption:
            for item in tracked("abc", "work", [heard], interruption):
                if item == "b":
                    os.kill(os.getpid(), number)
                finished.append(item)

    with pytest.raises(StoppedError, match=name) as caught:
        work()
    assert finished == ["a", "b"]
    assert caught.value.number == number
    assert heard.events == [Progress("work", 1, 3), Progress("work", 2, 3)]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with interruptible() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_are_served_without_signal_handlers() -> None:
    seen: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with interruptible() as interruption:
            interruption.check()
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
