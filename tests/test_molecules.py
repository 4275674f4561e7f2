"""Molecules: XYZ files, the densities that they become, and tables of numbers to predict."""

import gzip
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import HarmonicScattering3D
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.policies import LEAST_WIDTH, MARGIN, Molecules
from scattercube.pipeline.sources import Listing, load_entry, read, scan
from scattercube.pipeline.sources.molecules import ATOMIC_NUMBERS, Molecule, density, n_valence, parse_xyz, turned
from scattercube.pipeline.spec import parse

WATER = (
    b"3\nwater, \xc3\x85\nO 0.000000 0.000000 0.117300\nH 0.000000 0.757200 -0.469200\nH 0.000000 -0.757200 -0.469200\n"
)
METHANE = (
    b"5\ncharge = 0\n C 0.0 0.0 0.0\n H 0.63 0.63 0.63\n H -0.63 -0.63 0.63\n H -0.63 0.63 -0.63\n H 0.63 -0.63 -0.63"
)
GRID = {"size": [24, 20, 28], "spacing": 0.4, "width": 0.4}
DATA = Path(os.environ.get("SCATTERCUBE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def entry(location: Path | str, **fields: Any) -> Entry:
    base = {"name": "tiny", "title": "tiny", "licence": "CC0-1.0", "reader": "molecules", "location": str(location)}
    return parse(Entry, base | {"molecules": GRID} | fields, "the test", EntryError)


def everything(made: Entry) -> tuple[Listing, list[np.ndarray | RecordError]]:
    listing = scan(made, Path())
    return listing, list(read(made, Path(), listing.columns))


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def naive(molecule: Molecule, charges: np.ndarray, size: tuple[int, ...], spacing: float, width: float) -> np.ndarray:
    """The sum over atoms and 27 boxes, voxel by voxel."""
    middle = (molecule.positions.max(axis=0) + molecule.positions.min(axis=0)) / 2
    z, y, x = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * spacing for n in size), indexing="ij")
    total = np.zeros(size)
    for charge, (px, py, pz) in zip(charges, molecule.positions - middle, strict=True):
        for i, j, k in np.ndindex(3, 3, 3):
            shift = (np.array([i, j, k]) - 1) * np.array(size) * spacing
            square = (z - pz - shift[0]) ** 2 + (y - py - shift[1]) ** 2 + (x - px - shift[2]) ** 2
            total += charge * np.exp(-square / (2 * width**2)) / (2 * np.pi * width**2) ** 1.5
    return total


# --- The reader ---


@pytest.mark.parametrize(
    "write",
    [
        lambda p, files: write_folder(p / "folder", files),
        lambda p, files: write_tar(p / "a.tar.gz", files),
        lambda p, files: write_zip(p / "a.zip", files),
        lambda p, files: write_folder(p / "gz", {f"{name}.gz": gzip.compress(text) for name, text in files.items()}),
    ],
    ids=["folder", "tar.gz", "zip", "xyz.gz"],
)
def test_every_kind_of_archive_gives_the_same_samples(tmp_path, write):
    listing, samples = everything(entry(write(tmp_path, {"a/1.xyz": METHANE, "b/2.xyz": WATER, "notes.txt": b"x"})))
    layout = listing.layout
    assert (layout.dims, layout.shape, layout.dtype) == (("channel", "z", "y", "x"), (3, 24, 20, 28), np.float32)
    assert (layout.channels, layout.spacing, layout.units) == (
        ("full", "valence", "core"),
        (0.4,) * 3,
        ("angstrom",) * 3,
    )
    assert layout.signal_dims == ("z", "y", "x")
    assert [name.removesuffix(".gz") for name in listing.columns["sample_id"]] == ["a/1.xyz", "b/2.xyz"]
    assert listing.columns["n_atoms"].tolist() == [5, 3]
    assert listing.columns["formula"].tolist() == ["CH4", "H2O"]
    for sample, text in zip(samples, (METHANE, WATER), strict=True):
        np.testing.assert_array_equal(sample, density(parse_xyz(text, "x"), Molecules(**made_of(GRID)), "x"))


