"""Numbers as people read them."""

from __future__ import annotations

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """A large count with three significant digits.

    >>> [count(n) for n in (950, 1500, 15_470_314_496)]
    ['950', '1.50 k', '15.5 G']
    """
    for size, letter in _STEPS:
        if abs(number) >= size:
            return f"{_three(number / size)} {letter}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """A number of bytes, in powers of a thousand.

    >>> size(553_433_881)
    '553 MB'
    """
    text = count(number)
    return f"{text}B" if " " in text else f"{text} B"


def share(part: float, whole: float) -> str:
    """How much smaller a part is than the whole.

    >>> share(25, 100), share(3, 0)
    ('÷4.0', '')
    """
    return f"÷{whole / part:.1f}" if part > 0 and whole > 0 else ""


def percent(number: float | None) -> str:
    """A share in percent.

    >>> percent(0.98765), percent(None)
    ('98.77%', '–')
    """
    return "–" if number is None else f"{number:.2%}"


def milliseconds(number: float | None) -> str:
    """A time in milliseconds.

    >>> milliseconds(12.345), milliseconds(0.0123), milliseconds(None)
    ('12.3 ms', '0.0123 ms', '–')
    """
    return "–" if number is None else f"{_three(number)} ms"


def duration(seconds: float) -> str:
    """A time as a clock shows it.

    >>> duration(3.21), duration(75), duration(3700)
    ('3.2 s', '1:15', '1:01:40')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _three(number: float) -> str:
    """Three significant digits."""
    return f"{number:.0f}" if number == 0 or abs(number) >= 100 else f"{number:#.3g}"
