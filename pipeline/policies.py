"""How what an archive holds becomes samples of one size: the part of a catalogue entry that readers go by."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from scattercube.pipeline.spec import M, Model


def check_relative(text: str) -> str:
    """Return a path; raise ValueError where it leads out of the archive."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("expected a path below the archive, without '..'")
    return text


Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Size = tuple[Pixels, Pixels]
Voxels = Annotated[int, Field(ge=1, le=1 << 10)]


def exactly_one(record: M, *names: str) -> M:
    """Return the record; raise ValueError where not exactly one of these fields is given."""
    given = [name for name in names if getattr(record, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(given) or 'none'}")
    return record


class Frame(Model):
    """The height and width that every sample gets."""

    size: Annotated[Size, Field(description="[height, width] in pixels")]


class Patches(Model):
    """A grid of patches; each is a sample that knows its first row ``y0`` and first column ``x0`` in the image."""

    size: Annotated[Size, Field(description="[height, width] of a patch in pixels")]
    stride: Annotated[
        Size | None, Field(description="[rows, columns] from patch to patch; default the size: no overlap")
    ] = None

    @property
    def step(self) -> Size:
        """Pixels from one patch to the next."""
        return self.stride or self.size


class Clip(Model):
    """The length that every recording gets."""

    seconds: Annotated[float, Field(gt=0, le=86400, description="length of a sample in seconds")]


class Segments(Clip):
    """Windows of a recording; each is a sample that knows where it starts, ``t0`` in seconds."""

    hop: Annotated[
        float | None,
        Field(gt=0, description="seconds from window to window; default their length: no overlap"),
    ] = None

    @property
    def step(self) -> float:
        """Seconds from one window to the next."""
        return self.hop or self.seconds


class Sample(Model):
    """How what an archive holds becomes samples of one size: exactly one of all but ``channels`` and ``missing``."""

    exact: Annotated[
        Literal[True] | None, Field(description="all have the size of the first; others are quarantined")
    ] = None
    crop: Annotated[
        Frame | None, Field(description="cut this size from the centre; smaller images are quarantined")
    ] = None
    resize: Annotated[
        Frame | None,
        Field(description="resample to this size: bicubic, antialiased, to float32; the aspect may change"),
    ] = None
    patches: Annotated[Patches | None, Field(description="cut every image into patches")] = None
    clip: Annotated[
        Clip | None,
        Field(description="recordings: cut this length from the middle; shorter ones stand amid zeros"),
    ] = None
    segments: Annotated[
        Segments | None,
        Field(description="recordings: cut into windows, as many as fit; shorter ones are quarantined"),
    ] = None
    channels: Annotated[
        Literal["luminance", "keep"],
        Field(description="`luminance`: colour to grey (ITU-R BT.601, float32); `keep`: channels stay, without alpha"),
    ] = "luminance"
    missing: Annotated[
        bool,
        Field(description="whether NaN and infinities are missing values, to work around; else they are quarantined"),
    ] = False

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        return exactly_one(self, "exact", "crop", "resize", "patches", "clip", "segments")


AxisName = Literal["sample", "channel", "z", "y", "x", "time"]
_SIGNALS: tuple[tuple[AxisName, ...], ...] = (("y", "x"), ("time",), ("z", "y", "x"))


class Arrays(Model):
    """Which arrays of a file hold samples, and what their axes are: else (sample, y, x), or (y, x) for one image."""

    variable: Annotated[
        str | tuple[str, ...] | None,
        Field(
            min_length=1,
            description="path of the dataset, or name of the column; several that are alike become channels; default "
            "the only one that fits",
        ),
    ] = None
    dims: Annotated[
        tuple[AxisName, ...] | None,
        Field(
            description="what the axes are, in their order: `sample` (also several), `channel`, and `y`, `x`, or "
            "`time`, or `z`, `y`, `x`"
        ),
    ] = None
    channel_axis: Annotated[
        Literal["first", "last"] | None,
        Field(description="short for dims: `first`: ([sample,] channel, y, x); `last`: ([sample,] y, x, channel)"),
    ] = None
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(min_length=1, description="parquet: the shape of an item whose values are a flat list"),
    ] = None
    rate: Annotated[float | None, Field(gt=0, description="values per second along `time`")] = None
    columns: Annotated[
        dict[str, Literal["text", "number"]],
        Field(description="arrays with a value for each item that become metadata, by path"),
    ] = Field(default_factory=dict)
    absent: Annotated[
        Literal["refuse", "fill"],
        Field(
            description="HDF5 and Zarr: chunks that are not there: `refuse`: their samples are quarantined; `fill`: "
            "they hold the fill value, as the formats have it"
        ),
    ] = "refuse"

    @property
    def signal_dims(self) -> tuple[AxisName, ...]:
        """The dims of a sample's signal, slowest first."""
        return next(dims for dims in _SIGNALS if set(dims) == set(self.dims or dims) - {"sample", "channel"})

    @property
    def variables(self) -> tuple[str, ...]:
        """The names that are given."""
        return (self.variable,) if isinstance(self.variable, str) else self.variable or ()

    @model_validator(mode="after")
    def _axes_make_a_signal(self) -> Self:
        if self.dims is not None:
            if self.channel_axis:
                raise ValueError("give one of dims and channel_axis")
            own = [dim for dim in self.dims if dim != "sample"]
            if len(set(own)) < len(own):
                raise ValueError(f"dims: {', '.join(self.dims)} names one twice; only sample may come more than once")
            if not any(set(own) - {"channel"} == set(signal) for signal in _SIGNALS):
                raise ValueError(f"dims: {', '.join(self.dims)}; expected y and x, or time, or z, y and x among them")
        if len(self.variables) > 1 and (self.channel_axis or "channel" in (self.dims or ())):
            raise ValueError("variable: several are channels already; leave out the channel axis")
        if self.rate and self.signal_dims != ("time",):
            raise ValueError("rate: only time has one; name the axes in dims, for example [sample, time]")
        return self


