"""Missing values: normalised convolution at every step of a cascade, and how much of each coefficient was seen.

References
----------
.. [1] H. Knutsson and C.-F. Westin, "Normalized and differential convolution", CVPR (1993), 515–523.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import primitives
from scattercube.kernels.arguments import Rebuilt, units
from scattercube.kernels.cascade import TRUNCATION, Cascade

CERTAINTY = 4
"""The power of the share of an envelope that was seen with which a modulus counts."""

FILL = 0.25
"""Standard deviation of the local mean that fills gaps, in units of the stride."""

REACH = 4.0
"""How far a local mean looks, in its standard deviations."""

_KNOWN = 1e-3  # of a local mean's weights on what is known: where there is less, the nearest mean is taken


def margin(stride: int) -> int:
    """Return how many samples around an input have a say in what fills its gaps, a multiple of the stride."""
    return stride * math.ceil(REACH * FILL)


class Missing(Rebuilt):
    """Scattering coefficients of inputs some of whose values are missing.

    With m = 1 where a value is there and 0 elsewhere, and g_p the Gaussian whose variance is the sum of those of the
    envelopes along a path p, the modulus U_p is known with the certainty ω_p = (g_p ∗ m)^CERTAINTY. It is averaged by
    normalised convolution [1]_, S_p = (ω_p U_p) ∗ φ / ω_p ∗ φ, and the denominator is the coverage of the coefficient.
    Where a wavelet follows, gaps are filled before with a local mean, which wavelets hardly answer to. So what lies
    around a gap speaks for it; and where the coverage is 1, nothing that the coefficient sees is missing.

    Parameters
    ----------
    S
        The transform; its wavelets have Gaussian envelopes, and it does not extend its input (``padding="halo"`` or
        ``"periodic"``).

    Raises
    ------
    ValueError
        The transform is another.
    """

    def __init__(self, S: Cascade) -> None:
        if S.widths is None or S._is_extended:
            raise ValueError('missing values need Gaussian envelopes, an average, and padding="halo" or "periodic"')
        self._S, self._nd = S, len(S.shape)
        self._fill = FILL * S._axes[0].stride
        self._floor = TRUNCATION[S.dtype.name]  # what filters are cut at is not seen

    def fill(self, x: NDArray[Any]) -> NDArray[Any]:
        r"""Return a copy of ``x`` (…, \*axes) in which a local mean stands wherever a value is not finite."""
        valid = np.isfinite(x)
        result = np.where(valid, x, 0).reshape(-1, *x.shape[-self._nd :])
        for one, there in zip(result, valid.reshape(result.shape), strict=True):
            if there.any() and not there.all():
                one[~there] = _local_mean(one, there.astype(np.float64), self._fill, "constant")[~there]
        return result.reshape(x.shape)

    def __call__(self, x: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        r"""Return coefficients and their coverage, (images, \*output_shape) both.

        Parameters
        ----------
        x
            Inputs (images, \*shape), filled.
        valid
            Where their values were there, of the same shape.
        """
        S = self._S
        unit = units(x)
        features = np.empty((len(x), *S.output_shape), S.dtype)
        coverage = np.empty_like(features)
        for image in range(len(x)):
            one = slice(image, image + 1)
            signal = primitives.extend((x[one] / unit[one].reshape(-1, *(1,) * self._nd)).astype(S.dtype), ())
            seen = np.fft.rfftn(valid[image].astype(np.float64))
            self._average(signal, self._certainty(seen, (), 0), (), np.zeros(1, np.intp), features[one], coverage[one])
            if S.max_order:
                X = primitives.spectrum(signal, self._nd)
                self._descend(X, seen, (), np.zeros(1, np.intp), features[one], coverage[one])
            features[one] *= unit[image]
        return features, coverage

    def _descend(
        self,
        X: NDArray[Any],
        seen: NDArray[Any],
        scales: tuple[int, ...],
        prefixes: NDArray[np.intp],
        features: NDArray[Any],
        coverage: NDArray[Any],
    ) -> None:
        """Fill the coefficients of every path that goes on from here; see `Cascade._descend`."""
        S = self._S
        for step in S._steps(scales, prefixes, X):
            level = S._level(step.scales[-1])
            certainty = self._certainty(seen, step.scales, level)
            U = primitives.wavelet_modulus(primitives.some(X, step.prefixes), S._bank(step.scales), step.filters)
            self._average(U, certainty, step.scales, step.rows, features, coverage)
            if step.longer is None:
                continue
            if (certainty < 1).any():
                for path in range(U.shape[-2]):
                    here = U[..., path, 0]
                    mean = _local_mean(here, certainty, self._fill / 2**level, "wrap")
                    here += (1 - certainty) * (mean - here)
            self._descend(primitives.spectrum(U, self._nd), seen, step.scales, step.longer, features, coverage)

    def _certainty(self, seen: NDArray[Any], scales: tuple[int, ...], level: int) -> NDArray[np.float64]:
        """How well a modulus is known, on the grid of a level."""
        S = self._S
        assert S.widths is not None
        variance = sum(S.widths[min(m, len(S.widths) - 1)][j] ** 2 for m, j in enumerate(scales))
        spectrum = seen
        for axis, n in enumerate(S.shape):
            distance = np.minimum(np.arange(n), n - np.arange(n))
            gaussian = np.exp(-0.5 * distance**2 / variance) if variance else (distance == 0).astype(float)
            # Sampled in space, where it decays, and not in frequency.
            transfer = (np.fft.rfft if axis == self._nd - 1 else np.fft.fft)(gaussian / gaussian.sum())
            spectrum = spectrum * transfer.reshape(-1, *(1,) * (self._nd - 1 - axis))
        share = np.fft.irfftn(spectrum, S.shape, axes=tuple(range(self._nd)))[(slice(None, None, 2**level),) * self._nd]
        certainty: NDArray[np.float64] = np.clip(share, 0, 1) ** CERTAINTY
        certainty[certainty > 1 - self._floor] = 1
        return certainty

    def _average(
        self,
        U: NDArray[Any],
        certainty: NDArray[np.float64],
        scales: tuple[int, ...],
        rows: NDArray[np.intp],
        features: NDArray[Any],
        coverage: NDArray[Any],
    ) -> None:
        S = self._S
        lowpass = S._lowpasses[S._level(scales[-1]) if scales else 0]
        weight = certainty[..., None, None]
        primitives.average(U * weight.astype(S.dtype), lowpass, features, rows)
        # On a coarse grid φ does not sum to 1: its aliases add to it.
        seen, all_seen = (primitives.smooth(np.broadcast_to(one, weight.shape), lowpass) for one in (weight, 1.0))
        share = np.moveaxis(seen / all_seen, (-1, -2), (0, 1)).clip(0, 1)
        share[share > 1 - self._floor] = 1
        coverage[:, rows] = share
        with np.errstate(divide="ignore", invalid="ignore"):
            features[:, rows] = np.where(share > self._floor, features[:, rows] / share, np.nan)


def _local_mean(values: NDArray[Any], weight: NDArray[np.float64], sigma: float, mode: str) -> NDArray[np.float64]:
    """The mean of what is known around each value; far from that, the nearest such mean."""
    from scipy import ndimage

    options: dict[str, Any] = {"sigma": sigma, "mode": mode, "truncate": REACH}
    known = ndimage.gaussian_filter(weight, **options)
    total = ndimage.gaussian_filter(values * weight, **options)
    mean: NDArray[np.float64] = total / np.maximum(known, np.finfo(float).tiny)
    far = known < _KNOWN
    if far.any() and not far.all():
        nearest = ndimage.distance_transform_edt(far, return_distances=False, return_indices=True)
        mean[far] = mean[tuple(nearest[:, far])]
    return mean
