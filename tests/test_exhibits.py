"""The page of every kind of signal, and the views of stores behind it: what is shown, and that memory is bounded."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from scattercube.kernels import Scattering1D
from scattercube.pipeline import charts, charts_signals
from scattercube.pipeline.catalog import FitOptions
from scattercube.pipeline.exhibits import view as views
from scattercube.pipeline.exhibits.signals import _second
from scattercube.pipeline.exhibits.view import View, envelope, thinned
from scattercube.pipeline.fit import fit
from scattercube.pipeline.report import report
from scattercube.pipeline.spec import ImageSpec, JointSpec, SignalSpec, Spec, VolumeSpec
from scattercube.pipeline.stores.protocol import OK, PARTIAL
from tests.synthetic import blobs, chirps, make_run, oriented_noise
from tests.test_report import HOSTILE, Page, check_self_contained, labels_of

RATE = 8000.0
SIGNAL = SignalSpec(J=6)
KINDS: dict[str, Spec] = {
    "signal": SIGNAL,
    "global": SIGNAL.model_copy(update={"T": "global"}),
    "not averaged": SIGNAL.model_copy(update={"T": 0.0, "max_order": 1}),
    "joint": JointSpec(J=6),
    "joint, bands an axis": JointSpec(J=6, format="joint"),
    "volume": VolumeSpec(J=2, L=2),
}


def page_of(places) -> Page:
    page = Page(Path(report(places)).read_text(encoding="utf-8"))
    check_self_contained(page)
    return page


def view_of(places) -> View:
    cube, chunks = (xr.open_zarr(path, chunks=None) for path in (places.cube, places.chunks))
    return View(cube, chunks, np.flatnonzero(np.isin(cube["status"].values, (OK, PARTIAL))))


def signals_of(spec: Spec, n_each: int) -> np.ndarray:
    return blobs((1, 2), n_each) if isinstance(spec, VolumeSpec) else chirps((3, -3), n_each)


def described(page: Page) -> list[str]:
    return [attrs["aria-label"] for _, attrs in page.elements if "aria-label" in attrs]


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


# --- Every kind has its page ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_whole_page(tmp_path, kind):
    spec = KINDS[kind]
    rate = None if isinstance(spec, VolumeSpec) else RATE
    places = make_run(tmp_path, signals_of(spec, 5), labels_of(5, "one", HOSTILE), spec=spec, rate=rate)
    fit(places, FitOptions(folds=2), "x")
    page = page_of(places)
    assert page.headings[-5:] == [
        "Classification",
        "Quarantine",
        "Time and throughput",
        "Versions and digests",
        "Entry and Spec",
    ]
    assert HOSTILE in page.text
    shown = [label for label in described(page) if "image-" in label] + [
        image["alt"] for image in page.all("img") if "image-" in image["alt"]
    ]
    assert len(shown) == 6 * (3 if kind == "volume" else 1)
    code = page.sections["What ran"].split("paths are chosen by what they are:")[1]
    names: dict = {}
    exec(code, names)
    chosen = names["coarse"]
    highest = names["cube"].order.values.max()
    assert chosen.sizes["path"] > 0
    assert set(chosen.order.values.tolist()) == {highest}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_page_without_usable_samples(tmp_path, kind):
    spec = KINDS[kind]
    page = page_of(make_run(tmp_path, signals_of(spec, 1), status=np.ones(2), spec=spec))
    assert "No sample could be used" in page.text
    assert "2: 0 ok, 2 quarantined" in page.sections["What ran"]


@pytest.mark.parametrize("kind", ["signal", "volume"])
def test_every_kind_has_a_page_without_wavelets(tmp_path, kind):
    spec = KINDS[kind].model_copy(update={"max_order": 0})
    page = page_of(make_run(tmp_path, signals_of(spec, 1), spec=spec))
    assert "order 0 alone" in page.sections["Filter bank"]
    assert "no first order" in page.text


def test_signals_are_drawn_in_hertz_and_seconds_or_in_samples(tmp_path):
    known = page_of(make_run(tmp_path / "known", chirps((3,), 2), spec=SIGNAL, rate=RATE)).text
    assert "ξ₁ (Hz)" in known
    assert "time (s)" in known
    assert "frequency ξ₁ (Hz)" in known
    unknown = page_of(make_run(tmp_path / "unknown", chirps((3,), 2), spec=SIGNAL)).text
    assert "time (sample)" in unknown
    assert "frequency ξ₁ (cycles/sample)" in unknown
    assert "Hz" not in unknown.split("Samples and their scalograms")[1].split("Classification")[0]


def test_signals_of_several_channels(tmp_path):
    signal = np.stack([chirps((3, -3), 3), chirps((3, -3), 3, seed=1)], axis=1)
    page = page_of(make_run(tmp_path, signal, spec=SIGNAL, rate=RATE))
    assert "over all 2 channels" in page.sections["Samples and their scalograms"]
    assert "and its channels" in page.sections["Energies by frequency"]


def test_the_number_to_predict_stands_below_a_sample(tmp_path):
    targets = np.array([-1234.5, 7.25])
    page = page_of(make_run(tmp_path, signals_of(KINDS["volume"], 1), spec=KINDS["volume"], target=targets))
    assert "image-000.png, -1234.5 kJ/mol" in page.text
    assert "image-001.png, 7.25 kJ/mol" in page.text


def test_silence_has_no_energies(tmp_path):
    page = page_of(make_run(tmp_path, np.zeros((2, 1024), np.float32), spec=SIGNAL, rate=RATE))
    assert "constant" in page.sections["Energies by frequency"]


@pytest.mark.parametrize("form", ["time", "joint"])
def test_rising_and_falling_tones_differ_in_the_sign_of_the_frequency_across_bands(tmp_path, form):
    places = make_run(tmp_path, chirps((4, -4), 1, size=2048), spec=JointSpec(J=6, format=form), rate=RATE)
    view = view_of(places)
    rising, falling = (_second(view, thinned(view.cube["scattering"], row)) for row in (0, 1))
    for one, sign in ((rising, 1), (falling, -1)):
        energy = np.nansum(one.values**2, axis=1)
        assert sign * (energy[one.rows > 0].sum() - energy[one.rows < 0].sum()) > 0.1 * energy.sum()


def test_a_volume_of_both_signs_is_cut_and_channels_stand_beside_each_other(tmp_path):
    signal = np.stack([blobs((1, 2), 2) - 0.5, blobs((2, 1), 2)], axis=1)
    page = page_of(make_run(tmp_path, signal, spec=KINDS["volume"]))
    text = page.sections["Samples channel by channel"]
    assert "Sections through the middle along z" in text
    assert "red (-0.5 to 0.5)" in text
    assert sum("green" in image["alt"] for image in page.all("img")) == 4


# --- Fields, and what is missing ---

FIELD = ImageSpec(J=2, L=4)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    noise = oriented_noise((30,), 1, size=128)
    return make_run(tmp_path_factory.mktemp("field"), noise, spec=FIELD, tiles={"y": 16, "x": 16}, status=[PARTIAL])


def test_a_field_is_shown_as_maps(field):
    page = page_of(field)
    text = page.sections["Maps and scattering disks"]
    captions = re.findall(r"first order, (\d) px", text)
    assert captions == ["1", "2"]
    assert "coverage, the least of all paths: 0 to 1" in text
    assert "disk of order 2" in text
    assert "1: 0 ok, 1 partial" in page.sections["What ran"]
    assert "the cube holds one sample" in fit(field, FitOptions(), "x").nothing
    maps = [pixels(image["src"]) for image in page.all("img") if "image-000" in image["alt"]][:4]
    assert [picture.shape for picture in maps] == [(128, 128, 4), (32, 32, 4), (32, 32, 4), (32, 32, 4)]
    assert [(picture[..., 3] == 0).mean() for picture in maps] == [4 / 128, 1 / 32, 1 / 32, 0]
    # Parts of one sample are not samples.
    assert f"{1 / 0.35:.3g}" in page.sections["Time and throughput"]
    assert f"{2 / 0.35:.3g}" not in page.sections["Time and throughput"]


def test_a_field_that_memory_cannot_hold_is_thinned(field, monkeypatch):
    whole = xr.open_zarr(field.cube, chunks=None)["scattering"]
    monkeypatch.setattr(views, "BLOCK_NBYTES", whole.nbytes // 7)
    some = thinned(whole, 0)
    assert some.nbytes <= whole.nbytes // 7
    np.testing.assert_array_equal(some.values, whole.values[0, :, ::3, ::3])
    assert "one output in 3 along each axis" in page_of(field).sections["Maps and scattering disks"]


def test_of_a_field_that_takes_very_long_to_read_the_middle_is_shown(field, monkeypatch):
    whole = xr.open_zarr(field.cube, chunks=None)["scattering"]
    monkeypatch.setattr(views, "MOST_NBYTES", whole.nbytes // 4)
    np.testing.assert_array_equal(thinned(whole, 0).values, whole.values[0, :, 8:24, 8:24])
    text = page_of(field).sections["Maps and scattering disks"]
    assert "from y = 32 to 92 px and x = 32 to 92 px" in text


def test_partial_samples_are_shown_without_what_is_missing(tmp_path):
    status = np.array([OK, PARTIAL, PARTIAL, OK])
    page = page_of(make_run(tmp_path, oriented_noise((0, 90), 2, size=32), spec=FIELD, status=status))
    inputs = [pixels(image["src"]) for image in page.all("img") if image["alt"].startswith("sample")]
    holes = [picture.shape[2] == 4 and (picture[..., 3] == 0).any() for picture in inputs]
    assert holes == [False, True, True, False]
    assert "4: 2 ok, 2 partial" in page.sections["What ran"]


def test_a_signal_with_a_gap_has_a_page(tmp_path):
    status = np.array([OK, PARTIAL])
    page = page_of(make_run(tmp_path, chirps((3, -3), 1), spec=SIGNAL, rate=RATE, status=status))
    assert "2: 1 ok, 1 partial" in page.sections["What ran"]


# --- Views ---


@pytest.mark.parametrize("n", [5, 64, 1000, 1003])
def test_an_envelope_holds_every_value_whatever_the_pieces(n, monkeypatch):
    signal = np.random.default_rng(0).standard_normal((1, 2, n)).astype(np.float32)
    signal[0, 1, n // 2 :] = np.nan
    signal[0, 0, 0] = np.inf
    array = xr.DataArray(signal, dims=("sample", "channel", "time"))
    found = envelope(array, 0, 64)
    starts, lows, highs = found
    assert len(starts) <= 64
    signal[0, 0, 0] = np.nan
    ends = [*starts[1:], n]
    for start, end, low, high in zip(starts, ends, lows, highs, strict=True):
        assert (low, high) == (np.nanmin(signal[0, :, start:end]), np.nanmax(signal[0, :, start:end]))
    monkeypatch.setattr(views, "BLOCK_NBYTES", 1)
    for one, other in zip(found, envelope(array, 0, 64), strict=True):
        np.testing.assert_array_equal(one, other)


def test_means_leave_out_what_is_missing(tmp_path):
    status = np.array([OK, PARTIAL])
    view = view_of(make_run(tmp_path, oriented_noise((0,), 2, size=32), spec=FIELD, status=status))
    S, paths = view.cube["scattering"].values.astype(np.float64), np.array([3, 0, 20])
    np.testing.assert_allclose(view.means(view.rows, paths), np.nanmean(S, axis=(2, 3))[:, paths])
    np.testing.assert_allclose(view.mean_squares(view.rows, paths), np.nanmean(S**2, axis=(2, 3))[:, paths])


# --- Drawings ---


def test_the_spectra_in_the_drawing_are_those_of_the_transform():
    S = Scattering1D(5, 4096, Q=8, padding="periodic", dtype="float64")
    columns = S.paths.columns
    first = columns["order"] == 1
    frequencies = np.fft.fftfreq(4096)
    for n, (xi, sigma) in enumerate(zip(columns["xi1"][first], columns["sigma1"][first], strict=True)):
        f, weights = charts_signals._spectrum(float(xi), float(sigma))
        inside = (frequencies > f[0]) & (frequencies < f[-1]) & (frequencies > -0.4)
        drawn = np.interp(frequencies[inside], f, weights)
        np.testing.assert_allclose(drawn, S.psi_hat(n)[inside], atol=0.004)


@pytest.mark.parametrize(("low", "high"), [(0.004, 0.35), (31.2, 3478), (5.0, 5.5), (20, 20_000), (1, 1)])
def test_ticks_are_few_round_numbers_inside(low, high):
    found = charts_signals._round_numbers(low, high, 6)
    assert 1 <= len(found) <= 6
    assert found.min() >= 0.999 * low
    assert found.max() <= 1.001 * high
    assert charts_signals.in_figures(20_000) == "20k"


def test_what_is_not_finite_has_no_colour():
    picture = pixels(charts.coloured(np.array([[1.0, np.nan], [0.1, 0.0]]), (0.1, 1.0)))
    assert picture[..., 3].tolist() == [[255, 0], [255, 255]]
    np.testing.assert_array_equal(picture[1, 0], picture[1, 1])
    grey = pixels(charts.photograph(np.array([[0.0, np.nan], [1.0, 0.5]]), (0.0, 1.0)))
    assert grey[..., 3].tolist() == [[255, 0], [255, 255]]
    assert grey[0, 0, :3].tolist() == [0, 0, 0]
