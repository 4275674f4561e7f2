"""How arrays are cut into shards, and the keys of these: one key, one shard, one atomic write."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]

    @classmethod
    def of_samples(cls, n_samples: int, shard: int, chunk: int) -> Self:
        """Cut along ``sample`` only."""
        return cls(("sample",), (n_samples,), (shard,), (chunk,))

    @property
    def counts(self) -> tuple[int, ...]:
        """Shards along each dim."""
        return tuple(ceil(size / shard) for size, shard in zip(self.sizes, self.shard, strict=True))

    @property
    def keys(self) -> "Keys":
        """One key a shard, in order: the last dim changes fastest."""
        return Keys(self, range(prod(self.counts)))

    def region(self, key: ChunkKey) -> dict[str, slice]:
        """Return what belongs to a key along each dim that is cut."""
        return {
            dim: slice(start, min(start + shard, size))
            for (dim, start), shard, size in zip(key.offsets, self.shard, self.sizes, strict=True)
        }

    def key(self, number: int) -> ChunkKey:
        """Return the key of this number."""
        place = np.unravel_index(number, self.counts)
        steps = zip(self.dims, place, self.shard, strict=True)
        return ChunkKey(tuple((dim, int(index) * shard) for dim, index, shard in steps))

    def number(self, key: ChunkKey) -> int | None:
        """Return the number of a key; None for one that is not of this grid."""
        number = 0
        for (dim, start), own, shard, count in zip(key.offsets, self.dims, self.shard, self.counts, strict=False):
            if dim != own or start % shard or start // shard >= count:
                return None
            number = number * count + start // shard
        return number if len(key.offsets) == len(self.dims) else None

    def extent(self) -> Mapping[str, Any]:
        """Return the grid as plain values, for attributes and digests."""
        return {
            "dims": list(self.dims),
            "sizes": list(self.sizes),
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
