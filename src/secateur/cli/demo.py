"""Define the command ``secateur demo``."""

from __future__ import annotations

from pathlib import Path

from secateur.cli import options
from secateur.cli.command_line import command_line
from secateur.cli.report import report_on


def demo(out: options.Out = Path("runs/demo"), seed: options.Seed = 0, json: options.Json = False) -> None:
    """Train, prune, verify, save, reload and measure a small network on real digits, in about a minute.

    Nothing is downloaded. These two commands do the same, with other settings; earlier results are replaced:

      secateur train --model secateur:digits --data digits --out runs/demo/trained
      secateur prune runs/demo/trained --data digits --macs 0.1 --out runs/demo/pruned

    Examples:
      secateur demo
      secateur demo --out runs/seven --seed 7
    """
    from secateur.cli.console import Reporter
    from secateur.cli.tables import before_after, conditions_line, verification_line
    from secateur.jobs.demo import demo as work

    with Reporter(as_json=json) as reporter:
        found = work(out, seed, [reporter], command_line=command_line())
        trained, pruned = found["trained"], found["pruned"]
        reporter.finish(before_after(pruned["baseline"], pruned["pruned"]), found)
        reporter.tell(conditions_line(pruned["latency"]))
        reporter.tell(verification_line(pruned["verification"]))
        report_on(out / "pruned", reporter)
        reporter.tell(f"before: {trained['checkpoint']}\nafter:  {pruned['checkpoint']}")
        reporter.tell(f"next:   secateur measure {out / 'trained'} {out / 'pruned'} --data digits")
