"""What the compiled engine does with the images of a block, as a list of operations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """Images that travel together: image b of ``present`` is signal b, b + images, … of a field.

    Parameters
    ----------
    images
        How many images fit, a divisor of ``lanes``.
    present
        How many there are.
    use
        How lanes are used.
    lanes
        Signals of a group.
    """

    images: int
    present: int
    use: int
    lanes: int

    def groups(self, n_prefixes: int) -> int:
        """How many groups the signals make to which so many prefixes lead in each image."""
        return -(-n_prefixes * self.images // self.lanes)


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of the engine.

    Parameters
    ----------
    call
        Its name, one of `CALLS`.
    source, deeper
        The offsets of what is read, spectra or fields, and of the spectra or fields that are made, if any.
    groups
        How many groups of signals are read; across bands, how many lanes.
    rows
        The output row of every signal, or of the first output across bands; None where nothing is averaged.
    plan
        What the engine has planned for it: a grid, tones, a low-pass, a bank or filters across bands.
    first, count, lowpass
        Of a bank, the first filter and how many of them, and what averages |x ∗ ψ|. Across bands, ``count`` is 2 where
        these are complex, fields of real and imaginary parts, and 1 where they are real.
    averages
        The offset of the rows that are written; None where they are those of the output.
    awaited
        Whether the next step needs this one. Threads then wait for each other.
    """

    call: str
    source: int
    deeper: int | None
    groups: int
    rows: NDArray[np.int32] | None
    plan: int
    first: int = 0
    count: int = 0
    lowpass: int = 0
    averages: int | None = None
    awaited: bool = True


CALLS = ("spectrum", "wavelet", "average", "hear", "convolve", "across")
_STEP = np.dtype(  # struct Step in lanes.h
    [
        *((name, np.int32) for name in ("call", "first", "count", "awaited")),
        *((name, np.int64) for name in ("groups", "source", "deeper", "averages")),
        *((name, np.uintp) for name in ("rows", "plan", "lowpass")),
    ],
    align=True,
)


def together(steps: Sequence[Step]) -> list[Step]:
    """Return steps of which none needs another so that the last alone is awaited."""
    return [*(replace(step, awaited=False) for step in steps[:-1]), *steps[-1:]]


@dataclass(eq=False)
class Schedule:
    """All steps of a block, the bytes of the arrays between them, and those of a thread's workspace."""

    steps: list[Step]
    nbytes: int
    workspace_nbytes: int = 0

    @cached_property
    def table(self) -> NDArray[np.void]:
        """The steps as the engine takes them."""
        table = np.zeros(len(self.steps), _STEP)
        for i, step in enumerate(self.steps):
            rows = 0 if step.rows is None else step.rows.ctypes.data
            deeper, averages = (-1 if offset is None else offset for offset in (step.deeper, step.averages))
            numbers = (CALLS.index(step.call), step.first, step.count, step.awaited)
            table[i] = (*numbers, step.groups, step.source, deeper, averages, rows, step.plan, step.lowpass)
        return table
