"""Heads that predict a number: the fit beside scikit-learn's, the protocol, the scores, the page, and predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from scattercube.flows.cli import execute
from scattercube.pipeline.catalog import FitOptions
from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.fit import apply, fit
from scattercube.pipeline.fitted import load_head
from scattercube.pipeline.heads import REGRESSORS, RIDGE_REGRESSION, estimate, train
from scattercube.pipeline.places import Places
from scattercube.pipeline.report import report
from scattercube.pipeline.scoring import MOST_PAIRS, errors
from tests.synthetic import make_run

RIDGE = FitOptions(heads=("ridge",))


def waves(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise whose strength at a fine and at a coarse scale is drawn, and what is to be predicted of them."""
    rng = np.random.default_rng(seed)
    strengths = rng.uniform(1, 3, (n, 2, 1, 1))
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(16)] * 2))
    images = np.zeros((n, 16, 16))
    for index, band in enumerate((frequency > 0.3, (frequency > 0) & (frequency < 0.15))):
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, 16, 16))) * band).real
        images += strengths[:, index] * noise / noise.std(axis=(1, 2), keepdims=True)
    return images.astype(np.float32), 1000 + 100 * (strengths[:, 0] - strengths[:, 1])[:, 0, 0]


@pytest.fixture
def run(tmp_path) -> Places:
    """Half of the samples for training; one quarantined, one unused, two without a target."""
    signal, target = waves(240)
    split, status = ["train", "test"] * 120, np.zeros(240, np.uint8)
    split[2], status[0], target[[4, 5]] = "unused", 1, [np.nan, np.inf]
    return make_run(tmp_path, signal, split=split, status=status, target=target)


# --- Heads ---


