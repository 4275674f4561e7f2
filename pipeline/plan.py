"""The arithmetic before the work: keys, shard grids, predicted bytes, and the refusals.

Integers in, integers out: nothing here opens an archive or a store.
"""

from dataclasses import dataclass, replace
from math import ceil, isqrt, prod

import numpy as np

from scattercube.kernels import Scattering1D, Scattering2D
from scattercube.kernels.missing import margin
from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.keys import Grid, Keys
from scattercube.pipeline.places import free_nbytes
from scattercube.pipeline.sources import Layout
from scattercube.pipeline.spec import Spec, TiledSpec
from scattercube.pipeline.tiles import Axis
from scattercube.pipeline.transforms import Transform, build, output_dims

SHARD_NBYTES = 16 << 20  # what one task writes: within the 8 to 64 MB that file systems and object stores like
CHUNK_NBYTES = 512 << 10  # what a reader fetches at least
SMALL_SHARD_NBYTES = 1 << 20  # a small archive is cut finer, down to this, so that all workers have something to do
SMALL_ARCHIVE_SHARDS = 16
PROCESS_NBYTES = 125 << 20  # a worker that has imported what it needs and holds nothing yet
FIELD_NBYTES = 64 << 20  # a sample whose signal or features are larger is a field, and cut into tiles
TILE_SIDES = {1: 1 << 18, 2: 1 << 10}  # values of a tile along each axis of a signal or image, its halos included,
TILE_HALOS = 8  # and as many halos at least
ROUND = 8  # outputs of a tile are a multiple of this, so that its shard can be cut into chunks


