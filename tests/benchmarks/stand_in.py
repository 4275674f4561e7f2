"""A stand-in for Kymatio 0.4's joint time–frequency scattering, which release 0.3 does not have."""

import math
from types import ModuleType
from typing import Any

import numpy as np

from scattercube.kernels import TimeFrequencyScattering
from scattercube.kernels.morlet import gaussian_spectrum, morlet_bank


class JointStandIn:
    """The peer's operations in the peer's order, one path at a time, in NumPy or torch, in single precision.

    Every wavelet is multiplied and subsampled (mean of aliases) in Fourier on the whole grid, and transformed back;
    every modulus is transformed forth for its low-pass, and back. Filters, grids and the selection of paths are those
    of the transform it stands beside, which the tests compare with vectors of Kymatio 0.4.

    Parameters
    ----------
    S
        The transform, with ``padding="kymatio"`` and ``format="time"``.
    xp
        NumPy or torch.
    """

    def __init__(self, S: TimeFrequencyScattering, xp: ModuleType) -> None:
        self.xp, (axis,) = xp, S._time._axes
        self.index = self.array(axis.index)
        self.log2_T, self.log2_F = int(math.log2(S.T)), int(math.log2(S.F))
        self.kept = slice(axis.first, axis.first + axis.n_out)
        N, n_places = axis.padded, (S.J + 1) * S.Q[0] + (1 << S.J_fr + 3)
        spectra = [[(psi.j, self.spectrum(psi, N)) for psi in morlet_bank(S.J, Q)] for Q in S.Q]
        self.first = [(j, min(j, self.log2_T), self.array(psi)) for j, psi in spectra[0]]
        self.second = [(j, min(j, self.log2_T), self.levels(psi, j + 1)) for j, psi in spectra[1]]
        self.phi = self.levels(gaussian_spectrum(0.1 / S.T, N), self.log2_T + 1)
        self.n_places, self.phi_fr = n_places, self.levels(gaussian_spectrum(0.1 / S.F, n_places), self.log2_F + 1)
        up = [(psi.j, self.spectrum(psi, n_places)) for psi in morlet_bank(S.J_fr, S.Q_fr)]
        down = [(j, np.roll(psi[::-1], 1)) for j, psi in up]
        low = [(S.J_fr, gaussian_spectrum(0.1 / 2**S.J_fr, n_places))]
        self.across = [(min(j, self.log2_F), self.array(psi)) for j, psi in low + up + down]
        self.n_rising = len(low + up)

    def __call__(self, x: Any) -> Any:
        """Return the coefficients (B, path, time) of signals (B, N)."""
        xp, F = self.xp, self.xp.fft
        X = F.fft(x[..., self.index])
        out = [F.ifft(self.subsampled(X * self.phi[0], self.log2_T)).real[..., None, :]]
        spectra, S1 = [], []
        for j, level, psi in self.first:
            U = F.fft(abs(F.ifft(self.subsampled(X * psi, level))))
            spectra.append((j, level, U))
            S1.append(F.ifft(self.subsampled(U * self.phi[level], self.log2_T - level)).real)
        out += self.scattered_across(xp.stack(S1, -1), self.across[: self.n_rising], None)
        for j2, level2, psi in self.second:
            Y = [F.ifft(self.subsampled(U * psi[r], level2 - r)) for j, r, U in spectra if j < j2]
            if Y:
                out += self.scattered_across(xp.stack(Y, -1), self.across, level2)
        return xp.concatenate(out, -2)[..., self.kept]

    def scattered_across(self, Y: Any, wavelets: list[tuple[int, Any]], level: int | None) -> list[Any]:
        """Scatter (B, n, bands) across the bands, and where a level of time is given average along time."""
        xp, F = self.xp, self.xp.fft
        silent = xp.zeros((*Y.shape[:-1], self.n_places - Y.shape[-1]), dtype=Y.dtype)
        X, out = F.fft(xp.concatenate([Y, silent], -1)), []
        for i, (k, psi) in enumerate(wavelets):
            Z = xp.moveaxis(abs(F.ifft(self.subsampled(X * psi, k))), -1, -2)
            if level is not None:
                Z = F.ifft(self.subsampled(F.fft(Z) * self.phi[level], self.log2_T - level)).real
            if i:
                Z = F.fft(xp.moveaxis(Z, -1, -2)) * self.phi_fr[k]
                Z = xp.moveaxis(F.ifft(self.subsampled(Z, self.log2_F - k)).real, -1, -2)
            out.append(Z[..., : -(-Y.shape[-1] >> self.log2_F), :])
        return out

    def array(self, values: Any) -> Any:
        single = np.ascontiguousarray(values if values.dtype.kind == "i" else values.astype(np.float32))
        return single if self.xp is np else self.xp.from_numpy(single)

    def levels(self, psi: Any, n: int) -> list[Any]:
        """The spectrum as it acts on signals subsampled by 1, 2, 4 and so on."""
        return [self.array(psi.reshape(1 << level, -1).sum(axis=0)) for level in range(n)]

    @staticmethod
    def subsampled(X: Any, level: int) -> Any:
        return X.reshape(*X.shape[:-1], 1 << level, -1).mean(-2)

    @staticmethod
    def spectrum(psi: Any, n: int) -> Any:
        return psi.box(n, 1e-12, np.dtype(np.float64)).dense((n,))
