"""Joint time–frequency scattering as the CUDA engine runs it: wavelets along time, then across bands."""

from typing import TYPE_CHECKING

from scattercube.kernels import fused_cuda
from scattercube.kernels.cuda_bands import CudaBands, Lanes
from scattercube.kernels.cuda_filters import Filters
from scattercube.kernels.cuda_schedule import OUT, Given, Schedule, Space
from scattercube.kernels.device import Array, namespace
from scattercube.kernels.filterbank import Bank
from scattercube.kernels.fused_cuda import Rows, Signals

if TYPE_CHECKING:
    from scattercube.kernels.joint_stages import Stage
    from scattercube.kernels.time_frequency import TimeFrequencyScattering

_SPECTRA_NBYTES = 1 << 28  # of the first order's


def plan(joint: "TimeFrequencyScattering") -> "Plan | None":
    """Return the plan of a joint transform; None where the engine lacks one of its grids, or its bands are too many."""
    along_time = joint._time._fused_cuda
    if along_time is None or not along_time.averages_lines:
        return None
    banks = [CudaBands.of(stage.bank) for stage in (joint._order_1, *joint._stages)]
    possible = [bank for bank in banks if bank]
    return Plan(joint, along_time, possible) if len(possible) == len(banks) else None


class Plan:
    """A joint transform as the engine runs it.

    Parameters
    ----------
    joint
        What to run.
    along_time
        The plan of its first and second order along time.
    banks
        What its stages do across bands, the first order's before the others'.
    """

    def __init__(self, joint: "TimeFrequencyScattering", along_time: fused_cuda.Plan, banks: list[CudaBands]) -> None:
        self._along_time, self._time, self._banks = along_time, joint._time, banks
        self._dtype, self._n_rows, self._n_bands = joint.dtype, joint._n_rows, len(joint._first)
        self._order_1, self._stages, self._has_order_0 = joint._order_1, joint._stages, joint.format == "time"
        self._n_times = joint.output_shape[-1]
        self._groups = {j: len(group) for j, group in joint._time._wavelets[0].items()}
        self._filters = [self._stage_filters(stage) for stage in self._stages]
        self._schedules: dict[int, Schedule] = {}

    def _stage_filters(self, stage: "Stage") -> dict[int, Filters]:
        """The filter of a stage for each scale it meets, as a bank of its own."""
        banks = {j: self._time._bank((j, stage.j)) for j in self._groups if j < stage.j}
        return {j: Filters.of(Bank(bank.boxes[stage.wavelet], bank.grid, bank.out)) for j, bank in banks.items()}

    def __call__(self, batch: Array, unit: Array, out: Array) -> None:
        """Fill ``out`` (B, rows, times) from signals (B, N) of the right type; ``unit`` (B,) is what is divided by.

        Squares across bands are those of signals in their units.
        """
        xp, step = namespace(batch), self._signals_at_once
        for start in range(0, len(batch), step):
            some = slice(start, start + step)
            signals = xp.ascontiguousarray(batch[some] / unit[some, None])
            self._schedule(len(signals)).run(xp, signals, xp.ones_like(unit[some]), out[some])
            out[some] *= unit[some, None, None]

    @property
    def _signals_at_once(self) -> int:
        each = sum(n * self._along_time.spectrum_nbytes(j) for j, n in self._groups.items())
        return max(1, _SPECTRA_NBYTES // each)

    def nbytes(self, batch: int) -> int:
        """Project the peak bytes of a call, beside its argument, the units and the result."""
        n = min(batch, self._signals_at_once)
        scaled: int = n * (self._time.shape[0] + 1) * self._dtype.itemsize
        return scaled + self._schedule(n).nbytes

    # --- What is launched for a block of signals ---

    def _schedule(self, n: int) -> Schedule:
        if n not in self._schedules:
            schedule, along_time, end = Schedule(), self._along_time, 0
            spectra: dict[int, Space] = {}
            for j, n_filters in self._groups.items():
                spectra[j] = schedule.space(end, n * n_filters * along_time.spectrum_nbytes(j))
                end = spectra[j].end
            S1 = schedule.space(end, n * (1 + self._n_bands) * self._n_times * self._dtype.itemsize)
            X = schedule.space(S1.end, n * along_time.spectrum_nbytes(0))
            rows = Rows(S1, 1 + self._n_bands)
            along_time.extend(schedule, n, X, X.end, rows)
            for j in self._groups:
                along_time.wavelet(schedule, n, Signals(X, (), 1, X.end), j, spectra[j], rows)
            self._first(schedule, n, S1)
            for i in range(len(self._stages)):
                self._second(schedule, n, i, spectra, S1.end)
            self._schedules[n] = schedule
        return self._schedules[n]

    def _first(self, schedule: Schedule, n: int, S1: Space) -> None:
        """Filter the averaged first order, rows of (n, 1 + bands, times) behind order 0."""
        T, itemsize, bank = self._n_times, self._dtype.itemsize, self._banks[0]
        outer, outer_out = (1 + self._n_bands) * T, self._n_rows * T
        if self._has_order_0:
            bank.copy_row(schedule, n, T, S1, outer, OUT, outer_out)
        bands = S1.behind(T * itemsize)
        rows = Given(OUT.index, self._order_1.rows.start * T * itemsize)
        bank.across(schedule, "real", bands, Lanes(n * T, T, outer, T), rows, Lanes(n * T, T, outer_out, T))

    def _second(self, schedule: Schedule, n: int, i: int, spectra: dict[int, Space], free: int) -> None:
        """Filter the bands that a stage meets by ψ2, then across, and average along time."""
        stage, bank, band = self._stages[i], self._banks[1 + i], 0
        (N,) = self._time._grid(self._time._level(stage.j))
        lanes = n * N
        Y = schedule.space(free, stage.bank.n_bands * lanes * 2 * self._dtype.itemsize)
        Z = schedule.space(Y.end, stage.bank.n_outputs * lanes * self._dtype.itemsize)
        for j, filters in self._filters[i].items():
            signals = Signals(spectra[j], (j,), self._groups[j], Z.end)
            self._along_time.bands(schedule, n, signals, stage.j, filters, band, Y)
            band += self._groups[j]
        side_by_side = Lanes(lanes, lanes, 0, lanes)
        bank.across(schedule, "complex", Y, side_by_side, Z, side_by_side)
        rows = Rows(OUT, self._n_rows)
        self._along_time.averages(schedule, Z, stage.j, stage.bank.n_outputs * n, n, stage.rows.start, rows)
