"""Features as heads see them: a matrix with a row a sample, what its columns are, and how they are standardised."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml

from scattercube.pipeline.errors import PlanError, StoreError

if TYPE_CHECKING:
    import xarray as xr

LOG_FRACTION = 1e-3  # ε of a path, as a fraction of its mean over the training samples: what is below it is noise
BLOCK_VALUES = 1 << 21  # rows are taken in blocks of about this many values, so that temporaries stay small
WIDE = 2  # with more than so many features a sample, heads are fitted in the samples' own space
BLOCK_SAMPLES = 1024  # samples read at once from a store that does not say how it is cut
FIELD_FEATURES = 1 << 24  # a sample with more is a field: no head is fitted to so many
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
N_STATISTICS = 6 + len(QUANTILES)


@dataclass(frozen=True)
class Layout:
    """What the columns of a feature matrix are: a cube's dims after ``sample``, their coordinates, and its Spec."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, list[Any]] = field(repr=False)
    spec: Mapping[str, Any] = field(default_factory=dict)
    spec_digest: str = ""

    @classmethod
    def of(cls, cube: "xr.Dataset") -> Self:
        """Read the layout of a feature cube."""
        variable = cube["scattering"]
        dims = tuple(str(dim) for dim in variable.dims[1:])
        coords = {
            str(name): [None if value != value else value for value in coord.values.tolist()]
            for name, coord in cube.coords.items()
            if len(coord.dims) == 1 and coord.dims[0] in dims
        }
        spec = yaml.safe_load(cube.attrs.get("spec", "")) or {}
        return cls(dims, variable.shape[1:], coords, spec, cube.attrs.get("spec_digest", ""))

    @property
    def n_features(self) -> int:
        """How many numbers describe one sample."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def groups(self) -> np.ndarray:
        """The number of each feature's channel and path, as ``Scaling.measure`` wants it.

        Order 0 is -1: it is an average of the signal, which may be negative, and not a modulus.
        """
        axes = [axis for axis, dim in enumerate(self.dims) if dim in ("channel", "path")]
        sizes = [self.shape[axis] for axis in axes]
        numbers = np.arange(int(np.prod(sizes))).reshape([s if a in axes else 1 for a, s in enumerate(self.shape)])
        orders = np.asarray(self.coords["order"]).reshape([-1 if dim == "path" else 1 for dim in self.dims])
        return np.broadcast_to(np.where(orders == 0, -1, numbers), self.shape).ravel()

    def difference(self, other: "Layout") -> str:
        """Say how another layout differs, the Spec first, the usual cause; empty where the features match."""
        for name in sorted({*self.spec, *other.spec}):
            mine, theirs = self.spec.get(name), other.spec.get(name)
            if mine != theirs:
                return f"the Spec has {name}={theirs} where the head has {name}={mine}"
        if (self.dims, self.shape) != (other.dims, other.shape):
            mine_text, their_text = (dict(zip(one.dims, one.shape, strict=True)) for one in (self, other))
            return f"a sample has {their_text} where the head has {mine_text}"
        for name in sorted({*self.coords, *other.coords}):
            if self.coords.get(name) != other.coords.get(name):
                return f"the coordinate {name!r} has other values than the head's"
        if self.spec_digest != other.spec_digest:
            return f"the Spec's digest is {other.spec_digest!r} where the head's is {self.spec_digest!r}"
        return ""


@dataclass(frozen=True)
class Scaling:
    """The standardisation ``(f(x) − mean) / scale`` with f(x) = log(|x| + log_offset), or x where that is NaN.

    All three are (feature,) float32, measured on training samples only.
    """

    log_offset: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def measure(cls, X: np.ndarray, groups: np.ndarray) -> Self:
        """Measure raw training features (sample, feature); ``groups`` numbers their paths, -1 where no log is taken."""
        log_offset = np.full(X.shape[1], np.nan, np.float32)
        logged = groups >= 0
        if logged.any():
            means = sum(np.abs(X[rows]).sum(axis=0, dtype=np.float64) for rows in row_blocks(X)) / len(X)
            of_path = np.bincount(groups[logged], means[logged]) / np.maximum(np.bincount(groups[logged]), 1)
            of_path = np.where(of_path > 0, LOG_FRACTION * of_path, 1.0)
            log_offset[logged] = np.maximum(of_path[groups[logged]], np.finfo(np.float32).tiny)
        plain = cls(log_offset, np.zeros_like(log_offset), np.ones_like(log_offset))
        total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        for rows in row_blocks(X):
            total += plain.apply(X[rows].copy()).sum(axis=0, dtype=np.float64)
        mean = total / len(X)
        for rows in row_blocks(X):
            squares += np.square(plain.apply(X[rows].copy()) - mean).sum(axis=0)
        std = np.sqrt(squares / len(X))
        # A feature that varies by no more than float32 rounds is constant: to divide by that would make noise of it.
        scale = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
        scale[scale == 0] = 1.0
        return cls(log_offset, mean.astype(np.float32), scale.astype(np.float32))

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Standardise raw float features (sample, feature) in place, and return them."""
        linear = np.isnan(self.log_offset)
        for rows in row_blocks(X):
            block = X[rows]
            if not linear.all():
                logs = np.abs(block)
                logs += np.where(linear, np.float32(1), self.log_offset)
                np.log(logs, out=block, where=~linear)
            block -= self.mean
            block /= self.scale
        return X


