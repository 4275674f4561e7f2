"""Scattering of labelled arrays in a notebook: a DataArray in, a Dataset like a feature cube out.

Where the array is a Dask array, so is the result, and nothing is computed before it is asked for. The numbers are those
of the stages: arrays that are chunked along the signal are cut into tiles with halos.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.plan import Plan, plan
from scattercube.pipeline.sources import Layout
from scattercube.pipeline.spec import Spec, parse_spec
from scattercube.pipeline.tiles import Index, assemble, windows
from scattercube.pipeline.transforms import with_gaps


def scatter(
    signal: xr.DataArray,
    spec: Spec | Mapping[str, Any],
    dims: Sequence[Hashable] | None = None,
    sampling_rate: float | None = None,
    *,
    missing: bool = False,
) -> xr.Dataset:
    """Return the scattering coefficients of a labelled array.

    Parameters
    ----------
    signal
        (…, the dims of the signal), NumPy or Dask.
    spec
        A Spec, or its fields: ``{"J": 3}``, ``{"transform": "scattering1d", "J": 8, "Q": 8}``.
    dims
        The dims of the signal, by default the last ones: two for images, one for signals, three for volumes.
    sampling_rate
        Of signals in time, in Hz: labels and positions are then in Hz and seconds.
    missing
        NaN are missing values; the Dataset then has the ``coverage`` of each coefficient.

    Returns
    -------
    xr.Dataset
        ``scattering`` (…, path, one dim for each of the signal's that is left), labelled as a feature cube is. Where
        the input has a coordinate along a dim of the signal, its values at the outputs are that dim's.

    Raises
    ------
    SpecError
        The Spec has an unknown key or an impossible value.
    PlanError
        Spec and array do not fit each other; or the array is chunked along the signal and the Spec does not leave its
        border to the tiles.
    """
    chosen = spec if isinstance(spec, Spec) else parse_spec(dict(spec), "spec")
    n_axes = len(chosen.signal_dims)
    along = tuple(signal.dims[-n_axes:] if dims is None else dims)
    if len(along) != n_axes or not set(along) <= set(signal.dims):
        raise PlanError(f"dims={along}: {chosen.transform} takes {n_axes} of the array's dims {signal.dims}")
    lead = tuple(dim for dim in signal.dims if dim not in along)
    x = signal.transpose(*lead, *along)
    shape = x.shape[len(lead) :]
    spacing, units = (1.0,) * n_axes, ("sample",) * n_axes
    if sampling_rate:
        spacing, units = (1 / sampling_rate,), ("s",)
    layout = Layout(chosen.signal_dims, shape, x.dtype, spacing=spacing, units=units)
    n_signals = max(1, prod(x.shape[: len(lead)]))
    pieces = tuple(len(parts) for parts in (x.chunks or ())[len(lead) :])
    cut = pieces if max(pieces, default=1) > 1 else None
    planned = plan(chosen, n_signals, layout, masked=missing, pieces=cut)
    arrays = _compute(x, planned, chosen, len(lead))
    return _labelled(arrays, x, planned, chosen, lead, along)


def _compute(x: xr.DataArray, planned: Plan, spec: Spec, n_lead: int) -> list[Any]:
    """The coefficients, and their coverage where values may be missing: (lead, path, …) each."""
    output = planned.feature_shape[planned.feature_dims.index("path") :]
    tiles = _tiles(planned, output)
    n_arrays = 1 + planned.masked
    if x.chunks is None:
        results = [np.empty((*x.shape[:n_lead], *output), spec.dtype) for _ in range(n_arrays)]
        for indices, where in tiles:
            pieces = [x.values[_last(window)] for window in windows(indices)]
            for result, found in zip(results, _tile(pieces, indices, where, planned, spec), strict=True):
                result[_last(where)] = found
        return results
    return _graph(x, tiles, planned, spec, n_lead, n_arrays)


def _graph(x: xr.DataArray, tiles: list[Any], planned: Plan, spec: Spec, n_lead: int, n_arrays: int) -> list[Any]:
    """The same as Dask arrays: a task a tile of each chunk of the leading dims."""
    import dask.array as da
    from dask.delayed import delayed

    bounds = [np.cumsum([0, *parts]).tolist() for parts in (x.chunks or ())[:n_lead]]
    blocks = [tuple(slice(*pair) for pair in pairs) for pairs in product(*(list(pairwise(b)) for b in bounds))]
    n_paths = planned.feature_shape[planned.feature_dims.index("path")]
    counts = [len(b) - 1 for b in bounds]
    n_tiles = [len({where[axis].start for _, where in tiles}) for axis in range(len(tiles[0][1]))]
    made: list[list[Any]] = [[] for _ in range(n_arrays)]
    for block in blocks:
        size = [part.stop - part.start for part in block]
        for indices, where in tiles:
            pieces = [x.data[(*block, *window)] for window in windows(indices)]
            task = delayed(_tile)(pieces, indices, where, planned, spec)
            shape = (*size, n_paths, *(part.stop - part.start for part in where))
            for number, parts in enumerate(made):
                parts.append(da.from_delayed(task[number], shape, spec.dtype))
    return [_blocked(parts, [*counts, *n_tiles], n_lead) for parts in made]


def _blocked(parts: list[Any], counts: list[int], n_lead: int) -> Any:
    """Put Dask arrays together that are ordered like the product of their places; ``path`` is not cut."""
    import dask.array as da

    axes = [axis if axis < n_lead else axis + 1 for axis in range(len(counts))]
    for axis, count in zip(reversed(axes), reversed(counts), strict=True):
        parts = [da.concatenate(parts[start : start + count], axis) for start in range(0, len(parts), count)]
    return parts[0]


def _tiles(planned: Plan, output: tuple[int, ...]) -> list[tuple[list[Index], tuple[slice, ...]]]:
    """For each tile, the values that it needs along each axis, and its outputs."""
    if not planned.axes:
        sizes = planned.transformed_shape
        return [([[range(size)] for size in sizes], tuple(slice(0, size) for size in output[1:]))]
    starts = [range(0, axis.total, axis.n_out) for axis in planned.axes]
    return [
        (
            [axis.index(first) for axis, first in zip(planned.axes, firsts, strict=True)],
            tuple(
                slice(first, min(first + axis.n_out, axis.total))
                for axis, first in zip(planned.axes, firsts, strict=True)
            ),
        )
        for firsts in product(*starts)
    ]


def _last(region: tuple[slice, ...]) -> Any:
    """The index of a region along the last axes."""
    return (Ellipsis, *region)


def _tile(
    pieces: list[np.ndarray], indices: list[Index], where: tuple[slice, ...], planned: Plan, spec: Spec
) -> tuple[np.ndarray, ...]:
    x = assemble(pieces, indices).astype(spec.dtype, copy=False)
    transform = planned.transform(spec)
    wanted = _last(tuple(slice(0, part.stop - part.start) for part in where))
    if planned.masked:
        found = with_gaps(transform, spec, x, [axis.margin for axis in planned.axes])
        return tuple(each[wanted] for each in found)
    return (transform(x)[wanted],)


def _labelled(
    arrays: list[Any],
    x: xr.DataArray,
    planned: Plan,
    spec: Spec,
    lead: tuple[Hashable, ...],
    along: tuple[Hashable, ...],
) -> xr.Dataset:
    from scattercube.pipeline.cube import path_coordinates, position_coordinates

    transform = planned.transform(spec)
    renamed = dict(zip(spec.signal_dims, along, strict=True))
    behind = planned.feature_dims[planned.feature_dims.index("path") + 1 :]
    dims = (*lead, "path", *(renamed.get(dim, dim) for dim in behind))
    coords: dict[Hashable, Any] = {name: x.coords[name] for name in x.coords if set(x.coords[name].dims) <= set(lead)}
    coords.update(path_coordinates(transform))
    for name, (dim, values, attrs) in position_coordinates(planned, transform).items():
        other = renamed.get(dim, dim)
        coords[str(other) + name.removeprefix(dim)] = (other, values, attrs)
    for dim in (other for own, other in renamed.items() if own in behind and other in x.coords):
        own = next(own for own, other in renamed.items() if other == dim)
        place = np.rint(planned.positions(transform)[behind.index(own)] * (planned.sampling_rate or 1)).astype(int)
        coords[dim] = (dim, x.coords[dim].values[place.clip(0, x.sizes[dim] - 1)], x.coords[dim].attrs)
    names = ("scattering", "coverage")
    return xr.Dataset(
        {name: (dims, array) for name, array in zip(names, arrays, strict=False)},
        coords=coords,
        attrs={"spec": spec.to_yaml(), "spec_digest": spec.digest, "filter_digest": transform.filter_digest},
    )
