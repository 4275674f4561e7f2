"""Where everything of one entry and one Spec lies under the root of a store: a folder, or a URL of an object store."""

import math
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from scattercube.pipeline.addresses import URL, hide_secrets
from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import Files, files_at
from scattercube.pipeline.stores.opening import Backend, store_at
from scattercube.pipeline.stores.protocol import Store


@dataclass(frozen=True)
class Places:
    """The addresses of one entry and one Spec: absolute paths, or URLs, as the root is.

    Attributes
    ----------
    root
        What holds all entries, ``--store``, as `address` returns it.
    entry_name, spec_digest
        What names the subfolders.
    backend
        What keeps the stores.
    """

    root: str
    entry_name: str
    spec_digest: str
    backend: Backend = "zarr"

    @property
    def entry_file(self) -> str:
        """The resolved catalogue entry, written beside what was made from it."""
        return f"{self.root}/{self.entry_name}/entry.yaml"

    @property
    def chunks(self) -> str:
        """The chunk store: the ingested samples, shared by all Specs."""
        return f"{self.root}/{self.entry_name}/chunks"

    @property
    def cube(self) -> str:
        """The feature cube of this Spec."""
        return f"{self.root}/{self.entry_name}/features/{self.spec_digest}"

    @property
    def chunk_store(self) -> Store:
        """The chunk store, to write and to read."""
        return store_at(self.chunks, self.backend)

    @property
    def cube_store(self) -> Store:
        """The feature cube, to write and to read."""
        return store_at(self.cube, self.backend)

    def lease(self, store: Store) -> Files:
        """Where those who write a store say so."""
        return files_at(f"{store.url}.lease")

    @property
    def ledger(self) -> str:
        """What the archive's members looked like when they were read, Parquet."""
        return f"{self.root}/{self.entry_name}/ledger.parquet"

    @property
    def fit(self) -> str:
        """The folder of the fitted heads and their scores."""
        return f"{self.root}/{self.entry_name}/results/{self.spec_digest}"

    @property
    def heads(self) -> str:
        """The folder of the fitted heads, one in a folder each."""
        return f"{self.fit}/heads"

    @property
    def scores(self) -> str:
        """The scores of the heads, JSON."""
        return f"{self.fit}/scores.json"

    @property
    def page(self) -> str:
        """The report."""
        return f"{self.fit}/report.html"

    @property
    def run_file(self) -> str:
        """What the last run that did any work did: phases, seconds, host, versions."""
        return f"{self.fit}/run.json"


def address(place: str) -> str:
    """Return a place as an absolute path, or as the URL that it is. Raises StoreError where it can be neither."""
    if URL.match(place):
        return files_at(place.rstrip("/")).place
    try:
        return str(Path(place).expanduser().absolute())
    except RuntimeError as failure:
        raise StoreError(f"{place}: {failure}; give a plain path") from failure


def root_address(store: str) -> str:
    """Return the address of a root, ``--store``. Raises StoreError where nothing can be written at such an address."""
    if URL.match(store) and not store.startswith(("s3://", "gs://", "az://")):
        raise StoreError(
            f"--store {hide_secrets(store)}: stores are folders, or below s3://, gs:// or az://; choose one of these"
        )
    return address(store)


def refuse_unwritable(root: str) -> Path | None:
    """Return the nearest folder at or above a root that exists; None where the root is in an object store.

    Raises
    ------
    StoreError
        Nothing can be written there.
    """
    if URL.match(root):
        files, name = files_at(root), f".can-write-{uuid.uuid4().hex[:12]}"
        files.create(name, b"")  # as leases are: whoever may do that may run
        files.remove(name)
        return None
    existing = next(folder for folder in (Path(root), *Path(root).parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as failure:
        raise StoreError(
            f"--store {root}: cannot write in {existing}: {failure.strerror}; choose a folder that you may write to"
        ) from failure


def free_nbytes(root: str) -> float:
    """Return how many bytes can be written under a root, infinity in an object store; StoreError where none can."""
    folder = refuse_unwritable(root)
    return math.inf if folder is None else shutil.disk_usage(folder).free
