"""Format numbers, lists and errors for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def count(number: float, unit: str = "") -> str:
    """Format a count, or a size in bytes, in three digits with a decimal prefix (k, M, G, T).

    Args:
        number: below 1,000 it is rounded to an integer.
        unit: follows the prefix, such as ``"B"``.

    >>> [count(n) for n in (950, 1500, 999_999, 15_470_314_496)]
    ['950', '1.50 k', '1.00 M', '15.5 G']
    >>> count(553_433_881, "B")
    '553 MB'
    """
    value, prefixes = float(number), ["k", "M", "G", "T"]
    prefix = ""
    while prefixes and abs(float(f"{value:.3g}")) >= 1000:
        value, prefix = value / 1000, prefixes.pop(0)
    digits = _three(value) if prefix else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()


def size(number: float) -> str:
    """Format a number of bytes.

    >>> size(553_433_881)
    '553 MB'
    """
    return count(number, "B")


def factor(before: float, after: float) -> str:
    """Format how many times smaller a number became; empty if one of them is not positive.

    >>> factor(100, 25), factor(0, 3)
    ('÷4.0', '')
    """
    return f"÷{before / after:.1f}" if before > 0 and after > 0 else ""


def percent(share: float | None, digits: int = 2) -> str:
    """Format a share in percent.

    >>> percent(0.98765), percent(0.5, 0), percent(None)
    ('98.77%', '50%', '–')
    """
    return "–" if share is None else f"{share:.{digits}%}"


def milliseconds(time: float | None) -> str:
    """Format a time in milliseconds, in three digits.

    >>> milliseconds(12.345), milliseconds(0.0123), milliseconds(None)
    ('12.3 ms', '0.0123 ms', '–')
    """
    return "–" if time is None else f"{_three(time)} ms"


def duration(seconds: float) -> str:
    """Format a duration as seconds, or with minutes and hours.

    >>> duration(3.21), duration(75), duration(3700)
    ('3.2 s', '1:15', '1:01:40')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Align the columns of a table, numbers to the right.

    Args:
        rows: texts, equally many in each row.
        left: the columns that hold words, which are aligned to the left.

    >>> table([("group", "channels"), ("a", "12")])
    ['group  channels', 'a            12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def listed(items: Sequence[str], most: int = 4, separator: str = ", ") -> str:
    """Format the first items of a list, and the number of the others.

    >>> listed("ab"), listed("abcdef")
    ('a, b', 'a, b, c, d and 2 more')
    """
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + rest


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its class if it says nothing.

    >>> first_line(ValueError("no such thing")), first_line(KeyboardInterrupt())
    ('no such thing', 'KeyboardInterrupt')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _three(number: float) -> str:
    """Format in three significant digits, without an exponent."""
    return f"{number:.0f}" if number == 0 or abs(number) >= 100 else f"{number:#.3g}"