def check_arrays(reader: str, arrays: Arrays | None, sample: Sample) -> None:
    """Raise ValueError where axes and the policy of samples do not fit each other."""
    if arrays is None:
        return
    if reader not in ("arrays", "idx"):
        raise ValueError(f"arrays: is for the reader arrays or idx, not {reader}")
    signal = arrays.signal_dims
    if signal == ("time",) and not (sample.exact or sample.clip or sample.segments):
        raise ValueError("sample: crop, resize and patches are for images; along time: exact, clip or segments")
    if signal == ("z", "y", "x") and not sample.exact:
        raise ValueError("sample: volumes are taken as they are: exact")
    if (sample.clip or sample.segments) and not arrays.rate:
        raise ValueError("sample: clip and segments are in seconds; give arrays.rate")


class Csv(Model):
    """How to read rows of text as images: every column but the label's is a pixel, in row-major order."""

    shape: Annotated[Size, Field(description="[height, width] of the image in a row")]
    header: Annotated[bool, Field(description="whether the first line names the columns")] = False
    delimiter: Annotated[str, Field(min_length=1, max_length=1, description="what separates the values")] = ","


class Audio(Model):
    """How recordings become signals."""

    rate: Annotated[
        int | None,
        Field(ge=1, le=1 << 20, description="resample to this many Hz; default: as stored, others are quarantined"),
    ] = None
    channels: Annotated[
        Literal["mean", "first", "keep"],
        Field(description="`mean`: of all channels; `first`: the first channel; `keep`: channels stay"),
    ] = "mean"


def check_audio(reader: str, audio: Audio | None, sample: Sample, *, timed: bool = False) -> None:
    """Raise ValueError where what is for recordings and what is for images are mixed."""
    if reader != "audio":
        if audio:
            raise ValueError(f"audio: is for the reader audio, not {reader}")
        if (sample.clip or sample.segments) and not timed:
            raise ValueError("sample: clip and segments are for recordings (reader audio) and arrays along time")
    elif not (sample.exact or sample.clip or sample.segments):
        raise ValueError("sample: crop, resize and patches are for images; recordings take exact, clip or segments")
    elif sample.channels == "keep":
        raise ValueError("sample.channels: is for images; recordings take audio.channels: keep")


class Beside(Model):
    """Where the image is that goes with an image: in another HDU, or in another member."""

    hdu: Annotated[
        int | str,
        Field(description="its EXTNAME (and the EXTVER of the image), or how many HDUs behind the image"),
    ] = 0
    replace: Annotated[
        str | None,
        Field(min_length=1, description="text in the member's name; members without it have none of these"),
    ] = None
    by: Annotated[str, Field(description="what stands there in the name of the other member")] = ""

    @model_validator(mode="after")
    def _elsewhere(self) -> Self:
        if self.hdu == 0 and self.replace is None:
            raise ValueError("say where it is: hdu, or replace and by, or both")
        return self


class Flags(Beside):
    """An image that says which pixels are bad."""

    bits: Annotated[
        int | None, Field(ge=1, description="flags that count, as a sum of powers of two; default all of them")
    ] = None
    invalid: Annotated[
        Literal["nonzero", "zero"], Field(description="whether bad pixels are those with a flag or those without")
    ] = "nonzero"


class Weight(Beside):
    """An image of weights or inverse variances; pixels whose weight is not positive are bad."""


class Cutouts(Model):
    """A table of positions; each that falls in an image, with all of its cut-out, is a sample."""

    table: Annotated[
        str,
        Field(min_length=1, description="CSV, Parquet or FITS table in the archive, or beside it"),
        AfterValidator(check_relative),
    ]
    ra: Annotated[str, Field(description="the column of right ascensions (ICRS, degrees)")] = "ra"
    dec: Annotated[str, Field(description="the column of declinations (ICRS, degrees)")] = "dec"
    size: Annotated[Size, Field(description="[height, width] of a cut-out in pixels")]


