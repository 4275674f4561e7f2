"""Labels, splits and metadata of samples: from folders, names, tables, files beside them, or positions."""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.catalog import SPLITS, Entry, Table, groups_of, search
from scattercube.pipeline.errors import EntryError, RecordError, SourceError, said_by
from scattercube.pipeline.sources.archives.archive import Archive, some
from scattercube.pipeline.sources.array_files import grids
from scattercube.pipeline.sources.pictures import delimited

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, np.ndarray]
# Names that stores and cubes use for something else: dims, and the coordinates of samples and of paths.
_TAKEN = re.compile(
    r"sample|channel|path|y|x|time|sample_id|member|item|source|status|signal|scattering|coverage|target|order|y0|x0|t0|table_row"
    r"|start|duration|source_rate"
    r"|(j|theta|xi|sigma|scale)\d*"
)
_MATCH: dict[str, Callable[[str], str]] = {
    "member": str,
    "name": lambda member: PurePosixPath(member).name,
    "stem": lambda member: PurePosixPath(member).stem,
}


def partners(entry: Entry, names: Sequence[str]) -> set[str]:
    """Return the members that hold labels or masks of others, and so are no images themselves."""
    labels, sky = entry.labels, entry.sky
    if labels and labels.companion:
        return {name.replace(labels.companion.replace, labels.companion.by) for name in names} - {
            name for name in names if labels.companion.replace in name
        }
    if beside := [part for part in (sky.mask, sky.weight) if part and part.replace] if sky else []:
        texts = [(str(part.replace), part.by) for part in beside]
        others = {name.replace(text, by) for text, by in texts for name in names if text in name}
        return others - {name for text, _ in texts for name in names if text in name}
    if labels and entry.reader == "arrays":
        return {f"{labels.column}.npy"} if labels.column is not None else {labels.table.file} if labels.table else set()
    return set()


def describe(
    entry: Entry, archive: Archive, names: Sequence[str], counts: np.ndarray, own: Columns
) -> tuple[Columns, list[str]]:
    """Return label, split and metadata columns with a row per sample, and notes.

    Parameters
    ----------
    names, counts
        The members, and how many samples each has; the samples of a member follow each other.
    own
        What the reader says of each sample: ``item``, its position in its member, and metadata, which may hold a split.

    Raises
    ------
    EntryError
        What the entry says about labels or splits does not fit what the archive holds.
    """
    columns: Columns = {}
    notes: list[str] = []
    items = own["item"]
    if labels := entry.labels:
        if labels.folder:
            columns = {"label": _texts([PurePosixPath(name).parent.name for name in names])}
        elif labels.pattern:
            columns = _groups(labels.pattern, names, "labels.pattern", notes)
        elif labels.table:
            columns = _from_table(labels.table, entry.split.column or "split", archive, names, notes)
        columns = {name: np.repeat(values, counts) for name, values in columns.items()}
        if labels.companion or labels.column is not None:
            columns = {"label": _inner(entry, archive, names, counts, items)}
        if "label" in columns and (n_empty := int(np.count_nonzero(columns["label"] == ""))):
            notes.append(f"{n_empty} of {len(items)} samples have no label")
        if "target" in columns and (n_empty := int(np.count_nonzero(np.isnan(columns["target"])))):
            notes.append(f"{n_empty} of {len(items)} samples have no target")
    if entry.split.pattern:
        found = _groups(entry.split.pattern, names, "split.pattern", notes)
        columns["split"] = np.repeat(found["split"], counts)
    elif (column := entry.split.column) is not None:
        if column not in columns | own:
            raise EntryError(f"split.column: no column {column!r}; there are: {', '.join(columns | own) or 'none'}")
        columns["split"] = columns.pop(column) if column in columns else own[column]
    columns["split"] = splits_of(entry, columns.get("split", _texts([""]).repeat(len(items))))
    return columns, notes


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)


