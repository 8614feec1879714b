"""Write the documents that show measured figures from the result files, and check them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from benchmarks import coverage
from benchmarks.benchmark import Benchmark, load, names
from benchmarks.chart import chart
from benchmarks.results import ROOT, Result, age, all_results
from benchmarks.tables import Table

PAGES = Path("docs/benchmarks")
CLAIMS = Path("BENCHMARKS.md")
DEFINITIONS = ROOT / "benchmarks" / "claims.toml"
RENDER = "python -m benchmarks render"
OTHER_TITLES = {
    "coverage": "Networks of torchvision and timm",
    "demo": "The demonstration",
    "original_protocol": "The protocol of 2016, whole, beside the default recipe",
    "transfer": "Transfer learning: SqueezeNet 1.1 on cats and dogs",
}
"""Titles of pages whose figures come from commands of ``secateur`` or from ``benchmarks/zoo.py``."""

_AGE = re.compile(r"\d+ commits? of `src`|an unknown number of commits of `src`")


def render() -> int:
    """Write all documents; return 0."""
    found = documents()
    for path, text in found.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
    for path in superfluous(found):
        (ROOT / path).unlink()
    return 0


def check() -> int:
    """Print how old each result is, and what differs from :func:`render`; return 1 where something does.

    The ages within the pages are those of the day when they were written, and are not compared.
    """
    for name, result in all_results().items():
        print(f"{name}: {result.commit[:9]} of {result.date}, {_age(result)} since")
    wrong = differences()
    for path in wrong:
        print(f"{path} is not what `{RENDER}` writes; change the result files, not the document")
    return 1 if wrong else 0


def differences() -> list[Path]:
    """Return the documents that :func:`render` would change, apart from the ages in them."""
    wanted = documents()
    wrong = superfluous(wanted)
    for path, text in wanted.items():
        found = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        if _AGE.sub("", found) != _AGE.sub("", text):
            wrong.append(path)
    return wrong


def superfluous(wanted: Mapping[Path, str]) -> list[Path]:
    """Return the files among the pages that no result file stands for."""
    found = (path.relative_to(ROOT) for path in (ROOT / PAGES).glob("*"))
    return sorted(path for path in found if path not in wanted)


def documents() -> dict[Path, str]:
    """Make the text of every page, of the chart and of ``BENCHMARKS.md``, by path in the project."""
    results = all_results()
    libraries = results.pop(coverage.NAME, None)
    tables = {name: table_of(name, result) for name, result in results.items()}
    pages = sorted({name.partition(".")[0] for name in results})
    titles = {page: title_of(page) for page in pages}
    found = {PAGES / f"{page}.md": page_text(page, results, tables) for page in pages}
    found[PAGES / "accuracy.svg"] = chart(tables)
    claims = (ROOT / CLAIMS).read_text(encoding="utf-8")
    claims = between(claims, "claims", str(claims_table(results, tables)))
    index = "\n".join(f"- [{titles[page]}]({PAGES / page}.md)" for page in pages)
    if libraries is not None:
        found[coverage.PAGE] = coverage.page_of(libraries, _age(libraries))
        index += f"\n- [{coverage.TITLE}]({coverage.PAGE})"
    found[CLAIMS] = between(claims, "pages", index)
    return found


def between(text: str, marker: str, content: str) -> str:
    """Replace what stands between two markers of a document.

    Raises:
        SystemExit: the document has no such markers.
    """
    begin, end = f"<!-- {marker}: written by {RENDER} -->", f"<!-- end of {marker} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{CLAIMS}: the lines {begin!r} and {end!r} are missing")
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def table_of(name: str, result: Result) -> Table:
    """Make the table of a result: by its benchmark, or of the lines that were transcribed."""
    if not result.transcribed:
        benchmark = load(name.partition(".")[0])
        return benchmark.table([benchmark.row(**row) for row in result.rows])
    columns = tuple(dict.fromkeys(column for row in result.rows for column in row))
    return Table(columns, [tuple(str(row.get(column, "")) for column in columns) for row in result.rows])


def title_of(page: str) -> str:
    """Return the heading of a page."""
    return load(page).title if page in names() else OTHER_TITLES[page]


def page_text(page: str, results: Mapping[str, Result], tables: Mapping[str, Table]) -> str:
    """Make the page of a benchmark."""
    benchmark = load(page) if page in names() else None
    cases = list(benchmark.cases) if benchmark else []
    own = [name for name in results if name.partition(".")[0] == page]
    case_of = {name: name.partition(".")[2] for name in own}
    own.sort(key=lambda name: (cases.index(case_of[name]) if case_of[name] in cases else len(cases), name))
    parts = [
        f"<!-- Written by `{RENDER}` from benchmarks/results/{page}*.json; edits are overwritten. -->",
        f"# {title_of(page)}",
    ]
    if benchmark and benchmark.text:
        parts.append(benchmark.text.replace("``", "`"))
    if page == "accuracy":
        parts.append("![Accuracy kept against the MACs that are left](accuracy.svg)")
    for name in own:
        parts += [f"## {results[name].title}", *section(name, results[name], tables[name], benchmark)]
    return "\n\n".join(parts) + "\n"


def section(name: str, result: Result, table: Table, benchmark: Benchmark | None) -> list[str]:
    """Make the paragraphs of one result."""
    again = current_command(name, benchmark)
    parts = [f"```text\n{again or result.command}\n```"]
    where = f"{result.machine.cpu}, {result.machine.cores} cores, torch {result.machine.torch}"
    changed = ", with uncommitted changes" if result.modified else ""
    seeds = ", ".join(map(str, result.seeds)) or "not recorded"
    lines = [
        f"Measured at commit `{result.commit[:9]}`{changed} ({result.date}),",
        f"{_age(result)} before this page was written.",
        f"Machine: {where}. Seeds: {seeds}.",
    ]
    if result.machine.remark:
        lines.append(result.machine.remark)
    if result.transcribed:
        lines.append("Transcribed from an earlier document: the commit is the one that added the text.")
        if again and result.command:
            lines.append(f"The command was then `{result.command}`.")
    return [*parts, " ".join(lines), str(table), *result.remarks]


def current_command(name: str, benchmark: Benchmark | None) -> str:
    """Return the command that measures a result again; nothing where it is no case of a benchmark."""
    page, _, case = name.partition(".")
    if benchmark is None or (case and case not in benchmark.cases):
        return ""
    return f"python -m benchmarks run {page}" + (f" --case {case}" if case else "")


def claims_table(results: Mapping[str, Result], tables: Mapping[str, Table]) -> Table:
    """Make the table of claims: each takes cells of the table of a result.

    Raises:
        SystemExit: a cell that a claim names is not there.
    """
    lines = []
    for claim in tomllib.loads(DEFINITIONS.read_text(encoding="utf-8"))["claim"]:
        name, column = claim["result"], claim["column"]
        page = name.partition(".")[0]
        benchmark = load(page) if page in names() else None
        try:
            result = results[name]
            ours, peer = tables[name].cell(claim["ours"], column), ""
            if "peer" in claim:
                against = tables[claim.get("peer_result", name)]
                peer = f"{against.cell(claim['peer'], claim.get('peer_column', column))} ({claim['against']})"
        except LookupError as error:
            raise SystemExit(f"{DEFINITIONS.name}, {claim['claim']!r}: {name}: {error}") from None
        how = claim.get("command") or current_command(name, benchmark) or result.command.splitlines()[0]
        text = f"[{claim['claim']}]({PAGES / page}.md)"
        lines.append((text, ours, peer or "–", f"`{how}`", f"`{result.commit[:9]}`"))
    return Table(("claim", "ours", "compared with", "command", "commit"), lines)


def _age(result: Result) -> str:
    count = age(result.commit)
    if count is None:
        return "an unknown number of commits of `src`"
    return f"{count} commit{'' if count == 1 else 's'} of `src`"
