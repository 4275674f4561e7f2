import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from scattercube.pipeline import features
from scattercube.pipeline.catalog import FitOptions
from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.features import LOG_FRACTION, pixel_statistics
from scattercube.pipeline.fit import apply, fit
from scattercube.pipeline.fitted import load_head
from scattercube.pipeline.places import Places
from scattercube.pipeline.scoring import score
from scattercube.pipeline.spec import JointSpec, SignalSpec, VolumeSpec
from scattercube.pipeline.stores.protocol import OK, PARTIAL
from tests.synthetic import SPEC, blobs, chirps, make_run, oriented_noise, rewrite

ANGLES = (0, 45, 90)
RIDGE = FitOptions(heads=("ridge",))


def labels_of(n_each: int, *names: str) -> list[str]:
    return [name for name in names for _ in range(n_each)]


@pytest.fixture
def textures(tmp_path) -> Places:
    """Three orientations, half of each for training; one sample quarantined, one unused, one without a label."""
    signal = oriented_noise(ANGLES, 40)
    split = ["train", "test"] * 60
    split[2] = "unused"
    labels = labels_of(40, "a", "b", "c")
    labels[4] = ""
    status = np.zeros(120, np.uint8)
    status[0] = 1
    return make_run(tmp_path, signal, labels, split, status)


def test_scattering_tells_textures_apart_that_pixel_statistics_cannot(textures):
    result = fit(textures, FitOptions(), "one")
    scores = result.scores
    assert result.fresh
    assert scores["classes"] == ["a", "b", "c"]
    assert scores["protocol"] | {"seed": 0} == {
        "kind": "split",
        "n_samples": 117,
        "n_test": 60,
        "n_folds": 0,
        "seed": 0,
        "notes": [],
    }
    for name in ("ridge", "logistic"):
        assert scores["heads"][name]["accuracy"] > 0.95
        assert scores["baseline"][name]["accuracy"] < 0.6
    assert scores["chance"] == {"label": "b", "accuracy": pytest.approx(1 / 3)}
    assert f"{100 * scores['heads']['ridge']['accuracy']:.1f}" in scores["summary"]
    assert json.loads(Path(textures.scores).read_text()) == scores


@pytest.mark.parametrize(
    ("name", "make"),
    [("ridge", lambda v: RidgeClassifier(alpha=v)), ("logistic", lambda v: LogisticRegression(C=v, max_iter=3000))],
)
def test_the_saved_head_is_what_scikit_learn_makes_of_the_same_features(textures, name, make):
    scores = fit(textures, FitOptions(heads=(name,)), "one").scores["heads"][name]
    cube = xr.open_zarr(textures.cube, chunks=None)
    usable = (cube.status.values == 0) & (cube.label.values != "") & (cube.split.values != "unused")
    training, testing = (usable & (cube.split.values == part) for part in ("train", "test"))
    S = cube.scattering.values.astype(np.float64)
    means = S[training].mean(axis=(0, 2, 3))
    logs = np.log(np.abs(S) + LOG_FRACTION * means[:, None, None])
    X = np.where((cube.order.values == 0)[:, None, None], S, logs).reshape(len(S), -1)
    scaler = StandardScaler().fit(X[training])
    model = make(scores["values"][0]).fit(scaler.transform(X[training]), cube.label.values[training].astype(object))

    labels, values = load_head(f"{textures.heads}/{name}").predict(cube.scattering.values[usable])
    decision = model.decision_function(scaler.transform(X[usable]))
    if name == "logistic":  # scores of a softmax count up to a constant
        values = values - values.mean(axis=1, keepdims=True)
        decision -= decision.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(values, decision, atol=0.02 * np.abs(decision).max())
    expected = model.predict(scaler.transform(X[testing]))
    assert labels[testing[usable]].tolist() == expected.tolist()
    assert scores["accuracy"] == pytest.approx(np.mean(expected == cube.label.values[testing]))


def test_test_samples_have_no_part_in_the_fit(tmp_path):
    signal = oriented_noise(ANGLES, 20)
    split = np.array(["train", "test"] * 30)
    labels = labels_of(20, "a", "b", "c")
    one = make_run(tmp_path / "one", signal, labels, split)
    signal[split == "test"] *= 50
    other = make_run(tmp_path / "other", signal, labels, split)
    for places in (one, other):
        fit(places, FitOptions(), "x")
    for name in ("ridge", "logistic"):
        a, b = (load_head(f"{places.heads}/{name}") for places in (one, other))
        for part in ("solution", "scaling"):
            for key, array in vars(getattr(a, part)).items():
                np.testing.assert_array_equal(array, vars(getattr(b, part))[key])


