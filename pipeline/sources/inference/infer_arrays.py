"""What bare files of arrays say by themselves: which array holds images, and which their labels."""

import glob
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources.archives.archive import Archive, some
from scattercube.pipeline.sources.array_files import arrays, grids, raw
from scattercube.pipeline.sources.array_files.forms import IMAGE, TEXT, Form
from scattercube.pipeline.sources.array_files.grids import Grid
from scattercube.pipeline.sources.pictures.sampling import Header

_LOOKED_AT = 64  # images of a table
_IDX_IMAGES, _IDX_LABELS = "images-idx3", "labels-idx1"


def guess(archive: Archive, names: Sequence[str], said: list[str]) -> dict[str, Any]:
    """Return which members and arrays are images, and where their labels are.

    Raises
    ------
    SourceError
        Nothing can be read, or nothing can be an image.
    EntryError
        The files do not say enough.
    """
    if all(grids.is_raw(name) for name in names):
        return _plain(archive, names, said)
    if any(grids.is_raw(name) for name in names):
        raise EntryError(f"{archive.path}: files of several kinds: {some(names)}; write an entry with members")
    failures: list[RecordError] = []
    for name in names:
        try:
            return _columns(archive.path.name, grids.format_of(archive, name).forms(archive, name), said)
        except RecordError as failure:
            failures.append(failure)
    raise SourceError(f"{archive.path}: none of {len(names)} files can be read; the first: {failures[0]}")


def _columns(name: str, forms: Mapping[str, Form], said: list[str]) -> dict[str, Any]:
    """Choose among the arrays of one file."""
    shapes = {path: form.shape for path, form in forms.items()}
    listed = some([f"{path} {'×'.join(map(str, shape))}" for path, shape in shapes.items()]) or "none"
    pictures = [form for form in forms.values() if form.dtype == IMAGE]
    pictures = pictures or [form for form in forms.values() if form.numeric and len(form.shape) > 1]
    if len(pictures) != 1 or len(pictures[0].shape) > 3:
        raise EntryError(
            f"{name}: which arrays are samples, or what their axes are, is not certain: {listed}; write an "
            "entry with arrays.variable and arrays.dims"
        )
    (picture,) = pictures
    no_labels = {*picture.dims, picture.path}
    vectors = [form for path, form in forms.items() if form.shape == picture.shape[:1] and path not in no_labels]
    if len(picture.shape) == 2 and vectors:
        raise EntryError(
            f"{name}: {picture.path} is an image, or a signal in each row: {listed}; write an entry with arrays.dims"
        )
    said.append(f"images are in {picture.path}")
    labels = [form for form in vectors if form.path == "label"] or vectors
    if len(labels) == 1 and (labels[0].dtype == TEXT or labels[0].dtype.kind in "bui"):
        said.append(f"labels are in {labels[0].path}")
        return {"arrays": {"variable": picture.path}, "labels": {"column": labels[0].path}}
    said.append("no labels")
    return {"arrays": {"variable": picture.path}}


def _plain(archive: Archive, names: Sequence[str], said: list[str]) -> dict[str, Any]:
    """Find which files are images, and which hold their labels."""
    shapes: dict[str, tuple[int, ...]] = {}
    failures: list[RecordError] = []
    for name in names:
        try:
            shapes[name] = raw.forms(archive, name)[""].shape
        except RecordError as failure:
            failures.append(failure)
    pictures = [name for name, shape in shapes.items() if len(shape) > 1]
    vectors = [name for name, shape in shapes.items() if len(shape) == 1]
    if not pictures:
        why = f"; {failures[0]}" if failures else ""
        raise SourceError(f"{archive.path}: no array of two or more dimensions among {some(names)}{why}")
    if any(len(shapes[name]) > 3 for name in pictures):
        raise EntryError(
            f"{archive.path}: {some(pictures)} have channels; write an entry with arrays.channel_axis: first or last"
        )
    companions = {name.replace(_IDX_IMAGES, _IDX_LABELS) for name in pictures}
    if companions <= set(vectors) and len(companions) == len(pictures):
        said.append("labels are in the files beside the images")
        labels: dict[str, Any] = {"labels": {"companion": {"replace": _IDX_IMAGES, "by": _IDX_LABELS}}}
        if {match[0] for name in pictures if (match := re.search("train|t10k", name))} == {"train", "t10k"}:
            said.append("the split is in their names")
            labels["split"] = {"pattern": "(?P<split>train|t10k)", "rename": {"t10k": "test"}}
        return labels
    values: dict[str, Any] = {"members": [glob.escape(name) for name in pictures]} if vectors else {}
    if len(pictures) == len(vectors) == 1 and shapes[vectors[0]] == shapes[pictures[0]][:1]:
        said.append(f"labels are in {vectors[0]}")
        return values | {"labels": {"column": vectors[0].removesuffix(".npy")}}
    said.append("no labels")
    return values


def heads(entry: Entry, archive: Archive, names: Sequence[str], found: Sequence[Grid | Header]) -> list[Header]:
    """Return the sizes of images: of encoded ones in a table, of the first rows, for each has its own."""
    seen = [arrays.picture(head) if isinstance(head, Grid) else head for head in found]
    if any(isinstance(head, Header) for head in found):
        seen += arrays.heads_of_images(entry, archive, names[0], _LOOKED_AT)
    return seen
