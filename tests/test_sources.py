"""Readers: one contract for all of them, every source of labels and splits, and what hostile or damaged input does."""

import gc
import gzip
import io
import os
import re
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources import Listing, load_entry, read, scan
from scattercube.pipeline.sources.archives import containers
from scattercube.pipeline.spec import parse

IMAGES = np.random.default_rng(7).integers(0, 256, (7, 5, 6), dtype=np.uint8)
CLASSES = ["cat", "dog", "cat", "dog", "dog", "cat", "dog"]
NAMES = [f"{label}/{index:02d}.png" for index, label in enumerate(CLASSES)]


def entry(location: Path | str, reader: str = "images", **fields: Any) -> Entry:
    base = {"name": "tiny", "title": "tiny", "licence": "CC0-1.0", "reader": reader, "location": str(location)}
    return parse(Entry, base | fields, "the test", EntryError)


def samples(made: Entry, rows: dict[str, np.ndarray], root: Path = Path()) -> list[np.ndarray | RecordError]:
    return list(read(made, root, rows))


def everything(made: Entry) -> tuple[Listing, list[np.ndarray | RecordError]]:
    listing = scan(made, Path())
    return listing, samples(made, listing.columns)


def png(image: np.ndarray, **options: Any) -> bytes:
    return encoded(image, "PNG", **options)


def encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **options)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    code = {"u1": 0x08, "i2": 0x0B, "f4": 0x0D}[array.dtype.str[1:]]
    head = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def members(count: int = len(IMAGES)) -> dict[str, bytes]:
    return {name: png(image) for name, image in zip(NAMES[:count], IMAGES, strict=False)}


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    mode = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def in_folders(path: Path) -> Entry:
    return entry(path, labels={"folder": True})


def npz(path: Path) -> Path:
    np.savez_compressed(path, images=IMAGES, kind=np.array(CLASSES))
    return path


def csv_text(images: np.ndarray, labels: Sequence[str]) -> bytes:
    rows = [",".join([label, *map(str, image.ravel())]) for image, label in zip(images, labels, strict=True)]
    return ("class," + ",".join(f"p{i}" for i in range(images[0].size)) + "\n" + "\n".join(rows)).encode()


CODES = np.array([CLASSES.index(label) for label in CLASSES], np.uint8)  # cat 0, dog 1
COMPANION = {"companion": {"replace": "images", "by": "labels"}}
CSV_OPTIONS = {"shape": [5, 6], "header": True}

# One row a kind of archive: how to write IMAGES with CLASSES, and what their labels are called there.
BUILDERS: dict[str, Callable[[Path], Entry]] = {
    "folder": lambda p: in_folders(write_folder(p / "folder", members())),
    "tar": lambda p: in_folders(write_tar(p / "a.tar", members())),
    "tar.gz": lambda p: in_folders(write_tar(p / "a.tar.gz", members())),
    "tar.bz2": lambda p: in_folders(write_tar(p / "a.tar.bz2", members())),
    "tar.xz": lambda p: in_folders(write_tar(p / "a.tar.xz", members())),
    "zip": lambda p: in_folders(write_zip(p / "a.zip", members())),
    "tiff": lambda p: entry(
        write_folder(p / "t", {n.replace(".png", ".tif"): tiff(i) for n, i in zip(NAMES, IMAGES, strict=True)}),
        labels={"folder": True},
    ),
    "idx": lambda p: entry(
        write_folder(p / "i", {"images-ubyte": idx(IMAGES), "labels-ubyte": idx(CODES)}), "idx", labels=COMPANION
    ),
    "idx.gz": lambda p: entry(
        write_folder(
            p / "i", {"images-ubyte.gz": gzip.compress(idx(IMAGES)), "labels-ubyte.gz": gzip.compress(idx(CODES))}
        ),
        "idx",
        labels=COMPANION,
    ),
    "idx in tar.gz": lambda p: entry(
        write_tar(p / "i.tar.gz", {"images-ubyte": idx(IMAGES), "labels-ubyte": idx(CODES)}), "idx", labels=COMPANION
    ),
    "npy": lambda p: entry(
        write_folder(p / "n", {"images.npy": npy(IMAGES), "labels.npy": npy(np.array(CLASSES))}),
        "arrays",
        labels=COMPANION,
    ),
    "npz": lambda p: entry(npz(p / "n.npz"), "arrays", members=["images.npy"], labels={"column": "kind"}),
    "csv": lambda p: entry(
        written(p / "t.csv", csv_text(IMAGES, CLASSES)), "csv", csv=CSV_OPTIONS, labels={"column": "class"}
    ),
    "csv.gz": lambda p: entry(
        written(p / "t.csv.gz", gzip.compress(csv_text(IMAGES, CLASSES))),
        "csv",
        csv=CSV_OPTIONS,
        labels={"column": "class"},
    ),
}


@pytest.fixture(params=BUILDERS)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Entry:
    return BUILDERS[request.param](tmp_path)


