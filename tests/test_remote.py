"""Archives behind URLs: the same samples as here, few requests, and what servers do wrong."""

import http.server
import os
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

import numpy as np
import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.pipeline.addresses import hide_secrets
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources import Listing, load_entry, read, scan
from scattercube.pipeline.sources.archives import objects, prefixes, remote
from scattercube.pipeline.sources.archives.archive import _open_file, open_archive
from tests import test_array_files, test_audio, test_molecules, test_sky
from tests.test_sources import (
    BUILDERS,
    CLASSES,
    IMAGES,
    NAMES,
    entry,
    everything,
    in_folders,
    members,
    npy,
    png,
    reason,
    samples,
    write_folder,
    write_tar,
    write_zip,
    written,
)

BIG = np.random.default_rng(3).integers(0, 256, (200, 60, 100), dtype=np.uint8)  # PNGs of 6 kB each


@dataclass
class Web:
    """A web server of one folder, and what it does wrong."""

    root: Path
    url: str = ""
    ranges: bool = True
    tags: bool = True
    delay_s: float = 0.0
    last: int = 1 << 30  # request that is answered, before the server breaks down
    drops: int = 0  # answers that are cut in the middle
    stalls: int = 0  # answers that stop in the middle
    status: dict[str, int] = field(default_factory=dict)  # by part of the path
    before: Callable[[str], None] = lambda path: None
    requests: list[tuple[str, str]] = field(default_factory=list)  # path and range
    in_flight: int = 0
    most_in_flight: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        web = self.web
        web.requests.append((self.path, self.headers.get("Range", "")))
        web.in_flight += 1
        web.most_in_flight = max(web.most_in_flight, web.in_flight)
        try:
            web.before(self.path)
            time.sleep(web.delay_s)
            self.answer(web)
        finally:
            web.in_flight -= 1

    def answer(self, web: Web) -> None:
        if "prefix=" in self.path:
            self.say(200, {}, listing_xml(web.root, self.path))
            return
        file = web.root / unquote(self.path).lstrip("/")
        if len(web.requests) > web.last:
            self.say(500, {}, b"")
            return
        refused = next((code for part, code in web.status.items() if part in unquote(self.path)), None)
        if refused or not file.is_file():
            self.say(refused or 404, {}, b"<html>\nno\n</html>")
            return
        nbytes, changed = file.stat().st_size, file.stat().st_mtime_ns
        headers = {"ETag": f'"{changed:x}-{nbytes:x}"', "Last-Modified": formatdate(1e9, usegmt=True)}
        headers = headers if web.tags else {}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if web.ranges else None
        start, stop = (int(span[1]), min(int(span[2]) + 1, nbytes)) if span else (0, nbytes)
        if span and start >= nbytes:
            self.say(416, {"Content-Range": f"bytes */{nbytes}"}, b"")
            return
        with file.open("rb") as stream:
            stream.seek(start)
            body = stream.read(stop - start)
        self.say(206 if span else 200, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{nbytes}"}, body)

    def say(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = "drops" if self.web.drops else "stalls" if self.web.stalls else ""
        if broken and len(body) > 1 and code == 206:
            setattr(self.web, broken, getattr(self.web, broken) - 1)
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(1.0 if broken == "stalls" else 0)
            self.close_connection = True
            self.connection.close()
            return
        with suppress(OSError):  # who asked may have lost patience
            self.wfile.write(body)


# What surrounds the objects, and each object: Google (XML API, version 2), and Azure, whose tags have no quotes here.
LISTS = {
    "list-type=2": (
        "<ListBucketResult>{}</ListBucketResult>",
        "<Contents><Key>{key}</Key><LastModified>2001-09-09T01:46:40.000Z</LastModified>"
        "<ETag>&quot;{tag}&quot;</ETag><Size>{nbytes}</Size></Contents>",
    ),
    "comp=list": (
        "<EnumerationResults><Blobs>{}</Blobs><NextMarker/></EnumerationResults>",
        "<Blob><Name>{key}</Name><Properties><Last-Modified>Sun, 09 Sep 2001 01:46:40 GMT</Last-Modified>"
        "<Etag>{tag}</Etag><Content-Length>{nbytes}</Content-Length><Content-Type>a/b</Content-Type></Properties></Blob>",
    ),
}


def listing_xml(root: Path, path: str) -> bytes:
    """What a store says when it is asked for its objects."""
    bucket, _, query = path.lstrip("/").partition("?")
    prefix = parse_qs(query)["prefix"][0]
    around, each = next(form for name, form in LISTS.items() if name in query)
    rows = []
    for file in sorted(file for file in (root / bucket).rglob("*") if file.is_file()):
        key, status = file.relative_to(root / bucket).as_posix(), file.stat()
        tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        if key.startswith(prefix):
            rows.append(each.format(key=escape(key), tag=tag, nbytes=status.st_size))
    return around.format("".join(rows)).encode()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    served = Web(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"web": served}))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def upload(path: Path, url: str) -> None:
    """Copy a file or folder into the bucket, under the same name."""
    store = objects._store("s3://bucket", False)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            obstore.put(store, file.relative_to(path.parent).as_posix(), file.read_bytes())


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No stores, blocks and folders from the test before, and little patience."""
    monkeypatch.setattr(objects, "RETRIES", 1)
    monkeypatch.setattr(objects, "READ_TIMEOUT_S", 0.4)
    objects._store.cache_clear()
    remote._blocks.clear()
    remote._folders.clear()
    yield
    objects._store.cache_clear()


KINDS = ("s3", "web")


@pytest.fixture
def put(s3: str, web: Web, request: pytest.FixtureRequest) -> Callable[[str, Entry], Entry]:
    """Put the archive of an entry on a server; return the entry of that."""

    def to(server: str, made: Entry) -> Entry:
        path = Path(made.location)
        if server == "s3":
            upload(path, s3)
            return made.model_copy(update={"location": f"{s3}/{path.name}"})
        url = f"{web.url}/{quote(path.relative_to(web.root).as_posix())}"
        if path.is_dir():
            names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            (path / "index.lst").write_text("# files\n./" + "\n".join(names) + "\n\n")
            return made.model_copy(update={"location": url, "index": "index.lst"})
        return made.model_copy(update={"location": url})

    return to


def same(one: Listing, other: Listing) -> None:
    assert one.columns.keys() == other.columns.keys()
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])  # missing numbers are NaN in both
    assert one.layout == other.layout


@pytest.mark.parametrize("server", KINDS)
@pytest.mark.parametrize("kind", BUILDERS)
class TestSameAsHere:
    def test_listing_and_samples(self, tmp_path: Path, put: Any, server: str, kind: str) -> None:
        made = BUILDERS[kind](tmp_path)
        listing, found = everything(made)
        there, fetched = everything(put(server, made))
        same(listing, there)
        np.testing.assert_array_equal(np.stack(fetched), np.stack(found))
        assert any("without encryption" in note for note in there.notes)
        whole = kind.startswith("tar.") or kind == "idx in tar.gz"
        assert any("compressed as a whole" in note for note in there.notes) is whole

    def test_any_slices_and_threads(self, tmp_path: Path, put: Any, server: str, kind: str) -> None:
        made = put(server, BUILDERS[kind](tmp_path))
        listing, found = everything(made)

        def one(row: int) -> np.ndarray | RecordError:
            return samples(made, {name: values[row : row + 1] for name, values in listing.columns.items()})[0]

        with ThreadPoolExecutor(3) as pool:
            there = list(pool.map(one, range(len(found))))
            back = list(pool.map(one, reversed(range(len(found)))))
        np.testing.assert_array_equal(np.stack(there), np.stack(found))
        np.testing.assert_array_equal(np.stack(back[::-1]), np.stack(found))

    def test_checksum_is_the_same_again_and_another_after_a_change(
        self, tmp_path: Path, put: Any, server: str, kind: str
    ) -> None:
        local = BUILDERS[kind](tmp_path)
        made = put(server, local)
        first = scan(made, Path()).checksum
        assert scan(made, Path()).checksum == first
        path = Path(local.location)
        file = min(f for f in path.rglob("*") if f.is_file() and f.suffix != ".lst") if path.is_dir() else path
        file.write_bytes(file.read_bytes() + b"\0")
        put(server, local)
        with suppress(SourceError, EntryError):  # some kinds do not bear another byte
            assert scan(made, Path()).checksum != first


def in_other_formats(path: Path, write: Callable[[Path, dict[str, bytes]], Path], name: str) -> dict[str, Entry]:
    """Every other kind of member in one kind of archive."""
    sounds = {
        f"{index}.{kind}": test_audio.encoded(test_audio.sound(9000, seed=index), kind)
        for index, kind in enumerate(("wav", "flac", "ogg", "mp3"))
    }
    water = {f"{index}/a.xyz": content for index, content in enumerate((test_molecules.WATER, test_molecules.METHANE))}
    return {
        "audio": test_audio.entry(write(path / f"sounds{name}", sounds)),
        "sky": test_sky.entry(write(path / f"sky{name}", test_sky.FILES)),
        "molecules": test_molecules.entry(write(path / f"molecules{name}", water)),
    }


WRITERS = {
    "folder": (write_folder, ""),
    "tar": (write_tar, ".tar"),
    "tar.gz": (write_tar, ".tar.gz"),
    "zip": (write_zip, ".zip"),
}
OTHERS: dict[str, Callable[[Path], Entry]] = test_array_files.BUILDERS | {
    f"{kind}, {container}": lambda p, kind=kind, writer=writer: in_other_formats(p, *writer)[kind]  # type: ignore[misc]
    for container, writer in WRITERS.items()
    for kind in ("audio", "sky", "molecules")
}


@pytest.mark.parametrize("server", KINDS)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_the_same_as_here(tmp_path: Path, put: Any, server: str, kind: str) -> None:
    made = OTHERS[kind](tmp_path)
    listing, found = everything(made)
    there, fetched = everything(put(server, made))
    same(listing, there)
    assert not [sample for sample in found if isinstance(sample, RecordError)]
    np.testing.assert_array_equal(np.stack(fetched), np.stack(found))


@pytest.mark.parametrize("kind", BUILDERS | OTHERS)
def test_whichever_answer_is_the_last(
    tmp_path: Path, put: Any, web: Web, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that breaks down takes no sample away and changes none, whatever a library makes of a short file."""
    for module in (remote, prefixes):
        monkeypatch.setattr(module, "BLOCK_NBYTES", 900)
    monkeypatch.setattr(remote, "LONGEST", 2)
    monkeypatch.setattr(objects, "RETRIES", 0)
    made = put("web", (BUILDERS | OTHERS)[kind](tmp_path))

    def attempt(last: int) -> tuple[Listing, list[np.ndarray | RecordError]]:
        remote._blocks.clear()
        _open_file.cache_clear()
        web.requests.clear()
        web.last = last
        with ThreadPoolExecutor(1) as pool:  # a thread of its own has nothing open
            return pool.submit(everything, made).result()

    listing, found = attempt(1 << 30)
    n_requests, n_failed = len(web.requests), 0
    assert n_requests > 1
    for last in np.unique(np.linspace(0, n_requests - 1, 4).astype(int)).tolist():
        try:
            again, fetched = attempt(last)
        except SourceError as failure:
            assert "500 Internal Server Error" in str(failure)  # noqa: PT017
            n_failed += 1
            continue
        same(listing, again)  # what a library did not ask for again was not needed
        np.testing.assert_array_equal(np.stack(fetched), np.stack(found))
    assert n_failed >= 1


