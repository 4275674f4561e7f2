"""The ground gives way: full and read-only disks, hogs, clocks that jump, stores of others and of later versions.

Each time: what the user reads, with which exit code, and that the same command ends with the right cube once that is
mended. Disks are real ones where mounting is allowed, and a test that needs one says so where it is not.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from scattercube.flows.cli import execute as command
from scattercube.pipeline import execute, plan
from scattercube.pipeline.clusters import Cluster, connect
from scattercube.pipeline.errors import ChunkError, ScattercubeError
from scattercube.pipeline.job import Job, run
from tests.kills import PROGRAM, difference, load, make_archive, n_recorded, stores
from tests.test_execute import make_stage


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("ground") / "archive")


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    """Cut even this archive into several shards."""
    monkeypatch.setattr(plan, "SMALL_SHARD_NBYTES", 1 << 10)
    monkeypatch.setattr(plan, "SMALL_ARCHIVE_SHARDS", 24)


def job(archive, root, **options):
    return Job(entry=str(archive), store=str(root), until="extract", **({"serial": True} | options))


def arguments(archive, root):
    return ["extract", str(archive), "--store", str(root), "--direct", "--serial"]


def say(capsys, archive, root):
    """Run the command; return its exit code and what it says last."""
    code = command(arguments(archive, root))
    told = capsys.readouterr()
    return code, " ".join((told.err + told.out).split())


@pytest.fixture(scope="module")
def truth(archive, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SMALL_SHARD_NBYTES", 1 << 10)
        patch.setattr(plan, "SMALL_ARCHIVE_SHARDS", 24)
        root = tmp_path_factory.mktemp("truth")
        run(job(archive, root))
    return {name: load(store) for name, store in stores(root).items()}


def ends_right(archive, root, truth):
    """Run the same command again: it ends with what an undisturbed run makes, and leaves nothing half."""
    run(job(archive, root))
    for name, store in stores(root).items():
        assert difference(load(store), truth[name]) == ""
    assert set(stores(root)) == {"chunks", "cube"}
    assert not list(Path(root).rglob("*.partial"))


def mount(*words) -> None:
    try:
        subprocess.run(["mount", *words], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        pytest.skip(f"no disk of its own: mounting is not allowed here: {failure}")


@pytest.fixture
def disk(tmp_path):
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until nothing more fits."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    assert shutil.disk_usage(folder).free == 0
    return ballast


class Happens:
    """An observer that does something after so many keys, counted from behind where negative."""

    def __init__(self, after, what):
        self.after, self.what, self.left = after, what, 0

    def begin(self, stage, n_keys, n_done):
        self.left += n_keys
        self.total = self.left

    def step(self, event):
        self.left -= 1
        if self.total - self.left == self.after % (self.total + 1):
            self.what()


@pytest.mark.parametrize("after", [2, 20, -1], ids=["ingest", "extract", "publish"])
def test_a_full_disk(disk, archive, truth, after):
    root = disk / "store"
    with pytest.raises(ScattercubeError, match=r"No space left on device; the disk is full: free some space") as full:
        run(job(archive, root), observer=Happens(after, partial(fill, disk)))
    assert full.value.exit_code == (5 if after == -1 else 6)
    assert str(root) in str(full.value)
    done = n_recorded(root)
    assert done >= after
    (disk / "ballast").unlink()
    ends_right(archive, root, truth)


def test_a_full_disk_under_a_cluster(disk, archive, truth, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, workers: 2, memory: 1GiB}")
    options = {"serial": False, "cluster": str(cluster)}
    with pytest.raises(ScattercubeError, match=r"No space left on device; the disk is full: free some space"):
        run(job(archive, disk / "store", **options), observer=Happens(5, partial(fill, disk)))
    (disk / "ballast").unlink()
    ends_right(archive, disk / "store", truth)


def test_a_disk_that_is_full_from_the_start_is_refused(disk, archive, truth, capsys):
    fill(disk)
    code, said = say(capsys, archive, disk / "store")
    assert code in (3, 5)
    assert "free" in said
    assert not (disk / "store").exists() or not n_recorded(disk / "store")
    (disk / "ballast").unlink()
    ends_right(archive, disk / "store", truth)


def read_only(folder, how="ro"):
    mount("-o", f"remount,{how}", str(folder))


@pytest.mark.parametrize("after", [2, -1], ids=["ingest", "publish"])
def test_a_disk_that_becomes_read_only(disk, archive, truth, after):
    with pytest.raises(ScattercubeError, match=r"Read-only file system; the file system is read-only") as refused:
        run(job(archive, disk / "store"), observer=Happens(after, partial(read_only, disk)))
    assert refused.value.exit_code in (5, 6)
    read_only(disk, "rw")
    ends_right(archive, disk / "store", truth)


def test_a_read_only_store(disk, archive, truth, capsys):
    """Nothing can be begun there; but what is done is done, and says so."""
    read_only(disk)
    code, said = say(capsys, archive, disk / "store")
    assert code == 5
    assert "Read-only file system" in said
    assert str(disk) in said
    read_only(disk, "rw")
    ends_right(archive, disk / "store", truth)
    read_only(disk)
    code, said = say(capsys, archive, disk / "store")
    assert (code, "nothing new" in said) == (0, True), said


def test_a_folder_that_nobody_may_write_to(tmp_path, archive, truth, capsys):
    """As root, who may write anywhere, a folder that is immutable."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o500)
    elif subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root may write anywhere, and this file system has no immutable folders")
    try:
        code, said = say(capsys, archive, folder / "store")
    finally:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)
    assert code == 5
    assert f"cannot write in {folder}" in said
    assert "choose a folder that you may write to" in said
    ends_right(archive, folder / "store", truth)


