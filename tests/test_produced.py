"""What was produced, whether it is fresh, whether it is still what was written; and the commands that say so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scattercube
from scattercube.flows.cli import execute
from scattercube.pipeline.differences import diff
from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.job import Job, run
from scattercube.pipeline.produced import faults_of, in_a_few_words, produced, stores_at
from scattercube.pipeline.spec import ImageSpec
from tests.small_cubes import make_cube, numbers
from tests.test_job import photographs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An archive of 24 images, one of them corrupt, and the store of two runs on it."""
    folder = tmp_path_factory.mktemp("produced")
    archive = photographs(folder / "photos")
    (archive / "along" / "broken.png").write_bytes(b"no picture")
    for J in (1, 2):
        run(Job(entry=str(archive), until="extract", store=str(folder / "store"), serial=True, set=(f"J={J}",)))
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the store, to damage."""
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path / "store"


def call(capsys, *arguments):
    code = execute([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", ["diff", "export", "verify", "catalog"])
def test_every_command_explains_itself(capsys, command):
    code, said, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"scattercube {command}" in said
    assert len(said.splitlines()) > 5


def test_what_was_produced(made):
    cubes = produced(str(made / "store"), made)
    assert [cube.entry for cube in cubes] == ["photos", "photos"]
    assert {cube.spec.split()[1] for cube in cubes} == {"J=1", "J=2"}
    for cube in cubes:
        assert cube.samples == {"ok": 24, "quarantined": 1}
        assert cube.freshness == "fresh"
        assert cube.versions == ("1",)
        assert cube.dims["sample"] == 25
        assert (cube.dtype, cube.arrays) == ("float32", ("scattering", "status"))
        files = [file for file in (made / "store" / "photos" / "features" / cube.spec_digest).rglob("*")]
        assert cube.nbytes == sum(file.stat().st_size for file in files if file.is_file())
        opened = eval(cube.how_to_open, {"xarray": xr})  # as its reader would
        assert dict(opened["scattering"].sizes) == cube.dims
        assert pd.Timestamp(cube.created).tz is not None


def test_an_archive_that_changed_or_went_away(made, tmp_path):
    archive = tmp_path / "photos"
    shutil.copytree(made / "photos", archive)
    store = tmp_path / "store"
    run(Job(entry=str(archive), until="extract", store=str(store), serial=True, set=("J=1",)))
    assert produced(str(store), tmp_path)[0].freshness == "fresh"
    first = next(file for file in sorted(archive.rglob("*.png")))
    first.write_bytes(first.read_bytes() + b"\n")
    assert produced(str(store), tmp_path)[0].freshness == "archive changed"
    for file in archive.rglob("*.png"):
        file.unlink()
    assert produced(str(store), tmp_path)[0].freshness == "archive changed"
    shutil.rmtree(archive)
    assert produced(str(store), tmp_path)[0].freshness == "archive absent"


def test_what_is_damaged_or_unfinished_says_so(made, copy):
    one, other = sorted(path for path in (copy / "photos" / "features").iterdir() if not path.suffix)
    (one / "zarr.json").unlink()
    (other / "zarr.json").write_text("{")
    cubes = produced(str(copy), made)
    assert [bool(cube.problem) for cube in cubes] == [True, True]
    assert cubes[0].path in cubes[0].problem


def test_an_archive_behind_a_url_is_not_asked(tmp_path):
    entry = "name: far\ntitle: Far\nlicence: CC0-1.0\nreader: images\nlocation: s3://bucket/photos\n"
    make_cube(tmp_path / "far" / "features" / "0123456789ab", entry=entry)
    make_cube(tmp_path / "odd" / "features" / "0123456789ab", entry="no entry")
    assert [cube.freshness for cube in produced(str(tmp_path), tmp_path)] == ["archive elsewhere, not asked", "unknown"]


def test_a_spec_in_a_few_words():
    spec = ImageSpec(J=2, boundary=("periodic", "reflect"), padding="support")
    words = in_a_few_words(spec.model_dump(mode="json"))
    assert words.startswith("scattering2d J=2 L=8 max_order=2 padding=support boundary=")


def test_verify_reads_everything_again(capsys, made, copy):
    code, out, _ = call(capsys, "verify", made / "store")
    assert code == 0
    assert "3 stores: all numbers are as they were written" in out
    cube = next(path for path in (copy / "photos" / "features").iterdir() if not path.suffix)
    shard = next(file for file in (cube / "scattering").rglob("*") if file.is_file() and file.name != "zarr.json")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x10
    shard.write_bytes(content)
    code, out, _ = call(capsys, "verify", copy)
    assert code == 1
    assert "sample=0" in out
    assert str(cube) in out.replace("\n", "")
    code, out, _ = call(capsys, "verify", cube, "--json")
    assert code == 1
    assert len(json.loads(out)[str(cube)]) == 1
    code, out, _ = call(capsys, "verify", copy / "photos" / "chunks")
    assert code == 0


def test_verify_does_not_believe_a_store_of_which_nothing_is_known(tmp_path):
    numbers_of = xr.Dataset({"scattering": (("sample", "path"), np.ones((2, 3), "f4")), "status": ("sample", [0, 0])})
    numbers_of.to_zarr(tmp_path / "cube", zarr_format=3, consolidated=False)
    (fault,) = faults_of(str(tmp_path / "cube"))
    assert "nothing says what its numbers should be" in fault


def test_other_back_ends_are_read_alike(tmp_path):
    pytest.importorskip("icechunk")
    path = make_cube(tmp_path / "small" / "features" / "0123456789ab", backend="icechunk")
    plain = make_cube(tmp_path / "plain", backend="zarr")
    (cube,) = produced(str(tmp_path), tmp_path)
    assert cube.samples == {"ok": 20}
    assert len(cube.versions) == 1
    opened = eval(cube.how_to_open, {"scattercube": scattercube})
    assert dict(opened["scattering"].sizes) == cube.dims
    assert list(faults_of(str(path))) == []
    assert diff(path, plain).same
    assert sorted(row for found in scattercube.iter_batches(path, 6) for row in found["sample"]) == list(range(20))


def test_stores_are_found_at_every_level(made, tmp_path):
    root = made / "store"
    every = stores_at(str(root))
    assert len(every) == 3
    assert stores_at(str(root / "photos")) == every
    assert stores_at(every[0]) == [every[0]]
    with pytest.raises(StoreError, match="no store there"):
        stores_at(str(tmp_path))
    with pytest.raises(StoreError, match="no store there"):
        produced(str(tmp_path / "none"), tmp_path)


def test_the_catalogue_of_a_store(capsys, made):
    code, out, _ = call(capsys, "catalog", "--store", made / "store", "--data", made)
    assert code == 0
    assert "24 ok, 1 quarantined" in out
    assert "xarray.open_zarr(" in out
    code, out, _ = call(capsys, "catalog", "--store", made / "store", "--data", made, "--json")
    cubes = json.loads(out)
    assert {cube["freshness"] for cube in cubes} == {"fresh"}
    assert Path(cubes[0]["path"]).is_dir()
    code, out, _ = call(capsys, "catalog", "--json")
    assert "textures" in {entry["name"] for entry in json.loads(out)}


def test_diff_says_what_differs_and_returns_a_code(capsys, tmp_path, made):
    values = numbers(20, (4, 2, 3))
    one = make_cube(tmp_path / "one", values=values)
    values[5, 3] += 1
    other = make_cube(tmp_path / "other", values=values, status=np.array([0] * 19 + [1]))
    code, out, _ = call(capsys, "diff", one, one)
    assert (code, out.strip()) == (0, "the same: 20 samples are in both")
    code, out, _ = call(capsys, "diff", one, other)
    assert code == 1
    for said in ("status 0 → 1", "näme 5", "1 of 1", "different: 20 samples"):
        assert said in out
    code, out, _ = call(capsys, "diff", one, other, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["numbers"] == {"n": 1, "first": ["näme 5"]}
    assert found["orders"][2]["largest"] == pytest.approx(1, rel=1e-5)
    code, _, err = call(capsys, "diff", one, tmp_path / "none")
    assert code == 5
    assert len(err.strip().splitlines()) >= 1
    two = [cube.path for cube in produced(str(made / "store"), made)]
    code, out, _ = call(capsys, "diff", *two)
    assert code == 1
    assert "spec.J" in out
    assert "numbers were not compared" in out


def test_export_from_the_command_line(capsys, made, tmp_path):
    cube = produced(str(made / "store"), made)[0].path
    code, out, _ = call(capsys, "export", cube, tmp_path / "cube.parquet")
    assert code == 0
    assert "25 rows" in out
    assert len(pd.read_parquet(tmp_path / "cube.parquet")) == 25
    code, _, err = call(capsys, "export", made / "store" / "photos" / "chunks", tmp_path / "chunks.parquet")
    assert code == 5
    assert "no feature cube" in err
