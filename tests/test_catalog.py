"""Entries: the models and their text, the catalogue's own, what a user may name, what is inferred from bare files."""

import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scattercube.pipeline import catalog
from scattercube.pipeline.catalog import Entry, data_root, list_entries
from scattercube.pipeline.errors import EntryError, SourceError
from scattercube.pipeline.sources import load_entry, locate, read, scan
from scattercube.pipeline.spec import ImageSpec, Model, parse

README = (Path(__file__).parents[1] / "catalogs/README.md").read_text()
LEAST = {"name": "tiny", "title": "tiny", "licence": "CC0-1.0", "reader": "images", "location": "tiny.zip"}
MODELS = [model for model in vars(catalog).values() if isinstance(model, type) and issubclass(model, Model)]
MODELS = [model for model in MODELS if model.__module__ == catalog.__name__]

sizes = st.lists(st.integers(1, 500), min_size=2, max_size=2)
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=20)
words = st.text(characters, min_size=1, max_size=20)
policies = st.one_of(
    st.just({"exact": True}),
    st.builds(lambda size: {"crop": {"size": size}}, sizes),
    st.builds(lambda size: {"resize": {"size": size}}, sizes),
    st.builds(lambda size, stride: {"patches": {"size": size, "stride": stride}}, sizes, st.none() | sizes),
)
tables = st.fixed_dictionaries(
    {"file": st.just("labels.csv"), "key": words, "match": st.sampled_from(["member", "name", "stem"])},
    optional={"label": words},
)
labels = st.one_of(
    st.none(),
    st.just({"folder": True}),
    st.builds(lambda name: {"pattern": f"(?P<label>{re.escape(name)})"}, words),
    st.builds(lambda table: {"table": table}, tables),
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    sample = draw(policies) | {"channels": draw(st.sampled_from(["luminance", "keep"]))}
    split: dict[str, Any] = {"rename": draw(st.dictionaries(texts, st.sampled_from(catalog.SPLITS), max_size=3))}
    if "patches" in sample and draw(st.booleans()):
        boundary = draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
        split["position"] = {"axis": draw(st.sampled_from("yx")), "boundary": boundary, "gap": draw(st.integers(0, 99))}
    return parse(
        Entry,
        {
            "name": draw(st.from_regex(r"[a-z0-9]{1,9}(-[a-z0-9]{1,9}){0,3}", fullmatch=True)),
            "title": draw(words),
            "description": draw(texts),
            "licence": draw(words),
            "reader": "images",
            "location": draw(st.sampled_from(["a", "a/b.tar", "/x/y z", "package:skimage/data", "é/ö"])),
            "members": draw(st.lists(words, min_size=1, max_size=3)),
            "sample": sample,
            "labels": draw(labels),
            "split": split,
            "spec": {"J": draw(st.integers(1, 12))},
            "fit": {"folds": draw(st.integers(2, 9)), "seed": draw(st.integers(0, 2**32 - 1))},
            "limit": draw(st.none() | st.integers(1, 10**9)),
        },
        "the test",
        EntryError,
    )


class TestEntry:
    @given(entries())
    @settings(deadline=None)
    def test_its_yaml_reads_back_as_the_same(self, entry: Entry) -> None:
        again = parse(Entry, yaml.safe_load(entry.to_yaml()), "the test", EntryError)
        assert again == entry
        assert again.digest == entry.digest

    @given(entries(), st.integers(1, 10**6))
    @settings(deadline=None, max_examples=20)
    def test_prune_renames_and_limits_and_keeps_the_rest(self, entry: Entry, n: int) -> None:
        cut = entry.prune(n)
        assert (cut.name, cut.limit) == (f"{entry.name}-first{n}", n)
        assert cut.model_copy(update={"name": entry.name, "limit": entry.limit}) == entry
        assert cut.digest != entry.digest

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({"title": "other"}, True),
            ({"licence": "other"}, True),
            ({"spec": {"J": 5}}, True),
            ({"fit": {"seed": 1}}, True),
            ({"location": "other.zip"}, False),
            ({"members": ["*.png"]}, False),
            ({"sample": {"crop": {"size": [2, 2]}}}, False),
            ({"labels": {"folder": True}}, False),
            ({"split": {"rename": {"a": "train"}}}, False),
        ],
    )
    def test_digest_is_of_what_decides_the_samples(self, change: dict[str, Any], same: bool) -> None:
        before, after = (parse(Entry, values, "the test", EntryError) for values in (LEAST, LEAST | change))
        assert (before.digest == after.digest) is same

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sampel": {}}, "unknown key 'sampel'; known keys: name, title"),
            ({"sample": {"crop": {"siez": [1, 1]}}}, "unknown key 'sample.crop.siez'"),
            (
                {"sample": {"exact": True, "crop": {"size": [1, 1]}}},
                "give exactly one of exact, crop, .*got exact and crop",
            ),
            ({"sample": {"channels": "keep"}}, "give exactly one of exact, .*; got none"),
            ({"sample": {"crop": {"size": [0, 1]}}}, "sample.crop.size.0: .*greater than or equal to 1"),
            ({"sample": {"crop": {"size": [5]}}}, "sample.crop.size"),
            ({"name": "Not A Slug"}, "name: .*got 'Not A Slug'"),
            ({"name": "../up"}, "name: "),
            ({"licence": ""}, "licence: "),
            ({"reader": "fits"}, "reader: .*'images', 'idx', 'arrays'"),
            ({"location": "../other"}, "location: .*leave the data root"),
            ({"location": "package:../x"}, "location: expected package:NAME/path"),
            ({"location": "package:skimage/../numpy"}, "location: .*leave"),
            ({"labels": {"pattern": "("}}, "labels.pattern: not a regular expression"),
            ({"labels": {"pattern": "a+"}}, "labels.pattern: no named group"),
            ({"labels": {"folder": True, "column": 1}}, "labels: give exactly one of"),
            ({"labels": {"table": {"file": "../t.csv", "key": "k"}}}, "labels.table.file: .*without '..'"),
            ({"labels": {"table": {"file": "t.csv"}}}, "missing key 'labels.table.key'"),
            ({"labels": {"column": 1}}, "labels.column: is for the readers csv and arrays"),
            ({"labels": {"companion": {"replace": "a", "by": "b"}}}, "labels.companion: is for"),
            ({"reader": "csv"}, "csv: the reader csv, and only that"),
            ({"csv": {"shape": [1, 1]}}, "csv: the reader csv, and only that"),
            ({"arrays": {"channel_axis": "last"}}, "arrays: is for the reader arrays"),
            ({"reader": "csv", "csv": {"shape": [1, 1]}, "labels": {"column": "x"}}, "a name needs csv.header"),
            ({"split": {"position": {"axis": "x"}}}, "split.position: only patches"),
            ({"split": {"pattern": "(?P<part>a)"}}, "no group named split"),
            ({"split": {"column": "a", "pattern": "(?P<split>a)"}}, "at most one of position, pattern, column"),
            ({"split": {"rename": {"val": "validation"}}}, "rename: .*validation.* are no splits"),
            ({"limit": 0}, "limit: "),
            ({"limit": "3"}, "limit: "),
            ({"fit": {"folds": 1}}, "fit.folds: "),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(EntryError, match=f"^leaves.yaml: .*{message}"):
            parse(Entry, LEAST | change, "leaves.yaml", EntryError)