def straight(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised features that share a few strong directions, targets, and features to predict."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2 * n, p)) + 3 * rng.standard_normal((2 * n, 3)) @ rng.standard_normal((3, p))
    X = StandardScaler().fit(X[:n]).transform(X).astype(np.float32)
    y = -500 + X @ rng.standard_normal(p) + rng.standard_normal(2 * n)
    return X[:n], y[:n].astype(np.float64), X[n:]


@pytest.mark.parametrize(("n", "p"), [(200, 20), (40, 90)])
def test_ridge_is_the_ridge_of_scikit_learn(n, p):
    X, y, unseen = straight(n, p)
    trained = train(["ridge"], X, y, 0, n // 5, REGRESSORS)["ridge"]
    model = Ridge(alpha=trained.value, solver="cholesky").fit(X.astype(np.float64), y)
    found = estimate(unseen, trained.solution)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, model.predict(unseen.astype(np.float64)), atol=2e-4)


def test_the_penalty_is_the_best_on_the_held_out_rows():
    X, y, _ = straight(250, 60, seed=5)
    trained = train(["ridge"], X, y, 0, 50, REGRESSORS)["ridge"]
    lost = []
    for penalty in RIDGE_REGRESSION.penalties:
        model = Ridge(alpha=penalty * 200, solver="cholesky").fit(X[:200].astype(np.float64), y[:200])
        lost.append(np.abs(model.predict(X[200:].astype(np.float64)) - y[200:]).mean())
    chosen = RIDGE_REGRESSION.penalties[int(np.argmin(lost))]
    assert trained.value == pytest.approx(RIDGE_REGRESSION.convert(chosen, 250))
    assert min(lost) < max(lost), "every penalty does as well: this case decides nothing"


def test_features_that_are_copies_and_weak_penalties_give_finite_numbers():
    X, y, _ = straight(100, 30)
    X = np.concatenate([X, X, np.zeros((100, 5), np.float32)], axis=1)
    for penalty in RIDGE_REGRESSION.penalties:
        (solution,) = RIDGE_REGRESSION.solve(X, y, 0, [penalty])
        assert np.isfinite(estimate(X, solution)).all()
        assert np.abs(estimate(X, solution) - y).mean() < 10 or penalty > 1e-2


# --- Fit and scores ---


def test_scattering_predicts_what_pixel_statistics_cannot(run):
    result = fit(run, RIDGE, "one")
    scores = result.scores
    assert (scores["task"], scores["unit"], scores["classes"]) == ("regression", "kJ/mol", [])
    assert scores["protocol"] | {"seed": 0} == {
        "kind": "split",
        "n_samples": 236,
        "n_test": 119,
        "n_folds": 0,
        "seed": 0,
        "notes": [],
    }
    ridge, pixels, mean = scores["heads"]["ridge"], scores["baseline"]["ridge"], scores["chance"]
    assert ridge["mae"] < 20 < pixels["mae"] < 1.1 * mean["mae"]
    assert ridge["r2"] > 0.9
    assert mean["mae"] > 50
    assert f"{ridge['mae']:.3g}" in scores["summary"]
    assert "kJ/mol" in scores["summary"]
    assert json.loads(Path(run.scores).read_text()) == scores
    assert np.shape(ridge["pairs"]) == (2, 119)
    assert np.abs(np.subtract(*ridge["pairs"])).mean() == pytest.approx(ridge["mae"], rel=1e-3)


def test_the_saved_head_is_what_scikit_learn_makes_of_the_same_features_without_logarithms(run):
    scores = fit(run, RIDGE, "one").scores["heads"]["ridge"]
    cube = xr.open_zarr(run.cube, chunks=None)
    usable = (cube.status.values == 0) & np.isfinite(cube.target.values) & (cube.split.values != "unused")
    training, testing = (usable & (cube.split.values == part) for part in ("train", "test"))
    X = cube.scattering.values.astype(np.float64).reshape(240, -1)
    scaler = StandardScaler().fit(X[training])
    model = Ridge(alpha=scores["values"][0]).fit(scaler.transform(X[training]), cube.target.values[training])
    expected = model.predict(scaler.transform(X[testing]))
    head = load_head(f"{run.heads}/ridge")
    assert head.regresses
    assert head.unit == "kJ/mol"
    np.testing.assert_allclose(head.estimate(cube.scattering.values[testing]), expected, atol=0.05)
    assert scores["mae"] == pytest.approx(np.abs(expected - cube.target.values[testing]).mean(), abs=0.05)


def test_test_samples_have_no_part_in_the_fit(tmp_path):
    signal, target = waves(60)
    split = np.array(["train", "test"] * 30)
    one = make_run(tmp_path / "one", signal, split=split, target=target)
    signal[split == "test"] *= 50
    other = make_run(tmp_path / "other", signal, split=split, target=np.where(split == "test", -target, target))
    for places in (one, other):
        fit(places, RIDGE, "x")
    a, b = (load_head(f"{places.heads}/ridge") for places in (one, other))
    for part in ("solution", "scaling"):
        for key, array in vars(getattr(a, part)).items():
            np.testing.assert_array_equal(array, vars(getattr(b, part))[key])


def test_without_a_split_every_sample_is_scored_once(tmp_path):
    signal, target = waves(90)
    places = make_run(tmp_path, signal, target=target)
    scores = fit(places, FitOptions(heads=("ridge",), folds=4), "x").scores
    ridge = scores["heads"]["ridge"]
    assert (scores["protocol"]["kind"], scores["protocol"]["n_folds"], scores["protocol"]["n_test"]) == ("folds", 4, 90)
    assert len(ridge["folds"]["mae"]) == len(ridge["values"]) == 4
    assert ridge["folds"]["std"] == pytest.approx(np.std(ridge["folds"]["mae"], ddof=1))
    assert ridge["folds"]["mean"] == pytest.approx(ridge["mae"], rel=0.05)
    assert sorted(ridge["pairs"][0]) == pytest.approx(sorted(target), rel=1e-5)
    assert "4-fold cross-validation of 90 samples" in scores["summary"]


def test_folds_keep_the_patches_of_an_image_together(tmp_path):
    """Patches that carry nothing but the mark of their image: apart they could be told, together they cannot."""
    rng = np.random.default_rng(0)
    marks = np.repeat(rng.standard_normal((16, 16, 16)), 6, axis=0)
    signal = (marks + 0.1 * rng.standard_normal(marks.shape)).astype(np.float32)
    target = np.repeat(rng.standard_normal(16), 6)
    ids = np.array([f"image-{i:02d}.png@{8 * k},0" for i in range(16) for k in range(6)], dtype=object)
    patches = {"sample_id": ids, "y0": np.tile(8 * np.arange(6), 16)}
    apart = fit(make_run(tmp_path / "a", signal, target=target), RIDGE, "x").scores
    together = fit(make_run(tmp_path / "b", signal, target=target, columns=patches), RIDGE, "x").scores
    assert apart["heads"]["ridge"]["r2"] > 0.9
    assert together["heads"]["ridge"]["r2"] < 0.5
    assert together["protocol"]["notes"] == []


def test_fewer_samples_than_folds_and_samples_outside_a_split_are_said(tmp_path):
    signal, target = waves(30)
    few = make_run(tmp_path / "few", signal[:3], target=target[:3])
    protocol = fit(few, RIDGE, "x").scores["protocol"]
    assert (protocol["n_folds"], protocol["notes"]) == (3, ["3 folds instead of 5: the archive has 3 samples"])
    outside = make_run(tmp_path / "outside", signal, split=["train", "test", ""] * 10, target=target)
    protocol = fit(outside, RIDGE, "x").scores["protocol"]
    assert protocol["notes"] == ["10 samples with a target belong to neither part of the split and are not used"]
    assert protocol["n_samples"] == 20


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (np.full(8, np.nan), "no usable sample has a target"),
        (np.full(8, 3.5), "the 8 samples to fit do not have two different targets"),
        (np.where(np.arange(8) == 5, 1.0, np.nan), "the 1 samples to fit do not have two different targets"),
    ],
)
def test_nothing_to_fit_is_a_result_not_an_error(tmp_path, target, reason):
    result = fit(make_run(tmp_path, waves(8)[0], target=target), RIDGE, "x")
    assert (result.scores, result.nothing) == (None, reason)