def test_the_same_cube_gives_the_same_scores(textures):
    documents = []
    for _ in range(2):
        fit(textures, FitOptions(), "one")
        text = Path(textures.scores).read_text()
        documents.append(text[: text.index('"seconds"')])
        Path(textures.scores).unlink()
    assert documents[0] == documents[1]


def test_a_second_fit_of_the_same_inputs_does_nothing(textures, monkeypatch):
    first = fit(textures, RIDGE, "one")
    with monkeypatch.context() as patch:
        patch.setattr("scattercube.pipeline.fit.open_cube", lambda path: pytest.fail("the cube was opened"))
        second = fit(textures, RIDGE, "one")
    assert (first.fresh, second.fresh) == (True, False)
    assert second.scores == first.scores
    assert fit(textures, RIDGE, "two").fresh, "another cube"
    assert fit(textures, FitOptions(heads=("ridge",), seed=1), "two").fresh, "other options"
    Path(textures.heads, "ridge", "head.json").unlink()
    assert fit(textures, FitOptions(heads=("ridge",), seed=1), "two").fresh, "a head is gone"


def test_heads_of_earlier_options_do_not_linger(textures):
    fit(textures, FitOptions(), "one")
    fit(textures, RIDGE, "one")
    assert [folder.name for folder in Path(textures.heads).iterdir()] == ["ridge"]


# --- Folds ---


def test_without_a_split_every_sample_is_scored_once(tmp_path):
    places = make_run(tmp_path, oriented_noise(ANGLES, 15), labels_of(15, "a", "b", "c"))
    scores = fit(places, FitOptions(heads=("ridge",), folds=4), "x").scores
    ridge = scores["heads"]["ridge"]
    assert (scores["protocol"]["kind"], scores["protocol"]["n_folds"], scores["protocol"]["n_test"]) == ("folds", 4, 45)
    assert np.sum(ridge["confusion"], axis=1).tolist() == [15, 15, 15]
    assert len(ridge["folds"]["accuracy"]) == len(ridge["values"]) == 4
    assert ridge["folds"]["std"] == pytest.approx(np.std(ridge["folds"]["accuracy"], ddof=1))
    assert ridge["accuracy"] > 0.9
    assert "all labelled samples" in load_head(f"{places.heads}/ridge").origin["fitted_on"]


def test_a_head_after_folds_is_fitted_on_everything(tmp_path):
    signal, labels = oriented_noise(ANGLES, 15), labels_of(15, "a", "b", "c")
    fit(folded := make_run(tmp_path / "folded", signal, labels), RIDGE, "x")
    again = make_run(tmp_path / "again", np.concatenate([signal, signal]), labels * 2, ["train"] * 45 + ["test"] * 45)
    fit(again, RIDGE, "x")
    a, b = (load_head(f"{places.heads}/ridge") for places in (folded, again))
    np.testing.assert_allclose(a.scaling.mean, b.scaling.mean, rtol=1e-5, atol=1e-6)


def test_a_small_class_means_fewer_folds_and_a_single_sample_none(tmp_path):
    signal = oriented_noise(ANGLES, 10)
    labels = labels_of(10, "a", "b", "c")
    labels[23:29] = [""] * 6
    labels[29] = "lonely"
    scores = fit(make_run(tmp_path, signal, labels), RIDGE, "x").scores
    assert scores["classes"] == ["a", "b", "c"]
    assert scores["protocol"]["n_folds"] == 3
    notes = scores["protocol"]["notes"]
    assert notes[0].startswith("class 'lonely' has 1 sample and is left out")
    assert notes[1] == "3 folds instead of 5: class 'c' has 3 samples"


def patches_of(n_images: int, of_each: int) -> dict:
    """Sample coordinates of patches: ``of_each`` from every image."""
    ids = [f"image-{i:02d}.png@{8 * k},0" for i in range(n_images) for k in range(of_each)]
    y0 = [8 * k for _ in range(n_images) for k in range(of_each)]
    return {"sample_id": np.array(ids, dtype=object), "y0": np.array(y0)}


