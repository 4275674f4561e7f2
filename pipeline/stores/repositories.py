"""The door to Icechunk: repositories on a local disk and on S3, and what goes wrong there, in one sentence.

Repositories are opened from their address and the environment, in every process anew.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.buckets import repeated
from scattercube.pipeline.stores.files import files_at

if TYPE_CHECKING:
    from icechunk import Repository, Storage

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")
MANIFEST_SHARDS = 4096  # of an array that one manifest lists: a commit writes those anew that it touches
FIRST_SNAPSHOT = "snapshots/1CECHNKREP0F1RSTCMT0"  # of every repository, and the first that is written
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ANEW = "choose another --store, or remove this one to make it anew"
_RESUME = "and run the same command again, it resumes"
_ACCESS = f"set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION to what may write there, {_RESUME}"
# An answer has, and the library does not ask again; the third is what a commit says of it, the last is ours.
_BROKEN_OFF = "streaming error|I/O error: |failed to create manifest from chunk stream|no whole answer"
# On an object store the library says so too where the answer broke off that it wanted to look into.
_NOT_THERE = "No (array|group) found in store"
_REMEDIES = {  # what the system, the object store or the library says, and what helps; the first that fits
    r"os error (28|122)\b": f"the disk is full, or the quota used up: free some space {_RESUME}",
    r"os error (1|13)\b": "choose a --store that you may write to",
    r"os error 30\b": "the file system is read-only: choose another --store",
    r"os error (17|20)\b": "a file stands where a folder is needed: choose another --store",
    "clean prefixes": "something is there that no run has made: choose another --store",
    f"{_BROKEN_OFF}|SlowDown|InternalError|ServiceUnavailable|RequestTimeout|ConditionalRequestConflict": (
        f"the object store is in trouble: try again later {_RESUME}"
    ),
    "no providers in chain|provider was not enabled": f"no credentials in the environment: {_ACCESS}",
    r"AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|\b40[13]\b": f"access is refused: {_ACCESS}",
    "NoSuchBucket": "make the bucket, or correct the address",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION to it",
    "dispatch failure|timed? ?out|Connect": f"the object store is out of reach: try again later {_RESUME}",
    "error (writing|deleting|listing) object": (  # a commit does not say why
        f"the object store did not do it: see whether you may write there, or try again later, {_RESUME}"
    ),
}


def library() -> Any:
    """Return the module. Raises StoreError where the extra is not installed."""
    try:
        import icechunk
    except ModuleNotFoundError as absent:
        raise StoreError("Icechunk is not installed: pip install 'scattercube[icechunk]'") from absent
    if "ICECHUNK_LOG" not in os.environ:  # it logs to the standard output; what matters comes as an exception too
        icechunk.set_logs_filter("off")
    return icechunk


def opened(url: str) -> "Repository | None":
    """Open the repository at a URL; None where there is none. Raises StoreError."""
    ice = library()
    if "://" not in url and not (Path(url) / "refs").is_dir():  # Icechunk would make the folder, to look into it
        return None
    with explained(url, "open"):
        storage = _storage(url)
        return ice.Repository.open(storage) if ice.Repository.exists(storage) else None


def created(url: str) -> "Repository":
    """Make an empty repository, or open the one that is there. Raises StoreError."""
    ice = library()
    if (there := opened(url)) is not None:
        return there
    with explained(url, "create"):
        storage = _storage(url)
        _clear_what_was_cut_off(url)
        if "://" not in url:
            Path(url).mkdir(parents=True, exist_ok=True)
        # Format 1 is what the library reads on every Python that we support.
        version = {"spec_version": 1} if int(ice.__version__.split(".")[0]) > 1 else {}
        assure(lambda: ice.Repository.create(storage, **version), lambda: ice.Repository.exists(storage))
        return ice.Repository.open(storage)  # type: ignore[no-any-return]


def split(url: str, shards: Mapping[str, int]) -> "Repository":
    """Say how the manifests of arrays are split along ``sample``, in shards, and open the repository so."""
    ice = library()
    conditions = {
        ice.ManifestSplitCondition.name_matches(f"^{name}$"): {
            ice.ManifestSplitDimCondition.DimensionName("^sample$"): length
        }
        for name, length in shards.items()
    }
    manifest = ice.ManifestConfig(splitting=ice.ManifestSplittingConfig.from_dict(conditions))
    with explained(url, "configure"):
        storage = _storage(url)

        def is_saved() -> bool:
            saved = ice.Repository.fetch_config(storage)
            return saved is not None and saved.manifest == manifest

        repository: Repository = ice.Repository.open(storage, config=ice.RepositoryConfig(manifest=manifest))
        assure(repository.save_config, is_saved)
        return repository


def patiently(method: Callable[_Given, _Answer]) -> Callable[_Given, _Answer]:
    """Let a method begin again where an answer of the object store breaks off: what can be repeated after any end."""

    def passes(failure: Exception) -> bool:
        return isinstance(failure, StoreError) and re.search(_BROKEN_OFF, str(failure)) is not None

    @wraps(method)
    def patient(*args: _Given.args, **named: _Given.kwargs) -> _Answer:
        return repeated(lambda: method(*args, **named), passes)

    return patient


def assure(change: Callable[[], Any], done: Callable[[], bool]) -> None:
    """Change what is changed only where nobody else has: a reference, or the configuration.

    Where an answer of an object store is lost, the library asks again, finds its own change in its way, and takes it
    for another's. So where it fails, we look whether the change is there, and else try once more.
    """
    try:
        change()
    except library().IcechunkError:
        if not done():
            change()


def tip(repository: "Repository", branch: str) -> str | None:
    """Return the snapshot that a branch is at; None where there is no such branch."""
    try:
        return repository.lookup_branch(branch)
    except library().IcechunkError:
        if branch in repository.list_branches():
            raise
        return None


@contextmanager
def committing(url: str) -> Iterator[None]:
    """Let one process at a time change references: on a local disk Icechunk loses commits that race."""
    if "://" in url:  # there it compares and swaps
        yield
        return
    file = Path(url + ".run") / "commit.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as failure:
        raise StoreError(
            f"{file}: cannot lock: {failure.strerror}; choose a --store that you may write to"
        ) from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def explained(url: str, action: str) -> Iterator[None]:
    """Turn whatever the library, Zarr or the ground raises into a StoreError: where, what, why, and the remedy."""
    ice = library()
    try:
        yield
    except StoreError:
        raise
    except ice.ConflictError as failure:
        raise StoreError(
            f"{url}: cannot {action}: another process has committed to it meanwhile; stop the other run, and run the "
            "same command again, it resumes"
        ) from failure
    except (OSError, ValueError, RuntimeError, KeyError, ice.IcechunkError) as failure:
        raise explain(url, action, failure) from failure
    except BaseException as failure:  # version 1 panics where it cannot make a folder
        if type(failure).__name__ != "PanicException":
            raise
        raise explain(url, action, failure) from failure


def explain(url: str, action: str, failure: BaseException) -> StoreError:
    """Say it in one sentence: version 1 draws the chain of causes over many lines, version 2 adds where in its code."""
    text = str(failure)
    chain = re.findall(r"^\s*[|`]-> (.+)$", text, re.MULTILINE)
    said = chain[0] if chain else next((line for line in text.splitlines() if line.strip()), type(failure).__name__)
    if chain and chain[-1] not in said:
        said = f"{said}: {chain[-1]}"
    if "://" in url and re.search(_NOT_THERE, said):
        text = said = "no whole answer says what is there"
    number = getattr(failure, "errno", None) or next(map(int, re.findall(r"os error (\d+)", text)), None)
    clue = f"{text} os error {number} "
    remedy = next(
        (words for sign, words in _REMEDIES.items() if re.search(sign, clue)), f"the store is damaged: {_ANEW}"
    )
    said = re.sub(r"^\s*[x×] ", "", said)[:300].strip(". ")
    error = StoreError(f"{url}: cannot {action}: {said}; {remedy}")
    error.errno = number  # whoever tries again asks for it
    return error


def _storage(url: str) -> "Storage":
    ice = library()
    if "://" not in url:
        return ice.local_filesystem_storage(url)  # type: ignore[no-any-return]
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        raise StoreError(f"{url}: Icechunk stores are folders or s3:// so far; choose one of these")
    bucket, _, prefix = rest.strip("/").partition("/")
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    return ice.s3_storage(  # type: ignore[no-any-return]
        bucket=bucket,
        prefix=prefix or None,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=endpoint,
        allow_http=endpoint is not None and endpoint.startswith("http://"),
        force_path_style=endpoint is not None,  # other servers than Amazon's have no name for each bucket
        from_env=True,
    )


def _clear_what_was_cut_off(url: str) -> None:
    """Remove the first snapshot where nothing else is: making the repository was cut off there."""
    files = files_at(url)
    names = list(islice(files.names(), 10))
    if all(name.startswith(FIRST_SNAPSHOT) for name in names):
        for name in names:
            files.remove(name)
