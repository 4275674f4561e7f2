"""Batches for training: rows of a feature cube as NumPy arrays, read by the shard, shuffled, shared among ranks."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.features import available_nbytes
from scattercube.pipeline.plan import in_words
from scattercube.pipeline.reading import arrays_of, block, blocks, column, columns_of, feature_cube, place_of
from scattercube.pipeline.stores.protocol import OK, PARTIAL

if TYPE_CHECKING:
    import xarray as xr

Batch = dict[str, np.ndarray]
_READING = 5  # shards that are in memory while one is read: its bytes, its chunks, it, and what of it is wanted
_POLL_S = 0.1  # how soon the reading thread sees that nobody wants more


def iter_batches(
    cube: "str | Path | xr.Dataset",
    batch: int,
    *,
    columns: Sequence[str] = ("label",),
    where: "np.ndarray | xr.DataArray | None" = None,
    partial: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    window: int = 8,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yield the samples of a feature cube that are ok, once each, in batches of NumPy arrays.

    A shard is read whole and once an epoch, but for those that two ranks share: each reads its part of them. With
    ``shuffle``, shards come in a random order and fill a pool with the rows of ``window`` of them, from which each
    batch is drawn at random: a row may meet any other of the cube, and mostly meets those of ``window`` shards. The
    same arguments give the same batches; another epoch gives another order.

    Parameters
    ----------
    cube
        A path or URL, or a Dataset: what ``xr.open_zarr`` returned, perhaps with columns of your own.
    batch
        Samples in a batch.
    columns
        Coordinates of the samples that come along. Texts are arrays of objects.
    where
        (sample,) bool: only these; for instance ``cube.split == "train"``.
    partial
        Also samples of which values are missing: their numbers have NaN, and ``coverage`` comes along.
    shuffle
        Else samples come in the order of the cube.
    rank, world
        Yield the part of one of ``world`` readers. The parts differ by one sample at most; with ``drop_last`` all
        have equally many batches, so that no rank waits for another for ever.
    drop_last
        Leave out what does not fill a batch; else the last one may be shorter.
    window
        Shards that are mixed. Memory is about that of ``window + 6`` shards, with one batch for ``window`` of them
        where that is more, and of ``prefetch + 3`` batches; and the columns, of all samples.
    prefetch
        Batches that a thread prepares ahead; 0 for none, and no thread.

    Yields
    ------
    ``scattering`` (batch, …), ``coverage`` the same, ``sample`` (batch,) int64, the row in the cube, and each column:
    contiguous, writable, and nobody else's, so that ``torch.from_numpy`` takes the numbers as they are.

    Raises
    ------
    PlanError
        An argument is impossible, a column unknown, no sample is left, or the window exceeds the available memory.
    StoreError
        There is no such cube, or it is damaged.

    Examples
    --------
    With PyTorch, where each worker of a ``DataLoader`` is a rank, and of a distributed training one of many::

        class Samples(torch.utils.data.IterableDataset):
            def __init__(self, path, epoch=0):
                self.path, self.epoch = path, epoch

            def __iter__(self):
                info = torch.utils.data.get_worker_info()
                rank, world = (info.id, info.num_workers) if info else (0, 1)
                for found in scattercube.iter_batches(
                    self.path, 256, columns=("target",), epoch=self.epoch, rank=rank, world=world
                ):
                    yield torch.from_numpy(found["scattering"]), torch.from_numpy(found["target"])

        loader = torch.utils.data.DataLoader(Samples("store/qm7/features/8b9f031f2c0c"), batch_size=None, num_workers=2)

    Labels are texts; a network wants numbers, which a column can be made of::

        cube = xr.open_zarr("store/mnist/features/7d1454dfbb62", chunks=None)
        classes, codes = np.unique(cube.label.values, return_inverse=True)
        cube = cube.assign_coords(code=("sample", codes))
        batches = scattercube.iter_batches(cube, 256, columns=("code",), where=cube.split == "train")
    """
    _refuse_impossible(1, batch=batch, world=world, window=window)
    _refuse_impossible(0, rank=rank, prefetch=prefetch, seed=seed, epoch=epoch)
    if rank >= world:
        raise PlanError(f"rank={rank}: of world={world} ranks the last is {world - 1}")
    opened = feature_cube(cube)
    source = _Source.of(opened, columns, where, partial)
    order = np.random.default_rng((seed, epoch)).permutation(len(source.parts)) if shuffle else None
    if drop_last and source.n_rows < world * batch:
        raise PlanError(
            f"{place_of(opened)}: {source.n_rows} samples do not fill a batch of {batch} for each of {world} ranks; "
            "use a smaller batch, or drop_last=False"
        )
    pieces = source.share(order, rank, world, batch if drop_last else None)
    longest = max(len(rows) for rows in source.parts)
    capacity = max(window * longest if shuffle else 0, batch) + longest
    shard = blocks(opened)[0]
    _refuse_what_does_not_fit(opened, source, capacity + _READING * (shard.stop - shard.start) + (prefetch + 3) * batch)
    draw = np.random.default_rng((seed, epoch, rank, world)) if shuffle else None
    found = _batches(source, pieces, batch, _Pool(capacity, draw), drop_last=drop_last)
    return _ahead(found, prefetch) if prefetch else found


