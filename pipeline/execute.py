"""The only loop of the project: run the keys of a stage, here or on a cluster.

``run(stage, keys)`` without a client is the serial loop, the reference for the other. With a client, keys travel in
groups through a bounded window, so that the scheduler's memory stays flat however many keys there are. Steps are
idempotent, because a key may run more than once: a worker can die after it wrote and before it said so.
"""

import asyncio
import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scattercube.pipeline.blas import one_thread
from scattercube.pipeline.errors import ChunkError, ScattercubeError
from scattercube.pipeline.keys import ChunkKey, Keys
from scattercube.pipeline.stage import Observer, Silence, Stage, StepEvent

if TYPE_CHECKING:
    from distributed import Client, Future

ATTEMPTS = 3
TASK_SECONDS = 2.0  # a Dask task holds as many keys as take about this long
_DONE, _WANTED, _BEGUN = range(3)
WINDOW = 3  # tasks in flight per worker thread
SILENT_SECONDS = 3600.0  # a key takes seconds; where no worker has finished any for so long, something hangs
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}  # trying again changes nothing


def run(
    stage: Stage,
    keys: Keys,
    client: "Client | None" = None,
    observer: Observer | None = None,
    confirm: Callable[[str], None] = lambda stage: None,
) -> int:
    """Run those of the given keys that the journal does not have, and journal each; return how many.

    Where the stage has a ``source``, keys of that which they need and that are missing run before them, and meanwhile
    others: one is read and decoded while another is computed. ``confirm`` is asked, by the name of a stage, before
    anything is recorded for it, and raises where its store has become another run's.

    Raises
    ------
    ChunkError
        A key failed. What was finished, in flight included, is in the journal, and the same call goes on from there.
    """
    watch = observer or Silence()
    work = _Work(stage, stage.store.missing(keys))
    finished = _serial(work) if client is None else _distributed(work, client)
    stores = {one.name: one.store for one in (stage, stage.source) if one is not None}
    count = 0
    for events in finished:
        confirm(events[0].stage)
        stores[events[0].stage].record([event.line() for event in events], [event.change for event in events])
        for event in events:
            watch.step(event)
            count += event.stage == stage.name
    return count


def attempt(name: str, step: Callable[[ChunkKey], StepEvent], key: ChunkKey) -> StepEvent:
    """Run one step, up to three times where the reason may pass."""
    started = time.time()
    for number in range(1, ATTEMPTS + 1):
        try:
            with one_thread:
                event = step(key)
            return replace(
                event,
                stage=name,
                attempt=number,
                started=started,
                worker=f"pid {os.getpid()}",
                peak_nbytes=peak_nbytes(),
            )
        except OSError as failure:
            if number == ATTEMPTS or _lasting(failure):
                raise ChunkError(f"{name} {key}: {failure}") from failure
            time.sleep(0.2 * 4**number)
        except ScattercubeError as failure:
            raise ChunkError(f"{name} {key}: {failure}") from failure
        except Exception as failure:
            raise ChunkError(f"{name} {key}: {type(failure).__name__}: {failure}") from failure
    raise AssertionError("unreachable: the last attempt returns or raises")