class TestReadme:
    def section(self, model: type[Model]) -> str:
        field = next(iter(model.model_fields))
        return next(part for part in README.split("\n\n") if f"\n| `{field}` |" in part and self.complete(part, model))

    def complete(self, table: str, model: type[Model]) -> bool:
        return all(f"\n| `{name}` |" in table for name in model.model_fields)

    @pytest.mark.parametrize("model", MODELS)
    def test_every_field_is_there_with_its_meaning_and_nothing_else(self, model: type[Model]) -> None:
        described = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", self.section(model), re.MULTILINE))
        assert described == {name: field.description for name, field in model.model_fields.items()}

    def test_the_example_is_a_valid_entry(self) -> None:
        example = parse(Entry, yaml.safe_load(README.split("```yaml\n")[1].split("```")[0]), "README", EntryError)
        assert example.sample.crop is not None
        assert example.split.rename["Kew"] == "test"

    def test_every_entry_is_listed(self) -> None:
        listed = re.findall(r"^\| `([\w-]+)` \|", README.split("## One of your own")[0], re.MULTILINE)
        assert sorted(listed) == catalog.entry_names()


class TestCatalogue:
    def test_entries_are_named_like_their_files_and_say_where_they_come_from(self) -> None:
        found = {entry.name: entry for entry in list_entries()}
        assert set(found) == {file.stem for file in Path(catalog.__file__).parents[1].glob("catalogs/*.yaml")}
        for name, entry in found.items():
            assert load_entry(name, Path()) == entry
            assert entry.homepage
            assert entry.citation

    @pytest.mark.parametrize(
        ("name", "shape", "n_samples", "n_labels"),
        [("textures", (32, 32), 768, 3), ("hubble", (3, 64, 64), 195, 0), ("digits", (8, 8), 1797, 10)],
    )
    def test_what_needs_no_download_is_read(
        self, name: str, shape: tuple[int, ...], n_samples: int, n_labels: int, tmp_path: Path
    ) -> None:
        entry = load_entry(name, tmp_path)
        listing = scan(entry, tmp_path)
        assert (listing.layout.shape, len(listing.columns["sample_id"])) == (shape, n_samples)
        assert len(set(listing.columns.get("label", []))) == n_labels
        assert all(isinstance(sample, np.ndarray) for sample in read(entry, tmp_path, listing.columns))

    def test_no_test_patch_of_textures_touches_the_training_half(self, tmp_path: Path) -> None:
        columns = scan(load_entry("textures", tmp_path), tmp_path).columns
        parts = {split: columns["x0"][columns["split"] == split] for split in ("train", "test", "unused")}
        assert parts["train"].max() + 32 < 256 < parts["test"].min()
        assert {split: len(x0) for split, x0 in parts.items()} == {"train": 336, "test": 336, "unused": 96}

    def test_digits_are_scikit_learn_s(self, tmp_path: Path) -> None:
        from sklearn.datasets import load_digits

        digits, entry = load_digits(), load_entry("digits", tmp_path)
        listing = scan(entry, tmp_path)
        np.testing.assert_array_equal(np.stack(list(read(entry, tmp_path, listing.columns))), digits.images)
        assert [int(label) for label in listing.columns["label"]] == digits.target.tolist()

    def test_an_unknown_name_gets_the_known_and_the_close_ones(self, tmp_path: Path) -> None:
        with pytest.raises(EntryError, match=r"textrues: .*did you mean textures\?.*digits, .*galaxyzoo2, hubble"):
            load_entry("textrues", tmp_path)

    def test_an_entry_file_is_read_and_its_faults_named(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(LEAST))
        assert load_entry(str(file), tmp_path).title == "tiny"
        file.write_text(yaml.safe_dump(LEAST | {"smaple": 1}))
        with pytest.raises(EntryError, match=r"mine\.yaml: unknown key 'smaple'"):
            load_entry(str(file), tmp_path)
        with pytest.raises(EntryError, match=r"absent\.yaml"):
            load_entry(str(tmp_path / "absent.yaml"), tmp_path)


