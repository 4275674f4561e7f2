"""What exists and where: catalogue entries, and how to find what a user names.

An entry is one YAML file. ``catalogs/README.md`` describes every field for those who write one.
"""

import os
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import regex
import yaml
from pydantic import AfterValidator, Field, model_validator

from scattercube.pipeline.addresses import URL, check_access, check_url
from scattercube.pipeline.errors import EntryError, said_by
from scattercube.pipeline.policies import (
    Arrays,
    Audio,
    Csv,
    Molecules,
    Sample,
    Sky,
    check_arrays,
    check_audio,
    check_relative,
    exactly_one,
)
from scattercube.pipeline.spec import AnySpec, ImageSpec, Model, digest, load_yaml, parse

DATA_VARIABLE = "SCATTERCUBE_DATA"
_SEARCH_S = 1.0  # that a pattern may take for one name; usual ones take microseconds
SPLITS = ("train", "test", "unused", "")
PACKAGE_LOCATION = re.compile(r"package:(?P<package>[A-Za-z_]\w*)/(?P<path>.+)")


def _check_pattern(text: str) -> str:
    try:
        groups = groups_of(text)
    except RecursionError as failure:
        raise ValueError("not a regular expression that can be used: nested too deeply") from failure
    except Exception as failure:  # a number that is too large is no regex.error
        raise ValueError(f"not a regular expression: {said_by(failure)}") from failure
    if not groups:
        raise ValueError("no named group; name what the columns are called, for example (?P<label>[^/]+)")
    return text


def groups_of(pattern: str) -> list[str]:
    """Return the names of a pattern's groups, in their order."""
    return list(_compiled(pattern).groupindex)


def search(pattern: str, name: str, field: str) -> "regex.Match[str] | None":
    """Search a pattern of an entry in the name of a member. Raises EntryError where that takes too long."""
    try:
        return _compiled(pattern).search(name, timeout=_SEARCH_S)
    except TimeoutError as failure:
        raise EntryError(
            f"{field}: {pattern!r} takes more than {_SEARCH_S:g} s for the name {name!r}: a repetition inside of a "
            "repetition can divide a name in too many ways; write it without"
        ) from failure


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)


def _check_location(text: str) -> str:
    package = PACKAGE_LOCATION.fullmatch(text)
    if text.startswith("package:") and not package:
        raise ValueError("expected package:NAME/path/in/it, for example package:skimage/data")
    if URL.match(text):
        return check_url(text)
    if not PurePosixPath(text).is_absolute() and ".." in PurePosixPath(text).parts:
        raise ValueError("'..' would leave the data root; give an absolute path instead")
    return text


Pattern = Annotated[str, AfterValidator(_check_pattern)]
RelativePath = Annotated[str, Field(min_length=1), AfterValidator(check_relative)]


class Table(Model):
    """A table with a row per member: Parquet, or text; columns beside key, label and target become metadata."""

    file: Annotated[RelativePath, Field(description="its name inside the archive, or beside it")]
    key: Annotated[str, Field(description="the column that names the member")]
    match: Annotated[
        Literal["member", "name", "stem"],
        Field(description="what the key holds: the whole member name, its last part, or that without the extension"),
    ] = "member"
    label: Annotated[str | None, Field(description="the column with the label")] = None
    target: Annotated[
        str | None, Field(description="the column with a number to predict: heads then regress, and tell no classes")
    ] = None
    unit: Annotated[str, Field(description="of the target, for example kcal/mol")] = ""
    columns: Annotated[
        tuple[str, ...] | None, Field(min_length=1, description="names of the columns, where no first line has them")
    ] = None

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        if self.unit and not self.target:
            raise ValueError("unit: is that of the target; name its column")
        if self.target and self.target in (self.key, self.label):
            raise ValueError(f"target: {self.target} is the key or the label already")
        if self.columns and self.file.lower().endswith(".parquet"):
            raise ValueError("columns: a Parquet file names its columns itself")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: {', '.join(self.columns)} names one more than once")
        return self


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
        Field(
            description="csv: position (from 0; negative from the end) or name of the column; npz: key; HDF5, netCDF, "
            "Zarr and Parquet: another array or column of the file"
        ),
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return exactly_one(self, "folder", "pattern", "table", "companion", "column")


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
        if self.pattern and "split" not in groups_of(self.pattern):
            raise ValueError("pattern: no group named split; write (?P<split>…)")
        if wrong := set(self.rename.values()) - set(SPLITS):
            raise ValueError(f"rename: {sorted(wrong)} are no splits; use train, test, unused or ''")
        return self


class FitOptions(Model):
    """How heads are fitted and evaluated."""

    heads: Annotated[tuple[str, ...], Field(min_length=1, description="names of the heads")] = ("ridge", "logistic")
    folds: Annotated[
        int, Field(ge=2, le=100, description="number of stratified folds where the entry has no train/test split")
    ] = 5
    seed: Annotated[int, Field(ge=0, lt=1 << 32, description="seed of the folds")] = 0