def splits_of(entry: Entry, found: np.ndarray) -> np.ndarray:
    """Return the splits that found values mean. Raises EntryError where one means none."""
    values, inverse = np.unique(found.astype(str), return_inverse=True)
    renamed = [entry.split.rename.get(value, value) for value in values.tolist()]
    if strange := sorted(set(renamed) - set(SPLITS)):
        raise EntryError(
            f"split: {some(strange)} are neither train, test, unused nor empty; say what they are in split.rename"
        )
    return _texts(renamed)[inverse]


def _groups(pattern: str, names: Sequence[str], field: str, notes: list[str]) -> Columns:
    matches = [search(pattern, name, field) for name in names]
    missed = [name for name, match in zip(names, matches, strict=True) if match is None]
    if len(missed) == len(names):
        raise EntryError(f"{field}: {pattern!r} matches no member; the first is {names[0]!r}")
    if missed:
        notes.append(f"{field} does not match {len(missed)} of {len(names)} members: {some(missed)}")
    columns: Columns = {}
    for group in groups_of(pattern):
        values = [(match[group] or "") if match else "" for match in matches]
        columns[free_name(group, columns, notes)] = _texts(values)
    return columns


def _inner(entry: Entry, archive: Archive, names: Sequence[str], counts: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Labels that stand one per item, in the member itself or in a member of its own."""
    labels = entry.labels
    assert labels is not None
    parts = []
    for name, mine in zip(names, np.split(items, np.cumsum(counts)[:-1]), strict=True):
        if entry.reader == "csv":
            try:
                where, values = name, delimited.column(entry, archive, name)
            except RecordError:
                where, values = name, _texts([""])  # a file that cannot be read has one row, which will be quarantined
        elif labels.column is not None and not grids.is_raw(name):
            where, values = name, _in_file(entry, archive, name, str(labels.column))
        else:
            companion = labels.companion
            where = name.replace(companion.replace, companion.by) if companion else f"{labels.column}.npy"
            if where == name or where not in archive:
                raise EntryError(f"labels: {name} should have its labels in {where}, which is not there")
            try:
                values = grids.texts(grids.vector(archive, where))
            except RecordError as failure:
                raise SourceError(f"{archive.path}: the labels cannot be read: {failure}") from failure
        if len(values) <= mine.max(initial=-1):
            raise EntryError(f"labels: {where} has {len(values)} labels for {mine.max() + 1} items in {name}")
        parts.append(values[mine])
    return np.concatenate(parts)


def _in_file(entry: Entry, archive: Archive, name: str, path: str) -> np.ndarray:
    """Labels that are another array or column of the same file."""
    try:
        grid = grids.grid(entry, archive, name)
    except RecordError:
        return _texts([""])  # it has one row, which will be quarantined
    try:
        return grids.texts(grids.per_item(archive, name, grid, path))
    except RecordError as failure:
        if failure.reason in ("missing", "wrong-shape"):
            raise EntryError(f"labels.column: {failure}") from failure
        raise SourceError(f"{archive.path}: the labels cannot be read: {failure}") from failure


def _from_table(table: Table, split: str, archive: Archive, names: Sequence[str], notes: list[str]) -> Columns:
    # Keys like 00012 are names, not numbers, and so are labels and splits.
    texts = {table.key, table.label, split} - {table.target}
    rows = parse_table(table.file, table_content(table.file, archive), texts, columns=table.columns)
    for wanted in filter(None, (table.key, table.label, table.target)):
        if wanted not in rows.column_names:
            raise EntryError(
                f"labels.table: {table.file} has no column {wanted!r}; it has {', '.join(rows.column_names)}"
            )
    keys = rows.column(table.key).to_pylist()
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) < len(keys):
        twice = next(key for row, key in enumerate(keys) if row_of[key] != row)
        raise EntryError(f"labels.table: {table.file} lists {twice!r} more than once in {table.key}")
    found = np.array([row_of.get(_MATCH[table.match](name), -1) for name in names])
    if (found < 0).all():
        raise EntryError(
            f"labels.table: no {table.match} of a member is in column {table.key} of {table.file}; "
            f"members: {some(names)}; keys: {some([str(key) for key in keys])}"
        )
    if missing := int(np.count_nonzero(found < 0)):
        notes.append(f"{table.file} does not list {missing} of {len(names)} members")
    columns = {} if table.label is None else {"label": column_of(rows.column(table.label), found)}
    if table.target:
        columns["target"] = _numbers(table, column_of(rows.column(table.target), found))
    for column in rows.column_names:
        if column not in (table.key, table.label, table.target):
            columns[free_name(column, columns, notes)] = column_of(rows.column(column), found)
    return columns


def _numbers(table: Table, found: np.ndarray) -> np.ndarray:
    """Return what is to be predicted as float64, NaN where it is not known. Raises EntryError where it is no number."""
    if found.dtype.kind == "O":
        some_text = next((text for text in found.tolist() if text), "")
        raise EntryError(
            f"labels.table.target: {table.target} in {table.file} holds {some_text!r}, which is no number; "
            "name another column, or call it label"
        )
    numbers = found.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def column_of(values: "pa.ChunkedArray", rows: np.ndarray) -> np.ndarray:
    """Pick rows of a column; numbers stay numbers, with NaN where there is no row, all else becomes text."""
    import pyarrow as pa

    kind, absent = values.type, rows < 0
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers: np.ndarray = np.asarray(values.to_numpy()[rows])
        if absent.any():
            numbers = numbers.astype(np.float64)
            numbers[absent] = np.nan
        return numbers
    texts = _texts(["" if value is None else str(value) for value in values.to_pylist()])
    return np.where(absent, "", texts[rows])


def table_checksum(file: str, archive: Archive) -> str:
    """Return the SHA-256 of a table's bytes."""
    return hashlib.sha256(table_content(file, archive)).hexdigest()


def table_content(file: str, archive: Archive, field: str = "labels.table") -> bytes:
    """Return the bytes of a table that is in an archive or beside it. Raises SourceError, naming the entry's field."""
    if file in archive:
        try:
            return archive.read(file)
        except RecordError as failure:
            raise SourceError(f"{archive.path}: {field} cannot be read: {failure}") from failure
    if (beside := archive.path.parent / file).is_file():
        return beside.read_bytes()
    raise SourceError(f"{field}: {file} is neither in {archive.path} nor beside it")


def parse_table(
    file: str,
    content: bytes,
    texts: Collection[str | None],
    field: str = "labels.table",
    columns: Sequence[str] | None = None,
) -> "pa.Table":
    """Return a table of text or Parquet; these of its columns stay text. Raises SourceError, naming the entry's field.

    What separates the columns of text is said by the name's ending: .txt and .dat white space, .tsv tabs, else commas.
    ``columns`` are their names where no first line has them.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if file.lower().endswith(".parquet"):
            rows = parquet.read_table(pa.BufferReader(content))
            for position, name in enumerate(rows.column_names):
                if name in texts:
                    rows = rows.set_column(position, name, rows.column(name).cast(pa.string()))
            return rows
        parsing = csv.ParseOptions(delimiter="\t" if ".tsv" in file.lower() else ",")
        if file.lower().endswith((".txt", ".dat")):  # columns are set apart by white space, and nothing is quoted
            content = b"\n".join(b"\t".join(line.split()) for line in content.splitlines())
            parsing = csv.ParseOptions(delimiter="\t", quote_char=False)
        reading = csv.ReadOptions(column_names=columns)
        converting = csv.ConvertOptions(column_types={name: pa.string() for name in texts if name})
        rows = csv.read_csv(pa.BufferReader(content), reading, parsing, converting)
        _ = rows.column_names  # they are looked at only now, and may be no text
        return rows
    except Exception as failure:  # beside Arrow's own: what Python says of text that is not UTF-8
        raise SourceError(f"{field}: {file} cannot be read: {said_by(failure)}") from failure


def free_name(name: str, taken: Collection[str], notes: list[str]) -> str:
    """Return a name under which a column can stand in a cube; a note says where that is another."""
    plain = re.sub(r"\W+", "_", name).strip("_") or "column"
    given = f"meta_{plain}" if _TAKEN.fullmatch(plain) or plain in taken else plain
    while given in taken:
        given += "_"
    if given != name:
        notes.append(f"column {name!r} is called {given} here")
    return given
