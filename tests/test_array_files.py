"""Arrays in HDF5, netCDF, Zarr and Parquet, and signals and volumes in any of them: contract, damage, and traps."""

import io
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import zarr
from numcodecs import Pickle
from pyarrow import parquet
from scipy.io import netcdf_file
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources import load_entry, read, scan
from scattercube.pipeline.sources.archives import containers
from scattercube.pipeline.sources.array_files import pages
from scattercube.pipeline.spec import parse
from tests.test_sources import (
    CLASSES,
    IMAGES,
    encoded,
    entry,
    everything,
    idx,
    npy,
    png,
    reason,
    samples,
    write_folder,
    write_tar,
    write_zip,
    written,
)

LABELS = {"column": "kind"}
PLAIN = {"compression": "none", "use_dictionary": False}
ONE = {"variable": "images"}
WEIGHTS = np.linspace(0, 1, len(IMAGES))
NOISE = np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32)


def arrays(path: Path | str, options: dict[str, Any] | None = None, **fields: Any) -> Entry:
    return entry(path, "arrays", arrays=options, **fields)


def h5(path: Path, images: np.ndarray = IMAGES, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **options)
        file["kind"] = CLASSES[: len(images)]
        file["more/weight"] = WEIGHTS[: len(images)]
    return path


def nc4(path: Path) -> Path:
    """What netCDF-4 writes: dimensions are scales, some without values."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", data=IMAGES, chunks=(2, 5, 6), compression="gzip", shuffle=True)
        file["kind"] = np.array(CLASSES, "S3")
        for axis, name in enumerate(("n", "y", "x")):
            file[name] = np.arange(IMAGES.shape[axis]) * 0.5
            file[name].make_scale("This is a netCDF dimension but not a netCDF variable.  7" if name == "n" else name)
            images.dims[axis].attach_scale(file[name])
        file["y"].attrs["units"] = np.bytes_("m")
    return path


def nc3(path: Path, records: bool = False, version: int = 1) -> Path:
    with netcdf_file(path, "w", version=version) as file:
        file.createDimension("n", None if records else len(IMAGES))
        for name, size in (("length", 3), ("y", 5), ("x", 6)):
            file.createDimension(name, size)
        file.createVariable("images", "i2", ("n", "y", "x"))[:] = IMAGES
        file.createVariable("kind", "S1", ("n", "length"))[:] = np.array([list(name) for name in CLASSES], "S1")
        file.createVariable("weight", "f8", ("n",))[:] = WEIGHTS
        if not records:  # SciPy would write it into a record
            file.createVariable("count", "i4", ())[()] = 7
    return path


def store(path: Path, version: int = 3, images: np.ndarray = IMAGES, **options: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("images", data=images, **options)
    group.create_array("kind", shape=(len(CLASSES),), dtype=str)[:] = np.array(CLASSES, object)
    group.create_array("more/weight", data=WEIGHTS)
    return path


def files_of(path: Path, top: str = "") -> dict[str, bytes]:
    return {f"{top}{file.relative_to(path)}": file.read_bytes() for file in path.rglob("*") if file.is_file()}


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def photos(images: Sequence[np.ndarray | None] = IMAGES, labels: Sequence[Any] = CLASSES) -> pa.Table:
    """What Hugging Face writes."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if image is None else {"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)]
    return pa.table({"image": pa.array(rows, kind), "kind": labels})


def lists(images: np.ndarray = IMAGES) -> pa.Table:
    flat = pa.array([image.ravel().tolist() for image in images], pa.list_(pa.uint8()))
    return pa.table({"images": flat, "kind": CLASSES[: len(images)]})


def fixed(images: np.ndarray = IMAGES) -> pa.Table:
    values = pa.array(images.ravel())
    nested = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(values, 6), 5)
    return pa.table({"images": nested, "kind": pa.array(CLASSES).dictionary_encode()})


# One row a kind of file: how to write IMAGES with CLASSES.
BUILDERS: dict[str, Callable[[Path], Entry]] = {
    "h5": lambda p: arrays(h5(p / "a.h5"), labels=LABELS),
    "h5 in chunks": lambda p: arrays(h5(p / "a.hdf5", chunks=(2, 3, 4), compression="gzip"), ONE, labels=LABELS),
    "h5 with checksums": lambda p: arrays(h5(p / "a.he5", chunks=(3, 5, 6), fletcher32=True), labels=LABELS),
    "h5 in a tar": lambda p: arrays(
        write_tar(p / "a.tar", {"b/a.h5": h5(p / "x").read_bytes()}), {"variable": "/images"}, labels=LABELS
    ),
    "h5 in a tar.gz": lambda p: arrays(write_tar(p / "a.tar.gz", {"a.h5": h5(p / "x").read_bytes()}), labels=LABELS),
    "h5 in a zip": lambda p: arrays(write_zip(p / "a.zip", {"a.h5": h5(p / "x").read_bytes()}), labels=LABELS),
    "netCDF-4": lambda p: arrays(nc4(p / "a.nc"), labels=LABELS),
    "netCDF": lambda p: arrays(nc3(p / "a.nc"), labels=LABELS),
    "netCDF with records": lambda p: arrays(nc3(p / "a.nc", records=True), labels=LABELS),
    "netCDF, 64 bits": lambda p: arrays(nc3(p / "a.nc", version=2), labels=LABELS),
    "netCDF in a tar.gz": lambda p: arrays(
        write_tar(p / "a.tar.gz", {"a.nc": nc3(p / "x").read_bytes()}), labels=LABELS
    ),
    "Zarr": lambda p: arrays(store(p / "a.zarr", chunks=(2, 5, 3)), labels=LABELS),
    "Zarr in shards": lambda p: arrays(store(p / "a.zarr", chunks=(1, 5, 3), shards=(4, 5, 6)), labels=LABELS),
    "Zarr 2": lambda p: arrays(store(p / "a.zarr", 2, chunks=(2, 5, 6)), labels=LABELS),
    "Zarr below a folder": lambda p: arrays(store(p / "f" / "a.zarr").parent, labels=LABELS),
    "Zarr as a zip": lambda p: arrays(write_zip(p / "a.zarr.zip", files_of(store(p / "s"))), labels=LABELS),
    "Zarr in a tar": lambda p: arrays(write_tar(p / "a.tar", files_of(store(p / "s", 2), "b/a.zarr/")), labels=LABELS),
    "Parquet": lambda p: arrays(table(p / "a.parquet", photos(), row_group_size=3), labels=LABELS),
    "Parquet of lists": lambda p: arrays(
        table(p / "a.parquet", lists(), row_group_size=4), {"shape": [5, 6]}, labels=LABELS
    ),
    "Parquet of fixed lists": lambda p: arrays(table(p / "a.parquet", fixed()), labels=LABELS),
    "Parquet in a zip": lambda p: arrays(
        write_zip(p / "a.zip", {"a.parquet": table(p / "x", photos()).read_bytes()}), labels=LABELS
    ),
}


@pytest.fixture(params=BUILDERS)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Entry:
    return BUILDERS[request.param](tmp_path)