class Healpix(Model):
    """How a HEALPix map becomes images: tiles of the sphere in gnomonic projection."""

    tile: Annotated[int, Field(ge=2, le=1 << 12, description="side of a tile in pixels")]
    resolution: Annotated[float, Field(gt=0, le=600, description="side of a tile's pixel at its centre in arcminutes")]
    nside: Annotated[
        int | None,
        Field(ge=1, le=1 << 10, description="12·nside² tiles, around the centres of a HEALPix grid; default: no gaps"),
    ] = None
    column: Annotated[str | None, Field(description="the column of the table; default the first that is no index")] = (
        None
    )
    frame: Annotated[
        Literal["galactic", "icrs"] | None,
        Field(description="which sphere it is, where COORDSYS does not say; else the tiles have no `ra` and `dec`"),
    ] = None

    @model_validator(mode="after")
    def _less_than_half_the_sphere(self) -> Self:
        if (side := self.tile * self.resolution / 60) > 90:
            raise ValueError(f"a tile of {self.tile}·{self.resolution}' is {side:.0f}° wide; gnomonic tiles end at 90°")
        return self


class Sky(Model):
    """How FITS files are read."""

    hdus: Annotated[
        tuple[int | str, ...] | None,
        Field(min_length=1, description="which HDUs: EXTNAMEs, or numbers from 0; default all that hold images"),
    ] = None
    mask: Annotated[Flags | None, Field(description="which pixels are bad: they become missing values")] = None
    weight: Annotated[Weight | None, Field(description="pixels without weight become missing values")] = None
    cutouts: Annotated[Cutouts | None, Field(description="samples around the positions in a table")] = None
    healpix: Annotated[Healpix | None, Field(description="maps of the sphere: samples are tiles of it")] = None
    keywords: Annotated[
        dict[str, Literal["text", "number"]],
        Field(description="keywords of the HDU's header, or else of the file's first, that become metadata"),
    ] = Field(default_factory=dict)
    label: Annotated[
        str | None, Field(description="the metadata column that is the label: `hdu`, a keyword, or of the cut-outs")
    ] = None
    checksum: Annotated[
        bool, Field(description="whether an HDU that does not fit its DATASUM or CHECKSUM is quarantined")
    ] = True

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.cutouts and self.healpix:
            raise ValueError("give at most one of cutouts and healpix")
        for name in ("mask", "weight"):
            beside = getattr(self, name)
            if beside and not self.hdus and not self.healpix and isinstance(beside.hdu, int) and beside.hdu:
                raise ValueError(f"{name}.hdu: a number needs hdus, or else the {name} is an image too")
        return self


Channel = Literal["full", "valence", "core"]
MARGIN = 4  # widths of the Gaussian between the outermost nuclei and the faces of the box
LEAST_WIDTH = 0.75  # in voxels: below, the sum over voxels depends on where a nucleus lies between them, beyond 1e-4


class Molecules(Model):
    """How a molecule becomes a grid: every nucleus a Gaussian, scaled to a charge, one grid for each kind of charge."""

    size: Annotated[
        tuple[Voxels, Voxels, Voxels], Field(description="[z, y, x]: voxels of the periodic box that holds any of them")
    ]
    spacing: Annotated[float, Field(gt=0, le=100, description="side of a voxel in Å")]
    width: Annotated[
        float, Field(gt=0, le=100, description="standard deviation of the Gaussian in Å; at least 0.75 voxels")
    ]
    channels: Annotated[
        tuple[Channel, ...],
        Field(
            min_length=1,
            description="charges: `full`: of the nucleus; `valence`: its number of valence electrons; `core`: the rest",
        ),
    ] = ("full", "valence", "core")
    orientation: Annotated[
        Literal["given", "principal"],
        Field(
            description="`given`: as the file has it; `principal`: turned so that the nuclei extend most along x and "
            "least along z, which lets the box be smaller"
        ),
    ] = "given"

    @model_validator(mode="after")
    def _grid_is_fine_and_large_enough(self) -> Self:
        if self.width < LEAST_WIDTH * self.spacing:
            raise ValueError(
                f"width: {self.width:g} Å is less than {LEAST_WIDTH} voxels of {self.spacing:g} Å: the sum over voxels "
                "would depend on where between them a nucleus lies; raise width or lower spacing"
            )
        if min(self.size) * self.spacing < 2 * MARGIN * self.width:
            raise ValueError(
                f"size: {min(self.size)} voxels of {self.spacing:g} Å hold no atom of width {self.width:g} Å with "
                f"{MARGIN} widths around it; raise size"
            )
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels: {', '.join(self.channels)} names one more than once")
        return self
