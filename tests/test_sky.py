"""FITS: images in any packing, where they lie on the sky, masks, cut-outs, maps of the sphere, and damage."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy_healpix import HEALPix
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources import Listing, load_entry, read, scan
from scattercube.pipeline.sources.sky_maps import healpix, wcs
from scattercube.pipeline.spec import parse

RNG = np.random.default_rng(11)
IMAGE = RNG.normal(size=(23, 31)).astype(np.float32)
CUBE = RNG.integers(-99, 99, (3, 23, 31)).astype(np.int16)
PLACE = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 10.0,
    "CRPIX2": 12.0,
    "CDELT1": -0.001,
    "CDELT2": 0.001,
}

Sample = np.ndarray | RecordError


def entry(location: Path | str, **fields: Any) -> Entry:
    base = {"name": "tiny", "title": "tiny", "licence": "CC0-1.0", "reader": "sky", "location": str(location)}
    return parse(Entry, base | fields, "the test", EntryError)


def everything(made: Entry, root: Path = Path()) -> tuple[Listing, list[Sample]]:
    listing = scan(made, root)
    return listing, list(read(made, root, listing.columns))


def arrays(found: list[Sample]) -> list[np.ndarray]:
    assert not [sample for sample in found if isinstance(sample, RecordError)], found
    return [sample for sample in found if isinstance(sample, np.ndarray)]


def reason(sample: Sample) -> str:
    return sample.reason if isinstance(sample, RecordError) else ""


def hdu(data: np.ndarray, name: str = "", kind: Callable[..., Any] = fits.ImageHDU, **cards: Any) -> Any:
    made = kind(data)
    made.header.update(cards)
    if name:
        made.name = name
    return made


def as_bytes(*hdus: Any, checksum: bool = False) -> bytes:
    first = [] if isinstance(hdus[0], fits.PrimaryHDU) else [fits.PrimaryHDU()]
    buffer = io.BytesIO()
    fits.HDUList([*first, *hdus]).writeto(buffer, checksum=checksum)
    return buffer.getvalue()


def primary(data: np.ndarray, **cards: Any) -> Any:
    return hdu(data, kind=fits.PrimaryHDU, **cards)


def compressed(data: np.ndarray, name: str = "", cards: Mapping[str, Any] | None = None, **options: Any) -> Any:
    return hdu(data, name, lambda values: fits.CompImageHDU(values, **options), **(cards or {}))


def write(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def tarred(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


FILES: dict[str, bytes] = {
    "plain.fits": as_bytes(primary(IMAGE)),
    "plain.fits.gz": gzip.compress(as_bytes(primary(IMAGE))),
    "plain.fits.bz2": bz2.compress(as_bytes(primary(IMAGE))),
    "plain.fts.xz": lzma.compress(as_bytes(primary(IMAGE))),
    "rows.fits.fz": as_bytes(compressed(IMAGE, compression_type="GZIP_2", quantize_level=0)),
    "tiles.fits": as_bytes(compressed(IMAGE, compression_type="GZIP_1", quantize_level=0, tile_shape=(10, 7))),
    "extension.FIT": as_bytes(hdu(IMAGE, "SCI")),
    "deep.fits": as_bytes(primary(IMAGE.reshape(1, 1, 23, 31))),
}


def archives(path: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    folder = path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {
        "folder": folder,
        "tar": tarred(path / "a.tar", files),
        "tar.gz": tarred(path / "a.tar.gz", files),
        "zip": zipped(path / "a.zip", files),
    }


class TestImages:
    @pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
    @pytest.mark.parametrize("policy", [{"exact": True}, {"patches": {"size": [8, 9], "stride": [5, 4]}}])
    def test_every_packing_in_every_archive(self, tmp_path: Path, kind: str, policy: dict[str, Any]) -> None:
        made = entry(archives(tmp_path, FILES)[kind], sample=policy)
        listing, found = everything(made)
        columns = listing.columns
        assert set(columns["member"]) == set(FILES)
        assert len(set(columns["sample_id"])) == len(columns["sample_id"])
        height, width = listing.layout.shape
        for index, sample in enumerate(arrays(found)):
            y0, x0 = (int(columns[axis][index]) if axis in columns else 0 for axis in ("y0", "x0"))
            np.testing.assert_array_equal(sample, IMAGE[y0 : y0 + height, x0 : x0 + width])
            assert sample.dtype == listing.layout.dtype == np.dtype("float32")
            assert sample.dtype.isnative
        window = (slice(2, 7), slice(3, 8))
        some = {name: values[1::3] for name, values in columns.items()}
        for piece, sample in zip(read(made, Path(), some, window), found[1::3], strict=True):
            np.testing.assert_array_equal(piece, sample[window])

    def test_items_are_images_and_their_planes_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))], name="CATALOGUE")
        content = as_bytes(hdu(CUBE, "A", BUNIT="Jy"), table, compressed(CUBE + 1, "B"), hdu(CUBE[0] + 2, "C"))
        listing, found = everything(entry(write(tmp_path / "f", x__fits=content)))
        np.testing.assert_array_equal(arrays(found), [*CUBE, *(CUBE + 1), CUBE[0] + 2])
        assert listing.columns["hdu"].tolist() == [*"AAABBBC"]
        assert listing.columns["plane"].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert listing.columns["unit"].tolist() == ["Jy"] * 3 + [""] * 4
        assert listing.columns["sample_id"].tolist() == [f"x.fits#{item}" for item in range(7)]
        assert "HDUs without an image are left out: 2 (CATALOGUE)" in listing.notes[0]

    @pytest.mark.parametrize(
        ("hdus", "expected"),
        [(["a"], "A"), ([3], "D"), (["D", 1], "AD"), (["E"], "EE"), (["A", "nothing"], "A")],
    )
    def test_hdus_are_chosen_by_name_or_number(self, tmp_path: Path, hdus: list[Any], expected: str) -> None:
        content = as_bytes(*(hdu(IMAGE, name) for name in ("A", "B", "D", "E", "E")))
        listing, _ = everything(entry(write(tmp_path / "f", x__fits=content), sky={"hdus": hdus}))
        assert "".join(listing.columns["hdu"]) == expected

    def test_a_file_without_image_is_quarantined_and_says_what_it_holds(self, tmp_path: Path) -> None:
        files = write(tmp_path / "f", a__fits=as_bytes(hdu(IMAGE, "SCI")), b__fits=as_bytes(hdu(IMAGE[0], "LINE")))
        listing, found = everything(entry(files))
        assert len(found) == 2
        assert reason(found[1]) == "wrong-shape"
        assert "b.fits: no image of two dims among its HDUs: 0 image (), 1 LINE (31,)" in str(found[1])
        assert np.isnan(listing.columns["ra"][1])
        with pytest.raises(SourceError, match=r"none of 1 members can be read.*no image"):
            scan(entry(files, members=["b*"]), Path())

    @pytest.mark.parametrize(
        ("stored", "cards", "dtype", "expected"),
        [
            (np.array([[0, 255]], "u1"), {}, "uint8", [0, 255]),
            (np.array([[0, 255]], "u1"), {"BZERO": -128}, "int8", [-128, 127]),
            (np.array([[-5, 7]], "i2"), {}, "int16", [-5, 7]),
            (np.array([[-32768, 32767]], "i2"), {"BZERO": 32768}, "uint16", [0, 65535]),
            (np.array([[-(2**31), 1]], "i4"), {"BZERO": 2**31}, "uint32", [0, 2**31 + 1]),
            (np.array([[-(2**63), 1]], "i8"), {"BZERO": 2**63}, "uint64", [0, 2**63 + 1]),
            (np.array([[-5, 7]], "i4"), {}, "int32", [-5, 7]),
            (np.array([[-5, 7]], "i8"), {}, "int64", [-5, 7]),
            (np.array([[-5, 7]], "i2"), {"BSCALE": 0.5, "BZERO": 10.0}, "float32", [7.5, 13.5]),
            (np.array([[-5, 7]], "i4"), {"BSCALE": 0.5}, "float64", [-2.5, 3.5]),
            (np.array([[-5, 7]], "i2"), {"BLANK": 7}, "float32", [-5, np.nan]),
            (np.array([[0, 7]], "i2"), {"BLANK": 0}, "float32", [np.nan, 7]),
            (np.array([[-5, 7]], "i2"), {"BZERO": 32768, "BLANK": 7}, "float32", [32763, np.nan]),
            (np.array([[-5, 7]], "i4"), {"BLANK": -5, "BSCALE": 2.0}, "float64", [np.nan, 14]),
            (np.array([[1.5, np.nan]], "f4"), {}, "float32", [1.5, np.nan]),
            (np.array([[1.5, 2]], "f8"), {"BSCALE": 2.0, "BZERO": 1.0}, "float64", [4, 5]),
            (np.array([[1.5, 2]], "f4"), {"BLANK": 2}, "float32", [1.5, 2]),
        ],
    )
    def test_stored_numbers_become_values(
        self, tmp_path: Path, stored: np.ndarray, cards: dict[str, Any], dtype: str, expected: list[float]
    ) -> None:
        content = as_bytes(fits.PrimaryHDU(stored))
        lines = "".join(f"{key:<8}= {value!s:>20}".ljust(80) for key, value in cards.items()) + "END"
        at = content.index(b"END" + b" " * 77)
        content = content[:at] + lines.encode().ljust(2880 - at) + content[2880:]
        made = entry(write(tmp_path / "f", x__fits=content), sample={"exact": True, "missing": True})
        listing, found = everything(made)
        np.testing.assert_array_equal(arrays(found)[0], [expected])
        assert arrays(found)[0].dtype == listing.layout.dtype == np.dtype(dtype)

    @pytest.mark.parametrize("missing", [False, True])
    def test_blank_and_nan_are_missing_where_the_entry_allows_it(self, tmp_path: Path, missing: bool) -> None:
        image = IMAGE.copy()
        image[3, 4] = np.nan
        made = entry(
            write(tmp_path / "f", x__fits=as_bytes(primary(image))), sample={"exact": True, "missing": missing}
        )
        _, (sample,) = everything(made)
        if missing:
            np.testing.assert_array_equal(sample, image)
        else:
            assert (reason(sample), "1 pixels are not finite" in str(sample)) == ("non-finite", True)

    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (CUBE[0], {"compression_type": "RICE_1"}),
            (CUBE[0], {"compression_type": "RICE_1", "tile_shape": (7, 11)}),
            (CUBE[0], {"compression_type": "GZIP_1"}),
            (abs(CUBE[0]), {"compression_type": "PLIO_1"}),
            (CUBE[0].astype("i4"), {"compression_type": "HCOMPRESS_1", "tile_shape": (23, 31)}),
            (CUBE[0].astype("u2"), {"compression_type": "RICE_1"}),
            (IMAGE, {"compression_type": "RICE_1", "quantize_level": 16}),
            (np.where(IMAGE > 1, np.nan, IMAGE), {"compression_type": "RICE_1", "quantize_level": 16}),
            (CUBE, {"compression_type": "RICE_1", "tile_shape": (2, 5, 31)}),
        ],
    )
    def test_tiles_are_what_astropy_unpacks(self, tmp_path: Path, data: np.ndarray, options: dict[str, Any]) -> None:
        content = as_bytes(compressed(data, **options), checksum=True)
        with fits.open(io.BytesIO(content)) as file:
            expected = np.array(file[1].data).reshape(-1, 23, 31)
        policy = {"patches": {"size": [9, 8]}, "missing": True}
        listing, found = everything(entry(write(tmp_path / "f", x__fits__fz=content), sample=policy))
        for index, sample in enumerate(arrays(found)):
            item, y0, x0 = (int(listing.columns[name][index]) for name in ("item", "y0", "x0"))
            np.testing.assert_array_equal(sample, expected[item, y0 : y0 + 9, x0 : x0 + 8])
            assert sample.dtype == expected.dtype.newbyteorder("=")

    def test_crop_resize_and_other_sizes(self, tmp_path: Path) -> None:
        files = write(tmp_path / "f", a__fits=as_bytes(primary(IMAGE)), b__fits=as_bytes(primary(IMAGE[:9])))
        _, found = everything(entry(files, sample={"crop": {"size": [11, 12]}}))
        np.testing.assert_array_equal(found[0], IMAGE[6:17, 9:21])
        assert "HDU 0 is 9×31; need at least 11×12" in str(found[1])
        _, found = everything(entry(files))
        assert "b.fits: HDU 0 is 9×31; expected 23×31" in str(found[1])
        made = entry(files, sample={"resize": {"size": [6, 5]}})
        _, found = everything(made)
        assert [sample.shape for sample in arrays(found)] == [(6, 5), (6, 5)]
        window = (slice(1, 4), slice(2, 5))
        for piece, sample in zip(read(made, Path(), scan(made, Path()).columns, window), found, strict=True):
            np.testing.assert_array_equal(piece, sample[window])

    def test_keywords_become_metadata_or_the_label(self, tmp_path: Path) -> None:
        first = fits.PrimaryHDU()
        first.header.update({"FILTER": "r ", "EXPTIME": 30, "DATE-OBS": "2020-01-02"})
        content = as_bytes(first, hdu(IMAGE, "A"), hdu(IMAGE, "B", FILTER="g", EXPTIME="unknown"))
        keywords = {"FILTER": "text", "EXPTIME": "number", "DATE-OBS": "text", "STATUS": "text"}
        files = write(tmp_path / "f", a__fits=content, b__fits=b"no FITS file")
        listing, found = everything(entry(files, sky={"keywords": keywords, "label": "FILTER"}))
        columns = listing.columns
        assert columns["FILTER"].tolist() == columns["label"].tolist() == ["r", "g", ""]
        np.testing.assert_array_equal(columns["EXPTIME"], [30, np.nan, np.nan])
        assert columns["DATE_OBS"].tolist() == ["2020-01-02", "2020-01-02", ""]
        assert columns["STATUS"].tolist() == [""] * 3
        assert [reason(sample) for sample in found] == ["", "", "unreadable"]
        with pytest.raises(EntryError, match=r"sky\.label: no column 'AIRMASS'; there are: .*FILTER"):
            scan(entry(files, sky={"keywords": keywords, "label": "AIRMASS"}), Path())

    def test_position_splits_are_by_the_size_of_each_image(self, tmp_path: Path) -> None:
        content = as_bytes(hdu(IMAGE, "A"), hdu(IMAGE[:, :16], "B"))
        made = entry(
            write(tmp_path / "f", x__fits=content),
            sample={"patches": {"size": [8, 8]}},
            split={"position": {"axis": "x", "boundary": 0.5}},
        )
        columns = scan(made, Path()).columns
        rows = [(columns["hdu"][i], int(columns["x0"][i]), columns["split"][i]) for i in range(len(columns["x0"]))]
        assert set(rows) == {
            ("A", 0, "train"),
            ("A", 8, "unused"),
            ("A", 16, "test"),
            ("B", 0, "train"),
            ("B", 8, "test"),
        }

    def test_a_large_mosaic_is_never_whole_in_memory(self, tmp_path: Path) -> None:
        header = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", 20000), ("NAXIS2", 20000)])
        path = tmp_path / "mosaic.fits"
        with path.open("wb") as file:
            file.write(header.tostring().encode())
            file.truncate(2880 + -(-20000 * 20000 * 4 // 2880) * 2880)
        made = entry(path, sample={"patches": {"size": [256, 256]}})
        tracemalloc.start()
        listing = scan(made, Path())
        rows = {name: values[[0, 3000, 3001, -1]] for name, values in listing.columns.items()}
        found = arrays(list(read(made, Path(), rows)))
        whole = entry(path)
        columns = scan(whole, Path()).columns
        (tile,) = read(whole, Path(), columns, (slice(9000, 9256), slice(19000, 20000)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [sample.shape for sample in found] == [(256, 256)] * 4
        assert tile.shape == (256, 1000)
        assert len(listing.columns["item"]) == 78**2
        assert peak < 40e6

    @pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
    def test_threads_do_not_disturb_each_other(self, tmp_path: Path, kind: str) -> None:
        made = entry(archives(tmp_path, FILES)[kind], sample={"patches": {"size": [8, 9]}})
        columns = scan(made, Path()).columns
        expected = arrays(list(read(made, Path(), columns)))
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: arrays(list(read(made, Path(), columns))), range(16)):
                np.testing.assert_array_equal(found, expected)

    def test_patches_side_by_side_are_read_at_once_and_one_bad_tile_spoils_only_its_own(self, tmp_path: Path) -> None:
        content = as_bytes(compressed(CUBE[0], compression_type="GZIP_1", tile_shape=(8, 8)))
        at = content.rindex(b"\x1f\x8b")  # the last tile's
        content = content[:at] + bytes(12) + content[at + 12 :]
        made = entry(write(tmp_path / "f", x__fits__fz=content), sample={"patches": {"size": [7, 7], "stride": [8, 8]}})
        listing, found = everything(made)
        bad = [index for index, sample in enumerate(found) if reason(sample)]
        assert [(int(listing.columns["y0"][i]), int(listing.columns["x0"][i])) for i in bad] == [(16, 24)]
        assert reason(found[bad[0]]) == "unreadable"


FRAMES = {
    "tan": PLACE,
    "galactic": PLACE | {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CRVAL2": 0.0},
    "turned": {k: v for k, v in PLACE.items() if not k.startswith("CDELT")}
    | {"CD1_1": -8e-4, "CD1_2": 3e-4, "CD2_1": 2e-4, "CD2_2": 9e-4},
    "pc": PLACE | {"PC1_2": 0.2, "PC2_1": -0.1, "RADESYS": "FK5", "EQUINOX": 2000.0},
    "crota": PLACE | {"CROTA2": 12.0, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"},
    "sip": PLACE
    | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2}
    | {"A_2_0": 1e-3, "A_1_1": -5e-4, "B_0_2": 2e-3, "B_1_1": 3e-4},
    "tpv": {k: v for k, v in PLACE.items() if not k.startswith("CDELT")}
    | {"CD1_1": -8e-4, "CD1_2": 3e-4, "CD2_1": 2e-4, "CD2_2": 9e-4}
    | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.01, "PV1_4": 0.3, "PV2_1": 1.0, "PV2_5": 0.2},
    "fk4": PLACE | {"RADESYS": "FK4", "EQUINOX": 1950.0},
    "swapped": PLACE | {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0},
}


def parsed(text: str) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(fits.Header.fromstring(text, sep="\n"))


def of_image(cards: Mapping[str, Any]) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(fits.Header(dict(cards)))


class TestPlaces:
    @pytest.mark.parametrize("frame", FRAMES)
    @pytest.mark.parametrize(
        "policy",
        [
            {"exact": True},
            {"crop": {"size": [10, 13]}},
            {"patches": {"size": [8, 9]}},
            {"resize": {"size": [46, 10]}},
        ],
    )
    def test_samples_lie_where_astropy_says(self, tmp_path: Path, frame: str, policy: dict[str, Any]) -> None:
        content = as_bytes(hdu(IMAGE, "A", **FRAMES[frame]))
        listing, _ = everything(entry(write(tmp_path / "f", x__fits=content), sample=policy))
        columns, original = listing.columns, of_image(FRAMES[frame])
        height, width = listing.layout.shape
        starts = {"exact": (0, 0), "crop": (6, 9), "resize": ((23 / 46 - 1) / 2, (31 / 10 - 1) / 2)}
        step = (23 / 46, 31 / 10) if "resize" in policy else (1, 1)
        for i in range(len(columns["ra"])):
            patch = "patches" in policy
            y0, x0 = (columns["y0"][i], columns["x0"][i]) if patch else starts[next(iter(policy))]
            y, x = y0 + step[0] * (height - 1) / 2, x0 + step[1] * (width - 1) / 2
            centre = original.pixel_to_world(x, y).icrs
            here = SkyCoord(columns["ra"][i], columns["dec"][i], unit="deg")
            assert centre.separation(here).arcsec < 1e-6
            mine = parsed(columns["wcs"][i])
            for at in ((0, 0), (2, 5), (height - 1, width - 1)):
                there = original.pixel_to_world(x0 + step[1] * at[1], y0 + step[0] * at[0])
                assert there.separation(mine.pixel_to_world(at[1], at[0])).arcsec < 1e-6
        area = abs(np.linalg.det(original.pixel_scale_matrix)) * step[0] * step[1]
        np.testing.assert_allclose(columns["pixel_scale"], 3600 * np.sqrt(area), rtol=1e-9)

    def test_polynomials_that_are_not_announced_are_left_out(self) -> None:
        plain = wcs.text_of(fits.Header(PLACE))
        assert wcs.text_of(fits.Header(PLACE | {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3})) == plain

    def test_the_polynomials_of_tpv_are_in_degrees_also_with_cdelt(self) -> None:
        """By hand at one pixel; astropy takes the polynomials to be in pixels there."""
        cards = PLACE | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV1_4": 0.3, "PV2_1": 1.0}
        plain = wcs.text_of(fits.Header(PLACE))
        y, x = np.array([20.0]), np.array([30.0])
        xi = -0.001 * (x - 9)
        moved = wcs.positions(plain, y, 9 + (xi + 0.3 * xi**2) / -0.001)
        np.testing.assert_allclose(wcs.positions(wcs.text_of(fits.Header(cards)), y, x), moved, atol=1e-12)

    @given(
        st.sampled_from(sorted(FRAMES)),
        st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
        st.tuples(st.floats(0.25, 16), st.floats(0.25, 16)),
        st.tuples(st.floats(0, 10), st.floats(0, 10)),
    )
    @settings(deadline=None, max_examples=60)
    def test_a_grid_of_outputs_has_a_text_too(
        self, frame: str, offset: tuple[float, float], step: tuple[float, float], at: tuple[float, float]
    ) -> None:
        text = wcs.text_of(fits.Header(FRAMES[frame]))
        y, x = (start + by * i for start, by, i in zip(offset, step, at, strict=True))
        there = parsed(text).pixel_to_world(x, y)
        assert there.separation(parsed(wcs.regrid(text, offset, step)).pixel_to_world(at[1], at[0])).arcsec < 1e-6

    def test_cubes_have_the_place_of_their_planes(self, tmp_path: Path) -> None:
        third = {"CTYPE3": "VOPT", "CRVAL3": 1.0, "CRPIX3": 1.0, "CDELT3": 5.0, "CUNIT3": "m/s"}
        made = entry(write(tmp_path / "f", x__fits=as_bytes(hdu(CUBE, "A", **PLACE, **third))))
        columns = scan(made, Path()).columns
        assert len(set(columns["ra"])) == 1
        assert parsed(columns["wcs"][0]).naxis == 2
        centre = of_image(PLACE).pixel_to_world(15, 11)
        assert centre.separation(SkyCoord(columns["ra"][0], columns["dec"][0], unit="deg")).arcsec < 1e-6

    @pytest.mark.parametrize(
        ("cards", "has_text"),
        [
            ({}, False),
            (PLACE | {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, False),
            (PLACE | {"PC1_3": 0.5, "CTYPE3": "FREQ"}, False),
            (PLACE | {"CRVAL1": "here"}, False),
            (PLACE | {"CDELT1": "small"}, False),
            (PLACE | {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3, "CTYPE1": "RA---XXX-SIP"}, False),
            (PLACE | {"CTYPE1": "RA---XXX"}, False),
            (PLACE | {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"}, True),
        ],
    )
    def test_without_a_place_on_the_sky_there_is_none(
        self, tmp_path: Path, cards: dict[str, Any], has_text: bool
    ) -> None:
        data = CUBE if "PC1_3" in cards else IMAGE
        columns = scan(entry(write(tmp_path / "f", x__fits=as_bytes(hdu(data, "A", **cards)))), Path()).columns
        assert np.isnan([columns["ra"], columns["dec"]]).all()
        assert bool(columns["wcs"][0]) is has_text
        assert np.isnan(columns["pixel_scale"][0]) != has_text


def masked(**beside: Any) -> dict[str, Any]:
    return {"sky": beside, "sample": {"patches": {"size": [8, 8]}, "missing": True}}


class TestMasks:
    FLAGS = RNG.integers(0, 8, IMAGE.shape).astype(np.int16)
    WEIGHT = np.where(RNG.random(IMAGE.shape) < 0.2, 0, RNG.random(IMAGE.shape)).astype(np.float32)

    @pytest.mark.parametrize("pack", [hdu, compressed])
    @pytest.mark.parametrize(
        ("sky", "bad"),
        [
            ({"mask": {"hdu": "DQ"}}, FLAGS != 0),
            ({"mask": {"hdu": "dq", "bits": 5}}, (FLAGS & 5) != 0),
            ({"mask": {"hdu": "DQ", "invalid": "zero"}}, FLAGS == 0),
            ({"mask": {"hdu": "DQ", "invalid": "zero", "bits": 2}}, (FLAGS & 2) == 0),
            ({"mask": {"hdu": 1}, "hdus": ["SCI"]}, FLAGS != 0),
            ({"weight": {"hdu": "WHT"}, "hdus": ["SCI"]}, WEIGHT == 0),
            ({"weight": {"hdu": 2}, "mask": {"hdu": "DQ", "bits": 1}, "hdus": [1]}, (WEIGHT == 0) | (FLAGS & 1 == 1)),
        ],
    )
    def test_what_they_refuse_is_missing(
        self, tmp_path: Path, pack: Callable[..., Any], sky: dict[str, Any], bad: np.ndarray
    ) -> None:
        exact = {} if pack is hdu else {"quantize_level": 0, "compression_type": "GZIP_2"}
        planes = {"SCI": IMAGE, "DQ": self.FLAGS, "WHT": self.WEIGHT}
        content = as_bytes(*(pack(data, name, **({} if name == "DQ" else exact)) for name, data in planes.items()))
        made = entry(write(tmp_path / "f", x__fits=content), **masked(**({"hdus": ["SCI"]} | sky)))
        listing, found = everything(made)
        expected = np.where(bad, np.nan, IMAGE)
        for index, sample in enumerate(arrays(found)):
            y0, x0 = int(listing.columns["y0"][index]), int(listing.columns["x0"][index])
            np.testing.assert_array_equal(sample, expected[y0 : y0 + 8, x0 : x0 + 8])

    def test_a_mask_that_is_named_is_no_image_and_goes_by_version(self, tmp_path: Path) -> None:
        other = 7 - self.FLAGS
        content = as_bytes(
            hdu(CUBE[0], "SCI", EXTVER=1),
            hdu(self.FLAGS, "DQ", EXTVER=1),
            hdu(CUBE[1], "SCI", EXTVER=2),
            hdu(other, "DQ", EXTVER=2),
        )
        made = entry(
            write(tmp_path / "f", x__fits=content), sky={"mask": {"hdu": "DQ"}}, sample={"exact": True, "missing": True}
        )
        listing, found = everything(made)
        assert listing.layout.dtype == np.float32
        for sample, image, flags in zip(arrays(found), CUBE[:2], (self.FLAGS, other), strict=True):
            np.testing.assert_array_equal(sample, np.where(flags != 0, np.nan, image))

    @pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
    def test_they_may_be_in_files_of_their_own(self, tmp_path: Path, kind: str) -> None:
        files = {
            "a_ood.fits": as_bytes(hdu(self.FLAGS)),
            "a_ooi.fits": as_bytes(hdu(IMAGE)),
            "a_oow.fits": as_bytes(hdu(self.WEIGHT)),
            "b_ooi.fits": as_bytes(hdu(IMAGE)),
            "c_ood.fits": as_bytes(hdu(self.FLAGS[:5])),
            "c_ooi.fits": as_bytes(hdu(IMAGE)),
            "plain.fits": as_bytes(hdu(IMAGE)),
        }
        sky = {"mask": {"replace": "ooi", "by": "ood"}, "weight": {"replace": "ooi", "by": "oow"}}
        made = entry(archives(tmp_path, files)[kind], sky=sky, sample={"exact": True, "missing": True})
        listing, found = everything(made)
        assert listing.columns["member"].tolist() == ["a_ooi.fits", "b_ooi.fits", "c_ooi.fits", "plain.fits"]
        np.testing.assert_array_equal(found[0], np.where((self.FLAGS != 0) | (self.WEIGHT == 0), np.nan, IMAGE))
        assert [reason(sample) for sample in found[1:3]] == ["missing", "wrong-shape"]
        np.testing.assert_array_equal(found[3], IMAGE)

    @pytest.mark.parametrize(
        ("sky", "flags", "message"),
        [
            ({"mask": {"hdu": "BPM"}}, FLAGS, "no image in HDU BPM for HDU 1"),
            ({"mask": {"hdu": "DQ"}}, FLAGS[:5], r"HDU 2 is \(5, 31\), the image \(23, 31\)"),
            ({"mask": {"hdu": "DQ", "bits": 1}}, IMAGE, "flags of dtype float32 have no bits"),
            ({"mask": {"hdu": "DQ", "bits": 1 << 20}}, FLAGS, "bits 1048576 needs larger ones"),
        ],
    )
    def test_one_that_does_not_fit_is_an_error(
        self, tmp_path: Path, sky: dict[str, Any], flags: np.ndarray, message: str
    ) -> None:
        content = as_bytes(hdu(IMAGE, "SCI"), hdu(flags, "DQ"))
        made = entry(write(tmp_path / "f", x__fits=content), **masked(hdus=["SCI"], **sky))
        _, found = everything(made)
        with pytest.raises(RecordError, match=rf"x\.fits.*{message}" if "flags" not in message else message):
            raise found[0]

    def test_a_damaged_mask_is_not_believed(self, tmp_path: Path) -> None:
        content = bytearray(as_bytes(hdu(IMAGE, "SCI"), hdu(self.FLAGS, "DQ"), checksum=True))
        content[-2880] ^= 1
        made = entry(write(tmp_path / "f", x__fits=bytes(content)), **masked(hdus=["SCI"], mask={"hdu": "DQ"}))
        _, found = everything(made)
        assert {reason(sample) for sample in found} == {"unreadable"}


POSITIONS = {
    "name": ["a", "b", "c", "d", "far"],
    "ra": [150.0, 149.996, 149.99, 150.008, 330.0],
    "dec": [2.0, 2.004, 2.002, 2.010, -2.0],
    "kind": ["star", "star", "galaxy", "galaxy", "star"],
    "flux": [1.5, 2.5, 3.5, 4.5, 5.5],
    "split": ["train", "test", "train", "test", "train"],
}


def table_files(path: Path) -> dict[str, Path]:
    rows = zip(*POSITIONS.values(), strict=True)
    text = ",".join(POSITIONS) + "\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    (path / "objects.csv").write_text(text)
    parquet.write_table(pa.table(POSITIONS), path / "objects.parquet")
    formats = {"name": "4A", "kind": "8A", "split": "8A"}
    columns = [fits.Column(n, formats.get(n, "D"), array=np.array(v)) for n, v in POSITIONS.items()]
    content = as_bytes(fits.BinTableHDU.from_columns(columns), checksum=True)
    (path / "objects.fits.gz").write_bytes(gzip.compress(content))
    return {file.name: file for file in path.iterdir()}


class TestCutouts:
    @pytest.mark.parametrize("table", ["objects.csv", "objects.parquet", "objects.fits.gz"])
    @pytest.mark.parametrize("beside", [False, True])
    def test_positions_that_fall_in_an_image_are_samples(self, tmp_path: Path, table: str, beside: bool) -> None:
        folder = write(tmp_path / "f", x__fits=as_bytes(hdu(IMAGE, "A", **PLACE)), y__fits=b"broken")
        table_files(tmp_path if beside else folder)
        sky = {"cutouts": {"table": table, "size": [5, 4]}, "label": "kind"}
        listing, found = everything(entry(folder, members=["x*", "y*"], sky=sky))
        columns = listing.columns
        # a is at the reference pixel, c and b are right of it and higher up; the cut-out of d leaves the image.
        assert columns["name"].tolist() == ["a", "c", "b", ""]
        assert columns["label"].tolist() == ["star", "galaxy", "star", ""]
        assert columns["split"].tolist() == ["train", "train", "test", ""]
        assert columns["flux"].tolist()[:3] == [1.5, 3.5, 2.5]
        assert columns["table_row"].tolist()[:3] == [0, 2, 1]
        corners = [(9, 8), (11, 17), (13, 11)]
        assert list(zip(columns["y0"].tolist(), columns["x0"].tolist(), strict=True))[:3] == corners
        for (y0, x0), sample in zip(corners, arrays(found[:3]), strict=True):
            np.testing.assert_array_equal(sample, IMAGE[y0 : y0 + 5, x0 : x0 + 4])
        assert reason(found[3]) == "unreadable"
        for index in range(3):
            y, x = parsed(columns["wcs"][index]).wcs_world2pix(
                *(POSITIONS[k][columns["table_row"][index]] for k in ("ra", "dec")), 0
            )[::-1]
            assert abs(y - 2) <= 0.5 + 1e-6
            assert abs(x - 1.5) <= 0.5 + 1e-6
        assert len(listing.checksum["table"]) == 64

    @pytest.mark.parametrize("frame", FRAMES)
    def test_finding_is_the_inverse_of_placing(self, frame: str) -> None:
        text = wcs.text_of(fits.Header(FRAMES[frame]))
        y, x = (a.ravel().astype(float) for a in np.mgrid[-3:26:4, -3:34:4])
        ra, dec = wcs.positions(text, y, x)
        rows, found_y, found_x = wcs.find(text, (23, 31), ra, dec)
        inside = np.flatnonzero((y > -0.5) & (x > -0.5) & (y < 22.5) & (x < 30.5))
        np.testing.assert_array_equal(rows, inside)
        np.testing.assert_allclose(found_y, y[inside], atol=1e-3)
        np.testing.assert_allclose(found_x, x[inside], atol=1e-3)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"table": "none.csv"}, SourceError, "none.csv is neither in"),
            ({"table": "none.fits"}, SourceError, "none.fits is neither in"),
            ({"ra": "lon"}, EntryError, "has no column 'lon'; it has name, ra"),
            ({"ra": "kind"}, EntryError, "'kind' of objects.csv holds text; expected degrees"),
            ({"dec": "ra"}, EntryError, "row 0 of objects.csv is at 150.0, 150.0; expected degrees"),
        ],
    )
    def test_what_is_wrong_with_the_table_is_named(
        self, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        folder = write(tmp_path / "f", x__fits=as_bytes(hdu(IMAGE, "A", **PLACE)))
        table_files(folder)
        sky = {"cutouts": {"table": "objects.csv", "size": [5, 4]} | change}
        with pytest.raises(error, match=rf"sky\.cutouts\.table: .*{message}"):
            scan(entry(folder, members=["x.fits"], sky=sky), Path())

    def test_two_positions_in_one_pixel_are_two_samples(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "f", x__fits=as_bytes(hdu(CUBE, "A", **PLACE)))
        (folder / "t.csv").write_text("ra,dec\n150,2\n150.00001,2\n")
        listing, found = everything(entry(folder, members=["x*"], sky={"cutouts": {"table": "t.csv", "size": [5, 5]}}))
        assert len(set(listing.columns["sample_id"])) == 6
        for item in range(3):
            np.testing.assert_array_equal(found[2 * item], CUBE[item, 9:14, 7:12])


def smooth(lon: Any, lat: Any) -> np.ndarray:
    """A function on the sphere; its argument in radians."""
    return np.asarray(1 + np.cos(lat) * np.cos(lon) + 0.5 * np.sin(lat) * np.cos(lat) * np.sin(lon))


def sphere(order: str, nside: int = 64, repeat: int = 1, **cards: Any) -> Any:
    lon, lat = HEALPix(nside, order.lower()).healpix_to_lonlat(np.arange(12 * nside**2))
    values = smooth(lon.rad, lat.rad).astype(np.float32)
    form = "E" if repeat == 1 else f"{repeat}E"
    columns = [
        fits.Column("OTHER", form, array=0 * values.reshape(-1, repeat)),
        fits.Column("SIGNAL", form, array=values.reshape(-1, repeat), unit="mK"),
    ]
    made = fits.BinTableHDU.from_columns(columns)
    made.header.update({"PIXTYPE": "HEALPIX", "ORDERING": order, "NSIDE": nside, "COORDSYS": "G"} | cards)
    return made


TILES = {"tile": 16, "resolution": 90, "column": "signal", "nside": 2}


class TestSphere:
    @pytest.mark.parametrize(("order", "repeat"), [("RING", 1), ("NESTED", 1), ("RING", 1024), ("NESTED", 1024)])
    @pytest.mark.parametrize("kept", [True, False])
    def test_tiles_are_the_function_on_the_sphere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, repeat: int, kept: bool
    ) -> None:
        if not kept:
            monkeypatch.setattr(healpix, "_KEPT_NBYTES", 0)
        made = entry(write(tmp_path / "f", m__fits=as_bytes(sphere(order, repeat=repeat))), sky={"healpix": TILES})
        listing, found = everything(made)
        columns, layout = listing.columns, listing.layout
        assert (layout.shape, layout.spacing, layout.units) == ((16, 16), (90, 90), ("arcmin", "arcmin"))
        assert len(found) == 48
        assert set(columns["unit"]) == {"mK"}
        assert set(columns["pixel_scale"]) == {5400.0}
        y, x = np.mgrid[:16, :16]
        for index in range(0, len(found), 5):
            here = parsed(columns["wcs"][index])
            there = here.pixel_to_world(x, y)
            assert there.frame.name == "galactic"
            np.testing.assert_allclose(arrays(found)[index], smooth(there.l.rad, there.b.rad), atol=4e-3)
            centre = here.pixel_to_world(7.5, 7.5)
            assert centre.separation(SkyCoord(columns["ra"][index], columns["dec"][index], unit="deg")).arcsec < 1e-3
        window = (slice(3, 9), slice(0, 5))
        rows = {name: values[5:9] for name, values in columns.items()}
        for piece, sample in zip(read(made, Path(), rows, window), found[5:9], strict=True):
            np.testing.assert_array_equal(piece, sample[window])

    def test_tiles_leave_no_gaps(self) -> None:
        """Every pixel of the sphere is in a tile of any width, where the number of tiles is not given."""
        lon, lat = HEALPix(32, "ring").healpix_to_lonlat(np.arange(12 * 32**2))
        everywhere = SkyCoord(lon, lat)
        for width in (5, 12, 24, 45, 90):
            n = healpix.fine_enough(np.deg2rad(width))
            centres = SkyCoord(*HEALPix(n, "ring").healpix_to_lonlat(np.arange(12 * n**2)))
            _, apart, _ = everywhere.match_to_catalog_sky(centres)
            assert apart.deg.max() < width / 2

    def test_unseen_pixels_and_masked_ones_are_missing(self, tmp_path: Path) -> None:
        grid = HEALPix(64, "nested", frame="galactic")
        cap = grid.cone_search_lonlat(0 * u.deg, 90 * u.deg, 20 * u.deg)
        table = sphere("NESTED")
        table.data["SIGNAL"][cap] = healpix.UNSEEN
        _, lat = HEALPix(64, "ring").healpix_to_lonlat(np.arange(12 * 64**2))
        south = fits.BinTableHDU.from_columns([fits.Column("OK", "B", array=(lat.deg > -70).astype(np.uint8))])
        south.header.update({"ORDERING": "RING", "NSIDE": 64})
        files = write(tmp_path / "f", sky_map__fits=as_bytes(table), sky_ok__fits=as_bytes(south))
        sky = {"healpix": TILES, "mask": {"replace": "map", "by": "ok", "invalid": "zero"}}
        listing, found = everything(entry(files, sky=sky, sample={"exact": True, "missing": True}))
        assert set(listing.columns["member"]) == {"sky_map.fits"}
        y, x = np.mgrid[:16, :16]
        for index, sample in enumerate(arrays(found)):
            latitude = parsed(listing.columns["wcs"][index]).pixel_to_world(x, y).b.deg
            lost = np.isnan(sample)
            assert lost[(latitude > 71) | (latitude < -71)].all()
            assert not lost[(latitude < 69) & (latitude > -69)].any()
        _, found = everything(entry(files, members=["*map*"], sky={"healpix": TILES}))
        assert {reason(sample) for sample in found} == {"", "non-finite"}

    def test_a_part_of_the_sphere_by_the_numbers_of_its_pixels(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(1).permutation(
            HEALPix(64, "ring").cone_search_lonlat(30 * u.deg, 10 * u.deg, 30 * u.deg)
        )
        lon, lat = HEALPix(64, "ring").healpix_to_lonlat(pixels)
        columns = [fits.Column("PIXEL", "J", array=pixels), fits.Column("SIGNAL", "D", array=smooth(lon.rad, lat.rad))]
        table = fits.BinTableHDU.from_columns(columns)
        table.header.update({"ORDERING": "RING", "NSIDE": 64, "INDXSCHM": "EXPLICIT", "COORDSYS": "C"})
        made = entry(
            write(tmp_path / "f", m__fits=as_bytes(table)),
            sky={"healpix": TILES},
            sample={"exact": True, "missing": True},
        )
        listing, found = everything(made)
        assert listing.layout.dtype == np.float64
        y, x = np.mgrid[:16, :16]
        for index, sample in enumerate(arrays(found)):
            there = parsed(listing.columns["wcs"][index]).pixel_to_world(x, y)
            near = there.separation(SkyCoord(30, 10, unit="deg")).deg
            assert np.isfinite(sample[near < 28]).all()
            assert np.isnan(sample[near > 32]).all()
            np.testing.assert_allclose(sample[near < 28], smooth(there.ra.rad, there.dec.rad)[near < 28], atol=1e-3)

    @pytest.mark.parametrize(
        ("cards", "options", "message"),
        [
            ({"NSIDE": 32}, {}, "NSIDE 32 has 12288"),
            ({"NSIDE": "64"}, {}, "NSIDE is '64'"),
            ({"ORDERING": "NUNIQ"}, {}, "ORDERING 'NUNIQ'"),
            ({}, {"column": "Q"}, "no column 'Q'; there are: OTHER, SIGNAL"),
        ],
    )
    def test_what_is_no_map_is_said(self, tmp_path: Path, cards: Any, options: dict[str, Any], message: str) -> None:
        files = write(tmp_path / "f", m__fits=as_bytes(sphere("RING", **cards)))
        with pytest.raises(SourceError, match=message):
            scan(entry(files, sky={"healpix": TILES | options}), Path())

    def test_a_sphere_of_unknown_frame_has_no_positions_but_by_the_entry(self, tmp_path: Path) -> None:
        table = sphere("RING")
        del table.header["COORDSYS"]
        files = write(tmp_path / "f", m__fits=as_bytes(table), n__fits=b"x")
        listing, found = everything(entry(files, sky={"healpix": TILES}))
        assert np.isnan(listing.columns["ra"]).all()
        assert "no ra and dec" in listing.notes[0]
        assert reason(found[-1]) == "unreadable"
        listing, _ = everything(entry(files, sky={"healpix": TILES | {"frame": "icrs", "nside": 1}}))
        assert (len(listing.columns["ra"]), np.isnan(listing.columns["ra"]).sum()) == (13, 1)


HEAD = "SIMPLE  =                    T" + " " * 50


def header(*cards: str) -> bytes:
    return "".join(card.ljust(80) for card in (*cards, "END")).encode().ljust(2880)


def cards_of(**values: Any) -> list[str]:
    return [f"{key:<8}= {value!s:>20}" for key, value in values.items()]


PIXELS = as_bytes(hdu(IMAGE, "SCI", **PLACE), hdu(CUBE, "CUBE"), checksum=True)
TILED = as_bytes(compressed(CUBE[0], "SCI", PLACE), hdu(IMAGE, "NEXT"), checksum=True)
CUTS = {"PIXELS": PIXELS, "TILED": TILED, "PACKED": gzip.compress(PIXELS), "TIGHT": bz2.compress(TILED)}


def ends_of_images(content: bytes) -> list[int]:
    """Where the data of each HDU with an image end, without what pads them."""
    if not content:
        return []
    with fits.open(io.BytesIO(content), disable_image_compression=True) as file:
        return [part.fileinfo()["datLoc"] + part.size for part in file[1:]]


class TestDamage:
    @pytest.mark.parametrize("which", CUTS)
    @given(data=st.data())
    @settings(deadline=None, max_examples=40)
    def test_a_file_that_ends_early_gives_no_sample(
        self, tmp_path_factory: pytest.TempPathFactory, which: str, data: st.DataObject
    ) -> None:
        content, whole = CUTS[which], {"PIXELS": PIXELS, "TILED": TILED}.get(which, b"")
        size = data.draw(st.integers(0, len(content) - 1))
        # A file that ends with an HDU, or in what pads it, is a file; nothing says that there were more.
        assume(not any(end <= size <= -(-end // 2880) * 2880 for end in ends_of_images(whole)))
        suffix = {"PACKED": ".fits.gz", "TIGHT": ".fits.bz2"}.get(which, ".fits")
        path = tmp_path_factory.mktemp("cut") / f"x{suffix}"
        path.write_bytes(content[:size])
        with pytest.raises(SourceError, match=r"none of 1 members can be read; the first: x\.fits"):
            scan(entry(path), Path())

    @pytest.mark.parametrize("which", ["PIXELS", "TILED"])
    @given(data=st.data())
    @settings(deadline=None, max_examples=60)
    def test_with_checksums_no_bit_is_wrong(
        self, tmp_path_factory: pytest.TempPathFactory, which: str, data: st.DataObject
    ) -> None:
        content = bytearray(CUTS[which])
        at = data.draw(st.integers(2880, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        folder = tmp_path_factory.mktemp("bits")
        (folder / "a.fits").write_bytes(CUTS[which])
        (folder / "b.fits").write_bytes(content)
        listing, found = everything(entry(folder, sky={"hdus": ["SCI"]}))
        good = [sample for sample in found if isinstance(sample, np.ndarray)]
        for sample in good:
            np.testing.assert_array_equal(sample, found[0])
        assert len(found) == 2
        assert np.array_equal(listing.columns["ra"][:1], listing.columns["ra"][1:]) or len(good) == 1

    def test_wrong_checksums_may_be_overlooked(self, tmp_path: Path) -> None:
        content = bytearray(as_bytes(hdu(IMAGE, "SCI"), checksum=True))
        content[-2880] ^= 1
        files = write(tmp_path / "f", x__fits=bytes(content))
        _, (sample,) = everything(entry(files))
        assert "x.fits: HDU 1: its DATASUM is" in str(sample)
        assert "sky.checksum: false" in str(sample)
        _, (sample,) = everything(entry(files, sky={"checksum": False}))
        assert np.count_nonzero(arrays([sample])[0] != IMAGE) == 1

    def test_a_header_that_was_edited_does_not_fit_its_checksum(self, tmp_path: Path) -> None:
        content = as_bytes(hdu(IMAGE, "SCI", BUNIT="Jy"), checksum=True).replace(b"'Jy      '", b"'mJy     '")
        _, (sample,) = everything(entry(write(tmp_path / "f", x__fits=content)))
        assert "HDU 1: it does not fit its CHECKSUM" in str(sample)

    def test_files_whose_last_block_is_short_or_that_fill_a_tape_are_complete(self, tmp_path: Path) -> None:
        content = as_bytes(primary(IMAGE))
        files = write(tmp_path / "f", a__fits=content[: 2880 + IMAGE.nbytes], b__fits=content + bytes(2880 * 9 + 7))
        for sample in arrays(everything(entry(files))[1]):
            np.testing.assert_array_equal(sample, IMAGE)

    @pytest.mark.parametrize(
        ("content", "kind", "message"),
        [
            (b"", "unreadable", "no FITS file"),
            (b"<html>404</html>" * 400, "unreadable", "no FITS file; there is b'<html>404"),
            (HEAD.encode() * 36, "unreadable", "the header of HDU 0 has no END"),
            (HEAD.encode() * 36 * 4000, "unreadable", "the header of HDU 0 has no END"),
            (header(HEAD), "unreadable", "BITPIX is None"),
            (header(HEAD, *cards_of(BITPIX=17, NAXIS=0)), "unreadable", "BITPIX 17"),
            (header(HEAD, *cards_of(BITPIX="'x'", NAXIS=0)), "unreadable", "BITPIX is 'x'"),
            (header(HEAD, *cards_of(BITPIX=8, NAXIS=-1)), "unreadable", "NAXIS is -1"),
            (header(HEAD, *cards_of(BITPIX=8, NAXIS=10**9)), "unreadable", "NAXIS 1000000000"),
            (header(HEAD, *cards_of(BITPIX=8, NAXIS=2, NAXIS1=-4, NAXIS2=4)), "unreadable", "NAXIS1 is -4"),
            (header(HEAD, *cards_of(BITPIX=8, NAXIS=2, NAXIS1=4)), "unreadable", "NAXIS2 is None"),
            (
                header(HEAD, *cards_of(BITPIX=-64, NAXIS=2, NAXIS1=10**9, NAXIS2=10**9)),
                "unreadable",
                "promises data to",
            ),
            (
                header(HEAD, *cards_of(BITPIX=8, NAXIS=2, NAXIS1=9, NAXIS2=9, BSCALE="'x'")) + bytes(2880),
                "unreadable",
                "BSCALE",
            ),
            (as_bytes(primary(IMAGE)) + b"rubbish" * 999, "unreadable", "HDU 1 should begin at byte 5760"),
            (
                as_bytes(primary(IMAGE), hdu(IMAGE)).replace(b"XTENSION", b"EXTENSION"[:8]),
                "unreadable",
                "HDU 1 should begin",
            ),
        ],
    )
    def test_what_headers_promise_is_not_believed(
        self, tmp_path: Path, content: bytes, kind: str, message: str
    ) -> None:
        files = write(tmp_path / "f", a__fits=as_bytes(primary(IMAGE)), b__fits=content)
        tracemalloc.start()
        _, found = everything(entry(files))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [reason(sample) for sample in found] == ["", kind]
        assert message in str(found[1])
        assert str(found[1]).startswith("b.fits: ")
        assert peak < 40e6

    @pytest.mark.parametrize(
        ("cards", "message"),
        [
            ({"ZNAXIS1": 10**9}, "which takes"),
            ({"ZNAXIS1": 10**9, "ZTILE1": 10**9}, "refused as a bomb"),
            ({"ZBITPIX": 9}, "ZBITPIX 9"),
            ({"ZSCALE": 2.0}, "ZSCALE as keywords of compressed tiles"),
            ({"ZCMPTYPE": "ZIP"}, ""),
            ({"ZTILE1": "a"}, "ZTILE1 is 'a'"),
            ({"PCOUNT": 10**12}, "promises data to"),
        ],
    )
    def test_nor_what_those_of_tiles_promise(self, tmp_path: Path, cards: dict[str, Any], message: str) -> None:
        content = as_bytes(compressed(CUBE[0], "SCI"))
        with fits.open(io.BytesIO(content), disable_image_compression=True) as file:
            text = file[1].header
            data = content[file[1].fileinfo()["datLoc"] :]
            text.update(cards)
        changed = content[:2880] + text.tostring().encode() + data
        files = write(tmp_path / "f", a__fits=content, b__fits=changed)
        _, found = everything(entry(files))
        assert [reason(sample) for sample in found] == ["", "too-large" if "bomb" in message else "unreadable"]
        assert message in str(found[1])

    def test_a_tile_that_is_too_large_for_memory_is_not_unpacked(self, tmp_path: Path) -> None:
        """A mosaic in one tile: each window would unpack all of it."""
        height = width = 20000
        tiles = np.zeros(1, [("d", ">i4", 2)])
        cards = {"ZIMAGE": "T", "ZBITPIX": 32, "ZNAXIS": 2, "ZNAXIS1": width, "ZNAXIS2": height}
        cards |= {
            "ZTILE1": width,
            "ZTILE2": height,
            "ZCMPTYPE": "'GZIP_1'",
            "TTYPE1": "'COMPRESSED_DATA'",
            "TFORM1": "'1PB(9)'",
        }
        structure = {"BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "PCOUNT": 1 << 20, "GCOUNT": 1, "TFIELDS": 1}
        extension = header("XTENSION= 'BINTABLE'", *cards_of(**structure | cards))
        path = tmp_path / "x.fits"
        path.write_bytes(
            header(HEAD, *cards_of(BITPIX=8, NAXIS=0)) + extension + tiles.tobytes() + bytes((1 << 20) + 2880)
        )
        made = entry(path, sample={"patches": {"size": [5000, 5000]}})
        _, found = everything(made)
        assert {reason(sample) for sample in found} == {"too-large"}

    def test_a_member_that_unpacks_too_far_is_not_unpacked(self, tmp_path: Path) -> None:
        head = header(HEAD, *cards_of(BITPIX=8, NAXIS=2, NAXIS1=20000, NAXIS2=20000))
        files = {"a.fits": as_bytes(primary(IMAGE)), "b.fits.gz": gzip.compress(head + bytes(1 << 20))}
        _, found = everything(entry(archives(tmp_path, files)["folder"]))
        assert [reason(sample) for sample in found] == ["", "too-large"]
        assert "unpack it first" in str(found[1])

    def test_a_member_that_shrinks_is_noticed(self, tmp_path: Path) -> None:
        files = write(tmp_path / "f", x__fits=as_bytes(hdu(CUBE, "A"), hdu(CUBE, "B")))
        made = entry(files)
        columns = scan(made, Path()).columns
        write(files, x__fits=as_bytes(hdu(CUBE, "A")))
        found = list(read(made, Path(), columns))
        assert [reason(sample) for sample in found] == [""] * 3 + ["missing"] * 3

    def test_other_dtypes_than_the_first_are_quarantined(self, tmp_path: Path) -> None:
        files = write(tmp_path / "f", a__fits=as_bytes(hdu(IMAGE)), b__fits=as_bytes(hdu(CUBE[0])))
        _, found = everything(entry(files))
        assert reason(found[1]) == "wrong-shape"
        assert "dtype int16; the archive's first image has float32" in str(found[1])


class TestEntries:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"reader": "images", "sky": {}}, "sky: is for the reader sky, not images"),
            ({"sky": {"hdu": 1}}, "unknown key 'sky.hdu'; known keys: hdus"),
            ({"sky": {"mask": {"bits": 1}}}, "say where it is: hdu, or replace and by"),
            ({"sky": {"mask": {"hdu": "DQ"}}}, "set sample.missing: true"),
            ({"sky": {"mask": {"hdu": 1}}, "sample": {"exact": True, "missing": True}}, "a number needs hdus"),
            (
                {"sky": {"weight": {"hdu": "W"}}, "sample": {"resize": {"size": [8, 8]}, "missing": True}},
                "would spread when it is resampled",
            ),
            (
                {"sky": {"cutouts": {"table": "t", "size": [8, 8]}}, "sample": {"crop": {"size": [8, 8]}}},
                "cut-outs and tiles say their size themselves",
            ),
            ({"sky": {"cutouts": {"table": "../t", "size": [8, 8]}}}, "without '..'"),
            (
                {"sky": {"cutouts": {"table": "t", "size": [8, 8]}, "healpix": {"tile": 8, "resolution": 1}}},
                "at most one of cutouts and healpix",
            ),
            ({"sky": {"healpix": {"tile": 512, "resolution": 60}}}, "512° wide; gnomonic tiles end at 90°"),
            ({"sky": {"label": "hdu"}, "labels": {"folder": True}}, "give one of labels and sky.label"),
        ],
    )
    def test_what_does_not_fit_is_named(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(EntryError, match=message):
            entry("x", **fields)

    def test_bare_files_are_inferred(self, tmp_path: Path) -> None:
        image = IMAGE.copy()
        image[0, 0] = np.nan
        write(tmp_path / "set/star", a__fits=as_bytes(hdu(image, "SCI"), hdu(CUBE[0], "DQ")))
        write(tmp_path / "set/galaxy", b__fits__fz=as_bytes(compressed(IMAGE[:20], "SCI"), hdu(CUBE[0], "DQ")))
        made = load_entry(str(tmp_path / "set"), tmp_path)
        assert (made.reader, made.sky and made.sky.hdus, made.labels and made.labels.folder) == ("sky", ("SCI",), True)
        assert made.sample.crop
        assert (made.sample.crop.size, made.sample.missing, made.spec.model_dump()["padding"]) == (
            (20, 31),
            True,
            "support",
        )
        listing, found = everything(made)
        assert [sample.shape for sample in arrays(found)] == [(20, 31)] * 2
        assert listing.columns["label"].tolist() == ["galaxy", "star"]

    def test_a_bare_map_of_the_sphere_is_inferred(self, tmp_path: Path) -> None:
        path = tmp_path / "sky.fits.gz"
        path.write_bytes(gzip.compress(as_bytes(sphere("NESTED", nside=16))))
        made = load_entry(str(path), tmp_path)
        assert made.name == "sky"
        _, found = everything(made)
        assert {sample.shape for sample in arrays(found)} == {(64, 64)}

    def test_bare_tables_are_refused(self, tmp_path: Path) -> None:
        table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))])
        path = tmp_path / "x.fits"
        path.write_bytes(as_bytes(table))
        with pytest.raises(SourceError, match="no image among the HDUs of 1 files looked at"):
            load_entry(str(path), tmp_path)

    def test_the_listing_knows_when_the_table_or_a_mask_changes(self, tmp_path: Path) -> None:
        files = write(tmp_path / "f", a_ooi__fits=as_bytes(hdu(IMAGE)), a_ood__fits=as_bytes(hdu(CUBE[0])))
        made = entry(files, sky={"mask": {"replace": "ooi", "by": "ood"}}, sample={"exact": True, "missing": True})
        before = scan(made, Path()).checksum
        write(files, a_ood__fits=as_bytes(hdu(CUBE[:1])))
        assert scan(made, Path()).checksum != before


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "labels", "splits", "missing"),
    [
        ("m17", (64, 64), "float32", {}, {"": 512}, (0.017, 0.018)),
        (
            "kappa-maps",
            (64, 64),
            "float32",
            dict.fromkeys(["20", "49", "90", "128"], 64),
            {"train": 96, "unused": 64, "test": 96},
            (0, 0),
        ),
        (
            "fpack-mosaic",
            (256, 256),
            "int32",
            {f"ccd{n}": 240 for n in (1, 2, 3, 4)},
            {"train": 480, "test": 480},
            (0, 0),
        ),
        (
            "legacysurvey-cutouts",
            (24, 24),
            "float32",
            {"g": 32, "r": 64, "w1": 13, "w2": 13, "z": 132},
            {"": 254},
            (0.06, 0.07),
        ),
        ("wmap", (32, 32), "float32", {}, {"": 192}, (0.36, 0.38)),
    ],
)
def test_real_archives(
    real: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    labels: dict[str, int],
    splits: dict[str, int],
    missing: tuple[float, float],
) -> None:
    listing, found = everything(load_entry(name, real), real)
    columns = listing.columns
    assert (listing.layout.shape, listing.layout.dtype) == (shape, np.dtype(dtype))
    counts = (
        dict(zip(*np.unique(columns[c].astype(str), return_counts=True), strict=True))
        for c in ("split", "label")
        if c in columns
    )
    assert next(counts) == splits
    assert next(counts, {}) == labels
    lost = np.mean([np.isnan(sample).mean() for sample in arrays(found)])
    assert missing[0] <= lost <= missing[1]
    assert np.isnan(columns["ra"]).all() == (name == "kappa-maps")


@pytest.mark.realdata
@pytest.mark.parametrize(("folder", "n_images"), [("fits", 70), ("fits/kappa", 4)])
def test_every_real_image_is_what_astropy_reads(real: Path, folder: str, n_images: int) -> None:
    """But for the last bit of what is scaled: astropy does that in the precision of the result."""
    compared = 0
    for path in sorted((real / folder).glob("*.f*")):
        if "wmap" in path.name or "ligo" in path.name:
            continue  # maps of the sphere
        policy = {"crop": {"size": [90, 90]}, "missing": True}
        made = entry(folder, members=[path.name], sky={"checksum": False}, sample=policy)
        listing, found = everything(made, real)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path) as file:
                parts = [part for part in file if part.is_image and part.data is not None]
                images = [plane for part in parts for plane in np.array(part.data).reshape(-1, *part.shape[-2:])]
        for sample, image in zip(arrays(found), images, strict=True):
            y0, x0 = (image.shape[0] - 90) // 2, (image.shape[1] - 90) // 2
            np.testing.assert_allclose(sample, image[y0 : y0 + 90, x0 : x0 + 90], rtol=2e-7)
            assert sample.dtype == listing.layout.dtype == image.dtype.newbyteorder("=")
            compared += 1
    assert compared == n_images


@pytest.mark.realdata
def test_m17_is_where_it_is(real: Path) -> None:
    """The brightest patches are around the nebula: 18h20.8m, −16°10'."""
    listing, found = everything(load_entry("m17", real), real)
    level = np.array([np.nanmedian(sample) for sample in arrays(found)])
    bright = np.argsort(level)[-8:]
    there = SkyCoord(listing.columns["ra"][bright], listing.columns["dec"][bright], unit="deg")
    assert there.separation(SkyCoord("18h20m47s", "-16d10m18s")).arcmin.max() < 12
