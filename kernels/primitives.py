"""The operations every scattering transform is made of, and their adjoints, for NumPy and CuPy arrays.

Space comes first: arrays are (N, …), where N (and n, a coarser grid) stands for one axis per dimension, and the axes
behind, paths and images, lie side by side at every point, so that each operation is a few long products. A spectrum
holds Fourier coefficients, X[k] = mean of x·exp(−2πi k·u/N), zero frequency first: subsampling is the sum of aliases.

A cascade carries signals as (N, prefixes, images) and calls `extend`, `some`, `spectrum`, `wavelet_modulus`, `average`
and `scatter_last` alone. Adjoints are those of the real inner product ⟨a, b⟩ = Re Σ conj(a)·b.
"""

from collections.abc import Sequence
from typing import TypeAlias

from scattercube.kernels.device import Array, Constant, fft, namespace
from scattercube.kernels.filterbank import Bank, LineLowpass, Lowpass, Sampling, Shape

Smoothing: TypeAlias = Lowpass | LineLowpass | Sampling
ALL = slice(None)


def extend(images: Array, indices: Sequence[Constant]) -> Array:
    """Lay out images and continue them beyond their borders: (images, M) → (N, 1, images).

    ``indices`` gives, per axis, the sample behind each extended one; without any, images stay as they are.
    """
    xp = namespace(images)
    x = xp.ascontiguousarray(xp.moveaxis(images, 0, -1))
    for axis, index in enumerate(indices):
        x = x.take(index.on(xp), axis=axis)
    return xp.expand_dims(x, -2)


def extend_adjoint(G: Array, indices: Sequence[Constant], shape: Shape) -> Array:
    """Return the adjoint of `extend`: (N, 1, images) → (images, M), where every continued sample adds to its source."""
    xp = namespace(G)
    G = G[..., 0, :]
    for axis, (index, size) in enumerate(zip(indices, shape, strict=True) if indices else ()):
        total = xp.zeros((size, *G.shape[:axis], *G.shape[axis + 1 :]), G.dtype)
        xp.add.at(total, index.on(xp), xp.moveaxis(G, axis, 0))
        G = xp.moveaxis(total, 0, axis)
    return xp.moveaxis(G, -1, 0)


def some(X: Array, prefixes: slice) -> Array:
    """Return the signals or spectra of some prefixes, as a view."""
    return X[..., prefixes, :]


def spectrum(x: Array, nd: int) -> Array:
    """Return the Fourier coefficients over the first ``nd`` axes: (N, …) real → (N, …) complex."""
    return fft(namespace(x)).fftn(x, axes=tuple(range(nd)), norm="forward")


def spectrum_adjoint(G: Array, nd: int) -> Array:
    """Return the adjoint of `spectrum`: (N, …) complex → (N, …) real; ``G`` is overwritten."""
    return fft(namespace(G)).ifftn(G, axes=tuple(range(nd)), norm="backward", overwrite_x=True).real


def wavelet(X: Array, bank: Bank, filters: slice = ALL) -> Array:
    """Return x ∗ ψ, subsampled, for filters of a bank: spectra (N, …) → (n, filters, …) complex."""
    xp, nd = namespace(X), len(bank.grid)
    folded = (_fold_lines if nd == 1 else _fold_grids)(X, bank, filters)
    return fft(xp).ifftn(folded, axes=tuple(range(nd)), norm="forward", overwrite_x=True)


def wavelet_adjoint(G: Array, bank: Bank, filters: slice, total: Array) -> None:
    """Add the adjoint of `wavelet` to ``total``: (n, filters, …) complex → (N, …); ``G`` is overwritten."""
    nd = len(bank.grid)
    folded = fft(namespace(G)).fftn(G, axes=tuple(range(nd)), norm="backward", overwrite_x=True)
    (_unfold_lines if nd == 1 else _unfold_grids)(folded, bank, filters, total)


def _fold_lines(X: Array, bank: Bank, filters: slice) -> Array:
    xp, boxes, lanes = namespace(X), bank.boxes[filters], X.shape[1:]
    folded = xp.zeros((*bank.out, len(boxes), *lanes), X.dtype)
    for f, (box, pieces) in enumerate(zip(boxes, bank.pieces[filters], strict=True)):
        for source, target, constant in pieces:
            weights = constant.on(xp).reshape(-1, *(1 for _ in lanes))
            if len(box.weights) <= bank.out[0]:  # no two pieces meet
                xp.multiply(X[source], weights, out=folded[target, f])
            else:
                folded[target, f] += X[source] * weights
    return folded


def _unfold_lines(folded: Array, bank: Bank, filters: slice, total: Array) -> None:
    xp, lanes = namespace(folded), folded.shape[2:]
    for f, pieces in enumerate(bank.pieces[filters]):
        for source, target, constant in pieces:
            total[source] += folded[target, f] * constant.on(xp).reshape(-1, *(1 for _ in lanes))


