"""Moduli across bands as the compiled engine takes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.engine.library import Engine, active_engine

_ALIGNMENT = 64


def plan(kernels: NDArray[Any], smoothing: NDArray[Any]) -> "Plan | None":
    """Return the plan of `bands.modulus_across` for a bank's matrices; None where no engine is at hand."""
    return None if active_engine() == "portable" else Plan(kernels, smoothing)


class Plan:
    """`bands.modulus_across` as the engine runs it: a few vectors of lanes at a time, so that all bands stay in cache.

    Parameters
    ----------
    kernels
        (rows, bands) complex.
    smoothing
        (outputs, rows) real, float32 or float64.

    Attributes
    ----------
    handle
        What the engine has planned for it.
    """

    def __init__(self, kernels: NDArray[Any], smoothing: NDArray[Any]) -> None:
        self._engine, self._dtype, self._n_outputs = Engine(smoothing.dtype), smoothing.dtype, len(smoothing)
        kernels, smoothing = np.ascontiguousarray(kernels), np.ascontiguousarray(smoothing)
        handle = self._engine.band_bank(
            *(*kernels.shape, self._n_outputs, kernels.ctypes.data, smoothing.ctypes.data),
            float(np.finfo(self._dtype).eps),
        )
        self.handle = self._engine.own(self, "band_bank", handle)

    def __call__(self, Y: NDArray[Any], threads: int) -> NDArray[Any]:
        """Return the smoothed |Y ∗ ψ| of every filter: (bands, …) → (outputs, …) real."""
        numbers = [Y.real, Y.imag] if np.iscomplexobj(Y) else [Y]
        parts = np.empty((len(Y), len(numbers), *Y.shape[1:]), self._dtype)
        for k, part in enumerate(numbers):
            parts[:, k] = part
        Z = np.empty((self._n_outputs, *Y.shape[1:]), self._dtype)
        memory = np.empty(self.nbytes(threads), np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % _ALIGNMENT
        lanes = Y[0].size
        self._engine.across(self.handle, parts.ctypes.data, len(numbers), lanes, Z.ctypes.data, start, threads)
        return Z

    def nbytes(self, threads: int) -> int:
        """Return the bytes that the engine works in beside the parts of ``Y`` and the result."""
        return threads * int(self._engine.band_workspace(self.handle)) + _ALIGNMENT
