"""The units of arrays on a CUDA device, found in the same sweep as what is not finite."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from scattercube.kernels.arguments import not_finite
from scattercube.kernels.cuda_schedule import Given, Schedule
from scattercube.kernels.device import Array, capturing, namespace, to_host
from scattercube.kernels.engine.source import cuda_source

_PART = 1 << 14  # values of which a block finds the peak
_MOST_ARRAYS = (1 << 16) - 1  # of a launch
_BATCH, _UNITS = Given(0), Given(1)


@dataclass(frozen=True)
class _Units:
    """The source of the kernels, for one precision."""

    dtype: np.dtype[Any]
    threads: int = 256

    @property
    def source(self) -> str:
        limits, double = np.finfo(self.dtype), self.dtype.itemsize == 8
        defines = {
            "REAL": "double" if double else "float",
            "THREADS": self.threads,
            "PART": _PART,
            "LARGEST": repr(float(limits.max)) + ("" if double else "f"),
            "LEAST": limits.minexp,
            "MOST": limits.maxexp - 2,
        }
        return cuda_source(defines, "units.cu")


@cache
def _schedule(dtype: np.dtype[Any], n_arrays: int, n: int) -> Schedule:
    schedule, units, parts = Schedule(), _Units(dtype), -(-n // _PART)
    peaks = schedule.space(0, n_arrays * parts * dtype.itemsize)
    schedule.launch(units, "peaks_of_parts", (parts, n_arrays), 0, _BATCH, np.int64(n), peaks)
    schedule.launch(units, "units_of_arrays", (n_arrays,), 0, peaks, parts, _UNITS)
    return schedule


def finite_units(batch: Array, x: Array, name: str = "x") -> Array:
    """Return the unit of each array of a batch (B, …), as `arguments.units` does, once all is known to be finite.

    While a CUDA graph is captured nothing can be read back: what is not finite makes NaN of all that depends on it.

    Parameters
    ----------
    batch
        float32 or float64, on a CUDA device.
    x, name
        The same as it was given, and what to call it, for the message.

    Raises
    ------
    ValueError
        A value is not finite.
    """
    xp, n = namespace(batch), math.prod(batch.shape[1:])
    batch, units = xp.ascontiguousarray(batch), xp.empty(len(batch), batch.dtype)
    for start in range(0, len(batch), _MOST_ARRAYS):
        some = slice(start, min(start + _MOST_ARRAYS, len(batch)))
        _schedule(batch.dtype, some.stop - some.start, n).run(xp, batch[some], units[some])
    if len(batch) and not capturing(xp) and np.isnan(to_host(units)).any():
        raise ValueError(not_finite(x, batch.dtype, name))
    return units
