"""One writer per store: a lease that outlives no process, and that no wrong clock can steal.

A lease is a small file in a folder beside a store, one for each holder in turn: ``lease-000001.json``, and the next
one takes the next number. Everything follows from three rules, which need nothing of a file system or an object store
but that a file is created only where there is none:

1. Whoever creates the file of the next number holds the store; of several who try, one does.
2. Its holder alone writes a file: a heartbeat, and at the end that it is released. The last file is never removed, so
   that numbers do not come again.
3. A holder that finds a higher number has lost the store, and stops before it records anything more. It looks at every
   heartbeat, and before it acts where the last look is old: a process that was suspended notices as it wakes.

The next one takes over at once where the lease is released, or where its process has ended on this very machine. It
refuses at once where that process is alive here. What a process elsewhere does cannot be seen, and clocks differ: its
heartbeat is watched, by our own clock. Where it moves, the store is taken; where it does not for ``SILENCE_S``, we take
the next number, and wait ``GRACE_S`` more, within which a holder that lives after all has looked, and stopped.
"""

import contextlib
import getpass
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self

import psutil

from scattercube.pipeline.addresses import hide_secrets
from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import Files

BEAT_S = 10.0
SILENCE_S = 45.0
GRACE_S = 15.0
GOOD_FOR_S = 12.0  # how long a holder trusts its last look; less than GRACE_S, so that it stops before another begins

_log = logging.getLogger(__name__)
_held: set[str] = set()  # the owners in this very process, whose pid says nothing of which of them are still at work


