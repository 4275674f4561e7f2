import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from scattercube.pipeline import features
from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.features import LOG_FRACTION, Layout, Scaling
from scattercube.pipeline.fitted import FittedHead, load_head
from scattercube.pipeline.heads import HEADS, hold_out, scores, train


def blobs(n: int, p: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised training features, their class numbers, and features to predict; classes overlap."""
    rng = np.random.default_rng(seed)
    codes = np.arange(2 * n) % n_classes
    # As scattering coefficients do, columns share a few strong directions.
    X = rng.standard_normal((2 * n, p)) + rng.standard_normal((2 * n, 3)) @ rng.standard_normal((3, p))
    X += 0.6 * rng.standard_normal((n_classes, p))[codes] * np.sqrt(8 / p)
    X = StandardScaler().fit(X[:n]).transform(X).astype(np.float32)
    return X[:n], codes[:n], X[n:]


def expected_scores(model, X: np.ndarray) -> np.ndarray:
    decision = model.decision_function(X)
    return decision if decision.ndim == 2 else np.stack([-decision, decision], axis=1)


SHAPES = [(200, 20, 3), (200, 20, 2), (40, 90, 3), (40, 90, 2)]


@pytest.mark.parametrize(("n", "p", "n_classes"), SHAPES)
def test_ridge_is_the_ridge_classifier_of_scikit_learn(n, p, n_classes):
    X, codes, unseen = blobs(n, p, n_classes)
    trained = train(["ridge"], X, codes, n_classes, n // 5)["ridge"]
    model = RidgeClassifier(alpha=trained.value).fit(X.astype(np.float64), codes)
    np.testing.assert_allclose(scores(unseen, trained.solution), expected_scores(model, unseen), atol=1e-4)


@pytest.mark.parametrize(("n", "p", "n_classes"), SHAPES)
def test_logistic_is_the_logistic_regression_of_scikit_learn(n, p, n_classes):
    X, codes, unseen = blobs(n, p, n_classes)
    trained = train(["logistic"], X, codes, n_classes, n // 5)["logistic"]
    model = LogisticRegression(C=trained.value, tol=1e-8, max_iter=10_000).fit(X.astype(np.float64), codes)
    values = np.exp(scores(unseen, trained.solution).astype(np.float64))
    np.testing.assert_allclose(values / values.sum(axis=1, keepdims=True), model.predict_proba(unseen), atol=0.01)


@pytest.mark.parametrize("name", HEADS)
def test_the_penalty_is_the_best_on_the_held_out_rows_and_the_strongest_of_equals(name):
    X, codes, _ = blobs(250, 60, 3, seed=5)
    n_fit = 200
    trained = train([name], X, codes, 3, len(X) - n_fit)[name]
    make = {"ridge": lambda v: RidgeClassifier(alpha=v), "logistic": lambda v: LogisticRegression(C=v, max_iter=1000)}
    hits = []
    for penalty in HEADS[name].penalties:
        model = make[name](HEADS[name].convert(penalty, n_fit)).fit(X[:n_fit], codes[:n_fit])
        hits.append(np.mean(model.predict(X[n_fit:]) == codes[n_fit:]))
    chosen = HEADS[name].penalties[int(np.argmax(hits))]
    assert trained.value == pytest.approx(HEADS[name].convert(chosen, len(X)))
    assert min(hits) < max(hits), "every penalty does as well: this case decides nothing"


def test_too_few_samples_to_hold_some_out_is_said():
    X, codes, _ = blobs(2, 5, 2)
    trained = train(["ridge"], X, codes, 2, 0)["ridge"]
    assert "too few" in trained.notes[0]


def test_lack_of_convergence_is_reported_not_warned(monkeypatch):
    monkeypatch.setattr("scattercube.pipeline.heads.MAX_ITERATIONS", 1)
    X, codes, _ = blobs(100, 10, 3)
    (note,) = train(["logistic"], X, codes, 3, 20)["logistic"].notes
    assert "L-BFGS stopped after 1 iteration" in note


@pytest.mark.parametrize("name", HEADS)
def test_a_class_without_training_samples_is_never_predicted(name):
    X, codes, unseen = blobs(60, 8, 3)
    trained = train([name], X, np.where(codes == 1, 3, codes), 4, 12)[name]
    assert 1 not in scores(unseen, trained.solution).argmax(axis=1)


@pytest.mark.parametrize("name", HEADS)
def test_samples_that_are_all_alike_give_a_head(name):
    codes = np.array([0, 1, 1, 0, 1, 0, 1, 1, 1, 1])
    trained = train([name], np.zeros((10, 30), np.float32), codes, 2, 2)[name]
    assert scores(np.zeros((1, 30), np.float32), trained.solution).argmax() == 1, "the more frequent class"


@given(codes=hnp.arrays(np.intp, st.integers(1, 60), elements=st.integers(0, 4)), seed=st.integers(0, 5))
def test_hold_out_is_a_stratified_permutation(codes, seed):
    order, n_held = hold_out(codes, seed)
    assert sorted(order) == list(range(len(codes)))
    held = np.bincount(codes[order[len(codes) - n_held :]], minlength=5)
    for count, share in zip(np.bincount(codes, minlength=5), held, strict=True):
        assert share == (count // 5 if count >= 5 else int(count > 1))


# --- Standardisation ---


def test_scaling_is_log_and_standard_scaler():
    rng = np.random.default_rng(1)
    X = rng.lognormal(sigma=2, size=(50, 6)).astype(np.float32)
    X[:, 0] = rng.standard_normal(50)  # a signed average
    groups = np.array([-1, 0, 0, 1, 1, 1])
    scaling = Scaling.measure(X, groups)
    expected = X.astype(np.float64)
    for columns in ([1, 2], [3, 4, 5]):
        expected[:, columns] = np.log(expected[:, columns] + LOG_FRACTION * expected[:, columns].mean())
    expected = StandardScaler().fit_transform(expected)
    np.testing.assert_allclose(scaling.apply(X.copy()), expected, rtol=1e-4, atol=1e-5)


def test_constant_features_become_zero_not_noise():
    X = np.full((20, 3), 0.1, np.float32)
    X[:, 1] = 0
    X[:, 2] = np.arange(20)
    for groups in (np.array([0, 1, 2]), np.full(3, -1)):
        scaled = Scaling.measure(X, groups).apply(X.copy())
        np.testing.assert_allclose(scaled[:, :2], 0, atol=1e-5)
        assert scaled[:, 2].std() == pytest.approx(1, rel=1e-3)


def test_scaling_works_in_place_and_in_blocks(monkeypatch):
    import tracemalloc

    X = np.random.default_rng(0).random((4000, 1000), dtype=np.float32)
    groups = np.arange(1000) // 10
    whole = Scaling.measure(X, groups).apply(X.copy())
    monkeypatch.setattr(features, "BLOCK_VALUES", 1 << 16)
    tracemalloc.start()
    Scaling.measure(X, groups).apply(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 8
    np.testing.assert_allclose(X, whole, atol=1e-5)


def test_groups_are_channels_and_paths_without_order_zero():
    layout = Layout(("channel", "path", "y", "x"), (2, 3, 1, 2), {"order": [0, 1, 1]})
    assert layout.groups.tolist() == [-1, -1, 1, 1, 2, 2, -1, -1, 4, 4, 5, 5]
    averaged = Layout(("path",), (3,), {"order": [0, 1, 2]})
    assert averaged.groups.tolist() == [-1, 1, 2]


# --- Saved heads ---


@pytest.fixture
def head() -> FittedHead:
    rng = np.random.default_rng(3)
    raw = rng.lognormal(size=(90, 3, 2, 2)).astype(np.float32)
    codes = np.arange(90) % 3
    raw *= 1 + codes[:, None, None, None]
    coords = {"order": [0, 1, 1], "theta1": [None, 0.0, 22.5]}
    layout = Layout(("path", "y", "x"), (3, 2, 2), coords, {"J": 2}, "abc")
    X = raw.reshape(90, -1).copy()
    scaling = Scaling.measure(X, layout.groups)
    trained = train(["ridge"], scaling.apply(X), codes, 3, 18)["ridge"]
    return FittedHead("ridge", ("eins", "zwei", "<drei>"), trained.solution, scaling, layout, {"value": trained.value})


def test_a_saved_head_predicts_as_before(head, tmp_path):
    head.save(str(tmp_path))
    loaded = load_head(tmp_path)
    raw = np.random.default_rng(4).lognormal(size=(7, 3, 2, 2)).astype(np.float32)
    before, after = head.predict(raw), loaded.predict(raw)
    assert before[0].tolist() == after[0].tolist()
    np.testing.assert_array_equal(before[1], after[1])
    assert loaded.layout == head.layout
    assert (loaded.name, loaded.classes, loaded.origin) == (head.name, head.classes, head.origin)
    assert {file.name for file in tmp_path.iterdir()} == {"head.json", "head.npz"}


def test_samples_without_numbers_get_no_label(head):
    raw = np.ones((3, 3, 2, 2), np.float32)
    raw[1] = np.nan
    labels, values = head.predict(raw)
    assert labels[1] == ""
    assert np.isnan(values[1]).all()
    assert labels[0] == labels[2] != ""


def test_features_of_another_width_are_refused(head):
    with pytest.raises(ValueError, match=r"\(3, 2, 3\) a sample; this head was fitted on \(3, 2, 2\)"):
        head.predict(np.ones((1, 3, 2, 3), np.float32))


class Malice:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_pickles_are_never_loaded(head, tmp_path):
    head.save(str(tmp_path))
    with np.load(tmp_path / "head.npz") as file:
        arrays = dict(file)
    trace = tmp_path / "trace"
    np.savez(tmp_path / "head.npz", **arrays | {"mean": np.array([Malice(trace)], dtype=object)})
    with pytest.raises(StoreError, match="allow_pickle"):
        load_head(tmp_path)
    assert not trace.exists()


def broken(folder, name):
    npz, text = folder / "head.npz", folder / "head.json"
    document = json.loads(text.read_text())
    with np.load(npz) as file:
        arrays = dict(file)
    match name:
        case "no npz":
            npz.unlink()
        case "cut npz":
            npz.write_bytes(npz.read_bytes()[:200])
        case "not json":
            text.write_text("{")
        case "other format":
            text.write_text(json.dumps(document | {"format": 99}))
        case "no layout":
            text.write_text(json.dumps({key: value for key, value in document.items() if key != "layout"}))
        case "fewer coefficients":
            np.savez(npz, **arrays | {"coefficients": arrays["coefficients"][:, :-1]})
        case "short mean":
            np.savez(npz, **arrays | {"mean": arrays["mean"][:-1]})


@pytest.mark.parametrize(
    "name",
    ["no npz", "cut npz", "not json", "other format", "no layout", "fewer coefficients", "short mean"],
)
def test_a_damaged_head_is_refused_by_its_folder(head, tmp_path, name):
    head.save(str(tmp_path))
    broken(tmp_path, name)
    with pytest.raises(StoreError, match=f"{tmp_path}: no usable head there"):
        load_head(tmp_path)
