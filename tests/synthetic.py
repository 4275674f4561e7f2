"""Small runs made in the test: chunk store, feature cube, journals and run.json, written with xarray alone."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scattercube.kernels import Scattering2D
from scattercube.pipeline.places import Places
from scattercube.pipeline.spec import Spec
from scattercube.pipeline.store import Store

SPEC = Spec(J=2, L=4)


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


def make_run(
    root: Path,
    signal: np.ndarray,
    labels: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    status: np.ndarray | None = None,
    spec: Spec = SPEC,
    name: str = "synthetic",
    columns: Mapping[str, np.ndarray] | None = None,
    **attrs: Any,
) -> Places:
    """Write what ``fit`` and ``report`` read, for signals (sample, [channel,] y, x)."""
    places = Places(root, name, spec.digest)
    n, lead = len(signal), signal.shape[1:-2]
    status = np.zeros(n, np.uint8) if status is None else np.asarray(status, np.uint8)
    transform = Scattering2D(spec.J, signal.shape[-2:], L=spec.L, max_order=spec.max_order, padding=spec.padding)
    features = np.full((n, *lead, *transform.output_shape), np.nan, np.float32)
    features[status == 0] = transform(signal[status == 0])
    ids = np.array([f"image-{i:03d}.png" for i in range(n)], dtype=object)
    coords: dict[str, Any] = {"sample_id": ("sample", ids), "source": ("sample", ids)}
    for key, column in {"label": labels, "split": split}.items():
        if column is not None:
            coords[key] = ("sample", np.array(column, dtype=object))
    coords |= {key: ("sample", column) for key, column in (columns or {}).items()}
    if lead:
        coords["channel"] = ("channel", np.array(["red", "green", "blue"], dtype=object))
    dims = ("sample", *(("channel",) if lead else ()))
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
    positions = {dim: (dim, np.arange(size, dtype=float)) for dim, size in zip("yx", signal.shape[-2:], strict=True)}
    variables = {"signal": ((*dims, "y", "x"), signal), "status": ("sample", status)}
    write(xr.Dataset(variables, coords=coords | positions, attrs=attrs), places.chunks)

    coords |= {key: ("path", values) for key, values in transform.paths.columns.items()}
    coords |= {dim: (dim, values) for dim, values in zip("yx", transform.positions, strict=True)}
    attrs |= {"spec": spec.to_yaml(), "spec_digest": spec.digest, "filter_digest": transform.filter_digest}
    variables = {"scattering": ((*dims, "path", "y", "x"), features), "status": ("sample", status)}
    write(xr.Dataset(variables, coords=coords, attrs=attrs), places.cube)

    bad = [
        {
            "sample_id": str(ids[i]),
            "source": f"archive.tar/{ids[i]}",
            "reason": "unreadable",
            "message": "cannot identify",
        }
        for i in np.flatnonzero(status)
    ]
    cost = {"attempt": 1, "worker": "pid 1", "started": 0.0, "read_s": 0.1, "compute_s": 0.2, "write_s": 0.05}
    for store, stage, faults in ((places.chunks, "ingest", bad), (places.cube, "extract", [])):
        Store(store).run_folder.mkdir(exist_ok=True)
        Store(store).record(
            cost
            | {"stage": stage, "key": "sample=0", "nbytes_in": signal.nbytes, "nbytes_out": features.nbytes}
            | {"n_samples": n, "digest": "d", "bad": faults}
        )
    return places


def write(dataset: xr.Dataset, path: Path) -> None:
    """Write a Dataset as a plain Zarr v3 store, cut into chunks of a few samples."""
    encoding = {
        name: {"chunks": (min(16, len(variable)), *variable.shape[1:])}
        for name, variable in dataset.data_vars.items()
        if len(variable)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", category=UserWarning)
        dataset.to_zarr(path, mode="w", zarr_format=3, consolidated=True, encoding=encoding)