def test_heads_that_tell_classes_are_left_out_and_said_or_refused(tmp_path):
    signal, target = waves(20)
    places = make_run(tmp_path, signal, target=target)
    scores = fit(places, FitOptions(), "x").scores
    assert list(scores["heads"]) == ["ridge"]
    assert scores["protocol"]["notes"] == ["the head logistic tells classes and is left out"]
    with pytest.raises(PlanError, match=r"fit\.heads: logistic cannot predict a number; ridge can"):
        fit(places, FitOptions(heads=("logistic",)), "x")


def test_a_target_comes_before_a_label(tmp_path):
    signal, target = waves(20)
    places = make_run(tmp_path, signal, list("ab") * 10, target=target)
    assert fit(places, RIDGE, "x").scores["task"] == "regression"


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=2, max_size=40))
def test_errors_are_those_of_scikit_learn(pairs):
    true, predicted = np.array(pairs).T
    found = errors(true, predicted)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(true, predicted))
    assert found["largest"] == pytest.approx(metrics.max_error(true, predicted))
    if true.std() > 1e-3:
        assert found["r2"] == pytest.approx(metrics.r2_score(true, predicted))
    assert errors(np.ones(3), np.zeros(3))["r2"] is None


def test_only_some_pairs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("scattercube.pipeline.scoring.MOST_PAIRS", 10)
    signal, target = waves(40)
    places = make_run(tmp_path, signal, target=target)
    assert np.shape(fit(places, RIDGE, "x").scores["heads"]["ridge"]["pairs"]) == (2, 10)
    assert "10 of 40, spread over the cube" in Path(report(places)).read_text(encoding="utf-8")
    assert MOST_PAIRS > 10


# --- The page and predictions ---


def test_the_page_shows_errors_and_predictions(run):
    fit(run, FitOptions(), "x")
    html = Path(report(run)).read_text(encoding="utf-8")
    scores = json.loads(Path(run.scores).read_text())
    assert "<h2>Regression</h2>" in html
    assert "<h2>Classification</h2>" not in html
    assert "Predicted is energy, in kJ/mol" in html
    assert scores["summary"] in html
    assert "the head logistic tells classes and is left out" in html
    assert 'aria-label="Predictions against targets' in html
    assert "prediction (kJ/mol)" in html


def test_with_nothing_to_fit_the_page_says_why(tmp_path):
    places = make_run(tmp_path, waves(4)[0], target=np.full(4, np.nan))
    fit(places, RIDGE, "x")
    html = Path(report(places)).read_text(encoding="utf-8")
    assert "<h2>Regression</h2>" in html
    assert "no usable sample has a target" in html


def test_a_head_is_applied_to_another_cube(run, tmp_path, capsys):
    fit(run, RIDGE, "x")
    signal, target = waves(60, seed=8)
    status = np.zeros(60, np.uint8)
    status[3] = 1
    other = make_run(tmp_path / "other", signal, status=status)
    applied = apply(f"{run.heads}/ridge", other.cube)
    assert set(applied.data_vars) == {"predicted_target"}
    assert applied.predicted_target.attrs["units"] == "kJ/mol"
    assert np.isnan(applied.predicted_target.values[3])
    usable = status == 0
    assert np.abs(applied.predicted_target.values - target)[usable].mean() < 25
    assert applied.sample_id.values[5] == "image-005.png"

    out = tmp_path / "predictions.csv"
    assert execute(["apply", f"{run.heads}/ridge", other.cube, "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 61
    assert "predicted_target" in lines[0]
    assert "60 predictions" in capsys.readouterr().out
