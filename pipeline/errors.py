"""The errors a user can meet.

Every message names what failed, which key or file, the value, the limit and the remedy. Each class is also the builtin
that a caller would expect, and carries the exit code that the command line returns for it.
"""


class ScattercubeError(Exception):
    """Base of all errors that are about the user's input or machine, not about a fault in the code."""

    exit_code = 1


class EntryError(ScattercubeError, ValueError):
    """A catalogue entry is unknown, malformed, or does not describe the archive it points to."""

    exit_code = 2


class SpecError(ScattercubeError, ValueError):
    """A Spec, an override or a cluster file has an unknown key or an impossible value."""

    exit_code = 2


class PlanError(ScattercubeError, ValueError):
    """The work cannot be done as asked: refused before anything runs."""

    exit_code = 3


class SourceError(ScattercubeError, OSError):
    """An archive as a whole cannot be found, listed or read."""

    exit_code = 4


class RecordError(ScattercubeError, ValueError):
    """One record of an archive cannot be used. It is quarantined; the run goes on.

    Parameters
    ----------
    reason
        The class of the fault, a short slug that quarantine tables group by: ``unreadable``, ``wrong-shape``,
        ``non-finite``, ``too-large`` or ``missing``.
    message
        What was wrong with this record.
    """

    exit_code = 4

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreError(ScattercubeError, OSError):
    """A store cannot be created, written or read, or holds something else than this run would write."""

    exit_code = 5


class ChunkError(ScattercubeError, RuntimeError):
    """The step of one key failed after its retries; everything finished before it is kept."""

    exit_code = 6
