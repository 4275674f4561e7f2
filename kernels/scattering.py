"""The scattering transforms of signals and of images: parameters made axes, filters and labels of one cascade.

Wavelets enter by scale, as objects with ``box(grid, truncation, dtype)``; φ enters as a spectrum per axis.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.arguments import integer
from scattercube.kernels.axes import Axis, Padding
from scattercube.kernels.cascade import TRUNCATION, Cascade, Groups
from scattercube.kernels.device import Constant
from scattercube.kernels.filterbank import LineLowpass, Lowpass, Sampling, Shape, crop, fold
from scattercube.kernels.meyer import Meyer1D, Meyer2D, meyer_bank, meyer_spectrum
from scattercube.kernels.morlet import SIGMA_0, Morlet, Morlet1D, gaussian_box, gaussian_spectrum, morlet_bank
from scattercube.kernels.paths import Paths, image_labels, line_labels
from scattercube.kernels.primitives import Smoothing

Wavelet = Literal["morlet", "meyer"]
"""Morlet's, or a tight bank of Meyer's, with which a transform keeps energies and never lengthens distances.

A tight bank needs J ≥ 1 in 1-D, L ≥ 3 in 2-D, and its φ has the scale T = 2^J. Meyer's wavelets decay as a power of the
distance, so that their padding is ``"minimal"`` or ``"periodic"``.
"""

_PADDINGS = ("minimal", "support", "kymatio", "periodic", "halo")
_CIRCLE = 64  # of a φ's scale
_TAIL = 1e-3  # of φ, beyond a third of what the peer adds to a signal


class Scattering1D(Cascade):
    """Scattering transform of signals (Andén and Mallat, IEEE TSP 62, 2014).

    ``S(x)`` turns signals ``(…, N)`` into coefficients ``(…, path, time)`` of type ``dtype``, in the namespace (NumPy
    or CuPy) of ``x``. Coefficient p of order m is |…||x ∗ ψ1| ∗ ψ2|… ∗ ψm| ∗ φ, sampled every ``stride``; ``S.paths``
    says which wavelets. Signals of integers and booleans are converted; the input is never modified.

    Parameters
    ----------
    J
        log2 of the largest scale, in samples; J ≥ 0, 2^J ≤ N.
    shape
        N or (N,), samples of a signal.
    Q
        Wavelets per octave of the first order and of the others; one number is that of the first, the others have 1.
    T
        Scale of φ in samples, 1 ≤ T ≤ N, by default 2^J. 0: no average, |…∗ ψm| itself. ``"global"``: the mean over the
        signal, (…, path).
    stride
        Samples between outputs, a power of two; at most, and by default, the largest one ≤ T. For T = 0 it is 1 by
        default and at most 2^J, as is for ``"global"`` the subsampling of what the mean is taken of.
    max_order
        Largest scattering order, ≥ 0.
    padding
        See `Padding`. ``"minimal"`` adds, at each end, three times the length beyond which 0.1 % of φ lies, but trebles
        the signal at most; ``"kymatio"`` makes ``"global"`` a sum.
    dtype
        ``"float32"`` or ``"float64"``: precision of the arithmetic and of the result.
    sampling_rate
        In Hz; labels and positions are then in Hz and seconds, else in cycles per sample and in samples.
    wavelet
        See `Wavelet`.

    Raises
    ------
    TypeError
        A parameter is of the wrong type.
    ValueError
        A parameter is out of its range, or 2^J exceeds the signal.
    """

    def __init__(
        self,
        J: int,
        shape: int | tuple[int],
        Q: int | tuple[int, ...] = (8, 1),
        T: float | Literal["global"] | None = None,
        stride: int | None = None,
        max_order: int = 2,
        padding: Padding = "minimal",
        dtype: str = "float32",
        sampling_rate: float | None = None,
        wavelet: Wavelet = "morlet",
    ) -> None:
        self.padding, self.wavelet = _padding(padding), _wavelet(wavelet, padding)
        tight = self.wavelet == "meyer"
        self.J, max_order = integer("J", J, int(tight)), integer("max_order", max_order, 0)
        (N,) = _shape(shape, 1, self.J)
        self.Q = _quality(Q)
        self.T = _scale(T, N, self.J)
        self.stride = _stride(stride, self.T, self.J)
        self.sampling_rate, precision = _rate(sampling_rate), _precision(dtype)

        wavelets = [meyer_bank(self.J, q) if tight else morlet_bank(self.J, q) for q in self.Q]
        widths = [_widest((psi.j, 1 / (2 * math.pi * psi.sigma)) for psi in bank) for bank in wavelets]
        averages = self.T not in (0, "global")
        averaging = float(self.T) if averages else 2.0**self.J
        phi_width = averaging / (2 * math.pi * SIGMA_0) if averages else 0.0
        self.halo = None if tight else _halo(widths, phi_width, max_order, self.stride, precision)
        axis, self._averaging = self._axis(N, max(averaging, 2**self.J)), averaging
        groups: list[dict[int, list[Morlet1D | Meyer1D]]] = [{} for _ in wavelets]
        for group, psi in ((group, psi) for group, bank in zip(groups, wavelets, strict=True) for psi in bank):
            group.setdefault(psi.j, []).append(psi)
        super().__init__(
            (axis,),
            groups,
            min(self.stride.bit_length() - 1, max(psi.j for bank in wavelets for psi in bank)) + 1,
            Paths.of([line_labels(bank, self.sampling_rate) for bank in wavelets], max_order),
            max_order,
            precision,
            global_average=self.T == "global",
        )
        self._fourier_scale = averaging if averages else 0.0
        self.widths = widths if averages and not tight else None

    def _axis(self, N: int, scale: float) -> Axis:
        if self.padding == "periodic":
            return Axis.periodic(N, self.stride)
        if self.padding == "support" and self.halo is not None:
            return Axis.reflected(N, self.stride, self.halo)
        if self.padding == "halo" and self.halo is not None:
            if self.T == "global":
                raise ValueError('padding="halo": a tile does not have the mean of the whole; give T a number')
            return Axis.tile(N, self.stride, self.halo)
        most = 1 << ((3 * N - 2).bit_length() - 1)  # a reflection does not reach further
        if self.padding == "minimal":
            tail = -NormalDist().inv_cdf(_TAIL) * scale / (2 * math.pi * SIGMA_0)
            return Axis.reflected(N, self.stride, math.ceil(3 * tail), most)
        T = 1 << (N - 1).bit_length() if self.T == "global" else self.T or 2**self.J
        circle = min(N, _CIRCLE * math.ceil(T))  # a larger one changes nothing
        phi = abs(np.fft.ifft(gaussian_spectrum(SIGMA_0 / T, circle))[: circle // 2])
        tails = phi[::-1].cumsum()[::-1]
        support = 1 + int(np.argmax(tails <= _TAIL)) if (tails <= _TAIL).any() else circle // 2
        return Axis.dyadic(N, self.stride, min(1 << (N + 6 * support - 1).bit_length(), most))

    def _make_groups(self) -> list[Groups]:
        grid, truncation = self._grid(0), self._truncation
        return [
            {j: [psi.box(grid, truncation, self.dtype) for psi in group] for j, group in bank.items()}
            for bank in self._wavelets
        ]

    def _make_phi(self, level: int) -> tuple[NDArray[np.float64], ...]:
        T, (n,) = self._averaging / 2**level, self._grid(level)
        return (meyer_spectrum(T, n) if self.wavelet == "meyer" else gaussian_spectrum(SIGMA_0 / T, n),)

    def _make_lowpass(self, level: int) -> Smoothing:
        (axis,), dtype = self._axes, self.dtype
        n, step = axis.padded >> level, axis.step(level)
        if self.T == "global":
            weights = np.ones(n) if self.padding == "kymatio" else axis.within(level) / axis.within(level).sum()
            return Lowpass((Constant(weights.astype(dtype)[None]),))
        if self.T == 0:
            return Sampling(n, slice(axis.first * step, (axis.first + axis.n_out - 1) * step + 1, step))
        (phi,) = self._make_phi(level)
        return LineLowpass.of(phi, step, axis.first, axis.n_out, dtype)

    @property
    def positions(self) -> tuple[NDArray[np.float64], ...]:
        """The time at which each output lies, (n_times,), in seconds or samples; with ``"global"`` there is none."""
        return tuple(times / (self.sampling_rate or 1) for times in super().positions)

    def psi_hat(self, n: int, order: int = 1) -> NDArray[np.floating]:
        """Return the spectrum (N',) of a wavelet on the extended grid, zero frequency first."""
        boxes = [box for _, group in sorted(self._groups[self._which(order - 1)].items()) for box in group]
        return boxes[n].dense(self._grid(0))


class Scattering2D(Cascade):
    """Scattering transform of images (Bruna and Mallat, IEEE TPAMI 35, 2013, section 2).

    ``S(x)`` turns images ``(…, H, W)`` into coefficients ``(…, path, h, w)`` of type ``dtype``, as `Scattering1D` does
    signals, sampled every 2^J pixels.

    Parameters
    ----------
    J
        log2 of the largest scale and of the output's stride, in pixels; 1 ≤ J, 2^J ≤ min(H, W).
    shape
        (H, W) of the images, in pixels.
    L
        Number of orientations in [0°, 180°).
    max_order
        Largest scattering order, ≥ 0.
    padding
        See `Padding`. ``"minimal"`` adds about 2^J pixels per axis, for floor(size/2^J) outputs; ``"kymatio"`` crops
        coarse filters in Fourier.
    dtype
        ``"float32"`` or ``"float64"``: precision of the arithmetic and of the result.
    wavelet
        See `Wavelet`.

    Raises
    ------
    TypeError
        A parameter is of the wrong type.
    ValueError
        A parameter is out of its range, or 2^J exceeds the image.
    """

    def __init__(
        self,
        J: int,
        shape: tuple[int, int],
        L: int = 8,
        max_order: int = 2,
        padding: Padding = "minimal",
        dtype: str = "float32",
        wavelet: Wavelet = "morlet",
    ) -> None:
        self.J, self.L, max_order = integer("J", J, 1), integer("L", L, 1), integer("max_order", max_order, 0)
        sizes = _shape(shape, 2, self.J)
        self.padding, self.wavelet, precision = _padding(padding), _wavelet(wavelet, padding), _precision(dtype)
        self.stride = 2**self.J
        tight = self.wavelet == "meyer"

        def psi(j: int, theta: int) -> Morlet | Meyer2D:
            return Meyer2D.at(j, theta, self.L, self.J) if tight else Morlet.at(j, theta, self.L)

        wavelets = {j: [psi(j, theta) for theta in range(self.L)] for j in range(self.J)}
        longest = max(1.0, self.L / 4)  # a wavelet's envelope is 1/slant times longer across its wave vector
        phi_width = 0.8 * 2.0 ** (self.J - 1)
        widths = _widest((j, psi.sigma * longest) for j, group in wavelets.items() for psi in group)
        self.halo = None if tight else _halo([widths], phi_width, max_order, 2**self.J, precision)
        self._phi_width = phi_width
        super().__init__(
            tuple(self._axis(size) for size in sizes),
            [wavelets],
            self.J,
            Paths.of([image_labels(wavelets)], max_order),
            max_order,
            precision,
            crop if self.padding == "kymatio" else fold,
        )
        self.widths = None if tight else [widths]

    def _axis(self, size: int) -> Axis:
        if self.padding == "periodic":
            return Axis.periodic(size, 2**self.J)
        if self.padding == "support" and self.halo is not None:
            return Axis.reflected(size, 2**self.J, self.halo)
        if self.padding == "halo" and self.halo is not None:
            return Axis.tile(size, 2**self.J, self.halo)
        return Axis.image(size, 2**self.J, good=self.padding == "minimal")

    @property
    def _amplitude(self) -> float:
        """What filters are multiplied by: the peer's π, in the integral of its Gaussians."""
        return math.pi / 3.1415 if self.padding == "kymatio" else 1.0

    def _make_groups(self) -> list[Groups]:
        grid, truncation = self._grid(0), self._truncation
        (wavelets,) = self._wavelets
        boxes = {j: [psi.box(grid, truncation, self.dtype) for psi in group] for j, group in wavelets.items()}
        if self.padding == "kymatio":
            for box in (box for group in boxes.values() for box in group):
                box.weights[...] *= self._amplitude
        return [boxes]

    def _make_phi(self, level: int) -> tuple[NDArray[np.float64], ...]:
        grid = self._grid(0)
        if self.wavelet == "meyer":
            return tuple(meyer_spectrum(2.0 ** (self.J - level), n >> level) for n in grid)
        on = (self._coarse(gaussian_box(self._phi_width, n), (n >> level,)).dense((n >> level,)) for n in grid)
        return tuple(math.sqrt(self._amplitude) * spectrum for spectrum in on)

    def _make_lowpass(self, level: int) -> Smoothing:
        return Lowpass.of(list(self._make_phi(level)), [axis.samples(level) for axis in self._axes], self.dtype)

    def psi_hat(self, j: int, theta: int) -> NDArray[np.floating]:
        """Return the spectrum (H', W') of a wavelet on the extended grid, zero frequency first."""
        return self._groups[0][j][theta].dense(self._grid(0))


def _halo(
    widths: Sequence[dict[int, float]], phi_width: float, max_order: int, stride: int, dtype: np.dtype[Any]
) -> int:
    """How far the widest path reaches: Gaussians of these widths by scale, one for each order, convolved with φ's."""

    def variance(m: int, above: int) -> float:
        if m == max_order:
            return 0.0
        bank = widths[min(m, len(widths) - 1)]
        return max((width**2 + variance(m + 1, j) for j, width in bank.items() if j > above), default=0.0)

    reach = -NormalDist().inv_cdf(TRUNCATION[dtype.name])
    return stride * math.ceil(reach * math.sqrt(phi_width**2 + variance(0, -1)) / stride)


def _widest(widths: Iterable[tuple[int, float]]) -> dict[int, float]:
    widest: dict[int, float] = {}
    for j, width in widths:
        widest[j] = max(width, widest.get(j, 0.0))
    return widest


# --- Parameters, each checked where it is named ---


def _shape(shape: int | Sequence[int], nd: int, J: int) -> Shape:
    expected, least = (
        ("N or (N,)", "signals of at least {} samples"),
        ("(H, W)", "images of at least {} pixels per axis"),
    )[nd - 1]
    given = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if len(given) != nd:
        raise ValueError(f"shape={shape!r}: expected {expected}")
    sizes = tuple(integer("shape", size, 1) for size in given)
    if min(sizes) < 2**J:
        largest = min(sizes).bit_length() - 1
        remedy = f"the largest possible J is {largest}" if largest or nd == 1 else "no J fits an image one pixel wide"
        raise ValueError(f"J={J} needs {least.format(2**J)}, shape is {sizes}; {remedy}")
    return sizes


def _quality(Q: int | Sequence[int]) -> Shape:
    given = tuple(Q) if isinstance(Q, Sequence) else (Q, 1)
    if len(given) not in (1, 2):
        raise ValueError(f"Q={Q!r}: expected the wavelets per octave of the first order and of the others")
    return tuple(integer("Q", q, 1) for q in (given if len(given) == 2 else (*given, 1)))


def _scale(T: object, N: int, J: int) -> float | Literal["global"]:
    if T is None:
        return 2.0**J
    if T == "global":
        return "global"
    if not isinstance(T, Real):
        raise TypeError(f'T={T!r}: expected a number of samples, 0 or "global"')
    scale = float(T)
    if not (scale == 0 or 1 <= scale <= N):
        raise ValueError(
            f'T={T}: must be from 1 to the {N} samples of a signal, 0 (no average) or "global" (their mean)'
        )
    return scale


def _stride(stride: int | None, T: float | Literal["global"], J: int) -> int:
    most = 2**J if isinstance(T, str) or T == 0 else 1 << (math.floor(T).bit_length() - 1)
    if stride is None:
        return 1 if T == 0 else most
    if (number := integer("stride", stride, 1)) > most or number & (number - 1):
        raise ValueError(f"stride={number}: must be a power of two, at most {most} for J={J}, T={T}")
    return number


def _padding(padding: Padding) -> Padding:
    if padding not in _PADDINGS:
        raise ValueError(f"padding={padding!r}: expected one of {', '.join(map(repr, _PADDINGS))}")
    return padding


def _wavelet(wavelet: Wavelet, padding: Padding) -> Wavelet:
    if wavelet not in ("morlet", "meyer"):
        raise ValueError(f'wavelet={wavelet!r}: expected "morlet" or "meyer"')
    if wavelet == "meyer" and padding not in ("minimal", "periodic"):
        raise ValueError(f'padding={padding!r} is for Morlet wavelets; wavelet="meyer" takes "minimal" or "periodic"')
    return wavelet


def _precision(dtype: str) -> np.dtype[Any]:
    if (name := np.dtype(dtype).name) not in TRUNCATION:
        raise ValueError(f'dtype={name!r}: expected "float32" or "float64"')
    return np.dtype(name)


def _rate(sampling_rate: float | None) -> float | None:
    if sampling_rate is not None and not 0 < sampling_rate < math.inf:
        raise ValueError(f"sampling_rate={sampling_rate}: must be a positive number of samples per second")
    return sampling_rate
