"""What exists and where: catalogue entries, and how to find what a user names.

An entry is one YAML file. ``catalogs/README.md`` describes every field for those who write one.
"""

import os
import re
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from scattercube.pipeline.errors import EntryError
from scattercube.pipeline.spec import M, Model, Spec, digest, load_yaml, parse

DATA_VARIABLE = "SCATTERCUBE_DATA"
SPLITS = ("train", "test", "unused", "")
PACKAGE_LOCATION = re.compile(r"package:(?P<package>[A-Za-z_]\w*)/(?P<path>.+)")


def _check_pattern(text: str) -> str:
    try:
        groups = re.compile(text).groupindex
    except re.error as failure:
        raise ValueError(f"not a regular expression: {failure}") from failure
    if not groups:
        raise ValueError("no named group; name what the columns are called, for example (?P<label>[^/]+)")
    return text


def _check_relative(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("expected a path below the archive, without '..'")
    return text


def _check_location(text: str) -> str:
    package = PACKAGE_LOCATION.fullmatch(text)
    if text.startswith("package:") and not package:
        raise ValueError("expected package:NAME/path/in/it, for example package:skimage/data")
    if not PurePosixPath(text).is_absolute() and ".." in PurePosixPath(text).parts:
        raise ValueError("'..' would leave the data root; give an absolute path instead")
    return text


def _exactly_one(record: M, *names: str) -> M:
    given = [name for name in names if getattr(record, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(given) or 'none'}")
    return record


Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Size = tuple[Pixels, Pixels]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
RelativePath = Annotated[str, Field(min_length=1), AfterValidator(_check_relative)]


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


class Sample(Model):
    """How an image becomes samples of one size: exactly one of ``exact``, ``crop``, ``resize`` and ``patches``."""

    exact: Annotated[
        Literal[True] | None, Field(description="all images have the size of the first; others are quarantined")
    ] = None
    crop: Annotated[
        Frame | None, Field(description="cut this size from the centre; smaller images are quarantined")
    ] = None
    resize: Annotated[
        Frame | None,
        Field(description="resample to this size: bicubic, antialiased, to float32; the aspect may change"),
    ] = None
    patches: Annotated[Patches | None, Field(description="cut every image into patches")] = None
    channels: Annotated[
        Literal["luminance", "keep"],
        Field(description="`luminance`: colour to grey (ITU-R BT.601, float32); `keep`: channels stay, without alpha"),
    ] = "luminance"

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        return _exactly_one(self, "exact", "crop", "resize", "patches")


class Table(Model):
    """A CSV or Parquet file with a row per member; every column beside key and label becomes metadata."""

    file: Annotated[RelativePath, Field(description="its name inside the archive, or beside it")]
    key: Annotated[str, Field(description="the column that names the member")]
    match: Annotated[
        Literal["member", "name", "stem"],
        Field(description="what the key holds: the whole member name, its last part, or that without the extension"),
    ] = "member"
    label: Annotated[str | None, Field(description="the column with the label")] = None


class Companion(Model):
    """A file of labels beside each file of images, found by replacing text in the member's name."""

    replace: Annotated[str, Field(min_length=1, description="text in the name of the image file")]
    by: Annotated[str, Field(description="what stands there in the name of the label file")]


class Labels(Model):
    """Where labels and metadata come from: exactly one of the fields."""

    folder: Annotated[Literal[True] | None, Field(description="the name of the folder that holds the member")] = None
    pattern: Annotated[
        Pattern | None,
        Field(
            description="regular expression searched in the member's name; named groups become columns, `label` and "
            "`split` among them; members that do not match are quarantined"
        ),
    ] = None
    table: Annotated[Table | None, Field(description="a table; members that it does not list keep an empty label")] = (
        None
    )
    companion: Annotated[Companion | None, Field(description="one file of labels per file of images (idx, arrays)")] = (
        None
    )
    column: Annotated[
        int | str | None,
        Field(description="csv: position (from 0; negative from the end) or name of the column; npz: key"),
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return _exactly_one(self, "folder", "pattern", "table", "companion", "column")


class Position(Model):
    """A split inside each image: train before the boundary, test behind it, a gap between them."""

    axis: Annotated[Literal["y", "x"], Field(description="the axis along which the image is divided")]
    boundary: Annotated[float, Field(gt=0, lt=1, description="where, as a fraction of the image")] = 0.5
    gap: Annotated[
        int,
        Field(
            ge=0, description="pixels around the boundary, half on each side; patches that reach into it are `unused`"
        ),
    ] = 0


class Split(Model):
    """What is for training, what for testing. Else a ``split`` column decides, and without one k-fold at fit time."""

    position: Annotated[Position | None, Field(description="by position in the image; patches only")] = None
    pattern: Annotated[
        Pattern | None, Field(description="regular expression on the member's name with a group `split`")
    ] = None
    column: Annotated[
        str | None, Field(description="the metadata column that holds it; default `split` where there is one")
    ] = None
    rename: Annotated[dict[str, str], Field(description="found value: train, test, unused or empty")] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(getattr(self, name) is not None for name in ("position", "pattern", "column")) > 1:
            raise ValueError("give at most one of position, pattern, column")
        if self.pattern and "split" not in re.compile(self.pattern).groupindex:
            raise ValueError("pattern: no group named split; write (?P<split>…)")
        if wrong := set(self.rename.values()) - set(SPLITS):
            raise ValueError(f"rename: {sorted(wrong)} are no splits; use train, test, unused or ''")
        return self


class Arrays(Model):
    """Where channels are in NumPy arrays, which are (sample, y, x) or, for one image a file, (y, x) without them."""

    channel_axis: Annotated[
        Literal["first", "last"], Field(description="`first`: (…, channel, y, x); `last`: (…, y, x, channel)")
    ]


class Csv(Model):
    """How to read rows of text as images: every column but the label's is a pixel, in row-major order."""

    shape: Annotated[Size, Field(description="[height, width] of the image in a row")]
    header: Annotated[bool, Field(description="whether the first line names the columns")] = False
    delimiter: Annotated[str, Field(min_length=1, max_length=1, description="what separates the values")] = ","


class FitOptions(Model):
    """How heads are fitted and evaluated."""

    heads: Annotated[tuple[str, ...], Field(min_length=1, description="names of the heads")] = ("ridge", "logistic")
    folds: Annotated[
        int, Field(ge=2, le=100, description="number of stratified folds where the entry has no train/test split")
    ] = 5
    seed: Annotated[int, Field(ge=0, lt=1 << 32, description="seed of the folds")] = 0


class Entry(Model):
    """One archive: what it is, where it is, and how its files become labelled samples."""

    name: Annotated[
        str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=80, description="slug; names the output folder")
    ]
    title: Annotated[str, Field(min_length=1, description="one line for people")]
    description: Annotated[str, Field(description="what the pictures show, what is known about them")] = ""
    licence: Annotated[str, Field(min_length=1, description="SPDX identifier, or what is known of the terms")]
    citation: Annotated[str, Field(description="whom to cite")] = ""
    homepage: Annotated[str, Field(description="where it comes from")] = ""
    reader: Annotated[
        Literal["images", "idx", "arrays", "csv"],
        Field(description="kind of files: PNG, JPEG and TIFF; IDX; npy and npz; text"),
    ]
    location: Annotated[
        str,
        Field(
            min_length=1,
            description="folder, archive or file: absolute, below the data root, or package:NAME/path in a package",
        ),
        AfterValidator(_check_location),
    ]
    members: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="which members: names with wildcards, where `*` also crosses folders"),
    ] = ("*",)
    arrays: Annotated[Arrays | None, Field(description="reader arrays: where the channels are")] = None
    csv: Annotated[Csv | None, Field(description="reader csv: how a row is an image")] = None
    sample: Annotated[Sample, Field(description="how images of any size become samples of one size")] = Sample(
        exact=True
    )
    labels: Annotated[Labels | None, Field(description="where labels and metadata come from; none is fine")] = None
    split: Annotated[Split, Field(description="what is for training, what for testing")] = Split()
    spec: Annotated[Spec, Field(description="the suggested transform")] = Spec()
    fit: Annotated[FitOptions, Field(description="how heads are fitted")] = FitOptions()
    limit: Annotated[
        int | None, Field(ge=1, description="use only this many samples, spread evenly over labels and splits")
    ] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.csv is not None) != (self.reader == "csv"):
            raise ValueError("csv: the reader csv, and only that, needs csv.shape")
        if self.arrays and self.reader != "arrays":
            raise ValueError(f"arrays: is for the reader arrays, not {self.reader}")
        if self.split.position and not self.sample.patches:
            raise ValueError("split.position: only patches have a position; set sample.patches")
        if self.labels and self.labels.companion and self.reader not in ("idx", "arrays"):
            raise ValueError(f"labels.companion: is for the readers idx and arrays, not {self.reader}")
        if self.labels and self.labels.column is not None:
            if self.reader not in ("csv", "arrays"):
                raise ValueError(f"labels.column: is for the readers csv and arrays, not {self.reader}")
            if isinstance(self.labels.column, str) != bool(self.csv is None or self.csv.header):
                raise ValueError(
                    "labels.column: a name needs csv.header or an npz file; a position needs a csv without header"
                )
        return self

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of everything that decides which samples are read, and how; not of the prose."""
        prose = {"title", "description", "licence", "citation", "homepage", "spec", "fit"}
        return digest(self.model_dump(mode="json", exclude=prose))

    def prune(self, n: int) -> "Entry":
        """Return the entry cut to ``n`` samples, under a name of its own: ``mnist`` becomes ``mnist-first1000``.

        The samples are spread evenly over labels and splits, so every class appears where ``n`` allows it.
        """
        values = self.model_dump(mode="json") | {"name": f"{self.name}-first{n}", "limit": n}
        return parse(Entry, values, f"{self.name} cut to {n} samples", EntryError)


def list_entries() -> list[Entry]:
    """Return the catalogue's entries, by name."""
    return [_named(name) for name in entry_names()]


def described_entry(name_or_path: str) -> Entry | None:
    """Return a catalogue entry by its name, or the one in an entry file; None for anything else, a bare archive say.

    Raises
    ------
    EntryError
        The file is absent or not a valid entry.
    """
    if name_or_path in entry_names():
        return _named(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        return parse(Entry, load_yaml(path, EntryError), str(path), EntryError)
    return None


def data_root(flag: str | None = None) -> Path:
    """Return the folder that relative locations start from: the flag, else $SCATTERCUBE_DATA, else ./data."""
    return Path(flag or os.environ.get(DATA_VARIABLE) or "data").expanduser().absolute()


def entry_names() -> list[str]:
    """Return the names in the catalogue, sorted."""
    folder = files("scattercube") / "catalogs"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _named(name: str) -> Entry:
    resource = files("scattercube") / "catalogs" / f"{name}.yaml"
    return parse(Entry, yaml.safe_load(resource.read_text(encoding="utf-8")), f"catalogs/{name}.yaml", EntryError)
