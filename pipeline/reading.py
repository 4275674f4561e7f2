"""Feature cubes as analysts read them: by their place, whole shards at a time, and never a number that is none."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.features import sample_blocks
from scattercube.pipeline.stores.files import explained
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.protocol import OK

if TYPE_CHECKING:
    import xarray as xr

_DERIVED = ("xi", "sigma", "scale")  # labels of a path that follow from others: no part of its name
ARRAYS = ("scattering", "coverage")  # what a cube has numbers in; the second where values may be missing


def feature_cube(place: "str | Path | xr.Dataset") -> "xr.Dataset":
    """Return a feature cube: the Dataset as it is, or what is published at a path or URL, opened lazily.

    Raises
    ------
    StoreError
        There is nothing published, or it is no feature cube.
    """
    if isinstance(place, str | Path):
        cube = open_cube(str(place))
        if "scattering" not in cube or "status" not in cube:
            raise StoreError(
                f"{place}: no feature cube but a store of {', '.join(map(str, cube.data_vars)) or 'nothing'}; "
                "give <store>/<entry>/features/<Spec digest>"
            )
        cube.encoding["source"] = str(place)
        return cube
    if "scattering" not in place or "status" not in place:
        raise StoreError(f"the Dataset has {', '.join(map(str, place.data_vars))}; a cube has scattering and status")
    return place


def blocks(cube: "xr.Dataset") -> list[slice]:
    """Return the samples of a cube as its store cuts them: whole shards, so that none is read twice."""
    return sample_blocks(cube["scattering"])


def arrays_of(cube: "xr.Dataset") -> tuple[str, ...]:
    """Return which arrays of numbers a cube has: ``scattering``, and ``coverage`` where values may be missing."""
    return tuple(name for name in ARRAYS if name in cube)


def column(cube: "xr.Dataset", name: str) -> np.ndarray:
    """Read a column of all samples: (sample,), texts as objects. Raises StoreError where it is damaged."""
    with reading(cube, name):
        values = np.asarray(cube[name].values)
    return values.astype(object) if values.dtype.kind in "TU" else values


def columns_of(cube: "xr.Dataset") -> tuple[str, ...]:
    """Return the names of a cube's columns: the coordinates of its samples."""
    return tuple(str(name) for name, coord in cube.coords.items() if coord.dims == ("sample",))


def block(
    cube: "xr.Dataset",
    name: str,
    samples: slice | np.ndarray,
    status: np.ndarray,
    within: tuple[slice, ...] = (),
) -> np.ndarray:
    """Read some samples of an array of numbers: (sample, …), an array of its own.

    Parameters
    ----------
    samples
        Which, ascending.
    status
        Theirs. Samples that are ok have finite numbers: a shard that was lost would read as NaN, without a word.
    within
        The part of each, along the dims behind ``sample``.

    Raises
    ------
    StoreError
        A shard is damaged, or numbers that should be there are not.
    """
    with reading(cube, name):
        values: np.ndarray = cube[name][(samples, *within)].values
    lost = (status == OK) & ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if lost.any():
        row = np.arange(cube.sizes["sample"])[samples][lost.argmax()]
        named = cube["sample_id"].values[row] if "sample_id" in cube.coords else row
        raise StoreError(
            f"{place_of(cube)}: {name} of sample {named} is not finite, though its status is "
            "ok: its shard is lost or damaged; `scattercube verify` names what else is; remove the cube to make it anew"
        )
    return values


def place_of(cube: "xr.Dataset") -> str:
    """Return where a cube was opened, for messages; its title where it was not."""
    return str(cube.encoding.get("source") or cube.attrs.get("title", "the cube"))


@contextmanager
def reading(cube: "xr.Dataset", name: str) -> Iterator[None]:
    """Turn what codecs and the operating system raise for a damaged or absent store into a StoreError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as failure:
        raise explained(place_of(cube), f"read {name}", failure) from failure


def document(cube: "xr.Dataset", name: str) -> dict[str, Any]:
    """Return an attribute that is a document, in YAML (``spec``, ``entry``) or JSON, as plain values."""
    text = cube.attrs.get(name, "")
    found = (yaml.safe_load if name in ("spec", "entry") else json.loads)(text) if text else {}
    return found if isinstance(found, dict) else {}


def path_names(cube: "xr.Dataset") -> list[str]:
    """Name each path by the labels that tell it from others: ``j1=0,theta1=22.5,j2=1,theta2=45``."""
    labels = [str(name) for name, coord in cube.coords.items() if coord.dims == ("path",) and name != "order"]
    labels = sorted((name for name in labels if not name.startswith(_DERIVED)), key=_place_of_label)
    values = {name: cube[name].values for name in labels}
    orders = cube["order"].values if "order" in cube.coords else np.ones(cube.sizes["path"], int)
    names = []
    for path, order in enumerate(orders.tolist()):
        parts = [f"{name}={values[name][path]:g}" for name in labels if _is_there(name, values[name][path])]
        names.append(",".join(([] if order else ["order=0"]) + parts))
    if len(set(names)) < len(names):
        names = [f"{name},path={path}" for path, name in enumerate(names)]
    return names


def _place_of_label(name: str) -> tuple[str, str]:
    """Labels of the first wavelet first; those of none in particular last."""
    return (name[-1] if name[-1].isdigit() else "~", name)


def _is_there(name: str, value: Any) -> bool:
    """Whether a path has this label: where it has not, whole numbers are -1, spin is 0, and others are NaN."""
    return bool(value == value and (value != 0 if name == "spin" else value != -1))
