from __future__ import annotations

import ctypes
import os
import signal
import sys

import pytest

from secateur.runtimes.signals import _Stack, signal_stack_kept

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="signal stacks are looked after on Linux alone"
)


def current() -> tuple[int | None, int]:
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.flags


def test_a_stack_that_a_library_leaves_behind_is_taken_off_again() -> None:
    before = current()
    memory = ctypes.create_string_buffer(1 << 16)
    theirs = _Stack(ctypes.addressof(memory), 0, len(memory))

    def fail() -> None:
        with signal_stack_kept():
            assert ctypes.CDLL(None).sigaltstack(ctypes.byref(theirs), None) == 0
            assert current()[0] == ctypes.addressof(memory)
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        fail()
    assert current() == before


def test_signals_are_answered_after_openvino_has_run(tmp_path) -> None:
    pytest.importorskip("openvino")
    import torch

    from secateur.export import export
    from secateur.runtimes import open_exported

    done = export(tmp_path / "net.xml", torch.nn.Linear(3, 2), torch.zeros(2, 3))
    open_exported(done.path)(torch.zeros(4, 3))
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
