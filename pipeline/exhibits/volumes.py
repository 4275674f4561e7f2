"""What a page shows of volumes: sections or projections of their channels, and coefficients by scale and degree."""

from typing import Any

import numpy as np

from scattercube.pipeline import charts, charts_volumes
from scattercube.pipeline.charts_volumes import Bars
from scattercube.pipeline.exhibits.view import BLOCK_NBYTES, CURVE_SAMPLES, View, spread

AXES = ("z", "y", "x")
CHANNELS = 3  # that are shown
VOXELS = 240  # along a picture
GROUPS = 28  # of bars in one panel


def examples(view: View) -> dict[str, Any]:
    """A few samples of each class, seen along z, y and x, or their channels along z, on scales that all share."""
    if not view.examples:
        return {"groups": []}
    signal = view.chunks["signal"]
    n_channels = signal.sizes.get("channel", 0)
    names = [str(name) for name in signal["channel"].values[:CHANNELS]] if n_channels > 1 else []
    rows = np.unique(np.concatenate(list(view.examples.values())))
    small = signal.nbytes // max(1, signal.sizes["sample"]) <= BLOCK_NBYTES
    # Projections of values of both signs would say nothing: they cancel.
    projected = small and all(_not_negative(signal[int(row)].values) for row in rows)
    views = {int(row): _views(view, int(row), projected, bool(names)) for row in rows}
    titles = names or [f"along {axis}" for axis in AXES]
    limits = [_limits([pictures[index] for pictures in views.values()]) for index in range(len(titles))]
    if not names:
        limits = [(min(low for low, _ in limits), max(high for _, high in limits))] * len(titles)

    def sample(row: int, label: str) -> dict[str, Any]:
        name = view.name(row)
        of = f" of class {label}" if label else ""
        pictures = [
            {
                "src": charts.coloured(picture, ends, "magma" if projected else "RdBu_r", log=False),
                "alt": f"sample {name}{of}, {title}",
            }
            for picture, ends, title in zip(views[row], limits, titles, strict=True)
        ]
        return {"caption": view.caption(row), "pictures": pictures}

    return {
        "groups": [
            {"label": label, "n": len(view.classes[label]), "samples": [sample(int(row), label) for row in some]}
            for label, some in view.examples.items()
        ],
        "titles": titles,
        "limits": limits,
        "projected": projected,
        "by_channel": bool(names),
        "channels": n_channels,
    }


def _not_negative(values: np.ndarray) -> bool:
    return bool(np.nanmin(values, initial=0) >= 0)


def _views(view: View, row: int, projected: bool, by_channel: bool) -> list[np.ndarray]:
    """See a volume along its axes, or its first channels along z: (row, column) float64 each."""
    one = view.chunks["signal"][row]
    if by_channel:
        parts = [(one.isel(channel=index), "z") for index in range(min(one.sizes["channel"], CHANNELS))]
    else:
        first = one.isel(channel=0) if "channel" in one.dims else one
        parts = [(first, axis) for axis in AXES]
    found = []
    for part, axis in parts:
        flat = part.mean(axis, dtype=np.float64) if projected else part.isel({axis: part.sizes[axis] // 2})
        step = -(-max(flat.shape) // VOXELS)
        found.append(np.asarray(flat.values[::step, ::step], np.float64))
    return found


def _limits(pictures: list[np.ndarray]) -> tuple[float, float]:
    """The ends of a linear colour scale, with zero in the middle where values have both signs."""
    values = np.concatenate([picture[np.isfinite(picture)] for picture in pictures])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if 0 < low < 1e-6 * high:
        low = 0.0
    if low < 0:
        low, high = -max(-low, high), max(-low, high)
    return low, high


def filters(view: View) -> str:
    """The drawing of the wavelets; empty where the cube has none."""
    spec = view.spec
    if not (view.order == 1).any():
        return ""
    return charts_volumes.filter_bank(float(spec["sigma_0"]), int(spec["J"]), int(spec["L"]))


def energies(view: View) -> dict[str, Any] | None:
    """The coefficients of the middle power by order, scale and degree, over all samples; None without any."""
    powers = np.unique(view.columns["power"])
    power = float(powers[len(powers) // 2])
    if not len(view.rows) or not (view.order > 0).any():
        return None
    rows = spread(view.rows, CURVE_SAMPLES)
    degrees = np.unique(view.columns["l"][view.order > 0])
    panels = []
    for order in range(1, min(2, int(view.order.max())) + 1):
        paths = np.flatnonzero((view.order == order) & (view.columns["power"] == power))
        scales = np.stack([view.columns[f"scale{m}"][paths] for m in range(1, order + 1)], axis=1)
        values = view.means(rows, paths)
        values = values[np.isfinite(values).all(axis=1)]
        if not values.any():
            continue
        groups, group = np.unique(scales, axis=0, return_inverse=True)
        quartiles = np.zeros((3, len(groups), len(degrees)))
        place = (group.ravel(), np.searchsorted(degrees, view.columns["l"][paths]))
        quartiles[:, *place] = np.percentile(values, (25, 50, 75), axis=0)
        names = [" → ".join(f"{scale:g}" for scale in one) for one in groups][:GROUPS]
        title = f"order {order}: sum over all voxels of U{'' if power == 1 else f'^{power:g}'}"
        panels.append(Bars(title, names, degrees.tolist(), quartiles[:, :GROUPS]))
    if not panels:
        return None
    return {
        "svg": charts_volumes.coefficients(panels),
        "n_samples": len(rows),
        "power": power,
        "powers": powers.tolist(),
    }
