"""Define the errors that Secateur raises on purpose.

Every message says what is wrong, where, and what to do. The command line shows it as
one line and exits with code 1 (or 2 for wrong usage); it never shows a traceback.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches


def closest(name: str, names: Iterable[str]) -> str:
    """Suggest known names for a misspelt one, to append to an error message.

    Args:
        name: the unknown name; upper and lower case do not matter.
        names: the known names; of a mapping, keys are compared and values are suggested.

    Returns:
        Up to three suggestions, or nothing if no name is close.

    >>> closest("resnet19", ["resnet18", "resnet34", "vgg16"])
    "; did you mean 'resnet18' or 'resnet34'?"
    >>> closest("x", ["resnet18"])
    ''
    """
    suggested = names if isinstance(names, Mapping) else {one: one for one in names}
    known = {one.lower(): shown for one, shown in suggested.items()}
    close = [repr(known[key]) for key in get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    listed = " or ".join(filter(None, (", ".join(close[:-1]), *close[-1:])))
    return f"; did you mean {listed}?" if close else ""


def closest_or_all(name: str, names: Collection[str]) -> str:
    """Suggest known names for a wrong one, or list all of them, to append to an error message.

    Args:
        name: the unknown name.
        names: the known names, few enough to be listed; of a mapping, values are suggested and keys listed.

    >>> closest_or_all("x", ["eager", "compile"])
    '; choose one of eager, compile'
    """
    return closest(name, names) or f"; choose one of {', '.join(names)}"


class SecateurError(Exception):
    """A mistake or a limit that the user can correct; the base of all errors below.

    Example:
        >>> import secateur as sec
        >>> try:
        ...     sec.load("no-such-file.safetensors")
        ... except sec.SecateurError as error:
        ...     print(error)
        no-such-file.safetensors cannot be loaded: there is no such file
    """


class UsageError(SecateurError):
    """An argument is wrong: an unknown name, a value out of range, options that exclude each other.

    Example:
        >>> import secateur as sec
        >>> sec.build("resnet19")
        Traceback (most recent call last):
        secateur.errors.UsageError: torchvision has no network 'resnet19'; did you mean ...
    """


class TraceError(SecateurError):
    """The network could not be captured or walked; the message names the module and the line.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> class Moody(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x if x.sum() > 0 else -x  # which way to go depends on values
        >>> sec.trace(Moody(), torch.ones(2, 3))
        Traceback (most recent call last):
        secateur.errors.TraceError: ...
    """


class BudgetError(SecateurError):
    """No plan can meet the budget; the message gives the smallest cost that can be reached.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sec.prune(net, torch.randn(1, 4), sec.Budget(params=5), "magnitude")
        Traceback (most recent call last):
        secateur.errors.BudgetError: ...
    """


class SurgeryError(SecateurError):
    """A plan does not fit the module, or a tensor cannot be replaced; the module is not changed.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = sec.plan_from(sec.trace(net, torch.randn(1, 4)), {"0": [1, 5]})
        >>> sec.apply_plan(torch.nn.Linear(4, 2), plan)
        Traceback (most recent call last):
        secateur.errors.SurgeryError: the plan does not fit Linear: it has no tensor '0.weight'; ...
    """


class VerificationError(SecateurError):
    """The smaller network does not compute what the masked original computes.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> class Odd(torch.nn.ReLU):
        ...     def forward(self, x):
        ...         return x * 2 if x.shape[1] == 6 else x  # another function at one width
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), Odd(), torch.nn.Linear(8, 2))
        >>> sec.prune(net, torch.randn(1, 4), sec.Budget(channels=6), "magnitude")
        Traceback (most recent call last):
        secateur.errors.VerificationError: WRONG: the smaller network DIFFERS FROM ...
    """


class CheckpointError(SecateurError):
    """A file is truncated, foreign, tampered with, or does not fit the network.

    Example:
        >>> import secateur as sec
        >>> sec.load("no-such-file.safetensors")
        Traceback (most recent call last):
        secateur.errors.CheckpointError: no-such-file.safetensors cannot be loaded: there is no such file
    """


class ExportError(SecateurError):
    """A network cannot be written in a format: it has an operator, or a shape, that the format lacks.

    Example:
        >>> import torch
        >>> from secateur.export import export
        >>> export("pair.pt2", torch.nn.Unflatten(0, (2, 1)), torch.randn(2, 3))
        Traceback (most recent call last):
        secateur.errors.ExportError: Unflatten fixes the batch size ...
    """


class DataError(SecateurError):
    """A data set is missing, empty, inconsistent or unreadable.

    Example:
        >>> from secateur.data import open_data
        >>> from secateur.models import InputSpec
        >>> open_data("no-such-folder", InputSpec((3, 32, 32)))
        Traceback (most recent call last):
        secateur.errors.DataError: ...
    """


class TrainingError(SecateurError):
    """Training cannot continue, for example because the loss is no longer finite.

    Example:
        >>> import torch
        >>> from secateur.training.loop import fit
        >>> from secateur.training.settings import FitSettings
        >>> batches = [(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))]
        >>> fit(torch.nn.Linear(3, 2), batches, FitSettings(epochs=1))
        Traceback (most recent call last):
        secateur.errors.TrainingError: ...
    """


class StoppedError(SecateurError):
    """The user or the system stopped the run; its state was saved.

    Attributes:
        number: of the signal, 2 for Ctrl-C and 15 for SIGTERM.

    Example:
        >>> raise StoppedError(15)
        Traceback (most recent call last):
        secateur.errors.StoppedError: stopped by SIGTERM
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM")
        self.number = number
