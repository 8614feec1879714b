from __future__ import annotations

import ctypes
import os
import sys

import pytest

from secateur.cli.quiet import silent_output


def test_compiled_code_is_silenced_and_python_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    sys.stdout.write("before\n")
    with silent_output():
        library.printf(b"buffered by the C library\n")
        os.write(1, b"written at once\n")
    sys.stdout.write("after\n")
    library.printf(b"heard again\n")
    library.fflush(None)
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "after", "before", "heard again"]


def test_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), silent_output():
        _ = 1 / 0
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"