@dataclass(frozen=True)
class Plan:
    """What a run will do, before it does it.

    Attributes
    ----------
    signal_dims, feature_dims
        Dims of the two arrays: ``(sample, [channel,] …)`` and ``(sample, [channel,] path, …)``.
    signal_shape, feature_shape
        Their shapes.
    signal_grid, feature_grid
        How they are cut.
    signal_nbytes, feature_nbytes
        Uncompressed sizes, coverage included.
    worker_nbytes, key_nbytes
        The largest predicted memory of one worker that has one key at a time, and what each more takes.
    sampling_rate
        Of signals in time, in Hz.
    axes
        How the axes of a field are cut into tiles; none where samples are transformed whole.
    masked
        Whether values may be missing: the cube then has a coverage.
    """

    signal_dims: tuple[str, ...]
    feature_dims: tuple[str, ...]
    signal_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    signal_grid: Grid
    feature_grid: Grid
    signal_nbytes: int
    feature_nbytes: int
    worker_nbytes: int
    key_nbytes: int
    sampling_rate: float | None = None
    axes: tuple[Axis, ...] = ()
    masked: bool = False

    @property
    def transformed_shape(self) -> tuple[int, ...]:
        """The shape of the signals that the transform takes: of samples, or of tiles with their halos."""
        n_axes = len(self.signal_dims) - 1 - ("channel" in self.signal_dims)
        return tuple(axis.padded for axis in self.axes) or self.signal_shape[-n_axes:]

    @property
    def read_shape(self) -> tuple[int, ...]:
        """The shape of the signals that are read for a shard: those of all of its tiles, with what is around them."""
        if not self.axes:
            return self.transformed_shape
        shard = dict(zip(self.feature_grid.dims, self.feature_grid.shard, strict=True))
        dims = self.signal_dims[-len(self.axes) :]
        return tuple(
            axis.reach(shard.get(dim, axis.n_out) // axis.n_out) for dim, axis in zip(dims, self.axes, strict=True)
        )

    def positions(self, transform: Transform) -> tuple[np.ndarray, ...]:
        """Return where outputs lie along each dim behind ``path``, in samples, or seconds, Hz where the rate is known.

        Of a field, not those of the tile that the transform takes.
        """
        if not self.axes:
            return transform.positions
        return tuple(axis.stride * np.arange(axis.total) / (self.sampling_rate or 1) for axis in self.axes)

    def transform(self, spec: Spec) -> Transform:
        """Build the transform of samples or tiles."""
        return build(spec, self.transformed_shape, self.sampling_rate, tile=bool(self.axes))


def sample_grid(n_samples: int, sample_nbytes: int, source_nbytes: int = 0) -> Grid:
    """Choose the shard grid from the size of one sample, and of what it is made of.

    It depends on nothing else, so every run cuts alike.
    """
    chunk = max(1, CHUNK_NBYTES // sample_nbytes)
    wanted = max(1, min(SHARD_NBYTES // sample_nbytes, FIELD_NBYTES // max(source_nbytes, 1)))
    fine = max(1, SMALL_SHARD_NBYTES // sample_nbytes, ceil(n_samples / SMALL_ARCHIVE_SHARDS))
    shard = min(wanted, fine)
    chunk = min(chunk, shard)
    return Grid.of_samples(n_samples, shard=chunk * ceil(shard / chunk), chunk=chunk)


def plan(
    spec: Spec,
    n_samples: int,
    layout: Layout,
    *,
    masked: bool = False,
    pieces: tuple[int, ...] | None = None,
    held: tuple[Grid | None, Grid | None] = (None, None),
) -> Plan:
    """Work out the shapes, grids and bytes of a run over ``n_samples`` samples that look like ``layout``.

    Parameters
    ----------
    masked
        Whether values may be missing.
    pieces
        Along each dim of the signal, into how many tiles at least samples are cut; by default those that are large.
    held
        How a chunk store and a feature cube that are there already are cut: what comes to them is cut alike.

    Raises
    ------
    PlanError
        Spec and samples do not fit each other.
    """
    rate = 1 / layout.spacing[0] if layout.units == ("s",) else None
    axes = _whole_axes(spec, layout, rate, masked)
    if masked and not axes:
        raise PlanError(
            "sample.missing: missing values need to be known a halo around each output; "
            f"use scattering2d or scattering1d with --set padding=support, not {spec.transform} without"
        )
    if pieces and not axes:
        raise PlanError(
            f"{spec.transform} with padding={getattr(spec, 'padding', None)!r} takes samples whole; for tiles of a "
            "signal or image give the Spec padding: support, or rechunk the array"
        )
    lead, n_axes = layout.shape[: -len(layout.signal_shape)], len(layout.signal_shape)
    signal_nbytes = prod(layout.shape) * layout.dtype.itemsize
    if axes:
        probe = build(spec, tuple(8 * axis.stride for axis in axes), rate)
        output, dims = (probe.output_shape[0], *(axis.total for axis in axes)), layout.signal_dims
    else:
        probe = build(spec, layout.signal_shape, rate)
        output, dims = probe.output_shape, output_dims(spec, probe)
    output_nbytes = prod(lead) * output[0] * np.dtype(spec.dtype).itemsize * (2 if masked else 1)
    feature_nbytes = output_nbytes * prod(output[1:])
    signal_grid = held[0] or sample_grid(n_samples, signal_nbytes)
    feature_grid = held[1] or sample_grid(n_samples, feature_nbytes, signal_nbytes)
    if pieces or (axes and max(signal_nbytes, feature_nbytes) > FIELD_NBYTES):
        axes = _tiles(axes, pieces or (1,) * n_axes)
        signal_grid = _field_grid(n_samples, layout, signal_nbytes // prod(layout.signal_shape))
        sizes, shard = (n_samples, *output[1:]), _shard(axes, output_nbytes)
        feature_grid = Grid(("sample", *dims), sizes, (1, *shard), (1, *_chunks(shard, output_nbytes)))
    elif axes and not masked and all(axis.boundary == "reflect" for axis in axes):
        axes = ()  # the transform's own border
    firsts = [grid.first if grid else 0 for grid in held]
    planned = Plan(
        signal_dims=("sample", *layout.dims),
        feature_dims=("sample", *layout.dims[:-n_axes], "path", *dims),
        signal_shape=(n_samples, *layout.shape),
        feature_shape=(n_samples, *lead, *output),
        signal_grid=signal_grid.behind(firsts[0]),
        feature_grid=feature_grid.behind(firsts[1]),
        signal_nbytes=n_samples * signal_nbytes,
        feature_nbytes=n_samples * feature_nbytes,
        worker_nbytes=0,
        key_nbytes=0,
        sampling_rate=rate,
        axes=axes,
        masked=masked,
    )
    worker_nbytes, key_nbytes = _worker_nbytes(planned, spec, layout, prod(lead))
    return replace(planned, worker_nbytes=worker_nbytes, key_nbytes=key_nbytes)


def _whole_axes(spec: Spec, layout: Layout, rate: float | None, masked: bool) -> tuple[Axis, ...]:
    """How the axes of a sample would be cut, into one tile; none where tiles would not give what the whole gives."""
    if not isinstance(spec, TiledSpec) or spec.padding != "support" or getattr(spec, "T", 1) == "global":
        return ()
    n_axes = len(layout.signal_shape)
    smallest = build(spec, tuple(min(size, 8 * 2**spec.J) for size in layout.signal_shape), rate)
    assert isinstance(smallest, Scattering1D | Scattering2D)
    assert smallest.halo is not None
    boundaries = (spec.boundary,) * n_axes if isinstance(spec.boundary, str) else spec.boundary
    stride, halo, beyond = smallest.stride, smallest.halo, margin(smallest.stride) if masked else 0
    return tuple(
        Axis(size, stride, halo, ceil(size / stride), boundary, beyond)
        for size, boundary in zip(layout.signal_shape, boundaries, strict=True)
    )


def _tiles(axes: tuple[Axis, ...], pieces: tuple[int, ...]) -> tuple[Axis, ...]:
    """Cut the axes of a field into tiles of one size: larger ones leave the caches, smaller ones are mostly halo."""
    cut = []
    for axis, n in zip(axes, pieces, strict=True):
        side = max(TILE_SIDES[len(axes)], TILE_HALOS * axis.halo)
        most = max(1, (side - 2 * axis.halo) // axis.stride // ROUND) * ROUND
        n_tiles = max(n, ceil(axis.total / most))
        cut.append(replace(axis, n_out=ROUND * ceil(ceil(axis.total / n_tiles) / ROUND)))
    return tuple(cut)


def _shard(axes: tuple[Axis, ...], output_nbytes: int) -> tuple[int, ...]:
    """Put tiles together until a shard is worth a file, as long as there are shards enough for all workers."""
    counts = [1] * len(axes)

    def shards(counts: list[int]) -> list[int]:
        return [ceil(axis.total / (n * axis.n_out)) for axis, n in zip(axes, counts, strict=True)]

    while True:
        longest = int(np.argmax(shards(counts)))
        more = [n * (2 if axis == longest else 1) for axis, n in enumerate(counts)]
        nbytes = output_nbytes * prod(n * axis.n_out for axis, n in zip(axes, more, strict=True))
        if nbytes > SHARD_NBYTES or prod(shards(more)) < SMALL_ARCHIVE_SHARDS:
            return tuple(n * axis.n_out for axis, n in zip(axes, counts, strict=True))
        counts = more


def _chunks(shard: tuple[int, ...], value_nbytes: int) -> tuple[int, ...]:
    """Halve a shard along its longest axes until a chunk is small enough to be fetched for its own sake."""
    chunk = list(shard)
    while prod(chunk) * value_nbytes > CHUNK_NBYTES and any(size % 2 == 0 for size in chunk):
        longest = max((size, axis) for axis, size in enumerate(chunk) if size % 2 == 0)[1]
        chunk[longest] //= 2
    return tuple(chunk)


def _field_grid(n_samples: int, layout: Layout, value_nbytes: int) -> Grid:
    """Cut the values of a field into shards of about one size along all axes."""
    wanted = SHARD_NBYTES // value_nbytes
    side = 1 << ((wanted if len(layout.signal_shape) == 1 else isqrt(wanted)).bit_length() - 1)
    shard = tuple(min(side, 1 << (size - 1).bit_length()) for size in layout.signal_shape)
    return Grid(
        ("sample", *layout.signal_dims),
        (n_samples, *layout.signal_shape),
        (1, *shard),
        (1, *_chunks(shard, value_nbytes)),
    )


def _worker_nbytes(planned: Plan, spec: Spec, layout: Layout, n_channels: int) -> tuple[int, int]:
    """Predict the memory of a worker that has one key at a time, and of each more, which waits to be computed."""
    transform, precision = planned.transform(spec), np.dtype(spec.dtype).itemsize
    n_samples = min(planned.feature_grid.shard[0], planned.feature_grid.sizes[0])
    values = n_samples * n_channels * prod(planned.read_shape)
    features = _shard_nbytes(planned.feature_grid, planned.feature_nbytes)
    # Extraction holds the signals of a shard, also as the transform takes them, and its features. To these come the
    # transform's own arrays, then the shard once more while it is encoded. (The pinned copies of a GPU's worker are
    # small beside what is kept for CUDA.)
    converted = 0 if layout.dtype == np.dtype(spec.dtype) else precision
    read = values * (layout.dtype.itemsize + converted)
    held = read + values * precision + features
    extract = held + max(transform.foreseen_nbytes(n_samples * n_channels), features)
    signal = _shard_nbytes(planned.signal_grid, planned.signal_nbytes)
    return PROCESS_NBYTES + max(transform.filter_nbytes + extract, 3 * signal), max(read + 2 * features, 3 * signal)


def _shard_nbytes(grid: Grid, nbytes: int) -> int:
    """The bytes of the largest shard, of an array of so many."""
    return nbytes * prod(map(min, grid.shard, grid.sizes)) // prod(grid.sizes)


def refuse_what_cannot_fit(
    plan: Plan, root: str, missing_nbytes: int, worker_memory_nbytes: int | None, threads: int
) -> None:
    """Raise PlanError when the disk under ``root`` or a worker's memory is too small, StoreError when none may write.

    ``missing_nbytes`` is what is still to be written, uncompressed: compression is a gain that nobody can promise.
    """
    free = free_nbytes(root) if missing_nbytes else 0
    if missing_nbytes > free:
        raise PlanError(
            f"{root}: the run may write {in_words(missing_nbytes)} and {in_words(free)} are free; "
            "choose another --store, a larger J, fewer orders, or --limit N"
        )
    needed = plan.worker_nbytes + (threads - 1) * plan.key_nbytes
    if worker_memory_nbytes is not None and needed > worker_memory_nbytes:
        raise PlanError(
            f"a worker needs about {in_words(needed)} ({threads} keys at a time) and may use "
            f"{in_words(worker_memory_nbytes)}; raise `memory` in the cluster file, or use fewer workers or threads, "
            "smaller samples, a larger J, or, for large fields, --set padding=support, which cuts them into tiles"
        )


def ranges(keys: Keys, most: int = 20, least: int = 64) -> list[Keys]:
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
