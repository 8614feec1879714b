"""Define the command ``secateur report``."""

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
    json: options.Json = False,
) -> None:
    """Write a run as one HTML page; this needs neither the data, the network nor a connection.

    prune and demo write RUN/report.html when they end; this command writes it again, or to another file.
    The camera button of a figure saves it as SVG.

    Examples:
      secateur report runs/demo/pruned
      secateur report runs/digits-small --out small.html
    """
    from secateur.cli.console import Reporter
    from secateur.errors import UsageError
    from secateur.report import write_report

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    page = write_report(run, out)
    with Reporter(as_json=json) as reporter:
        reporter.finish(str(page), {"page": str(page)})


def report_on(run: Path, reporter: Reporter) -> None:
    """Write the page of a run that has just ended; if this fails, the command still succeeds.

    Args:
        run: the run folder.
        reporter: prints where the page is, or why there is none.
    """
    from secateur.errors import SecateurError

    try:
        from secateur.report import write_report

        page = write_report(run)
    except (SecateurError, OSError, ImportError) as error:
        reporter.say(f"warning: there is no report on this run: {' '.join(str(error).split())}")
    else:
        reporter.tell(f"report: {page}")
