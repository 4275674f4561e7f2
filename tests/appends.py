"""Append one file after another, and see what that does to a run and to reading: a program, and its table.

    uv run python -m tests.appends --appends 1000

An archive of one image grows by one file a run. Now and then: seconds of such a run, seconds to open the cube and read
all of it or one path, and what it takes on the disk, beside a cube that was made of the same files at once.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from scattercube.pipeline.job import Job, run
from scattercube.pipeline.stores.opening import open_cube


def measure(n_appends: int, backend: str, folder: Path) -> list[str]:
    """Grow an archive, and return the rows of the table."""
    archive, rows = folder / "archive", []
    archive.mkdir()
    rng, marks = np.random.default_rng(0), {10**n for n in range(7)} | {n_appends}
    add(archive, 0, rng)
    brought_up(archive, folder / "grown", backend)
    for number in range(1, n_appends + 1):
        add(archive, number, rng)
        begin = time.perf_counter()
        cube = brought_up(archive, folder / "grown", backend)
        seconds = time.perf_counter() - begin
        if number in marks:
            shutil.rmtree(folder / "fresh", ignore_errors=True)
            fresh = brought_up(archive, folder / "fresh", backend)
            same(open_cube(cube), open_cube(fresh))
            cells = [f"{number:,}", f"{seconds:.2f}"]
            for read in (lambda one: one["scattering"].load(), lambda one: one["scattering"].isel(path=3).load()):
                cells += [f"{fastest(cube, read):.1f}, {fastest(fresh, read):.1f}"]
            cells += [f"{disk_nbytes(cube) / 1e6:.2f}, {disk_nbytes(fresh) / 1e6:.2f}"]
            rows.append("| " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    return rows


def add(archive: Path, number: int, rng: np.random.Generator) -> None:
    np.save(archive / f"{number:06d}.npy", rng.integers(0, 256, (32, 32)).astype(np.uint8))


def brought_up(archive: Path, root: Path, backend: str) -> Path:
    job = Job(entry=str(archive), store=str(root), until="extract", serial=True, backend=backend, set=("J=2", "L=4"))
    return Path(run(job).prepared.places.cube)


def same(grown: xr.Dataset, fresh: xr.Dataset) -> None:
    assert grown["sample_id"].values.tolist() == fresh["sample_id"].values.tolist()
    for name in ("scattering", "status"):
        np.testing.assert_array_equal(grown[name], fresh[name])


def fastest(cube: Path, read: Callable[[xr.Dataset], xr.DataArray]) -> float:
    """Milliseconds to open a cube and read of it, the best of five."""
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        read(open_cube(cube))
        found.append(1e3 * (time.perf_counter() - begin))
    return min(found)


def disk_nbytes(cube: Path) -> int:
    return sum(file.stat().st_size for file in cube.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=1000)
    parser.add_argument("--backend", default="zarr", choices=("zarr", "icechunk"))
    given = parser.parse_args()
    head = ["appends", "a run, s", "read all, ms: grown, at once", "one path, ms", "disk, MB"]
    print("| " + " | ".join(head) + " |\n|" + len(head) * "---|")
    with tempfile.TemporaryDirectory() as folder:
        measure(given.appends, given.backend, Path(folder))


if __name__ == "__main__":
    main()