def peak_nbytes() -> int:
    """Return the largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent, of which a worker is a fork for a moment
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lasting(failure: BaseException | None) -> bool:
    while failure is not None:
        if isinstance(failure, OSError) and failure.errno in LASTING:
            return True
        failure = failure.__cause__
    return False


class _Work:
    """What is left to do, in an order in which a key comes after those that it needs.

    Parameters
    ----------
    stage, keys
        What is wanted.
    """

    def __init__(self, stage: Stage, keys: Keys) -> None:
        self.stage = stage
        self._waiting, self._ready = keys, deque[ChunkKey]()
        self._blocked: dict[ChunkKey, set[int]] = {}  # by key, what it needs that is not done
        self._wanted = deque[int]()  # of what they need, what nobody has begun
        # Of every key of the source, whether it is wanted, under way, or done.
        self._state = stage.source.store.missing(stage.source.keys).mask() if stage.source else bytearray()

    def left(self, stage: Stage) -> int:
        """Keys of a stage that nobody has begun; of the source, those of which it is known that they are needed."""
        if stage is not self.stage:
            return len(self._wanted)
        return len(self._waiting) + len(self._ready) + len(self._blocked)

    def next(self, most: Callable[[Stage], int]) -> tuple[Stage, tuple[ChunkKey, ...]] | None:
        """Return the next keys of one stage, at most so many; none where all that is left needs what is under way."""
        while not self._ready and not self._wanted and self._waiting:
            self._admit()
        if self._ready:
            size = max(1, most(self.stage))
            while len(self._ready) < size and self._waiting and not self._needs(self._waiting[0]):
                self._admit()
            return self.stage, tuple(self._ready.popleft() for _ in range(min(size, len(self._ready))))
        if (source := self.stage.source) is None or not self._wanted:
            return None
        size = max(1, most(source))
        while len(self._wanted) < size and self._waiting:
            self._admit()
        numbers = [self._wanted.popleft() for _ in range(min(size, len(self._wanted)))]
        return source, tuple(source.keys.grid.key(number) for number in numbers)

    def done(self, stage: str, key: str) -> None:
        """Say that a key is in its store."""
        if self.stage.source is None or stage != self.stage.source.name:
            return
        number = self._number(ChunkKey.parse(key))
        self._state[number] = _DONE
        for blocked, needs in list(self._blocked.items()):
            needs.discard(number)
            if not needs:
                del self._blocked[blocked]
                self._ready.append(blocked)

    def _number(self, key: ChunkKey) -> int:
        assert self.stage.source is not None
        number = self.stage.source.keys.grid.number(key)
        assert number is not None, f"{key} is no key of the stage {self.stage.source.name}"
        return number

    def _needs(self, key: ChunkKey) -> set[int]:
        """The keys of the source that are not done and that a key needs, by number."""
        if self.stage.needs is None:
            return set()
        return {number for need in self.stage.needs(key) if self._state[number := self._number(need)] != _DONE}

    def _admit(self) -> None:
        """Let the next key wait for what it needs; it is ready where it needs nothing."""
        key, self._waiting = self._waiting[0], self._waiting[1:]
        if not (needs := self._needs(key)):
            self._ready.append(key)
            return
        self._blocked[key] = needs
        for number in sorted(number for number in needs if self._state[number] == _WANTED):
            self._state[number] = _BEGUN
            self._wanted.append(number)


def _serial(work: _Work) -> Iterator[list[StepEvent]]:
    """Yield what is finished, a key at a time; what comes after one begins when it is recorded."""
    while (group := work.next(lambda _stage: 1)) is not None:
        stage, keys = group
        for key in keys:
            event = attempt(stage.name, stage.step, key)
            yield [event]
            work.done(event.stage, event.key)


def _attempt_group(
    name: str, step: Callable[[ChunkKey], StepEvent], group: tuple[ChunkKey, ...]
) -> tuple[list[StepEvent], ChunkError | None]:
    """Run a group on a worker. A failure comes back as a value, so that the keys before it are not lost."""
    done: list[StepEvent] = []
    for key in group:
        try:
            done.append(attempt(name, step, key))
        except ChunkError as failure:
            return done, failure
    return done, None


@dataclass
class _Window:
    """The groups in flight."""

    client: "Client"
    work: _Work
    groups: "dict[Future[Any], tuple[Stage, tuple[ChunkKey, ...]]]" = field(default_factory=dict)
    seconds_per_key: dict[str, float] = field(default_factory=dict)

    def fill(self) -> "Iterator[Future[Any]]":
        """Submit what comes next, until enough is in flight."""
        threads = max(1, sum(self.client.nthreads().values()))
        while len(self.groups) < WINDOW * threads:
            group = self.work.next(lambda stage: self._size(stage, threads))
            if group is None:
                return
            yield self.submit(*group)

    def _size(self, stage: Stage, threads: int) -> int:
        """As many keys as take about as long as a task should; the last groups are small, so that workers end together.

        How long one takes is known once one is done.
        """
        if stage.name not in self.seconds_per_key:
            return 1
        fair = max(1, self.work.left(stage) // (WINDOW * threads))
        return min(fair, max(1, round(TASK_SECONDS / max(self.seconds_per_key[stage.name], 1e-3))))

    def submit(self, stage: Stage, group: tuple[ChunkKey, ...]) -> "Future[Any]":
        """Send a group of keys to a worker."""
        first = int(stage.name == self.work.stage.name)  # before what it does not wait for: readers run ahead anyway
        future = self.client.submit(_attempt_group, stage.name, stage.step, group, pure=False, priority=first)
        self.groups[future] = (stage, group)
        return future

    def learn(self, events: Sequence[StepEvent]) -> None:
        """Remember how long keys take, and that they are done."""
        for event in events:
            self.work.done(event.stage, event.key)
        if events:
            seconds = sum(e.read_s + e.compute_s + e.write_s for e in events) / len(events)
            self.seconds_per_key[events[0].stage] = seconds


def _next(stream: Any, window: _Window) -> "Future[Any]":
    """Return the next future that is finished; raises ChunkError where there is none for too long."""

    async def wait() -> "Future[Any]":
        return await asyncio.wait_for(anext(stream), SILENT_SECONDS)

    try:
        found: Future[Any] = window.client.sync(wait)
        return found
    except TimeoutError:
        running = {key for keys in window.client.processing().values() for key in keys}
        groups = [window.groups[future] for future in window.groups if future.key in running]
        raise _hanging(groups or list(window.groups.values())) from None


def _hanging(groups: Sequence[tuple[Stage, tuple[ChunkKey, ...]]]) -> ChunkError:
    named = [f"{stage.name} {key}" for stage, keys in groups for key in keys[:1]]
    others = f" and {len(named) - 1} others" if len(named) > 1 else ""
    return ChunkError(
        f"{named[0]}{others}: nothing was finished for {SILENT_SECONDS:.0f} s: an archive or a disk may hang, or no "
        f"worker is left; what is finished is kept: see to that, and run the same command again"
    )


def _distributed(work: _Work, client: "Client") -> Iterator[list[StepEvent]]:
    """Yield what is finished, a group at a time; what needs it is submitted when it is recorded."""
    from distributed import KilledWorker, as_completed

    window = _Window(client, work)
    problem: ChunkError | None = None
    while problem is None and (first := list(window.fill())):
        suspects: list[tuple[Stage, ChunkKey]] = []
        # A future that is kept is computed again when its worker dies. Without its loop, the latest client's would do.
        stream = as_completed(first, loop=client.loop)
        del first
        while not stream.is_empty():
            future = _next(stream, window)
            stage, group = window.groups.pop(future)
            try:
                events, failure = future.result()
            except KilledWorker:  # whatever else the worker had is as suspect as the key that is to blame
                events, failure = [], None
                suspects.extend((stage, key) for key in group)
            if events:
                yield events
            window.learn(events)
            problem = problem or failure
            if problem is None:
                for more in window.fill():
                    stream.add(more)
        for stage, key in suspects:  # each with all workers to itself
            try:
                events, failure = window.submit(stage, (key,)).result(timeout=SILENT_SECONDS)
            except TimeoutError:
                raise _hanging([(stage, (key,))]) from None
            except KilledWorker as death:
                events, failure = [], ChunkError(f"{stage.name} {key}: its worker died each time it ran: {death}")
            window.groups.clear()
            if events:
                yield events
            window.learn(events)
            problem = problem or failure
    if problem is not None:
        raise problem
