"""Views of stores that fit a page: parts, means and thinned values, read within a bound of memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scattercube.pipeline.charts import COLOURS, DASHES
from scattercube.pipeline.features import is_cut_inside

if TYPE_CHECKING:
    import xarray as xr

BLOCK_NBYTES = 64 << 20  # of values that are held at once
MOST_NBYTES = 8 << 30  # of a sample that are decoded for a page; of what is larger, the middle is shown
EXAMPLE_CLASSES, EXAMPLES_EACH, EXAMPLES_UNLABELLED = 6, 3, 9
CURVE_SAMPLES = 48  # of a class behind its curve
DARKEST = 1e-3  # colours end here, relative to the largest coefficient
LEADING = ("sample", "channel", "path")


@dataclass(frozen=True)
class View:
    """A run as its page sees it.

    Attributes
    ----------
    cube, chunks
        The two stores, opened lazily.
    rows
        The samples that can be shown, ascending: those that are ok, and those of which something is there.
    """

    cube: "xr.Dataset"
    chunks: "xr.Dataset"
    rows: np.ndarray

    @cached_property
    def spec(self) -> Mapping[str, Any]:
        """The Spec as a mapping."""
        return dict(yaml.safe_load(self.cube.attrs.get("spec", "")) or {})

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The labels of the coefficients, (path,) each."""
        return {str(name): coord.values for name, coord in self.cube.coords.items() if coord.dims == ("path",)}

    @property
    def order(self) -> np.ndarray:
        """The order of each coefficient, (path,)."""
        return self.columns["order"]

    def unit(self, name: str) -> str:
        """Return the unit of a coordinate; empty where there is none."""
        return str(self.cube[name].attrs.get("units", "")) if name in self.cube.coords else ""

    @cached_property
    def is_field(self) -> bool:
        """Whether the samples are so large that the cube is cut along their own dims."""
        return is_cut_inside(self.cube["scattering"])

    @cached_property
    def classes(self) -> dict[str, np.ndarray]:
        """The samples of each label, by label; all of them under the empty label where there are none."""
        rows = self.rows
        named = "label" in self.cube.coords
        labels = self.cube["label"].values[rows].astype(object) if named else np.full(len(rows), "", dtype=object)
        found = {str(label): rows[labels == label] for label in np.unique(labels) if label}
        return found or ({"": rows} if len(rows) else {})

    @cached_property
    def examples(self) -> dict[str, np.ndarray]:
        """A few samples of each of the first classes, by label."""
        most = EXAMPLES_EACH if any(self.classes) else EXAMPLES_UNLABELLED
        return {label: spread(rows, most) for label, rows in list(self.classes.items())[:EXAMPLE_CLASSES]}

    @property
    def frequent(self) -> list[str]:
        """The labels of the most frequent classes, as many as there are colours, sorted."""
        return sorted(sorted(self.classes, key=lambda label: -len(self.classes[label]))[: len(COLOURS)])

    def name(self, row: int) -> str:
        """Return the name of a sample."""
        return str(self.cube["sample_id"].values[row])

    def caption(self, row: int) -> str:
        """Return the name of a sample, and the number that heads predict where there is one."""
        if "target" not in self.cube.coords:
            return self.name(row)
        return f"{self.name(row)}, {self.cube['target'].values[row]:.5g} {self.unit('target')}".rstrip()

    def mean_squares(self, rows: np.ndarray, paths: np.ndarray) -> np.ndarray:
        """Return the mean of S² over a sample, (row, path) float64; NaN where none of it is there."""
        return np.array([mean_of(np.square(values[paths], dtype=np.float64)) for values in self._coefficients(rows)])

    def means(self, rows: np.ndarray, paths: np.ndarray) -> np.ndarray:
        """Return the mean of S over a sample, (row, path) float64; NaN where none of it is there."""
        return np.array([mean_of(values[paths]) for values in self._coefficients(rows)])

    def _coefficients(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the coefficients of some samples, ascending, each (path, value).

        Those that lie in one chunk are read at once, with what lies between: for lists of places Zarr takes much time
        and memory. Paths are chosen afterwards for the same reason.
        """
        S = self.cube["scattering"]
        each = S.nbytes // max(1, len(S))
        at_once = max(1, min(BLOCK_NBYTES // max(1, each), S.encoding.get("preferred_chunks", {}).get("sample", 1)))
        for _, group in groupby(rows.tolist(), lambda row: row // at_once):
            start, *_ = some = list(group)
            if at_once == 1:
                yield flat(thinned(S, start))
                continue
            block = bare(S[start : some[-1] + 1]).load()
            yield from (flat(block[row - start]) for row in some)


def bare(variable: "xr.DataArray") -> "xr.DataArray":
    """Leave out coordinates that say nothing of a dim: loading a sample would load all names of all samples."""
    return variable.reset_coords(drop=True)


def flat(S: "xr.DataArray") -> np.ndarray:
    """Return the coefficients of a sample as (path, value)."""
    values: np.ndarray = S.transpose("path", ...).values
    return values.reshape(len(values), -1)


def mean_of(values: np.ndarray) -> np.ndarray:
    """Average (path, value) over what is finite: (path,) float64."""
    finite = np.isfinite(values)
    total, count = np.sum(values, axis=1, dtype=np.float64, where=finite), finite.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def thinned(variable: "xr.DataArray", row: int, most: int | None = None) -> "xr.DataArray":
    """Read every k-th position of one sample, along all of its dims, so that memory is bounded.

    Parameters
    ----------
    variable
        (sample, [channel,] [path,] …).
    most
        Positions along each dim; by default as many as fit into the bound. Of a sample that would take very long to
        decode, only the middle is read.
    """
    one = bare(variable[row])
    dims = [str(dim) for dim in one.dims if dim not in LEADING]
    if not dims:
        return one.load()
    portion = min(1.0, MOST_NBYTES / max(1, one.nbytes)) ** (1 / len(dims))
    windows = {dim: _middle(one.sizes[dim], portion) for dim in dims}
    held = one.nbytes
    for dim, window in windows.items():
        held = held * (window.stop - window.start) // one.sizes[dim]
    step = ceil((held / BLOCK_NBYTES) ** (1 / len(dims)))
    if most is not None:
        step = max(step, *(ceil((window.stop - window.start) / most) for window in windows.values()))
    step = max(1, step)
    return one.isel({dim: slice(window.start, window.stop, step) for dim, window in windows.items()}).load()


def _middle(size: int, portion: float) -> slice:
    length = max(1, int(size * portion))
    return slice((size - length) // 2, (size - length) // 2 + length)


def envelope(variable: "xr.DataArray", row: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of a signal in each of at most so many parts, and where these begin.

    Positions of the parts, and (part,) float64 twice, over all channels; NaN where nothing is there. The signal is read
    piece by piece.
    """
    one = bare(variable[row])
    n, values_each = one.sizes["time"], one.nbytes // one.sizes["time"]
    each = ceil(n / most)
    piece = each * max(1, BLOCK_NBYTES // (8 * values_each * each))  # with copies in float64
    lows, highs = [], []
    for start in range(0, n, piece):
        block = np.atleast_2d(one.isel(time=slice(start, start + piece)).values.astype(np.float64))
        padded = np.pad(block, ((0, 0), (0, -block.shape[1] % each)), constant_values=np.nan)
        padded[~np.isfinite(padded)] = np.nan
        parts = np.moveaxis(padded.reshape(len(block), -1, each), 1, 0).reshape(-1, len(block) * each)
        lows.append(np.fmin.reduce(parts, axis=1))
        highs.append(np.fmax.reduce(parts, axis=1))
    return np.arange(0, n, each), np.concatenate(lows), np.concatenate(highs)


def spread(samples: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of some samples, evenly spread."""
    return np.asarray(samples[np.unique(np.linspace(0, len(samples) - 1, min(len(samples), most)).round().astype(int))])


def legend(labels: list[str]) -> list[dict[str, str]]:
    """Return label, colour and dashes of the lines of a drawing, in its order."""
    return [
        {"label": label, "colour": colour, "dash": ",".join(map(str, dash))}
        for label, colour, dash in zip(labels, COLOURS, DASHES, strict=False)
    ]


def colour_limits(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of a logarithmic colour scale: the largest value, and the smallest not negligible beside it."""
    finite = values[np.isfinite(values)]
    high = float(finite.max(initial=0.0))
    if high <= 0:
        return (DARKEST, 1.0)
    return (float(finite[finite >= DARKEST * high].min()), high)