class TestContract:
    def test_scan_agrees_with_read_and_both_with_what_was_written(self, archive: Entry) -> None:
        listing, found = everything(archive)
        assert (listing.layout.dims, listing.layout.shape) == (("y", "x"), IMAGES.shape[1:])
        assert {(sample.shape, sample.dtype) for sample in found} == {(listing.layout.shape, listing.layout.dtype)}
        np.testing.assert_array_equal(np.stack(found), IMAGES)
        assert listing.columns["label"].tolist() == CLASSES
        assert listing.columns["item"].tolist() == list(range(len(IMAGES)))
        assert len(set(listing.columns["sample_id"])) == len(IMAGES)

    def test_any_slices_and_windows_equal_the_whole(self, archive: Entry) -> None:
        columns = scan(archive, Path()).columns
        for order in (slice(None), slice(None, None, -1), slice(None, None, 3), slice(1, 5)):
            rows = {name: values[order] for name, values in columns.items()}
            np.testing.assert_array_equal(np.stack(samples(archive, rows)), IMAGES[order])
            for window in ((slice(1, 4), slice(2, 6)), (slice(4, 5), slice(0, 1))):
                part = list(read(archive, Path(), rows, window))
                np.testing.assert_array_equal(np.stack(part), IMAGES[order][:, window[0], window[1]])

    def test_patches_are_parts_of_images(self, archive: Entry, request: pytest.FixtureRequest) -> None:
        cut = parse(Entry, archive.model_dump(mode="json") | {"sample": {"patches": {"size": [2, 3]}}}, "t", EntryError)
        if "Parquet" in request.node.name and "lists" not in request.node.name:
            with pytest.raises(EntryError, match="encoded images in a table differ in size"):
                scan(cut, Path())
            return
        listing, found = everything(cut)
        assert len(found) == 4 * len(IMAGES)
        for y0, x0, item, sample in zip(*(listing.columns[n] for n in ("y0", "x0", "item")), found, strict=True):
            np.testing.assert_array_equal(sample, IMAGES[item, y0 : y0 + 2, x0 : x0 + 3])

    def test_threads_do_not_disturb_each_other(self, archive: Entry) -> None:
        columns = scan(archive, Path()).columns
        gate = threading.Barrier(2)

        def one_by_one(order: Sequence[int]) -> list[np.ndarray | RecordError]:
            gate.wait()
            return [samples(archive, {n: v[row : row + 1] for n, v in columns.items()})[0] for row in order]

        with ThreadPoolExecutor(2) as pool:
            up, down = pool.map(one_by_one, (range(len(IMAGES)), range(len(IMAGES))[::-1]))
        np.testing.assert_array_equal(np.stack(up), IMAGES)
        np.testing.assert_array_equal(np.stack(down[::-1]), IMAGES)

    def test_listing_is_the_same_again_and_another_after_a_change(self, archive: Entry) -> None:
        first, second = scan(archive, Path()), scan(archive, Path())
        assert first.checksum == second.checksum
        place = Path(archive.location)
        for file in place.rglob("*") if place.is_dir() else [place]:
            os.utime(file, ns=(1, 1))
        assert scan(archive, Path()).checksum != first.checksum

    def test_what_breaks_off_is_refused_or_right(self, archive: Entry) -> None:
        place = Path(archive.location)
        files = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
        for file in files[:: max(1, len(files) // 6)]:
            whole = file.read_bytes()
            for length in {0, 1, len(whole) // 3, len(whole) * 9 // 10, len(whole) - 5, len(whole) - 1}:
                file.write_bytes(whole[: max(0, length)])
                try:
                    listing, found = everything(archive)
                except (SourceError, EntryError):
                    continue
                for item, sample in zip(listing.columns["item"], found, strict=True):
                    if not isinstance(sample, RecordError):
                        np.testing.assert_array_equal(sample, IMAGES[item])
                        assert listing.columns["label"][item] == CLASSES[item]
            file.write_bytes(whole)


SIGNALS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "npy": lambda p, x: written(p / "a.npy", npy(x)),
    "idx": lambda p, x: written(p / "a.idx", idx(x)),
    "h5": lambda p, x: h5(p / "a.h5", x, chunks=tuple(-(-size // 2) for size in x.shape)),
    "zarr": lambda p, x: store(p / "a.zarr", images=x, chunks=tuple(-(-size // 3) for size in x.shape)),
    "parquet": lambda p, x: table(p / "a.parquet", {"images": x.reshape(len(x), -1).tolist()}),
}


class TestAxes:
    @pytest.mark.parametrize("kind", SIGNALS)
    def test_signals_in_time(self, tmp_path: Path, kind: str) -> None:
        path = SIGNALS[kind](tmp_path, NOISE)
        options = {"dims": ["sample", "time"], "rate": 8.0} | ({} if kind in ("npy", "idx") else ONE)
        made = entry(path, "idx" if kind == "idx" else "arrays", arrays=options)
        listing, found = everything(made)
        layout = listing.layout
        assert (layout.dims, layout.shape, layout.spacing, layout.units) == (("time",), (40,), (1 / 8,), ("s",))
        np.testing.assert_array_equal(np.stack(found).astype(np.float32), NOISE)
        part = list(read(made, Path(), listing.columns, (slice(7, 31),)))
        np.testing.assert_array_equal(np.stack(part).astype(np.float32), NOISE[:, 7:31])

    @pytest.mark.parametrize("kind", SIGNALS)
    def test_volumes(self, tmp_path: Path, kind: str) -> None:
        x = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
        options = {"dims": ["sample", "z", "y", "x"]} | ({} if kind in ("npy", "idx") else ONE)
        options |= {"shape": [3, 4, 6]} if kind == "parquet" else {}
        made = entry(SIGNALS[kind](tmp_path, x), "idx" if kind == "idx" else "arrays", arrays=options)
        listing, found = everything(made)
        assert (listing.layout.dims, listing.layout.units) == (("z", "y", "x"), ("voxel",) * 3)
        np.testing.assert_array_equal(np.stack(found).astype(np.float32), x)
        window = (slice(1, 3), slice(0, 4), slice(2, 3))
        part = list(read(made, Path(), listing.columns, window))
        np.testing.assert_array_equal(np.stack(part).astype(np.float32), x[(slice(None), *window)])

    @pytest.mark.parametrize("kind", ["npy", "h5", "zarr"])
    @pytest.mark.parametrize(
        "dims",
        [
            ["sample", "y", "x", "channel"],
            ["channel", "x", "sample", "y"],
            ["y", "sample", "x", "sample"],
            ["time", "sample", "channel", "sample"],
        ],
        ids="-".join,
    )
    def test_axes_in_any_order(self, tmp_path: Path, kind: str, dims: list[str]) -> None:
        x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
        made = arrays(SIGNALS[kind](tmp_path, x), {"dims": dims} | ({} if kind == "npy" else ONE), sample=KEPT)
        listing, found = everything(made)
        own = [axis for axis, dim in enumerate(dims) if dim == "sample"]
        inner = [dims.index(dim) for dim in ("channel", "time", "y", "x") if dim in dims]
        expected = x.transpose([*own, *inner]).reshape(-1, *(x.shape[axis] for axis in inner))
        assert listing.layout.dims == tuple(dims[axis] for axis in inner)
        np.testing.assert_array_equal(np.stack(found), expected)
        window = tuple(slice(1, size) for size in listing.layout.signal_shape)
        part = list(read(made, Path(), listing.columns, window))
        channels = [slice(None)] * ("channel" in dims)
        np.testing.assert_array_equal(np.stack(part), expected[(slice(None), *channels, *window)])

    def test_one_signal_a_file(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {f"{i}.npy": npy(row) for i, row in enumerate(NOISE)})
        listing, found = everything(arrays(path, {"dims": ["time"]}))
        assert listing.layout.units == ("sample",)
        np.testing.assert_array_equal(np.stack(found), NOISE)

    @pytest.mark.parametrize("kind", ["npy", "h5", "zarr"])
    def test_segments(self, tmp_path: Path, kind: str) -> None:
        options = {"dims": ["sample", "time"], "rate": 10.0} | ({} if kind == "npy" else ONE)
        path = SIGNALS[kind](tmp_path, NOISE)
        listing, found = everything(arrays(path, options, sample={"segments": {"seconds": 1.2, "hop": 0.7}}))
        starts = list(range(0, 29, 7))
        assert listing.columns["start"].tolist() == starts * len(NOISE)
        np.testing.assert_array_equal(listing.columns["t0"], np.array(starts * len(NOISE)) / 10)
        assert listing.columns["sample_id"][6].endswith("#1@7")
        expected = [row[start : start + 12] for row in NOISE for start in starts]
        np.testing.assert_array_equal(np.stack(found), expected)

    def test_clips_stand_in_the_middle(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.npy": npy(NOISE), "b.npy": npy(NOISE[:, :7])})
        options = {"dims": ["sample", "time"], "rate": 10.0}
        made = arrays(path, options, sample={"clip": {"seconds": 1.0}})
        listing, found = everything(made)
        np.testing.assert_array_equal(np.stack(found[:6]), NOISE[:, 15:25])
        np.testing.assert_array_equal(np.stack(found[6:]), np.pad(NOISE[:, :7], ((0, 0), (1, 2))))
        part = list(read(made, Path(), listing.columns, (slice(1, 8),)))
        np.testing.assert_array_equal(np.stack(part), np.stack(found)[:, 1:8])

    def test_too_short_for_a_segment(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.npy": npy(NOISE), "b.npy": npy(NOISE[:, :7])})
        options = {"dims": ["sample", "time"], "rate": 10.0}
        _, found = everything(arrays(path, options, sample={"segments": {"seconds": 2.0}}))
        assert [reason(sample) for sample in found] == [""] * 12 + ["wrong-shape"] * 6
        assert "b.npy: 7; need at least 20" in str(found[-1])

    def test_arrays_as_channels(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["wind/u"], file["wind/v"] = IMAGES.astype(np.int16), IMAGES.astype(np.float32) + 0.5
        listing, found = everything(arrays(tmp_path / "a.h5", {"variable": ["wind/u", "wind/v"]}))
        layout = listing.layout
        assert (layout.dims, layout.channels, layout.dtype) == (("channel", "y", "x"), ("u", "v"), np.float32)
        np.testing.assert_array_equal(np.stack(found), np.stack([IMAGES, IMAGES + 0.5], 1))
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file["wind/w"] = IMAGES[:3]
        with pytest.raises(SourceError, match=r"a\.h5: wind/w is \(3, 5, 6\), wind/u \(7, 5, 6\); channels are alike"):
            scan(arrays(tmp_path / "a.h5", {"variable": ["wind/u", "wind/w"]}), Path())

    def test_three_arrays_are_no_colours(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name in "uvw":
                file[name] = IMAGES
        layout = scan(arrays(tmp_path / "a.h5", {"variable": ["u", "v", "w"]}), Path()).layout
        assert layout.channels == ("u", "v", "w")

    def test_which_array_must_be_certain(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a"], file["b/c"], file["d"] = IMAGES, IMAGES[0], WEIGHTS
        with pytest.raises(EntryError, match=r"several arrays of numbers with 2 or 3 axes: a 7×5×6, b/c 5×6; name the"):
            scan(arrays(tmp_path / "a.h5"), Path())
        with pytest.raises(SourceError, match=r"a\.h5: no array 'e'; it has a 7×5×6, d 7, b/c 5×6"):
            scan(arrays(tmp_path / "a.h5", {"variable": "e"}), Path())
        with pytest.raises(SourceError, match=r"no array of numbers with 4 axes; it has a 7×5×6"):
            scan(arrays(tmp_path / "a.h5", {"dims": ["sample", "z", "y", "x"]}), Path())
        with pytest.raises(SourceError, match=r"d: shape \(7,\); expected \(\[sample,\] y, x\); name its axes"):
            scan(arrays(tmp_path / "a.h5", {"variable": "d"}), Path())
        assert scan(arrays(tmp_path / "a.h5", {"variable": "b/c"}), Path()).columns["item"].tolist() == [0]

    def test_npy_has_no_variables(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.npy", npy(IMAGES))
        with pytest.raises(SourceError, match=r"a\.npy: no array 'x'; it has one of no name 7×5×6"):
            scan(arrays(path, {"variable": "x"}), Path())

    @pytest.mark.parametrize(
        ("options", "sample", "message"),
        [
            ({"dims": ["sample", "y"]}, None, "dims: sample, y; expected y and x, or time"),
            ({"dims": ["y", "x", "y"]}, None, "dims: y, x, y names one twice"),
            ({"dims": ["y", "x"], "channel_axis": "last"}, None, "give one of dims and channel_axis"),
            ({"dims": ["y", "x"], "rate": 3.0}, None, "rate: only time has one"),
            ({"variable": ["a", "b"], "dims": ["channel", "y", "x"]}, None, "variable: several are channels already"),
            ({"variable": []}, None, "variable"),
            ({"dims": ["time"]}, {"crop": {"size": [2, 2]}}, "crop, resize and patches are for images"),
            ({"dims": ["z", "y", "x"]}, {"patches": {"size": [2, 2]}}, "volumes are taken as they are"),
            ({"dims": ["time"]}, {"segments": {"seconds": 1.0}}, "in seconds; give arrays.rate"),
            (None, {"segments": {"seconds": 1.0}}, "clip and segments are for recordings"),
        ],
    )
    def test_options_that_make_no_sense(self, options: Any, sample: Any, message: str) -> None:
        with pytest.raises(EntryError, match=message):
            arrays("a.npy", options, **({"sample": sample} if sample else {}))

    def test_other_members_must_be_alike(self, tmp_path: Path) -> None:
        files = {
            "0.npy": NOISE,
            "1.npy": NOISE[:, :5],
            "2.npy": NOISE.astype("f8"),
            "3.npy": NOISE[0],
            "4.npy": NOISE[:2],
        }
        path = write_folder(tmp_path / "f", {name: npy(x) for name, x in files.items()})
        _, found = everything(arrays(path, {"dims": ["sample", "time"]}))
        assert [reason(x) for x in found] == [""] * 6 + ["wrong-shape"] * 13 + [""] * 2

    def test_spacing_is_that_of_even_coordinates(self, tmp_path: Path) -> None:
        layout = scan(arrays(nc4(tmp_path / "a.nc")), Path()).layout
        assert (layout.spacing, layout.units) == ((0.5, 0.5), ("m", "1"))

    def test_columns_and_labels_along_one_of_several_axes(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
        with netcdf_file(tmp_path / "a.nc", "w") as file:
            for name, size in (("month", 2), ("level", 3), ("y", 4), ("x", 5)):
                file.createDimension(name, size)
            file.createVariable("t", "f8", ("month", "level", "y", "x"))[:] = x
            file.createVariable("month", "i4", ("month",))[:] = [1, 7]
            file.createVariable("level", "f4", ("level",))[:] = [200.5, 500, 850]
            file.createVariable("height", "f4", ("level",))[:] = [12, 5, 1]
            file.createVariable("place", "i4", ("month", "level"))[:] = [[0, 1, 2], [3, 4, 5]]
        listing, found = everything(
            arrays(
                tmp_path / "a.nc",
                {
                    "variable": "t",
                    "dims": ["sample", "sample", "y", "x"],
                    "columns": {"month": "text", "level": "number", "place": "number"},
                },
                sample={"patches": {"size": [2, 5]}},
                labels={"column": "height"},
                split={"column": "month", "rename": {"1": "train", "7": "test"}},
            )
        )
        columns = listing.columns
        np.testing.assert_array_equal(np.stack(found), x.reshape(12, 2, 5))
        assert columns["split"].tolist() == ["train"] * 6 + ["test"] * 6
        assert columns["month"].tolist() == ["1"] * 6 + ["7"] * 6
        assert columns["label"].tolist() == ["12.0", "12.0", "5.0", "5.0", "1.0", "1.0"] * 2
        np.testing.assert_array_equal(columns["level"], np.tile(np.repeat([200.5, 500, 850], 2), 2))
        np.testing.assert_array_equal(columns["place"], np.repeat(np.arange(6), 2))

    def test_metadata_of_a_member_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.h5": h5(tmp_path / "x").read_bytes(), "b.h5": b"no"})
        columns = {"more/weight": "number", "kind": "text"}
        listing, found = everything(arrays(path, ONE | {"columns": columns}, labels=LABELS))
        np.testing.assert_array_equal(listing.columns["weight"], [*WEIGHTS, np.nan])
        assert listing.columns["kind"].tolist() == [*CLASSES, ""] == listing.columns["label"].tolist()
        assert [reason(sample) for sample in found] == [""] * 7 + ["unreadable"]
        with pytest.raises(EntryError, match=r"arrays\.columns: kind holds text"):
            scan(arrays(path, ONE | {"columns": {"kind": "number"}}), Path())

    def test_labels_that_are_not_there_or_do_not_fit(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5")
        with pytest.raises(EntryError, match=r"labels\.column: a\.h5: no array 'sort'; it has images 7×5×6, kind 7"):
            scan(arrays(path, labels={"column": "sort"}), Path())
        with h5py.File(path, "a") as file:
            file["sort"] = WEIGHTS[:3]
        with pytest.raises(EntryError, match=r"sort: shape \(3,\); its items are \(7,\), a value for each"):
            scan(arrays(path, labels={"column": "sort"}), Path())

    def test_a_table_of_labels_beside_arrays_is_no_array(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.npy": npy(IMAGES[0]), "b.npy": npy(IMAGES[1])})
        table(path / "labels.parquet", {"id": ["a", "b"], "kind": ["x", "y"]})
        labels = {"table": {"file": "labels.parquet", "key": "id", "match": "stem", "label": "kind"}}
        listing = scan(arrays(path, labels=labels), Path())
        assert listing.columns["label"].tolist() == ["x", "y"]


KEPT = {"exact": True, "channels": "keep"}


class TestValues:
    """The CF conventions: how stored numbers become values, and which of them are missing."""

    def write(self, path: Path, numbers: np.ndarray, attributes: dict[str, Any], kind: str) -> Path:
        if kind == "netCDF":
            with netcdf_file(path / "a.nc", "w") as file:
                for name, size in zip("nyx", numbers.shape, strict=True):
                    file.createDimension(name, size)
                variable = file.createVariable("images", numbers.dtype, tuple("nyx"))
                variable[:] = numbers
                for name, value in attributes.items():
                    setattr(variable, name, value)
            return path / "a.nc"
        if kind == "HDF5":
            with h5py.File(path / "a.h5", "w") as file:
                file["images"] = numbers
                plain = {n: np.bytes_(v) if isinstance(v, str) else v for n, v in attributes.items()}
                file["images"].attrs.update(plain)
            return path / "a.h5"
        group = zarr.open_group(path / "a.zarr", mode="w", zarr_format=int(kind[-1]))
        plain = {n: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for n, v in attributes.items()}
        group.create_array("images", data=numbers, attributes=plain)
        return path / "a.zarr"

    @pytest.mark.parametrize("kind", ["netCDF", "HDF5", "Zarr 2", "Zarr 3"])
    @pytest.mark.parametrize(
        ("dtype", "attributes", "out"),
        [
            ("i2", {"scale_factor": 0.5, "add_offset": np.float64(10)}, "f4"),
            ("i2", {"scale_factor": -1e-3, "add_offset": 1e6}, "f8"),
            ("i1", {"_FillValue": np.int8(3)}, "f4"),
            ("i4", {"_FillValue": np.int32(3), "missing_value": np.array([5, 6], "i4"), "scale_factor": 2.0}, "f8"),
            ("f4", {"missing_value": np.float32(7)}, "f4"),
            ("f8", {"valid_range": np.array([2.0, 20.0])}, "f8"),
            ("i2", {"valid_min": np.int16(2), "valid_max": np.int16(9), "scale_factor": 0.25}, "f4"),
            ("i2", {"valid_range": np.array([-2.0, -0.5]), "scale_factor": -0.25}, "f4"),
            ("i1", {"_Unsigned": "true", "_FillValue": np.int8(-1)}, "f4"),
            ("i1", {"_Unsigned": "true"}, "u1"),
            ("i2", {"_FillValue": np.float64(np.nan)}, "i2"),
            ("i2", {"units": "K", "long_name": "x"}, "i2"),
        ],
    )
    def test_packing(self, tmp_path: Path, kind: str, dtype: str, attributes: dict[str, Any], out: str) -> None:
        numbers = np.arange(-6, 24).reshape(2, 3, 5).astype(dtype)
        if kind != "HDF5" and out == "i2" and "_FillValue" in attributes:
            pytest.skip("JSON has no NaN, and SciPy would not write it")
        path = self.write(tmp_path, numbers, attributes, kind)
        listing, found = everything(arrays(path, ONE, sample={"exact": True, "missing": True}))
        a = attributes
        raw = numbers.view(f"u{numbers.itemsize}") if "_Unsigned" in a else numbers
        scale, offset = a.get("scale_factor", 1), a.get("add_offset", 0)
        expected = raw.astype(float) * scale + offset
        for name in ("_FillValue", "missing_value"):
            if np.isfinite(fills := np.asarray(a.get(name, []))).all():
                expected[np.isin(raw, fills.astype(raw.dtype))] = np.nan
        least, largest = a.get("valid_range", (a.get("valid_min", -np.inf), a.get("valid_max", np.inf)))
        bounded = expected if np.asarray(least).dtype.kind == "f" and np.isfinite(least) else raw
        expected[(bounded < least) | (bounded > largest)] = np.nan
        assert listing.layout.dtype == np.dtype(out)
        if out[0] != "f":
            expected = expected.astype(out) if np.isfinite(expected).all() else raw
        np.testing.assert_allclose(np.stack(found), expected, rtol=1e-6)
        assert any("times the stored" in note for note in listing.notes) == ("scale_factor" in a)

    @pytest.mark.parametrize("kind", ["netCDF", "HDF5"])
    def test_what_was_never_written_is_missing(self, tmp_path: Path, kind: str) -> None:
        numbers = np.ones((2, 3, 5), np.float32)
        numbers[1, 1, 1] = 9.969209968386869e36
        _, found = everything(arrays(self.write(tmp_path, numbers, {}, kind)))
        assert [reason(sample) for sample in found] == ["", "non-finite"]
        _, found = everything(arrays(self.write(tmp_path, numbers, {}, kind), sample={"exact": True, "missing": True}))
        assert np.isnan(found[1]).sum() == 1

    @pytest.mark.parametrize("attributes", [{"scale_factor": "0.5"}, {"scale_factor": 0.0}, {"add_offset": np.nan}])
    def test_attributes_that_make_values_unknown(self, tmp_path: Path, attributes: dict[str, Any]) -> None:
        with pytest.raises(SourceError, match=r"scale_factor|add_offset"):
            scan(arrays(self.write(tmp_path, IMAGES.astype("i2"), attributes, "HDF5"), ONE), Path())

    @pytest.mark.parametrize(
        "options", [{"chunks": (3,)}, {"chunks": (2,), "compression": "gzip", "shuffle": True}, {}]
    )
    @pytest.mark.parametrize("userblock", [0, 512])
    def test_texts_of_variable_length(self, tmp_path: Path, options: dict[str, Any], userblock: int) -> None:
        texts = ["", "a", "Größe" * 100, "b" * 4000, "c", "d", "e"]
        with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
            file["images"] = IMAGES
            file.create_dataset("kind", data=np.array(texts, object), dtype=h5py.string_dtype(), **options)
            file.create_dataset("long", data=np.array([*texts[:-1], "f" * 5000], object), dtype=h5py.string_dtype())
        assert scan(arrays(tmp_path / "a.h5", labels=LABELS), Path()).columns["label"].tolist() == texts
        with pytest.raises(SourceError, match=r"the labels cannot be read: .* texts of more than 4096 characters"):
            scan(arrays(tmp_path / "a.h5", labels={"column": "long"}), Path())

    def test_missing_values_of_signals(self, tmp_path: Path) -> None:
        x = NOISE.copy()
        x[1, 3], x[2, 5] = np.nan, np.inf
        path = written(tmp_path / "a.npy", npy(x))
        _, found = everything(arrays(path, {"dims": ["sample", "time"]}))
        assert [reason(sample) for sample in found] == ["", "non-finite", "non-finite", "", "", ""]
        _, found = everything(arrays(path, {"dims": ["sample", "time"]}, sample={"exact": True, "missing": True}))
        np.testing.assert_array_equal(np.stack(found), np.where(np.isfinite(x), x, np.nan))

    @pytest.mark.parametrize("version", [2, 3])
    def test_what_xarray_writes(self, tmp_path: Path, version: int) -> None:
        import xarray as xr

        x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        x[1, 2, 3] = np.nan
        packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 1.0, "_FillValue": -999}
        cube = xr.Dataset({"a": (("n", "y", "x"), x), "b": (("n", "y", "x"), x)}, {"n": [3, 4], "y": [0.0, 2.0, 4.0]})
        cube.to_zarr(tmp_path / "a.zarr", zarr_format=version, encoding={"b": packed}, consolidated=False)
        options = {"variable": ["a", "b"], "columns": {"n": "number"}}
        listing, found = everything(arrays(tmp_path / "a.zarr", options, sample={"exact": True, "missing": True}))
        assert listing.columns["n"].tolist() == [3, 4]
        assert listing.layout.spacing == (2.0, 1.0)
        np.testing.assert_allclose(np.stack(found), np.stack([x, x], 1), atol=0.006)

    def test_big_endian_and_half_precision(self, tmp_path: Path) -> None:
        for dtype in (">f4", "<f2", ">i8", "?"):
            x = (IMAGES % 2).astype(dtype)
            listing, found = everything(arrays(h5(tmp_path / "a.h5", x), ONE))
            assert listing.layout.dtype.isnative
            np.testing.assert_array_equal(np.stack(found), x)


class TestTables:
    def test_images_of_several_sizes(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((9, 12), (8, 8), (3, 20))]
        path = table(tmp_path / "a.parquet", photos(images, ["a", "b", "c"]))
        _, found = everything(arrays(path, sample={"crop": {"size": [5, 6]}}))
        np.testing.assert_array_equal(found[0], images[0][2:7, 3:9])
        assert "a.parquet: 3×20; need at least 5×6" in str(found[2])
        assert [reason(s) for s in everything(arrays(path))[1]] == ["", "wrong-shape", "wrong-shape"]
        with pytest.raises(EntryError, match="encoded images in a table differ in size"):
            scan(arrays(path, sample={"patches": {"size": [2, 2]}}), Path())

    def test_a_bad_image_among_good_ones(self, tmp_path: Path) -> None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        good = {"bytes": png(IMAGES[0]), "path": None}
        rows = [good, {"bytes": png(IMAGES[1])[:-30], "path": None}, None, {"bytes": None, "path": "/etc/passwd"}, good]
        path = table(tmp_path / "a.parquet", {"image": pa.array(rows, kind)})
        _, found = everything(arrays(path))
        assert [reason(sample) for sample in found] == ["", "unreadable", "missing", "missing", ""]
        assert "row 1" in str(found[1])
        assert "names /etc/passwd, which is not followed" in str(found[3])

    def test_binary_columns_and_class_names(self, tmp_path: Path) -> None:
        columns = {"picture": [encoded(image, "PNG") for image in IMAGES], "label": [0, 1, 0, 1, 1, -1, 5]}
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        path = table(tmp_path / "a.parquet", pa.table(columns).replace_schema_metadata(metadata))
        listing, found = everything(arrays(path, labels={"column": "label"}))
        assert listing.columns["label"].tolist() == ["cat", "dog", "cat", "dog", "dog", "", "5"]
        assert any("1 of 7 samples have no label" in note for note in listing.notes)
        np.testing.assert_array_equal(np.stack(found), IMAGES)

    def test_lists_that_are_not_alike(self, tmp_path: Path) -> None:
        rows = [[1.0, 2.0, 3.0], [1.0, 2.0], None, [1.0, None, 3.0], [4.0, 5.0, 6.0]]
        path = table(tmp_path / "a.parquet", {"x": rows})
        _, found = everything(arrays(path, {"dims": ["sample", "time"]}))
        assert [reason(sample) for sample in found] == ["", "wrong-shape", "missing", "non-finite", ""]
        np.testing.assert_array_equal(found[4], [4, 5, 6])
        ragged = [[[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4, 5, 6]]]  # as many values, not the same image
        path = table(tmp_path / "b.parquet", {"x": ragged})
        assert [reason(sample) for sample in everything(arrays(path))[1]] == ["", "wrong-shape"]

    def test_rows_across_row_groups_and_backwards(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(1000, 12)).astype(np.float32)
        path = table(tmp_path / "a.parquet", {"x": x.tolist()}, row_group_size=97)
        made = arrays(path, {"shape": [3, 4]})
        columns = scan(made, Path()).columns
        for order in (np.arange(1000), np.arange(1000)[::-7], np.random.default_rng(1).permutation(1000)[:50]):
            rows = {name: values[order] for name, values in columns.items()}
            np.testing.assert_array_equal(np.stack(samples(made, rows)).reshape(-1, 12), x[order])

    def test_shape_is_for_tables(self, tmp_path: Path) -> None:
        with pytest.raises(EntryError, match=r"arrays\.shape: is for Parquet"):
            scan(arrays(written(tmp_path / "a.npy", npy(IMAGES)), {"shape": [5, 6]}), Path())


class TestDamage:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("kind", ["h5", "h5 in chunks", "netCDF-4", "netCDF", "netCDF with records", "Parquet"])
    def test_files_that_break_off(self, tmp_path: Path, kind: str, share: float) -> None:
        made = BUILDERS[kind](tmp_path)
        path = Path(made.location)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises((SourceError, EntryError)):
            everything(made)

    def test_one_bad_file_among_good_ones(self, tmp_path: Path) -> None:
        good = h5(tmp_path / "x").read_bytes()
        bad = {
            "1.h5": b"",
            "2.h5": b"<html>404</html>",
            "3.h5": good[:900],
            "4.h5": h5(tmp_path / "y", IMAGES[:, :3]).read_bytes(),
        }
        path = write_tar(tmp_path / "a.tar", {"0.h5": good, **bad, "5.h5": good})
        _, found = everything(arrays(path, ONE))
        expected = [""] * 7 + ["unreadable"] * 3 + ["wrong-shape"] * 7 + [""] * 7
        assert [reason(sample) for sample in found] == expected
        assert str(found[7]).startswith("1.h5: ")

    def test_a_damaged_chunk_spoils_its_own_items(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", chunks=(2, 5, 6), compression="gzip", fletcher32=True)
        with h5py.File(path) as file:
            place = file["images"].id.get_chunk_info(1)
        content = bytearray(path.read_bytes())
        content[place.byte_offset + place.size // 2] ^= 0xFF
        path.write_bytes(content)
        _, found = everything(arrays(path))
        assert [reason(sample) for sample in found] == ["", "", "unreadable", "unreadable", "", "", ""]

    def test_chunks_that_were_never_written(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            images = file.create_dataset("images", (7, 5, 6), "u1", chunks=(2, 5, 6), fillvalue=9)
            images[:4] = IMAGES[:4]
            file.create_dataset("empty", (7, 5, 6), "u1", fillvalue=9)
        _, found = everything(arrays(tmp_path / "a.h5", ONE))
        assert [reason(sample) for sample in found] == [""] * 4 + ["missing"] * 3
        assert "declare arrays.absent: fill" in str(found[4])
        _, found = everything(arrays(tmp_path / "a.h5", ONE | {"absent": "fill"}))
        np.testing.assert_array_equal(np.stack(found), np.concatenate([IMAGES[:4], np.full((3, 5, 6), 9)]))
        _, found = everything(arrays(tmp_path / "a.h5", {"variable": "empty"}))
        assert {reason(sample) for sample in found} == {"missing"}

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("packed", [False, True])
    def test_zarr_chunks_that_are_not_there(self, tmp_path: Path, version: int, packed: bool) -> None:
        path = store(tmp_path / "a.zarr", version, chunks=(2, 5, 6), fill_value=9)
        (path / "images" / ("c/2/0/0" if version == 3 else "2.0.0")).unlink()
        path = write_zip(tmp_path / "a.zip", files_of(path, "b.zarr/")) if packed else path
        _, found = everything(arrays(path))
        assert [reason(sample) for sample in found] == ["", "", "", "", "missing", "missing", ""]
        assert "is not there; where the fill value of the file is meant, declare arrays.absent: fill" in str(found[4])
        _, found = everything(arrays(path, {"absent": "fill"}))
        assert (np.stack(found[4:6]) == 9).all()
        np.testing.assert_array_equal(found[6], IMAGES[6])

    @pytest.mark.parametrize("codec", [None, GzipCodec(), ZstdCodec(), BloscCodec()], ids=str)
    @pytest.mark.parametrize("cut", [1, 9, 20])
    @pytest.mark.parametrize("shards", [None, (4, 5, 6)])
    def test_zarr_chunks_that_break_off(self, tmp_path: Path, codec: Any, cut: int, shards: Any) -> None:
        path = store(tmp_path / "a.zarr", chunks=(2, 5, 6), compressors=codec, shards=shards)
        chunk = path / ("images/c/1/0/0")
        chunk.write_bytes(chunk.read_bytes()[:-cut])
        _, found = everything(arrays(path))
        bad = ["unreadable"] * 3 if shards else ["unreadable"] * 2
        expected = ["", "", "", "", *bad] if shards else ["", "", *bad, "", "", ""]
        assert [reason(sample) for sample in found] == expected

    def test_zarr_metadata_that_make_no_sense(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.zarr")
        document = path / "images/zarr.json"
        whole = json.loads(document.read_text())
        changes: list[dict[str, Any]] = [
            {"shape": [-1, 5, 6]},
            {"shape": "many"},
            {"shape": [7, 5]},
            {"data_type": {"name": "struct"}},
            {"data_type": "complex64"},
            {"data_type": "i4, 08"},
            {"codecs": []},
            {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]},
            {"codecs": [{"name": "bytes"}, {"name": "zstd"}, {"name": "gzip"}]},
            {"chunk_grid": {"name": "rectilinear"}},
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 5, 6]}}},
            {"storage_transformers": [{"name": "x"}]},
        ]
        for change in changes:
            document.write_text(json.dumps(whole | change))
            with pytest.raises(SourceError, match=r"a\.zarr: images: "):
                scan(arrays(path, ONE), Path())
        document.write_text("{")
        with pytest.raises(SourceError, match="no JSON"):
            scan(arrays(path, ONE), Path())

    def test_a_page_that_is_damaged(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
        path = table(tmp_path / "a.parquet", {"x": x.tolist()}, row_group_size=100, write_page_checksum=True, **PLAIN)
        content = bytearray(path.read_bytes())
        place = content.index(x[150].astype(float).tobytes())
        content[place] ^= 1
        path.write_bytes(content)
        _, found = everything(arrays(path, {"shape": [3, 4]}))
        bad = [index for index, sample in enumerate(found) if reason(sample) == "unreadable"]
        assert 150 in bad
        assert set(bad) <= set(range(100, 200))
        np.testing.assert_array_equal(found[250].ravel(), x[250])

    def test_a_classic_file_that_says_too_much(self, tmp_path: Path) -> None:
        path = nc3(tmp_path / "a.nc")
        content = path.read_bytes()
        for old, new in (
            (b"\x00\x00\x00\x0a\x00\x00\x00\x04", b"\x00\x00\x00\x0a\x7f\xff\xff\xff"),  # dimensions
            (struct.pack(">i", 7), struct.pack(">i", 1 << 30)),  # the length of the first
            (b"CDF\x01\x00\x00\x00\x00", b"CDF\x01\xff\xff\xff\xff"),  # records
        ):
            path.write_bytes(content.replace(old, new, 1))
            with pytest.raises(SourceError, match=r"a\.nc: "):
                scan(arrays(path), Path())


class TestTraps:
    """What files could make a library do: open other files, load objects, take all memory."""

    def refused(self, path: Path, options: dict[str, Any] = ONE, match: str = "", **fields: Any) -> None:
        with pytest.raises(SourceError, match=match):
            scan(arrays(path, options, **fields), Path())

    def test_links_out_of_a_file(self, tmp_path: Path) -> None:
        secret = h5(tmp_path / "secret.h5")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["images"] = h5py.ExternalLink(str(secret), "/images")
            file["soft"] = h5py.SoftLink("/images")
            file["folder"] = h5py.ExternalLink(str(secret), "/")
            file["loop"] = h5py.SoftLink("/loop")
            file["here"] = IMAGES
            file["sub/to"] = h5py.SoftLink("../here")
        for path in ("images", "soft", "folder/images", "loop"):
            self.refused(tmp_path / "a.h5", {"variable": path}, "link to another file|lead to each other")
        _, found = everything(arrays(tmp_path / "a.h5"))  # the others do not even count
        np.testing.assert_array_equal(np.stack(found), IMAGES)
        self.refused(tmp_path / "a.h5", {"variable": "../../secret.h5/images"}, "no array")

    def test_links_inside_a_file_are_followed(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a/b"] = IMAGES
            file["a/same"] = h5py.SoftLink("b")
            file["top"] = h5py.SoftLink("/a")
        for path in ("a/same", "top/b", "top/same"):
            _, found = everything(arrays(tmp_path / "a.h5", {"variable": path}))
            np.testing.assert_array_equal(np.stack(found), IMAGES)

    def test_a_column_in_another_file(self, tmp_path: Path) -> None:
        parts: list[Any] = []
        table(tmp_path / "a.parquet", lists(), metadata_collector=parts)
        parts[0].set_file_path("../secret.parquet")
        parts[0].write_metadata_file(tmp_path / "b.parquet")
        self.refused(tmp_path / "b.parquet", {"shape": [5, 6]}, "in another file, b'../secret.parquet', which is not")

    def test_values_in_other_files(self, tmp_path: Path) -> None:
        secret = written(tmp_path / "secret", IMAGES.tobytes())
        h5(tmp_path / "b.h5")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", (7, 5, 6), "u1", external=[(str(secret), 0, IMAGES.nbytes)])
            layout = h5py.VirtualLayout((7, 5, 6), "u1")
            layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "images", (7, 5, 6))
            file.create_virtual_dataset("virtual", layout)
        for path in ("images", "virtual"):
            self.refused(tmp_path / "a.h5", {"variable": path}, "its values are in other files, which are not followed")

    def test_objects_are_never_loaded(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["images"] = np.zeros((2, 3, 4), [("a", "f4")])
            file["refs"] = np.array([[file["images"].ref] * 2] * 2, h5py.ref_dtype)
            file.create_dataset("ragged", (2, 2), h5py.vlen_dtype(np.float32))
            file["complex"] = np.zeros((2, 3, 4), complex)
            file["opaque"] = np.zeros((2, 3), "V5")
        for path in ("images", "refs", "ragged", "complex", "opaque"):
            self.refused(tmp_path / "a.h5", {"variable": path}, "expected numbers")

    def test_pickles_in_zarr(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "sprung",))

        path = store(tmp_path / "a.zarr", 2, chunks=(7, 5, 6), compressors=None)
        document = path / "images/.zarray"
        content = Pickle().encode(np.array([Trap()] * 3, object))
        (path / "images/0.0.0").write_bytes(content)
        whole = json.loads(document.read_text())
        for change in ({"filters": [{"id": "pickle", "protocol": 5}]}, {"compressor": {"id": "pickle"}}):
            for dtype in ("|O", "|u1"):
                document.write_text(json.dumps(whole | change | {"dtype": dtype}))
                self.refused(path, ONE, "codec pickle; known here")
        for codec in ("json2", "msgpack2", "categorize", "vlen-bytes"):
            document.write_text(json.dumps(whole | {"filters": [{"id": codec}], "dtype": "|O"}))
            self.refused(path, ONE, f"codec {codec}; known here")
        assert not (tmp_path / "sprung").exists()

    def test_zarr_reads_nothing_outside(self, tmp_path: Path) -> None:
        store(tmp_path / "secret.zarr")
        path = store(tmp_path / "f/a.zarr")
        for variable in ("../../secret.zarr/images", "/etc/passwd", ".."):
            self.refused(path, {"variable": variable}, "no array")
        (tmp_path / "f/b.zarr").symlink_to(tmp_path / "secret.zarr")
        listing = scan(arrays(path.parent), Path())
        assert set(listing.columns["member"]) == {"a.zarr"}
        rows = {"member": np.array(["../secret.zarr"], object), "item": np.zeros(1, int)}
        assert [reason(sample) for sample in samples(arrays(path.parent), rows)] == ["missing"]

    def test_filters_that_are_not_here(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", chunks=(2, 5, 6), compression="lzf")
        content = path.read_bytes()
        assert content.count(struct.pack("<H", 32000)) == 1
        path.write_bytes(content.replace(struct.pack("<H", 32000), struct.pack("<H", 32001)))
        self.refused(path, ONE, r"filter that is not here, 32001 \(Blosc\); repack it with h5repack")

    def test_shapes_that_promise_too_much(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", (1 << 33, 64, 64), "f8", chunks=(1, 64, 64))
            file.create_dataset("plain", (1 << 20, 64, 64), "f8")
            file.create_dataset("large", (1, 1 << 15, 1 << 15), "u1", chunks=(1, 1 << 15, 1 << 15), compression="gzip")
            file["large"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(100)))
        self.refused(tmp_path / "a.h5", ONE, "promises 281474976710656 bytes, 0 are stored")
        self.refused(tmp_path / "a.h5", {"variable": "plain"}, "bytes of values in|promises")
        self.refused(tmp_path / "a.h5", {"variable": "large"}, "promises 1073741824 bytes")
        path = store(tmp_path / "a.zarr", chunks=(2, 5, 6))
        document = path / "images/zarr.json"
        whole = json.loads(document.read_text())
        document.write_text(json.dumps(whole | {"shape": [1 << 40, 5, 6]}))
        self.refused(path, ONE, "promises 32985348833280 bytes")
        grid = {"name": "regular", "configuration": {"chunk_shape": [1 << 20, 1 << 5, 1 << 6]}}
        document.write_text(json.dumps(whole | {"chunk_grid": grid}))
        self.refused(path, ONE, "chunks of 2147483648 bytes; the largest are 1073741824")

    def test_chunks_of_hdf5_that_unpack_to_too_much(self, tmp_path: Path) -> None:
        bomb = zlib.compress(bytes(1 << 20) + np.random.default_rng(0).bytes(2 << 20), 1)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            images = file.create_dataset(
                "images", (2, 1 << 10, 1 << 10), "u1", chunks=(1, 1 << 10, 1 << 10), compression=1
            )
            images[0] = 3
            images.id.write_direct_chunk((1, 0, 0), bomb)
        _, found = everything(arrays(tmp_path / "a.h5"))
        assert [reason(sample) for sample in found] == ["", "too-large"]
        assert "refused as a bomb" in str(found[1])

    @pytest.mark.parametrize("kind", ["blosc", "zstd", "gzip", "gzip twice", "zstd of no size", "lz4", "bz2", "shard"])
    def test_chunks_of_zarr_that_unpack_to_too_much(self, tmp_path: Path, kind: str) -> None:
        import numcodecs

        much = bytes(64 << 20)
        options: dict[str, Any] = {
            "compressors": {"gzip twice": GzipCodec(), "gzip": GzipCodec()}.get(kind, ZstdCodec())
        }
        version = 3
        if kind == "blosc":
            options, content = {"compressors": BloscCodec()}, numcodecs.Blosc().encode(much)
        elif kind in ("lz4", "bz2"):
            codec = {"lz4": numcodecs.LZ4(), "bz2": numcodecs.BZ2()}[kind]
            options, content, version = {"compressors": codec}, codec.encode(much), 2
        elif kind.startswith("gzip"):
            content = zlib.compress(np.random.default_rng(0).bytes(1 << 20) + bytes(8 << 20), wbits=31)
            content = zlib.compress(b"", wbits=31) + content if kind == "gzip twice" else content
        elif kind == "zstd of no size":
            sink = io.BytesIO()
            with pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd") as stream:
                stream.write(much)
                stream.flush()
                content = sink.getvalue()
            content = sink.getvalue() if not sink.closed else content
        else:
            content = numcodecs.Zstd().encode(much)
        if kind == "shard":
            options["shards"] = (4, 5, 6)
            index = struct.pack("<4Q", 0, len(content), (1 << 64) - 1, (1 << 64) - 1)
            content += index + struct.pack("<I", google_crc32c(index))
        path = store(tmp_path / "a.zarr", version, chunks=(2, 5, 6), **options)
        (path / "images" / ("c/1/0/0" if version == 3 else "1.0.0")).write_bytes(content)
        _, found = everything(arrays(path))
        assert "too-large" in {reason(sample) for sample in found}
        assert any("refused as a bomb" in str(sample) for sample in found if reason(sample))

    def test_pages_of_parquet_that_unpack_to_too_much(self, tmp_path: Path) -> None:
        image = png(IMAGES[0]) + bytes(64 << 20)
        path = table(tmp_path / "a.parquet", {"image": [image] * 2}, compression="zstd", use_dictionary=False)
        assert path.stat().st_size < 100_000
        self.refused(path, {}, "page: its shape promises .* refused as a bomb")

    def test_lists_of_parquet_that_unpack_to_too_much(self, tmp_path: Path) -> None:
        values = pa.array(np.zeros(32 << 20, np.float32))
        rows = pa.ListArray.from_arrays([0, 16 << 20, 32 << 20], values)
        path = table(tmp_path / "a.parquet", {"x": rows}, use_dictionary=True)
        assert path.stat().st_size < 100_000
        self.refused(path, {"dims": ["sample", "time"]}, "values: its shape promises")

    def test_heads_of_pages(self) -> None:
        walk = pages.walk
        data = bytes(
            [0x15, 0, 0x15, 200, 1, 0x15, 20, 0x2C, 0x15, 6, 0x15, 0, 0x15, 0, 0x15, 0, 0, 0]
        )  # 100 in 10 bytes
        assert walk(io.BytesIO(data + bytes(10)), 0, len(data) + 10, 3, 4, "x") == pages.Pages(3, 0)
        with pytest.raises(RecordError, match="x: pages end at byte"):
            walk(io.BytesIO(data + bytes(10)), 0, len(data) + 5, 3, 4, "x")
        for broken in (
            b"",
            b"\x15",
            b"\x00",
            b"\x1f",
            b"\x15" + b"\xff" * 12,
            b"\x1c" * 20,
            b"\x19\xf5\xff\xff\xff\x7f",
        ):
            with pytest.raises(RecordError, match=r"x: (damaged, or cut short|a page without a size)"):
                walk(io.BytesIO(broken), 0, 100, 3, 4, "x")

    def test_links_in_a_zarr_folder_that_lead_nowhere(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.zarr", chunks=(2, 5, 6))
        (path / "images/c/0/0/0").unlink()
        (path / "images/c/0/0/0").symlink_to(tmp_path / "nothing")
        _, found = everything(arrays(path))
        assert [reason(sample) for sample in found][:3] == ["missing", "missing", ""]


def google_crc32c(content: bytes) -> int:
    from zarr.codecs import crc32c_

    return int(crc32c_.crc32c(content)) if hasattr(crc32c_, "crc32c") else int(crc32c_.google_crc32c.value(content))


class TestInference:
    def infer(self, path: Path) -> Entry:
        return load_entry(str(path), path.parent)

    @pytest.mark.parametrize(
        "kind", ["h5", "h5 in a zip", "netCDF-4", "netCDF", "Zarr", "Zarr 2", "Zarr as a zip", "Parquet"]
    )
    def test_images_and_labels_are_found(self, tmp_path: Path, kind: str) -> None:
        made = self.infer(Path(BUILDERS[kind](tmp_path).location))
        listing, found = everything(made)
        np.testing.assert_array_equal(np.stack(found), IMAGES)
        if kind.startswith(("netCDF-4", "Parquet")):  # others have weights, which may be labels too
            assert listing.columns["label"].tolist() == CLASSES
        assert "images" in made.description

    def test_images_of_several_sizes_are_cropped(self, tmp_path: Path) -> None:
        made = self.infer(table(tmp_path / "a.parquet", photos([IMAGES[0], IMAGES[1][:4]], ["a", "b"])))
        assert made.sample.crop is not None
        assert made.sample.crop.size == (4, 6)

    def test_what_is_not_certain_is_asked(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a"], file["b"] = IMAGES, IMAGES
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file["x"], file["y"] = NOISE, np.arange(6)
        for name in "ab":
            with pytest.raises(EntryError, match=r"write an entry with arrays\.(variable|dims)"):
                self.infer(tmp_path / f"{name}.h5")
        with pytest.raises(EntryError, match="files of several kinds"):
            self.infer(write_folder(tmp_path / "f", {"a.npy": npy(IMAGES), "b.h5": b""}))
        with pytest.raises(SourceError, match="none of 1 files can be read"):
            self.infer(written(tmp_path / "c.h5", b"no"))


def test_libraries_are_loaded_for_their_own_files_only() -> None:
    code = "import sys; import scattercube.pipeline.sources; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"h5py", "zarr", "pyarrow", "scipy"} & set(loaded)


def test_a_window_of_a_large_array_is_not_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.arange(4096 * 4096, dtype=np.float32).reshape(4096, 4096)
    h5(tmp_path / "a.h5", large, chunks=(256, 256))
    store(tmp_path / "b.zarr", images=large, chunks=(256, 256), compressors=None)
    np.save(tmp_path / "c.npy", large)
    window = (slice(1000, 1064), slice(2000, 2064))
    for name in ("a.h5", "b.zarr", "c.npy"):
        for sample in ({"exact": True}, {"patches": {"size": [1024, 1024]}}):
            made = arrays(tmp_path / name, {} if name == "c.npy" else ONE, sample=sample)
            columns = scan(made, Path()).columns
            row = {key: values[:1] for key, values in columns.items()}
            part = window if "exact" in sample else (slice(10, 74), slice(20, 84))
            received = Received(monkeypatch)
            (found,) = read(made, Path(), row, part)
            np.testing.assert_array_equal(found, large[part])
            assert received.nbytes < large.nbytes / 16


class Received:
    """Counts the bytes that come out of archives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        monkeypatch.undo()
        opened = containers._Folder.open

        def open_(folder: Any, name: str) -> Any:
            stream = opened(folder, name)
            count = self

            class Counting(io.RawIOBase):
                def readable(self) -> bool:
                    return True

                def seekable(self) -> bool:
                    return True

                def seek(self, offset: int, whence: int = 0) -> int:
                    return stream.seek(offset, whence)

                def close(self) -> None:
                    stream.close()
                    super().close()

                def readinto(self, buffer: Any) -> int:
                    received = stream.readinto(buffer)
                    count.nbytes += received
                    return received

            return io.BufferedReader(Counting(), 1 << 12)

        monkeypatch.setattr(containers._Folder, "open", open_)


@pytest.mark.realdata
def test_wind_is_what_scipy_reads(real: Path) -> None:
    made = arrays(
        "fields/eraint_uvz.nc",
        {"variable": ["u", "v"], "dims": ["sample", "sample", "y", "x"], "columns": {"month": "text", "level": "text"}},
    )
    listing = scan(made, real)
    layout = listing.layout
    assert (layout.shape, layout.dtype, layout.channels) == ((2, 241, 480), np.float32, ("u", "v"))
    assert (layout.spacing, layout.units) == ((0.75, 0.75), ("degrees_north", "degrees_east"))
    assert listing.columns["month"].tolist() == ["1", "1", "1", "7", "7", "7"]
    found = np.stack(samples(made, listing.columns, real))
    with netcdf_file(real / made.location, mmap=False) as file:
        for channel, name in enumerate("uv"):
            variable = file.variables[name]
            expected = variable.data.astype(float) * variable.scale_factor + variable.add_offset
            np.testing.assert_allclose(found[:, channel], expected.reshape(6, 241, 480), rtol=1e-6, atol=1e-5)
        assert listing.columns["level"].tolist() == [str(level) for level in file.variables["level"].data] * 2


@pytest.mark.realdata
def test_real_entries(real: Path) -> None:
    for name, shape, n_samples in (("era-interim", (2, 48, 48), 1026), ("ism-maps", (64, 64), 675)):
        made = load_entry(name, real)
        listing = scan(made, real)
        assert (listing.layout.shape, len(listing.columns["item"])) == (shape, n_samples)
        assert set(listing.columns["split"]) == {"train", "test", "unused"}
        assert len(set(listing.columns["label"])) == 3
        found = samples(made, listing.columns, real)
        assert not [sample for sample in found if isinstance(sample, RecordError)]
        assert {(sample.shape, sample.dtype) for sample in found} == {(listing.layout.shape, listing.layout.dtype)}
