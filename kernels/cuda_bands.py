"""Filters across bands as the CUDA engine reads them, and the launches that apply them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.bands import BandBank
from scattercube.kernels.cuda_modules import shared_nbytes
from scattercube.kernels.cuda_schedule import Given, Schedule, Space
from scattercube.kernels.device import Constant
from scattercube.kernels.engine.source import cuda_source
from scattercube.kernels.filterbank import Shape

_LANES = 32
_ROWS = 192  # of a group: their moduli leave room for several blocks
_STATIC_NBYTES = 1 << 11
_SPAN = np.dtype([(name, np.int32) for name in ("begin", "end", "first", "unused")])


@dataclass(frozen=True)
class Lanes:
    """Where lanes lie: ``count`` of them, ``inner`` side by side, then ``outer`` elements further.

    ``step`` is from one band, or output, to the next.
    """

    count: int
    inner: int
    outer: int
    step: int


@dataclass(frozen=True, eq=False)
class CudaBands:
    """A bank as `across` in bands.cu reads it.

    Parameters
    ----------
    groups
        (groups, 4) int32: outputs that are found together, and the rows that lead to them.
    rows, outputs
        (n, 4) int32, struct Span: which bands, and which rows, enter.
    kernels, smoothing
        Their weights, one after the other.
    n_bands
        Bands.
    most_rows
        Of a group.
    """

    groups: Constant
    rows: Constant
    outputs: Constant
    kernels: Constant
    smoothing: Constant
    n_bands: int
    most_rows: int
    threads: int = 256

    @classmethod
    def of(cls, bank: BandBank) -> Self | None:
        """Pack a bank; None where its bands and the rows of an output do not fit a block."""
        rows, kernels = _packed(bank.kernels.host)
        outputs, smoothing = _packed(bank.smoothing.host)
        groups: list[Shape] = []
        for o, (begin, end) in enumerate(zip(outputs["begin"].tolist(), outputs["end"].tolist(), strict=True)):
            if groups and max(end, groups[-1][3]) - min(begin, groups[-1][2]) <= _ROWS:
                first, _, low, high = groups.pop()
                groups.append((first, o + 1, min(low, begin), max(high, end)))
            else:
                groups.append((o, o + 1, begin, end))
        made = cls(
            groups=Constant(np.array(groups, np.int32)),
            rows=Constant(rows.view(np.int32).reshape(len(rows), -1)),
            outputs=Constant(outputs.view(np.int32).reshape(len(outputs), -1)),
            kernels=Constant(kernels),
            smoothing=Constant(smoothing),
            n_bands=bank.n_bands,
            most_rows=max(high - low for _, _, low, high in groups),
        )
        return made if made.nbytes <= shared_nbytes() - _STATIC_NBYTES else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.smoothing.host.dtype

    @property
    def nbytes(self) -> int:
        """Shared memory of a block."""
        return (2 * self.n_bands + self.most_rows) * _LANES * self.dtype.itemsize

    @cached_property
    def source(self) -> str:
        """The text that is compiled."""
        real = "float" if self.dtype.itemsize == 4 else "double"
        return cuda_source({"REAL": real, "THREADS": self.threads}, "bands.cu")

    def across(
        self,
        schedule: Schedule,
        kind: Literal["real", "complex"],
        Y: Space | Given,
        from_lanes: Lanes,
        Z: Space | Given,
        to_lanes: Lanes,
    ) -> None:
        """Launch: bands of all lanes, real or complex ones, to their outputs."""
        grid = (-(-from_lanes.count // _LANES), len(self.groups.host))
        schedule.launch(
            *(self, f"across_{kind}", grid, self.nbytes, Y, from_lanes.count, from_lanes.inner),
            *(np.int64(from_lanes.outer), np.int64(from_lanes.step), self.n_bands),
            *(self.groups, self.rows, self.kernels, self.outputs, self.smoothing),
            *(Z, np.int64(to_lanes.outer), np.int64(to_lanes.step)),
        )

    def copy_row(
        self, schedule: Schedule, n_signals: int, n: int, row: Space, outer: int, to: Given, outer_to: int
    ) -> None:
        """Launch: n numbers of each signal, ``outer`` elements apart, to where they stand ``outer_to`` apart."""
        schedule.launch(self, "copy_row", (n_signals,), 0, row, np.int64(outer), n, to, np.int64(outer_to))


def _packed(matrix: NDArray[Any]) -> tuple[NDArray[np.void], NDArray[Any]]:
    """Return the spans of a matrix's rows that are not nothing, and what stands there."""
    spans, values = np.zeros(len(matrix), _SPAN), []
    nothing, first = np.finfo(matrix.dtype).eps / 8 * abs(matrix).max(), 0
    for span, row in zip(spans, matrix, strict=True):
        heard = np.flatnonzero(abs(row) > nothing)
        begin, end = (int(heard[0]), int(heard[-1]) + 1) if len(heard) else (0, 0)
        span["begin"], span["end"], span["first"] = begin, end, first
        values.append(row[begin:end])
        first += end - begin
    return spans, np.ascontiguousarray(np.concatenate(values))
