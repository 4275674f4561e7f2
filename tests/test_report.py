import json
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from scattercube.kernels import Scattering2D
from scattercube.pipeline import charts
from scattercube.pipeline.catalog import FitOptions
from scattercube.pipeline.charts import DISK_PIXELS, OVERSAMPLING, Disk
from scattercube.pipeline.fit import fit
from scattercube.pipeline.report import report, shows
from tests.synthetic import SPEC, make_run, oriented_noise

HEADINGS = [
    "What ran",
    "Samples and their scattering disks",
    "Filter bank",
    "First-order energies",
    "Classification",
    "Quarantine",
    "Time and throughput",
    "Versions and digests",
    "Entry and Spec",
]
VOID = {"meta", "img", "br", "link", "input", "hr"}
RUN = {
    "started": "2026-11-22T03:00:00+00:00",
    "phases": [{"name": name, "wall_s": 1.25, "n_keys": 3, "n_skipped": 1} for name in ("plan", "extract")],
    "host": {"cpu": "an <odd> processor", "cores": 2, "memory_nbytes": 25e9, "platform": "Linux"},
    "cluster": "serial",
    "log": ["3 files skipped"],
}
HOSTILE = '<script>alert("label")</script> $x_{$ _y'


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, its text by heading, and whether every element closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.headings: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "h2" in self.open:
            self.headings[-1] += data
        elif self.headings and "style" not in self.open:
            self.sections[self.headings[-1]] = self.sections.get(self.headings[-1], "") + data
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(places) -> Page:
    path = report(places)
    assert path == places.page
    page = Page(Path(path).read_text(encoding="utf-8"))
    assert page.headings == HEADINGS
    check_self_contained(page)
    return page


def check_self_contained(page: Page) -> None:
    """Nothing is loaded, nothing is executed, every picture is described and every table has headers."""
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), f"{tag} has a handler: {attrs}"
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,")), f"{tag} loads {attrs[name][:80]}"
        assert "http" not in attrs.get("style", "")
    assert all(image["alt"] for image in page.all("img"))
    tables = len(page.all("table"))
    assert len(page.all("caption")) == len(page.all("thead")) == tables
    assert all(header.get("scope") for header in page.all("th"))


def labels_of(n_each: int, *names: str) -> list[str]:
    return [name for name in names for _ in range(n_each)]