def made_of(grid: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in grid.items()}


def test_one_channel_has_no_axis_and_windows_are_parts(tmp_path):
    path = write_folder(tmp_path / "f", {"1.xyz": METHANE})
    made = entry(path, molecules=GRID | {"channels": ["valence"]})
    listing, (whole,) = everything(made)
    assert (listing.layout.dims, listing.layout.shape, listing.layout.channels) == (("z", "y", "x"), (24, 20, 28), ())
    window = (slice(3, 17), slice(0, 20), slice(11, 12))
    (part,) = read(made, Path(), listing.columns, window)
    np.testing.assert_allclose(part, whole[window], rtol=1e-5, atol=1e-12)
    (part,) = read(entry(path), Path(), listing.columns, window)
    assert part.shape == (3, 14, 20, 1)


def test_what_cannot_be_used_is_one_record_and_the_others_go_on(tmp_path):
    far = b"2\n\nH 0 0 0\nH 30 0 0\n"
    iron = b"1\n\nFe 0 0 0\n"
    files = {"1.xyz": METHANE[:-20], "2.xyz": WATER, "3.xyz": far, "4.xyz": iron, "5.xyz": b""}
    listing, samples = everything(entry(write_folder(tmp_path / "f", files)))
    assert listing.columns["n_atoms"].tolist() == [0, 3, 2, 1, 0]
    assert listing.columns["formula"].tolist() == ["", "H2O", "H2", "Fe", ""]
    assert isinstance(samples[1], np.ndarray)
    reasons = [sample.reason for sample in samples if isinstance(sample, RecordError)]
    assert reasons == ["unreadable", "wrong-shape", "unreadable", "unreadable"]
    message = str(samples[2])
    assert message.startswith("3.xyz: the nuclei span 0.00×0.00×30.00 Å (z, y, x); of the box of 9.60×8.00×11.20 Å ")
    assert "set molecules.size to at least [8, 8, 83]" in message
    assert "Fe" in str(samples[3])
    assert "channels: [full]" in str(samples[3])
    _, alone = everything(entry(tmp_path / "f", members=["4.xyz"], molecules=GRID | {"channels": ["full"]}))
    assert alone[0].sum() * 0.4**3 == pytest.approx(26, rel=1e-4)


def test_the_size_that_is_asked_for_is_enough():
    molecule = Molecule(np.array([1, 8]), np.array([[0.0, 0.0, 0.0], [1.3, 7.7, 3.1]]))
    options = Molecules(size=(16, 16, 16), spacing=0.35, width=0.35)
    with pytest.raises(RecordError, match=r"at least \[17, 30, 12\]"):
        density(molecule, options, "x")
    assert density(molecule, options.model_copy(update={"size": (17, 30, 12)}), "x").shape == (3, 17, 30, 12)


# --- Densities ---

COORDINATES = st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(
    positions=COORDINATES,
    relative=st.floats(LEAST_WIDTH, 3),
    spacing=st.floats(0.2, 1.5),
    size=st.tuples(*[st.integers(0, 9)] * 3),
)
def test_the_sum_over_voxels_is_the_charge(positions, relative, spacing, size):
    positions = np.array(positions) * spacing
    numbers = np.resize([1, 6, 8, 7, 16], len(positions))
    width = relative * spacing
    least = int(np.ceil((2 * MARGIN * width + 4 * spacing) / spacing))
    options = Molecules(size=tuple(least + extra for extra in size), spacing=spacing, width=width)
    found = density(Molecule(numbers, positions), options, "x")
    assert found.dtype == np.float32
    assert (found >= 0).all()
    charges = found.sum(axis=(1, 2, 3), dtype=np.float64) * spacing**3
    valence = np.array([n_valence(int(number)) for number in numbers]).sum()
    expected = [numbers.sum(), valence, numbers.sum() - valence]
    np.testing.assert_allclose(charges, expected, rtol=1e-4)


