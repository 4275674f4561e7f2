"""The door to the compiled engine: which of its libraries this processor runs, and their functions.

The engine is plain C behind ctypes, built once per instruction set; the best that the processor runs is loaded.
Without it the portable primitives serve, slower and equal. The environment variable ``SCATTERCUBE_ENGINE`` names
another: ``portable``, ``baseline``, ``avx2`` or ``avx512``.
"""

import ctypes
import os
import warnings
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
_FOLDER = Path(__file__).parent

_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "lanes": (_I, [_I]),
    "grid": (_P, [_I, _I, _I, _I]),
    "free_grid": (None, [_P]),
    "half": (_N, [_P]),
    "bank": (_P, [_P, _P, _I]),
    "add_filter": (_P, [_P, _P, _P, _P]),
    "free_bank": (None, [_P]),
    "lowpass": (_P, [_P, _P, _I, _P, _I, ctypes.c_double]),
    "width": (_I, [_P]),
    "line_lowpass": (_P, [_P, _P, _I, _I, _P, _P, _I, ctypes.c_double]),
    "free_lowpass": (None, [_P]),
    "tones": (_P, [_P, _P, _P, _I, _I]),
    "free_tones": (None, [_P]),
    "extend": (None, [_I, _P, _P, _P, _I, _I, _N, _P, _P, _P]),
    "workspace": (_N, [_I, _P, _N]),
    "run_blocks": (None, [_I, _P, _P, _P, _P, _I, _N, _N, _P, _P, _P, _N, _P, _N, _N, _P, _N, _N, _I]),
    "run": (None, [_I, _P, _N, _P, _P, _N, _P, _P, _N, _I, _I, _I]),
    "band_bank": (_P, [_I, _I, _I, _P, _P, ctypes.c_double]),
    "free_band_bank": (None, [_P]),
    "band_workspace": (_N, [_P]),
    "across": (None, [_P, _P, _I, _N, _P, _P, _I]),
    "volumes": (_P, [_I, _I, _I, _I, _P, _I, _P, _I]),
    "add_harmonics": (_P, [_P, _I, _I, _I, _P, _P, _P]),
    "free_volumes": (None, [_P]),
    "volumes_nbytes": (_N, [_P, _N, _I]),
    "scatter_volumes": (None, [_P, _P, _P, _N, _P, _N, _P, _I]),
}


@cache
def _load(name: str) -> ctypes.CDLL | None:
    """Return a library; None, with a warning, where its file is cut short, of another system or of another version."""
    path = _FOLDER / f"scattering-{name}.so"
    try:
        library = ctypes.CDLL(str(path))
        for kind in "fd":
            for function, (result, arguments) in _PROTOTYPES.items():
                entry = getattr(library, f"sc_{function}_{kind}")
                entry.restype, entry.argtypes = result, arguments
    except (OSError, AttributeError) as problem:
        warnings.warn(f"{path} cannot be used; install scattercube again: {problem}", RuntimeWarning, stacklevel=2)
        return None
    return library


def built() -> list[str]:
    """Return the instruction sets that were built, the best first."""
    return [name for name in INSTRUCTION_SETS if (_FOLDER / f"scattering-{name}.so").exists()]


@cache
def active_engine() -> str:
    """Return the name of the engine in use: an instruction set, or ``portable``.

    Raises
    ------
    ValueError
        ``SCATTERCUBE_ENGINE`` names an engine that is unknown, was not built or does not run on this processor.

    Warns
    -----
    RuntimeWarning
        A library is there and cannot be loaded.
    """
    baseline = _load("baseline") if built() else None  # it knows what the others need
    runs = [name for name in built() if baseline and baseline.sc_supports(name.encode()) and _load(name)]
    wanted = os.environ.get("SCATTERCUBE_ENGINE")
    if not wanted:
        return runs[0] if runs else "portable"
    if wanted != "portable" and wanted not in runs:
        raise ValueError(f"SCATTERCUBE_ENGINE={wanted!r}: expected one of {', '.join((*runs, 'portable'))}")
    return wanted


class Engine:
    """The functions of one engine for one precision; what they make is freed with the object that `own` ties it to."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._library: Any = _load(active_engine())
        self._kind = "f" if dtype.itemsize == 4 else "d"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, f"sc_{name}_{self._kind}")

    def own(self, owner: object, kind: str, handle: int | None) -> int:
        """Free what a handle of this kind stands for when its owner goes."""
        if not handle:
            raise MemoryError(f"no memory for a {kind} of the compiled engine")
        weakref.finalize(owner, getattr(self, f"free_{kind}"), handle)
        return handle

    def possible(self, n: int) -> bool:
        """Tell whether lines of n points can be transformed: no prime factor of n is above 13."""
        return bool(self._library.sc_possible(n))
