"""The errors that a person can mend, under one base class, and how an error is said in one line.

A message names the file or the setting, what was found, what is wanted, and the way out. The
command line catches `OcpMambaError` and prints the message without a traceback.
"""

from __future__ import annotations

import reprlib

from ocp_mamba.redact import redact

LONGEST_LINE = 300
"""Characters: MLflow's messages go on for pages."""


class OcpMambaError(Exception):
    """Base class of every error that this package raises for a person to read."""


class BackendError(OcpMambaError, RuntimeError):
    """A backend or a device was asked for by name and cannot run here."""


class CheckpointError(OcpMambaError, ValueError):
    """A ``.pt`` file cannot be read, or not as what was wanted."""


class CompareError(OcpMambaError, ValueError):
    """Runs cannot be ranked, or cannot be read; the message says which and why."""


class CompileError(OcpMambaError, RuntimeError):
    """The CPU kernels cannot be compiled or loaded on this machine."""


class ConfigError(OcpMambaError, ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


class DataNotFoundError(OcpMambaError, FileNotFoundError):
    """A file is in none of the places where it is searched."""


class DatasetError(OcpMambaError, ValueError):
    """A dataset is not valid; the message says which key, and why."""


class DecoderError(OcpMambaError, RuntimeError):
    """A decoder cannot be loaded, or does not fit the bank."""


class EncoderError(OcpMambaError, ValueError):
    """An encoder cannot be loaded, or does not give vectors of the right shape."""


class JobError(OcpMambaError, RuntimeError):
    """What was asked for does not fit together: a model, a dataset, an encoder."""


class NotFiniteError(OcpMambaError, ValueError):
    """A loss, a gradient, a weight or a prediction is NaN or infinite."""


class OutputError(OcpMambaError, OSError):
    """A file cannot be written: a read-only folder, a full disk, a folder of that name."""


class QueueError(OcpMambaError, ValueError):
    """An offline queue's file cannot be read, or the store does not take what waits in it."""


class RegistryError(OcpMambaError, RuntimeError):
    """A model cannot be registered, or a registered one cannot be loaded."""


class RequestError(OcpMambaError, ValueError):
    """What a model is asked is not what it takes; the message says what was found and is wanted.

    Attributes:
        status: the HTTP status by which a server says so, 4xx, or 503 when it stops.
        retry_after: seconds after which the same request may be answered, or None.
    """

    def __init__(self, message: str, status: int = 400, retry_after: int | None = None) -> None:
        """Keep what is answered: the message, the status, and when to ask again."""
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class EvidenceError(RegistryError):
    """A registered version is not what its training wrote, or does not show what it claims.

    Attributes:
        fault: a short name that stays the same, such as ``weights-changed``.
        detail: what was found and what is wanted; the message is both, with a colon between.
    """

    def __init__(self, fault: str, message: str) -> None:
        """Name the fault, and say what was found and what is wanted."""
        super().__init__(f"{fault}: {message}")
        self.fault, self.detail = fault, message


class ServerError(OcpMambaError, RuntimeError):
    """A server refuses a request, does not answer, or answers something else than was asked."""


class SpaceError(ConfigError):
    """A search space file is not what a sweep can search."""


class StorageError(OcpMambaError, RuntimeError):
    """A sweep's storage cannot be used."""


class SweepError(OcpMambaError, RuntimeError):
    """A sweep cannot be started, joined or gone on with."""


class TrackingError(OcpMambaError, RuntimeError):
    """The tracking store cannot be used, or a run cannot be opened in it."""


class TrainingError(OcpMambaError, RuntimeError):
    """Training cannot start, or cannot go on."""


class ResumeError(TrainingError):
    """An interrupted training cannot be gone on with; the message says what differs."""


class EndedError(ResumeError):
    """The training that is to be gone on with has ended: there is nothing left to do."""


class VariantsError(OcpMambaError, RuntimeError):
    """Some variants failed; the table says why, and all others are in it."""


class WorkerLostError(OcpMambaError, RuntimeError):
    """Another process of the training has ended, or can no longer be reached."""


def shown(value: object, longest: int = 100) -> str:
    """Return a value out of a file as an error shows it: short, and never an error itself."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 8
_SHORT.maxlevel = 3


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class where it has none.

    Passwords and tokens in it are redacted.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return redact(line)[:LONGEST_LINE]