def test_folds_keep_the_patches_of_an_image_together(tmp_path):
    """Patches that carry nothing but the mark of their image: apart they could be told, together they cannot."""
    rng = np.random.default_rng(0)
    marks = np.repeat(rng.standard_normal((16, 16, 16)), 6, axis=0)
    signal = (marks + 0.1 * rng.standard_normal(marks.shape)).astype(np.float32)
    labels = [("a", "b")[i % 2] for i in range(16) for _ in range(6)]
    apart = fit(make_run(tmp_path / "apart", signal, labels), RIDGE, "x").scores
    together = fit(make_run(tmp_path / "together", signal, labels, columns=patches_of(16, 6)), RIDGE, "x").scores
    assert apart["heads"]["ridge"]["accuracy"] > 0.95
    assert together["heads"]["ridge"]["accuracy"] < 0.8
    assert together["protocol"]["notes"] == []


def test_folds_of_one_image_a_class_say_that_they_part_it(tmp_path):
    places = make_run(tmp_path, oriented_noise((0, 90), 10), labels_of(10, "a", "b"), columns=patches_of(2, 10))
    assert fit(places, RIDGE, "x").scores["protocol"]["notes"] == [
        "folds part the patches of an image, because class 'a' has one image only: use a split"
    ]


@pytest.mark.parametrize(("together", "accurate"), [(True, False), (False, True)])
def test_folds_keep_the_segments_of_a_recording_together(tmp_path, together, accurate):
    """Names that end in where a segment starts name pieces of one recording; an @ elsewhere does not."""
    rng = np.random.default_rng(0)
    marks = np.repeat(rng.standard_normal((16, 256)), 6, axis=0)
    signal = (marks + 0.1 * rng.standard_normal(marks.shape)).astype(np.float32)
    ending = "@{start}" if together else "@{start}.wav"
    ids = [f"take-{i:02d}.wav" + ending.format(start=256 * k) for i in range(16) for k in range(6)]
    columns = {"sample_id": np.array(ids, dtype=object)}
    labels = [("a", "b")[i % 2] for i in range(16) for _ in range(6)]
    scores = fit(make_run(tmp_path, signal, labels, columns=columns, spec=SignalSpec(J=4)), RIDGE, "x").scores
    assert (scores["heads"]["ridge"]["accuracy"] > 0.85) == accurate


def test_folds_of_one_recording_a_class_say_that_they_part_it(tmp_path):
    ids = [f"{name}.wav@{256 * k}" for name in "ab" for k in range(8)]
    columns = {"sample_id": np.array(ids, dtype=object)}
    places = make_run(tmp_path, chirps((2, -2), 8), labels_of(8, "a", "b"), columns=columns, spec=SignalSpec(J=5))
    assert fit(places, RIDGE, "x").scores["protocol"]["notes"] == [
        "folds part the segments of a recording, because class 'a' has one recording only: use a split"
    ]


def test_two_classes_of_colour_images(tmp_path):
    grey = oriented_noise((0, 90), 20)
    places = make_run(tmp_path, np.stack([grey, -grey, 2 * grey], axis=1), labels_of(20, "no", "yes"))
    result = fit(places, FitOptions(folds=3), "x")
    assert all(head["accuracy"] > 0.9 for head in result.scores["heads"].values())
    cube = xr.open_zarr(places.cube, chunks=None)
    labels, values = load_head(f"{places.heads}/logistic").predict(cube.scattering.values)
    assert values.shape == (40, 2)
    assert np.mean(labels == cube.label.values) > 0.95


# --- Other signals than images ---


@pytest.mark.parametrize(
    ("spec", "statistics"),
    [
        (SignalSpec(J=6), "amplitude statistics"),
        (SignalSpec(J=6, T="global"), "amplitude statistics"),
        (JointSpec(J=6), "amplitude statistics"),
        (JointSpec(J=6, format="joint"), "amplitude statistics"),
        (VolumeSpec(J=1, L=2), "voxel statistics"),
    ],
)
def test_signals_of_every_kind_are_told_apart(tmp_path, spec, statistics):
    """Rising and falling tones, whose histograms are alike; and blobs of two sizes, cut into two channels."""
    if isinstance(spec, VolumeSpec):
        signal = np.stack([blobs((1, 2), 12), 2 * blobs((1, 2), 12)], axis=1)
    else:
        signal = chirps((4, -4), 12, size=2048)
    places = make_run(tmp_path, signal, labels_of(12, "a", "b"), spec=spec, rate=8000)
    scores = fit(places, FitOptions(folds=3), "x").scores
    # Averaged over all of a signal, its two orders do not say what comes first.
    if getattr(spec, "T", None) != "global":
        assert all(head["accuracy"] > 0.9 for head in scores["heads"].values())
    assert scores["statistics"] == statistics
    assert statistics in scores["summary"]
    cube = xr.open_zarr(places.cube, chunks=None)
    assert scores["n_features"] == cube["scattering"][0].size
    applied = apply(f"{places.heads}/ridge", places.cube)
    assert set(applied.predicted_label.values) <= {"a", "b"}