@pytest.mark.parametrize("text", [WATER, METHANE], ids=["water", "methane"])
def test_the_density_is_the_sum_of_gaussians_over_atoms_and_boxes(text):
    molecule = parse_xyz(text, "x")
    options = Molecules(size=(12, 14, 13), spacing=0.5, width=0.55)
    found = density(molecule, options, "x")
    valence = np.array([n_valence(int(number)) for number in molecule.numbers])
    for channel, charges in zip(found, (molecule.numbers, valence, molecule.numbers - valence), strict=True):
        expected = naive(molecule, charges, options.size, options.spacing, options.width)
        np.testing.assert_allclose(channel, expected, atol=2e-7 * found.max())


def test_atoms_are_added_up_in_blocks(monkeypatch):
    molecule = parse_xyz(METHANE, "x")
    options = Molecules(**made_of(GRID))
    whole = density(molecule, options, "x")
    monkeypatch.setattr("scattercube.pipeline.sources.molecules._BLOCK_VALUES", 1000)
    np.testing.assert_allclose(density(molecule, options, "x"), whole, rtol=1e-5, atol=1e-9)


def test_features_hardly_depend_on_place_and_orientation():
    """Translation is exact up to the grid; a principal orientation does away with the file's own."""
    rng = np.random.default_rng(0)
    molecule = Molecule(np.array([6, 6, 8, 1, 1, 7]), rng.uniform(-1.5, 1.5, (6, 3)))
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    moved = Molecule(molecule.numbers, molecule.positions @ rotation.T + [10.0, -3.0, 0.123])
    S = HarmonicScattering3D(2, (24, 24, 24), sigma_0=1.0)
    for orientation, tolerance in (("principal", 1e-4), ("given", 0.05)):
        options = Molecules(size=(24, 24, 24), spacing=0.4, width=0.4, orientation=orientation)
        one, other = (S(density(m, options, "x")) for m in (molecule, moved))
        assert np.abs(one - other).max() / np.abs(one).max() < tolerance


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=8))
def test_turning_is_a_rotation_to_the_principal_axes(positions):
    positions = np.array(positions)
    found = turned(positions)
    between = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), between, atol=1e-9)
    variances = found.var(axis=0)
    assert (np.diff(variances) <= 1e-9 * max(variances.max(), 1e-9)).all(), "x, y, z: largest first"
    if len(positions) == 4:
        assert volume(found) == pytest.approx(volume(positions), abs=1e-6), "a rotation keeps the hand"


def volume(positions: np.ndarray) -> float:
    return float(np.linalg.det(positions[1:] - positions[0]))


# --- Elements ---


def test_valence_electrons_are_those_of_the_periodic_table():
    groups = {
        1: "H Li Na K Rb Cs",
        2: "He Be Mg Ca Sr Ba",
        3: "B Al Ga In Tl",
        4: "C Si Ge Sn Pb",
        5: "N P As Sb Bi",
        6: "O S Se Te Po",
        7: "F Cl Br I At",
        8: "Ne Ar Kr Xe Rn",
    }
    for expected, symbols in groups.items():
        for symbol in symbols.split():
            assert n_valence(ATOMIC_NUMBERS[symbol]) == expected, symbol
    for symbol in ["Sc", "Fe", "Cu", "Zn", "Y", "Ag", "Cd", "La", "Ce", "Lu", "Hf", "W", "Au", "Hg", "U", "Cn"]:
        assert n_valence(ATOMIC_NUMBERS[symbol]) is None, symbol
    assert len(ATOMIC_NUMBERS) == 118
    assert [ATOMIC_NUMBERS[symbol] for symbol in ("H", "C", "S", "Xe", "Au", "Og")] == [1, 6, 16, 54, 79, 118]


