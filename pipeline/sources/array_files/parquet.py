"""Parquet: a row is an item. Columns of encoded images, as Hugging Face writes them, of lists of numbers, of labels.

Rows come from the last row group that a thread has open, so that going forward unpacks nothing twice.
"""

import io
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.array_files import pages
from scattercube.pipeline.sources.array_files.forms import IMAGE, TEXT, Box, Form, Read, refuse_bomb

SEQUENTIAL = False
_BATCH_NBYTES = 8 << 20  # of rows that are unpacked at once
_MOST_ROWS = 1024
_DICTIONARY_NBYTES = 64 << 20  # that rows of a batch may repeat
_LONGEST_TEXT = 1 << 12
_LOOKED_AT = 16  # rows whose lists or images may be empty


@dataclass(frozen=True)
class _Place:
    """A column: its Arrow type, and what its numbers stand for where it says that."""

    kind: Any
    names: tuple[str, ...] = ()


class _File:
    """An open file, and where it is in one of its columns; it is closed when its thread lets go of it, or ends."""

    def __init__(self, archive: Archive, name: str) -> None:
        self.forms: dict[str, Form] = {}
        self.column: tuple[str, int] = ("", -1)  # and its row group
        self.batches: Iterator[Any] = iter(())
        self.batch: Any = None
        self.at = 0  # the first row of the batch
        self.stream = archive.random(name)
        try:
            self.nbytes = self.stream.seek(0, io.SEEK_END)
            self.groups = pages.footer(self.stream, self.nbytes)
            self.n_rows = sum(group.n_rows for group in self.groups)
            self.table = parquet.ParquetFile(self.stream, page_checksum_verification=True)
        except BaseException:
            self.stream.close()
            raise

    def __del__(self) -> None:
        with suppress(Exception):
            self.stream.close()


class _Last(threading.local):
    """The file that a thread read last stays open, for the next rows of it."""

    key: tuple[Any, ...] = ()
    file: _File | None = None


_last = _Last()


def forms(archive: Archive, name: str) -> Mapping[str, Form]:
    """Return the columns of a member by name: of images, numbers, lists of numbers and text. Raises RecordError."""
    with _file(archive, name) as file:
        if not file.forms:
            schema = file.table.schema_arrow
            classes = _class_names(schema.metadata or {})
            columns = {field.name: _form(file, field, classes.get(field.name, ())) for field in schema}
            file.forms = {path: form for path, form in columns.items() if form is not None}
        return dict(file.forms)


def form(archive: Archive, name: str, path: str) -> Form | None:
    """Return a column, or None where there is none of that name that can be read. Raises RecordError."""
    return forms(archive, name).get(path)


