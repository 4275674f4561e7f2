"""The door to CuPy: the namespace of an array, moves between host and device, constants that live on a device."""

import importlib
import importlib.util
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""A NumPy or CuPy array; every function returns arrays of the namespace it was given."""

Device = Literal["cpu", "cuda"]


def namespace(x: Array) -> ModuleType:
    """Return the module, NumPy or CuPy, whose array ``x`` is.

    Raises
    ------
    TypeError
        ``x`` is neither.
    """
    if isinstance(x, np.ndarray):
        return np
    if type(x).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy")
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}; convert it with numpy.asarray first")


def fft(xp: ModuleType) -> ModuleType:
    """Return the FFT module of a namespace. Both keep single precision; SciPy's runs in the calling thread alone."""
    return importlib.import_module("scipy.fft" if xp is np else "cupyx.scipy.fft")


def device_of(x: Array) -> Device:
    """Return the kind of device that ``x`` is on."""
    return "cpu" if namespace(x) is np else "cuda"


def block_nbytes(device: Device) -> int:
    """Return how large one array of intermediates may be: about a core's cache, or enough to fill a CUDA device."""
    return 1 << 22 if device == "cpu" else 1 << 28


def to_device(x: Array, device: Device) -> Array:
    """Return ``x`` on a device, without a copy where it already is there.

    Raises
    ------
    ValueError
        ``device`` is not one of the two.
    RuntimeError
        There is no usable CUDA device; the message says what is missing.
    """
    if device == "cpu":
        return to_host(x)
    if device != "cuda":
        raise ValueError(f'device={device!r}: expected "cpu" or "cuda"')
    if problem := cuda_problem():
        raise RuntimeError(f'device="cuda": {problem}')
    return importlib.import_module("cupy").asarray(x)


def to_host(x: Array) -> NDArray[Any]:
    """Return ``x`` as a NumPy array, without a copy where it already is one."""
    if namespace(x) is np:
        host: NDArray[Any] = x
    else:
        host = x.get()
    return host


def cuda_problem() -> str | None:
    """Return None when a CUDA device can be used, else one line that says what is missing."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed; install the extra scattercube[cuda12] or scattercube[cuda13]"
    try:
        cupy = importlib.import_module("cupy")
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a broken driver, toolkit or build shows in many exception classes
        return f"CuPy finds no CUDA device: {' '.join(str(error).split())}"
    return None if n_devices else "CuPy finds no CUDA device"


class Constant:
    """A read-only host array and its copies on devices, each made once.

    Parameters
    ----------
    host
        The array; it is marked read-only.
    """

    def __init__(self, host: NDArray[Any]) -> None:
        host.flags.writeable = False
        self.host = host
        self._copies: dict[int, Array] = {}

    def on(self, xp: ModuleType) -> Array:
        """Return the array in a namespace; with CuPy, on the current device."""
        if xp is np:
            return self.host
        device = xp.cuda.Device().id
        if device not in self._copies:
            self._copies[device] = xp.asarray(self.host)
        return self._copies[device]
