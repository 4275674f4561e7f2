"""Work of the portable primitives on several threads: NumPy and SciPy let each other's threads run."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Share:
    """How calls that do not depend on each other are made: one after the other, or by the threads of a pool."""

    pool: ThreadPoolExecutor | None
    threads: int

    def __call__(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Return the results of the calls, in order."""
        return list((self.pool.map if self.pool else map)(function, *arguments))

    def slices(self, n: int) -> list[slice]:
        """Cut n things into a slice for each thread."""
        return evenly(n, self.threads)


def evenly(n: int, parts: int) -> list[slice]:
    """Cut n things into so many parts of about the same size, without those that are empty."""
    ends = [n * k // max(1, parts) for k in range(max(1, parts) + 1)]
    return [slice(a, b) for a, b in pairwise(ends) if a < b]


@contextmanager
def workers(threads: int) -> Iterator[Share]:
    """Share work among so many threads."""
    if threads == 1:
        yield Share(None, 1)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield Share(pool, threads)
