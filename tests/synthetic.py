"""Small runs made in the test: chunk store, feature cube, journals and run.json."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scattercube.pipeline.cube import path_coordinates
from scattercube.pipeline.identity import FORMAT
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.places import Places
from scattercube.pipeline.spec import ImageSpec, Spec
from scattercube.pipeline.stores.protocol import IDENTITY, OK, PARTIAL, QUARANTINED, ROWS, Store
from scattercube.pipeline.stores.states import VERSIONS
from scattercube.pipeline.transforms import build, output_dims

SPEC = ImageSpec(J=2, L=4)
COST = {"read_s": 0.1, "compute_s": 0.2, "write_s": 0.05}  # of all keys of a stage


def oriented_noise(angles_deg: Sequence[float], n_each: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """White noise filtered to a band around each orientation, every image standardised: histograms tell nothing."""
    rng = np.random.default_rng(seed)
    frequency_y, frequency_x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    direction = np.arctan2(frequency_y, frequency_x)
    images = []
    for angle in np.deg2rad(angles_deg):
        band = np.exp(6 * np.cos(2 * (direction - angle)))
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n_each, size, size))) * band).real
        images.append((noise - noise.mean(axis=(1, 2), keepdims=True)) / noise.std(axis=(1, 2), keepdims=True))
    return np.concatenate(images).astype(np.float32)


def chirps(rates: Sequence[float], n_each: int, size: int = 1024, seed: int = 0) -> np.ndarray:
    """Tones that rise or fall by so many octaves over the signal, from random pitches, in noise; standardised."""
    rng = np.random.default_rng(seed)
    time = np.arange(size) / size
    signals = []
    for octaves in rates:
        pitch = 0.05 * 2 ** (rng.uniform(-0.5, 0.5, (n_each, 1)) + octaves * (time - 0.5))
        phase = 2 * np.pi * (np.cumsum(pitch, axis=1) + rng.uniform(size=(n_each, 1)))
        sound = np.cos(phase) * (1 + np.cos(2 * np.pi * 8 * time)) + 0.1 * rng.standard_normal((n_each, size))
        signals.append((sound - sound.mean(axis=1, keepdims=True)) / sound.std(axis=1, keepdims=True))
    return np.concatenate(signals).astype(np.float32)


def blobs(widths: Sequence[float], n_each: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Volumes of a few Gaussians of one width at random places, of equal mass."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size),) * 3, indexing="ij")
    volumes = []
    for width in np.repeat(widths, n_each):
        places = rng.uniform(4, size - 4, (3, 3))
        squares = [sum((axis - x) ** 2 for axis, x in zip(axes, place, strict=True)) for place in places]
        volumes.append(sum(np.exp(-square / (2 * width**2)) for square in squares) / width**3)
    return np.array(volumes, np.float32)


def make_run(
    root: Path,
    signal: np.ndarray,
    labels: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    status: np.ndarray | None = None,
    spec: Spec = SPEC,
    name: str = "synthetic",
    columns: Mapping[str, np.ndarray] | None = None,
    target: np.ndarray | None = None,
    rate: float | None = None,
    tiles: Mapping[str, int] | None = None,
    **attrs: Any,
) -> Places:
    """Write what ``fit`` and ``report`` read, for signals (sample, [channel,] …) of the Spec's kind.

    Of samples that are partial the first output along the last axis is missing, and so are the values around it. With
    ``tiles``, lengths by dim, the stores are cut like those of a field.
    """
    places, n_axes = Places(str(root), name, spec.digest), len(spec.signal_dims)
    n, lead, shape = len(signal), signal.shape[1:-n_axes], signal.shape[-n_axes:]
    status = np.zeros(n, np.uint8) if status is None else np.asarray(status, np.uint8)
    transform = build(spec, shape, rate)
    features = np.full((n, *lead, *transform.output_shape), np.nan, np.float32)
    there, partial = np.isin(status, (OK, PARTIAL)), status == PARTIAL
    features[there] = transform(signal[there])
    variables: dict[str, Any] = {}
    dims = ("sample", *(("channel",) if lead else ()))
    feature_dims = (*dims, "path", *output_dims(spec, transform))
    if partial.any():
        signal, coverage = signal.astype(np.float32), np.where(np.isnan(features), np.float32(0), np.float32(1))
        signal[partial, ..., :4] = np.nan
        features[partial, ..., 0], coverage[partial, ..., 0] = np.nan, 0.25
        variables["coverage"] = (feature_dims, coverage)
    ids = np.array([f"image-{i:03d}.png" for i in range(n)], dtype=object)
    coords: dict[str, Any] = {"sample_id": ("sample", ids), "source": ("sample", ids)}
    for key, column in {"label": labels, "split": split}.items():
        if column is not None:
            coords[key] = ("sample", np.array(column, dtype=object))
    coords |= {key: ("sample", column) for key, column in (columns or {}).items()}
    if target is not None:
        coords["target"] = ("sample", target, {"units": "kJ/mol", "long_name": "energy, from the catalogue entry"})
    ids = coords["sample_id"][1]
    if lead:
        coords["channel"] = ("channel", np.array(["red", "green", "blue"][: lead[0]], dtype=object))
    attrs = {
        "title": "Synthetic images",
        "licence": "CC0-1.0",
        "entry": f"name: {name}\nreader: arrays\n",
        "entry_digest": "0123456789ab",
        "created": "2026-11-20T12:00:00+00:00",
        "history": "made by a test",
        "versions": json.dumps({"numpy": np.__version__}),
        "input_checksums": "{}",
        **attrs,
    }
    positions = {dim: (dim, np.arange(size, dtype=float)) for dim, size in zip(spec.signal_dims, shape, strict=True)}
    spacing = {"spacing": [1 / rate], "spacing_units": ["s"]} if rate else {}
    chunks = {"signal": ((*dims, *spec.signal_dims), signal, spacing), "status": ("sample", status)}
    bad = [
        {
            "sample_id": str(ids[i]),
            "source": f"archive.tar/{ids[i]}",
            "reason": "unreadable",
            "message": "cannot identify",
        }
        for i in np.flatnonzero(status == QUARANTINED)
    ]
    write(xr.Dataset(chunks, coords=coords | positions, attrs=attrs), places.chunk_store, "ingest", tiles, bad)

    coords |= path_coordinates(transform)
    for dim, values in zip(feature_dims[feature_dims.index("path") + 1 :], transform.positions, strict=True):
        coords[dim] = (dim, values)
    attrs |= {"spec": spec.to_yaml(), "spec_digest": spec.digest, "filter_digest": transform.filter_digest}
    variables |= {"scattering": (feature_dims, features), "status": ("sample", status)}
    write(xr.Dataset(variables, coords=coords, attrs=attrs), places.cube_store, "extract", tiles)
    return places


def write(
    dataset: xr.Dataset,
    store: Store,
    stage: str,
    tiles: Mapping[str, int] | None = None,
    bad: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a Dataset as a published store, cut into shards of a few samples, or of one and along other dims."""
    lengths = {"sample": 1, **tiles} if tiles else {"sample": 16}
    sizes = tuple(dataset.sizes[dim] for dim in lengths)
    grid = Grid(tuple(lengths), sizes, tuple(lengths.values()), tuple(lengths.values()))
    for name, variable in dataset.data_vars.items():
        cut = tuple(lengths.get(str(dim), size) for dim, size in variable.sizes.items())
        variable.encoding = {"chunks": (16,)} if name == "status" else {"chunks": cut, "shards": cut}
    identity = {"format": FORMAT, "entry": dataset.attrs["entry_digest"], "grid": grid.extent()}
    identity[ROWS] = {"samples": dataset.sizes["sample"]}
    store.begin(dataset.assign_attrs({IDENTITY: json.dumps(identity)}))
    status = dataset["status"].values
    for number, key in enumerate(grid.keys):
        region = grid.region(key)
        names = [name for name in dataset.data_vars if name != "status" or not tiles]
        arrays = {name: dataset[name].isel(region, missing_dims="ignore").values for name in names}
        digest, change = store.write(key, arrays)
        rows = range(region["sample"].start, region["sample"].stop)
        event = {
            **{"key": str(key), "digest": digest, "stage": stage, "attempt": 1, "worker": "pid 1", "started": 0.0},
            **{part: seconds / len(grid.keys) for part, seconds in COST.items()},
            **{"n_samples": len(rows), "peak_nbytes": 0},
            **{"nbytes_in": arrays[names[0]].nbytes, "nbytes_out": arrays[names[0]].nbytes},
            "bad": list(bad) if number == 0 else [],
            "not_ok": [[row, int(status[row])] for row in rows if status[row]] if tiles else [],
        }
        store.record([event], [change])
    if tiles:
        store.settle(dataset.sizes["sample"])
    store.publish()


def rewrite(dataset: xr.Dataset, store: Store, stage: str) -> None:
    """Write a store anew, from what was read of it and changed."""
    for folder in (store.url, f"{store.url}.run"):
        shutil.rmtree(folder)
    attrs = {name: value for name, value in dataset.attrs.items() if name not in (IDENTITY, VERSIONS)}
    write(dataset.drop_encoding().drop_attrs(deep=False).assign_attrs(attrs), store, stage)


def contents(store: Store) -> dict[str, bytes]:
    """Return what every file of a local store holds, without when it was made and how long it took."""
    folder = Path(store.url)
    found = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name: re.sub(rb"2\d{3}-\d\d-\d\dT[\d:+]+|[\d.e-]+ s of work", b"", content) for name, content in found.items()
    }
