"""From a Spec to the transform that it describes, and what its output is called."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from scattercube.kernels import HarmonicScattering3D, Paths, Scattering1D, Scattering2D, TimeFrequencyScattering
from scattercube.kernels.cascade import Cascade
from scattercube.kernels.device import Device, through
from scattercube.kernels.missing import Missing
from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.spec import ImageSpec, JointSpec, SignalSpec, Spec, TiledSpec, VolumeSpec


class Transform(Protocol):
    """What the pipeline asks of a scattering transform; see `scattercube.kernels`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    paths: Paths
    halo: int | None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(path, …): the shape of the coefficients of one signal."""

    @property
    def positions(self) -> tuple[np.ndarray, ...]:
        """Where outputs lie, an array for each axis behind ``path``."""

    @property
    def filter_digest(self) -> str:
        """What names the filters."""

    def __call__(self, x: Any, /) -> Any:
        r"""Return the coefficients of signals (…, \*shape)."""

    @property
    def filter_nbytes(self) -> int:
        """About how many bytes filters take, known before they are made."""

    def foreseen_nbytes(self, batch: int) -> int:
        """Bound the peak bytes of a call on the CPU; makes no filter."""

    def nbytes(self, batch: int, device: Device = "cpu") -> int:
        """Project the peak bytes of a call."""


@lru_cache(maxsize=4)
def build(spec: Spec, shape: tuple[int, ...], sampling_rate: float | None = None, *, tile: bool = False) -> Transform:
    """Build the transform of a Spec for signals of ``shape``; the last ones are kept, their filters with them.

    Parameters
    ----------
    sampling_rate
        Of a signal in time, in Hz.
    tile
        The signals are tiles of fields, and bring their halo with them.

    Raises
    ------
    PlanError
        Spec and signals do not fit each other.
    """
    if len(shape) != len(spec.signal_dims):
        raise PlanError(
            f"transform {spec.transform} takes signals ({', '.join(spec.signal_dims)}), the samples are {shape}; "
            "choose another with --set transform=…"
        )
    values = spec.model_dump(exclude={"transform", "boundary", "min_coverage"})
    if tile:
        values["padding"] = "halo"
    try:
        match spec:
            case ImageSpec():
                return Scattering2D(shape=(shape[0], shape[1]), **values)
            case SignalSpec():
                return Scattering1D(shape=shape[0], sampling_rate=sampling_rate, **values)
            case JointSpec():
                return TimeFrequencyScattering(shape=shape[0], sampling_rate=sampling_rate, **values)
            case VolumeSpec():
                return HarmonicScattering3D(shape=(shape[0], shape[1], shape[2]), **values)
    except (TypeError, ValueError) as failure:
        raise PlanError(f"{failure}") from failure
    except MemoryError as failure:
        raise PlanError(
            f"transform {spec.transform}: its filters for signals of {'×'.join(map(str, shape))} take more memory than "
            f"there is; cut the samples smaller, or set padding: support, which works in tiles"
        ) from failure
    raise PlanError(f"transform {spec.transform}: not known")


def output_dims(spec: Spec, transform: Transform) -> tuple[str, ...]:
    """Return the dims of the coefficients behind ``path``."""
    dims = {"scattering2d": ("y", "x"), "scattering1d": ("time",), "time_frequency": ("frequency", "time")}
    n_axes = len(transform.output_shape) - 1
    return dims.get(spec.transform, ())[-n_axes:] if n_axes else ()


def output_units(dims: tuple[str, ...], sampling_rate: float | None) -> Mapping[str, str]:
    """Return the units of the positions along these dims."""
    known = {"time": "s", "frequency": "Hz"} if sampling_rate else {"time": "sample", "frequency": "cycles/sample"}
    return {dim: known.get(dim, "pixel") for dim in dims}


def least_coverage(spec: Spec) -> float:
    """Return the coverage below which coefficients are NaN."""
    return spec.min_coverage if isinstance(spec, TiledSpec) else 0.0


def with_gaps(
    transform: Transform, spec: Spec, x: np.ndarray, margins: Sequence[int], device: Device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of signals whose missing values are NaN, and their coverage, (…, path, …) both.

    Parameters
    ----------
    x
        (…, the transform's shape and twice the margin along each axis).
    margins
        Values around the transform's input that have a say in what fills its gaps.
    """
    assert isinstance(transform, Cascade)
    n_axes = len(margins)
    flat = x.reshape(-1, *x.shape[-n_axes:])
    inner: Any = (Ellipsis, *(slice(m, m + size) for m, size in zip(margins, transform.shape, strict=True)))
    valid = np.isfinite(flat[inner])
    features = np.full((len(flat), *transform.output_shape), np.nan, transform.dtype)
    coverage = np.zeros_like(features)
    whole = valid.all(axis=tuple(range(1, n_axes + 1)))
    if whole.any():
        (features[whole],) = through(transform, [flat[whole][inner]], device)
        coverage[whole] = 1
    holed = ~whole & valid.any(axis=tuple(range(1, n_axes + 1)))
    if holed.any():
        missing = Missing(transform)
        features[holed], coverage[holed] = missing(missing.fill(flat[holed])[inner], valid[holed])
    features[coverage < least_coverage(spec)] = np.nan
    shape = (*x.shape[:-n_axes], *transform.output_shape)
    return features.reshape(shape), coverage.reshape(shape)
