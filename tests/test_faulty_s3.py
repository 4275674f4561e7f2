"""What an object store's faults do to stores: nothing, where they pass; one sentence, where they last."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.sources.archives import objects
from scattercube.pipeline.stores import buckets
from scattercube.pipeline.stores.files import Files, files_at
from scattercube.pipeline.stores.lease import Lease
from scattercube.pipeline.stores.opening import Backend
from tests.faulty_s3 import TRANSIENT, VERSIONS, Proxy, Rule, content, differences, write_store
from tests.test_stores import BACKENDS


@pytest.fixture
def proxy(moto: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The object store of `bucket`, seen through a proxy; who asks it waits for less than usual."""
    monkeypatch.setattr(objects, "RETRIES", 4)
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.005)
    with Proxy(moto, seed=1, latency_s=0.02) as serving:
        monkeypatch.setenv("AWS_ENDPOINT_URL", serving.url)
        objects._store.cache_clear()
        yield serving


@pytest.fixture
def files(proxy: Proxy, bucket: str) -> Files:
    return files_at(f"{bucket}/files")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "icechunk":
        pytest.importorskip("icechunk", reason="Icechunk is an extra")
    return request.param


_truths: dict[Backend, dict[str, Any]] = {}


def write_some(url: str, backend: Backend) -> None:
    """Write a store, or go on with it: of as many versions as there is time for."""
    write_store(url, backend, VERSIONS[: {"zarr": 2, "icechunk": 1}[backend]])


def wrong(proxy: Proxy, url: str, backend: Backend) -> list[str]:
    """Name what of a store is not as in one that nobody has disturbed."""
    proxy.meet()
    if backend not in _truths:
        write_some(f"{url} undisturbed", backend)
        _truths[backend] = content(f"{url} undisturbed", backend)
    return differences(content(url, backend), _truths[backend])


def all_answers(files: Files, number: int) -> list[object]:
    """What each method says, of files of a name of its own."""
    name = f"d{number}/x"
    said: list[object] = [files.read(name), files.write(name, b"0123", b"456789"), files.read(name)]
    said += [
        files.read_end(name, 4),
        files.size(name),
        [found.rpartition("/")[2] for found in files.names(f"d{number}/")],
    ]
    end = files.append(f"d{number}/log", b"1\n")
    said += [end, files.append(f"d{number}/log", b"2\n", end), files.append(f"d{number}/log", b"3\n")]
    said += [list(files.lines(f"d{number}/log")), files.folders(f"d{number}"), len(list(files.names(f"d{number}/x")))]
    files.forget(f"d{number}/log")
    files.remove(name)
    return [*said, list(files.names(f"d{number}/"))]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_request_that_fails_once_does_what_it_does(proxy, files, kind):
    truth = all_answers(files, 0)
    n_requests = proxy.n_requests
    proxy.meet(Rule(kind, every=1 if kind == "late" else 2, count=None))
    assert all_answers(files, 1) == truth
    assert proxy.faults[kind] >= {"conflict": 3, "short": 8}.get(kind, n_requests), (
        "each request, but for its repetition"
    )


def test_who_creates_is_not_refused_for_its_own_file(proxy, files):
    for number, kind in enumerate(("lost", "reset", "conflict", "error")):
        proxy.meet(Rule(kind, "PUT"))
        created = files.create(f"file {number}", b"mine")
        assert files.read(f"file {number}") == b"mine"
        assert created or kind == "lost"
        assert not files.create(f"file {number}", b"another's")
        assert files.read(f"file {number}") == b"mine"


def test_a_list_that_breaks_off_goes_on_behind_what_it_has_had(proxy, files, monkeypatch):
    monkeypatch.setattr(buckets, "_PAGE", 3)
    names = [f"d/{number}" for number in range(8)]
    for name in names:
        files.write(name, b"abc")
    proxy.meet(Rule("short", "GET", "list-type", every=2, count=None))
    assert list(files.names("d/")) == names
    assert files.nbytes() == 24
    assert proxy.faults["short"] == 6


