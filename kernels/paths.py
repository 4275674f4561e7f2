"""Which scattering coefficients exist, in which order they stand, and what each is called."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scattercube.kernels.meyer import Meyer1D, Meyer2D
    from scattercube.kernels.morlet import Morlet, Morlet1D

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Quantity:
    """What labels a wavelet: a column of `Paths` without its number.

    Parameters
    ----------
    values
        One value for each wavelet of a bank, whole numbers or real.
    unit
        Their unit.
    text
        What they mean; ``{nth}`` stands for "first", "second", ….
    """

    values: NDArray[Any]
    unit: str
    text: str


@dataclass(frozen=True, eq=False)
class Paths:
    """The table of labels of a transform: one row per coefficient, in the order of its output.

    Orders ascend; inside an order, paths are sorted by their wavelets' places in the banks; j1 < j2 < … along a path.

    Parameters
    ----------
    columns
        ``order`` and, for m = 1 … the largest order, the quantities ``j<m>``, ``xi<m>``, … of the m-th wavelet: arrays
        (n_paths,). Where a path has no m-th wavelet, whole numbers are −1 and the others NaN.
    units
        Unit of each column.
    descriptions
        What each column means, for a reader of the cube.
    rows
        For scales (j1, …, jm), the row of each tuple of wavelets of these scales: an array with an axis for each.
    """

    columns: dict[str, NDArray[Any]]
    units: dict[str, str]
    descriptions: dict[str, str]
    rows: dict[tuple[int, ...], NDArray[np.intp]]

    def __len__(self) -> int:
        return len(self.columns["order"])

    @classmethod
    def of(cls, banks: Sequence[Mapping[str, Quantity]], max_order: int) -> Self:
        """List the paths of rising scale through banks whose wavelets' quantities, ``j`` among them, are given.

        The m-th wavelet of a path is of the m-th bank; the last bank serves all higher orders.
        """
        bank = [banks[min(m, len(banks) - 1)] for m in range(max_order)]
        groups = [{int(j): np.flatnonzero(b["j"].values == j) for j in np.unique(b["j"].values)} for b in bank]
        table = np.zeros((0, max_order), dtype=np.intp)  # the wavelets of each path, −1 where there is none
        rows: dict[tuple[int, ...], NDArray[np.intp]] = {}
        for order in range(max_order + 1):
            rising = [s for s in itertools.product(*groups[:order]) if all(a < b for a, b in itertools.pairwise(s))]
            if not rising:
                break
            members = {s: [group[j] for group, j in zip(groups, s, strict=False)] for s in rising}
            found = np.array([path for s in rising for path in itertools.product(*members[s])], dtype=np.intp)
            sort = np.lexsort(found.T[::-1]) if order else np.zeros(1, dtype=np.intp)
            place = np.empty_like(sort)
            place[sort] = np.arange(len(table), len(table) + len(sort))
            for s in rising:
                shape = [len(group) for group in members[s]]
                rows[s], place = place[: math.prod(shape)].reshape(shape), place[math.prod(shape) :]
            padded = np.pad(found[sort], ((0, 0), (0, max_order - order)), constant_values=-1)
            table = np.concatenate([table, padded])

        columns: dict[str, NDArray[Any]] = {"order": (table >= 0).sum(axis=1).astype(np.int8)}
        units, descriptions = {"order": "1"}, {"order": "scattering order: the number of wavelets along the path"}
        for m, quantities in enumerate(bank, start=1):
            nth = _ORDINALS[m - 1] if m <= len(_ORDINALS) else f"{m}-th"
            for name, quantity in quantities.items():
                column = quantity.values[table[:, m - 1]]
                column[table[:, m - 1] < 0] = -1 if column.dtype.kind == "i" else np.nan
                columns[f"{name}{m}"], units[f"{name}{m}"] = column, quantity.unit
                descriptions[f"{name}{m}"] = quantity.text.format(nth=nth)
        return cls(columns, units, descriptions, rows)


def image_labels(wavelets: "Mapping[int, Sequence[Morlet | Meyer2D]]") -> dict[str, Quantity]:
    """Return the labels of 2-D wavelets, given by scale j; xi and sigma in units of pixels."""
    pairs = [(j, psi) for j, group in wavelets.items() for psi in group]
    j = np.array([j for j, _ in pairs], dtype=np.int8)
    theta = np.array([round((90 - math.degrees(psi.alpha)) % 180, 9) % 180 for _, psi in pairs])
    turn = "direction of the {nth} wavelet's wave vector, from the x axis towards the y axis, modulo 180"
    width = "standard deviation of the {nth} wavelet's Gaussian envelope along its wave vector"
    return {
        "j": Quantity(j, "1", "scale index of the {nth} wavelet"),
        "theta": Quantity(theta, "degree", turn),
        "xi": Quantity(
            np.array([psi.xi for _, psi in pairs]) / (2 * math.pi),
            "cycles/pixel",
            "centre frequency of the {nth} wavelet",
        ),
        "sigma": Quantity(np.array([psi.sigma for _, psi in pairs]), "pixel", width),
        "scale": Quantity(2.0**j, "pixel", "scale 2^j of the {nth} wavelet"),
    }


def line_labels(wavelets: "Sequence[Morlet1D | Meyer1D]", sampling_rate: float | None) -> dict[str, Quantity]:
    """Return the labels of 1-D wavelets, in Hz and seconds where the sampling rate (Hz) is known."""
    rate, frequency, time = (1.0, "cycles/sample", "sample") if sampling_rate is None else (sampling_rate, "Hz", "s")
    j, n = np.array([psi.j for psi in wavelets], np.int8), np.array([psi.n for psi in wavelets], np.int16)
    xi, sigma = (rate * np.array(values) for values in zip(*((psi.xi, psi.sigma) for psi in wavelets), strict=True))
    return {
        "j": Quantity(j, "1", "log2 of the {nth} wavelet's largest subsampling"),
        "n": Quantity(n, "1", "index of the {nth} wavelet in its bank"),
        "xi": Quantity(xi, frequency, "centre frequency of the {nth} wavelet"),
        "sigma": Quantity(sigma, frequency, "standard deviation of the {nth} wavelet's Gaussian in frequency"),
        "scale": Quantity(
            1 / (2 * math.pi * sigma), time, "standard deviation of the {nth} wavelet's Gaussian envelope in time"
        ),
    }


def joint_paths(labels: NDArray[np.intp], banks: Sequence[tuple[str, str, int, Mapping[str, Quantity]]]) -> Paths:
    """Label the paths of a joint time–frequency transform.

    Parameters
    ----------
    labels
        (paths, 4): order, n2, n_fr, n1; −1 where a path has none.
    banks
        What the names of a bank's columns end in, which one it is in words, its column of ``labels``, and its labels.
    """
    columns: dict[str, NDArray[Any]] = {"order": labels[:, 0].astype(np.int8)}
    units, descriptions = {"order": "1"}, {"order": "scattering order: the number of wavelets along time"}
    for m, nth, column, quantities in banks:
        for name, quantity in quantities.items():
            whole = quantity.values.dtype.kind == "i"
            absent = quantity.values.dtype.type((0 if name == "spin" else -1) if whole else np.nan)
            columns[name + m] = np.append(quantity.values, absent)[labels[:, column]]
            units[name + m], descriptions[name + m] = quantity.unit, quantity.text.format(nth=nth)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(labels[:, 1:3].tolist()):
        rows.setdefault(tuple(n for n in key if n >= 0), []).append(row)
    return Paths(columns, units, descriptions, {key: np.array(places) for key, places in rows.items()})
