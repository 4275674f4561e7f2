"""The house: who imports whom, one door per library, nothing heavy at the door, README and tree in step."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "pipeline", "flows")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

# library → the modules that may import it, directly or lazily
DOORS = {
    "cupy": {"kernels.device"},
    "cupyx": {"kernels.device"},
    "zarr": {"pipeline.sources.array_files.zarrs"}
    | {f"pipeline.stores.{name}" for name in ("documents", "history", "icechunk_store", "snapshots", "transactions")},
    "icechunk": {"pipeline.stores.repositories", "pipeline.stores.icechunk_store"},
    "h5py": {"pipeline.sources.array_files.hdf5"},
    "pyarrow": {f"pipeline.sources.{name}" for name in ("labels", "array_files.parquet", "array_files.packed")}
    | {"pipeline.exports"},
    "dask": {"pipeline.clusters", "pipeline.lazy"},
    "distributed": {"pipeline.execute", "pipeline.clusters"},
    "dask_cuda": {"pipeline.clusters"},
    "matplotlib": {"pipeline.charts", "pipeline.charts_signals", "pipeline.charts_volumes"},
    "jinja2": {"pipeline.report"},
    "PIL": {"pipeline.sources.pictures.images", "pipeline.charts"},
    "tifffile": {"pipeline.sources.pictures.images"},
    "soundfile": {"pipeline.sources.sounds.recordings"},
    "soxr": {"pipeline.sources.sounds.recordings"},
    "obstore": {"pipeline.sources.archives.objects", "pipeline.stores.files", "pipeline.stores.buckets"},
    "astropy": {f"pipeline.sources.sky_maps.{name}" for name in ("fits", "fits_headers", "wcs", "healpix")},
    "astropy_healpix": {"pipeline.sources.sky_maps.healpix"},
    "cyclopts": {f"flows.{name}" for name in ("cli", "terminal", "quarantine", "cube_commands")},
}
# inside the pipeline: a module may import from its own level's list and everything to the left
LEVELS = (
    {"errors", "keys", "addresses"},
    {"spec"},
    {"policies"},
    {"catalog", "sources"},
    {"stores"},
    {"places", "growth", "transforms", "tiles"},
    {"plan", "quarantine"},
    {"identity"},
    {"stage"},
    {"cube", "blas", "gpus", "clusters", "execute"},
    {"lazy"},
    {"charts", "charts_signals", "charts_volumes", "features"},
    {"reading"},
    {"batches", "differences", "exports", "produced"},
    {"exhibits"},
    {"heads"},
    {"fitted", "protocol"},
    {"scoring"},
    {"ingest", "extract", "fit", "report"},
    {"estimate"},
    {"job"},
)
STAGES = {"ingest", "extract", "fit", "report"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path):
    """Every module that a file imports when it runs, lazily or not; names from a package count as its submodules."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; flow files loaded by path cannot have any"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_one_way_and_through_the_doors(file):
    name = module_name(file)
    folder = name.split(".")[0]
    for target in imports(file):
        top = target.split(".")[0]
        assert top not in (*FOLDERS, "catalogs", "deploy"), f"{name} imports the bare name {target}"
        if top in DOORS:
            assert name in DOORS[top], f"{name} imports {target}; its door is {', '.join(sorted(DOORS[top]))}"
        if top == "prefect":
            assert folder == "flows", f"{name} imports {target}; Prefect stays in flows/"
        if target.startswith("scattercube."):
            other = target.split(".")[1]
            if other in FOLDERS:
                assert FOLDERS.index(other) <= FOLDERS.index(folder), f"{name} imports {target}: against the direction"


@pytest.mark.parametrize("file", [f for f in FILES if module_name(f).startswith("pipeline.")], ids=module_name)
def test_inside_the_pipeline_stages_meet_only_in_the_store(file):
    own = module_name(file).split(".")[1]
    level = next((i for i, names in enumerate(LEVELS) if own in names), None)
    assert level is not None, f"{own} has no level: add it to LEVELS"
    for target in imports(file):
        if not target.startswith("scattercube.pipeline."):
            continue
        other = target.split(".")[2]
        index = next((i for i, names in enumerate(LEVELS) if other in names), None)
        if index is None or other == own:
            continue
        assert index <= level, f"{own} imports {other}: against the direction"
        assert not (own in STAGES and other in STAGES), f"stage {own} imports stage {other}"


# Zarr looks for CuPy itself, where it is installed.
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("scattercube.kernels", "cupy xarray pandas dask distributed zarr prefect matplotlib sklearn"),
        ("scattercube.pipeline.extract", "xarray pandas prefect matplotlib sklearn dask.array astropy"),
        ("scattercube.pipeline.ingest", "xarray pandas prefect matplotlib sklearn dask.array astropy"),
        ("scattercube.flows.cli", "xarray pandas prefect matplotlib sklearn dask.array distributed"),
    ],
)
def test_what_an_import_does_not_load(module, absent):
    code = f"import sys, {module}; print([m for m in {absent.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"import {module} loads {done.stdout.strip()}"


def test_the_package_is_a_shell_of_links():
    for name in (*FOLDERS, "catalogs", "deploy"):
        link = ROOT / "scattercube" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_no_file_is_past_reading():
    long = {module_name(f): n for f in FILES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long, f"past 400 lines: {long}"


def test_the_readme_tree_is_the_tree():
    """Every module and folder is in the README's tree, and the tree names nothing that is not there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1]
    missing = [f for f in FILES if f.name != "__init__.py" and f.name not in tree]
    assert not missing, f"not in the README's tree: {missing}"
    named = {word for word in tree.split() if word.endswith(".py")}
    there = {f.name for f in FILES} | {f.name for f in (ROOT / "tests").rglob("*.py")}
    assert named <= there, f"in the README's tree but not there: {named - there}"


def test_no_registry_address_is_committed():
    """`uv.lock` would record download addresses; `constraints.txt` has names and versions only."""
    assert "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line or line.startswith("#") or not line for line in lines)
    assert not any("://" in line for line in lines)
