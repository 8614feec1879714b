"""Draw accuracy kept against the MACs that are left, as SVG."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tables import Table

PEER = "torch-pruning 1.6.1"
SERIES = (
    ("accuracy.curves", {"network": "ResNet-56", "curves": "default"}, "Secateur", "#1a7f37"),
    ("accuracy.resnet56", {"way": f"{PEER}, global Taylor"}, f"{PEER}, Taylor", "#bc4c00"),
    ("accuracy.resnet56", {"way": f"{PEER}, group norm (needs no images)"}, f"{PEER}, group norm", "#6e7781"),
)
"""Each line: its result, the cells of its row, its name and its colour."""
SHARES = ("75%", "60%", "50%", "40%")
WIDTH, HEIGHT = 640, 360
FONT = 'font-family="sans-serif" font-size="13"'
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 56


def chart(tables: Mapping[str, Table]) -> str:
    """Draw the lines of ``SERIES`` over the shares of the MACs that are left."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(
            LEFT, 24, "ResNet-56 on CIFAR-10, cut without any training: accuracy kept, in percent", bold=True
        ),
    ]
    for level in range(0, 101, 20):
        y = f"{_y(level):.1f}"
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#d0d7de"/>')
        parts.append(_text(LEFT - 10, _y(level) + 4, str(level), anchor="end"))
    parts += [_text(_x(share), HEIGHT - BOTTOM + 20, share, anchor="middle") for share in SHARES]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 14, "MACs that are left", anchor="middle"))
    for number, (result, row, name, colour) in enumerate(SERIES):
        values = [_number(tables[result].cell(row, share)) for share in SHARES]
        points = " ".join(f"{_x(share):.1f},{_y(v):.1f}" for share, v in zip(SHARES, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for share, value in zip(SHARES, values, strict=True):
            parts.append(f'<circle cx="{_x(share):.1f}" cy="{_y(value):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(_text(380, HEIGHT - BOTTOM - 56 + 20 * number, name, colour=colour, bold=True))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(share: str) -> float:
    """Place a share of the MACs between 30 and 80 percent."""
    return LEFT + (float(share.rstrip("%")) - 30) / 50 * (WIDTH - LEFT - RIGHT)


def _y(percent: float) -> float:
    """Place a percentage."""
    return HEIGHT - BOTTOM - percent / 100 * (HEIGHT - TOP - BOTTOM)


def _number(cell: str) -> float:
    """Read the mean of a cell such as ``**96.5 ± 0.7**``."""
    return float(cell.strip("*").split("±")[0])


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", colour: str = "#1f2328", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{content}</text>'
