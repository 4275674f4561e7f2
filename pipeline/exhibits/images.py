"""What a page shows of images: pictures and scattering disks, maps of fields, and energies by scale and direction."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline import charts
from scattercube.pipeline.exhibits.view import (
    CURVE_SAMPLES,
    View,
    colour_limits,
    flat,
    legend,
    mean_of,
    spread,
    thinned,
)

if TYPE_CHECKING:
    import xarray as xr

MOST_PIXELS = 320  # along a picture of a sample
MAP_PIXELS = 640  # and along a map of a field
FIELDS = 3  # that are shown


def examples(view: View) -> dict[str, Any]:
    """A few samples of each class as picture and disks, on colour scales that all of them share."""
    if not view.examples:
        return {"groups": []}
    if view.is_field:
        return _maps(view)
    rows = np.unique(np.concatenate(list(view.examples.values())))
    signal = view.chunks["signal"]
    pictures = {int(row): thinned(signal, row, MOST_PIXELS).values for row in rows}
    limits = _grey_limits(list(pictures.values()))
    values = view.means(rows, np.arange(len(view.order)))
    place = {int(row): index for index, row in enumerate(rows)}
    disks, bars = _disks(view, values)

    def sample(row: int, label: str) -> dict[str, Any]:
        name = view.name(row)
        alt = f"sample {name} of class {label}" if label else f"sample {name}"
        return {
            "caption": view.caption(row),
            "picture": {"src": charts.photograph(pictures[row], limits, MOST_PIXELS), "alt": alt},
            "disks": [{"src": of[place[row]], "alt": f"scattering disk of order {m} of {name}"} for m, of in disks],
        }

    return {
        "groups": [
            {"label": label, "n": len(view.classes[label]), "samples": [sample(int(row), label) for row in some]}
            for label, some in view.examples.items()
        ],
        "limits": limits,
        "bars": bars,
        "channels": signal.sizes.get("channel", 0),
    }


def _grey_limits(pictures: list[np.ndarray]) -> tuple[float, float]:
    """Black and white: all that 8 bits can hold, else all but the outermost hundredth of the values."""
    if all(picture.dtype == np.uint8 for picture in pictures):
        return (0.0, 255.0)
    values = np.concatenate([picture[np.isfinite(picture)].ravel() for picture in pictures])
    low, high = np.percentile(values, (0.5, 99.5)).tolist() if len(values) else (0.0, 1.0)
    return (low, high)


def _disks(view: View, values: np.ndarray) -> tuple[list[tuple[int, list[str]]], list[dict[str, Any]]]:
    """Draw the disks of mean coefficients (sample, path), order by order, and describe their colour scales."""
    disk, disks, bars = charts.Disk(view.columns, int(view.spec["J"])), [], []
    values = np.nan_to_num(values)
    for order in range(1, min(2, int(view.order.max())) + 1):
        ends = colour_limits(values[:, view.order == order])
        disks.append((order, [disk.draw(one, disk.paths(order), ends) for one in values]))
        bars.append({"name": f"order {order}", "limits": ends})
    return disks, bars


def _maps(view: View) -> dict[str, Any]:
    """Maps of a few fields: the signal, how much of it is there, and the first order scale by scale."""
    rows, signal = view.rows[:FIELDS], view.chunks["signal"]
    pictures = [thinned(signal, row, MAP_PIXELS) for row in rows]
    limits = _grey_limits([picture.values for picture in pictures])
    fields, means = [], []
    for row, picture in zip(rows.tolist(), pictures, strict=True):
        S = thinned(view.cube["scattering"], row)
        S = S.mean("channel") if "channel" in S.dims else S
        means.append(mean_of(flat(S)))
        name = view.name(row)
        maps = [{"title": "signal", "alt": f"map of {name}", "limits": None}]
        maps[0]["src"] = charts.photograph(picture.values, limits, MAP_PIXELS)
        maps += _coefficient_maps(view, S, name)
        if "coverage" in view.cube:
            maps += _coverage_maps(view, row, name)
        fields.append({"id": name, "maps": maps, "window": _window(S, view.cube["scattering"])})
    disks, bars = _disks(view, np.stack(means))
    for index, field in enumerate(fields):
        field["disks"] = [
            {"src": of[index], "alt": f"scattering disk of order {m} of {field['id']}"} for m, of in disks
        ]
    return {
        "fields": fields,
        "groups": fields,
        "limits": limits,
        "bars": bars,
        "channels": signal.sizes.get("channel", 0),
        "n_fields": len(view.rows),
    }


def _coefficient_maps(view: View, S: "xr.DataArray", name: str) -> list[dict[str, Any]]:
    """The first order at each scale, averaged over directions."""
    step = _map_step(S)
    maps = []
    for scale in np.unique(view.columns["scale1"][view.order == 1]) if (view.order == 1).any() else ():
        paths = np.flatnonzero((view.order == 1) & (view.columns["scale1"] == scale))
        values = S.isel(path=paths).mean("path", dtype=np.float64).values[::step, ::step]
        limits = colour_limits(values)
        title = f"first order, {scale:g} px"
        maps.append(
            {
                "title": title,
                "limits": limits,
                "src": charts.coloured(values, limits),
                "alt": f"{title}, of {name}",
            }
        )
    return maps


def _coverage_maps(view: View, row: int, name: str) -> list[dict[str, Any]]:
    """How much of the surroundings of each position is there, for the coefficient that sees the least of it."""
    coverage = thinned(view.cube["coverage"], row)
    step = _map_step(coverage)
    seen = coverage.min([dim for dim in coverage.dims if dim in ("path", "channel")]).values[::step, ::step]
    src = charts.coloured(seen, (0.0, 1.0), "viridis", log=False)
    return [
        {"title": "coverage, the least of all paths", "limits": (0.0, 1.0), "src": src, "alt": f"coverage of {name}"}
    ]


def _map_step(values: "xr.DataArray") -> int:
    return -(-max(values.sizes[dim] for dim in ("y", "x")) // MAP_PIXELS)


def _window(shown: "xr.DataArray", whole: "xr.DataArray") -> dict[str, Any]:
    """Say which part of the cube was read, and every which of its outputs."""
    positions = {dim: shown[dim].values for dim in ("y", "x")}
    step = 1
    if len(positions["x"]) > 1:
        stride = float(whole["x"].values[1] - whole["x"].values[0])
        step = round((positions["x"][1] - positions["x"][0]) / stride)
    covered = all(len(values) * step >= whole.sizes[dim] for dim, values in positions.items())
    ends = {dim: (float(values[0]), float(values[-1])) for dim, values in positions.items()}
    return {"step": step, "whole": covered, "ends": ends}


def filters(view: View) -> str:
    """The drawing of the filter bank; empty where the cube has no wavelets."""
    first = view.order == 1
    if not first.any():
        return ""
    return charts.filter_bank(int(view.spec["J"]), view.columns["theta1"][first & (view.columns["j1"] == 0)])


def energies(view: View) -> dict[str, Any] | None:
    """First-order energies of the most frequent classes, and what the page says about them; None without any."""
    first = np.flatnonzero(view.order == 1)
    if not len(first) or not view.classes:
        return None
    first = first[np.lexsort((view.columns["theta1"][first], view.columns["j1"][first]))]
    thetas, scales = (np.unique(view.columns[name][first]) for name in ("theta1", "scale1"))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    labels = []
    for label in view.frequent:
        squares = view.mean_squares(spread(view.classes[label], CURVE_SAMPLES), first)
        energy = squares[np.isfinite(squares).all(axis=1)].reshape(-1, len(scales), len(thetas))
        by_theta = energy.mean(axis=0).sum(axis=0) if len(energy) else np.zeros(1)
        if by_theta.sum() > 0:
            drawn.append((np.percentile(energy.sum(axis=2), (25, 50, 75), axis=0), by_theta / by_theta.mean()))
            labels.append(label)
    if not drawn:
        return None
    return {"svg": charts.energies(scales, thetas, drawn), "legend": legend(labels), "n_classes": len(view.classes)}
