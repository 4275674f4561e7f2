"""Cut-outs around the positions in a table: which of them fall in an image, and what else the table says of them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.policies import Cutouts
from scattercube.pipeline.sources import labels
from scattercube.pipeline.sources.archives.archive import Archive, open_archive
from scattercube.pipeline.sources.reader import Columns
from scattercube.pipeline.sources.sky_maps import wcs
from scattercube.pipeline.sources.sky_maps.fits import opened

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.bz2")
_FIELD = "sky.cutouts.table"
_KEPT = 16
_forms: OrderedDict[str, dict[str, np.dtype]] = OrderedDict()


@dataclass(frozen=True)
class Positions:
    """A table of positions.

    Attributes
    ----------
    ra, dec
        ICRS, in degrees.
    columns
        What else the table says, as metadata.
    """

    ra: np.ndarray
    dec: np.ndarray
    columns: Columns


def positions(entry: Entry, archive: Archive, own: tuple[str, ...]) -> Positions | None:
    """Return the table that an entry names, if it does; it is read once for an archive.

    Parameters
    ----------
    own
        Names that the reader's columns have already.

    Raises
    ------
    EntryError
        It has not the columns that the entry names, or they are no positions.
    SourceError
        It is absent, or cannot be read.
    """
    cutouts = entry.sky.cutouts if entry.sky else None
    if cutouts is None:
        return None
    key = f"{_FIELD}: {cutouts.table} {entry.digest}"
    if key not in archive.learnt:
        archive.learnt[key] = _read(entry, cutouts, archive, own)
        _forms[entry.digest] = {name: values.dtype for name, values in archive.learnt[key].columns.items()}
        while len(_forms) > _KEPT:
            _forms.popitem(last=False)
    found: Positions = archive.learnt[key]
    return found


def unknown(entry: Entry) -> Positions | None:
    """Return one row that says nothing, in the form of the table that was read last for this entry.

    A file that cannot be read has one sample, which will be quarantined: it needs the columns of the others.
    """
    if not (entry.sky and entry.sky.cutouts):
        return None
    form = _forms.get(entry.digest, {})
    blank = {name: np.array(["" if dtype.kind == "O" else 0], dtype) for name, dtype in form.items()}
    return Positions(np.full(1, np.nan), np.full(1, np.nan), blank)


def corners(
    found: Positions, cutouts: Cutouts, text: str, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which positions have their whole cut-out in an image, and its first row and column; row by row.

    A position that is NaN stands for an image of which nothing is known.
    """
    if np.isnan(found.ra).all():
        return np.zeros(len(found.ra), np.int64), *np.zeros((2, len(found.ra)), np.int64)
    rows, y, x = wcs.find(text, shape, found.ra, found.dec)
    # Even sizes have their centre between pixels: what is there but for rounding goes up, on every machine.
    y0, x0 = (
        np.floor(at - (size - 1) / 2 + 0.5 + 1e-6).astype(np.int64)
        for at, size in zip((y, x), cutouts.size, strict=True)
    )
    whole = (y0 >= 0) & (x0 >= 0) & (y0 + cutouts.size[0] <= shape[0]) & (x0 + cutouts.size[1] <= shape[1])
    order = np.flatnonzero(whole)[np.lexsort((rows[whole], x0[whole], y0[whole]))]
    return rows[order], y0[order], x0[order]


def _read(entry: Entry, cutouts: Cutouts, archive: Archive, own: tuple[str, ...]) -> Positions:
    texts = (entry.sky.label if entry.sky else None, entry.split.column or "split")
    if cutouts.table.lower().endswith(FITS_SUFFIXES):
        found = _fits_columns(cutouts.table, archive)
    else:
        table = labels.parse_table(cutouts.table, labels.table_content(cutouts.table, archive, _FIELD), texts, _FIELD)
        every = np.arange(table.num_rows)
        found = {name: labels.column_of(table.column(name), every) for name in table.column_names}
    sphere = []
    for name in (cutouts.ra, cutouts.dec):
        if name not in found:
            raise EntryError(f"{_FIELD}: {cutouts.table} has no column {name!r}; it has {', '.join(found)}")
        if found[name].dtype.kind not in "iuf":
            raise EntryError(f"{_FIELD}: column {name!r} of {cutouts.table} holds text; expected degrees")
        sphere.append(found[name].astype(np.float64))
    ra, dec = sphere
    if (outside := ~((np.abs(dec) <= 90) & (np.abs(ra) <= 360))).any():
        row = int(np.flatnonzero(outside)[0])
        raise EntryError(f"{_FIELD}: row {row} of {cutouts.table} is at {ra[row]}, {dec[row]}; expected degrees")
    columns: Columns = {}
    for name, values in found.items():
        if name == (entry.split.column or "split"):
            columns["split"] = labels.splits_of(entry, values)
        elif entry.sky and name == entry.sky.label:
            columns["label"] = values.astype(str).astype(object)
        elif name not in (cutouts.ra, cutouts.dec):
            columns[labels.free_name(name, {*columns, *own}, [])] = values
    return Positions(ra, dec, columns)


def _fits_columns(file: str, archive: Archive) -> dict[str, np.ndarray]:
    """Read the columns of the first table in a FITS file that have one value a row."""
    beside = archive.path.parent / file
    if file not in archive and not beside.is_file():
        raise SourceError(f"{_FIELD}: {file} is neither in {archive.path} nor beside it")
    home = archive if file in archive else open_archive(beside)
    name = file if file in archive else beside.name
    try:
        fits = opened(home, name)
        tables = [hdu for hdu in fits.hdus if hdu.kind == "table"]
        if not tables:
            raise EntryError(f"{_FIELD}: {file} holds no binary table")
        fits.verify(tables[0])
        n_rows = int(tables[0].header["NAXIS2"])
        cells = {name: fits.cells(tables[0], at, 0, n_rows) for name, at in fits.columns(tables[0]).items()}
    except RecordError as failure:
        raise SourceError(f"{_FIELD}: {failure}") from failure
    return {name: _flat(values) for name, values in cells.items() if values.ndim == 1 or values.shape[1] == 1}


def _flat(values: np.ndarray) -> Any:
    return values if values.ndim == 1 else values[:, 0]
