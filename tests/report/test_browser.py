"""The report in a real browser; the screenshots that it takes are left in pytest's folder to be looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob
from secateur.recipes import Recipe
from secateur.report import agreement_page, write_report
from tests.report.chromium import Page, browser, executable
from tests.report.pages import FIGURES
from tests.report.test_agreement import FOUND

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="needs Chromium: apt-get install chromium"),
]

SECONDS = 2.0
"""Within which the page is to be drawn, on a quiet machine; the best of three openings counts."""

MOST_BYTES = 6_000_000

COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("chromium") / "profile"
    profile.mkdir()
    with browser(profile) as opened:
        yield opened


def fetched(page: Page) -> list[str]:
    """Everything that was asked for, but the file itself and what lies within it."""
    urls = [str(event["request"]["url"]) for event in page.events("Network.requestWillBeSent")]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def test_it_is_drawn_in_time_and_neither_fetches_nor_complains(page: Page, report: Path) -> None:
    times = []
    for _ in range(3):
        page.open(report)
        times.append(page.run("performance.now()") / 1000)
        assert fetched(page) == []
        assert page.events(*COMPLAINTS) == []
    assert min(times) < SECONDS


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on a network of 400 layers and 200 groups, many of them read by all that is behind them."""
    out = tmp_path_factory.mktemp("large") / "densenet201"
    network = {"source": "densenet201", "weights": "none", "size": 64}
    how = Recipe.preset("plain", criterion="magnitude", steps=1)
    prune(PruneJob(network=network, out=out, budget={"macs": 0.5}, latency_seconds=0, recipe=how))
    return write_report(out)


def test_the_page_of_a_large_network_is_no_burden(page: Page, large: Path) -> None:
    times = []
    for _ in range(3):
        page.open(large)
        times.append(page.run("performance.now()") / 1000)
        assert page.events(*COMPLAINTS) == []
    assert min(times) < SECONDS
    assert large.stat().st_size < MOST_BYTES
    type_into_filter(page, "denselayer7.conv1")
    bars = 'document.querySelectorAll("[data-drawing=widths] .bars .point").length'
    page.wait(f"0 < {bars} && {bars} < 120", 10)  # of 400


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(page: Page, report: Path, name: str) -> None:
    page.open(report)
    chart = f'document.querySelector("[data-drawing={name}]")'
    assert page.run(f"{chart}.dataset.drawn") == "yes"
    marks = ".point path, .points path, .lines path, path.box, path.js-line"
    assert page.run(f"{chart}.querySelectorAll({marks!r}).length") > 0
    width, height = page.run(
        f'(() => {{ const box = {chart}.querySelector(".main-svg").getBoundingClientRect();'
        " return [box.width, box.height]; })()"
    )
    assert width > 600
    assert height >= 200


