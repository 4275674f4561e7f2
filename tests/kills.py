"""Kill runs at random moments, run the same command again, and compare with a run that nobody disturbed.

    python -m tests.kills --kills 100 --backend zarr --seed 1

A small archive is ingested and extracted by the command line, in a process of its own: half of the trials with two
Dask workers, half with ``--serial``. One to three runs in turn are hit by ``kill -9``: the driver (in which the
scheduler and the nannies live too), a worker, all workers at once, or Python's resource tracker. Moments are drawn over
the time that a run takes, over its keys, and after the last key is recorded, where it publishes. Then the command runs
to its end.

Held to afterwards: values, status, coordinates, attributes and the list of files equal those of the undisturbed run;
every journal begins with what it held at each kill; no key stands in it twice, and none has another digest than in the
undisturbed run; what came later was also begun later; no ``.partial`` file is left, and no process. All the while
another process opens both stores with xarray alone: it must find no store, or the whole of it. Exit code 1 where that
fails.
"""

import argparse
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from PIL import Image

from tests.synthetic import oriented_noise

# Cut finer than an archive this small would be, so that there is something between the first key and the last.
CUT = "plan.SMALL_SHARD_NBYTES, plan.SMALL_ARCHIVE_SHARDS = 1 << 10, 24"
PROGRAM = f"from scattercube.pipeline import plan; {CUT}; from scattercube.flows.cli import main; main()"
BACKENDS = ("zarr", "icechunk")
VICTIMS = {"cluster": ("driver", "driver", "worker", "workers", "tracker"), "serial": ("driver",)}
PHASES = ("before the store", "ingest", "ingest and extract", "extract", "publish", "after")
MARK = "SCATTERCUBE_KILLS_TRIAL"  # in the environment of all processes of a trial
LIMIT_S = 180.0
PASSING = ("created", "history")  # attributes that say when
VERSIONS = "store_versions"  # and one that says it of each version
# Files that need not be there: of past holders, and of a version that waits, which counts for nothing once published.
PASSED = re.compile(r"lease-\d+\.json|waiting\.json")


