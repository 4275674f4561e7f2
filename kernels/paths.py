"""Which scattering coefficients exist, in which order they stand, and what each is called."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.morlet import Morlet

_QUANTITIES = {
    "j": ("1", "scale index of the {nth} wavelet"),
    "theta": ("degree", "direction of the {nth} wavelet's wave vector, from the x axis towards the y axis, modulo 180"),
    "xi": ("cycles/pixel", "centre frequency of the {nth} wavelet"),
    "sigma": ("pixel", "standard deviation of the {nth} wavelet's Gaussian envelope along its wave vector"),
    "scale": ("pixel", "scale 2^j of the {nth} wavelet"),
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True, eq=False)
class Paths:
    """The table of labels of a transform: one row per coefficient, in the order of its output.

    Orders ascend; inside an order, paths are sorted by (j1, θ1, j2, θ2, …), and j1 < j2 < … along a path.

    Parameters
    ----------
    columns
        ``order`` and, for m = 1 … the largest order, ``j<m>``, ``theta<m>``, ``xi<m>``, ``sigma<m>``, ``scale<m>``:
        arrays (n_paths,). Where a path has no m-th wavelet, ``j<m>`` is −1 and the others are NaN.
    units
        Unit of each column.
    descriptions
        What each column means, for a reader of the cube.
    rows
        For scales (j1, …, jm), the row of each tuple of orientations: an array of shape (L,)·m.
    """

    columns: dict[str, NDArray[Any]]
    units: dict[str, str]
    descriptions: dict[str, str]
    rows: dict[tuple[int, ...], NDArray[np.intp]]

    def __len__(self) -> int:
        return len(self.columns["order"])


def morlet_paths(J: int, L: int, max_order: int) -> Paths:
    """Return the paths of a cascade of Morlet wavelets up to an order; orders above J have none."""
    columns: dict[str, list[Any]] = {"order": []}
    units, descriptions = {"order": "1"}, {"order": "scattering order: the number of wavelets along the path"}
    for m in range(1, max_order + 1):
        for name, (unit, text) in _QUANTITIES.items():
            columns[f"{name}{m}"] = []
            units[f"{name}{m}"] = unit
            descriptions[f"{name}{m}"] = text.format(nth=_ORDINALS[m - 1] if m <= len(_ORDINALS) else f"{m}-th")

    rows: dict[tuple[int, ...], NDArray[np.intp]] = {}
    n_paths = 0
    for order in range(min(max_order, J) + 1):
        n_angles = L**order
        scales = np.array(list(itertools.combinations(range(J), order)), dtype=np.int8).reshape(
            math.comb(J, order), order
        )
        angles = np.indices((L,) * order, dtype=np.int16).reshape(order, n_angles).T
        j = np.repeat(scales, n_angles, axis=0)
        theta = np.tile(angles, (len(scales), 1))
        keys = [column for m in range(order) for column in (j[:, m], theta[:, m])]
        sort = np.lexsort(keys[::-1]) if keys else np.zeros(1, dtype=np.intp)
        place = np.empty_like(sort)
        place[sort] = np.arange(n_paths, n_paths + len(sort))
        for scale, block in zip(scales, place.reshape(-1, n_angles), strict=True):
            rows[tuple(int(x) for x in scale)] = block.reshape((L,) * order)
        n_paths += len(sort)

        columns["order"].append(np.full(len(sort), order, dtype=np.int8))
        for m in range(1, max_order + 1):
            present = m <= order
            jm = j[sort, m - 1] if present else np.full(len(sort), -1, dtype=np.int8)
            columns[f"j{m}"].append(jm)
            labels = _labels(J, L)[jm, theta[sort, m - 1]] if present else np.full((len(sort), 4), np.nan)
            for name, values in zip(("theta", "xi", "sigma", "scale"), labels.T, strict=True):
                columns[f"{name}{m}"].append(values)
    return Paths({name: np.concatenate(parts) for name, parts in columns.items()}, units, descriptions, rows)


def _labels(J: int, L: int) -> NDArray[np.float64]:
    """The labels (theta, xi, sigma, scale) of each wavelet, an array (J, L, 4)."""
    table = np.empty((J, L, 4))
    for j, theta in itertools.product(range(J), range(L)):
        wavelet = Morlet.at(j, theta, L)
        degrees = (90 - math.degrees(wavelet.alpha)) % 180
        table[j, theta] = round(degrees, 9) % 180, wavelet.xi / (2 * math.pi), wavelet.sigma, 2**j
    return table
