"""How arrays are cut into shards, and the keys of these: one key, one shard, one atomic write."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, Self, overload

import numpy as np


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
    """How arrays are cut along some of their dims: into shards, written at once, and these into chunks, read at once.

    Attributes
    ----------
    dims, sizes
        The dims that are cut, ``sample`` first, and how long they are.
    shard, chunk
        Along each, the length of a shard, and that of a chunk, a divisor of it.
    first
        How many samples there are already: keys are of those behind them. The first may start inside a shard.
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    first: int = 0

    @classmethod
    def of_samples(cls, n_samples: int, shard: int, chunk: int) -> Self:
        """Cut along ``sample`` only."""
        return cls(("sample",), (n_samples,), (shard,), (chunk,))

    @classmethod
    def of_extent(cls, extent: Mapping[str, Any], n_samples: int) -> Self:
        """Read back what `extent` wrote, for so many samples."""
        dims, shard, chunk = (tuple(extent[name]) for name in ("dims", "shard", "chunk"))
        return cls(dims, (n_samples, *extent["sizes"]), shard, chunk)

    @property
    def counts(self) -> tuple[int, ...]:
        """Shards along each dim that keys write in."""
        counts = [ceil(size / shard) for size, shard in zip(self.sizes, self.shard, strict=True)]
        new = counts[0] - self.first // self.shard[0] if self.first < self.sizes[0] else 0
        return (new, *counts[1:])

    @property
    def keys(self) -> "Keys":
        """One key a shard, in order: the last dim changes fastest."""
        return Keys(self, range(prod(self.counts)))

    def region(self, key: ChunkKey) -> dict[str, slice]:
        """Return what belongs to a key along each dim that is cut."""
        return {
            dim: slice(start, min(start // shard * shard + shard, size))
            for (dim, start), shard, size in zip(key.offsets, self.shard, self.sizes, strict=True)
        }

    def key(self, number: int) -> ChunkKey:
        """Return the key of this number."""
        sample, *place = np.unravel_index(number, self.counts)
        starts = [max(self.first, (int(sample) + self.first // self.shard[0]) * self.shard[0])]
        starts += [int(index) * shard for index, shard in zip(place, self.shard[1:], strict=True)]
        return ChunkKey(tuple(zip(self.dims, starts, strict=True)))

    def number(self, key: ChunkKey) -> int | None:
        """Return the number of a key; None for one that is not of this grid."""
        if tuple(dim for dim, _ in key.offsets) != self.dims:
            return None
        number = 0
        for index, ((_, start), shard, count) in enumerate(zip(key.offsets, self.shard, self.counts, strict=True)):
            before = 0 if index else self.first // shard
            place = start // shard - before
            expected = (place + before) * shard
            if not 0 <= place < count or start != (expected if index else max(self.first, expected)):
                return None
            number = number * count + place
        return number

    def behind(self, first: int) -> Self:
        """Return the same grid for the samples behind the first so many."""
        return replace(self, first=first)

    def extent(self) -> Mapping[str, Any]:
        """Return the grid as plain values, for attributes and digests: all but how many samples there are."""
        return {
            "dims": list(self.dims),
            "sizes": list(self.sizes[1:]),
            "shard": list(self.shard),
            "chunk": list(self.chunk),
        }


class Keys(Sequence[ChunkKey]):
    """Some keys of a grid, by number: a million of them take no more memory than their numbers.

    Parameters
    ----------
    grid
        The grid.
    numbers
        Which, ascending.
    """

    def __init__(self, grid: Grid, numbers: "range | np.ndarray") -> None:
        self.grid, self._numbers = grid, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ChunkKey: ...
    @overload
    def __getitem__(self, index: slice) -> "Keys": ...
    def __getitem__(self, index: int | slice) -> "ChunkKey | Keys":
        if isinstance(index, slice):
            return Keys(self.grid, self._numbers[index])
        return self.grid.key(int(self._numbers[index]))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Keys) and self.grid == other.grid
        return same and np.array_equal(self._numbers, other._numbers)  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Keys({len(self)} of {prod(self.grid.counts)})"

    def mask(self) -> bytearray:
        """Return one byte a key of the grid: 1 for those that are here."""
        mask = np.zeros(prod(self.grid.counts), np.uint8)
        mask[np.asarray(self._numbers, np.intp)] = 1
        return bytearray(mask)

    def without(self, done: Iterable[str]) -> "Keys":
        """Return those of the keys that are not among these texts."""
        left = self.mask()
        for text in done:
            number = self.grid.number(ChunkKey.parse(text))
            if number is not None:
                left[number] = 0
        return Keys(self.grid, np.flatnonzero(left))
