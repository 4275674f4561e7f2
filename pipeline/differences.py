"""How two feature cubes differ: in what defines them, their samples, and their numbers; in bounded memory."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.reading import (
    arrays_of,
    block,
    blocks,
    column,
    columns_of,
    document,
    feature_cube,
    path_names,
    place_of,
)
from scattercube.pipeline.stores.protocol import LIVE, OK, PARTIAL

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_AT_ONCE = 1 << 17  # values that are compared at once: what that takes stays in the caches
MOST_NAMED = 10  # samples that are named; all are counted
_NOT_OF_A_SAMPLE = ("sample_id", "source")  # what matches samples, and where a copy of the archive happens to lie


@dataclass(frozen=True)
class OrderDifference:
    """How the numbers of one order differ, over the samples that both cubes have.

    Attributes
    ----------
    array
        ``scattering`` or ``coverage``.
    n_paths, n_differ
        The paths of this order, and those of them that differ anywhere.
    n_gaps
        Values that are NaN in one cube only.
    largest
        The largest absolute difference.
    relative
        ‖a − b‖ / ‖a‖ over all paths of the order, of the samples that are not the same to the bit.
    worst_path, worst_relative
        The path where that is largest, and how large it is there.
    """

    array: str
    order: int
    n_paths: int
    n_differ: int
    n_gaps: int
    largest: float
    relative: float
    worst_path: str
    worst_relative: float


@dataclass(frozen=True)
class Samples:
    """Some samples: how many, and the names of the first."""

    n: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: np.ndarray) -> "Samples":
        """Count names, and keep the first."""
        return cls(len(names), tuple(str(name) for name in names[:MOST_NAMED]))


@dataclass
class Differences:
    """What ``diff`` found. Pairs are of the first cube and of the second.

    Attributes
    ----------
    a, b
        Where the cubes are.
    defined
        What defines the numbers and differs: fields of the Spec, filters, dims, shape, labels of paths.
    made
        What differs and may leave the numbers as they are: the entry, versions of the code, checksums of the input.
    n_common
        Samples that both have, by ``sample_id``; superseded and removed rows do not count.
    only_a, only_b
        Samples that one has.
    status
        Of the common samples, those with another status: ``{"0 → 1": samples}``.
    columns
        Of the common samples, those with another value in a column.
    numbers
        Samples whose numbers differ.
    orders
        How they differ, by order; empty where they do not.
    incomparable
        Why numbers were not compared; empty where they were.
    """

    a: str
    b: str
    defined: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    made: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    n_common: int = 0
    only_a: Samples = Samples()
    only_b: Samples = Samples()
    status: dict[str, Samples] = field(default_factory=dict)
    columns: dict[str, Samples] = field(default_factory=dict)
    numbers: Samples = Samples()
    orders: list[OrderDifference] = field(default_factory=list)
    incomparable: str = ""

    @property
    def same(self) -> bool:
        """Whether both hold the same: Spec, samples, columns, status and numbers, whatever made them."""
        rows = (self.only_a, self.only_b, self.numbers)
        return not (self.defined or self.status or self.columns or any(each.n for each in rows))

    def document(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"same": self.same} | asdict(self)


def diff(a: "str | Path | xr.Dataset", b: "str | Path | xr.Dataset", *, tolerance: float = 0.0) -> Differences:
    """Compare two feature cubes. Memory is that of a few shards, whatever the cubes' size.

    Parameters
    ----------
    tolerance
        Numbers are the same where |a − b| ≤ tolerance · max(|a|, |b|).

    Raises
    ------
    PlanError
        The tolerance is negative.
    StoreError
        One of them is not there, or damaged, or names two of its samples alike.
    """
    if not tolerance >= 0:
        raise PlanError(f"tolerance={tolerance}: a share of the larger number, at least 0")
    one, other = feature_cube(a), feature_cube(b)
    found = Differences(place_of(one), place_of(other))
    found.defined, found.made = _defined(one, other), _made(one, other)
    states = column(one, "status"), column(other, "status")
    names = [_live(cube, status) for cube, status in zip((one, other), states, strict=True)]
    rows_a, rows_b = _common(*names)
    found.n_common = len(rows_a)
    found.only_a, found.only_b = _alone(names[0], rows_a), _alone(names[1], rows_b)
    ids = np.asarray(names[0].index.to_numpy())[np.searchsorted(names[0].to_numpy(), rows_a)]
    before, after = states[0][rows_a], states[1][rows_b]
    for pair in sorted({*zip(before[before != after].tolist(), after[before != after].tolist(), strict=True)}):
        found.status[f"{pair[0]} → {pair[1]}"] = Samples.of(ids[(before == pair[0]) & (after == pair[1])])
    found.columns = _columns(one, other, rows_a, rows_b, ids)
    found.incomparable = _incomparable(one, other)
    if not found.incomparable:
        both = np.isin(before, (OK, PARTIAL)) & np.isin(after, (OK, PARTIAL))
        differ = np.zeros(one.sizes["sample"], bool)
        for name in arrays_of(one):
            found.orders += _orders(one, other, name, rows_a[both], rows_b[both], states, differ, tolerance)
        found.numbers = Samples.of(ids[differ[rows_a]])
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Name what is inside of mappings by its way there: ``spec.J``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted({*mine, *theirs})
    return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


def _defined(one: "xr.Dataset", other: "xr.Dataset") -> dict[str, tuple[Any, Any]]:
    facts = []
    for cube in (one, other):
        variable = cube["scattering"]
        facts.append(
            _flat(document(cube, "spec"), "spec.")
            | {"filter_digest": cube.attrs.get("filter_digest"), "dtype": str(variable.dtype)}
            | {"arrays": list(arrays_of(cube)), "columns": sorted(columns_of(cube))}
            | {f"size of {dim}": size for dim, size in zip(variable.dims[1:], variable.shape[1:], strict=True)}
        )
    labels = [name for name in _labels_that_differ(one, other) if name not in facts[0]]
    return _unlike(*facts) | ({"labels": ("", f"other values of {', '.join(labels)}")} if labels else {})


def _made(one: "xr.Dataset", other: "xr.Dataset") -> dict[str, tuple[Any, Any]]:
    facts = [
        _flat(document(cube, "entry"), "entry.")
        | _flat(document(cube, "versions"), "version of ")
        | _flat(document(cube, "input_checksums"), "input.")
        for cube in (one, other)
    ]
    return _unlike(*facts)


def _labels_that_differ(one: "xr.Dataset", other: "xr.Dataset") -> list[str]:
    """Names of coordinates, but those of the samples, that only one has or that have other values."""
    labels = [{str(name): c for name, c in cube.coords.items() if "sample" not in c.dims} for cube in (one, other)]
    return [
        name
        for name in sorted({*labels[0], *labels[1]})
        if not (name in labels[0] and name in labels[1] and labels[0][name].equals(labels[1][name]))
    ]


def _incomparable(one: "xr.Dataset", other: "xr.Dataset") -> str:
    """Say why numbers cannot be compared: they would not be of the same coefficients."""
    mine, theirs = one["scattering"], other["scattering"]
    if mine.dims != theirs.dims or mine.shape[1:] != theirs.shape[1:]:
        shapes = [dict(zip(map(str, each.dims[1:]), each.shape[1:], strict=True)) for each in (mine, theirs)]
        return f"a sample has {shapes[0]} in one and {shapes[1]} in the other"
    if arrays_of(one) != arrays_of(other):
        return f"one has {', '.join(arrays_of(one))}, the other {', '.join(arrays_of(other))}"
    labels = _labels_that_differ(one, other)
    return f"labels differ: {', '.join(labels)}" if labels else ""


def _live(cube: "xr.Dataset", status: np.ndarray) -> "pd.Series[int]":
    """Rows of the samples that the archive has, by name."""
    import pandas as pd

    rows = np.flatnonzero(np.isin(status, LIVE))
    names = pd.Index(column(cube, "sample_id")[rows])
    if not names.is_unique:
        double = names[names.duplicated()][0]
        raise StoreError(f"{place_of(cube)}: two samples are named {double!r}; they cannot be matched with others")
    return pd.Series(rows, index=names)


def _common(one: "pd.Series[int]", other: "pd.Series[int]") -> tuple[np.ndarray, np.ndarray]:
    """Rows of the common samples, ascending in the first cube."""
    place = other.index.get_indexer(one.index)
    return one.to_numpy()[place >= 0], other.to_numpy()[place[place >= 0]]


def _alone(rows: "pd.Series[int]", common: np.ndarray) -> Samples:
    return Samples.of(np.asarray(rows.index[~np.isin(rows.to_numpy(), common)]))


def _columns(
    one: "xr.Dataset", other: "xr.Dataset", rows_a: np.ndarray, rows_b: np.ndarray, ids: np.ndarray
) -> dict[str, Samples]:
    found = {}
    for name in sorted({*columns_of(one)} & {*columns_of(other)} - {*_NOT_OF_A_SAMPLE}):
        mine, theirs = column(one, name)[rows_a], column(other, name)[rows_b]
        unlike = np.asarray((mine != theirs) & ((mine == mine) | (theirs == theirs)), bool)
        if unlike.any():
            found[name] = Samples.of(ids[unlike])
    return found


@dataclass
class _Sums:
    """What is added up for each path."""

    differ: np.ndarray
    gaps: np.ndarray
    largest: np.ndarray
    squares: np.ndarray
    of_a: np.ndarray

    def add(self, mine: np.ndarray, theirs: np.ndarray, axis: int, tolerance: float) -> np.ndarray:
        """Add a block of rows that are not alike to the bit; return which differ by more than is tolerated."""
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        others = tuple(i for i in range(a.ndim) if i != axis)
        gap = np.isnan(a) != np.isnan(b)
        far = np.abs(a - b)
        np.nan_to_num(far, copy=False)
        unlike = gap | ((far > tolerance * np.fmax(np.abs(a), np.abs(b))) if tolerance else (far > 0))
        self.differ |= unlike.any(axis=others)
        self.gaps += gap.sum(axis=others)
        np.maximum(self.largest, far.max(axis=others, initial=0.0), out=self.largest)
        self.squares += np.square(far).sum(axis=others)
        self.of_a += np.square(np.nan_to_num(a, copy=False)).sum(axis=others)
        return np.asarray(unlike.any(axis=tuple(range(1, a.ndim))))


def _orders(
    one: "xr.Dataset",
    other: "xr.Dataset",
    name: str,
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    states: tuple[np.ndarray, np.ndarray],
    differ: np.ndarray,
    tolerance: float,
) -> list[OrderDifference]:
    """Compare an array of common samples; mark the rows of ``one`` that differ."""
    n_paths, axis = one.sizes["path"], one[name].dims.index("path")
    sums = _Sums(np.zeros(n_paths, bool), np.zeros(n_paths, np.int64), *(np.zeros(n_paths) for _ in range(3)))
    for rows, within in _pieces(one, name):
        here = slice(*np.searchsorted(rows_a, [rows.start, rows.stop]))
        mine, theirs = rows_a[here], rows_b[here]
        if not len(mine):
            continue
        a = _read(one, name, mine, states[0], within)
        b = _read(other, name, theirs, states[1], within)
        unlike = np.flatnonzero(_not_alike(a, b))
        step = max(1, _AT_ONCE // max(1, a[0].size))
        for start in range(0, len(unlike), step):
            part = unlike[start : start + step]
            differ[mine[part]] |= sums.add(a[part], b[part], axis, tolerance)
    if not sums.differ.any():
        return []
    orders, names = one["order"].values, path_names(one)
    return [_order(name, int(order), np.flatnonzero(orders == order), sums, names) for order in np.unique(orders)]


def _not_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Say which rows of two blocks are not the same bytes: of most cubes none, and that is soon seen."""
    if a.dtype != b.dtype:
        return np.ones(len(a), bool)
    raw = [np.ascontiguousarray(each).reshape(len(each), -1).view(np.uint8) for each in (a, b)]
    return np.asarray((raw[0] != raw[1]).any(axis=1))


