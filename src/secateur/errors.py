"""The errors that Secateur raises on purpose.

Every message says what is wrong, where, and what to do. The command line shows it as
one line and leaves with exit code 1 (or 2 for wrong usage); it never shows a traceback.
"""

from __future__ import annotations


class SecateurError(Exception):
    """A mistake or a limit that the user can act on; the base of all kinds below."""


class UsageError(SecateurError):
    """An argument is wrong: an unknown name, a value out of range, options that exclude each other."""


class TraceError(SecateurError):
    """The network could not be captured or walked; the message names the module and the line."""


class BudgetError(SecateurError):
    """No plan can meet the budget; the message gives the smallest cost that can be reached."""


class SurgeryError(SecateurError):
    """A plan does not fit the module, or a tensor cannot be replaced; the module is left as it was."""


class VerificationError(SecateurError):
    """The smaller network does not compute what the masked original computes."""


class CheckpointError(SecateurError):
    """A file is truncated, foreign, tampered with, or does not fit the network."""


class ExportError(SecateurError):
    """A network cannot be written in a format: it has an operator, or a shape, that the format lacks."""


class DataError(SecateurError):
    """A data set is missing, empty, inconsistent or unreadable."""


class TrainingError(SecateurError):
    """Training cannot go on, for example because the loss is no longer finite."""
