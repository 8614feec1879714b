"""Run the command line: ``python -m secateur``."""

from __future__ import annotations

from secateur.cli import main

if __name__ == "__main__":
    main()