@pytest.mark.parametrize(
    ("symbols", "formula"), [("CCHHHO", "C2H3O"), ("HHO", "H2O"), (["Na", "Cl"], "ClNa"), ("C", "C"), ("NNHC", "CHN2")]
)
def test_formulas_are_hill_s(symbols, formula):
    numbers = np.array([ATOMIC_NUMBERS[symbol] for symbol in symbols])
    assert Molecule(numbers, np.zeros((len(numbers), 3))).formula == formula


# --- XYZ files ---


def test_an_xyz_file_is_parsed():
    molecule = parse_xyz(b" 2 \r\n\r\nC  1e-3\t-2. .5 0.1 extra\r\nCl 1 2 3\r\n\r\n  \r\n", "x")
    assert molecule.numbers.tolist() == [6, 17]
    np.testing.assert_array_equal(molecule.positions, [[0.001, -2, 0.5], [1, 2, 3]])


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", "unreadable", "line 1: expected the number of atoms, got ''"),
        (b"\x89PNG\r\n\x1a\n", "unreadable", "line 1: expected the number of atoms"),
        (b"1_0\n\nH 0 0 0\n", "unreadable", "line 1: expected the number of atoms, got '1_0'"),
        (b"-1\n\n", "unreadable", "line 1: expected the number of atoms, got '-1'"),
        (b"0\n\n", "unreadable", "promises 0 atoms, has 0"),
        (b"3\n\nH 0 0 0\nH 1 0 0\n", "unreadable", "promises 3 atoms, has 2; is it complete?"),
        (b"3\n", "unreadable", "promises 3 atoms, has 0; is it complete?"),
        (b"1\n\nH 0 0 0\nH 1 0 0\n", "unreadable", "line 4: more follows the 1 atoms; a file must hold one molecule"),
        (b"1\n\nH 0 0 0\n\n1\n\nH 0 0 0\n", "unreadable", "line 5: more follows the 1 atoms"),
        (b"999999999\n\n", "too-large", "promises 999999999 atoms; the limit is 20000"),
        (b"9999999999\n\n", "unreadable", "line 1: expected the number of atoms"),
        (b"1\n\nXx 0 0 0\n", "unreadable", "line 3: no element has the symbol 'Xx'"),
        (b"1\n\nCL 0 0 0\n", "unreadable", "line 3: no element has the symbol 'CL'; write Cl, if that is meant"),
        (b"1\n\n6 0 0 0\n", "unreadable", "line 3: no element has the symbol '6'"),
        (b"1\n\nH 0 0\n", "unreadable", "line 3: expected a symbol and three coordinates, got 'H 0 0'"),
        (b"1\n\nH 0 0 zero\n", "unreadable", "line 3: 'zero' is no number"),
        (b"1\n\nH 0 0 1_0\n", "unreadable", "line 3: '1_0' is no number"),
        (b"1\n\nH 0 0 1.5*^-6\n", "unreadable", "is no number"),
        ("1\n\nH 0 0 ١\n".encode(), "unreadable", "is no number"),
        (b"1\n\nH 0 nan 0\n", "non-finite", "line 3: the coordinate nan is not finite"),
        (b"1\n\nH 0 -inf 0\n", "non-finite", "line 3: the coordinate -inf is not finite"),
        (b"1\n\nH 0 1e999 0\n", "non-finite", "line 3: the coordinate 1e999 is not finite"),
        (WATER[:-4], "unreadable", "line 5: ends within a number: 3 decimals, all others have 6; is it complete?"),
        (WATER[:-7], "unreadable", "ends within a number: 0 decimals"),
    ],
)
def test_what_is_wrong_with_an_xyz_file_is_said(content, reason, message):
    with pytest.raises(RecordError) as caught:
        parse_xyz(content, "bad.xyz")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("bad.xyz")
    assert message in str(caught.value)


@settings(deadline=None)
@given(st.integers(0, len(WATER) - 3))
def test_no_truncated_file_is_read(length):
    with pytest.raises(RecordError):
        parse_xyz(WATER[:length], "x")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_are_a_molecule_or_a_record_error(content):
    try:
        found = parse_xyz(content, "x")
    except RecordError:
        return
    assert np.isfinite(found.positions).all()


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("scattercube.pipeline.sources.molecules._MAX_NBYTES", 50)
    with pytest.raises(SourceError, match="more than 50 bytes"):
        scan(entry(write_folder(tmp_path / "f", {"1.xyz": WATER})), Path())


