"""The command line of the benchmarks: list, run, render, check."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.benchmark import load, names


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of all benchmarks, their cases and options")
    run = commands.add_parser("run", help="run one benchmark and write its result file")
    run.add_argument("name", metavar="NAME")
    run.add_argument("--case", default="", help="a published run, by its name")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option")
    run.add_argument("--quick", action="store_true", help="see that it works; publish nothing")
    run.add_argument("--out", type=Path, help="write this file instead of the published one")
    commands.add_parser("render", help="write the pages, the claims and the chart from the result files")
    commands.add_parser("check", help="fail where a page is not what render would write; list ages")
    arguments = parser.parse_args()
    if arguments.command == "list":
        show()
    elif arguments.command == "run":
        from benchmarks.run import measure

        print(
            measure(arguments.name, arguments.case, arguments.set, quick=arguments.quick, out=arguments.out)
        )
    else:
        from benchmarks.render import check, render

        sys.exit(render() if arguments.command == "render" else check())


def show() -> None:
    """Print every benchmark."""
    for name in names():
        benchmark = load(name)
        print(f"{name}: {benchmark.title}")
        print(f"  cases: {', '.join(benchmark.cases) or 'none'}")
        print(f"  options: {benchmark.options().model_dump(mode='json')}")


if __name__ == "__main__":
    main()
