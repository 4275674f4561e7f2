"""What a page shows of signals in time: waveforms, scalograms, modulations, and energies by frequency and rate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.kernels.morlet import morlet_bank
from scattercube.pipeline import charts_signals
from scattercube.pipeline.charts_signals import Grid, Panel, Scalogram
from scattercube.pipeline.exhibits.view import (
    CURVE_SAMPLES,
    View,
    colour_limits,
    envelope,
    legend,
    spread,
    thinned,
)

if TYPE_CHECKING:
    import xarray as xr

TRACE_PARTS = 300  # of a waveform, each with its lowest and highest value
COLUMNS = 240  # of a scalogram; both are more where one sample has all the page
ALONE = 3


@dataclass(frozen=True)
class Sketch:
    """The numbers behind the drawing of one sample."""

    trace: tuple[np.ndarray, np.ndarray, np.ndarray]
    scalogram: Scalogram | None
    second: Grid | None


def examples(view: View) -> dict[str, Any]:
    """A few samples of each class as waveform, scalogram and modulations, on colour scales that all of them share."""
    joint = "spin" in view.columns
    if not view.examples:
        return {"groups": [], "joint": joint}
    signal = view.chunks["signal"]
    rows_shown = np.concatenate(list(view.examples.values())).tolist()
    alone = len(rows_shown) == 1
    sketches = {row: _sketch(view, row, ALONE if alone else 1) for row in rows_shown}
    limits = [
        colour_limits(np.concatenate([part.values.ravel() for part in parts if part is not None] or [np.zeros(0)]))
        for parts in (
            [one.scalogram for one in sketches.values()],
            [one.second for one in sketches.values()],
        )
    ]
    spacing, time_unit = _sampling(view)
    frequency_unit = "Hz" if time_unit == "s" else "1/sample"
    groups = []
    for label, rows in view.examples.items():
        samples = []
        for row in rows.tolist():
            one, name = sketches[row], view.name(row)
            svg = charts_signals.portrait(
                one.trace,
                signal.sizes["time"] * spacing,
                (time_unit, frequency_unit),
                one.scalogram,
                (limits[0], limits[1]),
                **{"scales" if joint else "modulations": one.second},
                alone=alone,
            )
            what = "waveform" if one.scalogram is None else "waveform and scattering"
            alt = f"{what} of sample {name}" + (f" of class {label}" if label else "")
            samples.append({"caption": view.caption(row), "svg": svg, "alt": alt})
        groups.append({"label": label, "n": len(view.classes[label]), "samples": samples})
    first = next(iter(sketches.values()))
    bars = [
        {"name": f"order {order}", "limits": ends}
        for order, ends, part in zip((1, 2), limits, (first.scalogram, first.second), strict=True)
        if part is not None
    ]
    return {
        "groups": groups,
        "bars": bars,
        "joint": joint,
        "alone": alone,
        "global": first.scalogram is not None and first.scalogram.values.ndim == 1,
        "channels": signal.sizes.get("channel", 0),
    }


def _sampling(view: View) -> tuple[float, str]:
    """Seconds, or samples, from one value of a signal to the next, and their unit."""
    about = view.chunks["signal"].attrs
    spacing = [float(step) for step in np.atleast_1d(about.get("spacing", 1.0))]
    units = np.atleast_1d(about.get("spacing_units", "sample")).tolist()
    return (spacing[-1], "s") if units[-1] == "s" else (1.0, "sample")


def _sketch(view: View, row: int, detail: int) -> Sketch:
    """Read what the drawing of a sample needs, and no more of a long one than fits."""
    spacing, _ = _sampling(view)
    starts, lows, highs = envelope(view.chunks["signal"], row, detail * TRACE_PARTS)
    S = thinned(view.cube["scattering"], row)
    S = S.mean("channel") if "channel" in S.dims else S
    return Sketch((starts * spacing, lows, highs), _scalogram(view, S, detail * COLUMNS), _second(view, S))


def _scalogram(view: View, S: "xr.DataArray", most: int) -> Scalogram | None:
    """The first order against frequency and time; of a joint transform, what is averaged across bands."""
    paths = view.order == 1
    if "spin" in view.columns:
        paths &= view.columns["spin"] == 0
    if not paths.any():
        return None
    some = S.isel(path=np.flatnonzero(paths))
    times = S["time"].values if "time" in S.dims else np.zeros(0)
    step = max(1, -(-len(times) // most))
    if "frequency" in S.dims:
        values, xi = some.isel(path=0).transpose("frequency", "time").values, S["frequency"].values
        values, xi = values[np.isfinite(xi)], xi[np.isfinite(xi)]
    else:
        values, xi = some.transpose("path", ...).values, view.columns["xi1"][paths]
    falling = np.argsort(-xi, kind="stable")
    values = values[falling]
    return Scalogram(values[:, ::step] if values.ndim == 2 else values, xi[falling], times[::step])


def _second(view: View, S: "xr.DataArray") -> Grid | None:
    """The second order averaged over time: against rate, and frequency or frequency across bands."""
    paths = np.flatnonzero(view.order == 2)
    if not len(paths):
        return None
    row_name = "xi_fr" if "spin" in view.columns else "xi1"
    some = S.isel(path=paths)
    values = some.mean([dim for dim in some.dims if dim != "path"], dtype=np.float64).values
    at = {name: view.columns[name][paths] for name in (row_name, "xi2")}
    (rows, row), (columns, column) = (np.unique(at[name], return_inverse=True) for name in (row_name, "xi2"))
    total, count = (np.zeros((len(rows), len(columns))) for _ in range(2))
    np.add.at(total, (row, column), np.nan_to_num(values))
    np.add.at(count, (row, column), np.isfinite(values))
    grid = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Grid(grid[::-1], rows[::-1], columns)


def filters(view: View) -> str:
    """The drawing of the filter bank; empty where the cube has no wavelets."""
    n_banks = int(min(2, view.order.max()))
    if not n_banks:
        return ""
    spec, (spacing, time_unit) = view.spec, _sampling(view)
    rate, unit = 1 / spacing, "Hz" if time_unit == "s" else "cycles/sample"
    Q = [*np.atleast_1d(spec["Q"]).tolist(), 1]
    banks = []
    for name, q in zip(("first", "second")[:n_banks], Q, strict=False):
        bank = morlet_bank(spec["J"], q)
        xi, sigma = (rate * np.array([getattr(psi, part) for psi in bank]) for part in ("xi", "sigma"))
        banks.append((f"{name} order, {len(bank)} wavelets, {q} per octave", xi, sigma))
    across = None
    if "spin" in view.columns:
        pairs = np.unique(np.stack([view.columns["xi_fr"], view.columns["sigma_fr"]], axis=1), axis=0)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        across = (pairs[:, 0], pairs[:, 1])
    T = 2.0 ** spec["J"] if spec.get("T") is None else 0.0 if spec["T"] == "global" else float(spec["T"])
    return charts_signals.filter_bank(banks, rate, unit, T, across)


def energies(view: View) -> dict[str, Any] | None:
    """First-order energies by frequency, second-order ones by rate, of the most frequent classes; None without any."""
    shown = _energy_paths(view)
    if not shown or not view.classes:
        return None
    ats = [np.unique(view.columns[name][paths]) for _, name, paths in shown]
    by_class: list[list[np.ndarray]] = [[] for _ in shown]
    labels = []
    for label in view.frequent:
        rows = spread(view.classes[label], CURVE_SAMPLES)
        squares = view.mean_squares(rows, np.concatenate([paths for *_, paths in shown]))
        squares = squares[np.isfinite(squares).all(axis=1)]
        if not squares.any():
            continue
        start = 0
        for (_, name, paths), at, lines in zip(shown, ats, by_class, strict=True):
            summed = np.zeros((len(at), len(squares)))
            place = np.searchsorted(at, view.columns[name][paths])
            np.add.at(summed, place, squares[:, start : start + len(paths)].T)
            lines.append(np.percentile(summed, (25, 50, 75), axis=1))
            start += len(paths)
        labels.append(label)
    if not labels:
        return None
    words = {"xi1": "frequency ξ₁", "xi2": "rate ξ₂"}
    panels = [
        Panel(title, f"{words[name]} ({view.unit(name)})", at, lines)
        for (title, name, _), at, lines in zip(shown, ats, by_class, strict=True)
    ]
    return {
        "svg": charts_signals.energies(panels),
        "legend": legend(labels),
        "n_classes": len(view.classes),
        "names": [name for _, name, _ in shown],
    }


def _energy_paths(view: View) -> list[tuple[str, str, np.ndarray]]:
    """Title, coordinate and paths of the energies that can be drawn. Filters across bands take none of the first."""
    first, second = view.order == 1, view.order == 2
    if "spin" in view.columns:
        first &= view.columns["spin"] == 0
    found = [("first order", "xi1", first), ("second order", "xi2", second)]
    return [
        (title, name, np.flatnonzero(paths)) for title, name, paths in found if name in view.columns and paths.any()
    ]