@pytest.mark.parametrize("kind", ["lost", "reset", "conflict", "slow down"])
def test_of_many_who_take_a_lease_one_holds_it(proxy, bucket, kind):
    proxy.meet(Rule(kind, "PUT", every=2, count=None))
    held, refused = [], []

    def take() -> None:
        try:
            held.append(Lease.take(files_at(f"{bucket}/cube.lease"), "the cube"))
        except StoreError as failure:
            refused.append(str(failure))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 5
    assert all("another run is writing here" in sentence for sentence in refused)
    held[0].confirm()
    held[0].release()
    Lease.take(files_at(f"{bucket}/cube.lease"), "the cube").release()


# What changes only where nobody else has changed it: every first answer is lost, as if another had been quicker.
CONDITIONAL = {"zarr": "lease|journal", "icechunk": "lease|refs/|config"}


@pytest.mark.parametrize("kind", ["lost", "conflict"])
def test_a_run_is_not_taken_for_another_one(proxy, bucket, backend, kind):
    proxy.meet(Rule(kind, "PUT", CONDITIONAL[backend], every=2, count=None))
    write_some(f"{bucket}/cube", backend)
    assert proxy.faults[kind] >= {"zarr": 5, "icechunk": 8}[backend]
    assert wrong(proxy, f"{bucket}/cube", backend) == []
    assert _truths[backend]["damage"] == []
    assert _truths[backend]["leases"] == [True]


def test_faults_at_random_leave_the_store_of_an_undisturbed_run(proxy, bucket, backend):
    proxy.meet(*(Rule(kind, count=None, probability=0.1 / len(TRANSIENT)) for kind in TRANSIENT))
    write_some(f"{bucket}/cube", backend)
    assert proxy.faults.total() >= 10
    assert wrong(proxy, f"{bucket}/cube", backend) == []


@pytest.mark.parametrize("part", ["snapshots", "manifests", "chunks", "transactions"])
def test_what_breaks_off_is_not_taken_for_absent(proxy, bucket, part):
    pytest.importorskip("icechunk", reason="Icechunk is an extra")
    proxy.meet(Rule("short", "GET", f"cube/{part}/", every=2, count=None))
    write_some(f"{bucket}/cube", "icechunk")
    assert proxy.faults["short"] >= {"snapshots": 2}.get(part, 0)
    assert wrong(proxy, f"{bucket}/cube", "icechunk") == []


AGAIN = r"out of reach, also after 4 retries; try again later: "
LASTING = [
    ("gone", 1, AGAIN),
    ("gone", 50, AGAIN),
    ("slow down", 70, AGAIN + ".*503"),
    ("lost", 30, AGAIN),
    ("forbidden", 90, r"access is refused \(401 or 403\); set AWS_ACCESS_KEY_ID"),
]


@pytest.mark.parametrize(("kind", "first", "sentence"), LASTING)
def test_what_lasts_is_said_in_a_sentence_and_the_same_steps_end_it(proxy, bucket, kind, first, sentence):
    proxy.meet(Rule(kind, first=first, count=None))
    begun = time.monotonic()
    with pytest.raises(StoreError, match=rf"^{bucket}/cube[^ ]*: cannot [^;\n]*: {sentence}[^\n]*$"):
        write_some(f"{bucket}/cube", "zarr")
    assert time.monotonic() - begun < 10
    proxy.meet()
    write_some(f"{bucket}/cube", "zarr")
    assert wrong(proxy, f"{bucket}/cube", "zarr") == []


WHERE = {
    "refs/branch.run": "see whether you may write there, or try again later, and run the same command again",
    "config": "access is refused: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
}


@pytest.mark.parametrize("path", WHERE)
def test_icechunk_says_what_lasts_too(proxy, bucket, path):
    pytest.importorskip("icechunk", reason="Icechunk is an extra")
    proxy.meet(Rule("forbidden", "PUT", f"cube/{path}", first=4 if "refs" in path else 1, count=None))
    with pytest.raises(StoreError, match=rf"^{bucket}/cube: cannot [^\n]*; [^\n]*{WHERE[path]}[^\n]*$"):
        write_some(f"{bucket}/cube", "icechunk")
    proxy.meet()
    write_some(f"{bucket}/cube", "icechunk")
    assert wrong(proxy, f"{bucket}/cube", "icechunk") == []
