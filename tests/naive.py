"""The scattering transform written out as slowly and plainly as its definition. It imports nothing of the project.

Everything is float64. A filter is sampled in space, summed over its periodic copies, and applied by one whole FFT; a
subsampled signal meets the filter sampled at the same points. Wavelets are named (j, θ) in images, with θ in degrees,
and (n,) in signals.
"""

import itertools
import math

import numpy as np

COPIES = range(-4, 5)


# --- The filters of images ---


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


# --- The filters of signals; frequencies in cycles per sample ---


def line_bank(J, Q):
    """(ξ, σ, j) of each wavelet: Q per octave as long as σ > 0.1/2^J, then evenly spaced at that width."""
    ratio, narrowest = 2 ** (1 / Q), 0.1 / 2**J
    xi = max(1 / (1 + 2 ** (3 / Q)), 0.35)
    sigma = xi * (1 - 1 / ratio) / (1 + 1 / ratio) / math.sqrt(2 * math.log(math.sqrt(2)))
    bank = []
    if sigma <= narrowest:
        xi = sigma
    else:
        bank.append((xi, sigma))
        while sigma > narrowest * ratio:
            xi, sigma = xi / ratio, sigma / ratio
            bank.append((xi, sigma))
    bank += [(xi * (1 - q / Q), narrowest) for q in range(1, Q)]
    return [(xi, sigma, math.floor(-math.log2(min(xi + 5 * sigma, 0.5))) - 1) for xi, sigma in bank]


def line_gabor(n, sigma, xi):
    """exp(−½(2πσt)²)·exp(2πiξt), summed over its periodic copies."""
    copies = math.ceil(10 / (2 * math.pi * sigma * n)) + 1
    t = np.arange(-copies * n, (copies + 1) * n, dtype=np.float64)
    wave = np.exp(-0.5 * (2 * math.pi * sigma * t) ** 2 + 2j * math.pi * xi * t)
    return wave.reshape(-1, n).sum(axis=0)


def line_morlet(n, xi, sigma):
    """The wavelet of zero mean and of unit Σ|ψ|."""
    wave, bump = line_gabor(n, sigma, xi), line_gabor(n, sigma, 0.0)
    psi = wave - wave.sum() / bump.sum() * bump
    return psi / abs(psi).sum()


def line_lowpass(n, T):
    """The Gaussian of width 0.1/T in frequency and of unit sum."""
    bump = line_gabor(n, 0.1 / T, 0.0).real
    return bump / bump.sum()


# --- The cascade of both ---


def convolve(u, h):
    """Circular convolution."""
    return np.fft.ifftn(np.fft.fftn(u) * np.fft.fftn(h))


def every(u, step):
    """One sample in ``step`` along every axis."""
    return u[(slice(None, None, step),) * u.ndim]


def sampled(h, step):
    """A filter on a grid coarser by ``step``, each sample weighted by the points it stands for."""
    return step**h.ndim * every(h, step)


def cascade(x, banks, phi, max_order, stride):
    """Every coefficient of a periodic array, sampled every ``stride`` (a power of two): {(wavelet, …): array}.

    ``banks``, one for each order and the last for all others, are {wavelet: (j, filter)}. No φ, no average.
    """
    most = stride.bit_length() - 1
    propagated, level, scale = {(): x}, {(): 0}, {(): -1}
    averaged = {}
    for order in range(max_order + 1):
        for path, u in propagated.items():
            smooth = u if phi is None else convolve(u, sampled(phi, 2 ** level[path])).real
            averaged[path] = every(smooth, stride // 2 ** level[path])
        longer = {}
        for path, u in propagated.items() if order < max_order else ():
            for wavelet, (j, psi) in banks[min(order, len(banks) - 1)].items():
                if j > scale[path]:
                    r = min(j, most)
                    y = abs(convolve(u, sampled(psi, 2 ** level[path])))
                    longer[*path, wavelet] = every(y, 2 ** (r - level[path]))
                    level[*path, wavelet], scale[*path, wavelet] = r, j
        propagated = longer
    return {path: averaged[path] for path in sorted(averaged, key=lambda path: (len(path), path))}


def scattering(x, J, L, max_order, padded, before):
    """The transform of an image continued by reflection: {path: array}, sampled from the second stride on."""
    widths = [(b, p - b - size) for size, p, b in zip(x.shape, padded, before, strict=True)]
    keep = [size // 2**J for size in x.shape]
    wide = np.pad(x.astype(np.float64), widths, mode="reflect")
    bank = {(j, t): (j, morlet(wide.shape, j, a, L)) for j in range(J) for t, a in enumerate(angles(L))}
    whole = cascade(wide, [bank], lowpass(wide.shape, J), max_order, 2**J)
    theta = [degrees(alpha) for alpha in angles(L)]
    return {tuple((j, theta[t]) for j, t in path): s[1 : 1 + keep[0], 1 : 1 + keep[1]] for path, s in whole.items()}


def line_scattering(x, J, Q, T, stride, max_order, padded, before):
    """The transform of a signal continued by reflection, ``before`` (a multiple of the stride) samples in front of it.

    {path: array}, with paths (n1, n2, …), sampled every ``stride``; T = 0 leaves the average out.
    """
    wide = np.pad(x.astype(np.float64), (before, padded - before - len(x)), mode="reflect") if padded > len(x) else x
    banks = [{n: (j, line_morlet(padded, xi, s)) for n, (xi, s, j) in enumerate(line_bank(J, q))} for q in Q]
    whole = cascade(wide, banks, line_lowpass(padded, T) if T else None, max_order, stride)
    first = before // stride
    return {path: s[first : first + math.ceil(len(x) / stride)] for path, s in whole.items()}
