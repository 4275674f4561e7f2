"""An object store that fails: a proxy in front of one, which loses, cuts, delays and refuses what it is told to.

    python -m tests.faulty_s3 --faults 300 --backend zarr --seed 1

writes stores through the proxy, each of three versions with marks, while every request meets a fault with probability
0.1, until so many faults are counted; every so many stores (``--lasting``) meet one that lasts, after which the same
steps are made again. Each store is compared with one that nobody disturbed: of
plain Zarr, names and bytes of all objects; of Icechunk, whose names are random, all that a reader and the journal get.
Leases of both are taken and released around. Totals are printed, and every sentence that a user would have read. Exit
code 1 where a store is not right.

For a process of its own, `Proxy` is a server like any other: ``AWS_ENDPOINT_URL=proxy.url`` and, as it speaks no TLS,
``AWS_ALLOW_HTTP=true``. Rules can be changed while it serves.
"""

import argparse
import http.client
import itertools
import logging
import os
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.stores.files import files_at
from scattercube.pipeline.stores.lease import Holder, Lease
from scattercube.pipeline.stores.opening import Backend, store_at
from scattercube.pipeline.stores.protocol import REMOVED, SUPERSEDED
from tests.test_stores import BACKENDS, template, write

Kind = Literal["slow down", "error", "reset", "lost", "short", "conflict", "late", "forbidden", "gone"]
TRANSIENT: tuple[Kind, ...] = ("slow down", "error", "reset", "lost", "short", "conflict", "late")
_ANSWERS: dict[Kind, tuple[int, str]] = {
    "slow down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "conflict": (409, "ConditionalRequestConflict"),
    "forbidden": (403, "AccessDenied"),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}  # the proxy says its own


@dataclass(frozen=True)
class Rule:
    """Which requests meet a fault.

    Attributes
    ----------
    kind
        ``slow down`` (503) and ``error`` (500) before the request is carried out; ``reset``: the connection, before;
        ``lost``: the connection, after it is carried out, in place of the answer; ``short``: half of the answer's body,
        and then a reset (of an answer without a body, the whole is lost); ``conflict`` (409): of a request with a
        condition, that another one is under way; ``late``: `Proxy.latency_s` later; ``forbidden`` (403); ``gone``:
        nobody listens any more, in the midst of whatever is asked, and connections are reset as they are made.
    method, path
        Regular expressions that the method matches, and that are found in the path with its query.
    first, count, every
        Of the requests that match, which is the first that it befalls, from 1, and how many do from there (None: all),
        or only every so many. With 2 it is each request once, and not when it is made again.
    probability
        How many of those it befalls.
    """

    kind: Kind
    method: str = ".*"
    path: str = ""
    first: int = 1
    count: int | None = 1
    every: int = 1
    probability: float = 1.0


class Proxy(ThreadingHTTPServer):
    """An object store on 127.0.0.1 that is another one, but for some faults: a context manager, which serves.

    Parameters
    ----------
    target
        The URL of the object store.
    seed
        Of what befalls a request by chance.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str, *rules: Rule, seed: int = 0, latency_s: float = 0.3) -> None:
        self.target, self.latency_s = urlsplit(target).netloc, latency_s
        self.faults: Counter[Kind] = Counter()
        self.n_requests = 0
        self.told: list[tuple[Kind, str]] = []  # the faults in order: kind, method and path
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._gone = False
        self.meet(*rules)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """The address to ask in place of the object store's."""
        return "http://{}:{}".format(*self.server_address)

    def meet(self, *rules: Rule) -> None:
        """Let requests meet these faults from now on, and no others; what was gone is there again."""
        with self._lock:
            self._rules, self._matched, self._gone = rules, [0] * len(rules), False

    def fault(self, method: str, path: str, conditional: bool) -> Kind | None:
        """Return what befalls a request: what the first rule says that applies to it."""
        with self._lock:
            self.n_requests += 1
            if self._gone:
                return "gone"
            for number, rule in enumerate(self._rules):
                if not (re.fullmatch(rule.method, method) and re.search(rule.path, path)):
                    continue
                if (rule.kind == "short" and method != "GET") or (rule.kind == "conflict" and not conditional):
                    continue
                self._matched[number] += 1
                since = self._matched[number] - rule.first
                if since < 0 or since % rule.every or (rule.count is not None and since >= rule.count * rule.every):
                    continue
                if rule.probability < 1 and self._chance.random() >= rule.probability:
                    continue
                self._gone = rule.kind == "gone"
                self.faults[rule.kind] += 1
                self.told.append((rule.kind, f"{method} {path}"))
                return rule.kind
        return None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take no connection where the store is gone."""
        if self._gone:
            _make_reset(request)
        return not self._gone

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; the usual goodbye before would hide that it is reset."""
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> Self:
        self._serving = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._serving.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out at once
    disable_nagle_algorithm = True
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.target)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def serve(self) -> None:
        body = self._body()
        conditional = self.command == "PUT" and ("If-None-Match" in self.headers or "If-Match" in self.headers)
        kind = self.server.fault(self.command, self.path, conditional)
        if kind in ("reset", "gone"):
            return self._reset()
        if kind in _ANSWERS:
            return self._refuse(*_ANSWERS[kind])
        if kind == "late":
            time.sleep(self.server.latency_s)
        # Host stays as it is: signatures cover it, for whoever checks them.
        self.upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = self.upstream.getresponse()
        content = answer.read()
        if kind == "lost" or (kind == "short" and len(content) < 2):
            return self._reset()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", answer.getheader("Content-Length", "0"))
        elif answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if kind == "short" else content)
        if kind == "short":
            self.wfile.flush()
            time.sleep(0.02)  # a reset takes with it what the other side has not read yet
            self._reset()
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while nbytes := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(nbytes))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        del self.headers["Transfer-Encoding"]
        return b"".join(parts)

    def _refuse(self, status: int, code: str) -> None:
        content = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content.encode())

    def _reset(self) -> None:
        _make_reset(self.connection)
        self.close_connection = True


