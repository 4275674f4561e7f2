"""The errors a user can meet.

Every message names what failed, which key or file, the value, the limit and the remedy. Each class is also the builtin
that a caller would expect, and carries the exit code that the command line returns for it.
"""

import re

_BREAK = re.compile(r"\s*[\r\n]\s*")
_LONGEST = 1200  # characters of a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OBJECT = re.compile(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-fA-F]+>")


class ScattercubeError(Exception):
    """Base of all errors that are about the user's input or machine, not about a fault in the code.

    Its text is one line whatever it quotes: names and contents of archives, and what libraries say, are shown on
    terminals and pages.
    """

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Return a text without line breaks, control characters and addresses of objects, cut in its middle if need be."""
    plain = _CONTROL.sub(_escaped, _OBJECT.sub(r"\1", _BREAK.sub(" ", text)))
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST // 2]} […] {plain[-_LONGEST // 3 :]}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def said_by(failure: BaseException) -> str:
    """Return what an exception of a library says of damaged input; in words where that is nothing but its class."""
    text = one_line(str(failure)).strip().rstrip(".:")
    return text if text and text != type(failure).__name__ else f"damaged, or cut short ({type(failure).__name__})"


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


class QuarantineError(ScattercubeError, ValueError):
    """More of an archive is quarantined than the run allows; all the rest is done and published."""

    exit_code = 7
