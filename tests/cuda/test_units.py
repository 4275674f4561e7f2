"""Units of arrays, and what is not finite: the kernels, emulated, against `arguments.units`."""

import numpy as np
import pytest

from scattercube.kernels import cuda_units
from scattercube.kernels.arguments import not_finite, units
from scattercube.kernels.cuda_units import finite_units
from tests.cuda.emulated import apart
from tests.cuda.emulation import SCHEDULES, barriers, schedule

pytestmark = pytest.mark.usefixtures("emulated")

PART = 1024
SIZES = [1, 7, PART - 1, PART, PART + 1, 3 * PART + 5]
both = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Let blocks take fewer values than they do, that a few are several parts."""
    monkeypatch.setattr(cuda_units, "_PART", PART)
    cuda_units._schedule.cache_clear()
    yield
    cuda_units._schedule.cache_clear()


@both
@pytest.mark.parametrize("n", SIZES)
def test_units_are_those_of_the_portable_engine(dtype, n):
    limits = np.finfo(dtype)
    peaks = [1, 0.999, 1.001, -3, 4, 0, limits.max, -limits.max, limits.tiny, limits.smallest_subnormal, 1e-20, -1e20]
    x = np.zeros((len(peaks), n), dtype)
    for i, peak in enumerate(peaks):
        x[i, (i * 37) % n] = peak
        x[i, -1] = x[i, -1] or peak / 2
    x = np.concatenate([x, np.random.default_rng(n).standard_normal((3, n)).astype(dtype)])
    expected = units(x)
    for order in SCHEDULES:
        with schedule(order):
            np.testing.assert_array_equal(finite_units(x, x), expected, strict=True)
    with apart():
        np.testing.assert_array_equal(finite_units(x, x), expected, strict=True)


@both
def test_without_its_barrier_some_order_goes_wrong(dtype):
    x = np.zeros((4, PART + 1), dtype)
    x[range(4), [7, 300, PART - 1, PART]] = 5
    with barriers() as lines:
        assert finite_units(x, x).tolist() == [8] * 4
    (line,) = lines
    found = []
    for order in SCHEDULES:
        with schedule(order), barriers(without_line=line):
            try:
                found.append(finite_units(x, x).tolist())
            except (ValueError, IndexError):  # "not finite", though all values are
                found.append(None)
    assert any(outcome != [8] * 4 for outcome in found)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", SIZES)
def test_what_is_not_finite_is_found_anywhere(dtype, n, bad):
    for place in {0, n - 1, n // 2, min(n - 1, PART - 1), min(n - 1, PART)}:
        x = np.ones((3, n), dtype)
        x[1, place] = bad
        with pytest.raises(ValueError, match=r"1 of \d+ values, the first at index") as error:
            finite_units(x, x)
        assert str(error.value) == not_finite(x, x.dtype, "x")


@both
def test_many_arrays_few_and_none(monkeypatch, dtype):
    monkeypatch.setattr(cuda_units, "_MOST_ARRAYS", 3)
    x = np.random.default_rng(0).standard_normal((8, 2, 5)).astype(dtype)
    np.testing.assert_array_equal(finite_units(x, x), units(x), strict=True)
    np.testing.assert_array_equal(finite_units(x[:1], x), units(x[:1]), strict=True)
    np.testing.assert_array_equal(finite_units(x[:, ::-1, ::2], x), units(x[:, ::-1, ::2]), strict=True)
    assert finite_units(x[:0], x[:0]).shape == (0,)
    x[7, 1, 4] = np.nan
    with pytest.raises(ValueError, match=r"\(7, 1, 4\)"):
        finite_units(x, x)


def test_what_is_not_finite_spreads_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(cuda_units, "capturing", lambda xp: True)
    x = np.ones((3, 4), np.float32)
    x[1, 2] = np.inf
    np.testing.assert_array_equal(finite_units(x, x), np.array([2, np.nan, 2], np.float32), strict=True)
