"""Draw accuracy kept against the MACs that are left, as SVG."""

from __future__ import annotations

from benchmarks.tables import Table

SERIES = {
    "width curves, reconstructed": ("Secateur", "#1a7f37"),
    "torch-pruning 1.6.1, global Taylor": ("torch-pruning 1.6.1, Taylor", "#bc4c00"),
    "torch-pruning 1.6.1, group norm": ("torch-pruning 1.6.1, group norm", "#6e7781"),
}
"""Rows of the table of ``accuracy``, and their names and colours."""
WIDTH, HEIGHT = 640, 360
FONT = 'font-family="sans-serif" font-size="13"'
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 56


def chart(table: Table) -> str:
    """Draw the rows of ``SERIES``: a line each, over the columns whose headings are shares of the MACs."""
    shares = [column for column in table.columns if column.endswith("%")]
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
    parts += [_text(_x(share), HEIGHT - BOTTOM + 20, share, anchor="middle") for share in shares]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 14, "MACs that are left", anchor="middle"))
    for number, (way, (name, colour)) in enumerate(SERIES.items()):
        values = [_number(table.cell({table.columns[0]: way}, share)) for share in shares]
        points = " ".join(f"{_x(share):.1f},{_y(v):.1f}" for share, v in zip(shares, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for share, value in zip(shares, values, strict=True):
            parts.append(f'<circle cx="{_x(share):.1f}" cy="{_y(value):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(_text(LEFT + 16, HEIGHT - BOTTOM - 56 + 20 * number, name, colour=colour, bold=True))
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
