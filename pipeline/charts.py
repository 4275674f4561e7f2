"""Pictures for the report: scattering disks, samples, the filter bank and first-order energies.

Everything comes back as text that stands inside an HTML page: PNG as a data address, drawings as SVG whose lines and
letters take the colour of the page's text. No text of an archive enters a drawing: labels stand in the page around it.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import Scattering2D

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"  # drawn by matplotlib, then replaced by the colour of the page's text
# Okabe and Ito's colours without black, and dashes, so that lines differ without colour too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a63d2", "#8c8c8c")
DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2), (), (6, 2), (2, 2), (8, 2, 2, 2))
DISK_PIXELS = 240
OVERSAMPLING = 3
COLOUR_MAP = "magma"
BANDS = 4  # more than these many bands of quartiles hide each other


def png(pixels: NDArray[np.uint8]) -> str:
    """Return an image (y, x, 3) or (y, x, 4) as a PNG data address."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", pil_kwargs={"optimize": True})
    return _data_address(buffer.getvalue())


def photograph(sample: np.ndarray, limits: tuple[float, float], most: int = 320) -> str:
    """Return a sample (y, x) or (channel, y, x) as a PNG, from black to white between ``limits``.

    Three channels are red, green and blue; other numbers are averaged. Beyond ``most`` pixels it is thinned out. What
    is not finite is transparent.
    """
    low, high = limits
    step = -(-max(sample.shape[-2:]) // most)
    values = sample[..., ::step, ::step].astype(np.float64)
    if values.ndim == 3 and len(values) != 3:
        values = values.mean(axis=0)
    scaled = np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    there = np.isfinite(scaled)
    colours = np.broadcast_to(np.round(255 * np.where(there, scaled, 0)).astype(np.uint8), (3, *values.shape[-2:]))
    if not there.all():
        opaque = np.broadcast_to(there.all(axis=0) if there.ndim == 3 else there, values.shape[-2:])
        colours = np.concatenate([colours, np.uint8(255) * opaque[None]])
    return png(np.moveaxis(colours, 0, -1))


def coloured(values: np.ndarray, limits: tuple[float, float], colours: str = COLOUR_MAP, *, log: bool = True) -> str:
    """Return numbers (y, x) as a PNG, a pixel each, on a scale between ``limits``; not finite is transparent."""
    return png(np.round(255 * colour_of(values, limits, colours, log=log)).astype(np.uint8))


def colour_of(
    values: np.ndarray, limits: tuple[float, float], colours: str = COLOUR_MAP, *, log: bool = True
) -> NDArray[np.float64]:
    """Return the colour of each number, (…, 4) in 0 … 1: on a scale between ``limits``; not finite is transparent."""
    from matplotlib import colormaps

    there = np.isfinite(values)
    shown = np.where(there, values, limits[0]).astype(np.float64)
    low, high = np.log(limits) if log else limits
    scaled = ((np.log(np.maximum(shown, limits[0])) if log else shown) - low) / max(high - low, 1e-9)
    found: NDArray[np.float64] = colormaps[colours](np.clip(scaled, 0, 1))
    found[..., 3] = there
    return found


@dataclass(frozen=True)
class Disk:
    """The scattering disk (Bruna and Mallat 2013, figures 3 to 5): the frequency plane, cut up by paths.

    Radius 1 is the Nyquist frequency. Order 1: the path (j1, θ1) is the sector of directions around θ1, and around its
    opposite, between the radii 2^−(j1+1) and 2^−j1. Order 2: that sector is cut by angle into θ2 − θ1 from −90° to 90°,
    and by radius into j2, each ring as wide as 2^−j2, the finest outside. Inside 2^−J lies what the average keeps.

    Attributes
    ----------
    columns
        The path coordinates of a cube.
    J
        log2 of the largest scale.
    """

    columns: Mapping[str, np.ndarray]
    J: int

    @cached_property
    def thetas(self) -> np.ndarray:
        """The directions of the first wavelets in degrees, ascending."""
        return np.unique(self.columns["theta1"][self.columns["order"] == 1])

    @cached_property
    def _polar(self) -> tuple[np.ndarray, np.ndarray]:
        """Radius and angle in degrees, clockwise from the x axis as y points down, of every pixel."""
        n = DISK_PIXELS * OVERSAMPLING
        axis = (np.arange(n) + 0.5) * 2 / n - 1
        x, y = np.meshgrid(axis, axis)
        return np.hypot(x, y), np.degrees(np.arctan2(y, x))

    def paths(self, order: int) -> np.ndarray:
        """Return the path number of each pixel of the disk of order 1 or 2; -1 where there is none."""
        radius, angle = self._polar
        L, spacing = len(self.thetas), 180 / len(self.thetas)
        with np.errstate(divide="ignore"):
            octave = -np.log2(radius)
        j1 = np.clip(np.floor(octave), -1, self.J).astype(int)
        j1[radius >= 1] = -1
        turn = (angle - self.thetas[0]) / spacing + 0.5
        theta1 = np.floor(turn).astype(int) % L
        table = np.full((self.J + 2, L), -1) if order == 1 else np.full((self.J + 2, L, self.J + 1, L), -1)
        rows = np.flatnonzero(self.columns["order"] == order)
        place = [self.columns["j1"][rows].astype(int), np.searchsorted(self.thetas, self.columns["theta1"][rows])]
        if order == 1:
            table[tuple(place)] = rows
            return np.asarray(table[j1, theta1])
        place += [self.columns["j2"][rows].astype(int), np.searchsorted(self.thetas, self.columns["theta2"][rows])]
        table[tuple(place)] = rows
        # Widths 1/2, 1/4, … of the ring, the last as wide as the one before it would leave, counted from outside.
        depth = (2.0 ** -np.maximum(j1, 0) - radius) * 2.0 ** (np.maximum(j1, 0) + 1)
        n_rings = np.maximum(self.J - 1 - j1, 1)
        filled = depth * (1 - 2.0**-n_rings)
        ring = np.clip(np.floor(-np.log2(np.maximum(1 - filled, 1e-9))).astype(int), 0, n_rings - 1)
        j2 = np.minimum(j1 + 1 + ring, self.J)
        relative = np.floor((turn - np.floor(turn)) * L).astype(int) - L // 2
        return np.asarray(table[j1, theta1, j2, (theta1 + relative) % L])

    def draw(self, values: np.ndarray, paths: np.ndarray, limits: tuple[float, float]) -> str:
        """Return the disk of coefficients (path,) as a PNG, on a logarithmic scale between positive ``limits``."""
        from matplotlib import colormaps

        low, high = np.log(limits)
        scaled = (np.log(np.maximum(values, limits[0])) - low) / max(high - low, 1e-9)
        colours = np.vstack([colormaps[COLOUR_MAP](np.clip(scaled, 0, 1)), np.zeros(4)])  # -1: transparent
        image = colours[paths]
        image[..., :3] *= image[..., 3:]
        n = DISK_PIXELS
        image = image.reshape(n, OVERSAMPLING, n, OVERSAMPLING, 4).mean(axis=(1, 3))
        image[..., :3] /= np.maximum(image[..., 3:], 1e-9)
        return png(np.round(255 * image).astype(np.uint8))


def colour_bar() -> str:
    """Return the colours of the disks, low to high, as one row of pixels in a PNG."""
    from matplotlib import colormaps

    return png(np.round(255 * colormaps[COLOUR_MAP](np.linspace(0, 1, 256))[None]).astype(np.uint8))


def filter_bank(J: int, thetas: np.ndarray) -> str:
    """Draw the filters of J scales and the directions ``thetas`` (degree, in the order of the paths) as SVG.

    In frequency, as the sum of their squares, and in space.
    """
    L = len(thetas)
    S = Scattering2D(J, shape=(max(128, 2 ** (J + 1)),) * 2, L=L, max_order=0)
    shift = np.fft.fftshift
    phi = S.phi_hat()
    axes_hz = [shift(np.fft.fftfreq(n)) for n in phi.shape]
    with style() as figure_of:
        figure = figure_of((9.6, 7.2))
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1.25, 1)))
        plane, total = top.subplots(1, 2)
        for j in range(J):
            for theta in range(L):
                psi = shift(S.psi_hat(j, theta))
                plane.contour(axes_hz[1], axes_hz[0], psi, [psi.max() / 2], colors=[COLOURS[j % len(COLOURS)]])
        plane.contour(axes_hz[1], axes_hz[0], shift(phi), [phi.max() / 2], colors=[INK], linestyles="dashed")
        plane.set_title("Fourier plane: half of each filter's peak")
        energy = shift(S.littlewood_paley())
        extent = (axes_hz[1][0], axes_hz[1][-1], axes_hz[0][-1], axes_hz[0][0])
        image = total.imshow(energy, extent=extent, cmap="viridis", vmin=0, interpolation="nearest")
        total.set_title(f"Littlewood–Paley sum, {energy.min():.2f} to {energy.max():.2f}")
        top.colorbar(image, ax=total, shrink=0.85, label="share of a real image's energy")
        for ax in (plane, total):
            ax.set(aspect="equal", xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
            ax.set(xlabel="horizontal frequency (cycles/pixel)", ylabel="vertical frequency (cycles/pixel)")
        ascending = np.argsort(thetas)
        shown = [(f"ψ, {2**j} px", S.psi_hat(j, int(ascending[0])), 2**j) for j in _spread(J)]
        shown.append((f"φ, {2**J} px", phi, 2**J))
        some = ascending[_spread(L)]
        turned = [(f"ψ, θ = {thetas[t]:g}°", S.psi_hat(J - 1, int(t)), 2 ** (J - 1)) for t in some]
        grid = bottom.subplots(2, max(len(shown), len(turned)), squeeze=False)
        for ax in grid.flat:
            ax.axis("off")
        for row, filters in zip(grid, (shown, turned), strict=True):
            for ax, (title, spectrum, scale) in zip(row, filters, strict=False):
                _in_space(ax, spectrum, scale)
                ax.set_title(title, fontsize=9)
        return svg_of(figure)


def energies(scales: np.ndarray, thetas: np.ndarray, by_class: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw first-order energies as SVG: against scale in pixels, with the middle half of the samples, and direction.

    Parameters
    ----------
    scales, thetas
        In pixels and degrees, ascending.
    by_class
        For each class, in the order of ``COLOURS``: quartiles by scale, (3, n_scales), and the energy by direction
        relative to its mean, (n_theta,).
    """
    from matplotlib.ticker import LogFormatter

    with style() as figure_of:
        figure = figure_of((9.6, 3.6))
        left, right = figure.subplots(1, 2)
        for (quartiles, directions), colour, dash in zip(by_class, COLOURS, DASHES, strict=False):
            line = {"color": colour, "dashes": dash, "marker": "o", "markersize": 4, "linewidth": 1.6}
            if len(by_class) <= BANDS:
                left.fill_between(scales, quartiles[0], quartiles[2], color=colour, alpha=0.15, linewidth=0)
            left.plot(scales, quartiles[1], **line)
            # The first direction comes again at the end: 180° is 0°.
            right.plot([*thetas, thetas[0] + 180], [*directions, directions[0]], **line)
        left.set_xscale("log", base=2)
        medians = np.array([quartiles[1] for quartiles, _ in by_class])
        if medians.max() > 5 * medians.min() > 0:
            left.set_yscale("log")
            for formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
                formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        left.set_xticks(scales, [f"{scale:g}" for scale in scales])
        left.xaxis.minorticks_off()
        left.set(xlabel="scale of the wavelet (px)", ylabel="energy (unit of signal)²")
        right.set(xlabel="direction θ of the wave vector (degree)", ylabel="energy relative to the mean over θ")
        right.set_xticks(np.arange(0, 181, 45))
        for ax in (left, right):
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        return svg_of(figure)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Return a confusion matrix (true, predicted) with its classes as a PNG data address, coloured by row."""
    from matplotlib.figure import Figure

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.35 * len(classes)
    figure = Figure((side, side), layout="constrained", dpi=100)
    ax = figure.add_subplot(xlabel="predicted", ylabel="true")
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # A label is any text: without this a dollar sign would start a formula.
    ax.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    ax.set_yticks(range(len(classes)), classes, parse_math=False)
    for (true, predicted), count in np.ndenumerate(matrix):
        if count:
            ink = "white" if shares[true, predicted] > 0.5 else "black"
            ax.text(predicted, true, str(count), ha="center", va="center", color=ink)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_address(buffer.getvalue())


def predictions(true: np.ndarray, predicted: np.ndarray, unit: str, *, alone: bool = False) -> str:
    """Draw what a regression predicts against the truth, and its errors, both (sample,) in ``unit``.

    Returns SVG for the page, or, where the drawing stands ``alone``, a PNG data address with black letters.
    """
    name = f" ({unit})" if unit else ""
    with style() as figure_of:
        figure = figure_of((9.6, 4.2))
        left, right = figure.subplots(1, 2)
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        left.plot(ends, ends, color=INK, linewidth=0.8, alpha=0.6)
        figure.set_dpi(200)  # of the points, which are pixels: a thousand shapes would make the page slow
        left.scatter(true, predicted, s=7, color=COLOURS[0], alpha=0.4, linewidths=0, rasterized=True)
        right.hist(predicted - true, bins=60, color=COLOURS[0])
        # A unit is any text: without this a dollar sign would start a formula.
        left.set_xlabel(f"target{name}", parse_math=False)
        left.set_ylabel(f"prediction{name}", parse_math=False)
        right.set_xlabel(f"prediction − target{name}", parse_math=False)
        right.set_ylabel("samples")
        left.set_aspect("equal", adjustable="datalim")
        left.locator_params(nbins=6)
        for ax in (left, right):
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        if not alone:
            return svg_of(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white", dpi=100)
        return _data_address(buffer.getvalue())


class Maker(Protocol):
    """Makes figures; ``fixed`` where the axes say themselves where they stand."""

    def __call__(self, size: tuple[float, float], *, fixed: bool = False) -> "Figure":
        """Return a figure of so many inches."""


@contextmanager
def style(font_size: float = 10) -> Iterator[Maker]:
    """Plain axes in the page's own colour and letters; yields the maker of figures."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(inked, INK)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "scattercube", "font.size": font_size}
    settings |= {"axes.titlesize": font_size + 0.5}

    def maker(size: tuple[float, float], *, fixed: bool = False) -> Figure:
        return Figure(size, layout=None if fixed else "constrained", facecolor="none")

    with rc_context(settings):
        yield maker


def _data_address(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def svg_of(figure: "Figure") -> str:
    """Return the figure as an SVG element to stand in a page: no prologue, no metadata, no fixed size."""
    buffer = io.StringIO()
    for ax in figure.axes:
        ax.set_facecolor("none")
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    # A style in a drawing holds for the whole page.
    return text.replace("*{stroke", "svg *{stroke").replace(INK, "currentColor")


def _spread(n: int, most: int = 8) -> np.ndarray:
    """At most eight of the numbers below n, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _in_space(ax: Any, spectrum: np.ndarray, scale: int) -> None:
    """Draw the real part of a filter, six scales wide and high."""
    filtered = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    centre = [n // 2 for n in filtered.shape]
    reach = min(max(3 * scale, 4), *centre)
    rows, columns = (slice(c - reach, c + reach + 1) for c in centre)
    peak = np.abs(filtered).max()
    ax.imshow(filtered[rows, columns], cmap="RdBu_r", vmin=-peak, vmax=peak, interpolation="nearest")
