"""Boxes of the arrays of a plain store, file by file.

Zarr reads in one thread of a process, chunk by chunk, whichever thread asks; where most of a shard is wanted, its file
is read as a whole, and its inner chunks are decoded in the thread that asks, to where they belong: several times as
fast, and so often more as there are threads. Where little of a shard is wanted, Zarr reads that.
"""

from math import prod

import numpy as np

from scattercube.pipeline.stores.files import Files
from scattercube.pipeline.stores.shards import cut
from scattercube.pipeline.stores.states import State

MOST = 1 / 4  # of the inner chunks of a shard: where so many are wanted its file is read as a whole


def read_region(state: State, group: Files, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """Read a box of an array. Raises ValueError or RuntimeError for files that are damaged, and what Zarr raises."""
    size = tuple(each.stop - each.start for each in box)
    if name not in state.arrays or 0 in size:
        return np.asarray(state.array(name)[box])
    coding = state.coding(name)
    values = np.empty(size, coding.dtype)
    for index, inside, there in cut(box, coding.shape):
        wanted = prod(map(len, coding.touched(inside))) >= MOST * prod(coding.counts)
        if wanted and (content := group.read(state.file(name, index))) is not None:
            coding.decode(content, inside, values[there])
        else:
            part = tuple(slice(b.start + t.start, b.start + t.stop) for b, t in zip(box, there, strict=True))
            values[there] = np.asarray(state.array(name)[part])
    return values
