"""The lease of a store: whoever tries, one holds it; the dead hold nothing; who was thought dead stops.

Processes are real: this file, run as a program, is one that takes a lease and does what it is told on its input.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores import lease
from scattercube.pipeline.stores.files import files_at
from scattercube.pipeline.stores.lease import Holder, Lease

BEAT, SILENCE, GRACE, GOOD_FOR = 0.1, 0.6, 0.4, 0.3


def hurry():
    lease.BEAT_S, lease.SILENCE_S, lease.GRACE_S, lease.GOOD_FOR_S = BEAT, SILENCE, GRACE, GOOD_FOR


def obey(place: str, machine: str) -> None:
    """Say "ready", and at each line of the input take the lease, confirm it or release it; say what came of it."""
    hurry()
    if machine:
        lease.machine = lambda: machine
    held = None
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            if line.strip() == "take":
                held = Lease.take(files_at(place), "the cube")
            elif line.strip() == "confirm":
                held.confirm()
            else:
                held.release()
            print("yes", flush=True)
        except StoreError as failure:
            print(failure, flush=True)


class Other:
    """Another process, perhaps on what it takes for another machine."""

    def __init__(self, place: str, machine: str = "") -> None:
        command = [sys.executable, "-m", "tests.test_lease", place, machine]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.answer() == "ready"

    def tell(self, line):
        self.process.stdin.write(line + "\n")

    def answer(self):
        return self.process.stdout.readline().strip()

    def ask(self, line):
        self.tell(line)
        return self.answer()

    def kill(self):
        self.process.kill()  # and nobody waits for it: it stays as a zombie

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(params=["folder", "objects"])
def place(request, tmp_path):
    """Where leases are: a folder, or below the URL of a bucket."""
    if request.param == "folder":
        return str(tmp_path / "cube.lease")
    return f"{request.getfixturevalue('s3')}/cube.lease"


@pytest.fixture
def others(place):
    started = []

    def start(machine=""):
        started.append(Other(place, machine))
        return started[-1]

    yield start
    for other in started:
        other.close()


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("BEAT_S", BEAT), ("SILENCE_S", SILENCE), ("GRACE_S", GRACE), ("GOOD_FOR_S", GOOD_FOR)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def take(place, quick):
    """Take the lease here; whatever is taken is released at the end."""
    taken = []

    def one(files=None):
        taken.append(Lease.take(files or files_at(place), "the cube"))
        return taken[-1]

    yield one
    for held in taken:
        held.release()


def names(place):
    return sorted(files_at(place).names())


@pytest.fixture
def patient(take, monkeypatch):
    """What is not done at once takes half a minute."""
    monkeypatch.setattr(lease, "SILENCE_S", 30.0)
    monkeypatch.setattr(lease, "GRACE_S", 30.0)
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 15


@pytest.mark.usefixtures("patient")
def test_nobody_waits_for_a_store_that_nobody_holds(take):
    for _ in range(3):
        take().release()


@pytest.mark.usefixtures("patient")
def test_a_second_run_is_refused_and_told_who_holds_the_store(take, others, place):
    other = others()
    assert other.ask("take") == "yes"
    with pytest.raises(StoreError) as refused:
        take()
    for text in (
        "the cube: another run is writing",
        f"pid {other.process.pid} on ",
        "since 20",
        "test_lease.py",
        "stop",
    ):
        assert text in str(refused.value)
    time.sleep(3 * BEAT)
    assert other.ask("confirm") == "yes"
    assert other.ask("release") == "yes"
    take().confirm()
    assert names(place) == ["lease-000002.json"]


def test_of_those_who_try_at_once_one_wins(take, others, place):
    """Again and again, over a holder that was killed or has released; three processes."""
    takers = [others() for _ in range(3)]
    for round_ in range(20 if ":" in place else 50):
        for other in takers:
            other.tell("take")
        answers = [other.answer() for other in takers]
        assert answers.count("yes") == 1, answers
        assert all("another run is writing" in answer for answer in answers if answer != "yes")
        winner = takers[answers.index("yes")]
        assert winner.ask("confirm") == "yes"
        assert names(place)[-1] == f"lease-{round_ + 1:06d}.json"
        if round_ % 10 == 9:
            winner.kill()
            takers[answers.index("yes")] = others()
        else:
            assert winner.ask("release") == "yes"


@pytest.mark.usefixtures("patient")
def test_a_killed_holder_is_followed_at_once(take, others):
    other = others()
    assert other.ask("take") == "yes"
    other.kill()
    while lease._started(other.process.pid) is not None:
        time.sleep(0.001)
    take().confirm()


@pytest.mark.usefixtures("patient")
def test_a_pid_that_came_again_is_not_the_holder(take, place):
    dead = Holder.here()
    dead = Holder(**{**vars(dead), "pid": os.getppid(), "started": "1"})
    files_at(place).create("lease-000007.json", dead.encode())
    take().confirm()


def test_a_suspended_holder_here_is_not_robbed(take, others):
    other = others()
    assert other.ask("take") == "yes"
    os.kill(other.process.pid, signal.SIGSTOP)
    time.sleep(SILENCE + GRACE + 2 * BEAT)
    with pytest.raises(StoreError, match="another run is writing"):
        take()
    os.kill(other.process.pid, signal.SIGCONT)
    assert other.ask("confirm") == "yes"


@pytest.mark.usefixtures("patient")
def test_a_holder_elsewhere_is_refused_as_soon_as_it_moves(take, others):
    other = others("another machine")
    assert other.ask("take") == "yes"
    with pytest.raises(StoreError, match="another run is writing"):
        take()
    assert other.ask("confirm") == "yes"


def test_a_suspended_holder_elsewhere_is_followed_and_stops_as_it_wakes(take, others, caplog):
    other = others("another machine")
    assert other.ask("take") == "yes"
    os.kill(other.process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    held = take()
    assert SILENCE + GRACE <= time.monotonic() - begin < SILENCE + GRACE + 2
    assert "cannot be seen from here; watching" in caplog.text
    other.tell("confirm")
    os.kill(other.process.pid, signal.SIGCONT)
    answer = other.answer()
    assert "another run has taken this store over" in answer
    assert f"pid {os.getpid()} " in answer
    assert "another run has taken" in other.ask("confirm"), "for good"
    assert other.ask("release") == "yes"
    held.confirm()


def test_a_holder_elsewhere_that_lives_after_all_has_stopped_before_the_next_begins(take, others):
    """It wakes while the next one waits, and has not had a heartbeat yet."""
    other = others("another machine")
    assert other.ask("take") == "yes"
    os.kill(other.process.pid, signal.SIGSTOP)
    woken = threading.Timer(SILENCE + GRACE / 2, os.kill, (other.process.pid, signal.SIGCONT))
    woken.start()
    held = take()
    assert "another run has taken" in other.ask("confirm")
    held.confirm()


def test_neither_clock_counts(take, others, place, monkeypatch):
    """A holder whose clock is a day off, or jumps, is as alive as any other."""
    other = others("another machine")
    assert other.ask("take") == "yes"
    for day in ("2020-01-01", "2090-01-01"):
        monkeypatch.setattr(lease, "_now", lambda day=day: f"{day}T00:00:00+00:00")
        with pytest.raises(StoreError, match="another run is writing"):
            take()


def test_a_lease_that_cannot_be_read_is_watched(take, place, caplog):
    files_at(place).create("lease-000003.json", b"{")
    begin = time.monotonic()
    take().confirm()
    assert time.monotonic() - begin >= SILENCE + GRACE
    assert "a lease that cannot be read" in caplog.text


@pytest.mark.usefixtures("patient")
def test_a_lease_that_cannot_be_read_but_moves_is_held(take, place):
    files_at(place).create("lease-000003.json", b"{}")
    moved = threading.Timer(BEAT, files_at(place).write, ("lease-000003.json", b'{"later": "format"}'))
    moved.start()
    with pytest.raises(StoreError, match="another run is writing here: its lease cannot be read"):
        take()
    moved.join()


def test_what_holders_before_left_is_removed_and_nothing_else(take, place):
    take().release()
    for name in ("lease-x.json", "lease-000001.json.abc.partial", "lease-000009.json.partial", "journal-1.jsonl"):
        files_at(place).write(name, b"{}")
    take()
    assert names(place) == ["journal-1.jsonl", "lease-000002.json", "lease-000009.json.partial", "lease-x.json"]


def test_one_process_is_two_runs_at_most_one_of_which_writes(take):
    first = take()
    with pytest.raises(StoreError, match=f"pid {os.getpid()} "):
        take()
    first.release()
    take().confirm()


def test_a_lease_that_could_not_be_released_is_not_held_by_this_process(take, place, monkeypatch):
    def full(*_arguments):
        raise StoreError("disk full")

    held = take()
    with monkeypatch.context() as broken:
        broken.setattr(type(files_at(place)), "write", full)
        held.release()
    take().confirm()


def test_a_ground_that_takes_no_heartbeat_stops_the_run_with_its_own_words(take, place, monkeypatch):
    def full(*_arguments):
        raise StoreError("the cube: cannot write: No space left on device; free some space")

    held = take()
    with monkeypatch.context() as broken:
        broken.setattr(type(files_at(place)), "write", full)
        time.sleep(GOOD_FOR + BEAT)
        with pytest.raises(StoreError, match="free some space"):
            held.confirm()
    held.confirm()


def test_who_was_removed_by_hand_and_followed_stops(take, place, others):
    held, other = take(), others("another machine")
    files_at(place).remove("lease-000001.json")
    answer = other.ask("take")
    time.sleep(GOOD_FOR + 2 * BEAT)
    confirmed = [answer == "yes" and other.ask("confirm") == "yes"]
    try:
        held.confirm()
        confirmed.append(True)
    except StoreError:
        confirmed.append(False)
    assert sum(confirmed) <= 1


def test_a_create_whose_answer_was_lost_is_ours(take, place):
    class Forgetful(type(files_at(place))):
        def create(self, name, content):
            super().create(name, content)
            return False

    take(Forgetful(place)).confirm()


def test_nothing_secret_and_no_control_characters(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/scattercube", "run", "s3://me:secret@bucket/x", "https://a/b?sign=secret"])
    holder = Holder.here()
    assert "secret" not in str(holder)
    assert "\x1b" not in str(Holder(**{**vars(holder), "host": "\x1b[31mx"}))


if __name__ == "__main__":
    obey(*sys.argv[1:])
