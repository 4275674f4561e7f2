"""The door to obstore: parts of objects of S3, Google and Azure and of files of web servers, and lists of objects.

Stores are made from their address and the environment, in every process anew. Whatever goes wrong comes as a
SourceError that names the URL and the remedy.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from scattercube.pipeline.errors import SourceError

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

RETRIES, WEB_RETRIES = 10, 4  # runs keep their stores in object stores; a web server may just be mistyped
FIRST_PAUSE_S, PAUSE_GROWTH = 0.1, 4  # between them, at random up to so many times the one before: 7 to 70 s in all
RETRY_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S = 10.0, 30.0, 600.0
_ENDPOINTS = {  # variables that name another server than the usual
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
# Machines in a cloud get credentials from these servers; elsewhere it means that the environment has none.
_NOT_LOGGED_IN = ("169.254.169.254", "/latest/api/token", "metadata.google.internal", "must be specified")
_PLAIN = "/~!$&'()*+,;=:@"  # what stands for itself in the path of a URL, beside letters and digits
_PUBLIC = "or write anonymous: true in the entry where everyone may read"
_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (from a profile: `aws configure "
    f"export-credentials --format env`), {_PUBLIC} (AWS_SKIP_SIGNATURE=true where there is no entry)",
    "gs": f"set GOOGLE_APPLICATION_CREDENTIALS, {_PUBLIC}",
    "az": f"set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, {_PUBLIC}",
    "http": "scattercube cannot log in to web servers: download the file, and name the copy",
}


class GoneError(SourceError):
    """There is nothing at the address."""


class ChangedError(SourceError):
    """Something else is at the address than was there before."""


class State(NamedTuple):
    """What a server says of an object.

    Attributes
    ----------
    nbytes, tag
        Its size, and a digest of its ETag or else of when it was changed, 0 where neither is told. These two tell
        versions apart.
    changed_s
        When it was changed, in seconds since 1970; another copy of the same bytes has another. 0 where it is not told.
    """

    nbytes: int
    tag: int
    changed_s: int = 0

    @property
    def version(self) -> tuple[int, int]:
        """What is the same as long as the bytes are."""
        return self.nbytes, self.tag


def address(base: str) -> str:
    """Return the server that is asked for a bucket, as far as the environment names it."""
    if is_web(base):
        return base
    return next((os.environ[name] for name in _ENDPOINTS[base[:2]] if os.environ.get(name)), "https://")


def is_web(base: str) -> bool:
    """Whether this is a web server, which has no list of what it has."""
    return base.startswith(("http://", "https://"))


def get(base: str, key: str, anonymous: bool, start: int, stop: int) -> tuple["Bytes | bytes", State]:
    """Return the bytes from ``start`` to ``stop``, or to the end, and the state of the object they are of.

    Raises
    ------
    GoneError
        There is no such object.
    SourceError
        It cannot be read, or not in parts.
    """
    import obstore

    store = _store(base, anonymous)
    try:
        found = obstore.get(store, key, options={"range": (start, stop)})
        content, state = found.bytes(), _state(found.meta)
    except Exception as failure:
        if "416 Range Not Satisfiable" not in str(failure):
            raise explained(base, key, failure) from failure
    else:
        if found.range != (start, min(stop, state.nbytes)) or len(content) != found.range[1] - start:
            raise SourceError(
                f"{url(base, key)}: asked for bytes {start} to {stop} of {state.nbytes}, the server sent "
                f"{len(content)} bytes from {found.range[0]} on; download the file and name the copy"
            )
        return content, state
    try:
        return b"", _state(obstore.head(store, key))  # no part of an empty object can be asked for
    except Exception as failure:
        raise explained(base, key, failure) from failure


def walk(base: str, folder: str, anonymous: bool) -> Iterator[tuple[str, State]]:
    """Yield the keys of all objects below a folder, and their states. Raises SourceError."""
    import obstore

    try:
        for found in obstore.list(_store(base, anonymous), folder or None, chunk_size=1000):
            yield from ((meta["path"], _state(meta)) for meta in found)
    except Exception as failure:
        raise explained(base, folder, failure) from failure


def url(base: str, key: str) -> str:
    """Return the URL of an object, as it is written in an entry."""
    from urllib.parse import quote

    return f"{base}/{quote(key, safe=_PLAIN) if is_web(base) else key}".removesuffix("/")


def explained(base: str, key: str, failure: Exception) -> SourceError:
    """Say in one sentence what went wrong, where, and what helps."""
    from obstore import exceptions

    where, kind = url(base, key), "http" if is_web(base) else base[:2]
    # The first line speaks to people; servers add pages of XML to it.
    said = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(failure).partition("\n")[0]).partition(": <")[0].rstrip(" :")[:400]
    refusals = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(failure, FileNotFoundError) or "404 Not Found" in said:
        return GoneError(f"{where}: not found (404); correct the address")
    if isinstance(failure, refusals):
        return SourceError(f"{where}: access is refused (401 or 403), or S3 hides that it is absent; {_ACCESS[kind]}")
    if any(words in said for words in _NOT_LOGGED_IN):
        return SourceError(f"{where}: no credentials in the environment; {_ACCESS[kind]}")
    if isinstance(failure, exceptions.NotSupportedError):
        return SourceError(
            f"{where}: the server sends files whole, not in parts (HTTP range requests); download it, and name the copy"
        )
    if isinstance(failure, ValueError | exceptions.InvalidPathError):
        return SourceError(f"{where}: names with '..', '//' or control characters cannot be asked for: {said}")
    if "redirect without LOCATION" in said:
        return SourceError(f"{where}: the bucket is in another region; set AWS_REGION to it")
    return SourceError(f"{where}: out of reach, also after {_retries(where)} retries; try again later: {said}")


def _state(meta: Mapping[str, Any]) -> State:
    changed_s = int(meta["last_modified"].timestamp())
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"') or str(changed_s or "")
    digest = hashlib.sha256(tag.encode("utf-8", "replace")).digest()[:6]  # JSON numbers hold 53 bits
    return State(meta["size"], int.from_bytes(digest, "big") if tag else 0, changed_s)


def _retries(base: str) -> int:
    return min(RETRIES, WEB_RETRIES) if is_web(base) else RETRIES


@lru_cache(maxsize=64)
def _store(base: str, anonymous: bool) -> "ObjectStore":
    from obstore.store import from_url

    seconds = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "timeout": REQUEST_TIMEOUT_S}
    options: ClientConfig = {name: timedelta(seconds=value) for name, value in seconds.items()}  # type: ignore[assignment]
    if address(base).startswith("http://"):
        options["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": _retries(base),
        "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        "backoff": {"init_backoff": timedelta(seconds=FIRST_PAUSE_S), "base": PAUSE_GROWTH},
    }
    unsigned = {"skip_signature": True} if anonymous and not is_web(base) else {}
    try:
        return from_url(base, client_options=options, retry_config=retry, **unsigned)  # type: ignore[call-overload,no-any-return]
    except Exception as failure:
        raise explained(base, "", failure) from failure