@dataclass(frozen=True)
class Holder:
    """Who holds a store: the content of a lease, JSON.

    Attributes
    ----------
    owner
        Random: which taking of which process.
    pid, started
        The process, and when it started in the words of its system: pids come again.
    machine
        Where that pid means something: this boot of this machine, and the pid namespace.
    host, user, command
        For people.
    since, heartbeat
        For people: ISO 8601 in UTC, by the holder's clock. Nothing is concluded from them.
    beat
        Counts the heartbeats.
    released
        Whether its holder is done.
    """

    owner: str
    pid: int
    started: str
    machine: str
    host: str
    user: str
    command: str
    since: str
    heartbeat: str
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls) -> Self:
        """Describe this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # no such user here, as in many containers
            user = f"uid {os.getuid()}"
        now = _now()
        command = hide_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:200]
        pid = os.getpid()
        return cls(uuid.uuid4().hex, pid, _started(pid) or "", machine(), socket.gethostname(), user, command, now, now)

    @classmethod
    def parse(cls, content: bytes) -> Self | None:
        """Read a lease; None where it is none, as when a file system shows what is only half written."""
        try:
            found = json.loads(content)
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError):
            return None

    def encode(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def is_here(self) -> bool:
        """Whether its pid is one of this machine, since it was started."""
        return self.machine == machine()

    @property
    def is_alive(self) -> bool:
        """Whether a holder that is here still runs."""
        started = _started(self.pid)
        if started is None or started not in ("", self.started):
            return False
        return self.pid != os.getpid() or self.owner in _held

    def __str__(self) -> str:
        text = f"pid {self.pid} on {self.host}, of {self.user}, since {self.since} ({self.command})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Lease:
    """The right to write a store, held until it is released: a context manager.

    Parameters
    ----------
    files
        A folder beside the store, which has nothing else in it.
    where
        The store, for messages.
    number, holder
        What was created.
    """

    def __init__(self, files: Files, where: str, number: int, holder: Holder) -> None:
        self._files, self._where, self._number, self._holder = files, where, number, holder
        self._confirmed = _clock()
        self._lost: StoreError | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name=f"lease of {where}", daemon=True)
        self._beating.start()

    @classmethod
    def take(cls, files: Files, where: str) -> Self:
        """Take a store, over from a holder that is no more where need be.

        Returns at once, or refuses at once, but where the last holder was on another machine and has not released it:
        then within a heartbeat, or after ``SILENCE_S`` and ``GRACE_S``.

        Raises
        ------
        StoreError
            Another run holds the store; the message says which.
        """
        me = Holder.here()
        _held.add(me.owner)  # before anybody can read of it: while an answer is lost, others see what was created
        try:
            return cls._take(files, where, me)
        except BaseException:
            _held.discard(me.owner)
            raise

    @classmethod
    def _take(cls, files: Files, where: str, me: Holder) -> Self:
        watched, since = (-1, b""), 0.0
        while True:
            number = _last(files)
            content = files.read(_name(number)) if number else b""
            if content is None:  # a later one has just removed it
                continue
            holder = Holder.parse(content) if number else None
            silent = watched == (number, content) and _clock() - since >= SILENCE_S
            gone = holder is not None and (holder.released or (holder.is_here and not holder.is_alive))
            if number == 0 or gone or silent:
                if not _created(files, _name(number + 1), me):
                    continue
                lease = cls(files, where, number + 1, me)
                with lease._released_on_failure():
                    lease._settle(GRACE_S if silent else 0.0)
                return lease
            moved = watched[0] == number and watched[1] != content
            if moved or (holder is not None and holder.is_here):
                raise StoreError(
                    f"{where}: another run is writing here: {holder or 'its lease cannot be read'}; let it end, or "
                    f"stop it, and run the same command again"
                )
            if watched != (number, content):
                watched, since = (number, content), _clock()
                _log.warning(
                    "%s: held by %s, which cannot be seen from here; watching for up to %.0f s whether it lives",
                    where,
                    holder or "a lease that cannot be read",
                    SILENCE_S,
                )
            time.sleep(min(BEAT_S, SILENCE_S) / 10)

    def confirm(self) -> None:
        """Make sure that the store is still ours, before anything is recorded in it or published.

        Raises
        ------
        StoreError
            Another run has taken it over, or its lease can be neither read nor written.
        """
        if self._lost is None and _clock() - self._confirmed > GOOD_FOR_S:
            self._look()
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Let the next one take the store. What cannot be said any more, the end of this process will say."""
        self._over.set()
        self._beating.join(timeout=BEAT_S)
        with contextlib.suppress(StoreError):
            if not self._beating.is_alive():
                self._look(released=True)
        _held.discard(self._holder.owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _settle(self, grace_s: float) -> None:
        """Give the holder before time to notice, and remove the files of all before."""
        time.sleep(grace_s)
        self.confirm()
        for name in list(self._files.names(_PREFIX)):
            if 0 < _number(name.partition(".json")[0] + ".json") < self._number:  # what was cut off in writing, too
                self._files.remove(name)

    @contextlib.contextmanager
    def _released_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.release()
            raise

    def _beat(self) -> None:
        while self._lost is None and not self._over.wait(BEAT_S):
            # What fails may pass. Where it does not, the next confirmation meets it too, and says so.
            with contextlib.suppress(StoreError):
                self._look()

    def _look(self, *, released: bool = False) -> None:
        """Write a heartbeat, and then see whether anybody has come after us."""
        with self._lock:
            if self._lost is not None:
                return
            begun, name = _clock(), _name(self._number)
            content = self._files.read(name)
            found = Holder.parse(content) if content else None
            if found is not None and found.owner != self._holder.owner:  # removed by hand meanwhile, and taken anew
                self._lose(found)
                return
            if (last := _last(self._files)) <= self._number:
                beat = self._holder.beat + 1
                self._holder = replace(self._holder, beat=beat, heartbeat=_now(), released=released)
                self._files.write(name, self._holder.encode())
                last = _last(self._files)
            if last > self._number:
                content = self._files.read(_name(last))
                self._lose(Holder.parse(content) if content else None)
                return
            self._confirmed = begun

    def _lose(self, other: Holder | None) -> None:
        self._lost = StoreError(
            f"{self._where}: another run has taken this store over: {other or 'it cannot be read which'}; this "
            f"happens where nothing is heard of a run for {SILENCE_S + GRACE_S:.0f} s; what is recorded is kept, and "
            f"the other goes on from it"
        )


_PREFIX = "lease-"


def _name(number: int) -> str:
    return f"{_PREFIX}{number:06d}.json"


def _number(name: str) -> int:
    """Return the number of a lease's file, 0 for any other file."""
    digits = name.removeprefix(_PREFIX).removesuffix(".json")
    return int(digits) if name == f"{_PREFIX}{digits}.json" and digits.isdecimal() else 0


def _last(files: Files) -> int:
    return max((_number(name) for name in files.names(_PREFIX)), default=0)


def _created(files: Files, name: str, me: Holder) -> bool:
    """Whether we have created a file. A client that asks again, after an answer was lost, is told that it is there."""
    return files.create(name, me.encode()) or files.read(name) == me.encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _clock() -> float:
    """Seconds that pass while the machine sleeps too, and whatever is done to the time of day."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def machine() -> str:
    """Name this boot of this machine, and the pid namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{uuid.getnode():x} {psutil.boot_time():.0f}"


def _started(pid: int) -> str | None:
    """When a process started, in the words of its system; None where it has ended, "" where that cannot be seen.

    Linux counts ticks since the boot, which no change of the clock touches; psutil makes a time of day of them.
    """
    try:
        if Path("/proc/self/stat").exists():
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            return None if state in "ZX" else fields[18]
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except (OSError, psutil.Error):
        return "" if psutil.pid_exists(pid) else None
