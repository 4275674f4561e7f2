"""Where everything of one entry and one Spec lies under the root of a store."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import Files, files_at
from scattercube.pipeline.stores.opening import Backend, store_at
from scattercube.pipeline.stores.protocol import Store


@dataclass(frozen=True)
class Places:
    """The paths of one entry and one Spec.

    Attributes
    ----------
    root
        The folder that holds all entries, ``--store``.
    entry_name, spec_digest
        What names the subfolders.
    backend
        What keeps the stores.
    """

    root: Path
    entry_name: str
    spec_digest: str
    backend: Backend = "zarr"

    @property
    def entry_file(self) -> Path:
        """The resolved catalogue entry, written beside what was made from it."""
        return self.root / self.entry_name / "entry.yaml"

    @property
    def chunks(self) -> Path:
        """The chunk store: the ingested samples, shared by all Specs."""
        return self.root / self.entry_name / "chunks"

    @property
    def cube(self) -> Path:
        """The feature cube of this Spec."""
        return self.root / self.entry_name / "features" / self.spec_digest

    @property
    def chunk_store(self) -> Store:
        """The chunk store, to write and to read."""
        return store_at(str(self.chunks), self.backend)

    @property
    def cube_store(self) -> Store:
        """The feature cube, to write and to read."""
        return store_at(str(self.cube), self.backend)

    def lease(self, store: Store) -> Files:
        """Where those who write a store say so."""
        return files_at(f"{store.url}.lease")

    @property
    def ledger(self) -> Path:
        """What the archive's members looked like when they were read, Parquet."""
        return self.root / self.entry_name / "ledger.parquet"

    @property
    def fit(self) -> Path:
        """The folder of the fitted heads and their scores."""
        return self.root / self.entry_name / "results" / self.spec_digest

    @property
    def scores(self) -> Path:
        """The scores of the heads, JSON."""
        return self.fit / "scores.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.fit / "report.html"

    @property
    def run_file(self) -> Path:
        """What the last run that did any work did: phases, seconds, host, versions."""
        return self.fit / "run.json"


def refuse_unwritable(root: Path) -> Path:
    """Return the nearest folder above ``root`` that exists; raises StoreError when nothing can be written there."""
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as failure:
        raise StoreError(
            f"--store {root}: cannot write in {existing}: {failure.strerror}; choose a folder that you may write to"
        ) from failure


def local_root(store: str) -> Path:
    """Return the root as an absolute path; raises StoreError for a URL, because stores are local folders so far."""
    if "://" in store:
        raise StoreError(f"--store {store}: stores are local folders so far; give a path (a mounted bucket will do)")
    try:
        return Path(store).expanduser().absolute()
    except RuntimeError as failure:
        raise StoreError(f"--store {store}: {failure}; give a plain path") from failure