def test_every_channel_and_path_has_its_own_offset_whatever_lies_behind():
    coords = {"order": [0, 1, 1]}
    layout = features.Layout(("channel", "path", "frequency", "time"), (2, 3, 2, 2), coords)
    assert layout.groups.reshape(2, 3, 4).tolist() == [[[-1] * 4, [1] * 4, [2] * 4], [[-1] * 4, [4] * 4, [5] * 4]]
    assert features.Layout(("path",), (3,), coords).groups.tolist() == [-1, 1, 2]


def test_partial_samples_are_not_used_and_said(tmp_path):
    status = np.array([OK] * 8 + [PARTIAL] * 2 + [OK] * 9 + [PARTIAL])
    places = make_run(tmp_path, oriented_noise((0, 90), 10), labels_of(10, "a", "b"), status=status)
    protocol = fit(places, RIDGE, "x").scores["protocol"]
    why = "values are missing in them, and coefficients that see too little are NaN"
    assert protocol["n_samples"] == 17
    assert protocol["notes"] == [f"3 labelled samples are partial and not used: {why}"]
    none = make_run(tmp_path / "none", oriented_noise((0, 90), 2), labels_of(2, "a", "b"), status=np.full(4, PARTIAL))
    assert fit(none, RIDGE, "x").nothing == (
        f"no usable sample has a label; 4 labelled samples are partial and not used: {why}"
    )


def test_of_samples_with_few_missing_values_the_others_count(tmp_path):
    places = make_run(tmp_path, oriented_noise((0, 90), 10), labels_of(10, "a", "b"))
    chunks = xr.open_zarr(places.chunks).load()
    chunks["signal"][3, 2, 5] = np.nan
    rewrite(chunks, places.chunk_store, "ingest")
    assert fit(places, RIDGE, "x").scores["heads"]["ridge"]["accuracy"] > 0.9


def test_one_sample_or_a_field_is_nothing_to_fit(tmp_path, monkeypatch):
    one = make_run(tmp_path / "one", oriented_noise((0,), 1), ["a"])
    assert fit(one, RIDGE, "x").nothing == "the cube holds one sample, and heads are fitted to many"
    monkeypatch.setattr("scattercube.pipeline.protocol.FIELD_FEATURES", 300)
    fields = make_run(tmp_path / "fields", oriented_noise((0, 90), 4), labels_of(4, "a", "b"))
    assert fit(fields, RIDGE, "x").nothing == (
        "a sample is a field of 400 coefficients; cut it into patches or segments to fit heads"
    )


def test_statistics_of_large_samples_are_of_some_values_and_said(tmp_path, monkeypatch):
    places = make_run(tmp_path, oriented_noise((0, 90), 6), labels_of(6, "a", "b"))
    monkeypatch.setattr("scattercube.pipeline.fit.thin", lambda signal: features.thin(signal, 200))
    notes = fit(places, RIDGE, "x").scores["protocol"]["notes"]
    assert notes == ["pixel statistics are of one value in 3 along each axis, because samples are large"]
    signal = xr.open_zarr(places.chunks, chunks=None)["signal"]
    np.testing.assert_array_equal(features.thin(signal, 200).values, signal.values[:, ::3, ::3])
    assert features.thin(signal) is signal


# --- Splits and labels that are odd ---


def test_a_class_that_only_the_test_part_has_is_an_error_and_said(tmp_path):
    labels = labels_of(10, "a", "b", "c")
    split = ["train", "test"] * 10 + ["test"] * 10
    scores = fit(make_run(tmp_path, oriented_noise(ANGLES, 10), labels, split), FitOptions(), "x").scores
    assert "no training sample has the label 'c'" in scores["protocol"]["notes"][0]
    for head in scores["heads"].values():
        assert np.sum(head["confusion"][2]) == 10
        assert np.sum(head["confusion"], axis=0)[2] == 0


