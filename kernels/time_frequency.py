"""Joint time–frequency scattering: wavelets along time, then wavelets across the log-frequency of the first ones.

References
----------
.. [1] J. Andén, V. Lostanlen and S. Mallat, "Joint time–frequency scattering", IEEE TSP 67 (2019).
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_cpu_joint, fused_cuda_joint, memory, primitives
from scattercube.kernels.arguments import Rebuilt, checked, checked_pair, integer, units
from scattercube.kernels.axes import Padding
from scattercube.kernels.bands import (
    Bands,
    band_labels,
    modulus_across,
    modulus_across_adjoint,
    scale_across,
)
from scattercube.kernels.cuda_units import finite_units
from scattercube.kernels.device import Array, Device, block_nbytes, device_of, namespace
from scattercube.kernels.fused_tables import possible
from scattercube.kernels.joint_stages import Part, Stage
from scattercube.kernels.morlet import Morlet1D, morlet_bank
from scattercube.kernels.paths import joint_paths, line_labels
from scattercube.kernels.primitives import Smoothing
from scattercube.kernels.scattering import Scattering1D
from scattercube.kernels.threads import Share, workers

Format = Literal["time", "joint"]


class TimeFrequencyScattering(Rebuilt):
    """Joint time–frequency scattering of signals: how they are modulated in time and in log-frequency [1]_.

    The first order |x ∗ ψ1| is a stack of bands, by falling frequency. ψ2 meets it along time, wavelets ψ_fr across the
    bands, and the modulus is averaged over T samples and F bands. Spin +1 answers to bands that sound one after the
    other from low to high, spin −1 from high to low; spin 0 is the mean across 2^J_fr bands. The averaged first order
    meets the ψ_fr of spin ≥ 0 likewise.

    ``S(x)`` turns signals ``(…, N)`` into coefficients of type ``dtype``, ``(…, path, time)`` or ``(…, path, frequency,
    time)``, in the namespace (NumPy or CuPy) of ``x``. Signals of integers and booleans are converted; the input is
    never modified. Frequencies across bands are labelled in cycles per octave of Q1 bands: where the first bank ends in
    wavelets of one width, spaced linearly, a band still counts as 1/Q1 octave.

    Parameters
    ----------
    J, shape, Q, T, padding, dtype, sampling_rate
        As for `Scattering1D`, with T ≥ 1.
    J_fr
        log2 of the largest scale across bands; J_fr ≥ 0, 2^J_fr ≤ (J + 1)·Q1.
    Q_fr
        Wavelets per octave of the frequency across bands.
    F
        Scale of the average in bands, 1 ≤ F ≤ (J + 1)·Q1, by default 2^J_fr. Outputs lie 2^⌊log2 F⌋ bands apart.
    format
        ``"time"``: a path for each of these bands, and order 0. ``"joint"``: these bands are an axis; no order 0.

    Attributes
    ----------
    output_shape
        (n_paths, n_times) or (n_paths, n_frequencies, n_times).
    paths
        The label of each coefficient. Orders ascend, then n2, then n_fr, then n1; ``paths.rows`` are those of (),
        (n_fr,) and (n2, n_fr).
    halo
        As for `Scattering1D`.

    Raises
    ------
    TypeError
        A parameter is of the wrong type.
    ValueError
        A parameter is out of its range.

    Notes
    -----
    ``padding="kymatio"`` gives the numbers of Kymatio 0.4: its bands lie on a circle, all of which ``"joint"`` keeps,
    and F ≤ 2^J_fr. Where F < 2^J_fr its labels, and in this convention ours, place the coefficients of spin 0 at every
    2^J_fr-th band though they lie at every 2^⌊log2 F⌋-th.
    """

    def __init__(
        self,
        J: int,
        J_fr: int,
        shape: int | tuple[int],
        Q: int | tuple[int, ...] = (8, 1),
        Q_fr: int = 1,
        T: float | None = None,
        F: float | None = None,
        format: Format = "time",
        padding: Padding = "minimal",
        dtype: str = "float32",
        sampling_rate: float | None = None,
    ) -> None:
        if T in (0, "global"):
            raise ValueError(f"T={T!r}: a joint transform averages over T samples, 1 ≤ T ≤ N")
        if format not in ("time", "joint"):
            raise ValueError(f'format={format!r}: expected "time" or "joint"')
        self._time = Scattering1D(J, shape, Q, T, padding=padding, dtype=dtype, sampling_rate=sampling_rate)
        self.J, self.Q, self.T, self.padding = self._time.J, self._time.Q, self._time.T, self._time.padding
        self.shape, self.dtype, self.halo = self._time.shape, self._time.dtype, self._time.halo
        self.J_fr, self.Q_fr, self.format = integer("J_fr", J_fr, 0), integer("Q_fr", Q_fr, 1), format
        n_nominal = (self.J + 1) * self.Q[0]
        self.F = scale_across(F, self.J_fr, n_nominal, self.padding)
        self.sampling_rate = sampling_rate

        self._first, self._second = (morlet_bank(self.J, q) for q in self.Q)
        if padding == "kymatio":
            self._bands = Bands.peers(n_nominal, self.J_fr, self.Q_fr, self.F)
        else:
            self._bands = Bands.of(len(self._first), self.J_fr, self.Q_fr, self.F, self.dtype)
        labels: list[tuple[int, ...]] = [] if format == "joint" else [(0, -1, -1, -1)]
        self._n_rows = len(labels)
        self._order_1 = self._stage(None, labels)
        self._stages = [self._stage(psi2, labels) for psi2 in self._second if psi2.j > self._first[0].j]
        first, second = (line_labels(bank, sampling_rate) for bank in (self._first, self._second))
        banks = [("1", "first", 3, first)] * (format == "time")
        banks += [("2", "second", 1, second), ("", "", 2, band_labels(self._bands.wavelets, self.Q[0]))]
        self.paths = joint_paths(np.array(labels), banks)
        kept = (len(self._bands.kept),) if format == "joint" else ()
        self.output_shape = (len(labels), *kept, *self._time.output_shape[1:])

    def __call__(self, x: Array, threads: int = 1) -> Array:
        r"""Return the coefficients (…, \*output_shape) of signals (…, N), in the namespace of ``x``.

        With the compiled engine (NumPy arrays), the bits for a signal depend neither on what else is in the batch nor
        on ``threads``, how many of its threads work; without it, the batch changes them by rounding alone.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            The last axis is not N, or a value is not finite.
        """
        on_device = self._fused_cuda if device_of(x) == "cuda" else None
        batch = checked(x, self.shape, self.dtype, finite=on_device is None)
        threads = integer("threads", threads, 1)
        result = namespace(x).empty((len(batch), self._n_rows, self.output_shape[-1]), dtype=self.dtype)
        if on_device:
            batch = batch.astype(self.dtype, copy=False)
            on_device(batch, finite_units(batch, x), result)
            return result.reshape(x.shape[:-1] + self.output_shape)
        if device_of(x) == "cpu" and self._fused:
            self._fused(batch, result, threads)
            return result.reshape(x.shape[:-1] + self.output_shape)
        with workers(threads if device_of(x) == "cpu" else 1) as share:
            for part in self._blocks(batch):
                block = batch[part].astype(self.dtype, copy=False)
                unit = units(block)[:, None]
                self._scatter(block / unit, result[part], share)
                with np.errstate(over="ignore"):  # as in a cascade
                    result[part] *= unit[..., None]
        return result.reshape(x.shape[:-1] + self.output_shape)

    def adjoint(self, x: Array, g: Array) -> Array:
        r"""Return the gradient of Σ S(x)·g with respect to ``x``: (…, N) and (…, \*output_shape) → (…, N).

        |y| has the gradient y/|y|, and 0 where y = 0.

        Raises
        ------
        TypeError
            ``x`` or ``g`` is not an array of real numbers.
        ValueError
            A shape does not fit, or a value is not finite.
        """
        xp, (batch, g) = namespace(x), checked_pair(x, g, self.shape, self.output_shape, self.dtype)
        g = g.reshape(len(batch), self._n_rows, self.output_shape[-1])
        gradient = xp.empty(batch.shape, dtype=self.dtype)
        with workers(1) as alone:
            for part in self._blocks(batch):
                X = primitives.spectrum(self._extended(batch[part]), 1)
                here = g[part].astype(self.dtype, copy=False)
                G = primitives.spectrum_adjoint(self._ascend(X, here, alone), 1)
                if self.format == "time":
                    G = G + primitives.average_adjoint(here, self._lowpass(0), slice(0, 1))
                gradient[part] = primitives.extend_adjoint(G, self._time._indices, self.shape)
        return gradient.reshape(x.shape)

    @property
    def positions(self) -> tuple[NDArray[np.float64], ...]:
        """Where each output lies, an array for each axis behind ``path``: (frequencies and) times.

        In Hz and seconds, or cycles per sample and samples. A frequency is the centre of a band, and NaN at the places
        beyond the last band that ``padding="kymatio"`` keeps.
        """
        if self.format == "time":
            return self._time.positions
        centres = np.full(len(self._bands.kept), np.nan)
        xi = [psi.xi for psi in self._first[:: self._bands.stride]]
        centres[: len(xi)] = xi
        return (centres * (self.sampling_rate or 1), *self._time.positions)

    @cached_property
    def filter_digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the filters, as `Scattering1D` has them."""
        digest = hashlib.sha256(repr((self._time.filter_digest, self.format)).encode())
        for bank in (stage.bank for stage in (self._order_1, *self._stages)):
            digest.update(bank.kernels.host.astype("<c8").tobytes())
            digest.update(bank.smoothing.host.astype("<f4").tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def _fused(self) -> fused_cpu_joint.Plan | None:
        """What the compiled engine makes of this transform; None where there is no engine for its grids."""
        return fused_cpu_joint.plan(self)

    @cached_property
    def _fused_cuda(self) -> fused_cuda_joint.Plan | None:
        """What the CUDA engine makes of this transform; None where it does not have one of its grids."""
        return fused_cuda_joint.plan(self)

    # --- Which coefficients there are ---

    def _stage(self, psi2: Morlet1D | None, labels: list[tuple[int, ...]]) -> Stage:
        """Set up what follows ψ2, and add its labels (order, n2, n_fr, n1)."""
        wavelets = self._bands.rising if psi2 is None else self._bands.wavelets
        n_bands = len(self._first) if psi2 is None else sum(psi1.j < psi2.j for psi1 in self._first)
        bank = self._bands.bank(wavelets, n_bands, self.format == "joint", self.dtype)
        order, n2 = (1, -1) if psi2 is None else (2, psi2.n)
        for n_fr, psi in enumerate(wavelets):
            bands = [-1] if self.format == "joint" else range(0, n_bands, psi.called)
            labels.extend((order, n2, n_fr, band) for band in bands)
        rows = slice(self._n_rows, self._n_rows + bank.n_outputs)
        self._n_rows = rows.stop
        if psi2 is None:
            return Stage(-1, slice(0), bank, rows)
        place = sum(psi.j == psi2.j for psi in self._second[: psi2.n])
        return Stage(psi2.j, slice(place, place + 1), bank, rows)

    # --- The transform, and back ---

    def _lowpass(self, j: int) -> Smoothing:
        return self._time._lowpasses[self._time._level(j)]

    def _extended(self, signals: Array) -> Array:
        return primitives.extend(signals.astype(self.dtype, copy=False), self._time._indices)

    def _scatter(self, signals: Array, out: Array, share: Share) -> None:
        """Fill the coefficients of a block of signals."""
        xp, signal = namespace(signals), self._extended(signals)
        if self.format == "time":
            primitives.average(signal, self._lowpass(0), out, slice(0, 1))
        X = primitives.spectrum(signal, 1)
        del signal
        parts, S1 = self._first_order(X, share)
        del X
        out[:, self._order_1.rows] = xp.moveaxis(modulus_across(S1, self._order_1.bank, share.threads), 1, 0)
        del S1
        for stage in self._stages:
            Y = self._second_order(parts, stage, share)
            Z = xp.moveaxis(modulus_across(Y, stage.bank, share.threads), -1, 0)
            del Y
            self._average(Z, stage, out, share)
            del Z

    def _average(self, Z: Array, stage: Stage, out: Array, share: Share) -> None:
        """Average (n, outputs, signals) along time, each into its row."""
        low = self._lowpass(stage.j)

        def some(outputs: slice) -> None:
            rows = slice(stage.rows.start + outputs.start, stage.rows.start + outputs.stop)
            primitives.average(Z[:, outputs], low, out, rows)

        share(some, share.slices(Z.shape[1]))

    def _first_order(self, X: Array, share: Share) -> tuple[list[Part], Array]:
        """Return |x ∗ ψ1| as spectra, and its average (bands, signals, times)."""
        xp, time = namespace(X), self._time

        # All spectra are there before what only passes, which then leaves no holes between them.
        sizes = {j: (*time._grid(time._level(j)), len(group)) for j, group in time._wavelets[0].items()}
        spectra = {j: xp.empty((*size, X.shape[-1]), X.dtype) for j, size in sizes.items()}

        def part(j: int, filters: slice, band: int) -> tuple[Part, Array]:
            U, spectrum = primitives.wavelet_modulus(X, time._bank((j,)), filters), spectra[j][:, filters]
            spectrum[:] = primitives.spectrum(U, 1)
            return Part(j, filters, slice(band, band + U.shape[1]), spectrum), primitives.smooth(U, self._lowpass(j))

        some, band = [], 0
        for j, group in time._wavelets[0].items():
            step, _ = time._at_once(j, len(group), X.shape[-1], device_of(X))
            for start in range(0, len(group), step):
                filters = slice(start, min(start + step, len(group)))
                some.append((j, filters, band + start))
            band += len(group)
        parts, averages = zip(*share(part, *zip(*some, strict=True)), strict=True)
        return list(parts), xp.moveaxis(xp.concatenate(averages, axis=1), 0, -1)

    def _second_order(self, parts: list[Part], stage: Stage, share: Share) -> Array:
        """Return |x ∗ ψ1| ∗ ψ2, for all bands of smaller scale than ψ2: (bands, signals, n) complex."""
        spectrum = parts[0].spectrum
        xp, (n,) = namespace(spectrum), self._time._grid(self._time._level(stage.j))
        Y = xp.empty((stage.bank.n_bands, spectrum.shape[-1], n), spectrum.dtype)

        def some(part: Part) -> None:
            y = primitives.wavelet(part.spectrum, self._time._bank((part.j, stage.j)), stage.wavelet)
            Y[part.bands] = xp.moveaxis(y[:, 0], 0, -1)

        share(some, stage.met(parts))
        return Y

    def _ascend(self, X: Array, g: Array, alone: Share) -> Array:
        """Return the gradient with respect to the spectra ``X`` of what follows from them, weighted by ``g``."""
        xp, time = namespace(X), self._time
        parts, S1 = self._first_order(X, alone)
        totals = {part.bands.start: xp.zeros_like(part.spectrum) for part in parts}
        for stage in self._stages:
            G = xp.moveaxis(primitives.average_adjoint(g, self._lowpass(stage.j), stage.rows), 0, -1)
            G = modulus_across_adjoint(self._second_order(parts, stage, alone), stage.bank, G)
            for part in stage.met(parts):
                here = xp.ascontiguousarray(xp.moveaxis(G[part.bands], -1, 0))[:, None]
                bank = time._bank((part.j, stage.j))
                primitives.wavelet_adjoint(here, bank, stage.wavelet, totals[part.bands.start])
        G1 = modulus_across_adjoint(S1, self._order_1.bank, xp.moveaxis(g[:, self._order_1.rows], 0, 1)).real
        GX = xp.zeros_like(X)
        for part in parts:
            G = primitives.smooth_adjoint(xp.moveaxis(G1[part.bands], -1, 0), self._lowpass(part.j))
            G = G + primitives.spectrum_adjoint(totals.pop(part.bands.start), 1)
            y = primitives.wavelet(X, time._bank((part.j,)), part.filters)
            primitives.wavelet_adjoint(
                primitives.modulus_adjoint(y, G.reshape(y.shape)), time._bank((part.j,)), part.filters, GX
            )
        return GX

    # --- Blocks: memory does not grow with the batch ---

    def nbytes(self, batch: int, device: Device = "cpu", threads: int = 1) -> int:
        """Project the peak bytes that ``S(x)`` allocates for ``batch`` signals of its own dtype, the result included.

        Signals are taken in blocks, so that beyond the result the peak does not grow with the batch. The filters, which
        stay, and about 64 KiB of bookkeeping are not counted.
        """
        time, itemsize, groups = self._time, self.dtype.itemsize, self._time._wavelets[0].items()
        result = int(batch * self._n_rows * self.output_shape[-1] * itemsize)
        if device == "cpu" and self._fused:
            return result + self._fused.nbytes(batch, threads)
        if device == "cuda" and self._fused_cuda:
            return result + batch * itemsize + self._fused_cuda.nbytes(batch)
        n_signals = min(batch, self._signals_at_once(device))
        X = 2 * n_signals * time._signal_nbytes(0)
        scaled = n_signals * self.shape[0] * itemsize  # by its unit
        spectra = scaled + sum(2 * len(group) * n_signals * time._signal_nbytes(time._level(j)) for j, group in groups)
        peak = max(scaled + 3 * X // 2, spectra + X)  # while X is made, and X
        for j, group in groups:
            step, _ = time._at_once(j, len(group), n_signals, device)
            U = n_signals * time._signal_nbytes(time._level(j))
            peak = max(peak, spectra + X + 3 * U * min(threads * step, len(group)))
        n_times = n_signals * self.output_shape[-1] * itemsize
        S1 = len(self._first) * n_times
        peak = max(peak, spectra + 2 * S1 + self._order_1.bank.nbytes(n_times, device, threads))
        for stage in self._stages:
            level = time._level(stage.j)
            line = n_signals * time._signal_nbytes(level)
            Y, Z = 2 * stage.bank.n_bands * line, stage.bank.n_outputs * line
            widths = sorted(len(group) for j, group in groups if j < stage.j)
            y = 2 * line * sum(widths[-threads:])
            smoothed = 2 * Z + stage.bank.n_outputs * n_times
            across = stage.bank.nbytes(line, device, threads)
            peak = max(peak, spectra + max(Y + max(y, across), smoothed))
        return result + int(peak)

    def foreseen_nbytes(self, batch: int) -> int:
        """Bound `nbytes` on the CPU, with one thread, from the sizes of grids: no filter along time is made for it."""
        if not possible(self._time):
            return self.nbytes(batch)
        result: int = batch * math.prod(self.output_shape) * self.dtype.itemsize
        return result + memory.of_joint(self)

    @property
    def filter_nbytes(self) -> int:
        """About how many bytes the filters along time take; those across bands are small beside them."""
        return self._time.filter_nbytes

    def _blocks(self, batch: Array) -> Iterator[slice]:
        step = self._signals_at_once(device_of(batch))
        return (slice(start, start + step) for start in range(0, len(batch), step))

    def _signals_at_once(self, device: Device) -> int:
        groups = self._time._wavelets[0].items()
        spectra = sum(2 * len(group) * self._time._signal_nbytes(self._time._level(j)) for j, group in groups)
        return max(1, block_nbytes(device) // spectra)