class TestContract:
    def test_scan_agrees_with_read_and_both_with_what_was_written(self, archive: Entry) -> None:
        listing, found = everything(archive)
        assert listing.layout.dims == ("y", "x")
        assert listing.layout.shape == IMAGES.shape[1:]
        order = written_order(archive, listing)
        for sample, image in zip(found, IMAGES[order], strict=True):
            assert isinstance(sample, np.ndarray)
            assert (sample.shape, sample.dtype) == (listing.layout.shape, listing.layout.dtype)
            np.testing.assert_array_equal(sample, image)
        codes = {"0": "cat", "1": "dog"}
        labels = [codes.get(label, label) for label in listing.columns["label"]]
        assert labels == [CLASSES[index] for index in order]

    def test_columns_are_a_row_per_sample_and_text_is_text(self, archive: Entry) -> None:
        columns = scan(archive, Path()).columns
        assert {len(values) for values in columns.values()} == {len(IMAGES)}
        assert len(set(columns["sample_id"])) == len(IMAGES)
        assert columns["item"].dtype == np.int64
        assert all(type(value) is str for name in ("sample_id", "member", "label", "split") for value in columns[name])

    @pytest.mark.parametrize("order", ["ascending", "descending"])
    def test_any_slices_equal_the_whole(self, archive: Entry, order: str) -> None:
        listing, whole = everything(archive)
        for size in (1, 2, 3):
            starts = range(0, len(whole), size)
            for start in starts if order == "ascending" else reversed(starts):
                part = samples(archive, {name: v[start : start + size] for name, v in listing.columns.items()})
                np.testing.assert_array_equal(np.stack(part), np.stack(whole[start : start + size]))

    def test_threads_do_not_disturb_each_other(self, archive: Entry) -> None:
        listing, whole = everything(archive)
        gate = threading.Barrier(2)

        def one_by_one(rows: Sequence[int]) -> list[np.ndarray | RecordError]:
            gate.wait()
            return [samples(archive, {n: v[row : row + 1] for n, v in listing.columns.items()})[0] for row in rows]

        with ThreadPoolExecutor(2) as pool:
            up, down = pool.map(one_by_one, (range(len(whole)), range(len(whole))[::-1]))
        np.testing.assert_array_equal(np.stack(up), np.stack(whole))
        np.testing.assert_array_equal(np.stack(down[::-1]), np.stack(whole))

    def test_listing_is_the_same_again(self, archive: Entry) -> None:
        first, second = scan(archive, Path()), scan(archive, Path())
        assert first.checksum == second.checksum
        assert all((first.columns[name] == second.columns[name]).all() for name in first.columns)

    def test_limit_keeps_every_class(self, archive: Entry) -> None:
        cut = archive.prune(3)
        listing, found = everything(cut)
        assert len(found) == 3
        assert len(set(listing.columns["label"])) == 2
        whole = {i: s for i, s in zip(scan(archive, Path()).columns["sample_id"], everything(archive)[1], strict=True)}
        for name, sample in zip(listing.columns["sample_id"], found, strict=True):
            np.testing.assert_array_equal(sample, whole[name])

    def test_archive_that_is_gone_is_no_matter_of_one_record(self, archive: Entry) -> None:
        listing = scan(archive, Path())
        path = Path(archive.location)
        path.rename(path.with_name("elsewhere"))
        with pytest.raises(SourceError, match=re.escape(str(path))):
            samples(archive, listing.columns)


def written_order(made: Entry, listing: Listing) -> list[int]:
    """The positions in IMAGES of the listed samples: a folder is listed by name, so by class."""
    if made.reader == "images":
        return [int(Path(name).stem) for name in listing.columns["member"]]
    return listing.columns["item"].tolist()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_blocks_and_strides_of_rows_equal_the_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, 40))
    stack = np.arange(n * 6, dtype=np.int16).reshape(n, 2, 3)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, stack)
    items = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1)))
    rows = {"member": np.full(len(items), path.name, object), "item": items}
    np.testing.assert_array_equal(np.stack(samples(entry(path, "arrays"), rows)), stack[items])


class TestPictures:
    def test_rgb_keeps_its_channels(self, tmp_path: Path) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        made = entry(written(tmp_path / "a.png", png(rgb)), sample={"exact": True, "channels": "keep"})
        listing, (sample,) = everything(made)
        assert (listing.layout.dims, listing.layout.channels) == (("channel", "y", "x"), ("red", "green", "blue"))
        np.testing.assert_array_equal(sample, rgb.transpose(2, 0, 1))

    def test_luminance_is_pillow_s_but_not_rounded(self, tmp_path: Path) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        listing, (sample,) = everything(entry(written(tmp_path / "a.png", png(rgb))))
        assert listing.layout.dtype == np.float32
        grey = np.asarray(Image.fromarray(rgb).convert("L")).astype(float)
        np.testing.assert_allclose(sample, grey, atol=0.51)
        assert np.any(sample != grey)

    def test_alpha_is_dropped_and_said(self, tmp_path: Path) -> None:
        rgba = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
        made = entry(written(tmp_path / "a.png", png(rgba)), sample={"exact": True, "channels": "keep"})
        listing, (sample,) = everything(made)
        np.testing.assert_array_equal(sample, rgba[..., :3].transpose(2, 0, 1))
        assert any("alpha" in note and "a.png" in note for note in listing.notes)

    def test_palette_with_transparency_is_colour(self, tmp_path: Path) -> None:
        rgb = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 3, axis=0)
        buffer = io.BytesIO()
        Image.fromarray(rgb).quantize(4).save(buffer, "PNG", transparency=b"\x00\x80")
        made = entry(written(tmp_path / "a.png", buffer.getvalue()), sample={"exact": True, "channels": "keep"})
        np.testing.assert_array_equal(everything(made)[1][0], rgb.transpose(2, 0, 1))

    def test_grey_among_colour_and_colour_among_grey(self, tmp_path: Path) -> None:
        grey, rgb = IMAGES[0], np.repeat(IMAGES[1][..., None], 3, axis=2)
        colour_first = write_folder(tmp_path / "c", {"a.png": png(rgb), "b.png": png(grey)})
        grey_first = write_folder(tmp_path / "g", {"a.png": png(grey), "b.png": png(rgb)})
        kept = everything(entry(colour_first, sample={"exact": True, "channels": "keep"}))[1]
        np.testing.assert_array_equal(kept[1], np.stack([grey] * 3))
        rounded = everything(entry(grey_first))[1]
        np.testing.assert_array_equal(rounded[1], IMAGES[1])
        refused = everything(entry(grey_first, sample={"exact": True, "channels": "keep"}))[1]
        assert reason(refused[1]) == "wrong-shape"

    @pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16, np.float64])
    def test_tiff_keeps_its_dtype_and_its_pages(self, tmp_path: Path, dtype: type) -> None:
        pages = np.random.default_rng(0).normal(0, 1000, (3, 4, 5)).astype(dtype)
        made = entry(written(tmp_path / "a.tif", tiff(pages, photometric="minisblack", byteorder=">")))
        listing, found = everything(made)
        assert listing.layout.dtype == np.dtype(dtype)
        assert listing.layout.dtype.isnative
        assert listing.columns["item"].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(np.stack(found), pages)

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_tiff_with_alpha(self, tmp_path: Path, planar: str) -> None:
        rgba = np.random.default_rng(0).integers(0, 60000, (4, 5, 4), dtype=np.uint16)
        stored = rgba if planar == "contig" else rgba.transpose(2, 0, 1)
        content = tiff(stored, photometric="rgb", extrasamples=["unassalpha"], planarconfig=planar)
        made = entry(written(tmp_path / "a.tif", content), sample={"exact": True, "channels": "keep"})
        listing, (sample,) = everything(made)
        np.testing.assert_array_equal(sample, rgba[..., :3].transpose(2, 0, 1))
        assert any("alpha" in note for note in listing.notes)

    def test_tiff_compressed_in_a_way_that_only_pillow_knows(self, tmp_path: Path) -> None:
        content = encoded(IMAGES[0], "TIFF", compression="tiff_lzw")
        np.testing.assert_array_equal(everything(entry(written(tmp_path / "a.tif", content)))[1][0], IMAGES[0])

    def test_jpeg_is_what_pillow_decodes(self, tmp_path: Path) -> None:
        content = encoded(np.kron(IMAGES[0], np.ones((4, 4), np.uint8)), "JPEG")
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(image)
        np.testing.assert_array_equal(everything(entry(written(tmp_path / "a.jpg", content)))[1][0], expected)

    def test_sixteen_bit_png(self, tmp_path: Path) -> None:
        deep = np.random.default_rng(0).integers(0, 65536, (4, 5), dtype=np.uint16)
        listing, (sample,) = everything(entry(written(tmp_path / "a.png", png(deep))))
        assert listing.layout.dtype == np.uint16
        np.testing.assert_array_equal(sample, deep)


