"""Time the 2-D kernels against Kymatio 0.3's NumPy backend: one process, one thread, the same images and parameters.

    uv run --group bench python tests/benchmarks/bench_kernels.py

Both run in turns and the best of several turns counts, so that a busy machine slows them alike. ``error`` is
‖ours − peer's‖ / ‖peer's‖ in Kymatio's convention; ``minimal`` is our default one at the same work. Peaks are what a
call allocates, filters not counted.
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
from threadpoolctl import threadpool_limits

from scattercube.kernels import Scattering2D

if not hasattr(scipy.special, "sph_harm"):  # gone in SciPy 1.17, imported by the peer for its 3-D transform
    scipy.special.sph_harm = lambda m, n, theta, phi: scipy.special.sph_harm_y(n, m, phi, theta)

from kymatio.numpy import Scattering2D as Peer2D

WORK = ((28, 3, 256), (32, 2, 256), (64, 3, 64), (128, 4, 16), (256, 4, 4), (512, 5, 1))
"""(side of the images, J, batch), L = 8, order 2, float32."""


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_mib(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main(turns: int = 7) -> None:
    names = ("ours ms", "minimal ms", "peer ms", "ratio", "error", "ours MiB", "peer MiB", "build ms", "peer build")
    print(f"{'work':<22}" + "".join(f"{name:>11}" for name in names))
    for side, J, batch in WORK:
        x = np.random.default_rng(0).standard_normal((batch, side, side)).astype(np.float32)
        start = time.perf_counter()
        ours = Scattering2D(J, (side, side), padding="kymatio")
        built = time.perf_counter()
        peer = Peer2D(J, (side, side))
        peer_built = time.perf_counter()
        minimal = Scattering2D(J, (side, side))
        calls = [lambda S=S, x=x: S(x) for S in (ours, minimal, peer)]
        expected = peer(x)
        error = np.linalg.norm(ours(x) - expected) / np.linalg.norm(expected)
        best = np.min([[seconds(call) for call in calls] for _ in range(turns)], axis=0) * 1e3
        cells = [f"{ms:.1f}" for ms in best] + [f"{best[2] / best[0]:.1f}×", f"{error:.1e}"]
        cells += [f"{peak_mib(calls[i]):.1f}" for i in (0, 2)]
        cells += [f"{s * 1e3:.0f}" for s in (built - start, peer_built - built)]
        print(f"{f'{side}² J={J} B={batch}':<22}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