def _order(name: str, order: int, paths: np.ndarray, sums: _Sums, names: list[str]) -> OrderDifference:
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.nan_to_num(np.sqrt(sums.squares[paths] / sums.of_a[paths]), posinf=np.inf)
        of_all = np.nan_to_num(np.sqrt(sums.squares[paths].sum() / sums.of_a[paths].sum()), posinf=np.inf)
    worst = int(each.argmax())
    return OrderDifference(
        array=name,
        order=order,
        n_paths=len(paths),
        n_differ=int(sums.differ[paths].sum()),
        n_gaps=int(sums.gaps[paths].sum()),
        largest=float(sums.largest[paths].max()),
        relative=float(of_all),
        worst_path=names[paths[worst]],
        worst_relative=float(each[worst]),
    )


def _pieces(cube: "xr.Dataset", name: str) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Cut an array as its store does: shards of samples, and of fields the shards of each."""
    variable = cube[name]
    cut = variable.encoding.get("shards") or variable.encoding.get("chunks") or variable.shape
    along = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(variable.shape[1:], cut[1:], strict=True)
    ]
    for rows in blocks(cube):
        for within in product(*along):
            yield rows, within


def _read(cube: "xr.Dataset", name: str, rows: np.ndarray, status: np.ndarray, within: tuple[slice, ...]) -> np.ndarray:
    """Read rows in their order; those that follow each other in the cube at once."""
    if (np.diff(rows) == 1).all():
        return block(cube, name, slice(int(rows[0]), int(rows[-1]) + 1), status[rows], within)
    order = np.argsort(rows)
    found = block(cube, name, rows[order], status[rows[order]], within)
    return found[np.argsort(order)]