# --- Entries ---


@pytest.mark.parametrize(
    ("molecules", "message"),
    [
        ({"width": 0.29}, r"width: 0\.29 Å is less than 0\.75 voxels of 0\.4 Å"),
        ({"size": [24, 7, 24]}, r"size: 7 voxels of 0\.4 Å hold no atom"),
        ({"channels": ["full", "full"]}, "channels: full, full names one more than once"),
        ({"channels": ["spin"]}, "molecules.channels"),
        ({"channels": []}, "molecules.channels"),
    ],
)
def test_grids_that_cannot_work_are_refused(molecules, message):
    with pytest.raises(EntryError, match=message):
        entry("x.zip", molecules=GRID | molecules)


def test_the_grid_is_for_the_reader_of_molecules_and_it_alone():
    for fields in ({"molecules": None}, {"reader": "images"}):
        with pytest.raises(EntryError, match="the reader molecules, and only that, needs size, spacing and width"):
            entry("x.zip", **fields)
    for sample in ({"crop": {"size": [8, 8]}}, {"exact": True, "missing": True}):
        with pytest.raises(EntryError, match=r"molecules\.size is the size of all samples"):
            entry("x.zip", sample=sample)


def test_an_entry_for_bare_molecules_is_inferred(tmp_path):
    _, samples = everything(load_entry(str(write_folder(tmp_path / "f", {"1.xyz": WATER, "2.xyz": METHANE})), tmp_path))
    assert {type(sample) for sample in samples} == {np.ndarray}
    iron = b"2\n\nFe 0 0 0\nO 0 60 0\n"
    entry = load_entry(
        str(write_tar(tmp_path / "m.tar.gz", {"a/1.xyz": WATER, "b/2.xyz": iron, "c/3.xyz": b"?"})), tmp_path
    )
    assert entry.molecules.channels == ("full",)
    assert max(entry.molecules.size) <= 64
    assert "the 2 molecules looked at, turned to their principal axes, span at most" in entry.description
    assert "3 labels are the folders' names" in entry.description
    _, samples = everything(entry)
    assert [type(sample) for sample in samples] == [np.ndarray, np.ndarray, RecordError]
    with pytest.raises(SourceError, match=r"none of 1 files can be read; the first: 3\.xyz, line 1"):
        load_entry(str(write_folder(tmp_path / "bad", {"3.xyz": b"?"})), tmp_path)


# --- Tables of targets ---

FILES = {f"xyz/{i}.xyz": METHANE for i in range(4)}
TABLE = {"file": "hof.txt", "columns": ["file", "pbe0", "dftb"], "key": "file", "match": "name", "target": "pbe0"}


def labelled(tmp_path: Path, table: bytes, **fields: Any) -> Entry:
    path = write_tar(tmp_path / "m.tar.gz", FILES | {"hof.txt": table})
    return entry(path, labels={"table": TABLE | fields})


def test_a_table_of_white_space_without_a_header(tmp_path):
    table = b"0.xyz -417.031 -431.787271961\n 1.xyz\t-711.1   7\n\n3.xyz -1e3 8\n"
    listing = scan(labelled(tmp_path, table, unit="kcal/mol"), Path())
    assert listing.columns["target"].dtype == np.float64
    np.testing.assert_array_equal(listing.columns["target"], [-417.031, -711.1, np.nan, -1000])
    np.testing.assert_array_equal(listing.columns["dftb"], [-431.787271961, 7, np.nan, 8])
    assert "pbe0" not in listing.columns
    assert "label" not in listing.columns
    assert "1 of 4 samples have no target" in listing.notes