class TestLocation:
    def test_data_root(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SCATTERCUBE_DATA", raising=False)
        assert data_root() == tmp_path / "data"
        monkeypatch.setenv("SCATTERCUBE_DATA", "/elsewhere")
        assert data_root() == Path("/elsewhere")
        assert data_root("given") == tmp_path / "given"

    def test_relative_absolute_and_inside_a_package(self, tmp_path: Path) -> None:
        import skimage

        (tmp_path / "tiny.zip").touch()
        tiny = parse(Entry, LEAST, "the test", EntryError)
        assert locate(tiny, tmp_path) == tmp_path / "tiny.zip"
        absolute = tiny.model_copy(update={"location": str(tmp_path / "tiny.zip")})
        assert locate(absolute, Path("/elsewhere")) == tmp_path / "tiny.zip"
        assert locate(load_entry("textures", tmp_path), tmp_path) == Path(skimage.__file__).parent / "data"

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("tiny.zip", "tiny: no archive at .*tiny.zip; put it there, or .*--data"),
            ("/nowhere/tiny.zip", "tiny: no archive at /nowhere/tiny.zip; correct location"),
            ("package:no_such_package/x", "tiny: .*the package no_such_package is not installed"),
            ("package:skimage/no_such_folder", "tiny: no archive at .*another version of skimage"),
        ],
    )
    def test_what_is_absent_is_named_with_a_remedy(self, tmp_path: Path, location: str, message: str) -> None:
        entry = parse(Entry, LEAST | {"location": location}, "the test", EntryError)
        with pytest.raises(SourceError, match=message):
            locate(entry, tmp_path)


def png(height: int, width: int, *, colour: bool = False) -> bytes:
    buffer = io.BytesIO()
    shape = (height, width, 3) if colour else (height, width)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


