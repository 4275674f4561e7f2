"""What the compiled engine does with the images of a block, as a list of operations."""

from dataclasses import dataclass
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
        The offsets of what is read, a spectrum or the extended field, and of the spectra that are made, if any.
    groups
        How many groups of signals are read.
    rows
        The output row of every signal; None where nothing is averaged.
    plan
        What the engine has planned for it: a grid, tones, a low-pass or a bank.
    first, count, lowpass
        Of a bank, the first filter and how many of them, and what averages |x ∗ ψ|.
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


CALLS = ("spectrum", "wavelet", "average", "hear")
_STEP = np.dtype(  # struct Step in lanes.h
    [
        *((name, np.int32) for name in ("call", "first", "count")),
        *((name, np.int64) for name in ("groups", "source", "deeper")),
        *((name, np.uintp) for name in ("rows", "plan", "lowpass")),
    ],
    align=True,
)


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
            deeper = -1 if step.deeper is None else step.deeper
            numbers = (CALLS.index(step.call), step.first, step.count, step.groups, step.source, deeper)
            table[i] = (*numbers, rows, step.plan, step.lowpass)
        return table
