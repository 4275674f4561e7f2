"""Pictures of signals in time: waveforms, scalograms, modulations, filter banks and spectra of energy, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.kernels.morlet import SIGMA_0, Morlet1D
from scattercube.pipeline.charts import BANDS, COLOURS, DASHES, INK, colour_of, style, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limits = tuple[float, float]
_POINTS = 24  # of a filter's drawing, within a standard deviation
_TRUNCATION = 1e-3  # of a filter's peak, where its drawing ends


@dataclass(frozen=True)
class Scalogram:
    """First-order coefficients against time and log-frequency.

    Attributes
    ----------
    values
        (band, time), or (band,) where the average is over all of the signal.
    xi
        Centre frequency of each band, falling.
    times
        Where the columns lie; none where there are none.
    """

    values: np.ndarray
    xi: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Grid:
    """Second-order coefficients, averaged over time, against two quantities.

    Attributes
    ----------
    values
        (row, column); NaN where there is no path.
    rows, columns
        What they are of: frequencies of first wavelets, falling, or across bands, falling to negative; rates, rising.
    """

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def portrait(
    trace: tuple[np.ndarray, np.ndarray, np.ndarray],
    duration: float,
    units: tuple[str, str],
    scalogram: Scalogram | None,
    limits: tuple[Limits, Limits],
    modulations: Grid | None = None,
    scales: Grid | None = None,
    *,
    alone: bool = False,
) -> str:
    """Draw a signal as SVG: its waveform above its scalogram, beside or above what its second order says.

    Parameters
    ----------
    trace
        Where parts of the signal begin, and the lowest and the highest value of each.
    duration
        Of the signal, as positions are.
    units
        Of time and of frequency.
    limits
        Ends of the colour scales of the first and the second order.
    modulations
        Against the frequency of the first wavelet and the rate: beside the scalogram, with which it shares an axis.
    scales
        Against the frequency across bands and the rate: below the scalogram.
    alone
        Whether it has the whole width of the page.
    """
    below, beside = scales is not None, modulations is not None
    height = 3.5 if below else 2.5 if scalogram is not None else 1.1
    tall, left, narrow = height * (1.2 if alone else 1), 0.53, 1.6 if alone else 0.85
    width = 9.6 if alone else 3.4
    wide = width - left - (narrow + 0.13 if beside else 0.15 if below else 0.06)
    with style(10 if alone else 8) as figure_of:
        figure = figure_of((width, tall), fixed=True)

        def axes(x: float, y: float, size: float, high: float) -> "Axes":
            return figure.add_axes((x / width, y / tall, size / width, high / tall))

        top = axes(left, tall - 0.55, wide, 0.48)
        _waveform(top, trace, duration)
        if scalogram is None:
            top.set_xlabel(f"time ({units[0]})", labelpad=1)
            return svg_of(figure)
        top.tick_params(labelbottom=False)
        base = 1.55 if below else 0.38
        middle = axes(left, base, wide, tall - base - 0.65)
        _scalogram(middle, scalogram, duration, units, limits[0])
        if modulations is not None:
            right = axes(left + wide + 0.085, base, narrow, tall - base - 0.65)
            _image(right, modulations.values, limits[1])
            _log_ticks(right.xaxis, modulations.columns, 3)
            _log_ticks(right.yaxis, modulations.rows, 6)
            right.tick_params(labelleft=False)
            right.set_xlabel(f"ξ₂ ({units[1]})", labelpad=1)
        if scales is not None:
            bottom = axes(left, 0.38, wide, 0.8)
            _image(bottom, scales.values, limits[1])
            _log_ticks(bottom.xaxis, scales.columns, 6)
            shown = np.arange(len(scales.rows) // 2 % 2, len(scales.rows), 2)
            bottom.set_yticks(shown, [f"{scales.rows[row]:.2g}" for row in shown])
            bottom.set_xlabel(f"rate ξ₂ ({units[1]})", labelpad=1)
            bottom.set_ylabel("cycles/octave", labelpad=2)
            for word, y in (("rising", 0.75), ("falling", 0.25)):
                bottom.text(1.005, y, word, rotation=90, va="center", transform=bottom.transAxes, fontsize=7)
        return svg_of(figure)


def _waveform(ax: "Axes", trace: tuple[np.ndarray, np.ndarray, np.ndarray], duration: float) -> None:
    starts, lows, highs = trace
    if np.array_equal(lows, highs, equal_nan=True):
        ax.plot(starts, lows, color=COLOURS[0], linewidth=0.8)
    else:
        ends = [*starts, duration]
        ax.stairs(highs, ends, baseline=lows, fill=True, color=COLOURS[0], linewidth=0)
        ax.stairs(highs, ends, baseline=None, color=COLOURS[0], linewidth=0.4)
    finite = np.concatenate([lows[np.isfinite(lows)], highs[np.isfinite(highs)], np.zeros(1)])
    low, high = finite.min(), finite.max()
    ax.set_xlim(0, duration)
    ax.set_yticks([low, high] if high > low else [low], [f"{v:.2g}" for v in ([low, high] if high > low else [low])])
    ax.spines[["top", "right"]].set_visible(False)


def _scalogram(ax: "Axes", one: Scalogram, duration: float, units: tuple[str, str], limits: Limits) -> None:
    if one.values.ndim == 1:
        ax.plot(np.maximum(one.values, limits[0]), np.arange(len(one.xi)), color=COLOURS[0], linewidth=1.2)
        ax.set(xscale="log", xlim=(limits[0], 1.1 * limits[1]), ylim=(len(one.xi) - 0.5, -0.5))
        ax.set_xlabel("mean over the signal", labelpad=1)
    else:
        step = (one.times[1] - one.times[0]) if len(one.times) > 1 else duration
        ends = (one.times[0] - step / 2, one.times[-1] + step / 2) if len(one.times) > 1 else (0.0, duration)
        _image(ax, one.values, limits, extent=(*ends, len(one.xi) - 0.5, -0.5))
        ax.set_xlim(0, duration)
        ax.locator_params(axis="x", nbins=5, prune="upper")  # the last number would meet those of the next axes
        ax.set_xlabel(f"time ({units[0]})", labelpad=1)
    _log_ticks(ax.yaxis, one.xi, 6)
    ax.set_ylabel(f"ξ₁ ({units[1]})", labelpad=2)


def _image(ax: "Axes", values: np.ndarray, limits: Limits, **options: Any) -> None:
    ax.imshow(colour_of(values, limits), aspect="auto", interpolation="none", **options)
    ax.spines[:].set_visible(False)


def _log_ticks(axis: Any, at: np.ndarray, most: int) -> None:
    """Put round numbers where they lie between the places 0, 1, … of an axis, whose numbers rise or fall."""
    falls = at[0] > at[-1]
    numbers = _round_numbers(float(at.min()), float(at.max()), most)
    places = np.interp(np.log(numbers), np.log(at[::-1] if falls else at), np.arange(len(at)))
    # Wavelets that are spaced linearly lie close to each other: there, numbers would stand one on the other.
    kept = [len(numbers) - 1]
    for index in range(len(numbers) - 2, -1, -1):
        if abs(places[index] - places[kept[-1]]) >= len(at) / most:
            kept.append(index)
    axis.set_ticks((len(at) - 1 - places if falls else places)[kept], [in_figures(numbers[index]) for index in kept])
    axis.set_ticks([], minor=True)


def _round_numbers(low: float, high: float, most: int) -> np.ndarray:
    """Return 1, 2 and 5 times powers of ten between two numbers, or fewer of them; the ends where there is none."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = np.array([digit * 10.0**power for power in powers for digit in digits])
        found = found[(found >= low * 0.999) & (found <= high * 1.001)]
        if 0 < len(found) <= most:
            return found
    return found[:: -(-len(found) // most)] if len(found) else np.unique([low, high])


def in_figures(value: float) -> str:
    """Write a frequency for people, thousands with a k."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


def filter_bank(
    banks: Sequence[tuple[str, np.ndarray, np.ndarray]],
    rate: float,
    unit: str,
    T: float,
    across: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:
    """Draw banks of 1-D wavelets as SVG: each |ψ̂| against frequency, the low-pass, and the sum of their squares.

    Parameters
    ----------
    banks
        What each is of, and centres and widths of its wavelets, in ``unit``.
    rate
        Of the signal, in the unit of frequency for which a sample is one cycle.
    T
        Scale of the low-pass in samples; 0 where there is none.
    across
        Centres and widths of the filters across bands, in cycles/octave, where there are some.
    """
    with style() as figure_of:
        figure = figure_of((9.6, 2.5 * len(banks) + (2.2 if across else 0)))
        rows = np.asarray(figure.subplots(len(banks) + bool(across), 1, squeeze=False))[:, 0]
        for ax, (title, xi, sigma) in zip(rows, banks, strict=False):
            lowest = min(xi.min() / 2, rate * SIGMA_0 / T if T else xi.min())
            grid = np.geomspace(lowest, rate / 2, 600)
            total = np.zeros_like(grid)
            for centre, width in zip(xi / rate, sigma / rate, strict=True):
                f, weights = _spectrum(float(centre), float(width))
                total += np.interp(grid / rate, f, weights, 0, 0) ** 2 + np.interp(-grid / rate, f, weights, 0, 0) ** 2
                octave = int(np.floor(-np.log2(centre)))
                above = (f > 0) & (weights > 0)
                ax.plot(f[above] * rate, weights[above], color=COLOURS[octave % len(COLOURS)], linewidth=0.9, zorder=2)
            low = np.exp(-0.5 * (grid / rate * T / SIGMA_0) ** 2) if T else np.zeros_like(grid)
            if T:
                ax.plot(grid, low, color=INK, dashes=(5, 2), linewidth=1.1)
            ax.plot(grid, total / 2 + low**2, color=INK, dashes=(1, 1.5), linewidth=1.1)
            ax.set(xscale="log", xlim=(lowest, rate / 2), ylim=(0, None), xlabel=f"frequency ({unit})", ylabel="|ψ̂|")
            ticks = _round_numbers(lowest, rate / 2, 12)
            ax.set_xticks(ticks, [in_figures(tick) for tick in ticks])
            ax.set_xticks([], minor=True)
            ax.set_title(title)
        if across:
            ax = rows[-1]
            for n, (centre, width) in enumerate(zip(*across, strict=True)):
                f = np.linspace(centre - 4 * width, centre + 4 * width, 97)
                dash = {"dashes": (5, 2)} if centre == 0 else {}
                colour = INK if centre == 0 else COLOURS[n % len(COLOURS)]
                ax.plot(f, np.exp(-0.5 * ((f - centre) / width) ** 2), color=colour, linewidth=1.1, **dash)
            ax.set(xlabel="frequency across bands (cycles/octave), negative where bands fall", ylabel="|ψ̂|")
            ax.set_title("across the bands of the first order")
        for ax in rows:
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        return svg_of(figure)


def _spectrum(xi: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrum of a Morlet wavelet, sampled as a transform would, and at which frequencies."""
    n_points = int(np.ceil(_POINTS / sigma))
    box = Morlet1D(xi, sigma, 0, 0).box(n_points, _TRUNCATION, np.dtype(np.float64))
    return (box.origin[0] + np.arange(len(box.weights))) / n_points, box.weights


@dataclass(frozen=True)
class Panel:
    """Energies of some order against frequency or rate.

    Attributes
    ----------
    title, label
        Which order, and what the axis is.
    at
        Its numbers, ascending.
    by_class
        For each class, in the order of ``COLOURS``: quartiles over samples, (3, n).
    """

    title: str
    label: str
    at: np.ndarray
    by_class: Sequence[np.ndarray]


def energies(panels: Sequence[Panel]) -> str:
    """Draw energies as SVG, side by side: medians over samples, and the middle half."""
    with style() as figure_of:
        figure = figure_of((9.6, 3.6))
        for ax, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for quartiles, colour, dash in zip(panel.by_class, COLOURS, DASHES, strict=False):
                if len(panel.by_class) <= BANDS:
                    ax.fill_between(panel.at, quartiles[0], quartiles[2], color=colour, alpha=0.15, linewidth=0)
                line = {"color": colour, "dashes": dash, "linewidth": 1.6, "marker": "o", "markersize": 2.5}
                ax.plot(panel.at, quartiles[1], **line)
            medians = np.array([quartiles[1] for quartiles in panel.by_class])
            medians = medians[medians > 0]
            ax.set_xscale("log")
            ticks = _round_numbers(float(panel.at[0]), float(panel.at[-1]), 7)
            ax.set_xticks(ticks, [in_figures(tick) for tick in ticks])
            ax.set_xticks([], minor=True)
            if medians.size:
                ax.set_yscale("log")
                ax.set_ylim(max(medians.min(), 1e-7 * medians.max()) / 2, None)
            ax.set(xlabel=panel.label, ylabel="energy (unit of signal)²", title=panel.title)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        return svg_of(figure)
