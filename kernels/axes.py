"""How an axis is extended beyond its ends, which samples of the smoothed result are kept, and where they lie."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.device import fft

Padding = Literal["minimal", "support", "kymatio", "periodic", "halo"]
"""How far an input is continued beyond its ends, by reflection.

``"minimal"``: little, for separate samples. ``"support"``: by the support of the cascade (``halo``), so that a tile cut
with its halo gives the values of the whole; outputs lie at stride·i, ceil(size/stride) of them. ``"kymatio"``: as
Kymatio 0.4 does, to its numbers; for comparisons. ``"periodic"``: not at all; an axis is a circle, and its size a
multiple of the stride. ``"halo"``: not at all; the input is a tile that brings ``halo`` samples of its surroundings
with it at both ends, its size a multiple of the stride, and outputs lie between them.
"""


@dataclass(frozen=True)
class Axis:
    """One axis of a transform: extended, then sampled every ``stride``.

    Parameters
    ----------
    size
        Samples of the input.
    stride
        Input samples between outputs, a power of two.
    before
        Samples added in front of the input.
    padded
        Samples in all, a multiple of the stride.
    first, n_out
        The first of the padded axis's strided samples that is kept, and how many are.
    """

    size: int
    stride: int
    before: int
    padded: int
    first: int
    n_out: int

    @classmethod
    def reflected(cls, size: int, stride: int, margin: int, most: int | None = None) -> Self:
        """Extend by ``margin`` samples or more at both ends, to ``most`` in all at most; outputs lie at stride·i."""
        before = stride * math.ceil(margin / stride)
        padded = good_size(before + size + before, stride)
        if most is not None and padded > most:
            before, padded = (most - size) // 2 // stride * stride, most
        return cls(size, stride, before, padded, before // stride, -(-size // stride))

    @classmethod
    def image(cls, size: int, stride: int, good: bool) -> Self:
        """Extend an image's axis by about one stride; a ``good`` size is a fast one, the other is the peer's."""
        peer = ((size + stride) // stride + 1) * stride
        padded = good_size(peer, stride) if good else peer
        return cls(size, stride, (peer - size) // 2, padded, 1, size // stride)

    @classmethod
    def dyadic(cls, size: int, stride: int, padded: int) -> Self:
        """Extend equally at both ends to a power of two, as the peer extends signals."""
        before = (padded - size) // 2
        first = -(-before // stride)
        return cls(size, stride, before, padded, first, -(-(before + size) // stride) - first)

    @classmethod
    def periodic(cls, size: int, stride: int) -> Self:
        """Take the axis for a circle.

        Raises
        ------
        ValueError
            ``size`` is no multiple of the stride.
        """
        if size % stride:
            below, above = size // stride * stride, -(-size // stride) * stride
            fits = f"{below} and {above} fit" if below else f"{above} fits"
            raise ValueError(f'padding="periodic": an axis of {size} is no multiple of the stride {stride}; {fits}')
        return cls(size, stride, 0, size, 0, size // stride)

    @classmethod
    def tile(cls, size: int, stride: int, halo: int) -> Self:
        """Keep what lies ``halo`` samples, a multiple of the stride, from both ends.

        Raises
        ------
        ValueError
            ``size`` is no multiple of the stride, or the halos leave nothing between them.
        """
        if size % stride or size <= 2 * halo:
            raise ValueError(
                f'padding="halo": an axis of {size} must be a multiple of the stride {stride} and longer than the two '
                f"halos, 2·{halo}"
            )
        return cls(size, stride, 0, size, halo // stride, (size - 2 * halo) // stride)

    @property
    def positions(self) -> NDArray[np.float64]:
        """The input sample at which each output lies, (n_out,)."""
        return self.stride * (self.first + np.arange(self.n_out, dtype=np.float64)) - self.before

    @property
    def index(self) -> NDArray[np.intp]:
        """The input sample behind each padded one: a reflection that does not repeat the edge, as often as it takes."""
        last = self.size - 1
        index: NDArray[np.intp] = last - abs((np.arange(self.padded) - self.before) % max(2 * last, 1) - last)
        return index

    def step(self, level: int) -> int:
        """Samples between outputs on the padded axis subsampled by 2^level."""
        return self.stride >> level

    def samples(self, level: int) -> NDArray[np.intp]:
        """The samples that are kept, counted on the padded axis subsampled by 2^level."""
        return self.step(level) * (self.first + np.arange(self.n_out))

    def within(self, level: int) -> NDArray[np.bool_]:
        """Which samples of the padded axis subsampled by 2^level lie on the input."""
        position = (np.arange(self.padded >> level) << level) - self.before
        return (position >= 0) & (position < self.size)


def good_size(least: int, stride: int) -> int:
    """Return the smallest multiple of the stride that is ≥ least, stride × a number with no prime factor above 5."""
    count: int = fft(np).next_fast_len(-(-least // stride), real=True)
    return count * stride