def row_blocks(X: np.ndarray) -> Iterator[slice]:
    """Cut the rows of a matrix into blocks of about 16 MB in float64."""
    step = max(1, BLOCK_VALUES // max(1, X.shape[1]))
    for start in range(0, len(X), step):
        yield slice(start, start + step)


def flatten(block: np.ndarray) -> np.ndarray:
    """Turn samples (sample, …) into rows (sample, feature)."""
    return block.reshape(len(block), -1)


def pixel_statistics(signal: np.ndarray, n_axes: int = 2) -> np.ndarray:
    """Describe samples (sample, [channel,] …) of ``n_axes`` axes by their histogram: (sample, statistic) float32.

    Mean, standard deviation, skewness, excess kurtosis, minimum, maximum and quantiles, by channel. They know nothing
    of where a pixel is: what scattering adds to them is structure. Values that are missing are left out.
    """
    values = signal.reshape(*signal.shape[:-n_axes], -1)
    there = np.isfinite(values) if values.dtype.kind == "f" else np.True_
    if not there.all():
        lines, finite = (array.reshape(-1, values.shape[-1]) for array in (values, there))
        rows = [pixel_statistics(line[kept][None], 1) for line, kept in zip(lines, finite, strict=True)]
        return np.concatenate(rows).reshape(len(signal), -1)
    ordered = np.sort(values, axis=-1)  # in the signal's own type, for speed
    mean = ordered.mean(axis=-1, dtype=np.float64)
    deviations = ordered - mean[..., None]
    squares = np.square(deviations)
    variance, third = squares.mean(axis=-1), (squares * deviations).mean(axis=-1)
    fourth = np.square(squares, out=squares).mean(axis=-1)
    safe = np.where(variance > 0, variance, 1.0)
    place = np.array(QUANTILES) * (ordered.shape[-1] - 1)
    below, above = (ordered[..., index.astype(int)].astype(np.float64) for index in (np.floor(place), np.ceil(place)))
    quantiles = np.moveaxis(below + (above - below) * (place % 1), -1, 0)
    shape = [third / safe**1.5, np.where(variance > 0, fourth / safe**2 - 3, 0.0)]
    columns = [mean, np.sqrt(variance), *shape, ordered[..., 0], ordered[..., -1], *quantiles]
    return np.stack(columns, axis=-1).reshape(len(signal), -1).astype(np.float32)


def statistics_name(variable: "xr.DataArray") -> str:
    """Say what statistics of signals are about."""
    about = {"time": "amplitude", "z": "voxel"}
    return f"{next((about[str(dim)] for dim in variable.dims if str(dim) in about), 'pixel')} statistics"


def thin(variable: "xr.DataArray", most_nbytes: int = 64 << 20) -> "xr.DataArray":
    """Leave of very large samples every k-th value along each of their axes, so that memory is bounded; lazily."""
    dims = [dim for dim in variable.dims if dim not in ("sample", "channel")]
    sample_nbytes = variable.nbytes // max(1, variable.sizes["sample"])
    step = max(1, ceil((sample_nbytes / most_nbytes) ** (1 / len(dims))))
    return variable if step == 1 else variable.isel({dim: slice(None, None, step) for dim in dims})


def is_cut_inside(variable: "xr.DataArray") -> bool:
    """Whether a store cuts a variable along other dims than ``sample``: its samples are fields then."""
    cut = variable.encoding.get("shards") or variable.encoding.get("chunks") or variable.shape
    sizes = zip(variable.dims, cut, variable.shape, strict=True)
    return any(part < size for dim, part, size in sizes if dim not in ("sample", "channel", "path"))


def matrix(
    variable: "xr.DataArray", samples: np.ndarray, n_columns: int, describe: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Read chosen samples into one matrix (row, column) float32, a shard at a time; row i is of ``samples[i]``.

    Raises StoreError when a number is not finite, because samples that are ok have none.
    """
    X = np.empty((len(samples), n_columns), np.float32)
    row_of = np.full(variable.sizes["sample"], -1)
    row_of[samples] = np.arange(len(samples))
    for rows in sample_blocks(variable):
        wanted = row_of[rows] >= 0
        if wanted.any():
            block = describe(variable[rows].values[wanted])
            if not np.isfinite(block).all():
                first = rows.start + np.flatnonzero(wanted)[np.flatnonzero(~np.isfinite(block).all(axis=1))[0]]
                name = str(variable["sample_id"].values[first])
                raise StoreError(
                    f"{variable.name}: sample {name} has status ok and values that are not finite; extract again"
                )
            X[row_of[rows][wanted]] = block
    return X


def sample_blocks(variable: "xr.DataArray") -> list[slice]:
    """Cut the samples as the store does, so that no shard is decoded twice."""
    cut = variable.encoding.get("shards") or variable.encoding.get("chunks") or (BLOCK_SAMPLES,)
    n, step = variable.sizes["sample"], int(cut[0])
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def refuse_what_does_not_fit(n: int, p: int, *, copies: bool) -> None:
    """Raise PlanError when a matrix (n, p), twice if it ``copies``, and its square systems exceed available memory."""
    needed = n * p * np.dtype(np.float32).itemsize * (2 if copies else 1)
    systems = 2 * p**2 if p <= WIDE * n else 4 * n**2  # the normal equations; or eigenvectors and their workspace
    needed += systems * np.dtype(np.float64).itemsize
    available = available_nbytes()
    if needed > available:
        raise PlanError(
            f"fit: {n} samples × {p} features need {needed / 1e9:.2f} GB and {available / 1e9:.2f} GB are available; "
            "use a larger J or a smaller max_order for fewer features, --limit N for fewer samples, or more memory"
        )


def available_nbytes() -> int:
    """Return the bytes of memory that this process can still take, the limit of its control group included."""
    import psutil

    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