def test_samples_outside_a_given_split_are_not_used_and_said(tmp_path):
    split = ["train", "test", ""] * 10
    places = make_run(tmp_path, oriented_noise((0, 90), 15), labels_of(15, "a", "b"), split)
    protocol = fit(places, RIDGE, "x").scores["protocol"]
    assert (protocol["n_samples"], protocol["n_test"]) == (20, 10)
    assert protocol["notes"] == ["10 labelled samples belong to neither part of the split and are not used"]


def test_a_split_with_one_part_only_gives_folds(tmp_path):
    places = make_run(tmp_path, oriented_noise((0, 90), 6), labels_of(6, "a", "b"), ["train"] * 12)
    assert fit(places, RIDGE, "x").scores["protocol"]["kind"] == "folds"


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "no usable sample has a label"),
        ([""] * 8, "no usable sample has a label"),
        (["same"] * 8, "only the class 'same' has enough samples"),
        (list("abcdefgh"), "no class has enough samples"),
    ],
)
def test_nothing_to_fit_is_a_result_not_an_error(tmp_path, labels, reason):
    places = make_run(tmp_path, oriented_noise((0, 90), 4), labels)
    for fresh in (True, False):
        result = fit(places, RIDGE, "x")
        assert result.scores is None
        assert reason in result.nothing
        assert result.fresh is fresh
    assert not Path(places.heads).exists()


def test_all_samples_quarantined_is_nothing_to_fit(tmp_path):
    places = make_run(tmp_path, oriented_noise((0, 90), 4), labels_of(4, "a", "b"), status=np.ones(8))
    assert fit(places, RIDGE, "x").nothing == "no usable sample has a label"


# --- Refusals ---


def test_an_unknown_head_is_refused_by_name(textures):
    with pytest.raises(PlanError, match="unknown head 'forest'; known heads: ridge, logistic"):
        fit(textures, FitOptions(heads=("forest",)), "x")


def test_a_matrix_that_memory_cannot_hold_is_refused_before_it_is_made(textures, monkeypatch):
    monkeypatch.setattr(features, "available_nbytes", lambda: 1000)
    with pytest.raises(PlanError, match=r"117 samples × 400 features need .* GB .* larger J"):
        fit(textures, RIDGE, "x")


def test_available_memory_is_a_plausible_number_of_bytes():
    assert 1 << 20 < features.available_nbytes() < 1 << 50


def test_a_cube_of_other_samples_is_refused(textures):
    chunks = xr.open_zarr(textures.chunks).load()
    chunks["sample_id"] = chunks["sample_id"].astype(object) + "!"
    rewrite(chunks, textures.chunk_store, "ingest")
    with pytest.raises(StoreError, match="its samples are not those of"):
        fit(textures, RIDGE, "x")


def test_numbers_that_are_not_finite_name_their_sample(textures):
    cube = xr.open_zarr(textures.cube, chunks=None)
    cube["scattering"][7, 0, 0, 0] = np.nan
    with pytest.raises(StoreError, match=r"sample image-007\.png has status ok and values that are not finite"):
        features.matrix(cube["scattering"].load(), np.array([9, 7]), 400, features.flatten)


# --- Applying a head ---


def test_a_head_is_applied_to_another_cube(textures, tmp_path):
    fit(textures, RIDGE, "x")
    status = np.zeros(30, np.uint8)
    status[3] = 1
    other = make_run(tmp_path / "other", oriented_noise(ANGLES, 10, seed=8), status=status)
    applied = apply(f"{textures.heads}/ridge", other.cube)
    truth = np.array(labels_of(10, "a", "b", "c"))
    usable = status == 0
    assert np.mean(applied.predicted_label.values[usable] == truth[usable]) > 0.9
    assert applied.predicted_label.values[3] == ""
    assert np.isnan(applied.decision.values[3]).all()
    assert applied.decision.dims == ("sample", "class")
    assert applied["class"].values.tolist() == ["a", "b", "c"]
    assert applied.sample_id.values[5] == "image-005.png"


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ({"J": 3}, 16, "the Spec has J=3 where the head has J=2"),
        ({"padding": "support"}, 16, "the Spec has padding=support where the head has padding=minimal"),
        ({}, 24, r"a sample has \{'path': 25, 'y': 6, 'x': 6\} where the head has \{'path': 25, 'y': 4, 'x': 4\}"),
    ],
)
def test_a_cube_of_other_features_is_refused_by_the_difference(textures, tmp_path, spec, size, message):
    fit(textures, RIDGE, "x")
    other = make_run(tmp_path / "other", oriented_noise((0,), 2, size=size), spec=SPEC.model_copy(update=spec))
    with pytest.raises(PlanError, match=message):
        apply(f"{textures.heads}/ridge", other.cube)