def test_hovering_names_the_group(page: Page, report: Path) -> None:
    page.open(report)
    x, y = page.run(
        '(() => { const bar = document.querySelector("[data-drawing=widths] .bars .point path");'
        ' bar.scrollIntoView({block: "center", behavior: "instant"});'
        " const box = bar.getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.hover(x, y)
    page.wait('document.querySelector("[data-drawing=widths] .hoverlayer .hovertext")', 5)
    words = page.run('document.querySelector("[data-drawing=widths] .hoverlayer").textContent')
    assert "stem" in words
    assert "12 to" in words


def type_into_filter(page: Page, words: str) -> None:
    page.run(
        '(() => { const box = document.getElementById("filter"); box.focus();'
        f" box.value = {words!r}; box.dispatchEvent(new Event('input')); }})()"
    )
    wanted = "rows shown"
    page.wait(f'document.getElementById("found").textContent.includes({wanted!r})')


def test_the_filter_narrows_figures_and_tables(page: Page, report: Path) -> None:
    page.open(report)
    bars = 'document.querySelectorAll("[data-drawing=widths] .bars .point").length'
    rows = "document.querySelectorAll('tr[data-name]:not([hidden])').length"
    all_bars, all_rows = page.run(bars), page.run(rows)
    assert all_bars == 5  # two groups before and after, and one frozen
    type_into_filter(page, "INNER")
    page.wait(f"{bars} === 4", 5)  # its own group, and the stream that it reads; not the frozen one
    names = page.run('document.querySelector("[data-drawing=widths] .plot").layout.xaxis.categoryarray')
    assert names == ["stem", "inner"]
    assert 0 < page.run(rows) < all_rows
    type_into_filter(page, "")
    page.wait(f"{bars} === {all_bars}", 5)
    assert page.run(rows) == all_rows
    assert page.events(*COMPLAINTS) == []


def test_a_choice_draws_the_other_variant(page: Page, report: Path) -> None:
    page.open(report)
    chart = 'document.querySelector("[data-drawing=layers]")'
    page.run(
        f"(() => {{ const choice = {chart}.querySelector('select');"
        " choice.value = 'parameters'; choice.dispatchEvent(new Event('change')); })()"
    )
    page.wait(f"{chart}.querySelector('.xtitle').textContent === 'parameters'", 5)


def paper(page: Page) -> str:
    return str(page.run("getComputedStyle(document.body).backgroundColor"))


def test_colours_follow_the_system_and_the_switch(page: Page, report: Path) -> None:
    bar = 'getComputedStyle(document.querySelectorAll("[data-drawing=layers] .bars path")[0]).fill'
    page.open(report)
    light, light_bar = paper(page), page.run(bar)
    page.prefer("dark")
    page.wait("document.documentElement.dataset.shade === 'dark'", 5)
    assert paper(page) != light
    page.wait(f"{bar} !== {light_bar!r}", 5)
    page.run(
        "(() => { const theme = document.getElementById('theme');"
        " theme.value = 'light'; theme.dispatchEvent(new Event('change')); })()"
    )
    assert paper(page) == light
    page.wait(f"{bar} === {light_bar!r}", 5)
    page.run("localStorage.clear()")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_nothing_is_wider_than_the_screen(
    page: Page, report: Path, width: int, dark: bool, tmp_path: Path
) -> None:
    page.open(report, width, dark=dark)
    page.screenshot(tmp_path / f"report-{width}-{'dark' if dark else 'light'}.png")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_it_prints_unfolded_and_light(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report, dark=True)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('details:not([open])').length") == 0
    assert page.run("document.documentElement.dataset.shade") == "light"
    page.print_to(tmp_path / "report.pdf")
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("document.querySelectorAll('details:not([open])').length") > 0
    assert page.run("document.documentElement.dataset.shade") == "dark"
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def axe() -> Path | None:
    """The accessibility checker, where it is installed: ``npm install axe-core`` here or ``--global``."""
    roots = [Path(os.environ.get("NODE_PATH", "node_modules")), Path("node_modules")]
    if npm := shutil.which("npm"):
        found = subprocess.run([npm, "root", "--global"], capture_output=True, text=True, check=False)
        roots.append(Path(found.stdout.strip()))
    files = (root / "axe-core" / "axe.min.js" for root in roots)
    return next((file for file in files if file.is_file()), None)


def violations(page: Page, checker: Path) -> list[str]:
    page.run(checker.read_text())
    found: list[dict[str, Any]] = page.run("axe.run(document, {}).then((found) => found.violations)")
    return [
        f"{one['impact']}: {one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_an_accessibility_checker_finds_nothing_serious(
    page: Page, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    checker = axe()
    if checker is None:
        pytest.skip("needs axe-core: npm install --global axe-core, or NODE_PATH")
    for file in (report, _oracle(tmp_path)):
        page.open(file, width, dark=dark)
        page.run("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        assert violations(page, checker) == []


def _oracle(folder: Path) -> Path:
    file = folder / "oracle.html"
    file.write_text(agreement_page(FOUND))
    return file


def test_the_page_of_the_oracle_is_drawn_alike(page: Page, tmp_path: Path) -> None:
    page.open(_oracle(tmp_path))
    assert page.run("document.querySelectorAll('figure[data-drawn=yes]').length") == 2
    assert page.events(*COMPLAINTS) == []
    assert fetched(page) == []
