"""A page taken apart: its tables, its headings, its data, and what it would fetch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "input", "br", "img", "path", "circle"}
FIGURES_OF_METRICS = ("course", "epochs", "verification")
"""Figures that need no ``network.json`` and no ``measured.json``."""

FIGURES = (*FIGURES_OF_METRICS, "widths", "coupling", "layers", "scores", "curves")

FOLDING = {"p", "li", "option", "td", "th", "tr", "thead", "tbody"}


class Taken(HTMLParser):
    """Reads a page, and complains about tags that do not match.

    Attributes:
        tables: rows of words, by caption.
        headings: level and words.
        fetched: values of attributes that make a browser load something.
        ids: of all elements.
        scripts: what runs, without the data.
        data: what lies in the page for the scripts, by id.
        attributes: every attribute, with its tag.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[int, str]] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self._open: list[tuple[str, Mapping[str, str | None]]] = []
        self._words: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(page)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.fetched += [str(given[name]) for name in ("src", "srcset", "action") if name in given]
        if tag in ("link", "image", "use"):
            self.fetched.append(str(given.get("href")))
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag not in VOID:
            self._open.append((tag, given))
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption", "h1", "h2", "h3", "script"):
            self._words = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self._words.append(data)
        if not self._open or self._open[-1][0] not in ("script", "style"):
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        opened, given = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"
        words = "".join(self._words)
        match tag:
            case "td" | "th":
                self._rows[-1].append(words.strip())
            case "caption":
                self._caption = words.strip()
            case "table":
                assert self._caption not in self.tables, "two tables of one name"
                self.tables[self._caption] = self._rows
            case "h1" | "h2" | "h3":
                self.headings.append((int(tag[1]), words.strip()))
            case "script":
                if given.get("type") == "application/json":
                    self.data[str(given["id"])] = json.loads(words)
                else:
                    self.scripts.append(words)


def specs(page: Taken) -> dict[str, dict[str, Any]]:
    """The figures of a page, by name and variant."""
    found: dict[str, dict[str, Any]] = page.data["specs"]
    return found
