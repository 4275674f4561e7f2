"""Run bad archives and bad entries, and judge what comes of each: ``python -m tests.fuzz --cases 1200 --seed 1``.

Every case goes through ``prepare``, the readers and the ingest, and every eighth through the extraction, in a process
of bounded memory and time. It must end in one of three ways:

* refused: a ScattercubeError whose message is one sentence;
* quarantined: a run that names every record that cannot be used, and gives the others as they are;
* right: a run that gives every record.

A sample that comes out although a checksum says that it was changed must be what it was. Records beside one that is
damaged must come out as they were. Nothing may crash, hang, take much memory, read what is outside of the archive, or
leave a file outside of the store. ``--only INDEX`` runs one case, in this process, and says what came of it.
"""

import argparse
import faulthandler
import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import ChunkError, EntryError, RecordError, ScattercubeError
from scattercube.pipeline.job import Job, prepare, run
from scattercube.pipeline.sources import Listing, read, scan
from scattercube.pipeline.spec import parse
from scattercube.pipeline.stores.protocol import OK, QUARANTINED
from tests.fuzz_cases import SECRET, Case, base, fields_of, make_case, pack

SECONDS = 20  # that a case may take
LIMIT_NBYTES = 5 << 30  # of a process; what libraries reserve for their threads, 1.5 GB, counts
GROWTH_NBYTES = 768 << 20  # that a case may take: a ratio of 250 on what is small, a member of 1 GB never
EXTRACT_EVERY = 8
ENDS = ("refused", "quarantined", "right")
_MOST = 20_000  # samples that are read
_NO_SENTENCE = {
    "it is empty": r"\s*",
    "it has several lines": r"(?s).*\n.*",
    "it holds a traceback": r"(?s).*Traceback.*",
    "it ends in the name of a class": r"(?s)(.*: )?\w*(Error|Exception)",
    "it ends in a colon": r"(?s).*:\s*",
    "it shows an object": r"(?s).* at 0x[0-9a-f]{6,}.*",
    "memory ran out": r"(?si).*(MemoryError|unable to allocate|bad_alloc|out of memory|cannot allocate|malloc).*",
    "it is longer than 2000 characters": r"(?s).{2001,}",
    "it has control characters": r"(?s).*[\x00-\x09\x0b-\x1f\x7f-\x9f].*",
}


@dataclass(frozen=True)
class Result:
    """What came of a case: one of `ENDS`, or a defect and what it was."""

    index: int
    reader: str
    kind: str
    name: str
    end: str
    said: str = ""
    seconds: float = 0.0
    growth_nbytes: int = 0


class DefectError(Exception):
    """What a case must not do."""


