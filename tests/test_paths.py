import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels.paths import morlet_paths
from tests import naive

banks = {"J": st.integers(1, 4), "L": st.integers(1, 5), "max_order": st.integers(0, 4)}


def tuples(paths, max_order):
    """The rows as ((j1, θ1), …), from the columns alone."""
    columns = paths.columns
    return [
        tuple((int(columns[f"j{m}"][row]), columns[f"theta{m}"][row]) for m in range(1, columns["order"][row] + 1))
        for row in range(len(paths))
    ]


@settings(deadline=None, max_examples=40)
@given(**banks)
def test_rows_are_every_path_in_the_order_of_the_definition(J, L, max_order):
    paths = morlet_paths(J, L, max_order)
    theta = [naive.degrees(alpha) for alpha in naive.angles(L)]
    expected = []
    for order in range(max_order + 1):
        interleaved = itertools.product(*([range(J), range(L)] * order))
        for path in interleaved:  # already lexicographic in (j1, θ1, j2, θ2, …)
            js = path[::2]
            if all(a < b for a, b in itertools.pairwise(js)):
                expected.append(tuple(zip(js, (theta[t] for t in path[1::2]), strict=True)))
    actual = tuples(paths, max_order)
    assert [[j for j, _ in path] for path in actual] == [[j for j, _ in path] for path in expected]
    angles = [(a, e) for p, q in zip(actual, expected, strict=True) for (_, a), (_, e) in zip(p, q, strict=True)]
    assert all(abs(a - e) < 1e-5 for a, e in angles)


@settings(deadline=None, max_examples=40)
@given(**banks)
def test_counts_columns_and_absent_wavelets(J, L, max_order):
    paths = morlet_paths(J, L, max_order)
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
    paths = morlet_paths(J, L, max_order)
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
    paths = morlet_paths(2, 4, 2)
    assert {paths.units[f"{name}2"] for name in ("theta", "xi", "sigma", "scale", "j")} == {
        "degree",
        "cycles/pixel",
        "pixel",
        "1",
    }
    assert "second wavelet" in paths.descriptions["xi2"]
