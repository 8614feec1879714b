"""Whole jobs: from names and folders to a finished run, without a word on the screen.

Each command of the command line is one call into this package; programs can make the same call.
"""