class TestInference:
    """A bare archive gets an entry that says what it assumes, and that reads what is there."""

    def inferred(self, path: Path) -> tuple[Entry, dict[str, np.ndarray], list[Any]]:
        entry = load_entry(str(path), Path("/nowhere"))
        again = parse(Entry, yaml.safe_load(entry.to_yaml()), "the test", EntryError)
        listing = scan(again, Path("/nowhere"))
        return entry, listing.columns, list(read(again, Path("/nowhere"), listing.columns))

    def test_folders_are_labels(self, tmp_path: Path) -> None:
        files = {f"{kind}/{i}.png": png(64, 64) for kind in ("cat", "dog") for i in range(2)}
        entry, columns, _ = self.inferred(folder(tmp_path / "My Photos 2024", files))
        assert entry.name == "my-photos-2024"
        assert columns["label"].tolist() == ["cat", "cat", "dog", "dog"]
        assert entry.sample.exact
        assert entry.spec.J == 4  # 2^4 is a quarter of 64
        assert "2 labels" in entry.description

    def test_train_and_test_folders_are_a_split(self, tmp_path: Path) -> None:
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for split in ("train", "test"):
                for kind in ("cat", "dog"):
                    archive.writestr(f"pets/{split}/{kind}/1.png", png(32, 32))
        entry, columns, _ = self.inferred(path)
        assert columns["split"].tolist() == ["train", "train", "test", "test"]
        assert columns["label"].tolist() == ["cat", "dog", "cat", "dog"]
        assert entry.name == "pets"

    def test_sizes_that_differ_are_cropped_to_what_fits(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, size in {"1.png": (40, 50), "2.png": (60, 30)}.items():
                content = png(*size, colour=True)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        entry, columns, samples = self.inferred(path)
        assert entry.sample.crop is not None
        assert entry.sample.crop.size == (40, 30)
        assert {sample.shape for sample in samples} == {(40, 30)}
        assert "sizes differ: 40×30" in entry.description
        assert "luminance" in entry.description
        assert "label" not in columns

    def test_one_file(self, tmp_path: Path) -> None:
        _, columns, samples = self.inferred(folder(tmp_path, {"a.png": png(16, 16), "b.png": png(8, 8)}) / "a.png")
        assert columns["sample_id"].tolist() == ["a.png"]
        assert samples[0].shape == (16, 16)

    def test_npy(self, tmp_path: Path) -> None:
        stack = np.random.default_rng(0).random((5, 16, 20))
        np.save(tmp_path / "fields.npy", stack)
        entry, _, samples = self.inferred(tmp_path / "fields.npy")
        assert entry.reader == "arrays"
        np.testing.assert_array_equal(np.stack(samples), stack)

    def test_npz_with_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros((5, 16, 16), np.uint8), kind=np.array(list("abcab")), seed=np.array(1))
        entry, columns, samples = self.inferred(tmp_path / "a.npz")
        assert columns["label"].tolist() == list("abcab")
        assert len(samples) == 5
        assert "labels are in kind.npy" in entry.description

    def test_idx_folder_like_mnist(self, tmp_path: Path) -> None:
        files = {}
        for part, n in (("train", 4), ("t10k", 2)):
            files[f"{part}-images-idx3-ubyte"] = (
                bytes([0, 0, 8, 3]) + np.array([n, 12, 12], ">u4").tobytes() + bytes(n * 144)
            )
            files[f"{part}-labels-idx1-ubyte"] = bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes() + bytes(range(n))
        _, columns, _ = self.inferred(folder(tmp_path / "m", files))
        assert columns["split"].tolist() == ["test"] * 2 + ["train"] * 4
        assert columns["label"].tolist() == ["0", "1", "0", "1", "2", "3"]

    def test_what_files_do_not_say_is_asked_for(self, tmp_path: Path) -> None:
        np.save(tmp_path / "rgb.npy", np.zeros((5, 16, 16, 3)))
        with pytest.raises(EntryError, match="channel_axis"):
            load_entry(str(tmp_path / "rgb.npy"), tmp_path)
        (tmp_path / "t.csv").write_text("1,2,3,4\n")
        with pytest.raises(EntryError, match=r"csv\.shape"):
            load_entry(str(tmp_path / "t.csv"), tmp_path)

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="it holds 0 files"):
            load_entry(str(tmp_path), tmp_path)
        (tmp_path / "notes.doc").touch()
        with pytest.raises(SourceError, match=r"it holds 1 files: notes\.doc"):
            load_entry(str(tmp_path), tmp_path)
        (tmp_path / "a.png").write_bytes(b"x")
        with pytest.raises(SourceError, match=r"none of 1 files looked at can be read; the first: a\.png"):
            load_entry(str(tmp_path), tmp_path)

    def test_damaged_array(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
        with pytest.raises(SourceError, match=r"no array .*; a\.npy: "):
            load_entry(str(tmp_path / "a.npy"), tmp_path)

    def test_bare_names_are_looked_up_in_the_data_root_too(self, tmp_path: Path) -> None:
        folder(tmp_path / "photos", {"1.png": png(16, 16)})
        assert load_entry("photos", tmp_path).location == str(tmp_path / "photos")

    def test_the_catalogue_wins_over_a_folder_of_the_same_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder(tmp_path / "textures", {"1.png": png(16, 16)})
        monkeypatch.chdir(tmp_path)
        assert load_entry("textures", tmp_path).location == "package:skimage/data"
        assert load_entry("./textures", tmp_path).location == str(tmp_path / "textures")

    @pytest.mark.parametrize(("size", "J"), [(8, 1), (15, 1), (16, 2), (31, 2), (32, 3), (128, 5), (4000, 5)])
    def test_suggested_scale(self, tmp_path: Path, size: int, J: int) -> None:
        entry, _, _ = self.inferred(folder(tmp_path / "f", {"1.png": png(size, size + 3)}))
        assert entry.spec == ImageSpec(J=J)