def _refuse_impossible(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise PlanError(f"{name}={value}: at least {least}")


@dataclass(frozen=True)
class _Source:
    """What batches are made of.

    Attributes
    ----------
    names
        The arrays of numbers.
    columns
        The columns, of all samples.
    parts
        The rows that are wanted of each shard that has some.
    """

    cube: "xr.Dataset"
    names: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    status: np.ndarray
    parts: list[np.ndarray]

    @classmethod
    def of(
        cls, cube: "xr.Dataset", columns: Sequence[str], where: "np.ndarray | xr.DataArray | None", partial: bool
    ) -> "_Source":
        if unknown := [name for name in columns if name not in columns_of(cube)]:
            raise PlanError(
                f"{place_of(cube)}: no column {unknown[0]!r}; columns=… may name {', '.join(columns_of(cube))}"
            )
        status = column(cube, "status")
        wanted = np.isin(status, (OK, PARTIAL) if partial else (OK,))
        if where is not None:
            chosen = np.asarray(where)
            if chosen.dtype != bool or chosen.shape != wanted.shape:
                raise PlanError(f"where: {chosen.dtype}{chosen.shape}; a bool for each of {len(wanted)} samples")
            wanted &= chosen
        if not wanted.any():
            raise PlanError(
                f"{place_of(cube)}: none of {len(wanted)} samples is wanted, by status or by where: nothing to train on"
            )
        parts = [part.start + np.flatnonzero(wanted[part]) for part in blocks(cube) if wanted[part].any()]
        names = arrays_of(cube) if partial else ("scattering",)
        return cls(cube, names, {name: column(cube, name) for name in columns}, status, parts)

    @property
    def n_rows(self) -> int:
        """How many samples are wanted."""
        return sum(map(len, self.parts))

    def share(self, order: np.ndarray | None, rank: int, world: int, multiple: int | None) -> Iterator[np.ndarray]:
        """Yield what one rank reads of each shard: its part of all rows, in the order of the shards.

        Parts are as long as each other but for one row; with ``multiple`` they are equal, and a multiple of it.
        """
        parts = self.parts if order is None else [self.parts[index] for index in order]
        first, last = rank * self.n_rows // world, (rank + 1) * self.n_rows // world
        if multiple:
            per_rank = self.n_rows // (world * multiple) * multiple
            first, last = rank * per_rank, (rank + 1) * per_rank
        start = 0
        for rows in parts:
            mine = rows[max(0, first - start) : max(0, last - start)]
            start += len(rows)
            if len(mine):
                yield mine

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read some rows of one shard."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        found = block(self.cube, name, slice(start, stop), self.status[start:stop])
        return found if len(rows) == stop - start else found[rows - start]


class _Pool:
    """Rows that wait for their batch, in arrays that are made once; drawn at random, or in order.

    Parameters
    ----------
    capacity
        How many rows there is room for.
    draw
        What draws; None for the order in which they came.
    """

    def __init__(self, capacity: int, draw: np.random.Generator | None) -> None:
        self._capacity, self._draw = capacity, draw
        self._held: Batch = {}
        self._first = self._last = 0

    def __len__(self) -> int:
        return self._last - self._first

    def has_room(self, n: int) -> bool:
        """Whether so many more rows can be put in."""
        return len(self) + n <= self._capacity

    def put(self, arrays: Batch) -> None:
        """Put rows in: (row, …) each."""
        n = len(arrays["sample"])
        if not self._held:
            self._held = {name: np.empty((self._capacity, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
        if self._last + n > self._capacity:  # what was taken from the front makes room
            for held in self._held.values():
                held[: len(self)] = held[self._first : self._last]
            self._first, self._last = 0, len(self)
        for name, values in arrays.items():
            self._held[name][self._last : self._last + n] = values
        self._last += n

    def take(self, n: int) -> Batch:
        """Take rows out, as arrays of their own."""
        if self._draw is None:
            self._first += n
            return {name: held[self._first - n : self._first].copy() for name, held in self._held.items()}
        chosen = self._draw.choice(self._last, n, replace=False)
        found = {name: held[chosen] for name, held in self._held.items()}
        self._last -= n
        holes = chosen[chosen < self._last]  # the last rows fill them
        movers = np.setdiff1d(np.arange(self._last, self._last + n), chosen, assume_unique=True)
        for held in self._held.values():
            held[holes] = held[movers]
        return found


def _batches(
    source: _Source, pieces: Iterator[np.ndarray], batch: int, pool: _Pool, *, drop_last: bool
) -> Iterator[Batch]:
    for rows in pieces:
        while not pool.has_room(len(rows)):
            yield _with_columns(pool.take(batch), source)
        pool.put({"sample": rows} | {name: source.read(name, rows) for name in source.names})
    while len(pool) >= (batch if drop_last else 1):
        yield _with_columns(pool.take(min(batch, len(pool))), source)


def _with_columns(found: Batch, source: _Source) -> Batch:
    return found | {name: values[found["sample"]] for name, values in source.columns.items()}


def _ahead(found: Iterator[Batch], prefetch: int) -> Iterator[Batch]:
    """Yield what a thread makes ahead; it ends with this iterator, and what it meets is raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(prefetch)
    over = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not over.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in found:
                if not put(item):
                    return
            put(None)
        except BaseException as failure:
            put(failure)

    def wait() -> Iterator[Batch]:
        thread = threading.Thread(target=work, name="batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over.set()
            thread.join()

    return wait()


def _refuse_what_does_not_fit(cube: "xr.Dataset", source: _Source, n_rows: int) -> None:
    row_nbytes = sum(cube[name].dtype.itemsize * prod(cube[name].shape[1:]) for name in source.names)
    needed, available = n_rows * row_nbytes, available_nbytes()
    if needed > available:
        raise PlanError(
            f"{place_of(cube)}: batches need {in_words(needed)} and {in_words(available)} are available; "
            "use a smaller window or batch, or prefetch=0"
        )
