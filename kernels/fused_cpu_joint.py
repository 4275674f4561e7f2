"""Joint time–frequency scattering as the compiled CPU engine runs it: wavelets along time, then across bands."""

from typing import TYPE_CHECKING

import numpy as np

from scattercube.kernels import fused_bands, fused_plan
from scattercube.kernels.fused_schedule import Block, Schedule, Step, together
from scattercube.kernels.fused_tables import Tables, aligned, possible

if TYPE_CHECKING:
    from scattercube.kernels.time_frequency import TimeFrequencyScattering


def plan(joint: "TimeFrequencyScattering") -> "Plan | None":
    """Return the plan of a joint transform; None where no engine is at hand, or a large prime divides a grid."""
    if not possible(joint._time):
        return None
    banks = [stage.bank.fused for stage in (joint._order_1, *joint._stages)]
    there = [bank for bank in banks if bank]
    return Plan(joint, there) if len(there) == len(banks) else None


class Plan(fused_plan.Plan):
    """A joint transform as the engine runs it, one signal at a time: vectors hold neighbouring points.

    Parameters
    ----------
    joint
        What to run.
    banks
        What its stages do across bands, the first order's before the others'.
    """

    def __init__(self, joint: "TimeFrequencyScattering", banks: list[fused_bands.Plan]) -> None:
        super().__init__(Tables(joint._time, points=True), joint._n_rows)
        self._time, self._banks = joint._time, banks
        self._order_1, self._stages, self._has_order_0 = joint._order_1, joint._stages, joint.format == "time"
        self._n_times: int = joint.output_shape[-1]
        self._groups = {j: len(group) for j, group in joint._time._wavelets[0].items()}

    def _steps(self, block: Block, threads: int) -> Schedule:
        tables, itemsize = self._tables, self._tables.dtype.itemsize
        X = tables.field_nbytes(0, 1)
        # In front of the first order's spectra lies what leads to them, and later what follows from them.
        end = X + tables.spectrum_nbytes(0, 1)
        for stage in self._stages:
            lines = 2 * stage.bank.n_bands + stage.bank.n_outputs
            end = max(end, aligned(lines * self._line_nbytes(stage.j)))
        spectra = {}
        for j, n in self._groups.items():
            if any(stage.j > j for stage in self._stages):
                spectra[j] = end
                end += n * tables.spectrum_nbytes(self._time._level(j), 1)
        S1, n_bands = end, sum(self._groups.values())
        schedule = Schedule([], S1 + aligned(n_bands * self._n_times * itemsize))
        schedule.steps.append(Step("spectrum", 0, X, 1, None, tables.grids[0]))
        steps = [tables.order_0(X, np.zeros(1, np.int32))] if self._has_order_0 else []
        band = 0
        for j, n in self._groups.items():
            rows, bank = np.arange(band, band + n, dtype=np.int32), tables.bank((j,), block)
            steps += tables.wavelets(X, spectra.get(j), 1, rows, bank, 0, n, self._time._level(j), S1)
            band += n
        # What is heard is heard in the spectra that the others make.
        schedule.steps += together([step for step in steps if step.call != "hear"])
        schedule.steps += together([step for step in steps if step.call == "hear"])
        first = np.array([self._order_1.rows.start], np.int32)
        schedule.steps.append(Step("across", S1, None, self._n_times, first, self._banks[0].handle, count=1))
        for i in range(len(self._stages)):
            self._follow(schedule, i, spectra, block)
        return schedule

    def _follow(self, schedule: Schedule, i: int, spectra: dict[int, int], block: Block) -> None:
        """Add the steps of a stage: the bands that it meets, filtered by ψ2, then across, then averaged along time."""
        stage, tables, nbytes = self._stages[i], self._tables, self._line_nbytes(self._stages[i].j)
        level, band, steps = self._time._level(stage.j), 0, []
        for j, n in self._groups.items():
            if j < stage.j:
                bank, Y = tables.bank((j, stage.j), block), 2 * band * nbytes
                steps.append(Step("convolve", spectra[j], Y, n, None, bank, stage.wavelet.start, 1))
                band += n
        Z, (lanes,) = 2 * band * nbytes, self._time._grid(level)
        rows = np.arange(stage.rows.start, stage.rows.stop, dtype=np.int32)
        schedule.steps += together(steps)
        schedule.steps.append(Step("across", 0, Z, lanes, None, self._banks[1 + i].handle, count=2))
        schedule.steps.append(Step("average", Z, None, len(rows), rows, tables.lowpasses[level]))

    def _line_nbytes(self, j: int) -> int:
        return self._time._signal_nbytes(self._time._level(j))
