"""What a page shows of samples and coefficients, a module for each kind of signal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scattercube.pipeline.exhibits import images, signals, volumes
from scattercube.pipeline.exhibits.view import View


@dataclass(frozen=True)
class Exhibit:
    """What a page shows of one kind of signal.

    Attributes
    ----------
    template
        The part of the page that shows it.
    examples, filters, energies
        What is there: samples, the drawing of the filters, what classes differ in.
    """

    template: str
    examples: Callable[[View], dict[str, Any]]
    filters: Callable[[View], str]
    energies: Callable[[View], dict[str, Any] | None]


_SIGNALS = Exhibit("signals.html.j2", signals.examples, signals.filters, signals.energies)
EXHIBITS = {
    "scattering2d": Exhibit("images.html.j2", images.examples, images.filters, images.energies),
    "scattering1d": _SIGNALS,
    "time_frequency": _SIGNALS,
    "solid_harmonic": Exhibit("volumes.html.j2", volumes.examples, volumes.filters, volumes.energies),
}
"""What to show, by transform."""


def exhibit_of(view: View) -> Exhibit:
    """Return what to show of a run; images where its Spec names no transform."""
    return EXHIBITS[view.spec.get("transform", "scattering2d")]