_TRANSFORMS = {"audio": "scattering1d", "molecules": "solid_harmonic"}


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
        Literal["images", "idx", "arrays", "csv", "sky", "audio", "molecules"],
        Field(
            description="kind of files: PNG, JPEG and TIFF; IDX; npy, npz, HDF5, netCDF, Zarr and Parquet; text; FITS; "
            "WAV, FLAC, Ogg and MP3; XYZ"
        ),
    ]
    location: Annotated[
        str,
        Field(
            min_length=1,
            description="folder, archive or file: absolute, below the data root, package:NAME/path in a package, or "
            "a URL",
        ),
        AfterValidator(_check_location),
    ]
    anonymous: Annotated[
        bool, Field(description="object stores: ask without credentials, for buckets that everyone may read")
    ] = False
    index: Annotated[
        RelativePath | None,
        Field(
            description="folders on web servers, which cannot be listed: the file in it that names its files, "
            "one a line"
        ),
    ] = None
    members: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="which members: names with wildcards, where `*` also crosses folders"),
    ] = ("*",)
    arrays: Annotated[
        Arrays | None, Field(description="readers arrays and idx: which array, and what its axes are")
    ] = None
    csv: Annotated[Csv | None, Field(description="reader csv: how a row is an image")] = None
    sky: Annotated[Sky | None, Field(description="reader sky: which images of a FITS file, masks, cut-outs")] = None
    molecules: Annotated[Molecules | None, Field(description="reader molecules: the grid that holds a molecule")] = None
    audio: Annotated[Audio | None, Field(description="reader audio: sampling rate, channels")] = None
    sample: Annotated[Sample, Field(description="how images of any size become samples of one size")] = Sample(
        exact=True
    )
    labels: Annotated[Labels | None, Field(description="where labels and metadata come from; none is fine")] = None
    split: Annotated[Split, Field(description="what is for training, what for testing")] = Split()
    spec: Annotated[
        AnySpec,
        Field(description="the suggested transform; by default scattering2d of images, scattering1d of sounds, …"),
    ] = ImageSpec()
    fit: Annotated[FitOptions, Field(description="how heads are fitted")] = FitOptions()
    limit: Annotated[
        int | None, Field(ge=1, description="use only this many samples, spread evenly over labels and splits")
    ] = None

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A Spec that names no transform means that of the reader's signals."""
        transform, spec = _TRANSFORMS.get(str(values.get("reader"))), values.get("spec", {})
        return values | {"spec": {"transform": transform} | spec} if transform and isinstance(spec, dict) else values

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.csv is not None) != (self.reader == "csv"):
            raise ValueError("csv: the reader csv, and only that, needs csv.shape")
        check_arrays(self.reader, self.arrays, self.sample)
        _check_sky(self)
        _check_molecules(self)
        timed = self.arrays is not None and self.arrays.signal_dims == ("time",)
        check_audio(self.reader, self.audio, self.sample, timed=timed)
        check_access(self.location, self.anonymous, self.index)
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
        prose = {"title", "description", "licence", "citation", "homepage", "anonymous", "spec", "fit"}
        return digest(self.model_dump(mode="json", exclude=prose))

    def prune(self, n: int) -> "Entry":
        """Return the entry cut to ``n`` samples, under a name of its own: ``mnist`` becomes ``mnist-first1000``.

        The samples are spread evenly over labels and splits, so every class appears where ``n`` allows it.
        """
        values = self.model_dump(mode="json") | {"name": f"{self.name}-first{n}", "limit": n}
        return parse(Entry, values, f"{self.name} cut to {n} samples", EntryError)


def _check_molecules(entry: Entry) -> None:
    """Raise ValueError where the fields of an entry of molecules do not fit each other."""
    if (entry.molecules is not None) != (entry.reader == "molecules"):
        raise ValueError("molecules: the reader molecules, and only that, needs size, spacing and width of the grid")
    if entry.molecules and (not entry.sample.exact or entry.sample.missing):
        raise ValueError("sample: molecules.size is the size of all samples; leave sample out")


def _check_sky(entry: Entry) -> None:
    """Raise ValueError where the fields of a FITS entry do not fit each other."""
    sky, sample = entry.sky, entry.sample
    if sky is None:
        return
    if entry.reader != "sky":
        raise ValueError(f"sky: is for the reader sky, not {entry.reader}")
    if (sky.cutouts or sky.healpix) and not sample.exact:
        raise ValueError("sky: cut-outs and tiles say their size themselves; leave sample.exact")
    if (sky.mask or sky.weight) and not sample.missing:
        raise ValueError("sky: masks and weights leave missing values; set sample.missing: true")
    if (sky.mask or sky.weight) and sample.resize:
        raise ValueError("sky: what is missing would spread when it is resampled; use crop or patches")
    if sky.label and entry.labels:
        raise ValueError("give one of labels and sky.label")


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
