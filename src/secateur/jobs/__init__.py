"""Run complete jobs, from names and folders to a finished run, without printing.

Each command of the command line calls one function of this package; programs can call the same function.
"""