def test_a_clock_that_jumps(tmp_path, archive, truth, monkeypatch):
    """Back and forth by years while the run goes on: times are for people only."""
    rng, clock = np.random.default_rng(0), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + rng.uniform(-1e8, 1e8))
    with pytest.raises(KeyboardInterrupt):
        run(job(archive, tmp_path / "store"), observer=Happens(9, partial(raised, KeyboardInterrupt())))
    ends_right(archive, tmp_path / "store", truth)


def raised(failure):
    raise failure


def change_identity(store: Path, **changes):
    """Change what a store says that it is."""
    documents = [store / "zarr.json", *store.with_name(store.name + ".run").glob("zarr.json")]
    for file in documents:
        document = json.loads(file.read_bytes())
        identity = json.loads(document["attributes"]["identity"])
        document["attributes"]["identity"] = json.dumps(identity | changes)
        file.write_text(json.dumps(document))


def test_a_store_of_a_later_version(tmp_path, archive, truth, capsys):
    root = tmp_path / "store"
    ends_right(archive, root, truth)
    cube = stores(root)["cube"]
    change_identity(cube, format=1000)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file() and "lease" not in str(file)}
    code, said = say(capsys, archive, root)
    assert code == 5
    assert f"{cube}: is of format 1000, of a newer scattercube; this one knows up to format " in said
    assert "update it, or choose another --store" in said
    assert {f: f.read_bytes() for f in root.rglob("*") if f.is_file() and "lease" not in str(f)} == before
    for folder in cube.parent.iterdir():
        shutil.rmtree(folder)
    ends_right(archive, root, truth)


def test_a_cube_of_another_spec(tmp_path, archive, truth, capsys):
    """In the place of this one, as after files were moved by hand."""
    root = tmp_path / "store"
    assert command([*arguments(archive, root), "--set", "J=1"]) == 0
    (other,) = (folder for folder in (root / "archive" / "features").iterdir() if "." not in folder.name)
    run(job(archive, tmp_path / "mine"))
    name = stores(tmp_path / "mine")["cube"].name
    moved = [
        folder.rename(folder.with_name(folder.name.replace(other.name, name))) for folder in other.parent.iterdir()
    ]
    capsys.readouterr()
    code, said = say(capsys, archive, root)
    assert code == 5
    assert f"holds another cube: shape is [9, 8, 8], this run has [81, 4, 4]; spec is {other.name}" in said
    assert "choose another --store, or remove this one to make it anew" in said
    for folder in moved:
        shutil.rmtree(folder)
    ends_right(archive, root, truth)


# --- Workers and clusters ---


def hog(step, key):
    """Take more memory than a worker has, for one key."""
    if str(key) == "sample=10":
        held = []
        while True:
            held.append(np.ones(4 << 20))
            time.sleep(0.02)
    return step(key)