@pytest.fixture
def big(tmp_path: Path) -> dict[str, bytes]:
    return {f"{index:03d}.png": png(image) for index, image in enumerate(BIG)}


class TestRequests:
    """Waiting is what costs: a request takes as long as a megabyte or more."""

    def test_a_tar_is_indexed_in_few_requests_and_its_members_come_together(
        self, tmp_path: Path, web: Web, big: dict[str, bytes]
    ) -> None:
        path = write_tar(tmp_path / "a.tar", big)
        assert path.stat().st_size > 1_200_000
        made = entry(f"{web.url}/a.tar")
        listing = scan(made, Path())
        assert len(web.requests) <= 5  # what it is, and 1, 2, 4 blocks
        remote._blocks.clear()
        web.requests.clear()
        found = samples(made, {name: values[:100] for name, values in listing.columns.items()})
        np.testing.assert_array_equal(np.stack(found), BIG[:100])
        assert len(web.requests) <= 3  # what it is, the member that decides the layout, and all others at once

    def test_no_byte_of_a_tar_is_fetched_twice(self, tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
        path = write_tar(tmp_path / "a.tar", big)
        _, found = everything(entry(f"{web.url}/a.tar"))
        np.testing.assert_array_equal(np.stack(found), BIG)
        spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for _, span in web.requests]
        assert sum(stop - start + 1 for start, stop in spans) <= path.stat().st_size + 10

    def test_members_far_apart_are_asked_for_at_once(self, tmp_path: Path, web: Web) -> None:
        rng = np.random.default_rng(0)
        wide = rng.integers(0, 256, (20, 1000, 1500), dtype=np.uint8)
        write_tar(tmp_path / "a.tar", {f"{index:02d}.npy": npy(image) for index, image in enumerate(wide)})
        made = entry(f"{web.url}/a.tar", "arrays", sample={"exact": True})
        listing = scan(made, Path())
        assert len(web.requests) <= 25
        remote._blocks.clear()
        web.requests.clear()
        web.delay_s, web.most_in_flight = 0.05, 0
        found = samples(made, {name: values[::4] for name, values in listing.columns.items()})
        np.testing.assert_array_equal(np.stack(found), wide[::4])
        assert len(web.requests) <= 15  # what it is, and each member in three parts, the first parts at once
        assert web.most_in_flight >= 3

    def test_a_zip_is_listed_from_its_end(self, tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
        write_zip(tmp_path / "a.zip", big)
        listing = scan(made := entry(f"{web.url}/a.zip"), Path())
        assert len(web.requests) <= 4
        remote._blocks.clear()
        web.requests.clear()
        found = samples(made, {name: values[:100] for name, values in listing.columns.items()})
        np.testing.assert_array_equal(np.stack(found), BIG[:100])
        assert len(web.requests) <= 3

    def test_files_of_a_folder_come_at_once_and_once(self, tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
        write_folder(tmp_path / "f", big | {"index": "\n".join(big).encode()})
        web.delay_s = 0.02
        made = entry(f"{web.url}/f/", index="index")
        listing = scan(made, Path())
        web.requests.clear()
        web.most_in_flight = 0
        found = samples(made, {name: values[:64] for name, values in listing.columns.items()})
        np.testing.assert_array_equal(np.stack(found), BIG[:64])
        assert len(web.requests) == 64
        assert web.most_in_flight >= 8

    def test_a_listed_folder_needs_no_look_at_its_members(
        self, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload(write_folder(tmp_path / "f", members()), s3)
        asked: list[str] = []
        get = objects.get
        monkeypatch.setattr(objects, "get", lambda base, key, *rest: asked.append(key) or get(base, key, *rest))
        listing = scan(in_folders(Path("f")).model_copy(update={"location": f"{s3}/f/"}), Path())
        assert len(listing.columns["member"]) == len(NAMES)
        assert asked == ["f/cat/00.png"]

    def test_one_npy_is_read_by_the_rows_that_are_wanted(self, tmp_path: Path, web: Web) -> None:
        stack = np.random.default_rng(0).integers(0, 256, (400, 100, 100), dtype=np.uint8)
        made = entry(written(tmp_path / "a.npy", npy(stack)), "arrays").model_copy(
            update={"location": f"{web.url}/a.npy"}
        )
        rows = {name: values[390:392] for name, values in scan(made, Path()).columns.items()}
        remote._blocks.clear()
        web.requests.clear()
        np.testing.assert_array_equal(np.stack(samples(made, rows)), stack[390:392])
        spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for _, span in web.requests]
        assert sum(stop - start + 1 for start, stop in spans) < 1_200_000

    def test_blocks_that_are_kept_have_a_limit(
        self, tmp_path: Path, web: Web, big: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "_KEPT_NBYTES", 3 * remote.BLOCK_NBYTES)
        write_tar(tmp_path / "a.tar", big)
        _, found = everything(entry(f"{web.url}/a.tar"))
        np.testing.assert_array_equal(np.stack(found), BIG)
        assert sum(map(len, remote._blocks._kept.values())) == remote._blocks._nbytes <= 3 * remote.BLOCK_NBYTES


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_stream_is_the_file(data: st.DataObject) -> None:
    content = random.Random(1).randbytes(5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "BLOCK_NBYTES", data.draw(st.sampled_from([16, 100, 4096, 10000])))
        patch.setattr(remote, "LONGEST", data.draw(st.integers(1, 9)))
        patch.setattr(remote, "_KEPT_NBYTES", data.draw(st.sampled_from([0, 200, 10**6])))
        state = objects.State(len(content), 1)
        patch.setattr(objects, "get", lambda base, key, anonymous, start, stop: (content[start:stop], state))
        remote._blocks.clear()
        with remote.Remote.at("s3://bucket/a").open() as stream:
            for _ in range(data.draw(st.integers(1, 12))):
                position = stream.seek(data.draw(st.integers(0, 5100)))
                n = data.draw(st.integers(-1, 3000))
                assert stream.read(n) == (content[position:] if n < 0 else content[position : position + n])
                assert stream.tell() == max(position, min(len(content), stream.tell()))
            assert stream.seek(-7, os.SEEK_END) == len(content) - 7
            assert stream.read() == content[-7:]


class TestServersThatFail:
    @pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.npy", "folder/x.png"])
    def test_nothing_there(self, web: Web, name: str) -> None:
        with pytest.raises(SourceError, match=re.escape(f"{web.url}/{name}: not found (404)")):
            scan(entry(f"{web.url}/{name}"), Path())

    def test_nothing_there_on_s3(self, s3: str) -> None:
        for name in ("a.tar", "folder"):
            with pytest.raises(SourceError, match=f"s3://bucket/{name}: not found"):
                scan(entry(f"{s3}/{name}"), Path())
        with pytest.raises(SourceError, match="s3://nobody-has-this"):
            scan(entry("s3://nobody-has-this/a/"), Path())
        with pytest.raises(SourceError, match=r"no member matches .*it holds 0 files"):
            scan(entry(f"{s3}/folder/"), Path())

    def test_one_member_that_is_gone_and_one_that_is_refused(self, tmp_path: Path, web: Web) -> None:
        files = members(3)
        write_folder(tmp_path / "f", files | {"index": "\n".join([*files, "cat/gone.png"]).encode()})
        made = entry(f"{web.url}/f", index="index")
        listing, found = everything(made)
        assert [reason(sample) for sample in found] == ["", "", "missing", ""]
        assert listing.columns["member"][2] == "cat/gone.png"
        web.status["01.png"] = 403
        with pytest.raises(SourceError, match=r"01\.png: access is refused"):
            samples(made, listing.columns)

    @pytest.mark.parametrize("code", [401, 403])
    def test_access_that_is_refused(self, tmp_path: Path, web: Web, code: int) -> None:
        write_tar(tmp_path / "a.tar", members())
        web.status["a.tar"] = code
        with pytest.raises(SourceError, match=r"a\.tar: access is refused .*cannot log in to web servers: download"):
            scan(entry(f"{web.url}/a.tar"), Path())

    @pytest.mark.parametrize("size", [10, 3_000_000])
    def test_a_server_that_sends_files_only_whole(self, tmp_path: Path, web: Web, size: int) -> None:
        written(tmp_path / "a.npy", npy(np.zeros((1, size, 1), np.uint8)))
        web.ranges = False
        with pytest.raises(SourceError, match=r"a\.npy: the server sends files whole, .*download it"):
            scan(entry(f"{web.url}/a.npy", "arrays"), Path())

    def test_answers_that_break_off_are_continued(self, tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
        write_tar(tmp_path / "a.tar", big)
        made = entry(f"{web.url}/a.tar")
        web.drops = 1
        listing = scan(made, Path())
        assert web.drops == 0
        remote._blocks.clear()
        web.drops = 1
        np.testing.assert_array_equal(np.stack(samples(made, listing.columns)), BIG)
        assert web.drops == 0

    @pytest.mark.parametrize("fault", ["drops", "stalls"])
    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "folder", "npy", "csv.gz"])
    def test_a_server_that_keeps_failing_takes_no_sample_away(
        self, tmp_path: Path, put: Any, web: Web, kind: str, fault: str
    ) -> None:
        """What did not arrive is never quarantined, taken for the end, or made up: the step fails, and is run again."""
        made = put("web", BUILDERS[kind](tmp_path))
        listing, whole = everything(made)
        setattr(web, fault, 1000)
        remote._blocks.clear()
        _open_file.cache_clear()
        with ThreadPoolExecutor(1) as pool:  # a thread of its own has no stream from before
            with pytest.raises(SourceError, match=r"out of reach, also after 1 retries"):
                pool.submit(samples, made, listing.columns).result()
            with pytest.raises(SourceError, match=r"out of reach, also after 1 retries"):
                pool.submit(scan, made, Path()).result()
            setattr(web, fault, 0)
            np.testing.assert_array_equal(
                np.stack(pool.submit(samples, made, listing.columns).result()), np.stack(whole)
            )

    def test_slow_is_not_broken(self, tmp_path: Path, web: Web) -> None:
        write_tar(tmp_path / "a.tar", members())
        web.delay_s = 0.25
        _, found = everything(entry(f"{web.url}/a.tar"))
        assert not [sample for sample in found if isinstance(sample, RecordError)]

    def test_nobody_there(self) -> None:
        with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1/a\.tar: out of reach, .*error sending request"):
            scan(entry("http://127.0.0.1:1/a.tar"), Path())

    def test_a_server_in_trouble(self, tmp_path: Path, web: Web) -> None:
        write_tar(tmp_path / "a.tar", members())
        web.status["a.tar"] = 500
        with pytest.raises(SourceError, match=r"out of reach, .*500 Internal Server Error$"):
            scan(entry(f"{web.url}/a.tar"), Path())
        assert len(web.requests) == 2

    @pytest.mark.parametrize("suffix", ["tar", "zip"])
    def test_an_archive_that_changes_while_it_is_read(
        self, tmp_path: Path, web: Web, big: dict[str, bytes], suffix: str
    ) -> None:
        write = {"tar": write_tar, "zip": write_zip}[suffix]
        path = write(tmp_path / f"a.{suffix}", big)
        archive = open_archive(remote.Remote.at(f"{web.url}/a.{suffix}"))
        remote._blocks.clear()
        write(path, {name: content[::-1] for name, content in big.items()})
        with pytest.raises(SourceError, match="changed while it was read"):
            archive.read("100.png")
        assert open_archive(remote.Remote.at(f"{web.url}/a.{suffix}")).read("100.png") == big["100.png"][::-1]

    def test_a_member_that_changes_after_it_was_listed(self, tmp_path: Path, s3: str) -> None:
        folder = write_folder(tmp_path / "f", members())
        upload(folder, s3)
        archive = open_archive(remote.Remote.at(f"{s3}/f"))
        assert len(archive.names) == len(NAMES)
        written(folder / NAMES[0], png(IMAGES[3]))
        upload(folder, s3)
        with pytest.raises(RecordError, match="changed while it was read") as failure:
            archive.read(NAMES[0])
        assert failure.value.reason == "unreadable"
        assert archive.read(NAMES[1]) == png(IMAGES[1])

    def test_a_server_without_etags_and_dates(self, tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
        web.tags = False
        path = write_tar(tmp_path / "a.tar", members())
        made = entry(f"{web.url}/a.tar")
        np.testing.assert_array_equal(np.stack(everything(made)[1]), IMAGES)
        write_tar(path, big)
        assert len(everything(made)[1]) == len(BIG)  # the size still tells

    def test_empty_files(self, tmp_path: Path, web: Web, s3: str) -> None:
        upload(write_folder(tmp_path / "f", {"a.png": png(IMAGES[0]), "b.png": b"", "sub/c.png": b""}), s3)
        obstore.put(objects._store(s3, False), "f/sub", b"")  # as consoles write it
        _, found = everything(entry(f"{s3}/f"))
        assert [reason(sample) for sample in found] == ["", "unreadable", "unreadable"]
        written(tmp_path / "e.tar", b"")
        with pytest.raises(SourceError, match=r"e\.tar: cannot be listed as \.tar"):
            scan(entry(f"{web.url}/e.tar"), Path())

    def test_a_folder_of_a_web_server(self, tmp_path: Path, web: Web) -> None:
        write_folder(tmp_path / "f", members())
        with pytest.raises(SourceError, match=r"web servers do not list folders; .* index"):
            scan(entry(f"{web.url}/f/"), Path())

    def test_what_is_damaged_is_still_quarantined(self, tmp_path: Path, web: Web) -> None:
        write_tar(tmp_path / "a.tar", {"0.png": png(IMAGES[0]), "1.png": png(IMAGES[1])[:-30], "2.png": b"<html>"})
        _, found = everything(entry(f"{web.url}/a.tar"))
        assert [reason(sample) for sample in found] == ["", "unreadable", "unreadable"]


class TestAccess:
    def test_no_credentials(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        with pytest.raises(
            SourceError, match=r"s3://bucket/a\.tar: no credentials .*AWS_ACCESS_KEY_ID.*anonymous: true"
        ):
            scan(entry(f"{s3}/a.tar"), Path())

    def test_anonymous(self, s3: str, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        content = write_tar(tmp_path / "a.tar", members()).read_bytes()
        for name, access in (("public.tar", "public-read"), ("private.tar", "private")):
            headers = {"x-amz-acl": access, "Content-Type": "application/x-tar"}
            to = urllib.request.Request(f"{moto}/bucket/{name}", content, headers, method="PUT")
            urllib.request.urlopen(to).close()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        np.testing.assert_array_equal(np.stack(everything(entry(f"{s3}/public.tar", anonymous=True))[1]), IMAGES)
        with pytest.raises(SourceError, match=r"private\.tar: access is refused .*AWS_ACCESS_KEY_ID"):
            scan(entry(f"{s3}/private.tar", anonymous=True), Path())

    def test_who_asks_does_not_change_the_samples(self) -> None:
        assert entry("s3://b/a.tar").digest == entry("s3://b/a.tar", anonymous=True).digest
        assert entry("s3://b/a.tar").digest != entry("s3://b/b.tar").digest

    @pytest.mark.parametrize(
        "secret", ["s3://who:hunter2@bucket/a.tar", "https://hunter2@host/a", "https://host/a.tar?X-Signature=hunter2"]
    )
    def test_secrets_in_addresses_are_refused_and_not_shown(self, secret: str, tmp_path: Path) -> None:
        for attempt in (lambda: entry(secret), lambda: load_entry(secret, tmp_path)):
            with pytest.raises(EntryError) as failure:
                attempt()
            assert "hunter2" not in str(failure.value)
            assert re.search("password|plain file", str(failure.value))

    def test_hiding_leaves_the_rest(self) -> None:
        assert hide_secrets("at s3://u:p@b/x and https://h/a?b=c") == "at s3://…@b/x and https://h/a?…"
        assert hide_secrets("a@b? s3://b/a@b") == "a@b? s3://b/a@b"


@pytest.mark.parametrize("scheme", ["gs", "az"])
class TestGoogleAndAzure:
    """Their servers are not here: these tests know them from their documentation."""

    @pytest.fixture(autouse=True)
    def _server(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GOOGLE_BASE_URL", web.url)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", web.url)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "who")

    @pytest.mark.parametrize("name", ["f", "f.tar", "f.zip"])
    def test_same_as_here(self, tmp_path: Path, scheme: str, name: str) -> None:
        write = {"f": write_folder, "f.tar": write_tar, "f.zip": write_zip}[name]
        folder = tmp_path / "bucket" / "below it"
        folder.mkdir(parents=True)
        made = in_folders(write(folder / name, members()))
        listing, found = everything(made)
        url = f"{scheme}://bucket/below it/{name}"
        there, fetched = everything(made.model_copy(update={"location": url, "anonymous": True}))
        same(listing, there)
        np.testing.assert_array_equal(np.stack(fetched), np.stack(found))

    def test_nothing_there_and_no_access(self, tmp_path: Path, web: Web, scheme: str) -> None:
        made = entry(f"{scheme}://bucket/a.tar", anonymous=True)
        with pytest.raises(SourceError, match=r"://bucket/a\.tar: not found \(404\)"):
            scan(made, Path())
        web.status["a.tar"] = 403
        (tmp_path / "bucket").mkdir()
        write_tar(tmp_path / "bucket" / "a.tar", members())
        remedy = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_KEY"}[scheme]
        with pytest.raises(SourceError, match=f"access is refused .*{remedy}"):
            scan(made, Path())

    def test_without_credentials(self, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
        if scheme == "az":
            with pytest.raises(SourceError, match="no credentials in the environment; set AZURE_STORAGE_ACCOUNT_NAME"):
                scan(entry("az://bucket/a.tar"), Path())


class TestLocation:
    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("ftp://host/a.tar", "known addresses begin with s3://, gs://, az://, https://, http://; download"),
            ("file:///a.tar", "known addresses"),
            ("file://x/../a.tar", "known addresses"),
            ("s3://", "expected a bucket after s3://"),
            ("https:///a.tar", "expected a server after https://"),
            ("https://ho st/a.tar", "expected a server"),
            ("s3://bucket/../a.tar", "cannot have '.', '..'"),
            ("https://host/a/%2e%2e/b.tar", "cannot have '.', '..'"),
            ("s3://bucket/a//b.tar", "cannot have .*'//'"),
            ("s3://bucket/a\nb.tar", "control characters"),
            ("https://host/a%0Ab.tar", "control characters"),
            ("https://host/a.tar#x", "plain file"),
        ],
    )
    def test_what_is_no_address(self, location: str, message: str) -> None:
        with pytest.raises(EntryError, match=message):
            entry(location)

    @pytest.mark.parametrize(
        "location",
        [
            *(
                "s3://bucket/a.tar",
                "s3://b/x/",
                "s3://b",
                "gs://b/ä/100%.zip",
                "az://container/a b.npy",
                "s3://b/a?#.zip",
            ),
            *("https://host:8080/a%20b/c%C3%A9.tar", "http://[::1]:80/a.tar", "https://host/~me/a+b,c.tar"),
        ],
    )
    def test_addresses_are_what_they_were(self, location: str) -> None:
        made = entry(location)
        place = remote.Remote.at(made.location)
        assert str(place) == location.removesuffix("/")
        assert remote.Remote.at(str(place) + "/" * place.folder) == place

    def test_index_is_for_urls(self) -> None:
        with pytest.raises(EntryError, match="index: is for folders behind URLs"):
            entry("a", index="index")
        with pytest.raises(EntryError, match="anonymous: is for object stores"):
            entry("https://host/a.tar", anonymous=True)

    @pytest.mark.parametrize("name", ["a b.tar", "100%.tar", "é#?.tar", "a+b~(1),'.tar"])
    @pytest.mark.parametrize("server", KINDS)
    def test_names_of_any_kind(self, tmp_path: Path, put: Any, server: str, name: str) -> None:
        made = in_folders(write_tar(tmp_path / name, members()))
        np.testing.assert_array_equal(np.stack(everything(put(server, made))[1]), IMAGES)
        inside = in_folders(write_folder(tmp_path / "f", {f"{name}/{file}": c for file, c in members().items()}))
        listing, found = everything(put(server, inside))
        assert listing.columns["label"].tolist() == sorted(CLASSES)
        assert not [sample for sample in found if isinstance(sample, RecordError)]

    def test_hidden_files_and_names_beside_do_not_count(self, tmp_path: Path, s3: str) -> None:
        upload(
            write_folder(
                tmp_path / "f", members(2) | {".git/x.png": b"x", "__MACOSX/y.png": b"x", "cat/._0.png": b"x"}
            ),
            s3,
        )
        upload(write_folder(tmp_path / "folder-2", members(1)), s3)
        assert scan(entry(f"{s3}/f"), Path()).columns["member"].tolist() == NAMES[:2]

    def test_keys_that_cannot_be_asked_for(self, s3: str, moto: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{moto}/bucket/f/a%1Bb.png", b"x", method="PUT")).close()
        with pytest.raises(
            SourceError, match=r"s3://bucket/f: names with .* control characters cannot be asked for"
        ) as failure:
            scan(entry(f"{s3}/f/"), Path())
        assert "\x1b" not in str(failure.value)

    @pytest.mark.parametrize("server", KINDS)
    def test_rows_cannot_ask_for_files_outside(self, tmp_path: Path, put: Any, server: str) -> None:
        written(tmp_path / "secret.png", png(IMAGES[0]))
        made = put(server, entry(write_folder(tmp_path / "f", members())))
        rows = {"member": np.array(["../secret.png", "/secret.png"], object), "item": np.zeros(2, int)}
        assert [reason(sample) for sample in samples(made, rows)] == ["missing", "missing"]

    @pytest.mark.parametrize("server", KINDS)
    def test_a_table_beside_the_archive(self, tmp_path: Path, put: Any, web: Web, s3: str, server: str) -> None:
        table = "id,class\n" + "".join(f"{name},{label}\n" for name, label in zip(NAMES, CLASSES, strict=True))
        upload(written(tmp_path / "labels.csv", table.encode()), s3)
        labels = {"table": {"file": "labels.csv", "key": "id", "label": "class"}}
        made = put(server, entry(write_tar(tmp_path / "a.tar", members()), labels=labels))
        assert scan(made, Path()).columns["label"].tolist() == CLASSES
        absent = entry(made.location, labels={"table": {"file": "no.csv", "key": "id"}})
        with pytest.raises(SourceError, match=r"no\.csv is neither in .*a\.tar nor beside it"):
            scan(absent, Path())

    @pytest.mark.parametrize("server", KINDS)
    def test_an_entry_is_inferred(self, tmp_path: Path, put: Any, server: str) -> None:
        url = put(server, entry(write_zip(tmp_path / "My Pets.zip", members()))).location
        made = load_entry(url, tmp_path)
        assert (made.name, made.location, made.labels) == ("my-pets", url, in_folders(tmp_path).labels)
        assert sorted(scan(made, tmp_path).columns["label"]) == sorted(CLASSES)

    def test_the_doctor_names_it_and_asks_nobody(self, tmp_path: Path) -> None:
        from scattercube.flows.doctor import availability

        assert (
            availability(entry("https://192.0.2.1/a.tar"), tmp_path)
            == "elsewhere, not asked now: https://192.0.2.1/a.tar"
        )


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "most"),
    [("kth-tips", 12), ("galaxyzoo2", 8), ("legacysurvey-cutouts", 10), ("librispeech", 8), ("qm7", 10)],
)
def test_real_archives_are_the_same_as_here(real: Path, web: Web, name: str, most: int) -> None:
    made = load_entry(name, real)
    web.root = real
    there = made.model_copy(update={"location": f"{web.url}/{made.location}"})
    listing = scan(made, real)
    same(listing, scan(there, Path()))
    thin = np.unique(np.linspace(0, len(listing.columns["item"]) - 1, 30).astype(int))
    rows = {key: values[thin] for key, values in listing.columns.items()}
    for here, far in zip(samples(made, rows, real), samples(there, rows), strict=True):
        np.testing.assert_array_equal(far, here)
    assert len(web.requests) <= most


def test_workers_load_obstore_only_for_urls() -> None:
    import sys
    from subprocess import run

    code = "import sys; import scattercube.pipeline.sources; print(*sys.modules)"
    loaded = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "obstore" not in loaded


def test_reading_streams(tmp_path: Path, web: Web, big: dict[str, bytes]) -> None:
    """The first sample is there long before the last one is fetched."""
    write_folder(tmp_path / "f", big | {"index": "\n".join(big).encode()})
    made = entry(f"{web.url}/f", index="index")
    rows = scan(made, Path()).columns
    web.requests.clear()
    found = read(made, Path(), rows)
    assert not reason(next(found))
    assert len(web.requests) < 100
