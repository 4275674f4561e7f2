"""What is read off a result and off a device: errors, times, graphs, memory. CuPy is imported where it is used."""

import contextlib
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from scattercube.kernels import cuda_problem

Call = Callable[[], Any]

LIMITS = {"float32": (3e-6, 3e-5), "float64": (1e-11, 1e-10)}
"""Largest error of a whole result and of its worst path, against NumPy in double precision."""

_ROUNDS = 5
_MOST_CALLS = 100  # in a round
_HURRY = 4  # a call so slow that one takes a quarter of this many budgets is measured in fewer rounds


@lru_cache
def device_problem() -> str | None:
    """Return None when a CUDA device can be used, else what is missing; a warning of CuPy's is no reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cuda_problem()


# --- Errors ---


def errors(actual: Any, expected: Any) -> tuple[float, float]:
    """Return the relative L2 error of coefficients (batch, path, …), and the largest among their paths.

    Both are NaN where a value is not finite. A path that should be silent, and is, has the error 0.
    """
    actual, expected = (np.asarray(array, dtype=np.float64) for array in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"the result has shape {actual.shape}, expected {expected.shape}")
    if not np.isfinite(actual).all():
        return float("nan"), float("nan")
    difference, size = (
        np.sqrt((np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) ** 2).sum(axis=1))
        for array in (actual - expected, expected)
    )
    silent = np.where(difference == 0, 0.0, np.inf)
    by_path = np.divide(difference, size, out=silent, where=size > 0)
    return float(np.linalg.norm(difference) / np.linalg.norm(size)), float(by_path.max())


def within(error: float, worst: float, dtype: str) -> bool:
    """Say whether errors are as small as a precision allows; NaN never is."""
    return error <= LIMITS[dtype][0] and worst <= LIMITS[dtype][1]


# --- Times ---


@dataclass(frozen=True)
class Timing:
    """What a call takes: the median by the device's events, and by the clock on the wall, synchronised."""

    events_s: float
    wall_s: float

    @property
    def seconds(self) -> float:
        """The larger of both."""
        return max(self.events_s, self.wall_s)


def timed(call: Call, budget_s: float) -> Timing:
    """Time a call on the current stream, as often as fits into so much time, after three calls to warm up.

    Torch's default stream is CuPy's, so that the same events stand around either's calls.
    """
    import cupy as cp

    def calls(n: int) -> tuple[list[float], float]:
        marks = [(cp.cuda.Event(), cp.cuda.Event()) for _ in range(n)]
        cp.cuda.Device().synchronize()
        start = time.perf_counter()
        for before, after in marks:
            before.record()
            call()
            after.record()
        cp.cuda.Device().synchronize()
        wall_s = (time.perf_counter() - start) / n
        return [1e-3 * cp.cuda.get_elapsed_time(*pair) for pair in marks], wall_s

    for _ in range(3):
        _, once_s = calls(1)
    n_rounds = max(1, min(_ROUNDS, int(_HURRY * budget_s / once_s)))
    n_calls = max(1, min(_MOST_CALLS, int(budget_s / n_rounds / once_s)))
    rounds = [calls(n_calls) for _ in range(n_rounds)]
    return Timing(
        statistics.median(event for events, _ in rounds for event in events),
        statistics.median(wall for _, wall in rounds),
    )


# --- Graphs ---


@dataclass(frozen=True)
class Captured:
    """A captured call.

    Parameters
    ----------
    replay
        Does it again, on the current stream.
    out
        What it returned: every replay writes there.
    kept
        What must live as long as the graph: its stream, whose memory pool holds the intermediates.
    """

    replay: Call
    out: Any
    kept: Any


def captured(call: Call) -> Captured:
    """Capture a call of CuPy's as a CUDA graph, once it has run twice on the stream that captures it.

    The intermediates stay in the memory pool of that stream, which must not be freed before the last replay.
    """
    import cupy as cp

    cp.cuda.Device().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(2):
            call()
        stream.synchronize()
        stream.begin_capture()
        try:
            out = call()
        except BaseException:
            with contextlib.suppress(Exception):  # of a capture that is void already
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return Captured(graph.launch, out, stream)


# --- Memory ---


def release() -> None:
    """Give the memory that nothing uses back to the device: CuPy's pools, its FFT plans, torch's cache."""
    import cupy as cp

    gc.collect()
    cp.fft.config.get_plan_cache().clear()
    gc.collect()
    cp.get_default_memory_pool().free_all_blocks()
    cp.get_default_pinned_memory_pool().free_all_blocks()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def poison(nbytes: int) -> None:
    """Leave so many bytes of NaN in CuPy's pool, of which the next arrays are made."""
    import cupy as cp

    cp.full(max(1, nbytes // 4), cp.nan, dtype=cp.float32)


def peak_nbytes(call: Call) -> int:
    """Return the most bytes that a call holds at once in CuPy's pool, the work areas of its FFT plans included.

    The call is made twice, and the second one counts: constants are on the device then. Plans are made anew.
    """
    import cupy as cp

    class Live(cp.cuda.MemoryHook):
        """The bytes in use, and the most there were."""

        name = "Live"

        def __init__(self) -> None:
            self.now = self.most = 0

        def malloc_postprocess(self, **block: Any) -> None:
            self.now += block["mem_size"]
            self.most = max(self.most, self.now)

        def free_postprocess(self, **block: Any) -> None:
            self.now -= block["mem_size"]

    call()
    release()
    with Live() as live:
        call()
        cp.cuda.Device().synchronize()
    return int(live.most)
