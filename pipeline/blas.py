"""One BLAS thread while keys are at work, because parallelism is over keys."""

import threading
from typing import Any


class OneThread:
    """Holds BLAS to one thread while anybody is inside: those who overlap share the limit, the last one lifts it."""

    def __init__(self) -> None:
        self._lock, self._limits = threading.Lock(), list[Any]()

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:  # anew for each who enters: libraries may have been loaded since
            self._limits.append(threadpool_limits(1))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            first_or_later = self._limits.pop()
            if not self._limits:  # the first, who knows how it was
                first_or_later.restore_original_limits()


one_thread = OneThread()
