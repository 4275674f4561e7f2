"""The plain store where it can be taken apart: killed between any two files, damaged, torn, full, and watched."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.sources.archives import objects
from scattercube.pipeline.stores import folders
from scattercube.pipeline.stores.files import files_at
from scattercube.pipeline.stores.folders import LocalFiles
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.plain import PlainStore
from scattercube.pipeline.stores.protocol import REMOVED, SUPERSEDED
from scattercube.pipeline.stores.states import VERSIONS
from tests.test_stores import GRID, check, codes, ground, grow, numbers, shard, template, write
from tests.test_stores import TestFields as Fields

__all__ = ["ground"]  # a fixture

MARKS = {1: SUPERSEDED, 9: REMOVED}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cube"


class Killed(BaseException):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Kill the process when it is about to change a file for the n-th time: half of a file is there, or half a line."""
    left = [0]

    def dying(change: str, half: Callable[..., None]) -> None:
        whole = getattr(LocalFiles, change)

        def once(self: LocalFiles, *arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                half(self, *arguments)
                raise Killed
            if left[0] < 0:
                raise Killed  # it is dead
            return whole(self, *arguments)

        monkeypatch.setattr(LocalFiles, change, once)

    def half_a_line(self: LocalFiles, log: str, lines: bytes, *_: Any) -> None:
        with (Path(self.place) / f"{log}.jsonl").open("ab") as file:
            file.write(lines[: len(lines) // 2])

    dying("write", lambda self, name, *parts: self._partial(name, (b"".join(parts)[:-9],)))
    dying("append", half_a_line)
    dying("remove", lambda *_: None)
    dying("clear", lambda *_: None)

    def arm(n: int) -> None:
        left[0] = n

    return arm


def test_killed_between_any_two_files_of_a_first_version(path, kill_at):
    n = deaths = 0
    while True:
        n += 1
        kill_at(n)
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(f"{path}.run", ignore_errors=True)
        try:
            grow(PlainStore(str(path)), 0, 10)
            break
        except Killed:
            deaths += 1
        kill_at(1 << 30)
        if not (path / "zarr.json").exists():
            with pytest.raises(StoreError, match="no published store"):
                open_cube(path)
        resumed = PlainStore(str(path))
        resumed.begin(template(10))
        done = GRID.keys if resumed.published else resumed.events()
        assert len(resumed.missing(GRID.keys)) == len(GRID.keys) - len(done)
        grow(resumed, 0, 10)
        whole(path, 10, codes(slice(0, 10)))
    assert deaths > 15, "every file that is written is one"


def test_killed_between_any_two_files_of_a_later_version(tmp_path, path, kill_at):
    kill_at(1 << 30)
    before = PlainStore(str(tmp_path / "before"))
    grow(before, 0, 10)
    grid = Grid.of_samples(15, shard=4, chunk=2).behind(10)

    def run() -> None:
        store = PlainStore(str(path))
        if store.versions()[-1].number == 2 and store.published:
            return
        store.begin(template(15), 10)
        store.mark(MARKS)
        for key in store.missing(grid.keys):
            write(store, grid, [key])
        store.publish()

    then = codes(slice(0, 15))
    then[list(MARKS)] = list(MARKS.values())
    n = deaths = 0
    while True:
        n += 1
        for end in ("", ".run"):
            shutil.rmtree(f"{path}{end}", ignore_errors=True)
            shutil.copytree(f"{before.url}{end}", f"{path}{end}")
        reader = xr.open_zarr(path, chunks=None)
        kill_at(n)
        try:
            run()
            break
        except Killed:
            deaths += 1
        kill_at(1 << 30)
        published = len(PlainStore(str(path)).versions())
        check(open_cube(path), *((10,) if published == 1 else (15, then)))
        check(open_cube(path, "1"), 10)
        run()
        check(reader, 10)
        whole(path, 15, then)
    assert deaths > 20, "every file that is written is one"


def whole(path: Path, n: int, status: np.ndarray) -> None:
    """Make sure that a store is published as if nobody had been killed."""
    store = PlainStore(str(path))
    assert store.published
    check(xr.open_zarr(path, chunks=None), n, status)
    check(xr.open_zarr(path, chunks=None, consolidated=False), n, status)
    assert list(store.verify()) == []
    list(store.sweep())
    left = [file.name for file in path.parent.rglob("*.partial")]
    assert left == []
    assert not (Path(f"{path}.run") / "waiting.json").exists()
    events = [(event["version"], event["key"]) for event in store.events()]
    assert len(events) == len(set(events))


def test_readers_while_rows_come_one_by_one(path):
    """A reader that opens the store again and again with plain xarray never reads what is not right."""
    grid = Grid.of_samples(2, shard=9, chunk=3)
    store = PlainStore(str(path))
    store.begin(template(2, grid))
    write(store, grid)
    store.publish()
    over, wrong, opened = threading.Event(), [], [0]

    def read() -> None:
        while not over.is_set():
            try:
                cube = xr.open_zarr(path, chunks=None)
                n = cube.sizes["sample"]
                np.testing.assert_array_equal(cube["values"][n - 2 :].values, numbers(slice(n - 2, n)))
                np.testing.assert_array_equal(cube["values"].values, numbers(slice(0, n)))
                np.testing.assert_array_equal(cube["status"].values, codes(slice(0, n)))
                opened[0] += 1
            except BaseException as failure:
                wrong.append(failure)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(3, 30):
            grown = Grid.of_samples(n, shard=9, chunk=3).behind(n - 1)
            store.begin(template(n, grid), n - 1)
            write(store, grown)
            store.publish()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert opened[0] > 5
    assert list(store.verify()) == []


class TestDamage:
    def published(self, path, grid=GRID):
        store = PlainStore(str(path))
        store.begin(template(grid=grid))
        write(store, grid)
        store.publish()
        return store

    def test_every_flipped_byte_is_found(self, path):
        store = self.published(path)
        file = path / "values" / "c" / "1" / "0"
        content, silent = file.read_bytes(), 0
        for at in range(len(content)):
            file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            found = list(store.verify())
            try:
                same = np.array_equal(store.read("values", slice(4, 8)), numbers(slice(4, 8)))
            except StoreError:
                same = False
            assert same or any("sample=4" in sentence for sentence in found), f"byte {at}"
            assert all("sample=4" in sentence for sentence in found)
            silent += same
        assert silent < len(content) / 4

    def test_a_truncated_shard_is_found(self, path):
        store = self.published(path)
        file = path / "values" / "c" / "1" / "0"
        content = file.read_bytes()
        for nbytes in range(0, len(content), 7):
            file.write_bytes(content[:nbytes])
            with pytest.raises(StoreError, match=r"read values sample 4:8.*damaged|values/c/1/0: the file is cut off"):
                store.read("values", slice(4, 8))
            assert any("sample=4" in sentence for sentence in store.verify())

    def test_an_absent_shard_is_never_nan(self, path):
        store = self.published(path)
        for name in ("values/c/1/0", "status/c/1", "label/c/0"):
            (path / name).rename(path / "aside")
            variable = name.partition("/")[0]
            with pytest.raises(StoreError, match=f"{name}: the shard is not there"):
                store.read(variable, slice(2, 5))
            with pytest.raises(StoreError, match=f"{name}: the shard is not there"):
                open_cube(path)[variable].load()
            if variable != "label":
                assert any("sample=4" in sentence for sentence in store.verify())
            (path / "aside").rename(path / name)
        check(open_cube(path), 10)

    def test_a_wrong_status_of_a_field_is_found(self, path):
        fields = Fields()
        store = PlainStore(str(path))
        store.begin(template(2, fields.GRID))
        fields.fill(store, fields.GRID)
        store.settle(2)
        store.publish()
        assert list(store.verify()) == []
        file, other = path / "status" / "c" / "0", path / "aside"
        zarr.open_array(path / "status", mode="r+")[1] = 0
        (sentence,) = store.verify()
        assert "status of version 1 has 0 for sample 1, recorded was 1" in sentence
        file.rename(other)
        assert any("status/c/0: the shard is not there" in sentence for sentence in store.verify())

    def test_a_version_with_a_gap_is_not_published(self, path):
        store = PlainStore(str(path))
        store.begin(template())
        write(store, GRID)
        (path / "values" / "c" / "1" / "0").unlink()
        with pytest.raises(StoreError, match="values/c/1/0: the shard is not there, so the version is not whole"):
            store.publish()
        assert not store.published

    def test_a_shard_that_is_shorter_than_published_is_not_extended(self, path):
        store = self.published(path)
        grid = Grid.of_samples(12, shard=4, chunk=2).behind(10)
        store.begin(template(12), 10)
        file = path / "values" / "c" / "2" / "0"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(StoreError, match="index of the shard does not match its checksum; the store is damaged"):
            store.write(grid.keys[0], shard(grid, grid.keys[0]))

    def test_documents_and_journals_that_are_damaged_say_so(self, path):
        store = self.published(path)
        journal = Path(f"{path}.run") / "journal-1.jsonl"
        journal.write_bytes(bytes(20) + b"\n")
        with pytest.raises(StoreError, match="journal"):
            store.missing(GRID.keys)
        (path / "zarr.json").write_text('{"attributes": ')
        with pytest.raises(StoreError, match="documents"):
            store.read("values", slice(0, 1))
        with pytest.raises(StoreError, match="documents"):
            open_cube(path)

    def test_without_its_journal_nothing_is_missing_and_nothing_is_proven(self, path):
        store = self.published(path)
        shutil.rmtree(f"{path}.run")
        assert len(store.missing(GRID.keys)) == 0
        assert len(list(store.verify())) == len(GRID.keys)
        grow(store, 10, 12)
        check(open_cube(path), 12)


class TestGrounds:
    def test_what_no_run_has_made_is_left_alone(self, path):
        precious = path / "photo.png"
        precious.parent.mkdir()
        precious.write_bytes(b"precious")
        Path(f"{path}.run").mkdir()
        with pytest.raises(StoreError, match="holds something that no run has made"):
            PlainStore(str(path)).begin(template())
        assert precious.read_bytes() == b"precious"

    def test_a_store_that_was_removed_by_hand_is_made_anew(self, path):
        store = PlainStore(str(path))
        grow(store, 0, 10)
        grow(store, 10, 12)
        (Path(f"{path}.run") / "other.txt").write_text("not ours")
        shutil.rmtree(path)
        store.begin(template(spec="b"))
        assert store.missing(GRID.keys) == GRID.keys
        assert store.events() == []
        write(store, GRID)
        store.publish()
        check(open_cube(path), 10)
        assert (Path(f"{path}.run") / "other.txt").exists()

    def test_a_place_where_nothing_can_be_written_says_so(self, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(StoreError, match="a file stands where a folder is needed"):
            PlainStore(str(tmp_path / "file" / "cube")).begin(template())

    @pytest.mark.parametrize(
        ("number", "words"), [(errno.ENOSPC, "the disk is full: free some space"), (errno.EROFS, "read-only")]
    )
    def test_a_disk_that_refuses_says_so_and_the_same_run_goes_on(self, path, monkeypatch, number, words):
        grow(PlainStore(str(path)), 0, 10)
        store = PlainStore(str(path))
        store.begin(template(15), 10)
        grid = Grid.of_samples(15, shard=4, chunk=2).behind(10)
        write(store, grid, grid.keys[:1])

        def refuse(*_):
            raise OSError(number, "refused")

        with monkeypatch.context() as patch:
            patch.setattr(folders, "_write_durably", refuse)
            with pytest.raises(StoreError, match=words) as failure:
                store.write(grid.keys[1], shard(grid, grid.keys[1]))
            assert failure.value.__cause__.errno == number
            with pytest.raises(StoreError, match="not there"):
                store.publish()
            with pytest.raises(StoreError, match=words):
                store.record([{"key": "sample=12", "digest": "x", "not_ok": []}], [None])
        assert not list(path.rglob("*.partial"))
        check(open_cube(path), 10)
        write(store, grid, store.missing(grid.keys))
        with monkeypatch.context() as patch:
            patch.setattr(folders, "_write_durably", refuse)
            with pytest.raises(StoreError, match=words):
                store.publish()
        check(open_cube(path), 10)
        store.publish()
        check(open_cube(path), 15)

    def test_two_runs_of_one_store_do_not_mix(self, path):
        one, other = PlainStore(str(path)), PlainStore(str(path))
        one.begin(template())
        other.begin(template())
        write(one, GRID, GRID.keys[:1])
        write(other, GRID, GRID.keys[1:2])
        with pytest.raises(StoreError, match="another run writes here"):
            write(one, GRID, GRID.keys[2:])
        write(other, GRID, other.missing(GRID.keys))
        other.publish()
        with pytest.raises(StoreError, match="is not begun here any more"):
            write(one, GRID, GRID.keys[2:3])
        check(open_cube(path), 10)

    def test_status_is_small(self, path):
        grow(PlainStore(str(path)), 0, 10)
        for n in range(11, 30):
            store = PlainStore(str(path))
            store.begin(template(n), n - 1)
            store.mark({n - 2: REMOVED})
            grid = Grid.of_samples(n, shard=4, chunk=2).behind(n - 1)
            write(store, grid)
            store.publish()
        files = [file for file in (path / "status").rglob("c*") if file.is_file()]
        files += list((path / "status" / "c").iterdir())
        assert len(files) <= 2 * 8, "two of each chunk, whatever the number of versions"
        marks = json.loads(PlainStore(str(path)).attributes()[VERSIONS])[-1]["marks"]
        assert len(marks) == 1
        expected = codes(slice(0, 29))
        expected[9:28] = REMOVED
        check(open_cube(path), 29, expected)
        for n in (10, 15, 28):
            expected = codes(slice(0, n))
            expected[9 : n - 1] = REMOVED
            check(open_cube(path, str(n - 9)), n, expected)


class TestFiles:
    """Named files and logs, in a folder and in a bucket."""

    def test_they_are_whole(self, ground):
        files = files_at(f"{ground}/a/b")
        assert files.read("x") is files.size("x") is files.read_end("x", 1) is None
        assert list(files.names()) == []
        files.write("x", b"one", b"two")
        files.write("d/y", b"")
        assert files.read("x") == b"onetwo"
        assert files.read_end("x", 4) == b"etwo"
        assert files.read_end("x", 7) == b"onetwo"
        assert sorted(files.names()) == ["d/y", "x"]
        assert list(files.names("d/")) == ["d/y"]
        assert list(files.names("x")) == ["x"]
        assert list(files.names("d/z")) == []
        assert files.create("z", b"1")
        assert not files.create("z", b"2")
        assert files.read("z") == b"1"
        files.remove("z")
        files.remove("z")
        assert files.read("z") is None

    def test_of_many_who_create_one_does(self, ground):
        files = files_at(ground)
        won: list[int] = []

        def create(number: int) -> None:
            if files.create("one", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(number).encode() for number in won] == [files.read("one")]

    def test_logs_grow_and_two_who_write_one_are_told(self, ground):
        files = files_at(ground)
        assert list(files.lines("log")) == []
        end = files.append("log", b"1\n2\n")
        end = files.append("log", b"3\n", end)
        assert list(files.lines("log")) == [b"1\n", b"2\n", b"3\n"]
        for number in range(4, 14):
            files_at(ground).append("log", f"{number}\n".encode())
        assert [int(line) for line in files.lines("log")] == list(range(1, 14))
        with pytest.raises(StoreError, match="another run writes here"):
            files.append("log", b"5\n", end)
        files.forget("log")
        assert list(files.lines("log")) == []

    def test_a_bucket_that_is_not_there_or_not_ours_says_so(self, bucket, moto, monkeypatch):
        with pytest.raises(StoreError, match=r"s3://nowhere/cube: cannot .*not found|NoSuchBucket"):
            PlainStore("s3://nowhere/cube").begin(template())
        with pytest.raises(StoreError, match="no published store"):
            open_cube(f"{bucket}/cube")
        monkeypatch.setattr(objects, "RETRIES", 0)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        objects._store.cache_clear()
        with pytest.raises(StoreError, match="out of reach"):
            PlainStore(f"{bucket}/cube").begin(template())

    def test_a_torn_line_is_not_read_and_cut_off_by_the_next(self, tmp_path):
        files = files_at(str(tmp_path))
        assert list(files.lines("log")) == []
        files.append("log", b"1\n2\n")
        with (tmp_path / "log.jsonl").open("ab") as file:
            file.write(b"x" * 200_000)
        assert list(files.lines("log")) == [b"1\n", b"2\n"]
        assert (tmp_path / "log.jsonl").stat().st_size == 200_004, "whoever reads leaves it: it may be growing"
        files.append("log", b"3\n")
        assert (tmp_path / "log.jsonl").read_bytes() == b"1\n2\n3\n"
