"""What a caller may pass to a transform: parameters, which pickles keep, and arrays that are finite and of a shape."""

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from scattercube.kernels.device import Array, block_nbytes, device_of, namespace


class Rebuilt:
    """What is pickled and copied as the arguments it was made of: filters are made anew where it arrives."""

    _arguments: partial[Self]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Remember the arguments."""
        self = super().__new__(cls)
        self._arguments = partial(cls, *args, **kwargs)
        return self

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        return self._arguments, ()


def integer(name: str, value: int, least: int) -> int:
    """Return an integer parameter once it is known to be at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an integer") from None
    if number < least:
        raise ValueError(f"{name}={number}: must be at least {least}")
    return number


def checked(x: Array, shape: Sequence[int], dtype: np.dtype[Any], name: str = "x", finite: bool = True) -> Array:
    r"""Return arrays (…, \*shape) as a batch (B, \*shape), unconverted, once they are known to be finite in ``dtype``.

    Whether they are is looked at unless ``finite`` is False.

    Raises
    ------
    TypeError
        ``x`` is not an array of real numbers.
    ValueError
        The last axes are not ``shape``, or a value is not finite.
    """
    xp, shape = namespace(x), tuple(shape)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {x.dtype}: expected real numbers")
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(f"{name} has shape {x.shape}: expected (…, {', '.join(map(str, shape))})")
    batch = x.reshape(math.prod(x.shape[: x.ndim - len(shape)]), *shape)
    step = max(1, block_nbytes(device_of(x)) // (max(1, math.prod(shape)) * dtype.itemsize))
    if x.dtype.kind == "f" and finite:
        for start in range(0, len(batch), step):
            with np.errstate(over="ignore"):  # what overflows is refused as not finite
                if not xp.isfinite(batch[start : start + step].astype(dtype, copy=False)).all():
                    raise ValueError(not_finite(x, dtype, name))
    return batch


def checked_pair(
    x: Array, g: Array, shape: Sequence[int], output_shape: Sequence[int], dtype: np.dtype[Any], finite: bool = True
) -> tuple[Array, Array]:
    r"""Return arrays (…, \*shape) and weights (…, \*output_shape) of their coefficients as two batches, as `checked`.

    Raises
    ------
    TypeError
        One is not an array of real numbers.
    ValueError
        A shape does not fit, or a value is not finite.
    """
    batch = checked(x, shape, dtype, finite=finite)
    if g.shape != (expected := (*x.shape[: x.ndim - len(shape)], *output_shape)):
        raise ValueError(f"g has shape {g.shape}: x of shape {x.shape} needs {expected}")
    return batch, checked(g, output_shape, dtype, "g", finite)


def not_finite(x: Array, dtype: np.dtype[Any], name: str) -> str:
    """Say how many values are not finite in ``dtype``, and where the first is."""
    xp = namespace(x)
    with np.errstate(over="ignore"):
        bad = ~xp.isfinite(x.astype(dtype))
    first = tuple(int(index) for index in xp.argwhere(bad)[0])
    count = f"{int(bad.sum())} of {x.size} values"
    return f"{name} is not finite in {dtype} at {count}, the first at index {first}; mask or fill them"


def units(batch: Array) -> Array:
    """Return the unit (B,) of each array of a batch (B, …) of floats, a power of two just above its peak.

    Dividing by it is exact, and squares neither vanish nor overflow then, whatever the physical unit: scattering is
    homogeneous.
    """
    xp, limits = namespace(batch), np.finfo(batch.dtype)
    flat = batch.reshape(len(batch), math.prod(batch.shape[1:]))
    peaks = xp.maximum(flat.max(axis=1), -flat.min(axis=1))
    exponents = xp.where(peaks > 0, xp.frexp(peaks)[1], 0).clip(limits.minexp, limits.maxexp - 2)
    return xp.ldexp(xp.ones(len(batch), batch.dtype), exponents)
