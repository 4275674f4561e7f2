"""Masks and weights: where the image is that goes with an image, and which pixels it refuses."""

import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.policies import Beside, Flags


def other_member(beside: Beside, name: str) -> str | None:
    """Return the member that holds the mask or weights of this one; None where it has none."""
    if beside.replace is None:
        return name
    return name.replace(beside.replace, beside.by) if beside.replace in name else None


def bad(beside: Beside, values: np.ndarray) -> np.ndarray:
    """Return which pixels a mask or weights refuse. Raises RecordError where flags are no integers."""
    if not isinstance(beside, Flags):
        return ~(values > 0)
    if beside.bits is not None:
        if values.dtype.kind not in "iu":
            raise RecordError("wrong-shape", f"flags of dtype {values.dtype} have no bits; expected integers")
        if beside.bits > np.iinfo(values.dtype).max:
            raise RecordError("wrong-shape", f"flags of dtype {values.dtype}; bits {beside.bits} needs larger ones")
        values = values & values.dtype.type(beside.bits)
    if beside.invalid == "nonzero":
        return np.asarray(values != 0)
    return np.asarray((values == 0) | np.isnan(values))
