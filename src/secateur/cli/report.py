"""``secateur report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli import options

if TYPE_CHECKING:
    from secateur.cli.console import Reporter


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page; RUN/report.html if not given."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the figures there too, as SVG and PNG for papers."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show a run as one HTML page that needs nothing else: neither data, nor network, nor a connection.

    prune and demo write RUN/report.html when they end; this command makes it again, or elsewhere.

    Examples:
      secateur report runs/demo/pruned
      secateur report runs/digits-small --out small.html --figures figures
    """
    from secateur.cli.console import Reporter
    from secateur.errors import UsageError
    from secateur.report import write_figures, write_report

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    drawn = write_figures(run, figures) if figures is not None else []
    page = write_report(run, out)
    with Reporter(as_json=json) as reporter:
        lines = [str(page), *map(str, drawn)]
        reporter.finish("\n".join(lines), {"page": str(page), "figures": lines[1:]})


def report_on(run: Path, reporter: Reporter) -> None:
    """Writes the page of a run that has just ended. The run does not hang on it.

    Args:
        run: the run folder.
        reporter: told where the page is, or why there is none.
    """
    from secateur.errors import SecateurError

    try:
        from secateur.report import write_report

        page = write_report(run)
    except (SecateurError, OSError, ImportError) as error:
        reporter.say(f"warning: there is no report on this run: {' '.join(str(error).split())}")
    else:
        reporter.tell(f"report: {page}")
