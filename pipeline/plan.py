"""The arithmetic before the work: keys, shard grids, predicted bytes, and the refusals.

Integers in, integers out: nothing here opens an archive or a store.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Self

import numpy as np

from scattercube.kernels import Scattering2D
from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.places import refuse_unwritable
from scattercube.pipeline.spec import Spec

SHARD_NBYTES = 16 << 20  # what one task writes: within the 8 to 64 MB that file systems and object stores like
CHUNK_NBYTES = 512 << 10  # what a reader fetches at least
SMALL_SHARD_NBYTES = 1 << 20  # a small archive is cut finer, down to this, so that all workers have something to do
SMALL_ARCHIVE_SHARDS = 16
PROCESS_NBYTES = 130 << 20  # a worker that has imported what it needs and holds nothing yet


@dataclass(frozen=True, order=True)
class ChunkKey:
    """The address of one piece of work: where its shard starts along each dimension that is cut."""

    offsets: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return ",".join(f"{dim}={offset}" for dim, offset in self.offsets)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read back what ``str(key)`` wrote."""
        pairs = re.findall(r"([a-z_]+)=(\d+)", text)
        return cls(tuple((dim, int(offset)) for dim, offset in pairs))


@dataclass(frozen=True)
class Grid:
    """How an array is cut along ``sample``: ``shard`` samples are written at once, ``chunk`` are read at once."""

    n_samples: int
    shard: int
    chunk: int

    @property
    def keys(self) -> tuple[ChunkKey, ...]:
        """One key a shard, in order."""
        return tuple(ChunkKey((("sample", start),)) for start in range(0, self.n_samples, self.shard))

    def region(self, key: ChunkKey) -> slice:
        """Return the samples that belong to a key."""
        start = dict(key.offsets)["sample"]
        return slice(start, min(start + self.shard, self.n_samples))


def sample_grid(n_samples: int, sample_nbytes: int) -> Grid:
    """Choose the shard grid from the size of one sample. It depends on nothing else, so every run cuts alike."""
    chunk = max(1, min(CHUNK_NBYTES // sample_nbytes, n_samples))
    wanted = max(1, SHARD_NBYTES // sample_nbytes)
    fine = max(1, SMALL_SHARD_NBYTES // sample_nbytes, ceil(n_samples / SMALL_ARCHIVE_SHARDS))
    shard = min(wanted, fine)
    chunk = min(chunk, shard)
    return Grid(n_samples, shard=chunk * ceil(shard / chunk), chunk=chunk)


@dataclass(frozen=True)
class Plan:
    """What a run will do, before it does it.

    Attributes
    ----------
    signal_shape, feature_shape
        Shapes of the two arrays, ``(sample, [channel,] y, x)`` and ``(sample, [channel,] path, y, x)``.
    signal_grid, feature_grid
        How they are cut.
    signal_nbytes, feature_nbytes
        Uncompressed sizes.
    worker_nbytes
        The largest predicted memory of one worker that runs one task at a time.
    """

    signal_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    signal_grid: Grid
    feature_grid: Grid
    signal_nbytes: int
    feature_nbytes: int
    worker_nbytes: int


def scattering(spec: Spec, shape: tuple[int, int]) -> Scattering2D:
    """Build the transform of a Spec for images of ``shape``; raises PlanError when they do not fit each other."""
    try:
        return Scattering2D(
            spec.J, shape=shape, L=spec.L, max_order=spec.max_order, padding=spec.padding, dtype=spec.dtype
        )
    except ValueError as failure:
        raise PlanError(f"{failure}") from failure


def plan(spec: Spec, n_samples: int, sample_shape: tuple[int, ...], dtype: np.dtype) -> Plan:
    """Work out the shapes, grids and bytes of a run over ``n_samples`` samples of ``sample_shape`` and ``dtype``."""
    transform = scattering(spec, (sample_shape[-2], sample_shape[-1]))
    lead = sample_shape[:-2]
    feature_sample = (*lead, *transform.output_shape)
    signal_nbytes = prod(sample_shape) * dtype.itemsize
    feature_nbytes = prod(feature_sample) * np.dtype(spec.dtype).itemsize
    signal_grid = sample_grid(n_samples, signal_nbytes)
    feature_grid = sample_grid(n_samples, feature_nbytes)
    # Extraction holds the signals of a shard, also as the transform takes them, and its features. To these come on the
    # CPU the transform's own arrays, then the shard once more while it is encoded; with a GPU that, and pinned copies.
    image_nbytes = prod(sample_shape) * np.dtype(spec.dtype).itemsize
    held = feature_grid.shard * (signal_nbytes + 2 * image_nbytes + feature_nbytes)
    pinned = feature_grid.shard * (image_nbytes + feature_nbytes)
    extract = held + max(
        transform.nbytes(feature_grid.shard * prod(lead)), pinned + feature_grid.shard * feature_nbytes
    )
    ingest = 3 * signal_grid.shard * signal_nbytes
    return Plan(
        signal_shape=(n_samples, *sample_shape),
        feature_shape=(n_samples, *feature_sample),
        signal_grid=signal_grid,
        feature_grid=feature_grid,
        signal_nbytes=n_samples * signal_nbytes,
        feature_nbytes=n_samples * feature_nbytes,
        worker_nbytes=PROCESS_NBYTES + max(extract, ingest),
    )


def refuse_what_cannot_fit(
    plan: Plan, root: Path, missing_nbytes: int, worker_memory_nbytes: int | None, threads: int
) -> None:
    """Raise PlanError when the disk under ``root`` or a worker's memory is too small, StoreError when it is read-only.

    ``missing_nbytes`` is what is still to be written, uncompressed: compression is a gain that nobody can promise.
    """
    free = shutil.disk_usage(refuse_unwritable(root)).free
    if missing_nbytes > free:
        raise PlanError(
            f"{root}: the run may write {in_words(missing_nbytes)} and {in_words(free)} are free; "
            "choose another --store, a larger J, fewer orders, or --limit N"
        )
    needed = PROCESS_NBYTES + threads * (plan.worker_nbytes - PROCESS_NBYTES)
    if worker_memory_nbytes is not None and needed > worker_memory_nbytes:
        raise PlanError(
            f"a worker needs about {in_words(needed)} ({threads} keys at a time) and may use "
            f"{in_words(worker_memory_nbytes)}; raise `memory` in the cluster file, or use fewer workers or threads, "
            "smaller images or a larger J"
        )


def ranges(keys: tuple[ChunkKey, ...], most: int = 20, least: int = 16) -> list[tuple[ChunkKey, ...]]:
    """Cut keys into at most about ``most`` contiguous ranges of at least ``least`` keys: one orchestrated task each."""
    length = max(least, ceil(len(keys) / most))
    return [keys[start : start + length] for start in range(0, len(keys), length)]


def in_words(nbytes: float) -> str:
    """Write a number of bytes for people, with three significant figures."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def extent(grid: Grid) -> Mapping[str, int]:
    """Return the grid as plain numbers, for attributes and digests."""
    return {"n_samples": grid.n_samples, "shard": grid.shard, "chunk": grid.chunk}
