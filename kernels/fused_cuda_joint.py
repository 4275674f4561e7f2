"""Joint time–frequency scattering as the CUDA engine runs it: wavelets along time on the engine, bands by matrices."""

from typing import TYPE_CHECKING, Any

from scattercube.kernels import fused_cuda
from scattercube.kernels.bands import modulus_across
from scattercube.kernels.cuda_filters import Filters
from scattercube.kernels.cuda_schedule import Given, Schedule
from scattercube.kernels.device import Array, namespace
from scattercube.kernels.filterbank import Bank
from scattercube.kernels.fused_cuda import Signals

if TYPE_CHECKING:
    from scattercube.kernels.joint_stages import Stage
    from scattercube.kernels.time_frequency import TimeFrequencyScattering

_SPECTRA, _BANDS = Given(0), Given(1)
_LINES, _ALIGNMENT = 0, 256
_SPECTRA_NBYTES = 1 << 28  # of the first order's


def plan(joint: "TimeFrequencyScattering") -> "Plan | None":
    """Return the plan of a joint transform; None where the engine lacks one of its grids."""
    along_time = joint._time._fused_cuda
    return Plan(joint, along_time) if along_time and along_time.averages_lines else None


class Plan:
    """A joint transform as the engine runs it.

    Parameters
    ----------
    joint
        What to run.
    along_time
        The plan of its first and second order along time.
    """

    def __init__(self, joint: "TimeFrequencyScattering", along_time: fused_cuda.Plan) -> None:
        self._along_time, self._time = along_time, joint._time
        self._dtype, self._n_rows, self._n_bands = joint.dtype, joint._n_rows, len(joint._first)
        self._order_1, self._stages, self._has_order_0 = joint._order_1, joint._stages, joint.format == "time"
        self._n_times = joint.output_shape[-1]
        self._groups = {j: len(group) for j, group in joint._time._groups[0].items()}
        self._filters = [self._stage_filters(stage) for stage in self._stages]
        self._schedules: dict[Any, Schedule] = {}

    def _stage_filters(self, stage: "Stage") -> dict[int, Filters]:
        """The filter of a stage for each scale it meets, as a bank of its own."""
        banks = {j: self._time._bank((j, stage.j)) for j in self._groups if j < stage.j}
        return {j: Filters.of(Bank(bank.boxes[stage.wavelet], bank.grid, bank.out)) for j, bank in banks.items()}

    def __call__(self, batch: Array, unit: Array, out: Array) -> None:
        """Fill ``out`` (B, rows, times) from signals (B, N) of the right type; ``unit`` (B,) is what is divided by."""
        xp, step = namespace(batch), self._signals_at_once
        for start in range(0, len(batch), step):
            some = slice(start, start + step)
            signals = xp.ascontiguousarray(batch[some] / unit[some, None])
            self._scatter(signals, xp.ones_like(unit[some]), out[some])
            out[some] *= unit[some, None, None]

    @property
    def _signals_at_once(self) -> int:
        each = sum(n * self._along_time.spectrum_nbytes(j) for j, n in self._groups.items())
        return max(1, _SPECTRA_NBYTES // each)

    def nbytes(self, batch: int) -> int:
        """Project the peak bytes of a call, beside its argument and result."""
        n, itemsize = min(batch, self._signals_at_once), self._dtype.itemsize
        signals = n * self._time.shape[0] * itemsize
        places, end = self._places(n)
        S1 = n * (1 + self._n_bands) * self._n_times * itemsize
        first = self._first(n, places).nbytes
        n_times = n * self._n_times * itemsize
        peak = max(first, S1 + self._order_1.bank.nbytes(n_times, "cuda", 1))
        for stage in self._stages:
            line = n * self._time._signal_nbytes(self._time._level(stage.j))
            Y, Z = 2 * stage.bank.n_bands * line, stage.bank.n_outputs * line
            schedule = self._second(n, self._stages.index(stage), places)
            peak = max(peak, Y + max(schedule.nbytes, stage.bank.nbytes(line, "cuda", 1)), Z)
        return int(2 * signals + end + S1 + peak)

    # --- A block of signals ---

    def _scatter(self, signals: Array, unit: Array, out: Array) -> None:
        xp, n = namespace(signals), len(signals)
        places, end = self._places(n)
        spectra = xp.empty(end, xp.uint8)
        S1 = xp.empty((n, 1 + self._n_bands, self._n_times), self._dtype)
        self._first(n, places).run(xp, signals, unit, S1, spectra)
        if self._has_order_0:
            out[:, 0] = S1[:, 0]
        Z = modulus_across(xp.ascontiguousarray(xp.moveaxis(S1[:, 1:], 0, 1)), self._order_1.bank)
        out[:, self._order_1.rows] = xp.moveaxis(Z, 0, 1)
        for i, stage in enumerate(self._stages):
            (N,) = self._time._grid(self._time._level(stage.j))
            Y = xp.empty((stage.bank.n_bands, n, N), xp.result_type(self._dtype, xp.complex64))
            self._second(n, i, places).run(xp, spectra, Y)
            Z = xp.ascontiguousarray(modulus_across(Y, stage.bank))
            del Y
            self._averages(n, i).run(xp, Z, unit, out)

    def _places(self, n: int) -> tuple[dict[int, int], int]:
        """Where the spectra of each scale of the first order stand, and the end of the last."""
        places, end = {}, 0
        for j, n_filters in self._groups.items():
            places[j] = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = places[j] + n * n_filters * self._along_time.spectrum_nbytes(j)
        return places, end

    def _first(self, n: int, places: dict[int, int]) -> Schedule:
        """Averages to (n, 1 + bands, times), the third array of a call; spectra to the fourth."""
        if ("first", n) not in self._schedules:
            schedule, along_time, n_rows = Schedule(), self._along_time, 1 + self._n_bands
            X = schedule.space(0, n * along_time.spectrum_nbytes(0))
            along_time.extend(schedule, n, X, X.end, n_rows)
            for j in self._groups:
                deeper = Given(3, places[j])
                along_time.wavelet(schedule, n, Signals(X, (), 1, X.end), j, deeper, n_rows)
            self._schedules["first", n] = schedule
        return self._schedules["first", n]

    def _second(self, n: int, i: int, places: dict[int, int]) -> Schedule:
        """Filter all bands that a stage meets by ψ2, from the first array of a call to the second."""
        if (i, n) not in self._schedules:
            schedule, band = Schedule(), 0
            for j, filters in self._filters[i].items():
                signals = Signals(Given(_SPECTRA.index, places[j]), (j,), self._groups[j], 0)
                self._along_time.bands(schedule, n, signals, self._stages[i].j, filters, band, _BANDS)
                band += self._groups[j]
            self._schedules[i, n] = schedule
        return self._schedules[i, n]

    def _averages(self, n: int, i: int) -> Schedule:
        """The averages of (outputs, n, N) along time, the first array of a call, into rows of the third."""
        if ("averages", i, n) not in self._schedules:
            schedule, stage = Schedule(), self._stages[i]
            n_lines = stage.bank.n_outputs * n
            self._along_time.averages(schedule, Given(_LINES), stage.j, n_lines, n, stage.rows.start, self._n_rows)
            self._schedules["averages", i, n] = schedule
        return self._schedules["averages", i, n]
