"""Time how cubes are read, by what is asked and by how the cube is cut.

    uv run python tests/benchmarks/bench_reading.py            # prints
    uv run python tests/benchmarks/bench_reading.py --write    # and writes docs/reading.md

Cubes of noise images are written as `CUTS` says: a shard is always about 16 MB of whole samples, what differs is the
chunk inside. Reads go through xarray alone; an epoch through ``iter_batches``. ``warm``: the files are in the page
cache; ``cold``: the page cache was told to forget them (``posix_fadvise``), so that they come from the disk, as far as
the machine under this one does not keep them. ``fetched`` is what the process read from files, over what was asked for.
The best of some turns counts.
"""

import argparse
import datetime
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from scattercube.kernels import HarmonicScattering3D, Scattering2D
from scattercube.pipeline.batches import iter_batches
from scattercube.pipeline.plan import CHUNK_NBYTES, SHARD_NBYTES, in_words

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reading.md"
CUBE_NBYTES = 64 << 20
N_LABELS = 10
BATCH = 256


@dataclass(frozen=True)
class Cube:
    """A cube: the coefficients of noise, and how many samples make it about as large as the others."""

    name: str
    transform: Callable[[], np.ndarray]

    def values(self) -> np.ndarray:
        """(sample, …) float32: some transformed samples, again and again, each scaled by another number."""
        some = self.transform()
        n = max(len(some), CUBE_NBYTES // some[0].nbytes)
        scale = np.random.default_rng(1).uniform(0.5, 2, (n, *(1,) * (some.ndim - 1))).astype(np.float32)
        return some[np.arange(n) % len(some)] * scale


def digits() -> np.ndarray:
    return Scattering2D(3, (28, 28))(np.random.default_rng(0).standard_normal((2048, 28, 28), np.float32))


def photographs() -> np.ndarray:
    return Scattering2D(4, (256, 256))(np.random.default_rng(0).standard_normal((24, 256, 256), np.float32))


def molecules() -> np.ndarray:
    S = HarmonicScattering3D(2, (16, 16, 16), L=3)
    return S(np.abs(np.random.default_rng(0).standard_normal((512, 3, 16, 16, 16), np.float32)))


CUBES = (Cube("digits", digits), Cube("photographs", photographs), Cube("molecules", molecules))

# name → (bytes of a chunk, into how many parts the paths are cut)
CUTS = {
    "128 kB": (CHUNK_NBYTES // 4, 1),
    "512 kB": (CHUNK_NBYTES, 1),
    "2 MB": (4 * CHUNK_NBYTES, 1),
    "512 kB, paths / 8": (CHUNK_NBYTES, 8),
    "512 kB, paths / 32": (CHUNK_NBYTES, 32),
}
DEFAULT = "512 kB"


def write(values: np.ndarray, axis: int, cut: str, path: Path) -> tuple[int, ...]:
    """Write a cube as a cut says, and return the shape of its chunks. ``axis``: the paths'."""
    nbytes, parts = CUTS[cut]
    row = values[0].nbytes
    shard_rows = max(1, min(SHARD_NBYTES // row, len(values)))
    chunk = list(values.shape)
    chunk[axis] = ceil(values.shape[axis] / parts)
    rows = max(1, min(int(nbytes // (row * chunk[axis] / values.shape[axis])), shard_rows))
    chunk[0], shard = rows, list(values.shape)
    shard[0], shard[axis] = rows * ceil(shard_rows / rows), chunk[axis] * parts
    dims = ["sample", *(["channel"] if axis == 2 else []), "path", *["y", "x"][: values.ndim - axis - 1]]
    status = np.zeros(len(values), np.uint8)
    label = (np.arange(len(values)) % N_LABELS).astype(np.int8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", category=UserWarning)
        group = zarr.open_group(path, mode="w", zarr_format=3)
        array = group.create_array(
            "scattering",
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(chunk),
            shards=tuple(shard),
            compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")],
            fill_value=np.nan,
            dimension_names=dims,
        )
        for start in range(0, len(values), shard[0]):
            array[start : start + shard[0]] = values[start : start + shard[0]]
        for name, column in (("status", status), ("label", label)):
            group.create_array(name, data=column, dimension_names=["sample"])
        zarr.consolidate_metadata(path)
    return tuple(chunk)


def questions(cube: xr.Dataset) -> dict[str, Callable[[], int]]:
    """What is asked of a cube; each returns the bytes that were asked for."""
    values = cube["scattering"]
    n, at, rng = values.sizes["sample"], values.sizes["path"] // 2, np.random.default_rng(2)
    label = np.flatnonzero(cube["label"].values == 3)
    some = np.sort(rng.choice(n, min(BATCH, n // 4), replace=False))

    def training() -> int:
        columns = cube.set_coords("label")
        return sum(found["scattering"].nbytes for found in iter_batches(columns, BATCH))

    return {
        "one path": lambda: values.isel(path=at).values.nbytes,
        "one sample": lambda: values[n // 3].values.nbytes,
        "one label of ten": lambda: values[label].values.nbytes,
        "random rows": lambda: values[some].values.nbytes,
        "whole": lambda: values.values.nbytes,
        "an epoch": training,
    }


def forget(path: Path) -> None:
    """Ask the page cache to forget the files of a store."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def fetched() -> int:
    """Bytes that this process has read so far."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar:")[1].split()[0])


@dataclass(frozen=True)
class Row:
    """What was found for one question."""

    cube: str
    cut: str
    chunk: tuple[int, ...]
    question: str
    warm_s: float
    cold_s: float
    nbytes: int
    fetched: float


def measure(cube: Cube, turns: int) -> list[Row]:
    """Write a cube in every cut and ask everything of it, in turns, so that whatever else runs slows all alike."""
    values = cube.values()
    axis = 2 if cube.name == "molecules" else 1
    folder = Path(tempfile.mkdtemp(prefix="scattercube-reading-"))
    try:
        paths = {cut: folder / str(number) for number, cut in enumerate(CUTS)}
        chunks = {cut: write(values, axis, cut, path) for cut, path in paths.items()}
        opened = {cut: xr.open_dataset(path, engine="zarr", chunks=None, cache=False) for cut, path in paths.items()}
        asked = {(cut, name): ask for cut in CUTS for name, ask in questions(opened[cut]).items()}
        cold, warm, read = ({key: [] for key in asked} for _ in range(3))
        nbytes = {}
        for _ in range(turns):
            for key, ask in asked.items():
                forget(paths[key[0]])
                before, begin = fetched(), time.perf_counter()
                nbytes[key] = ask()
                cold[key].append(time.perf_counter() - begin)
                read[key].append((fetched() - before) / nbytes[key])
                begin = time.perf_counter()
                ask()
                warm[key].append(time.perf_counter() - begin)
        return [
            Row(cube.name, key[0], chunks[key[0]], key[1], min(warm[key]), min(cold[key]), nbytes[key], min(read[key]))
            for key in asked
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(rows: list[Row], shape: tuple[int, ...]) -> list[str]:
    """Lay out one cube: a line a question, a column a cut."""
    chunks = {row.cut: row.chunk for row in rows}
    lines = [
        f"{rows[0].cube}: {'×'.join(map(str, shape))} float32, {in_words(np.prod(shape) * 4.0)}; "
        + "; ".join(f"{cut}: chunks of {'×'.join(map(str, chunk))}" for cut, chunk in chunks.items())
        + ".",
        "",
        "| asked for | " + " | ".join(f"**{cut}**" if cut == DEFAULT else cut for cut in CUTS) + " |",
        "| --- |" + " --: |" * len(CUTS),
    ]
    for question in dict.fromkeys(row.question for row in rows):
        found = {row.cut: row for row in rows if row.question == question}
        nbytes = in_words(next(iter(found.values())).nbytes)
        cells = [
            f"{_short(1e3 * row.warm_s)}, {_short(1e3 * row.cold_s)}; {_short(row.nbytes / row.warm_s / 1e6)}; "
            f"{_short(row.fetched)}×"
            for row in found.values()
        ]
        lines.append(f"| {question}, {nbytes} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _short(number: float) -> str:
    """Two significant figures, without powers of ten."""
    return f"{number:.2g}" if number < 100 else f"{float(f'{number:.2g}'):,.0f}"


def mixing(n_shards: int = 64, rows: int = 100, classes: int = 16) -> list[str]:
    """Measure how well a window mixes a cube that is sorted by class: how many classes a batch has."""
    n = n_shards * rows
    label = np.repeat(np.arange(classes), n // classes)
    cube = xr.Dataset(
        {
            "scattering": (("sample", "path"), np.zeros((n, 1), np.float32)),
            "status": ("sample", np.zeros(n, np.uint8)),
        },
        coords={"label": ("sample", label), "sample_id": ("sample", label)},
    )
    cube["scattering"].encoding["chunks"] = (rows, 1)
    lines = ["| window | classes in a batch of 64, of 16 | largest share of one class |", "| --: | --: | --: |"]

    def line(name: str, batches: list[np.ndarray]) -> str:
        counts = [np.bincount(batch, minlength=classes) for batch in batches]
        seen = np.mean([np.count_nonzero(count) for count in counts])
        return f"| {name} | {seen:.1f} | {np.mean([count.max() / count.sum() for count in counts]):.2f} |"

    for window in (1, 2, 4, 8, 16, 32):
        found = [found["label"] for found in iter_batches(cube, 64, window=window, prefetch=0, drop_last=True)]
        lines.append(line(str(window), found))
    whole = np.random.default_rng(0).permutation(label)
    lines.append(line("all rows permuted", [whole[start : start + 64] for start in range(0, n, 64)]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/reading.md")
    parser.add_argument("--turns", type=int, default=3, help="of which the best counts")
    chosen = parser.parse_args()
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, zarr {zarr.__version__}, {datetime.date.today()}", ""]
    for cube in CUBES:
        lines += table(measure(cube, chosen.turns), cube.values().shape)
        print("\n".join(lines[-12:]))
    lines += ["How well a window mixes 64 shards of 100 samples, sorted by class:", "", *mixing()]
    print("\n".join(lines[-9:]))
    if chosen.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split("<!-- table -->\n")
        after = rest.split("<!-- end -->")[1]
        PAGE.write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
