"""Pictures of volumes: solid harmonic wavelets by frequency, and coefficients by order, scale and degree, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scattercube.pipeline.charts import COLOURS, DASHES, style, svg_of


@dataclass(frozen=True)
class Bars:
    """Coefficients of one order.

    Attributes
    ----------
    title
        Which order and power.
    groups
        What the scales of each group of bars are.
    degrees
        The degree of each bar of a group.
    quartiles
        Over samples, (3, group, degree).
    """

    title: str
    groups: Sequence[str]
    degrees: Sequence[int]
    quartiles: np.ndarray


def coefficients(panels: Sequence[Bars]) -> str:
    """Draw coefficients as SVG: a bar for each degree, by scale, its height the median and its line the middle half."""
    with style() as figure_of:
        figure = figure_of((9.6, 2.6 * len(panels)))
        for ax, panel in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, strict=True):
            low, middle, high = np.maximum(panel.quartiles, 0)
            width = 0.8 / len(panel.degrees)
            for index, degree in enumerate(panel.degrees):
                at = np.arange(len(panel.groups)) + (index + 0.5) * width - 0.4
                spans = np.stack([middle - low, high - middle])[:, :, index]
                ax.bar(at, middle[:, index], 0.9 * width, color=COLOURS[index % len(COLOURS)], label=f"l = {degree}")
                ax.errorbar(at, middle[:, index], spans, fmt="none", ecolor=COLOURS[-1], elinewidth=1)
            ax.set_xticks(range(len(panel.groups)), panel.groups)
            positive = middle[middle > 0]
            if positive.size and positive.max() > 20 * positive.min():
                ax.set_yscale("log")
                ax.set_ylim(positive.min() / 3, None)
            ax.set(title=panel.title, xlabel="scale (voxel)", ylabel="coefficient")
            ax.set_xlim(-0.6, len(panel.groups) - 0.4)
            ax.grid(axis="y", alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper right", frameon=False, ncols=min(len(handles[0]), 10), fontsize=9)
        return svg_of(figure)


def filter_bank(sigma_0: float, J: int, L: int) -> str:
    """Draw how solid harmonic wavelets depend on frequency as SVG: r^l exp(−r²/2), r = σ·2πf, a panel for each degree.

    Each is divided by its peak, which lies at r = √l; directions enter by the spherical harmonics alone.
    """
    degrees = np.unique(np.linspace(0, L, min(L + 1, 4)).round().astype(int))
    with style() as figure_of:
        figure = figure_of((9.6, 2.8))
        for ax, degree in zip(np.atleast_1d(figure.subplots(1, len(degrees), sharey=True)), degrees, strict=True):
            f = np.linspace(0, 0.5, 400)
            for j in range(J + 1):
                r = 2 * np.pi * f * sigma_0 * 2**j
                peak = degree ** (degree / 2) * np.exp(-degree / 2) if degree else 1.0
                line = {"color": COLOURS[j % len(COLOURS)], "dashes": DASHES[j % len(DASHES)], "linewidth": 1.5}
                ax.plot(f, r**degree * np.exp(-(r**2) / 2) / peak, label=f"{sigma_0 * 2**j:g}", **line)
            ax.set(title=f"l = {degree}", xlabel="frequency (cycles/voxel)", xlim=(0, 0.5), ylim=(0, None))
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("|ψ̂| / its peak")
        figure.axes[0].legend(title="scale (voxel)", frameon=False, fontsize=9, title_fontsize=9)
        return svg_of(figure)
