"""Render pages from a template, with style, script and drawing library inside.

A page needs no other file. Its content security policy allows only these two scripts, and fetches nothing.
Names of layers, classes and files come from outside and are always escaped: by Jinja in HTML, by
:func:`plain` in plotly's text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from secateur.budget.limits import QUANTITIES
from secateur.formats import count, milliseconds, percent

INK, PAPER, MUTED, LINE = "#1c2126", "#ffffff", "#58616b", "#d5dae0"
BEFORE, AFTER, GONE = "#aab4bf", "#0b6e4f", "#b3471d"
CYCLE = ("#0b6e4f", "#1f5fa8", "#a3480f", "#8a3f8f", "#5f6b00", "#00717f", "#b02a5b", "#5b4bb5")
"""Colours in the light theme, each with a contrast of at least 4.5 except ``BEFORE``, a background."""

DARK = {
    INK: "#e4e8ec",
    PAPER: "#15191d",
    MUTED: "#a2acb6",
    LINE: "#353c44",
    BEFORE: "#59636e",
    AFTER: "#4cc596",
    GONE: "#f08a5d",
    **dict(
        zip(
            CYCLE[1:],
            ("#7db4f0", "#f0a35e", "#d59ada", "#b9c24a", "#4fc3d0", "#f285a8", "#a99df2"),
            strict=True,
        )
    ),
}
"""The colour in the dark theme of each colour in the light theme."""

_LONGEST = 38


@dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
        name: unique on the page.
        label: what it shows, in a sentence, for screen readers.
        variants: drawings by name; the first is shown at the start. Each has the ``data`` and
            ``layout`` of plotly. A trace may have ``meta.names``, one for each of its points, or
            the name of its list that contains them, by which it is filtered.
    """

    name: str
    label: str
    variants: Mapping[str, Mapping[str, Any]]


def drawing(
    name: str, label: str, data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any] | None = None
) -> Drawing:
    """Create a figure with one variant.

    Args:
        name: unique on the page.
        label: what it shows, in a sentence.
        data: traces of plotly.
        layout: of plotly.
    """
    return Drawing(name, label, {"": {"data": data, "layout": layout or {}}})


def plain(text: str, longest: int | None = _LONGEST) -> str:
    """Escape text so that plotly shows it unchanged, and shorten it.

    Args:
        text: anything.
        longest: largest number of characters; the middle of longer texts is left out. ``None`` for no limit.

    >>> plain("<b>bold</b>"), plain("a" * 50, 9)
    ('&lt;b&gt;bold&lt;/b&gt;', 'aaaa…aaaa')
    """
    if longest is not None and len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}…{text[-half:]}"
    # plotly interprets other entities too, such as &nbsp;, and breaks lines by itself
    return escape(" ".join(text.split()), quote=False)


def render(template: str, drawings: Sequence[Drawing], **values: Any) -> str:
    """Render a page.

    Args:
        template: name of one that extends ``base.html``.
        drawings: its figures; the template places them by name.
        **values: further values for the template.

    Returns:
        HTML that needs no other file.
    """
    environment = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters.update(count=count, percent=percent, ms=milliseconds, number=number)
    environment.filters["quantity"] = lambda name: QUANTITIES[name].unit
    library, script = get_plotlyjs(), _asset("page.js")
    # These two belong to Secateur and contain nothing from outside.
    trusted = {name: Markup(text) for name, text in (("library", library), ("script", script))}
    style = Markup(_asset("page.css"))
    return environment.get_template(template).render(
        **trusted,
        style=style,
        hashes=[_hash(library), _hash(script)],
        colours={"dark": DARK, "ink": INK, "paper": PAPER, "line": LINE, "muted": MUTED},
        drawings={one.name: one for one in drawings},
        specs={one.name: one.variants for one in drawings},
        **values,
    )


def number(value: float | None, form: str = ".3g") -> str:
    """Format a number, or a dash for ``None``.

    >>> number(0.12345), number(None), number(12345, ",")
    ('0.123', '–', '12,345')
    """
    return "–" if value is None else format(value, form)


def _asset(name: str) -> str:
    return (files("secateur.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