def make_archive(folder: Path) -> Path:
    """Two classes of noise with an orientation, and a file that is no picture."""
    images = oriented_noise([0, 90], 33, size=16)
    for number, image in enumerate(images):
        target = folder / ("across", "along")[number // 33] / f"{number % 33:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((128 + 40 * image).clip(0, 255).astype(np.uint8)).save(target)
    (folder / "along" / "07.png").write_bytes(b"no picture")
    return folder


def stores(root: Path) -> dict[str, Path]:
    """Where the two stores of a root are, or will be: the cube once somebody holds it."""
    found = {"chunks": root / "archive" / "chunks"}
    for folder in root.glob("archive/features/*.lease"):
        found["cube"] = folder.with_suffix("")
    return found


def repository(store: Path) -> Any:
    """Open a store that is an Icechunk repository; None where it is none, or not yet."""
    if not (store / "snapshots").exists():
        return None
    os.environ["ICECHUNK_LOG"] = "error"  # before its import; it would say on every opening that disks have one writer
    import icechunk

    try:
        return icechunk.Repository.open(icechunk.local_filesystem_storage(str(store)))
    except icechunk.IcechunkError:
        return None


def journal(store: Path) -> bytes:
    """What a store's journals have, a line a key, in order; of a repository, what its commits have."""
    if (repo := repository(store)) is not None:
        import icechunk

        try:
            ancestry = list(repo.ancestry(branch="run"))
        except icechunk.IcechunkError:  # no run is on its way, or it has just published: that removes the branch
            ancestry = list(repo.ancestry(branch="main"))
        commits = [json.loads(commit.metadata.get("events", "[]")) for commit in ancestry]
        return b"".join(json.dumps(event).encode() + b"\n" for events in commits[::-1] for event in events)
    files = sorted(store.with_name(store.name + ".run").glob("journal*"))
    content = b"".join(file.read_bytes() for file in files if file.is_file())
    return content[: content.rfind(b"\n") + 1]


def published(store: Path) -> bool:
    """Whether readers see the store."""
    repo = repository(store)
    return (store / "zarr.json").exists() if repo is None else "v1" in repo.list_tags()


def load(store: Path) -> xr.Dataset:
    """Read all of a published store with xarray alone; raises FileNotFoundError where none is published.

    A store that appears between xarray's first look, for consolidated metadata, and its second is read without them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
        if (repo := repository(store)) is None:
            found = xr.open_zarr(store, chunks=None).load()
        else:
            found = xr.open_zarr(repo.readonly_session("main").store, chunks=None, consolidated=False).load()
    attributes = {name: value for name, value in found.attrs.items() if name not in PASSING}
    if VERSIONS in attributes:
        versions = attributes[VERSIONS]
        versions = json.loads(versions) if isinstance(versions, str) else versions
        attributes[VERSIONS] = [{**version, "created": "", "note": ""} for version in versions]
    return found.drop_attrs(deep=False).assign_attrs(attributes)


def difference(found: xr.Dataset, truth: xr.Dataset) -> str:
    """Say where two datasets are not the same byte for byte; nothing where they are."""
    if found.attrs != truth.attrs:
        return f"attributes {[name for name in truth.attrs if found.attrs.get(name) != truth.attrs[name]]}"
    if set(found.variables) != set(truth.variables):
        return f"variables {sorted(map(str, set(found.variables) ^ set(truth.variables)))}"
    for name, variable in truth.variables.items():
        here = found.variables[name]
        if here.dims != variable.dims or here.dtype != variable.dtype or here.attrs != variable.attrs:
            return f"{name}: {here.dtype}{here.dims}"
        same = here.values.tolist() == variable.values.tolist()
        if not (same if variable.dtype.kind in "OTU" else here.values.tobytes() == variable.values.tobytes()):
            return f"{name}: other values"
    return ""


def files(root: Path) -> set[str]:
    """The names of all files under a root, but those that need not be there."""
    return {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file() and not PASSED.fullmatch(f.name)}


def read_all_the_time(truth_root: Path) -> None:
    """Read the stores under the roots named on the input, one after the other, until the next is named.

    Says a line of JSON for each root: how often there was no store, how often a whole one, and what was wrong.
    """
    truth = {name: load(store) for name, store in stores(truth_root).items()}
    named: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            named.put(line.strip())
        named.put("end")

    threading.Thread(target=listen, daemon=True).start()
    while (root := named.get()) != "end":
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        while root and named.empty():
            for name, store in stores(Path(root)).items():
                try:
                    problem = difference(load(store), truth[name])
                    counts["whole"] += 1
                except FileNotFoundError:
                    problem = ""
                    counts["none"] += 1
                except Exception as failure:
                    problem = f"{type(failure).__name__}: {failure}"
                if problem:
                    wrong.append(f"reader of {name}: {problem}")
            time.sleep(0.004)
        if root:
            print(json.dumps({"counts": counts, "wrong": wrong[:5]}), flush=True)


class Reader:
    """The process that reads all the time."""

    def __init__(self, truth_root: Path) -> None:
        command = [sys.executable, "-m", "tests.kills", "--read", str(truth_root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._reading = False

    def turn_to(self, root: Path | None) -> dict[str, Any]:
        """Read under another root, or none; return what came of the one before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{root or ''}\n")
        found = json.loads(self._process.stdout.readline()) if self._reading else {"counts": {}, "wrong": []}
        self._reading = root is not None
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Held:
    """What the journals held when a run was last hit, and when that was, where the whole run ended with it."""

    journals: dict[str, bytes] = field(default_factory=dict)
    ended_at: float = 0.0


@dataclass
class Campaign:
    """What all trials have in common, and what came of them."""

    folder: Path
    seed: int
    backend: str
    rng: random.Random = field(init=False)
    hits: "Counter[tuple[str, str, str]]" = field(default_factory=Counter)
    counts: "Counter[str]" = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    trial: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.archive = make_archive(self.folder / "archive")
        self.cluster = self.folder / "cluster.yaml"
        self.cluster.write_text("{kind: local, workers: 2, threads: 1, memory: 1GiB}")
        self.seconds = {how: self.undisturbed(how) for how in VICTIMS}
        self.truth_root = self.folder / "serial"
        self.truth = {name: load(store) for name, store in stores(self.truth_root).items()}
        self.events = {name: lines(journal(store)) for name, store in stores(self.truth_root).items()}
        self.n_keys = sum(len(events) for events in self.events.values())
        self.check("undisturbed, by a cluster", self.folder / "cluster", Held())

    def undisturbed(self, how: str) -> float:
        """Run once without a disturbance, to where it is named after, and return the seconds."""
        begin = time.monotonic()
        run = self.start(self.folder / how, how)
        if run.wait(LIMIT_S) != 0:
            raise SystemExit(f"the undisturbed run failed: {self.said()}")
        return time.monotonic() - begin

    def start(self, root: Path, how: str) -> "subprocess.Popen[bytes]":
        """Start the command."""
        options = ["--serial"] if how == "serial" else ["--cluster", str(self.cluster)]
        command = ["extract", str(self.archive), "--direct", "--store", str(root), *options, "--backend", self.backend]
        environment = os.environ | {MARK: f"{os.getpid()}-{self.trial}"}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *command], stdout=said, stderr=said, env=environment
            )

    def said(self) -> str:
        """The end of what the last run said."""
        return (self.folder / "said").read_text(errors="replace")[-1500:]

    def fail(self, what: str) -> None:
        """Keep a violation, and say it."""
        self.violations.append(f"trial {self.trial}: {what}")
        print(f"VIOLATION {self.violations[-1]}", flush=True)

    def processes(self) -> list[psutil.Process]:
        """All processes of this trial."""
        mark, found = f"{os.getpid()}-{self.trial}", []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def run_trial(self, reader: Reader) -> int:
        """Kill one to three runs in turn, and let the next come to its end; return the number of kills."""
        self.trial += 1
        root, how = self.folder / f"trial-{self.trial}", ("cluster", "serial")[self.trial % 2]
        reader.turn_to(root)
        held, kills = Held(), 0
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            hit = self.disturb(root, how, held)
            held, kills = hit or held, kills + (hit is not None)
        run = self.start(root, how)
        code = self.ended(run)
        if code != 0:
            self.fail(f"the last run ended with {code}: {self.said()}")
        self.counts["resumes"] += 1
        time.sleep(0.02)
        found = reader.turn_to(None)
        for what, number in found["counts"].items():
            self.counts[f"reader: {what}"] += number
        for problem in found["wrong"]:
            self.fail(problem)
        self.check(f"after {kills} kills", root, held)
        shutil.rmtree(root)
        return kills

    def disturb(self, root: Path, how: str, held: Held) -> Held | None:
        """Start a run and hit it; return what the journals held then, None where the run had ended before."""
        run = self.start(root, how)
        if not self.moment_came(run, root, how):
            if self.ended(run) != 0:
                self.fail(f"a run that was not hit ended: {self.said()}")
            return None
        victim = self.rng.choice(VICTIMS[how])
        children = psutil.Process(run.pid).children(recursive=True) if victim != "driver" else []
        trackers = [child for child in children if "resource_tracker" in " ".join(child.cmdline())]
        chosen = trackers if victim == "tracker" else [child for child in children if child not in trackers]
        if victim == "worker":
            chosen = chosen[:1] if self.rng.random() < 0.5 else chosen[-1:]
        if victim != "driver" and not chosen:  # the cluster is not up yet, or gone already
            victim = "driver"
        before, now = phase(root, self.events), time.time()
        content = {name: journal(store) for name, store in stores(root).items()}
        for process in chosen or [run]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                self.counts["victims that had ended"] += 1
        if victim == "driver":
            run.wait(LIMIT_S)
            before = phase(root, self.events)
            content = {name: journal(store) for name, store in stores(root).items()}
            if self.rng.random() < 0.5:  # else the next run meets workers that have not noticed yet
                self.nobody_left()
        elif (code := self.ended(run)) == 6 and "did not start" in (said := self.said()) and "Traceback" not in said:
            self.counts["runs that ended because their workers did not start"] += 1
        elif code != 0:
            self.fail(f"{victim} killed ({before}): the run ended with {code}: {self.said()}")
        self.hits[how, victim, before] += 1
        self.compare_journals(content, held)
        return Held(content, now if victim == "driver" else 0.0)

    def moment_came(self, run: "subprocess.Popen[bytes]", root: Path, how: str) -> bool:
        """Wait for a random moment; False where the run ended before."""
        kind = self.rng.choice(("time", "keys", "publish"))
        begin = time.monotonic()
        until = begin + self.rng.uniform(0, self.seconds[how]) if kind == "time" else begin
        keys = {"time": 0, "keys": self.rng.randrange(self.n_keys), "publish": self.n_keys}[kind]
        delay = {"time": 0.0, "keys": self.rng.uniform(0, 0.03), "publish": self.rng.uniform(0, 0.015)}[kind]
        while time.monotonic() < until or n_recorded(root) < keys:
            if run.poll() is not None:
                return False
            time.sleep(0.0005)
        time.sleep(delay)
        return run.poll() is None

    def ended(self, run: "subprocess.Popen[bytes]") -> int | str:
        """Wait for a run, but not for ever."""
        try:
            return run.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            return f"nothing in {LIMIT_S:.0f} s"

    def nobody_left(self) -> None:
        """Wait for the processes of a trial to end by themselves."""
        begin = time.monotonic()
        while left := self.processes():
            if time.monotonic() - begin > 15:
                self.fail(f"still there: {[(p.pid, p.cmdline()[-2:]) for p in left]}")
                for process in left:
                    process.kill()
                return
            time.sleep(0.02)
        longest = round(1000 * (time.monotonic() - begin))
        self.counts["ms until orphans ended, at most"] = max(self.counts["ms until orphans ended, at most"], longest)

    def compare_journals(self, now: dict[str, bytes], held: Held) -> None:
        """What a journal held at the last kill is how it begins."""
        for name in self.truth:
            if not now.get(name, b"").startswith(held.journals.get(name, b"")):
                self.fail(f"{name}: the journal does not begin with what it held")
            self.counts["journals compared"] += 1

    def check(self, what: str, root: Path, held: Held) -> None:
        """Compare a finished root with the undisturbed one."""
        found = stores(root)
        self.compare_journals({name: journal(store) for name, store in found.items()}, held)
        for name, truth in self.truth.items():
            try:
                problem = difference(load(found[name]), truth)
            except Exception as failure:
                problem = f"{type(failure).__name__}: {failure}"
            if problem:
                self.fail(f"{what}: {name}: {problem}")
            self.counts["stores compared"] += 1
            events, expected = lines(journal(found[name])) if name in found else [], self.events[name]
            if sorted((e["key"], e["digest"]) for e in events) != sorted((e["key"], e["digest"]) for e in expected):
                self.fail(f"{what}: {name}: keys twice, missing, or with other digests: {len(events)} lines")
            later = events[held.journals.get(name, b"").count(b"\n") :]
            if any(event["started"] < held.ended_at for event in later):
                self.fail(f"{what}: {name}: a key recorded after the kill was begun before")
        # A repository names its files at random, and keeps what was written in vain until it is swept.
        if self.backend == "zarr" and (extra := files(root) ^ files(self.truth_root)):
            self.fail(f"{what}: files {sorted(extra)[:5]}")
        self.nobody_left()