def test_a_table_with_a_header_and_a_label_beside_the_target(tmp_path):
    table = b"file,energy,kind\n0.xyz,1,a\n1.xyz,2,b\n2.xyz,inf,a\n3.xyz,,b\n"
    path = write_tar(tmp_path / "m.tar.gz", FILES | {"t.csv": table})
    made = entry(
        path, labels={"table": {"file": "t.csv", "key": "file", "match": "name", "target": "energy", "label": "kind"}}
    )
    listing = scan(made, Path())
    np.testing.assert_array_equal(listing.columns["target"], [1, 2, np.nan, np.nan])
    assert listing.columns["label"].tolist() == list("abab")
    assert "2 of 4 samples have no target" in listing.notes


def test_metadata_that_is_called_target_gets_another_name(tmp_path):
    path = write_tar(tmp_path / "m.tar.gz", FILES | {"t.csv": b"file,target\n0.xyz,1\n"})
    listing = scan(entry(path, labels={"table": {"file": "t.csv", "key": "file", "match": "name"}}), Path())
    assert "target" not in listing.columns
    assert "meta_target" in listing.columns


@pytest.mark.parametrize(
    ("table", "fields", "error", "message"),
    [
        (
            b"0.xyz high 2\n",
            {},
            EntryError,
            r"labels\.table\.target: pbe0 in hof\.txt holds 'high', which is no number",
        ),
        (b"0.xyz 1 2\n", {"target": "mae"}, EntryError, "has no column 'mae'; it has file, pbe0, dftb"),
        (b"0.xyz 1 2\n0.xyz 1 2\n", {}, EntryError, r"lists '0\.xyz' more than once"),
        (b"0.xyz 1\n", {}, SourceError, r"labels\.table: hof\.txt cannot be read"),
        (b"0.xyz 1 2\n1.xyz 1\n", {}, SourceError, r"labels\.table: hof\.txt cannot be read"),
        (b"0.xyz 1 2\n", {"target": None, "unit": "m"}, EntryError, "unit: is that of the target"),
        (b"0.xyz 1 2\n", {"target": "file"}, EntryError, "target: file is the key or the label already"),
        (b"0.xyz 1 2\n", {"columns": ["a", "a", "b"]}, EntryError, "columns: a, a, b names one more than once"),
        (b"0.xyz 1 2\n", {"file": "t.parquet"}, EntryError, "columns: a Parquet file names its columns itself"),
    ],
)
def test_tables_of_targets_that_do_not_fit(tmp_path, table, fields, error, message):
    with pytest.raises(error, match=message):
        scan(labelled(tmp_path, table, **fields), Path())


# --- Real data ---


@pytest.mark.realdata
@pytest.mark.skipif(not (DATA / "qm7.tar.gz").exists(), reason=f"qm7.tar.gz is not in {DATA}; set SCATTERCUBE_DATA")
def test_qm7():
    made = load_entry("qm7", DATA)
    listing = scan(made, DATA)
    columns = listing.columns
    assert len(columns["sample_id"]) == 7101
    assert listing.layout.shape == (3, *made.molecules.size)
    assert (columns["n_atoms"].min(), columns["n_atoms"].max()) == (4, 23)
    assert columns["formula"][0] == "CH4"
    assert columns["target"][0] == -417.031
    assert np.isfinite(columns["target"]).all()
    some = {name: values[::50] for name, values in columns.items()}
    samples = list(read(made, DATA, some))
    charges = [sample.sum(axis=(1, 2, 3), dtype=np.float64) * made.molecules.spacing**3 for sample in samples]
    elements = {"C": (6, 4), "H": (1, 1), "N": (7, 5), "O": (8, 6), "S": (16, 6)}
    for formula, found in zip(some["formula"], charges, strict=True):
        counts = {symbol: int(n or 1) for symbol, n in re.findall(r"([A-Z])(\d*)", formula)}
        full, valence = (sum(n * elements[symbol][kind] for symbol, n in counts.items()) for kind in (0, 1))
        np.testing.assert_allclose(found, [full, valence, full - valence], rtol=1e-4)
