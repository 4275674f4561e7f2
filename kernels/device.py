"""The door to CuPy: the namespace of an array, moves between host and device, constants that live on a device.

``through`` is the move that costs least: host arrays go through a function on the device while others travel.
"""

import importlib
import importlib.util
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""A NumPy or CuPy array; every function returns arrays of the namespace it was given."""

Device = Literal["cpu", "cuda"]

CUDA_OPTIONS = ("-std=c++17", "--device-as-default-execution-space", "--prec-sqrt=false", "--ftz=true")
"""How CUDA source is compiled: the square root to one unit in the last place, and nothing below the normal numbers."""


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
    return _cupy(device).asarray(x)


def to_host(x: Array) -> NDArray[Any]:
    """Return ``x`` as a NumPy array, without a copy where it already is one."""
    if namespace(x) is np:
        host: NDArray[Any] = x
    else:
        host = x.get()
    return host


def through(
    function: Callable[[Array], Array], parts: Iterable[NDArray[Any]], device: Device
) -> Iterator[NDArray[Any]]:
    """Yield ``function(part)`` on the host for every host array of ``parts``, computed on a device.

    On the CPU this is ``map(function, parts)``. On a CUDA device a part is asked for and sent while the one before it
    is computed, and a result travels back meanwhile. What is yielded then is memory that is used again: it holds until
    the next result is asked for. Several threads may do this at once; the device computes their parts in turn.

    Raises
    ------
    ValueError, RuntimeError
        As for ``to_device``.
    """
    return map(function, parts) if device == "cpu" else _conveyor(_cupy(device)).carry(function, parts)


def n_devices() -> int:
    """Return how many CUDA devices this process can use."""
    return 0 if cuda_problem() else int(importlib.import_module("cupy").cuda.runtime.getDeviceCount())


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


@cache
def most_shared_nbytes() -> int:
    """Return how much shared memory a block may take on every CUDA device here; where there is none, it is no limit."""
    if cuda_problem():
        return 1 << 30
    cuda = importlib.import_module("cupy").cuda
    return min(int(cuda.Device(n).attributes["MaxSharedMemoryPerBlockOptin"]) for n in range(n_devices()))


def address(x: Array) -> int:
    """Return where an array begins in memory."""
    return int(x.ctypes.data if namespace(x) is np else x.data.ptr)


def device_id(xp: ModuleType) -> int:
    """Return the number of the current device."""
    return 0 if xp is np else int(xp.cuda.Device().id)


def capturing(xp: ModuleType) -> bool:
    """Tell whether what is launched now becomes part of a CUDA graph, so that nothing can be read back."""
    return xp is not np and bool(xp.cuda.get_current_stream().is_capturing())


@cache
def compiled(xp: ModuleType, device_id: int, source: str, name: str, shared_nbytes: int) -> Any:
    """Return a kernel of CUDA source, compiled for a device, the current one, that may take so much shared memory."""
    kernel = _module(xp, device_id, source).get_function(name)
    # Without being asked a device gives 48 KiB in all; another launch of the kernel may have asked for more.
    if shared_nbytes:
        kernel.max_dynamic_shared_size_bytes = max(shared_nbytes, kernel.max_dynamic_shared_size_bytes)
    return kernel


@cache
def _module(xp: ModuleType, device_id: int, source: str) -> Any:
    return xp.RawModule(code=source, options=CUDA_OPTIONS)


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


class _Slot:
    """Room for one array on its way there and back, made for the largest so far and used again; no thread shares it."""

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._sent = self._returned = np.empty(0, np.uint8)  # pinned, so that copies need no processor
        self._there = cupy.empty(0, np.uint8)
        # Who waits for an event sleeps: other keys of this worker need the core.
        self.arrived, self.computed, self.returned = (cupy.cuda.Event(block=True, disable_timing=True) for _ in "123")
        self.result: Array = None  # its memory is taken again once nothing holds it, copied or not
        self.host = self._sent

    def lay(self, part: NDArray[Any]) -> NDArray[Any]:
        """Copy an array into pinned memory."""
        self._sent = self._pinned(self._sent, part.nbytes)
        laid: NDArray[Any] = _shaped(self._sent, part.shape, part.dtype)
        np.copyto(laid, part)
        return laid

    def there(self, like: NDArray[Any]) -> Array:
        """Return uninitialised room on the device, of the current stream."""
        if self._there.nbytes < like.nbytes:
            self._there = self._cupy.empty(like.nbytes, np.uint8)
        return _shaped(self._there, like.shape, like.dtype)

    def back(self, like: Array) -> NDArray[Any]:
        """Return pinned room for a result."""
        self._returned = self._pinned(self._returned, like.nbytes)
        room: NDArray[Any] = _shaped(self._returned, like.shape, like.dtype)
        return room

    def _pinned(self, held: NDArray[Any], nbytes: int) -> NDArray[Any]:
        if held.nbytes >= nbytes:
            return held
        memory = self._cupy.cuda.PinnedMemory(nbytes)  # a pool would round up to a power of two
        return np.ndarray((nbytes,), np.uint8, self._cupy.cuda.PinnedMemoryPointer(memory, 0))


class _Conveyor:
    """Takes arrays to one device, through a function there, and back: three streams, and slots that wait to be used.

    Functions run one after the other on one stream, whichever thread sends: constants and workspaces that they keep
    on the device are then in order. The streams wait for the default stream, where others may work.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._there, self._work, self._back = (cupy.cuda.Stream() for _ in range(3))
        self._idle: deque[_Slot] = deque()
        self._turn = threading.Lock()

    def carry(self, function: Callable[[Array], Array], parts: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Yield the results on the host, one behind what is sent."""
        sent: deque[_Slot] = deque()
        try:
            for part in parts:
                sent.append(self._send(function, part))
                if len(sent) > 1:
                    yield self._receive(sent[0])
                    self._release(sent.popleft())
            while sent:
                yield self._receive(sent[0])
                self._release(sent.popleft())
        finally:
            while sent:
                self._release(sent.popleft())

    def _send(self, function: Callable[[Array], Array], part: NDArray[Any]) -> _Slot:
        """Start the journey of an array; nothing here waits, but for a turn and for what the function waits for."""
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = _Slot(self._cupy)
        try:
            laid = slot.lay(part)
            with self._there:
                there = slot.there(laid)
            there.data.copy_from_host_async(laid.ctypes.data, laid.nbytes, self._there)
            self._there.record(slot.arrived)
            with self._turn, self._work:
                self._work.wait_event(slot.arrived)
                slot.result = self._cupy.ascontiguousarray(function(there))
                self._work.record(slot.computed)
            slot.host = slot.back(slot.result)
            self._back.wait_event(slot.computed)
            slot.result.data.copy_to_host_async(slot.host.ctypes.data, slot.host.nbytes, self._back)
            self._back.record(slot.returned)
        except BaseException:  # the slot goes, once nothing works on it
            for stream in (self._there, self._work, self._back):
                stream.synchronize()
            raise
        return slot

    def _receive(self, slot: _Slot) -> NDArray[Any]:
        slot.returned.synchronize()
        slot.result = None
        return slot.host

    def _release(self, slot: _Slot) -> None:
        """Give a slot to whoever sends next."""
        self._receive(slot)
        self._idle.append(slot)


def _shaped(room: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return room[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


_CONVEYORS: dict[int, _Conveyor] = {}
_MAKING = threading.Lock()


def _conveyor(cupy: ModuleType) -> _Conveyor:
    """Return the one conveyor of the current device."""
    with _MAKING:
        number = cupy.cuda.Device().id
        if number not in _CONVEYORS:
            _CONVEYORS[number] = _Conveyor(cupy)
        return _CONVEYORS[number]


def _cupy(device: Device) -> ModuleType:
    """Return CuPy for the device "cuda"."""
    if device != "cuda":
        raise ValueError(f'device={device!r}: expected "cpu" or "cuda"')
    if problem := cuda_problem():
        raise RuntimeError(f'device="cuda": {problem}')
    return importlib.import_module("cupy")