def test_a_key_that_takes_more_memory_than_a_worker_has(tmp_path, monkeypatch):
    stage = make_stage(tmp_path)
    stage = replace(stage, step=partial(hog, stage.step))
    with connect(Cluster(workers=1, threads=1, memory="400MiB")) as client:
        monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
        with pytest.raises(ChunkError, match="test sample=10: its worker died each time it ran") as died:
            execute.run(stage, stage.keys, client)
    assert died.value.exit_code == 6
    assert [str(key) for key in stage.store.missing(stage.keys)] == ["sample=10"], "all others are done"
    mended = make_stage(tmp_path)
    assert execute.run(mended, mended.keys) == 1


def hang(step, key):
    """Wait for what never comes, for one key."""
    if str(key) == "sample=10":
        time.sleep(1e6)
    return step(key)


def test_a_read_that_hangs(tmp_path, monkeypatch):
    stage = make_stage(tmp_path)
    stage = replace(stage, step=partial(hang, stage.step))
    begin = time.monotonic()
    with connect(Cluster(workers=2, threads=1, memory="1GiB")) as client:
        execute.run(stage, stage.keys[:4], client)
        monkeypatch.setattr(execute, "SILENT_SECONDS", 3.0)
        with pytest.raises(ChunkError, match=r"^test sample=10: nothing was finished for 3 s") as hanging:
            execute.run(stage, stage.keys, client)
    assert time.monotonic() - begin < 60
    assert hanging.value.exit_code == 6
    assert [str(key) for key in stage.store.missing(stage.keys)] == ["sample=10"], "all others are done"
    mended = make_stage(tmp_path)
    assert execute.run(mended, mended.keys) == 1


def test_a_cluster_that_does_not_close():
    """A worker is suspended and does not answer; the run ends all the same, and leaves no process."""
    begin = time.monotonic()
    with connect(Cluster(workers=2, threads=1, memory="1GiB")):
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGSTOP)
    assert time.monotonic() - begin < 60
    gone, left = psutil.wait_procs(workers, timeout=10)
    for process in left:
        process.kill()
    assert len(gone) == 2


def test_workers_that_die_as_they_start():
    over = threading.Event()

    def kill_what_starts():
        while not over.wait(0.01):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()

    killer = threading.Thread(target=kill_what_starts)
    killer.start()
    try:
        with (
            pytest.raises(
                ChunkError, match=r"the 2 workers of the cluster did not start: .*run the same command again"
            ),
            connect(Cluster(workers=2, threads=1, memory="1GiB")),
        ):
            raise AssertionError("they did start")
    finally:
        over.set()
        killer.join()
    with connect(Cluster(workers=2, threads=1, memory="1GiB")) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


# --- Signals ---


@pytest.mark.parametrize("how", [("--serial",), ()], ids=["serial", "cluster"])
def test_a_polite_signal_stops_a_run_in_order(tmp_path, archive, truth, how):
    root = tmp_path / "store"
    words = ["extract", str(archive), "--store", str(root), "--direct", *how]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True) as process:
        while n_recorded(root) < 5:
            assert process.poll() is None
            time.sleep(0.001)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "the same command continues" in said
    assert "Traceback" not in said or not how, "Dask's own processes may log what broke off as they end"
    assert 5 <= n_recorded(root) < 44
    ends_right(archive, root, truth)


def test_a_second_run_is_refused_while_the_first_one_writes(tmp_path, archive, truth, capsys):
    """Even where the first one is suspended; it goes on as if nothing had been."""
    root = tmp_path / "store"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments(archive, root)], stderr=subprocess.PIPE) as first:
        while n_recorded(root) < 5:
            assert first.poll() is None
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        held = n_recorded(root)
        code, said = say(capsys, archive, root)
        assert code == 5
        assert f"another run is writing here: pid {first.pid} on " in said
        assert "let it end, or stop it, and run the same command again" in said
        assert n_recorded(root) == held
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    ends_right(archive, root, truth)


def test_of_runs_that_start_together_one_writes(tmp_path, archive, truth):
    root = tmp_path / "store"
    command = [sys.executable, "-c", PROGRAM, *arguments(archive, root)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(3)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert 0 in codes
    assert set(codes) <= {0, 5}, said
    refused = [text for text, code in zip(said, codes, strict=True) if code]
    assert all("another run" in text and "Traceback" not in text for text in refused), refused
    ends_right(archive, root, truth)