def _make_reset(connection: socket.socket) -> None:
    """Let a connection end by a reset when it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


VERSIONS: tuple[tuple[int, int, dict[int, int]], ...] = (
    (0, 10, {}),
    (10, 13, {1: SUPERSEDED, 9: REMOVED}),
    (13, 25, {2: REMOVED}),
)
"""The rows before each version of a store, with it, and what it marks."""
_WHEN = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


def write_store(url: str, backend: Backend, versions: Any = VERSIONS) -> None:
    """Write a store as a run does, under a lease, or go on with it: the same steps, whatever was done before."""
    store = store_at(url, backend)
    with Lease.take(files_at(f"{url}.lease"), url) as lease:
        for first, n, marks in versions:
            n_published = max((version.n_rows for version in store.versions()), default=0)
            if n_published > n:
                continue
            grid = Grid.of_samples(n, shard=4, chunk=2).behind(first)
            store.begin(template(n), first)
            if store.published:
                continue
            store.mark(marks)
            for key in store.missing(grid.keys):
                lease.confirm()
                write(store, grid, [key])
            lease.confirm()
            store.publish(f"{n} rows")


def content(url: str, backend: Backend) -> dict[str, Any]:
    """Return all that must not differ between two stores: what readers get, and of plain Zarr all objects, too."""
    store = store_at(url, backend)
    found: dict[str, Any] = {"events": store.events(), "damage": list(store.verify()), "published": store.published}
    found["versions"] = [(version.number, version.n_rows, version.note) for version in store.versions()]
    for version in store.versions():
        for name, variable in store.open(str(version.number)).load().variables.items():
            values = np.asarray(variable.values)
            numbers = values.tolist() if values.dtype.kind in "OTU" else values.tobytes()
            found[f"{name} of {version.number}"] = (variable.dims, variable.attrs, str(values.dtype), numbers)
    if backend == "icechunk":  # ``events`` has the last word on each key alone
        history = store._history  # type: ignore[attr-defined]
        found["recorded"] = [event for _, events in history.recorded() for event in events]
    else:
        for place in (url, f"{url}.run"):
            files = files_at(place)
            found |= {
                f"{place.removeprefix(url)}/{name}": _WHEN.sub(b"then", files.read(name) or b"")
                for name in files.names()
            }
    leases = files_at(f"{url}.lease")
    holders = [Holder.parse(leases.read(name) or b"") for name in leases.names()]
    found["leases"] = [holder is not None and holder.released for holder in holders]
    return found


def differences(found: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    """Name what is not the same in the contents of two stores."""
    return sorted(name for name in found.keys() | truth.keys() if found.get(name) != truth.get(name))


@contextmanager
def _object_store() -> Iterator[str]:
    """Run an object store with an empty bucket, and give this process the right to it; yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    access = {"ACCESS_KEY_ID": "who", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    os.environ.update({f"AWS_{name}": value for name, value in access.items()})
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
    try:
        yield url
    finally:
        server.stop()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faulty_s3", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=300, help="how many, before it ends")
    parser.add_argument("--backend", choices=BACKENDS, default="zarr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lasting", type=int, default=7, help="every so many stores, one that lasts; 0: none")
    options = parser.parse_args()
    rng, sentences, wrong = random.Random(options.seed), Counter[str](), 0
    by_chance = [Rule(kind, count=None, probability=0.1 / len(TRANSIENT)) for kind in TRANSIENT]
    with _object_store() as target, Proxy(target, seed=options.seed) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        write_store("s3://bucket/undisturbed", options.backend)
        n_requests, truth = proxy.n_requests, content("s3://bucket/undisturbed", options.backend)
        proxy.n_requests = 0
        for number in itertools.count(1):
            url, n_sentences = f"s3://bucket/store-{number}", 0
            lasting: list[Rule] = []
            if options.lasting and number % options.lasting == 0:
                kind: Kind = rng.choice(("gone", "forbidden", "slow down", "lost"))
                lasting = [Rule(kind, first=rng.randrange(1, n_requests), count=None)]
            proxy.meet(*lasting, *by_chance)
            while True:
                try:
                    write_store(url, options.backend)
                    break
                except StoreError as failure:
                    told = str(failure).replace(url, "s3://bucket/cube").replace(proxy.url, "http://127.0.0.1:9000")
                    told = re.sub(r"\b\d+\.\d+(?=m?s\b)", "…", told)
                    sentences[told] += 1
                    n_sentences += 1
                    if n_sentences > 9:
                        break
                    proxy.meet(*by_chance)
            proxy.meet()
            if differ := differences(content(url, options.backend), truth):
                wrong += 1
                print(f"{url}: {', '.join(differ)}", flush=True)
            if proxy.faults.total() >= options.faults:
                break
        print(f"requests: {proxy.n_requests}; stores compared: {number}, wrong: {wrong}")
        print(
            "faults:", ", ".join(f"{kind} {n}" for kind, n in sorted(proxy.faults.items())), "=", proxy.faults.total()
        )
        for sentence, n in sentences.most_common():
            print(f"{n} x {sentence}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