def box(archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
    """Read a part of a column of numbers or text, all of it or nothing."""
    try:
        with _file(archive, name) as file:
            rows = _rows(file, form.path, where[0].start, where[0].stop)
            values = _texts(rows, form) if form.dtype == TEXT else _numbers(rows, form)
            return values[(slice(None), *where[1:])], None
    except RecordError as failure:
        return np.empty(0), failure


def encoded(archive: Archive, name: str, form: Form, items: Sequence[int]) -> Iterator[bytes | RecordError]:
    """Yield the encoded images of some rows, or why one cannot be had."""
    for item in items:
        try:
            if item >= form.shape[0]:
                raise RecordError("missing", f"{name}: item {item}; it has {form.shape[0]}")
            with _file(archive, name) as file:
                value = _rows(file, form.path, item, item + 1)[0].as_py()
                content = value.get("bytes") if isinstance(value, dict) else value
                if not content:
                    beside = isinstance(value, dict) and value.get("path")
                    where = f"; it names {beside}, which is not followed" if beside else ""
                    raise RecordError("missing", f"row {item} has no image{where}")
            yield content
        except RecordError as failure:
            yield failure


@contextmanager
def _file(archive: Archive, name: str) -> Iterator[_File]:
    """Open a member. Whatever Arrow raises on damaged bytes becomes a RecordError that says of which member."""
    try:
        with archive.errors(name):
            key = (str(archive.path), name, *archive.signature(name))
            if _last.key != key or _last.file is None:
                _last.key, _last.file = (), None
                _last.file = _File(archive, name)
                _last.key = key
            yield _last.file
    except RecordError as failure:
        text = str(failure)
        if failure.__cause__ is not None:  # of a library: nobody knows what it remembers
            _last.key, _last.file = (), None
        raise RecordError(failure.reason, text if text.startswith(name) else f"{name}: {text}") from failure
    except BaseException:
        _last.key, _last.file = (), None
        raise


def _form(file: _File, field: Any, names: tuple[str, ...]) -> Form | None:
    kind, place, n_rows = field.type, _Place(field.type, names), file.n_rows
    chunks = [chunk for group in file.groups for chunk in group.chunks if chunk.path[0] == field.name]
    nbytes = sum(chunk.nbytes for chunk in chunks)
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        refuse_bomb(f"{field.name}: {n_rows} rows", n_rows, nbytes)
        return Form(field.name, (n_rows,), IMAGE, place=place)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or names:
        return Form(field.name, (n_rows,), TEXT, place=place)
    sizes: list[int] = []
    while _is_list(kind):
        sizes.append(kind.list_size if pa.types.is_fixed_size_list(kind) else 0)
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    refuse_bomb(f"{field.name}: {n_rows} rows", n_rows if sizes else 0, nbytes)
    shape = tuple(sizes) if 0 not in sizes else _shape_of_first(file, field.name, n_rows)
    dtype = np.dtype(np.uint8) if pa.types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())
    return Form(field.name, (n_rows, *shape), dtype, place=place)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _shape_of_first(file: _File, path: str, n_rows: int) -> tuple[int, ...]:
    """Return the shape of the first list that is not empty: what follows must be like it."""
    for row in range(min(n_rows, _LOOKED_AT)):
        values, sizes = _rows(file, path, row, row + 1), [1]
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        while _is_list(values.type) and len(values) and not values.null_count:
            values = values.flatten()
            sizes.append(len(values) // math.prod(sizes))
        if 0 not in sizes and len(sizes) > 1:
            return tuple(sizes[1:])
    return (0,)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return what the numbers in columns of labels stand for: Hugging Face keeps that beside the schema."""
    found: dict[str, tuple[str, ...]] = {}
    with suppress(ValueError, AttributeError, TypeError, KeyError, RecursionError):
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        for column, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[column] = tuple(str(name) for name in feature["names"])
    return found


def _rows(file: _File, path: str, start: int, stop: int) -> Any:
    """Return rows of a column of the open file as one Arrow array."""
    pieces: list[Any] = []
    first = 0
    for index, group in enumerate(file.groups):
        last = first + group.n_rows
        if first < stop and last > start:
            pieces += _of_group(file, path, index, max(start - first, 0), min(stop, last) - first)
        first = last
    if sum(map(len, pieces)) != stop - start:
        raise RecordError("unreadable", f"{path}: fewer rows than the file promises")
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def _of_group(file: _File, path: str, group: int, start: int, stop: int) -> list[Any]:
    """Return rows of a row group, forward from where the last call left it if that is before them."""
    if file.column != (path, group) or file.at > start:
        file.column = ("", -1)
        size = _refuse_pages(file, path, group)
        file.batches = file.table.iter_batches(size, row_groups=[group], columns=[path], use_threads=False)
        file.batch, file.at, file.column = None, 0, (path, group)
    pieces: list[Any] = []
    at = start
    while at < stop:
        if file.batch is None or file.at + len(file.batch) <= at:
            file.at += 0 if file.batch is None else len(file.batch)
            try:
                batch = next(file.batches, None)
            except BaseException:
                file.column = ("", -1)
                raise
            if batch is None:
                file.column = ("", -1)
                break
            file.batch = batch.column(0)
            continue
        piece = file.batch.slice(at - file.at, stop - at)
        pieces.append(piece)
        at += len(piece)
    return pieces


def _refuse_pages(file: _File, path: str, group: int) -> int:
    """Raise RecordError where a column chunk is a bomb; return how many of its rows may be unpacked at once."""
    is_list, size = _is_list(file.table.schema_arrow.field(path).type), _MOST_ROWS
    for chunk in file.groups[group].chunks:
        if chunk.path[0] != path:
            continue
        where = f"{path}: row group {group}"
        if chunk.start < 0 or chunk.nbytes < 0 or chunk.start + chunk.nbytes > file.nbytes:
            raise RecordError("unreadable", f"{where} ends behind the file; is it complete?")
        itemsize = chunk.itemsize if is_list else 0  # without lists, a batch has a value a row
        found = pages.walk(file.stream, chunk.start, chunk.nbytes, chunk.n_values, itemsize, where)
        average = max(1, chunk.unpacked_nbytes // max(1, file.groups[group].n_rows))
        size = min(size, max(1, min(_BATCH_NBYTES // average, _DICTIONARY_NBYTES // max(1, found.dictionary_nbytes))))
    return size


def _numbers(rows: Any, form: Form) -> np.ndarray:
    """Return rows of numbers or lists as an array. Raises RecordError where lists are not alike."""
    n_values = math.prod(form.shape[1:])
    if isinstance(rows, pa.ExtensionArray):
        rows = rows.storage
    values, sizes = rows, []
    while _is_list(values.type):
        if values.null_count:
            raise RecordError("missing", f"{form.path}: a row has no list")
        is_fixed = pa.types.is_fixed_size_list(values.type)
        sizes.append(np.full(len(values), values.type.list_size) if is_fixed else np.asarray(values.value_lengths()))
        values = values.flatten()
    expected = form.shape[1:] if len(form.shape) - 1 == len(sizes) else (n_values,)
    for found, size in zip(sizes, expected, strict=False):  # lists of lists, as one list is meant: all must be as long
        if len(sizes) == len(expected) and (found != size).any():
            raise RecordError(
                "wrong-shape", f"{form.path}: a list of {found[found != size][0]} values; expected {size}"
            )
    if len(values) != len(rows) * n_values:
        raise RecordError(
            "wrong-shape", f"{form.path}: {len(values)} values in {len(rows)} rows; expected {n_values} each"
        )
    if values.null_count and form.dtype.kind != "f":
        raise RecordError("non-finite", f"{form.path}: {values.null_count} values are missing")
    numbers = np.asarray(values.to_numpy(zero_copy_only=False)).astype(form.dtype, copy=False)
    return numbers.reshape(len(rows), *form.shape[1:])


def _texts(rows: Any, form: Form) -> np.ndarray:
    place: _Place = form.place
    values = rows.to_pylist()
    if place.names:
        values = [_name(place.names, value) for value in values]
    found = ["" if value is None else str(value) for value in values]
    if max(map(len, found), default=0) > _LONGEST_TEXT:
        raise RecordError("too-large", f"{form.path}: texts of more than {_LONGEST_TEXT} characters")
    return np.array(found, object)


def _name(names: tuple[str, ...], value: Any) -> str:
    known = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if known else "" if value in (None, -1) else str(value)
