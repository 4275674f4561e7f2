"""The operations every scattering transform is made of, for NumPy and CuPy arrays, in any number of dimensions.

Space comes first: arrays are (N, …), where N (and n, a coarser grid) stands for one axis per dimension, and the axes
behind, images and paths, lie side by side at every point, so that each operation is a few long products. A spectrum
holds Fourier coefficients, X[k] = mean of x·exp(−2πi k·u/N), zero frequency first: subsampling is the sum of aliases.
"""

from scattercube.kernels.device import Array, fft, namespace
from scattercube.kernels.filterbank import Bank, Lowpass


def spectrum(x: Array, nd: int) -> Array:
    """Return the Fourier coefficients over the first ``nd`` axes: (N, …) real → (N, …) complex."""
    return fft(namespace(x)).fftn(x, axes=tuple(range(nd)), norm="forward")


def wavelet_modulus(X: Array, bank: Bank) -> Array:
    """Return |x ∗ ψ|, subsampled, for every filter of a bank: spectra (N, …) → (n, filters, …) real."""
    xp, nd = namespace(X), len(bank.grid)
    weights, lanes = bank.weights.on(xp), X.shape[nd:]
    windows = [
        X[tuple(slice(start, start + n) for start, n in zip(block, bank.out, strict=True))] for block in bank.blocks
    ]
    if len(windows) == 1:
        folded = weights.reshape(weights.shape[:-1] + (1,) * len(lanes)) * xp.expand_dims(windows[0], nd)
    else:
        # At every coarse frequency (filters × blocks) · (blocks × lanes), the complex numbers as pairs of real ones.
        aliases = xp.stack(windows, axis=nd)
        pairs = aliases.reshape(*bank.out, len(windows), -1).view(weights.dtype)
        folded = (weights @ pairs).view(X.dtype).reshape(weights.shape[:-1] + lanes)
        del aliases, pairs
    return abs(fft(xp).ifftn(folded, axes=tuple(range(nd)), norm="forward", overwrite_x=True))


def average(U: Array, lowpass: Lowpass) -> Array:
    """Smooth and subsample the first axes, one matrix per axis: (n, …) → (samples kept, …)."""
    xp, nd = namespace(U), len(lowpass.matrices)
    S = U.reshape(*U.shape[:nd], -1)
    for axis, matrix in enumerate(lowpass.matrices):
        # A stack of products small enough that no BLAS starts threads of its own for them.
        S = xp.moveaxis(matrix.on(xp) @ xp.moveaxis(S, axis, -2), -2, axis)
    return S.reshape(S.shape[:nd] + U.shape[nd:])


def scatter_last(X: Array, bank: Bank, lowpass: Lowpass) -> Array:
    """Return the coefficients of paths that end here: spectra (N, …) → (samples kept, filters, …)."""
    return average(wavelet_modulus(X, bank), lowpass)