def test_a_cube_of_other_channels_is_refused(tmp_path):
    colour = np.stack([oriented_noise((0, 90), 6)] * 3, axis=1)
    fit(places := make_run(tmp_path / "one", colour, labels_of(6, "a", "b")), RIDGE, "x")
    other = make_run(tmp_path / "two", colour)
    cube = xr.open_zarr(other.cube).load().assign_coords(channel=np.array(["u", "v", "w"], dtype=object))
    rewrite(cube, other.cube_store, "extract")
    with pytest.raises(PlanError, match="coordinate 'channel' has other values"):
        apply(f"{places.heads}/ridge", other.cube)


# --- Figures ---


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_are_those_of_scikit_learn(pairs):
    true, predicted = np.array(pairs).T
    found = score(true, predicted, np.arange(len(true)), "abcd")
    matrix = metrics.confusion_matrix(true, predicted, labels=range(4))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(4), zero_division=0
    )
    assert found["confusion"] == matrix.tolist()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    assert found["balanced_accuracy"] == pytest.approx(recall[support > 0].mean())
    for row, expected in zip(found["per_class"], zip("abcd", precision, recall, f1, support, strict=True), strict=True):
        assert tuple(row.values()) == pytest.approx(expected) if row["support"] else row["recall"] == 0
    e, n = found["error_rate"], len(true)
    assert found["error_se"] == pytest.approx(stats.binom(n, e).std() / n, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "n_axes"), [((5, 7, 9), 2), ((4, 3, 6, 5), 2), ((5, 60), 1), ((5, 2, 60), 1), ((3, 2, 4, 5, 6), 3)]
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixel_statistics_are_those_of_scipy(shape, n_axes, dtype):
    signal = (np.random.default_rng(0).gamma(2, 20, shape)).astype(dtype)
    found = pixel_statistics(signal, n_axes)
    flat = signal.reshape(*shape[:-n_axes], -1).astype(np.float64)
    expected = np.stack(
        [
            flat.mean(-1),
            flat.std(-1),
            stats.skew(flat, axis=-1),
            stats.kurtosis(flat, axis=-1),
            flat.min(-1),
            flat.max(-1),
            *(np.percentile(flat, q, axis=-1) for q in (5, 25, 50, 75, 95)),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(found, expected.reshape(shape[0], -1), rtol=1e-5, atol=1e-6)


def test_pixel_statistics_leave_out_what_is_missing():
    signal = np.random.default_rng(0).standard_normal((3, 2, 8, 8)).astype(np.float32)
    holed = signal.copy()
    holed[1, 0, :2], holed[2, 1, 0, 0] = np.nan, np.inf
    found, whole = pixel_statistics(holed), pixel_statistics(signal)
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_array_equal(found[1], np.concatenate([pixel_statistics(signal[1:2, 0, 2:])[0], whole[1, 11:]]))
    assert np.isfinite(found).all()


def test_pixel_statistics_of_a_constant_image_are_finite():
    assert np.isfinite(pixel_statistics(np.full((2, 4, 4), 7, np.uint8))).all()


def test_the_matrix_holds_the_chosen_samples_in_the_chosen_order(textures):
    cube = xr.open_zarr(textures.cube, chunks=None)
    samples = np.array([90, 3, 119, 44])
    found = features.matrix(cube["scattering"], samples, 400, features.flatten)
    np.testing.assert_array_equal(found, cube["scattering"].values[samples].reshape(4, -1))


def test_only_blocks_that_hold_chosen_samples_are_read(textures, monkeypatch):
    cube = xr.open_zarr(textures.cube, chunks=None)
    seen = []
    features.matrix(
        cube["scattering"], np.array([1, 50]), 400, lambda block: seen.append(len(block)) or features.flatten(block)
    )
    assert seen == [1, 1]


def test_scores_lie_where_places_says(textures):
    fit(textures, RIDGE, "x")
    assert {str(p.relative_to(textures.fit)) for p in Path(textures.fit).rglob("*") if p.is_file()} == {
        "scores.json",
        "heads/ridge/head.json",
        "heads/ridge/head.npz",
    }
