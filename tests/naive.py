"""The scattering transform written out as slowly and plainly as its definition. It imports nothing of the project.

Everything is float64. A filter is sampled in space, summed over its periodic copies, and applied by one whole FFT; a
subsampled signal meets the filter sampled at the same points. Wavelets are named (j, θ), with θ in degrees.
"""

import itertools
import math

import numpy as np

COPIES = range(-4, 5)


def angles(L):
    """Direction of each wave vector as an angle from the rows' axis towards the columns' axis, in radians."""
    return [(int(L - L / 2 - 1) - t) * math.pi / L for t in range(L)]


def degrees(alpha):
    """The same direction from the x axis (columns) towards the y axis (rows), in degrees modulo 180."""
    return round(math.degrees(math.atan2(math.cos(alpha), math.sin(alpha))), 6) % 180


def gabor(shape, sigma, alpha, xi, slant):
    """exp(−½((u·n)² + slant²(u·n⊥)²)/σ²)·exp(iξ u·n), of unit integral for ξ = 0, on a periodic grid."""
    total = np.zeros(shape, dtype=complex)
    for copy_y, copy_x in itertools.product(COPIES, COPIES):
        y = (np.arange(shape[0]) + copy_y * shape[0])[:, None]
        x = (np.arange(shape[1]) + copy_x * shape[1])[None, :]
        along = y * math.cos(alpha) + x * math.sin(alpha)
        across = -y * math.sin(alpha) + x * math.cos(alpha)
        envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
        total += envelope * np.exp(1j * xi * along)
    return total / (2 * math.pi * sigma**2 / slant)


def morlet(shape, j, alpha, L):
    """The wavelet of scale 2^j: a Gabor function less the Gaussian that makes its mean vanish."""
    sigma, xi, slant = 0.8 * 2**j, 3 * math.pi / 4 / 2**j, 4 / L
    wave = gabor(shape, sigma, alpha, xi, slant)
    bump = gabor(shape, sigma, alpha, 0.0, slant)
    return wave - wave.sum() / bump.sum() * bump


def lowpass(shape, J):
    """The Gaussian of width 0.4·2^J."""
    return gabor(shape, 0.8 * 2 ** (J - 1), 0.0, 0.0, 1.0).real


def convolve(u, h):
    """Circular convolution."""
    return np.fft.ifft2(np.fft.fft2(u) * np.fft.fft2(h))


def sampled(h, step):
    """A filter on a grid coarser by ``step``, each sample weighted by the pixels it stands for."""
    return step**2 * h[::step, ::step]


def cascade(x, J, L, max_order):
    """Every coefficient of a periodic image, sampled every 2^J pixels: {((j1, θ1), …): array}."""
    psi = {(j, t): morlet(x.shape, j, alpha, L) for j in range(J) for t, alpha in enumerate(angles(L))}
    phi = lowpass(x.shape, J)
    propagated = {(): x}
    averaged = {}
    for order in range(max_order + 1):
        for path, u in propagated.items():
            r = path[-1][0] if path else 0
            smooth = convolve(u, sampled(phi, 2**r)).real
            averaged[path] = smooth[:: 2 ** (J - r), :: 2 ** (J - r)]
        if order < max_order:
            propagated = {
                (*path, (j, t)): abs(convolve(u, sampled(psi[j, t], 2 ** (path[-1][0] if path else 0))))[
                    :: 2 ** (j - (path[-1][0] if path else 0)), :: 2 ** (j - (path[-1][0] if path else 0))
                ]
                for path, u in propagated.items()
                for j, t in psi
                if not path or j > path[-1][0]
            }
    theta = [degrees(alpha) for alpha in angles(L)]
    order_then_path = sorted(averaged, key=lambda path: (len(path), path))
    return {tuple((j, theta[t]) for j, t in path): averaged[path] for path in order_then_path}


def scattering(x, J, L, max_order, padded, before):
    """The transform of an image continued by reflection: {path: array}, sampled from the second stride on."""
    widths = [(b, p - b - size) for size, p, b in zip(x.shape, padded, before, strict=True)]
    keep = [size // 2**J for size in x.shape]
    whole = cascade(np.pad(x.astype(np.float64), widths, mode="reflect"), J, L, max_order)
    return {path: s[1 : 1 + keep[0], 1 : 1 + keep[1]] for path, s in whole.items()}
