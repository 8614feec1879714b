from __future__ import annotations

from html.parser import HTMLParser

from secateur.report import agreement_page

FOUND = {
    "model": "small<net>",
    "loss": 0.25,
    "examples": 64,
    "changes": {"conv1": [0.5, -0.125, None], "conv2": [0.0, 0.25]},
    "unmeasured": {"stem": "has a single channel"},
    "agreement": [
        {"criterion": "random", "per_group": None, "raw": -0.01, "normalized": 0.02},
        {"criterion": "taylor", "per_group": 0.71, "raw": 0.4, "normalized": 0.75},
    ],
}


class Cells(HTMLParser):
    """The cells of all tables, and everything that would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag in ("td", "th")
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells.append(data)
            self.inside = False


def test_the_page_holds_all_figures_the_best_criterion_first_and_fetches_nothing() -> None:
    page = Cells(agreement_page(FOUND))
    assert page.fetched == ["data:,", "#main"]  # no icon, and a place on the page itself
    first = page.cells.index("taylor")
    assert page.cells[first : first + 8] == [
        *("taylor", "0.710", "0.400", "0.750"),
        *("random", "–", "-0.010", "0.020"),
    ]
    second = page.cells.index("conv1")
    assert page.cells[second : second + 5] == ["conv1", "3", "-0.125", "0.5", "0.5"]


def test_names_cannot_break_the_page() -> None:
    page = agreement_page(FOUND)
    assert "small&lt;net&gt;" in page
    assert "<net>" not in page.split("</title>")[0]
    assert page.count("stem: has a single channel") == 1
    assert len(page) < 6e6
