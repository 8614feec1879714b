"""``secateur demo``."""

from __future__ import annotations

from pathlib import Path

from secateur.cli import options


def demo(
    out: options.Out = Path("runs/demo"),
    seed: options.Seed = 0,
    overwrite: options.Overwrite = True,
    json: options.Json = False,
) -> None:
    """Train, prune, prove, save, reload and measure a small network on real digits, in about a minute.

    Nothing is downloaded. It does what these two commands do:

      secateur train --model secateur:digits --data digits --out runs/demo/trained ...
      secateur prune runs/demo/trained --data digits --macs 0.2 --out runs/demo/pruned ...

    Examples:
      secateur demo
      secateur demo --out /tmp/demo --seed 7
    """
