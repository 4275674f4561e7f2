"""What the head of a file says of an array in it, and how stored numbers become values (the CF conventions)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.containers import MAX_RATIO, RATIO_FREE_NBYTES

TEXT = np.dtype("U")
IMAGE = np.dtype("V")  # of encoded images, each a PNG or JPEG
ABSENT = "where the fill value of the file is meant, declare arrays.absent: fill"
Box = tuple[slice, ...]
"""A part of an array: a slice with start and stop for each of its axes."""
Read = tuple[np.ndarray, RecordError | None]
"""What was read of a box; where damage ends it, fewer entries of its first axis, and the reason."""

# What netCDF leaves where nothing was ever written: netcdf.h, NC_FILL_FLOAT and NC_FILL_DOUBLE, one number.
_NEVER_WRITTEN = 9.969209968386869e36


@dataclass(frozen=True)
class Packing:
    """How stored numbers become values: the CF conventions, sections 2.5.1 and 8.1.

    Attributes
    ----------
    stored
        The dtype of the stored numbers, in native byte order.
    dtype
        That of the values, which may be real where the stored numbers are integers.
    missing
        Stored numbers that stand for missing values.
    least, largest
        Stored numbers outside of these are missing too.
    """

    stored: np.dtype
    dtype: np.dtype
    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[float, ...] = ()
    least: float = -math.inf
    largest: float = math.inf

    def unpack(self, numbers: np.ndarray) -> np.ndarray:
        """Return values; NaN where they are missing."""
        if numbers.dtype.kind != self.stored.kind:  # signed bytes that stand for unsigned ones
            numbers = numbers.view(self.stored)
        values = numbers.astype(self.dtype)
        if (self.scale, self.offset) != (1.0, 0.0):
            values = (numbers.astype(np.float64) * self.scale + self.offset).astype(self.dtype)
        if self.dtype.kind == "f":
            absent = (numbers < self.least) | (numbers > self.largest)
            for number in self.missing:
                absent |= numbers == number
            values[absent] = np.nan
        return values

    @property
    def note(self) -> str:
        """What a person should know."""
        if (self.scale, self.offset) == (1.0, 0.0):
            return ""
        return f"values are {self.scale:g} times the stored {self.stored} and {self.offset:g}"


@dataclass(frozen=True)
class Form:
    """An array in a member, as its head describes it.

    Attributes
    ----------
    path
        What it is called in the member; empty where that holds one array.
    dtype
        Of the numbers, as `Format.box` returns them: native; `TEXT` for text of any length.
    dims
        For each axis, the path of the array that would hold its coordinates; empty where axes have no names.
    run
        How many entries of the first axis are stored together.
    packing
        How numbers become values, where they are not the values.
    place
        What the format needs to find it again.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str, ...] = ()
    run: int = 1
    packing: Packing | None = None
    units: str = ""
    place: Any = None

    @property
    def value_dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.packing.dtype if self.packing else self.dtype

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers."""
        return self.dtype.kind in "buif"

    @property
    def whole(self) -> Box:
        """The box that is all of it."""
        return tuple(slice(0, size) for size in self.shape)


class Format(Protocol):
    """A format of files that hold arrays: a module.

    Attributes
    ----------
    SEQUENTIAL
        Whether nothing behind damage can be had; else it is the matter of one chunk.
    """

    SEQUENTIAL: bool

    def forms(self, archive: Archive, name: str) -> Mapping[str, Form]:
        """Return the arrays of numbers or text in a member by path. Raises RecordError."""

    def form(self, archive: Archive, name: str, path: str) -> Form | None:
        """Return one array, or None where there is none of that name. Raises RecordError where it is none of ours."""

    def box(self, archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
        """Read a part of an array. What is damaged comes as a reason, beside what came before it.

        Where chunks are not there, they are damage, or their fill value.
        """


def packing(path: str, stored: np.dtype, attributes: Mapping[str, Any], *, filled: bool) -> Packing | None:
    """Return how the numbers of an array become values, or None where they are the values.

    Parameters
    ----------
    attributes
        Those of the array; only those that the CF conventions know count.
    filled
        Whether the format leaves `_NEVER_WRITTEN` where nothing was written, unless ``_FillValue`` says otherwise.

    Raises
    ------
    RecordError
        ``unreadable``: an attribute is not what it should be.
    """
    if stored.kind not in "iuf":
        return None
    kept = stored
    if stored.kind == "i" and _text(attributes.get("_Unsigned")).lower() == "true":
        stored = np.dtype(f"u{stored.itemsize}")
    scale, offset = (_number(path, attributes, name, usual) for name, usual in (("scale_factor", 1), ("add_offset", 0)))
    if not scale:
        raise RecordError("unreadable", f"{path}: scale_factor is 0, so the values are lost")
    missing = _stored(stored, [*_numbers(attributes, "_FillValue"), *_numbers(attributes, "missing_value")])
    if filled and stored.kind == "f" and "_FillValue" not in attributes:
        missing += _stored(stored, [_NEVER_WRITTEN])
    least, largest = _valid(stored, attributes, scale, offset)
    dtype = stored
    if stored.kind != "f" and ((scale, offset) != (1, 0) or missing or (least, largest) != (-math.inf, math.inf)):
        # Sixteen bits fit into the 24 of a float32, unless a large offset pushes them out.
        fits = stored.itemsize <= 2 and abs(offset) * 2**-24 <= abs(scale) / 4
        dtype = np.dtype(np.float32 if fits else np.float64)
    made = Packing(stored, dtype, scale, offset, missing, least, largest)
    return None if made == Packing(kept, kept) else made


def refuse_bomb(where: str, promised_nbytes: int, stored_nbytes: int) -> None:
    """Raise RecordError where an array is to unpack to more than its bytes can honestly hold."""
    limit = max(stored_nbytes * MAX_RATIO, RATIO_FREE_NBYTES)
    if promised_nbytes > limit:
        raise RecordError(
            "too-large",
            f"{where}: its shape promises {promised_nbytes} bytes, {stored_nbytes} are stored; more than {MAX_RATIO} "
            "times: is it complete? Else refused as a bomb",
        )


def _text(value: Any) -> str:
    found = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return str(found) if isinstance(found, str) else ""


def _numbers(attributes: Mapping[str, Any], name: str) -> list[Any]:
    """Return an attribute as a flat list of NumPy numbers; text is none, and neither are infinities and NaN."""
    values = np.asarray(attributes.get(name, ())).ravel()
    return [value for value in values if values.dtype.kind in "iuf" and np.isfinite(value)]


def _number(path: str, attributes: Mapping[str, Any], name: str, usual: float) -> float:
    if name not in attributes:
        return usual
    values = _numbers(attributes, name)
    if len(values) != 1:
        raise RecordError("unreadable", f"{path}: {name} is {attributes[name]!r}; expected a finite number")
    return float(values[0])


def _valid(stored: np.dtype, attributes: Mapping[str, Any], scale: float, offset: float) -> tuple[float, float]:
    """Return the least and the largest stored number that is valid; given as values, what stores these."""
    pairs = {"valid_range": (0, 1), "valid_min": (0,), "valid_max": (1,)}
    bounds = [-math.inf, math.inf]
    for name, places in pairs.items():
        given = _numbers(attributes, name)
        if len(given) != len(places):
            continue
        packed = stored.kind != "f" and given[0].dtype.kind == "f" and (scale, offset) != (1, 0)
        numbers = [(float(value) - offset) / scale if packed else float(value) for value in given]
        if packed and scale < 0:
            places = tuple(1 - place for place in places)
        for place, number in zip(places, numbers, strict=True):
            bounds[place] = min(bounds[1], number) if place else max(bounds[0], number)
    return bounds[0], bounds[1]


def _stored(dtype: np.dtype, values: list[Any]) -> tuple[float, ...]:
    """Return those of some numbers that a dtype can hold, rounded as it rounds them."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return tuple(float(dtype.type(value)) for value in values)
    bounds = np.iinfo(dtype)
    # Written as the signed twin of an unsigned number, where the attribute has the type of the file.
    whole = [int(value) for value in values if value == int(value)]
    twins = [value + (1 << 8 * dtype.itemsize) if dtype.kind == "u" and value < 0 else value for value in whole]
    return tuple(value for value in twins if bounds.min <= value <= bounds.max)