class TestPolicies:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        sizes = [(9, 12), (8, 8), (3, 20)]
        rng = np.random.default_rng(1)
        images = {f"{i}.png": rng.integers(0, 256, size, dtype=np.uint8) for i, size in enumerate(sizes)}
        np.savez(tmp_path / "originals.npz", **images)
        return write_folder(tmp_path / "mixed", {name: png(image) for name, image in images.items()})

    def original(self, mixed: Path, name: str) -> np.ndarray:
        with np.load(mixed.with_name("originals.npz")) as images:
            return images[name]

    def test_exact_quarantines_other_sizes(self, mixed: Path) -> None:
        listing, found = everything(entry(mixed))
        assert listing.layout.shape == (9, 12)
        assert [reason(sample) for sample in found] == ["", "wrong-shape", "wrong-shape"]
        assert "1.png: 8×8; expected 9×12" in str(found[1])

    def test_crop_is_the_centre(self, mixed: Path) -> None:
        listing, found = everything(entry(mixed, sample={"crop": {"size": [5, 6]}}))
        assert listing.layout.shape == (5, 6)
        np.testing.assert_array_equal(found[0], self.original(mixed, "0.png")[2:7, 3:9])
        np.testing.assert_array_equal(found[1], self.original(mixed, "1.png")[1:6, 1:7])
        assert "3×20; need at least 5×6" in str(found[2])

    @pytest.mark.parametrize("size", [(4, 3), (20, 31), (9, 12)])
    def test_resize_is_pillow_s_bicubic(self, mixed: Path, size: tuple[int, int]) -> None:
        listing, found = everything(entry(mixed, sample={"resize": {"size": size}}))
        assert (listing.layout.shape, listing.layout.dtype) == (size, np.float32)
        for name, sample in zip(listing.columns["member"], found, strict=True):
            plane = Image.fromarray(self.original(mixed, name).astype(np.float32))
            expected = np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC))
            np.testing.assert_allclose(sample, expected, atol=1e-3)

    def test_resize_of_colour_is_that_of_its_channels(self, tmp_path: Path) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        made = entry(written(tmp_path / "a.png", png(rgb)), sample={"resize": {"size": [3, 4]}, "channels": "keep"})
        sample = everything(made)[1][0]
        for channel in range(3):
            plane = Image.fromarray(rgb[..., channel].astype(np.float32)).resize((4, 3), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(sample[channel], np.asarray(plane), atol=1e-3)

    @given(
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        patch=st.tuples(st.integers(1, 8), st.integers(1, 8)),
        stride=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    @settings(max_examples=60, deadline=None)
    def test_patches_are_all_that_fit(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        size: tuple[int, int],
        patch: tuple[int, int],
        stride: tuple[int, int] | None,
    ) -> None:
        image = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size)
        path = written(tmp_path_factory.mktemp("p") / "a.png", png(image))
        policy = {"patches": {"size": patch} | ({"stride": stride} if stride else {})}
        listing, found = everything(entry(path, sample=policy))
        windows = np.lib.stride_tricks.sliding_window_view(image, patch) if np.all(np.less_equal(patch, size)) else None
        if windows is None:
            assert [reason(sample) for sample in found] == ["wrong-shape"]
            return
        step = stride or patch
        expected = windows[:: step[0], :: step[1]].reshape(-1, *patch)
        np.testing.assert_array_equal(np.stack(found), expected)
        for y0, x0, sample in zip(listing.columns["y0"], listing.columns["x0"], found, strict=True):
            assert sample[0, 0] == image[y0, x0]

    def test_an_image_is_decoded_once_for_its_patches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from scattercube.pipeline.sources.pictures import images

        path = write_folder(
            tmp_path / "p",
            {name: png(np.kron(IMAGES[i], np.ones((4, 4), np.uint8))) for i, name in enumerate(["a.png", "b.png"])},
        )
        made = entry(path, sample={"patches": {"size": [5, 6]}})
        listing = scan(made, Path())
        decode, decoded = images._picture, []
        monkeypatch.setattr(images, "_picture", lambda content: decoded.append(1) or decode(content))
        n_rows = len(listing.columns["item"])
        for start in range(0, n_rows, 5):
            samples(made, {name: values[start : start + 5] for name, values in listing.columns.items()})
        assert (n_rows, len(decoded)) == (32, 2)

    @pytest.mark.parametrize(("axis", "boundary", "gap"), [("x", 0.5, 0), ("x", 0.5, 8), ("y", 0.3, 3), ("y", 0.7, 1)])
    def test_split_by_position_leaves_the_gap_free(self, tmp_path: Path, axis: str, boundary: float, gap: int) -> None:
        image = np.zeros((40, 60), np.uint8)
        made = entry(
            written(tmp_path / "a.png", png(image)),
            sample={"patches": {"size": [4, 4], "stride": [3, 3]}},
            split={"position": {"axis": axis, "boundary": boundary, "gap": gap}},
        )
        columns = scan(made, Path()).columns
        painted = {name: np.zeros_like(image, bool) for name in ("train", "test", "unused")}
        for y0, x0, split in zip(columns["y0"], columns["x0"], columns["split"], strict=True):
            painted[split][y0 : y0 + 4, x0 : x0 + 4] = True
        along = 1 if axis == "x" else 0
        train, test = (np.flatnonzero(painted[name].any(axis=1 - along)) for name in ("train", "test"))
        middle = boundary * image.shape[along]
        assert train.max() + 1 <= middle - gap / 2
        assert test.min() >= middle + gap / 2
        # Nothing is given away: one more step would reach into the gap.
        assert train.max() + 1 + 3 > middle - gap / 2
        assert test.min() - 3 < middle + gap / 2

    def test_policies_hold_for_arrays_too(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.npy", npy(IMAGES))
        listing, found = everything(entry(path, "arrays", sample={"patches": {"size": [2, 3]}}))
        assert len(found) == len(IMAGES) * 4
        np.testing.assert_array_equal(found[-1], IMAGES[-1, 2:4, 3:6])
        assert listing.columns["sample_id"][-1] == "a.npy#6@2,3"

    @pytest.mark.parametrize(("axis", "stored"), [("last", (2, 4, 5, 3)), ("first", (2, 3, 4, 5))])
    def test_channel_axis_of_arrays_is_declared(self, tmp_path: Path, axis: str, stored: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).random(stored).astype(">f4")
        made = entry(
            written(tmp_path / "a.npy", npy(array)),
            "arrays",
            arrays={"channel_axis": axis},
            sample={"exact": True, "channels": "keep"},
        )
        listing, found = everything(made)
        assert (listing.layout.shape, listing.layout.dtype) == ((3, 4, 5), np.float32)
        np.testing.assert_array_equal(np.stack(found), array.transpose(0, 3, 1, 2) if axis == "last" else array)


class TestLabels:
    def test_pattern_gives_label_split_and_metadata(self, tmp_path: Path) -> None:
        files = {
            f"{part}/{kind}_{scale}.png": png(IMAGES[0])
            for part in ("train", "val")
            for kind, scale in (("a", 1), ("b", 2))
        }
        made = entry(
            write_zip(tmp_path / "a.zip", files),
            labels={"pattern": r"^(?P<split>\w+)/(?P<label>\w)_(?P<scale>\d)"},
            split={"rename": {"val": "test"}},
        )
        listing = scan(made, Path())
        columns = listing.columns
        assert columns["split"].tolist() == ["train", "train", "test", "test"]
        assert columns["label"].tolist() == ["a", "b", "a", "b"]
        # A cube has scales of its own.
        assert columns["meta_scale"].tolist() == ["1", "2", "1", "2"]
        assert any("meta_scale" in note for note in listing.notes)

    def test_a_name_without_a_match_is_quarantined(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a_1.png": png(IMAGES[0]), "odd.png": png(IMAGES[1])})
        listing, found = everything(entry(path, labels={"pattern": r"(?P<label>\w)_\d"}))
        assert [reason(sample) for sample in found] == ["", "missing"]
        assert any("odd.png" in note for note in listing.notes)

    def test_a_pattern_that_matches_nothing_is_refused(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", members())
        with pytest.raises(
            EntryError, match=r"labels\.pattern: .*nope.* matches no member; the first is 'cat/00\.png'"
        ):
            scan(entry(path, labels={"pattern": "(?P<label>nope)"}), Path())

    @pytest.mark.parametrize("kind", ["inside.csv", "beside.csv", "inside.tsv", "inside.csv.gz", "beside.parquet"])
    def test_table(self, tmp_path: Path, kind: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        where, _, suffix = kind.partition(".")
        table = {
            "id": [f"{i:02d}" for i in (3, 1, 0, 2, 99)],
            "class": ["d", "b", "a", "c", "z"],
            "path": ["w", "x", "y", "z", "z"],
            "age": [4, 2, 1, 3, 9],
            "fold": [1, 2, 1, 2, 1],
        }
        separator = "\t" if suffix == "tsv" else ","
        rows = [separator.join(table), *(separator.join(map(str, row)) for row in zip(*table.values(), strict=True))]
        content = "\n".join(rows).encode()
        if suffix == "parquet":
            buffer = io.BytesIO()
            parquet.write_table(pa.table(table), buffer)
            content = buffer.getvalue()
        content = gzip.compress(content) if suffix.endswith("gz") else content
        file = f"labels.{suffix}"
        path = write_zip(tmp_path / "a.zip", members(5) | ({file: content} if where == "inside" else {}))
        if where == "beside":
            written(tmp_path / file, content)
        made = entry(
            path,
            labels={"table": {"file": file, "key": "id", "match": "stem", "label": "class"}},
            split={"column": "fold", "rename": {"1": "train", "2": "test"}},
        )
        listing = scan(made, Path())
        columns = listing.columns
        assert columns["label"].tolist() == ["a", "b", "c", "d", ""]
        assert columns["split"].tolist() == ["train", "test", "test", "train", ""]
        np.testing.assert_array_equal(columns["age"], [1, 2, 3, 4, np.nan])
        assert columns["meta_path"].tolist() == ["y", "x", "z", "w", ""]
        assert any("does not list 1 of 5" in note for note in listing.notes)
        before = listing.checksum
        if where == "beside":
            written(tmp_path / file, content + b"\n")
            assert scan(made, Path()).checksum != before if suffix != "parquet" else True

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("id,class\n00,a\n00,b\n", "lists '00' more than once in id"),
            ("name,class\n00,a\n", "has no column 'id'; it has name, class"),
            ("id,class\nx,a\n", "no stem of a member is in column id"),
            ("id,class\n00,a,b\n", "cannot be read"),
        ],
    )
    def test_table_that_does_not_fit(self, tmp_path: Path, table: str, message: str) -> None:
        path = write_folder(tmp_path / "f", members() | {"t.csv": table.encode()})
        made = entry(path, labels={"table": {"file": "t.csv", "key": "id", "match": "stem", "label": "class"}})
        with pytest.raises((EntryError, SourceError), match=re.escape(message)):
            scan(made, Path())

    def test_table_that_is_not_there(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", members())
        with pytest.raises(SourceError, match=r"t\.csv is neither in .* nor beside it"):
            scan(entry(path, labels={"table": {"file": "t.csv", "key": "id"}}), Path())

    def test_split_that_is_none(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", members())
        with pytest.raises(EntryError, match=r"cat, dog are neither train, .* split\.rename"):
            scan(entry(path, split={"pattern": "(?P<split>cat|dog)"}), Path())

    def test_companion_that_is_missing_or_too_short(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "i", {"images-ubyte": idx(IMAGES)})
        made = entry(path, "idx", labels=COMPANION)
        with pytest.raises(EntryError, match="should have its labels in labels-ubyte"):
            scan(made, Path())
        write_folder(path, {"labels-ubyte": idx(CODES[:3])})
        with pytest.raises(EntryError, match="has 3 labels for 7 items"):
            scan(made, Path())

    def test_csv_without_heading(self, tmp_path: Path) -> None:
        body = b"\n\n".join(csv_text(IMAGES, CLASSES).splitlines()[1:]) + b"\r\n"  # blank lines count for nothing
        made = entry(written(tmp_path / "t.csv", body), "csv", csv={"shape": [5, 6]}, labels={"column": 0})
        listing, found = everything(made)
        assert listing.columns["label"].tolist() == CLASSES
        np.testing.assert_array_equal(np.stack(found), IMAGES)

    def test_limit_keeps_classes_and_splits_in_proportion(self, tmp_path: Path) -> None:
        image = np.zeros((64, 64), np.uint8)
        made = entry(
            write_folder(tmp_path / "f", {f"{name}.png": png(image) for name in "abc"}),
            sample={"patches": {"size": [4, 4]}},
            labels={"pattern": r"(?P<label>\w)\.png"},
            split={"position": {"axis": "x", "gap": 8}},
        )
        whole, cut = (scan(one, Path()).columns for one in (made, made.prune(96)))
        for name in "abc":
            for split in ("train", "test", "unused"):
                share = [np.mean((c["label"] == name) & (c["split"] == split)) for c in (whole, cut)]
                assert abs(share[0] - share[1]) <= 1 / 96
        assert [i for i in whole["sample_id"] if i in set(cut["sample_id"])] == cut["sample_id"].tolist()


class TestDamage:
    """One bad record is quarantined, with its reason; the others are as they were."""

    def good_and_bad(self, path: Path, bad: bytes, suffix: str = ".png", **fields: Any) -> RecordError:
        good = png(IMAGES[0]) if suffix == ".png" else tiff(IMAGES[0].astype(np.float32))
        archive = write_tar(path / "a.tar", {f"0{suffix}": good, f"1{suffix}": bad, f"2{suffix}": good})
        _, found = everything(entry(archive, **fields))
        assert [isinstance(sample, RecordError) for sample in found] == [False, True, False]
        np.testing.assert_array_equal(found[0], found[2])
        assert f"1{suffix}" in str(found[1])
        assert isinstance(found[1], RecordError)
        return found[1]

    @pytest.mark.parametrize(
        "bad",
        [
            b"",
            b"<html>404</html>",
            png(IMAGES[0])[:-30],
            png(IMAGES[0])[:40] + bytes(20) + png(IMAGES[0])[60:],
            encoded(np.zeros((64, 64), np.uint8), "GIF"),
        ],
        ids=["empty", "html", "truncated", "damaged", "gif"],
    )
    @pytest.mark.parametrize("policy", [{"exact": True}, {"patches": {"size": [5, 6]}}], ids=["exact", "patches"])
    def test_png(self, tmp_path: Path, bad: bytes, policy: dict[str, Any]) -> None:
        assert self.good_and_bad(tmp_path, bad, sample=policy).reason == "unreadable"

    def test_truncated_jpeg(self, tmp_path: Path) -> None:
        whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), "JPEG")
        path = write_folder(tmp_path / "f", {"0.jpg": whole, "1.jpg": whole[: len(whole) // 2]})
        assert [reason(sample) for sample in everything(entry(path))[1]] == ["", "unreadable"]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_pixels_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        image = IMAGES[0].astype(np.float32)
        image[2, 3] = value
        failure = self.good_and_bad(tmp_path, tiff(image), ".tif")
        assert failure.reason == "non-finite"
        assert "1 pixels" in str(failure)

    def test_other_dtype(self, tmp_path: Path) -> None:
        assert self.good_and_bad(tmp_path, png(IMAGES[0].astype(np.uint16))).reason == "wrong-shape"

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_too_many_pixels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert self.good_and_bad(tmp_path, png(np.zeros((40, 40), np.uint8))).reason == "too-large"
        assert self.good_and_bad(tmp_path, png(np.zeros((400, 400), np.uint8))).reason == "too-large"
        assert self.good_and_bad(tmp_path, tiff(np.zeros((40, 40), np.float32)), ".tif").reason == "too-large"

    def test_a_bomb_in_a_zip(self, tmp_path: Path) -> None:
        bomb = bytes(64 << 20)
        path = write_zip(tmp_path / "a.zip", {"0.png": png(IMAGES[0]), "1.png": bomb})
        assert path.stat().st_size < 100_000
        found = everything(entry(path))[1]
        assert [reason(sample) for sample in found] == ["", "too-large"]
        assert "refused as a bomb" in str(found[1])

    def test_a_bomb_that_is_a_tar(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar.xz", {"0.png": png(IMAGES[0]), "1.png": bytes(64 << 20), "2.png": b""})
        with pytest.raises(SourceError, match="refused as a bomb"):
            scan(entry(path), Path())

    def test_bad_checksum_in_a_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as stored:
            for name, image in zip("012", IMAGES, strict=False):
                stored.writestr(f"{name}.tif", tiff(image))
        content = bytearray(path.read_bytes())
        content[content.index(IMAGES[1].tobytes())] ^= 1  # one bit of a pixel: only the checksum can tell
        path.write_bytes(content)
        assert [reason(sample) for sample in everything(entry(path))[1]] == ["", "unreadable", ""]

    @pytest.mark.parametrize("suffix", ["tar", "tar.bz2"])
    def test_a_tar_that_breaks_off(self, tmp_path: Path, suffix: str) -> None:
        side = {"tar": 40, "tar.bz2": 600}[suffix]  # blocks of bzip2 have 900 kB
        rng = np.random.default_rng(0)
        files = {f"{i}.png": png(rng.integers(0, 256, (side, side), dtype=np.uint8)) for i in range(6)}
        path = write_tar(tmp_path / f"a.{suffix}", files)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        listing, found = everything(entry(path))
        assert 2 <= len(found) < 6
        assert not isinstance(found[0], RecordError)
        assert [reason(sample) for sample in found if reason(sample)] in ([], ["unreadable"])
        assert any("breaks off" in note for note in listing.notes)

    def test_a_damaged_header_inside_a_tar_is_said(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", members())
        content = bytearray(path.read_bytes())
        content[content.index(b"dog/03.png") + 150] ^= 0xFF
        path.write_bytes(content)
        listing = scan(entry(path), Path())
        assert listing.columns["member"].tolist() == NAMES[:3]
        assert any("damaged header" in note for note in listing.notes)

    @pytest.mark.parametrize("content", [b"", b"not an archive", zlib.compress(b"x")])
    @pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "zip"])
    def test_no_archive_at_all(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = written(tmp_path / f"a.{suffix}", content)
        with pytest.raises(SourceError, match=re.escape(str(path))):
            scan(entry(path), Path())

    @pytest.mark.parametrize("packed", [False, True])
    def test_idx_that_is_cut_short(self, tmp_path: Path, packed: bool) -> None:
        rng = np.random.default_rng(0)
        stack = rng.integers(0, 256, (4000, 28, 28), dtype=np.uint8)
        content = gzip.compress(idx(stack), 1)[:1_000_000] if packed else idx(stack)[:1_000_000]
        path = written(tmp_path / ("a-ubyte" + ".gz" * packed), content)
        # Nobody knows whether what comes out of a gzip before its checksum is right.
        said = "ended before the end-of-stream" if packed else "promises 3136016 bytes, it has at most 1000000"
        with pytest.raises(SourceError, match=said):
            scan(entry(path, "idx"), Path())

    def test_headers_that_promise_too_much_take_no_memory(self, tmp_path: Path) -> None:
        huge = struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 15, 1 << 15)
        for name, content in {"a-ubyte": huge, "b-ubyte.gz": gzip.compress(huge)}.items():
            with pytest.raises(SourceError, match="promises"):
                scan(entry(written(tmp_path / name, content), "idx"), Path())

    def test_python_objects_are_never_loaded(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "sprung",))

        path = written(tmp_path / "a.npy", npy(np.array([Trap()] * 3, dtype=object), allow_pickle=True))
        with pytest.raises(SourceError, match="Python objects are never loaded"):
            scan(entry(path, "arrays"), Path())
        assert not (tmp_path / "sprung").exists()

    def test_one_bad_array_among_good_ones(self, tmp_path: Path) -> None:
        path = write_folder(
            tmp_path / "n",
            {"0.npy": npy(IMAGES), "1.npy": npy(IMAGES[:, :3]), "2.npy": b"\x93NUMPY", "3.npy": npy(IMAGES[::2])},
        )
        _, found = everything(entry(path, "arrays"))
        assert [reason(sample) for sample in found] == [""] * 7 + ["wrong-shape"] * 7 + ["unreadable"] + [""] * 4

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((2, 3, 4, 5)), "declare arrays.channel_axis"),
            (np.asfortranarray(np.zeros((2, 3, 4))), "Fortran order"),
            (np.zeros((2, 3, 4), complex), "expected numbers"),
            (np.zeros(3, [("a", "f4")]), "expected numbers"),
        ],
    )
    def test_arrays_of_another_kind(self, tmp_path: Path, array: np.ndarray, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            scan(entry(written(tmp_path / "a.npy", npy(array)), "arrays"), Path())

    def test_csv_rows(self, tmp_path: Path) -> None:
        text = b"1,2,3,4\n1,2,3\n1,2,x,4\n1,2,nan,4\n5,6,7,8"
        _, found = everything(entry(written(tmp_path / "t.csv", text), "csv", csv={"shape": [2, 2]}))
        assert [reason(sample) for sample in found] == ["", "wrong-shape", "unreadable", "non-finite", ""]
        np.testing.assert_array_equal(found[4], [[5, 6], [7, 8]])

    def test_member_that_went_away(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", members())
        listing = scan(entry(path), Path())
        (path / NAMES[0]).unlink()
        (path / NAMES[1]).unlink()
        found = samples(entry(path), listing.columns)
        assert sum(reason(sample) == "missing" for sample in found) == 2
        assert sum(reason(sample) == "" for sample in found) == 5

    def test_archive_that_was_replaced(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", members())
        listing, before = everything(entry(path))
        write_tar(path, {name: png(image[::-1]) for name, image in zip(NAMES[1:], IMAGES[1:], strict=True)})
        found = samples(entry(path), listing.columns)
        assert reason(found[0]) == "missing"
        np.testing.assert_array_equal(found[1], before[1][::-1])

    def test_labels_that_are_damaged_are_not_made_up(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "i", {"images-ubyte": idx(IMAGES), "labels-ubyte": idx(CODES)[:-1]})
        with pytest.raises(SourceError, match="the labels cannot be read: labels-ubyte: "):
            scan(entry(path, "idx", labels=COMPANION), Path())

    def test_nothing_readable_at_all(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.png": b"x", "b.png": b"y"})
        with pytest.raises(SourceError, match=r"none of 2 members can be read; the first: a\.png"):
            scan(entry(path), Path())


def reason(sample: np.ndarray | RecordError) -> str:
    return sample.reason if isinstance(sample, RecordError) else ""


class TestHostileNames:
    def test_names_that_leave_a_tar(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", members(1) | {"../x.png": b"", "/etc/y.png": b"", "a/../../z.png": b""})
        listing, found = everything(entry(path))
        assert listing.columns["member"].tolist() == NAMES[:1]
        assert any("leave the archive: 3" in note and "/etc/y.png" in note for note in listing.notes)
        assert len(found) == 1

    def test_links_and_devices_in_a_tar(self, tmp_path: Path) -> None:
        written(tmp_path / "secret.png", png(IMAGES[1]))
        odd = []
        for name, kind in {"s.png": tarfile.SYMTYPE, "h.png": tarfile.LNKTYPE, "d.png": tarfile.CHRTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            odd.append(info)
        listing = scan(entry(write_tar(tmp_path / "a.tar", members(1), *odd)), Path())
        assert listing.columns["member"].tolist() == NAMES[:1]
        assert any("links, devices" in note and "s.png, h.png, d.png" in note for note in listing.notes)

    def test_link_and_traversal_in_a_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            link = zipfile.ZipInfo("s.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
            archive.writestr("../x.png", png(IMAGES[0]))
            archive.writestr("a.png", png(IMAGES[0]))
        listing = scan(entry(path), Path())
        assert listing.columns["member"].tolist() == ["a.png"]
        assert len(listing.notes) == 2

    def test_rows_cannot_ask_for_files_outside(self, tmp_path: Path) -> None:
        written(tmp_path / "secret.png", png(IMAGES[0]))
        path = write_folder(tmp_path / "f", members())
        rows = {"member": np.array(["../secret.png", str(tmp_path / "secret.png")], object), "item": np.zeros(2, int)}
        assert [reason(sample) for sample in samples(entry(path), rows)] == ["missing", "missing"]

    @pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
    def test_names_that_are_not_utf8(self, tmp_path: Path, kind: str) -> None:
        name = os.fsdecode(b"caf\xe9/1.png")
        files = {name: png(IMAGES[0]), "thé/2.png": png(IMAGES[1])}
        try:
            path = write_folder(tmp_path / "f", files) if kind == "folder" else None
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        listing, found = everything(entry(path or write_tar(tmp_path / f"a.{kind}", files), labels={"folder": True}))
        assert listing.columns["label"].tolist() == ["caf\\xe9", "thé"]
        "".join(listing.columns["sample_id"]).encode()  # stores hold UTF-8
        np.testing.assert_array_equal(np.stack(found), IMAGES[:2])

    @pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
    def test_names_with_control_characters_are_escaped(self, tmp_path: Path, kind: str) -> None:
        files = {"a\x1b[2Jb\x85.png": png(IMAGES[0])}
        write = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[kind]
        listing, found = everything(entry(write(tmp_path / f"a.{kind}", files)))
        assert listing.columns["member"].tolist() == ["a\\x1b[2Jb\\xc2\\x85.png"]
        np.testing.assert_array_equal(found[0], IMAGES[0])

    def test_names_that_come_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for image in IMAGES[:2]:
                info = tarfile.TarInfo("./a.png")
                info.size = len(png(image))
                tar.addfile(info, io.BytesIO(png(image)))
        listing, found = everything(entry(path))
        assert listing.columns["sample_id"].tolist() == ["a.png"]
        np.testing.assert_array_equal(found[0], IMAGES[1])
        assert any("same name" in note for note in listing.notes)

    def test_hidden_files_do_not_count(self, tmp_path: Path) -> None:
        litter = {"._a.png": b"", "__MACOSX/cat/._00.png": b"", ".git/x.png": b""}
        for path in (
            write_folder(tmp_path / "f", members(1) | litter),
            write_zip(tmp_path / "a.zip", members(1) | litter),
        ):
            assert scan(entry(path), Path()).columns["member"].tolist() == NAMES[:1]

    def test_wildcards_of_names_are_taken_literally_when_inferred(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "n", {"[a]*.npy": npy(IMAGES), "other.npy": npy(CODES[:2])})
        assert scan(load_entry(str(path), tmp_path), tmp_path).columns["member"][0] == "[a]*.npy"


class TestNothingThere:
    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no member matches \* and ends in .*\.png.*; it holds 0 files"):
            scan(entry(tmp_path), Path())

    def test_other_files(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"readme.txt": b"", "a.doc": b""})
        with pytest.raises(SourceError, match=r"it holds 2 files: a\.doc, readme\.txt"):
            scan(entry(path), Path())

    def test_globs_that_match_nothing(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", members())
        with pytest.raises(SourceError, match=r"no member matches cow/\*"):
            scan(entry(path, members=["cow/*"]), Path())

    def test_array_of_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="hold no samples"):
            scan(entry(written(tmp_path / "a.npy", npy(IMAGES[:0])), "arrays"), Path())

    def test_others_are_named(self, tmp_path: Path) -> None:
        listing = scan(entry(write_folder(tmp_path / "f", members() | {"cat/notes.txt": b""})), Path())
        assert any("cat/notes.txt" in note for note in listing.notes)


def test_workers_load_nothing_heavy() -> None:
    code = "import sys; import scattercube.pipeline.sources; print(*sys.modules)"
    loaded = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "xarray", "matplotlib", "pyarrow", "sklearn", "skimage", "zarr", "dask"} & set(loaded)


def test_compressed_archive_is_unpacked_once_by_ascending_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    files = {f"{i:02d}.png": png(rng.integers(0, 256, (64, 64), dtype=np.uint8)) for i in range(30)}
    made = entry(write_tar(tmp_path / "a.tar.gz", files))
    listing = scan(made, Path())
    opened: list[str] = []
    unpack = gzip.open
    monkeypatch.setitem(
        containers._UNPACK, ".gz", lambda source: opened.append(str(source)) or CountingReads(unpack(source))
    )
    CountingReads.rewinds = 0
    with ThreadPoolExecutor(1) as pool:  # a thread of its own has no stream from before
        for row in range(30):
            rows = {name: values[row : row + 1] for name, values in listing.columns.items()}
            assert not reason(pool.submit(samples, made, rows).result()[0])
    assert len(opened) == 1
    assert CountingReads.rewinds <= 1  # the first look decides shape and dtype


class CountingReads(io.BufferedReader):
    rewinds = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        CountingReads.rewinds += offset < self.tell()
        return super().seek(offset, whence)


def test_reading_streams(tmp_path: Path) -> None:
    """The first sample is there before the last one is touched."""
    path = write_folder(tmp_path / "f", members())
    made = entry(path)
    found: Iterator[np.ndarray | RecordError] = read(made, Path(), scan(made, Path()).columns)
    assert not reason(next(found))
    for name in NAMES[1:]:
        (path / name).unlink()
    assert [reason(sample) for sample in found][-1] == "missing"


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "counts"),
    [
        ("mnist", (28, 28), np.uint8, {"train": 60000, "test": 10000}),
        ("kth-tips", (112, 112), np.uint8, {"": 810}),
        ("cifar10-subset", (3, 32, 32), np.uint8, {"train": 10000, "test": 2000}),
        ("galaxyzoo2", (3, 192, 192), np.uint8, {"": 500}),
    ],
)
def test_real_archives(real: Path, name: str, shape: tuple[int, ...], dtype: type, counts: dict[str, int]) -> None:
    made = load_entry(name, real)
    listing = scan(made, real)
    assert (listing.layout.shape, listing.layout.dtype) == (shape, dtype)
    assert dict(zip(*np.unique(listing.columns["split"].astype(str), return_counts=True), strict=True)) == counts
    assert listing.notes == ()
    n_classes = {"mnist": 10, "kth-tips": 10, "cifar10-subset": 10, "galaxyzoo2": 2}[name]
    assert len(set(listing.columns["label"])) == n_classes
    thin = np.arange(0, len(listing.columns["item"]), 37)
    found = samples(made, {key: values[thin] for key, values in listing.columns.items()}, real)
    assert not [sample for sample in found if isinstance(sample, RecordError)]
    assert {(sample.shape, sample.dtype) for sample in found} == {(shape, np.dtype(dtype))}


@pytest.mark.realdata
def test_mnist_against_its_bytes(real: Path) -> None:
    made = load_entry("mnist", real)
    listing = scan(made, real)
    for part, split in (("train", "train"), ("t10k", "test")):
        pixels = gzip.decompress((real / f"mnist/{part}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((real / f"mnist/{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
        mine = listing.columns["split"] == split
        assert [int(label) for label in listing.columns["label"][mine]] == list(labels)
        found = samples(made, {name: values[mine] for name, values in listing.columns.items()}, real)
        assert np.stack(found).tobytes() == pixels


def test_a_zip_is_closed_when_nobody_reads_it_any_more(tmp_path):
    container = containers._Zip(write_zip(tmp_path / "a.zip", members(3)))
    opened, stream = container._zip, container.open(container.names[0])
    assert opened.fp is not None
    container.itself = container  # type: ignore[attr-defined]  # as an error's traceback makes it
    del container
    gc.collect()
    assert opened.fp is None
    assert stream.read(), "who has a member open goes on reading it"
    stream.close()
