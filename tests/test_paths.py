import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels.morlet import Morlet, morlet_bank
from scattercube.kernels.paths import Paths, image_labels, line_labels
from tests import naive

banks = {"J": st.integers(1, 4), "L": st.integers(1, 5), "max_order": st.integers(0, 4)}


def image_paths(J, L, max_order):
    return Paths.of([image_labels({j: [Morlet.at(j, t, L) for t in range(L)] for j in range(J)})], max_order)


def line_paths(J, Q, max_order, sampling_rate=None):
    return Paths.of([line_labels(morlet_bank(J, q), sampling_rate) for q in Q], max_order)


def tuples(paths):
    """The rows as ((j1, θ1), …), from the columns alone."""
    columns = paths.columns
    return [
        tuple((int(columns[f"j{m}"][row]), columns[f"theta{m}"][row]) for m in range(1, columns["order"][row] + 1))
        for row in range(len(paths))
    ]


@settings(deadline=None, max_examples=40)
@given(**banks)
def test_rows_are_every_path_in_the_order_of_the_definition(J, L, max_order):
    paths = image_paths(J, L, max_order)
    theta = [naive.degrees(alpha) for alpha in naive.angles(L)]
    expected = []
    for order in range(max_order + 1):
        interleaved = itertools.product(*([range(J), range(L)] * order))
        for path in interleaved:  # already lexicographic in (j1, θ1, j2, θ2, …)
            js = path[::2]
            if all(a < b for a, b in itertools.pairwise(js)):
                expected.append(tuple(zip(js, (theta[t] for t in path[1::2]), strict=True)))
    actual = tuples(paths)
    assert [[j for j, _ in path] for path in actual] == [[j for j, _ in path] for path in expected]
    angles = [(a, e) for p, q in zip(actual, expected, strict=True) for (_, a), (_, e) in zip(p, q, strict=True)]
    assert all(abs(a - e) < 1e-5 for a, e in angles)


@settings(deadline=None, max_examples=40)
@given(**banks)
def test_counts_columns_and_absent_wavelets(J, L, max_order):
    paths = image_paths(J, L, max_order)
    assert len(paths) == sum(math.comb(J, m) * L**m for m in range(max_order + 1))
    names = {"order"} | {f"{q}{m}" for m in range(1, max_order + 1) for q in ("j", "theta", "xi", "sigma", "scale")}
    assert set(paths.columns) == set(paths.units) == set(paths.descriptions) == names
    order = paths.columns["order"]
    assert order.dtype == np.int8
    for m in range(1, max_order + 1):
        present = order >= m
        j, theta, xi, sigma, scale = (paths.columns[f"{q}{m}"] for q in ("j", "theta", "xi", "sigma", "scale"))
        assert j.dtype == np.int8
        assert (j[~present] == -1).all()
        assert all(np.isnan(column[~present]).all() for column in (theta, xi, sigma, scale))
        assert ((theta[present] >= 0) & (theta[present] < 180)).all()
        np.testing.assert_allclose(xi[present] * 2.0 ** j[present], 3 / 8)
        np.testing.assert_allclose(sigma[present], 0.8 * scale[present])
        np.testing.assert_array_equal(scale[present], 2.0 ** j[present])


@settings(deadline=None, max_examples=40)
@given(**banks)
def test_rows_by_scale_are_the_inverse_of_the_columns(J, L, max_order):
    paths = image_paths(J, L, max_order)
    theta = [naive.degrees(alpha) for alpha in naive.angles(L)]
    seen = []
    for scales, rows in paths.rows.items():
        assert rows.shape == (L,) * len(scales)
        for orientation, row in np.ndenumerate(rows):
            seen.append(row)
            for m, (j, t) in enumerate(zip(scales, orientation, strict=True), start=1):
                assert paths.columns[f"j{m}"][row] == j
                assert paths.columns[f"theta{m}"][row] == pytest.approx(theta[t], abs=1e-5)
    assert sorted(seen) == list(range(len(paths)))


def test_labels_have_units_and_read_as_sentences():
    paths = image_paths(2, 4, 2)
    assert {paths.units[f"{name}2"] for name in ("theta", "xi", "sigma", "scale", "j")} == {
        "degree",
        "cycles/pixel",
        "pixel",
        "1",
    }
    assert "second wavelet" in paths.descriptions["xi2"]


lines = {"J": st.integers(0, 6), "Q": st.tuples(st.integers(1, 6), st.integers(1, 3)), "max_order": st.integers(0, 3)}


@settings(deadline=None, max_examples=40)
@given(**lines)
def test_rows_of_signals_are_every_path_of_rising_scale(J, Q, max_order):
    paths = line_paths(J, Q, max_order)
    banks = [naive.line_bank(J, q) for q in Q]
    expected = [()]
    for order in range(1, max_order + 1):
        places = itertools.product(*(range(len(banks[min(m, 1)])) for m in range(order)))
        scales = ((path, [banks[min(m, 1)][n][2] for m, n in enumerate(path)]) for path in places)
        expected += [path for path, js in scales if all(a < b for a, b in itertools.pairwise(js))]
    columns = paths.columns
    actual = [tuple(int(columns[f"n{m + 1}"][row]) for m in range(columns["order"][row])) for row in range(len(paths))]
    assert actual == expected
    for row, path in enumerate(expected):
        for m, n in enumerate(path):
            xi, sigma, j = banks[min(m, 1)][n]
            assert columns[f"j{m + 1}"][row] == j
            np.testing.assert_allclose(columns[f"xi{m + 1}"][row], xi)
            np.testing.assert_allclose(columns[f"sigma{m + 1}"][row], sigma)
            np.testing.assert_allclose(columns[f"scale{m + 1}"][row], 1 / (2 * math.pi * sigma))


@settings(deadline=None, max_examples=40)
@given(**lines)
def test_rows_by_scale_cover_signals_once(J, Q, max_order):
    paths = line_paths(J, Q, max_order)
    banks = [naive.line_bank(J, q) for q in Q]
    seen = []
    for scales, rows in paths.rows.items():
        members = [[n for n, wavelet in enumerate(banks[min(m, 1)]) if wavelet[2] == j] for m, j in enumerate(scales)]
        assert rows.shape == tuple(map(len, members))
        for places, row in np.ndenumerate(rows):
            seen.append(row)
            for m, place in enumerate(places):
                assert paths.columns[f"n{m + 1}"][row] == members[m][place]
    assert sorted(seen) == list(range(len(paths)))


def test_a_sampling_rate_turns_labels_into_hertz_and_seconds():
    plain, rated = line_paths(5, (4, 1), 2), line_paths(5, (4, 1), 2, sampling_rate=8000)
    for m in (1, 2):
        for name, factor, unit, rated_unit in (
            ("xi", 8000, "cycles/sample", "Hz"),
            ("sigma", 8000, "cycles/sample", "Hz"),
            ("scale", 1 / 8000, "sample", "s"),
        ):
            assert (plain.units[f"{name}{m}"], rated.units[f"{name}{m}"]) == (unit, rated_unit)
            np.testing.assert_allclose(rated.columns[f"{name}{m}"], factor * plain.columns[f"{name}{m}"])