class Watch:
    """Collects the records that the ingest named."""

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Take no notice."""

    def step(self, event: Any) -> None:
        """Remember what is bad."""
        self.bad |= {record["sample_id"]: record["message"] for record in event.bad}


def check_message(text: str) -> None:
    """Raise DefectError where a message is no sentence."""
    for why, pattern in _NO_SENTENCE.items():
        if re.fullmatch(pattern, text):
            raise DefectError(f"message: {why}: {text[:300]!r}")


@cache
def control(name: str, packing: str) -> tuple[Listing, dict[str, tuple[Any, np.ndarray]]]:
    """Read an undamaged archive: its listing, and by sample_id the label and the sample."""
    of = base(name)
    with tempfile.TemporaryDirectory() as folder:
        place = pack(of.files, packing, Path(folder) / "archive")
        entry = parse(Entry, fields_of(of.reader, place, **of.fields), name, EntryError)
        listing = scan(entry, Path())
        samples = list(read(entry, Path(), listing.columns))
    bad = [sample for sample in samples if isinstance(sample, RecordError)]
    assert not bad, f"{name} in {packing}: {bad[0]}"
    labels = listing.columns.get("label", np.zeros(len(samples)))
    return listing, dict(zip(listing.columns["sample_id"], zip(labels, samples, strict=True), strict=True))


def judge(case: Case, folder: Path, *, extract: bool) -> tuple[str, str]:
    """Run a case; return how it ended and a message. Raises DefectError, or whatever else was not caught."""
    if "bare" in case.options:
        entry = str(case.options["bare"])
    else:
        entry = str(folder / "entry.yaml")
        text = case.entry if isinstance(case.entry, str) else json.dumps(case.entry)
        Path(entry).write_text(text, encoding="utf-8", errors="surrogatepass")
    options = {key: value for key, value in case.options.items() if key != "bare"}
    until = "extract" if extract else "ingest"
    try:
        job = Job(entry=entry, store=str(folder / "store"), data=str(folder), serial=True, until=until, **options)
        prepared = prepare(job)
        listing = prepared.listing
        n = len(listing.columns["sample_id"])
        if n > _MOST:
            return "right", f"{n} samples, not read"
        found = list(read(prepared.entry, prepared.data_root, listing.columns))
        check_samples(case, prepared.entry, listing, found)
        watch = Watch()
        run(job, observer=watch, prepared=prepared)
        check_store(prepared.places, listing, found, watch, extract=extract)
    except ChunkError as failure:
        raise DefectError(f"a step failed: {failure}") from failure
    except ScattercubeError as failure:
        check_message(str(failure))
        several = case.damaged and sum(map(_is_sample, base(str(case.control)).files)) > 1
        if several and _is_sample(str(case.damaged)) and "labels" not in str(failure):
            raise DefectError(f"one damaged member, and all are refused: {failure}") from failure
        return "refused", str(failure)
    bad = [str(sample) for sample in found if isinstance(sample, RecordError)]
    return ("quarantined", bad[0]) if bad else ("right", "")


def _is_sample(name: str) -> bool:
    """Whether a member holds samples by itself."""
    return not re.search(r"label|objects|\.zarr/", name)


def check_samples(case: Case, entry: Entry, listing: Listing, found: list[Any]) -> None:
    """Raise DefectError where samples are not what they should be."""
    layout, ids = listing.layout, listing.columns["sample_id"].tolist()
    if len(found) != len(ids) or len(set(ids)) < len(ids):
        raise DefectError(f"rows: {len(ids)} rows, {len(set(ids))} names, {len(found)} samples")
    for name, column in listing.columns.items():
        if len(column) != len(ids):
            raise DefectError(f"rows: column {name} has {len(column)} of {len(ids)} rows")
    for sample, member in zip(found, listing.columns["member"], strict=True):
        if isinstance(sample, RecordError):
            check_message(str(sample))
            check_message(str(sample).removeprefix(f"{member}: "))
            if sample.reason not in ("unreadable", "wrong-shape", "non-finite", "too-large", "missing"):
                raise DefectError(f"reason {sample.reason}")
            continue
        if (sample.shape, sample.dtype) != (layout.shape, layout.dtype):
            raise DefectError(f"wrong: {sample.shape} {sample.dtype}; promised {layout.shape} {layout.dtype}")
        if not entry.sample.missing and sample.dtype.kind == "f" and not np.isfinite(sample).all():
            raise DefectError("wrong: values that are not finite")
        if case.kind == "trap" and sample.size and (sample == SECRET).all():
            raise DefectError(f"outside: {member} holds what is outside of the archive")
    if case.control:
        _check_against_control(case, listing, found)


def _check_against_control(case: Case, listing: Listing, found: list[Any]) -> None:
    whole, known = control(str(case.control), case.packing)
    same_layout = (whole.layout.shape, whole.layout.dtype) == (listing.layout.shape, listing.layout.dtype)
    labels = listing.columns.get("label", np.zeros(len(found)))
    ids, members = listing.columns["sample_id"], listing.columns["member"]
    there: set[str] = set()
    for name, member, label, sample in zip(ids, members, labels, found, strict=True):
        there.add(member)
        beside = case.damaged is not None and not case.damaged.startswith(str(member)) and _is_sample(case.damaged)
        if isinstance(sample, RecordError):
            if beside and same_layout:
                raise DefectError(f"lost: {case.damaged} was changed, and {name} is quarantined: {sample}")
            continue
        if not (case.sealed or beside):
            continue
        if name in known:
            if not np.array_equal(known[name][1], sample, equal_nan=True):
                raise DefectError(f"wrong row: {name} is not what it was")
            if known[name][0] != label:
                raise DefectError(f"wrong label: {name} has {label!r}, had {known[name][0]!r}")
        elif not any(np.array_equal(other, sample, equal_nan=True) for _, other in known.values()):
            raise DefectError(f"wrong row: {name} is none of those that there were")
    if case.damaged and same_layout and (gone := set(whole.columns["member"]) - there):
        raise DefectError(f"lost: {case.damaged} was changed, and {', '.join(sorted(gone))} have no rows")


def check_store(places: Any, listing: Listing, found: list[Any], watch: Watch, *, extract: bool) -> None:
    """Raise DefectError where the stores do not hold what was read."""
    group = zarr.open_group(places.chunks, mode="r")
    signal_, status = np.asarray(group["signal"]), np.asarray(group["status"])
    bad = {str(listing.columns["sample_id"][i]): s for i, s in enumerate(found) if isinstance(s, RecordError)}
    if set(bad) != set(watch.bad):
        raise DefectError(f"quarantine: read says {sorted(bad)[:3]}, the ingest says {sorted(watch.bad)[:3]}")
    for index, sample in enumerate(found):
        failed = isinstance(sample, RecordError)
        if status[index] != (QUARANTINED if failed else OK):
            raise DefectError(f"stored: status {status[index]} of row {index}")
        if not failed and not np.array_equal(signal_[index], sample, equal_nan=True):
            raise DefectError(f"stored: row {index} is not what was read")
    for message in watch.bad.values():
        check_message(message)
    if extract:
        cube = zarr.open_group(places.cube, mode="r")
        scattering, status = np.asarray(cube["scattering"]), np.asarray(cube["status"])
        for index, sample in enumerate(found):
            finite = bool(np.isfinite(scattering[index]).all())
            if status[index] == OK and not finite:
                raise DefectError(f"stored: row {index} of the cube is not finite")
            if isinstance(sample, RecordError) and (status[index] == OK or not np.isnan(scattering[index]).all()):
                raise DefectError(f"stored: row {index} of the cube should be NaN")


def _status(field: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def run_case(seed: int, index: int) -> Result:
    """Make a case and judge it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        case = make_case(seed, index, folder)
        if case.control:
            control(case.control, case.packing)
        before = {file for file in folder.rglob("*") if "store" not in file.parts}
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        resident, begin = _status("VmRSS"), time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                end, said = judge(case, folder, extract=index % EXTRACT_EVERY == 0)
            left = {file for file in folder.rglob("*") if file.relative_to(folder).parts[0] != "store"} - before
            if left - {folder / "entry.yaml", folder / "store"}:
                raise DefectError(f"outside: left {sorted(left)[:3]}")
        except DefectError as defect:
            end, said = "defect", str(defect)
        except BaseException as failure:
            frame = traceback.extract_tb(failure.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            end, said = "defect", f"traceback: {type(failure).__name__}: {str(failure)[:300]} ({where})"
        seconds, growth = time.perf_counter() - begin, _status("VmHWM") - resident
        if end != "defect" and growth > GROWTH_NBYTES:
            end, said = "defect", f"memory: {growth >> 20} MB; {said}"
    return Result(index, case.reader, case.kind, case.name, end, said.replace(temporary, "…"), seconds, growth)


# --- Processes ---


def work() -> None:
    """Judge the cases that are asked for on stdin, a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_NBYTES, LIMIT_NBYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        seed, index = json.loads(line)
        print(json.dumps(asdict(run_case(seed, index))), file=answers, flush=True)


class Worker:
    """A process that judges cases; another takes its place when it dies, or has to."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def judge(self, seed: int, index: int) -> Result:
        """Judge one case."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended by itself: what it left on stderr says why
            process.stdin.write(f"[{seed}, {index}]\n")
            process.stdin.flush()
        patience = SECONDS + 40  # what makes a case, and what the first needs, is no part of it
        if select.select([process.stdout], [], [], patience)[0] and (line := process.stdout.readline()):
            result = Result(**json.loads(line))
            if result.end != "defect" and result.seconds > SECONDS:
                return replace(result, end="defect", said=f"hang: {result.seconds:.0f} s; {result.said}")
            return result
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        status = process.poll()
        if status is None:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        assert self._log is not None
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        self.close()
        frames = [line for line in lines if line.startswith("File")][-12:]
        why = "hang" if status is None else f"crash: exit {status}"
        return Result(index, "?", "?", "?", "defect", f"{why}: {' < '.join(frames) or ' '.join(lines[-3:])}")

    def _start(self) -> "subprocess.Popen[str]":
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None


def fuzz(indices: list[int], seed: int, n_workers: int) -> Iterator[Result]:
    """Judge cases in processes; yield results as they come."""
    todo = iter(indices)
    results: list[Result] = []

    def collect() -> None:
        worker = Worker()
        try:
            for index in todo:  # all threads take from one list
                results.append(worker.judge(seed, index))
        finally:
            worker.close()

    with ThreadPoolExecutor(n_workers) as pool:
        futures = [pool.submit(collect) for _ in range(n_workers)]
        n_given = 0
        while n_given < len(results) or not all(future.done() for future in futures):
            while n_given < len(results):
                yield results[n_given]
                n_given += 1
            time.sleep(0.1)
        for future in futures:
            future.result()


def table(results: list[Result]) -> str:
    """Return totals by reader and kind."""
    counts = Counter((result.reader, result.kind, result.end) for result in results)
    ends = (*ENDS, "defect")
    lines = [f"{'reader':12} {'kind':8} {'cases':>6} " + " ".join(f"{end:>11}" for end in ends)]
    for reader, kind in [*sorted({key[:2] for key in counts}), ("all", "")]:
        mine = [key for key in counts if reader == "all" or key[:2] == (reader, kind)]
        of = [sum(counts[key] for key in mine if key[2] == end) for end in ends]
        lines.append(f"{reader:12} {kind:8} {sum(of):6} " + " ".join(f"{n:11}" for n in of))
    return "\n".join(lines)


def main() -> int:
    """Run cases, print defects as they are found, and totals; the exit status says whether there were any."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=1200, help="how many")
    options.add_argument("--seed", type=int, default=1, help="of all of them")
    options.add_argument("--first", type=int, default=0, help="number of the first")
    options.add_argument("--workers", type=int, default=2, help="processes")
    options.add_argument("--only", type=int, help="run this case alone, here")
    options.add_argument("--keep", type=Path, help="with --only: write the case into this folder and stop")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.worker:
        work()
        return 0
    if chosen.keep:
        shutil.rmtree(chosen.keep, ignore_errors=True)
        chosen.keep.mkdir(parents=True)
        print(make_case(chosen.seed, chosen.only, chosen.keep))
        return 0
    if chosen.only is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_NBYTES, LIMIT_NBYTES))
        results = [run_case(chosen.seed, chosen.only)]
        print(results[0])
    else:
        results = []
        for result in fuzz(list(range(chosen.first, chosen.first + chosen.cases)), chosen.seed, chosen.workers):
            results.append(result)
            if result.end == "defect":
                print(f"{result.index}: {result.name}: {result.said}", flush=True)
    print(table(results))
    print(f"longest {max(r.seconds for r in results):.1f} s, most {max(r.growth_nbytes for r in results) >> 20} MB")
    return int(any(result.end == "defect" for result in results))


if __name__ == "__main__":
    sys.exit(main())