@pytest.fixture(scope="module", autouse=True)
def one_drawing_a_bank():
    """Most runs here have the same filters: draw them once."""
    with pytest.MonkeyPatch.context() as patch:
        original = charts.filter_bank
        draw = lru_cache(lambda J, thetas: original(J, np.array(thetas)))
        patch.setattr(charts, "filter_bank", lambda J, thetas: draw(J, tuple(thetas)))
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A whole run: two classes, one of them hostile, two quarantined records, a fit, and what the driver wrote."""
    signal = oriented_noise((0, 90), 12)
    status = np.zeros(24, np.uint8)
    status[[3, 20]] = 1
    labels = labels_of(12, "stripes", HOSTILE)
    root = tmp_path_factory.mktemp("run")
    places = make_run(root, signal, labels, ["train", "test"] * 12, status, title="A <b>title</b> & more")
    fit(places, FitOptions(), "x")
    Path(places.run_file).write_text(json.dumps(RUN))
    return places


@pytest.fixture(scope="module")
def page(places) -> Page:
    return page_of(places)


def test_the_page_says_what_ran(places, page):
    text = page.sections["What ran"]
    assert "24: 22 ok, 2 quarantined" in text
    assert "sample 24 × path 25 × y 4 × x 4" in text
    assert places.cube in text
    assert "2026-11-22" in text


def test_the_lines_of_python_open_the_cube_and_select_by_scale(places, page):
    code = page.sections["What ran"].split("paths are chosen by what they are:")[1]
    names: dict = {}
    exec(code, names)
    assert set(names["coarse"].order.values.tolist()) == {2}
    assert set(names["coarse"].scale2.values.tolist()) == {2.0}


def test_every_usable_example_has_its_disks(page):
    section = [image["alt"] for image in page.all("img") if "image-" in image["alt"]]
    inputs = [alt for alt in section if alt.startswith("sample")]
    assert len(inputs) == 6
    assert len(section) == 18
    assert not any("image-003" in alt or "image-020" in alt for alt in section)


def test_scores_and_confusions_are_there(places, page):
    scores = json.loads(Path(places.scores).read_text())
    text = page.sections["Classification"]
    for head in (*scores["heads"].values(), *scores["baseline"].values()):
        assert f"{100 * head['accuracy']:.1f} %" in text
        assert head["title"] in text
    assert "pixel statistics" in text
    assert "chance" in text
    assert scores["summary"] in page.text


def test_quarantine_names_reason_and_record(page):
    text = page.sections["Quarantine"]
    assert "2 records could not be used" in text
    assert "unreadable" in text
    assert "image-003.png" in text
    assert "archive.tar/image-020.png" in text


def test_times_come_from_the_journals_and_the_run_file(page):
    text = page.sections["Time and throughput"]
    # 0.1 + 0.2 + 0.05 s of work on 24 samples of 1 kB.
    assert f"{24 / 0.35:.3g}" in text
    assert f"{24 * 16 * 16 * 4 / 0.35 / 1e6:.3g}" in text
    assert "an <odd> processor" in text
    assert "1.25" in text


def test_digests_versions_entry_and_spec_are_there(places, page):
    assert places.spec_digest in page.sections["Versions and digests"]
    assert np.__version__ in page.sections["Versions and digests"]
    assert "reader: arrays" in page.sections["Entry and Spec"]
    assert f"J: {SPEC.J}" in page.sections["Entry and Spec"]


def test_hostile_text_is_text(places, page):
    assert HOSTILE in page.sections["First-order energies"]
    assert HOSTILE in page.sections["Classification"]
    assert not page.all("b")
    assert "A <b>title</b> & more" in page.text
    assert "alert(" not in "".join(str(attrs) for tag, attrs in page.elements if tag != "img")


def test_the_page_reads_in_the_dark_and_on_paper(places, page):
    html = Path(places.page).read_text()
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert charts.INK not in html, "a drawing that does not take the page's colour"
    assert "currentColor" in html


# --- Cubes with something missing ---


def test_without_labels_and_without_a_fit(tmp_path):
    page = page_of(make_run(tmp_path, oriented_noise((0, 45), 8)))
    assert "no head has been fitted" in page.sections["Classification"]
    assert "all samples" in page.sections["First-order energies"]
    assert len([image for image in page.all("img") if image["alt"].startswith("sample")]) == 9
    assert page.sections["Quarantine"].strip() == "Every record could be used."


def test_with_nothing_to_fit_the_reason_is_given(tmp_path):
    places = make_run(tmp_path, oriented_noise((0,), 4), ["same"] * 4)
    fit(places, FitOptions(), "x")
    assert "only the class 'same'" in page_of(places).sections["Classification"]


def test_colour_images_and_folds(tmp_path):
    rng = np.random.default_rng(0)
    signal = rng.integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
    places = make_run(tmp_path, signal, labels_of(6, "a", "b"))
    fit(places, FitOptions(folds=2), "x")
    page = page_of(places)
    assert "sample 12 × channel 3 × path 25" in page.sections["What ran"]
    assert "0 (black) to 255 (white)" in page.sections["Samples and their scattering disks"]
    assert "2-fold cross-validation" in page.sections["Classification"]


@pytest.mark.parametrize("max_order", [0, 1])
def test_low_orders(tmp_path, max_order):
    spec = SPEC.model_copy(update={"max_order": max_order})
    page = page_of(make_run(tmp_path, oriented_noise((0,), 3), spec=spec))
    disks = [image for image in page.all("img") if image["alt"].startswith("scattering disk")]
    assert len(disks) == 3 * max_order
    names: dict = {}
    exec(page.sections["What ran"].split("paths are chosen by what they are:")[1], names)
    if max_order == 0:
        assert "order 0 alone" in page.sections["Filter bank"]
        assert "no first order" in page.sections["First-order energies"]


def test_one_scale_one_direction_one_sample(tmp_path):
    spec = SPEC.model_copy(update={"J": 1, "L": 1})
    page = page_of(make_run(tmp_path, oriented_noise((0,), 1), ["only"], spec=spec))
    assert "1: 1 ok, 0 quarantined" in page.sections["What ran"]


def test_all_samples_quarantined(tmp_path):
    places = make_run(tmp_path, oriented_noise((0,), 3), labels_of(3, "a"), status=np.ones(3))
    fit(places, FitOptions(), "x")
    page = page_of(places)
    assert "3: 0 ok, 3 quarantined" in page.sections["What ran"]
    assert "No sample could be used" in page.sections["Samples and their scattering disks"]
    assert "no sample could be used" in page.sections["First-order energies"]
    assert "no usable sample has a label" in page.sections["Classification"]


def test_constant_images(tmp_path):
    page = page_of(make_run(tmp_path, np.zeros((3, 16, 16), np.uint16), labels_of(3, "a")))
    assert "constant" in page.sections["First-order energies"]


def test_many_classes_get_a_list_of_confusions(tmp_path):
    names = [f"class {number:02d}" for number in range(31)]
    places = make_run(tmp_path, oriented_noise((0,), 62), [name for name in names for _ in range(2)])
    fit(places, FitOptions(heads=("ridge",)), "x")
    page = page_of(places)
    assert "most frequent confusions" in page.sections["Classification"]
    assert not [table for table in page.all("table") if "matrix" in table.get("class", "")]
    assert "The first 6 of 31 classes" in page.sections["Samples and their scattering disks"]
    assert "the 8 most frequent of 31 classes" in page.sections["First-order energies"]


# --- Disks ---


@pytest.fixture(scope="module")
def transform() -> Scattering2D:
    return Scattering2D(3, (32, 32), L=6)


def polar():
    n = DISK_PIXELS * OVERSAMPLING
    axis = (np.arange(n) + 0.5) * 2 / n - 1
    x, y = np.meshgrid(axis, axis)
    return np.hypot(x, y), np.degrees(np.arctan2(y, x))


def test_order_one_is_where_its_filters_are_in_frequency(transform):
    columns = transform.paths.columns
    disk = Disk(columns, 3).paths(1)
    radius, angle = polar()
    for path in np.flatnonzero(columns["order"] == 1):
        inside = disk == path
        j, theta = int(columns["j1"][path]), columns["theta1"][path]
        assert radius[inside].min() >= 2.0 ** -(j + 1)
        assert radius[inside].max() < 2.0**-j
        away = (angle[inside] - theta + 90) % 180 - 90
        assert np.abs(away).max() <= 15 + 1e-6
        # 0.5 is Nyquist: the peak of the filter lies in its own sector.
        assert radius[inside].min() < 2 * columns["xi1"][path] < radius[inside].max()
        area = 4 * inside.mean() / np.pi
        assert area == pytest.approx((4.0**-j - 4.0 ** -(j + 1)) / 6, rel=0.02)
    assert (disk[radius >= 1] == -1).all()
    assert (disk[radius < 1 / 8] == -1).all()


def test_order_two_divides_the_sectors_of_order_one(transform):
    columns = transform.paths.columns
    disk = Disk(columns, 3)
    one, two = disk.paths(1), disk.paths(2)
    paths = np.flatnonzero(columns["order"] == 2)
    assert set(np.unique(two)) == {-1, *paths}
    radius, _ = polar()
    for path in paths:
        inside = two == path
        (first,) = np.unique(one[inside])
        assert columns["j1"][first] == columns["j1"][path]
        assert columns["theta1"][first] == columns["theta1"][path]
    fine, coarse = ((two >= 0) & (columns["j1"][two] == 0) & (columns["j2"][two] == j2) for j2 in (1, 2))
    assert radius[fine].min() >= radius[coarse].max() - 1e-6, "finer second wavelets lie outside"
    widths = [np.ptp(radius[ring]) for ring in (fine, coarse)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("order", [1, 2])
def test_a_disk_turns_with_its_image(transform, order):
    """A quarter turn of the disk is a quarter turn of every direction along the paths, at the same scales."""
    columns = transform.paths.columns
    disk = Disk(columns, 3).paths(order)
    turned = np.rot90(disk)
    shown = disk >= 0
    np.testing.assert_array_equal(turned >= 0, shown)
    for m in range(1, order + 1):
        np.testing.assert_array_equal(columns[f"j{m}"][turned[shown]], columns[f"j{m}"][disk[shown]])
        difference = columns[f"theta{m}"][turned[shown]] - columns[f"theta{m}"][disk[shown]]
        off = np.abs(np.abs(difference) - 90) > 1e-6
        assert off.mean() < 2e-3, "more than the pixels on the edges of sectors"


def test_pictures_keep_their_colours():
    import base64
    import io

    from PIL import Image

    def pixels(address: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))

    grey = np.array([[0, 51], [102, 255]], np.uint8)
    np.testing.assert_array_equal(pixels(charts.photograph(grey, (0, 255))), np.stack([grey] * 3, axis=-1))
    colour = np.stack([grey, grey[::-1], grey.T])
    np.testing.assert_array_equal(pixels(charts.photograph(colour, (0, 255))), np.moveaxis(colour, 0, -1))
    assert pixels(charts.photograph(np.zeros((700, 30)), (0.0, 0.0))).shape == (234, 10, 3)


def test_a_journal_with_retries_says_so(tmp_path):
    places = make_run(tmp_path, oriented_noise((0,), 2))
    journal = Path(f"{places.cube}.run", "journal-1.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["attempt"] = 2
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "extract: 1 keys needed more than one attempt" in page_of(places).sections["Time and throughput"]


def test_the_same_run_gives_the_same_page_and_is_not_touched(places, page):
    html, before = Path(places.page).read_text(), xr.open_zarr(places.cube).load()
    assert Path(report(places)).read_text() == html
    xr.testing.assert_identical(xr.open_zarr(places.cube).load(), before)
    assert not list(Path(places.fit).glob("*.partial"))
    inputs = json.loads(Path(places.scores).read_text())["input_digest"]
    assert shows(places, inputs)
    assert not shows(places, inputs[::-1])
    assert not shows(replace(places, root=f"{places.root}/elsewhere"), inputs)
