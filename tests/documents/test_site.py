"""The site is built without a warning, needs no network, and its reference misses no public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

pytest.importorskip("mkdocs", reason="the site needs the extra 'docs'")

ROOT = Path(__file__).parents[2]
LINKED = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]*))?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as ``make docs`` builds it: broken links and anchors are errors."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: it silences the warnings that --strict would count.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site):
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    sources |= {Path("benchmarks.html"), Path("changelog.html"), Path("contributing.html")}
    assert {path.relative_to(site) for path in site.rglob("*.html")} == sources | {Path("404.html")}


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link[^>]*\shref=\"?([^\"\s>]+)", text)
        assert fetched
        assert [item for item in fetched if "//" in item] == [], path.name


@pytest.mark.parametrize("name", [name for name in secateur.__all__ if name != "__version__"])
def test_the_reference_has_every_public_name(name, site):
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    assert f'id="secateur.{name}"' in pages


@pytest.mark.parametrize("name", ["README.md", "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_the_documents_of_the_root(name):
    for target, anchor in LINKED.findall((ROOT / name).read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = ROOT / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"