def _fold_grids(X: Array, bank: Bank, filters: slice) -> Array:
    xp, nd = namespace(X), len(bank.grid)
    constant, blocks = bank.matrices
    weights, lanes = constant.on(xp)[..., filters, :], X.shape[nd:]
    windows = [X[_window(block, bank.out)] for block in blocks]
    if len(windows) == 1:
        return weights.reshape(weights.shape[:-1] + (1,) * len(lanes)) * xp.expand_dims(windows[0], nd)
    # At every coarse frequency (filters × blocks) · (blocks × lanes), the complex numbers as pairs of real ones.
    aliases = xp.stack(windows, axis=nd)
    pairs = aliases.reshape(*bank.out, len(windows), -1).view(weights.dtype)
    return (weights @ pairs).view(X.dtype).reshape(weights.shape[:-1] + lanes)


def _unfold_grids(folded: Array, bank: Bank, filters: slice, total: Array) -> None:
    xp, nd = namespace(folded), len(bank.grid)
    constant, blocks = bank.matrices
    weights, lanes = constant.on(xp)[..., filters, :], folded.shape[nd + 1 :]
    pairs = folded.reshape(*folded.shape[: nd + 1], -1).view(weights.dtype)
    aliases = (xp.moveaxis(weights, -1, -2) @ pairs).view(folded.dtype)
    for b, block in enumerate(blocks):
        total[_window(block, bank.out)] += aliases[..., b, :].reshape(*bank.out, *lanes)


def _window(block: Shape, out: Shape) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(block, out, strict=True))


def modulus_adjoint(y: Array, G: Array) -> Array:
    """Return the adjoint of the modulus at ``y``, G·y/|y|, and 0 where y = 0."""
    xp = namespace(y)
    modulus = abs(y)
    return y * (G / xp.where(modulus == 0, 1, modulus))


def smooth(U: Array, lowpass: Smoothing) -> Array:
    """Smooth and sample the first axes: (n, …) → (samples kept, …)."""
    xp = namespace(U)
    if isinstance(lowpass, Sampling):
        return U[lowpass.samples]
    if isinstance(lowpass, LineLowpass):
        phi = lowpass.phi.on(xp).reshape(-1, *(1 for _ in U.shape[1:]))
        low = fft(xp).rfft(U, axis=0, norm="forward")[: len(phi)] * phi
        return fft(xp).irfft(low, n=lowpass.fine, axis=0, norm="forward")[lowpass.samples]
    nd = len(lowpass.matrices)
    S = U.reshape(*U.shape[:nd], -1)
    for axis, matrix in enumerate(lowpass.matrices):
        # A stack of products small enough that no BLAS starts threads of its own for them.
        S = xp.moveaxis(matrix.on(xp) @ xp.moveaxis(S, axis, -2), -2, axis)
    return S.reshape(S.shape[:nd] + U.shape[nd:])


def smooth_adjoint(G: Array, lowpass: Smoothing) -> Array:
    """Return the adjoint of `smooth`: (samples kept, …) → (n, …)."""
    xp = namespace(G)
    if isinstance(lowpass, Sampling):
        U = xp.zeros((lowpass.n, *G.shape[1:]), G.dtype)
        U[lowpass.samples] = G
        return U
    if isinstance(lowpass, LineLowpass):
        phi = lowpass.phi.on(xp).reshape(-1, *(1 for _ in G.shape[1:]))
        fine = xp.zeros((lowpass.fine, *G.shape[1:]), G.dtype)
        fine[lowpass.samples] = G
        low = fft(xp).rfft(fine, axis=0)[: len(phi)] * phi
        return fft(xp).irfft(low, n=lowpass.n, axis=0)
    nd = len(lowpass.matrices)
    U = G.reshape(*G.shape[:nd], -1)
    for axis, matrix in enumerate(lowpass.matrices):
        U = xp.moveaxis(matrix.on(xp).T @ xp.moveaxis(U, axis, -2), -2, axis)
    return U.reshape(U.shape[:nd] + G.shape[nd:])


def wavelet_modulus(X: Array, bank: Bank, filters: slice = ALL) -> Array:
    r"""Return |x ∗ ψ|, subsampled, for filters of a bank: (N, prefixes, images) → (n, filters × prefixes, images)."""
    return longer(abs(wavelet(X, bank, filters)), len(bank.grid))


def longer(U: Array, nd: int) -> Array:
    """Count filters as the last part of prefixes: (n, filters, prefixes, images) → (n, filters × prefixes, images)."""
    return U.reshape(*U.shape[:nd], -1, U.shape[-1])


def average(U: Array, lowpass: Smoothing, out: Array, rows: Array) -> None:
    """Write the smoothed signals (n, prefixes, images) to ``out`` (images, paths, samples kept), each to its row."""
    xp = namespace(U)
    S = smooth(U, lowpass)
    out[:, rows] = xp.moveaxis(S, (-1, -2), (0, 1))


def average_adjoint(g: Array, lowpass: Smoothing, rows: Array) -> Array:
    """Return the adjoint of `average`: (images, paths, samples kept), of these rows → (n, prefixes, images)."""
    return smooth_adjoint(namespace(g).moveaxis(g[:, rows], (0, 1), (-1, -2)), lowpass)


def scatter_last(X: Array, bank: Bank, filters: slice, lowpass: Smoothing, out: Array, rows: Array) -> None:
    """Write the coefficients of the paths that end with these filters, from the spectra of their prefixes."""
    average(wavelet_modulus(X, bank, filters), lowpass, out, rows)