def lines(content: bytes) -> list[dict[str, Any]]:
    """The events of a journal."""
    return [json.loads(line) for line in content.splitlines()]


def n_recorded(root: Path) -> int:
    """How many keys both journals have."""
    try:
        return sum(journal(store).count(b"\n") for store in stores(root).values())
    except FileNotFoundError:
        return 0


def phase(root: Path, events: dict[str, list[dict[str, Any]]]) -> str:
    """Say what a run was at, from what there is."""
    found = stores(root)
    if not found["chunks"].with_name("chunks.lease").exists():
        return "before the store"
    done = {name: journal(store).count(b"\n") for name, store in found.items()}
    ingested, extracted = done["chunks"] == len(events["chunks"]), done.get("cube", 0)
    if not ingested:
        return "ingest and extract" if extracted else "ingest"
    if extracted < len(events["cube"]):
        return "extract"
    return "after" if all(map(published, found.values())) else "publish"


def report(campaign: Campaign, seconds: float) -> str:
    """Return the tables, as text."""
    rows = sorted({(how, victim) for how, victim, _ in campaign.hits})
    text = [f"| run, victim | {' | '.join(PHASES)} | all |", "|" + "---|" * (len(PHASES) + 2)]
    for how, victim in rows:
        numbers = [campaign.hits[how, victim, name] for name in PHASES]
        text.append(f"| {how}, {victim} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    totals = [sum(n for (_, _, at), n in campaign.hits.items() if at == name) for name in PHASES]
    text += [f"| all | {' | '.join(map(str, totals))} | {sum(totals)} |", ""]
    text += [f"{what}: {number}" for what, number in sorted(campaign.counts.items())]
    text += [f"trials: {campaign.trial}", f"seconds: {seconds:.0f}", f"violations: {len(campaign.violations)}"]
    return "\n".join([*text, *campaign.violations])


def kill(kills: int, backend: str, seed: int, folder: Path) -> Campaign:
    """Run trials until there were so many kills."""
    begin = time.monotonic()
    campaign = Campaign(folder, seed, backend)
    reader = Reader(campaign.truth_root)
    done = 0
    try:
        while done < kills:
            done += campaign.run_trial(reader)
            if campaign.trial % 10 == 0:
                print(f"{campaign.trial} trials, {done} kills, {len(campaign.violations)} violations", flush=True)
    finally:
        reader.close()
    print(report(campaign, time.monotonic() - begin), flush=True)
    return campaign


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--backend", choices=BACKENDS, default="zarr")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read_all_the_time(given.read)
        return
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        sys.exit(1 if kill(given.kills, given.backend, given.seed, Path(folder)).violations else 0)


if __name__ == "__main__":
    main()
