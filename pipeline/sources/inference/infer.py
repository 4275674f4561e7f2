"""A first entry for an archive that has none: what its files and folders say by themselves."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scattercube.pipeline.addresses import URL, check_url, hide_secrets
from scattercube.pipeline.catalog import Entry, described_entry, entry_names
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources.archives.archive import HEAD_NBYTES, Archive, exists, open_archive, some
from scattercube.pipeline.sources.archives.remote import Place, Remote
from scattercube.pipeline.sources.inference import infer_arrays, infer_audio, infer_molecules, infer_sky
from scattercube.pipeline.sources.listing import READERS, select
from scattercube.pipeline.spec import parse

_LOOKED_AT = 64  # members whose size is looked at, spread over the archive
_TRAIN_TEST = r"(?:^|/)(?P<split>train|test)/(?P<label>[^/]+)/"
_LARGEST_J = 5


def load_entry(name_or_path: str, data_root: Path) -> Entry:
    """Return the entry that a user means: a catalogue name, an entry file, or an entry inferred from a bare archive.

    A bare path is looked up from here, then in the data root. ``textures`` is the catalogue's, ``./textures`` a folder.

    Raises
    ------
    EntryError
        Nothing has that name, or the file is not a valid entry.
    SourceError
        The bare archive holds nothing that a reader knows.
    """
    if URL.match(name_or_path):
        try:
            place = Remote.at(check_url(name_or_path))
        except ValueError as failure:
            raise EntryError(f"{hide_secrets(name_or_path)}: {failure}") from failure
        return infer(place)
    entry = described_entry(name_or_path)
    if entry is not None:
        return entry
    path = Path(name_or_path).expanduser()
    for found in (path, data_root / path):
        if exists(found):
            return infer(found.resolve())
    known = entry_names()
    close = difflib.get_close_matches(name_or_path, known, n=3)
    raise EntryError(
        f"{name_or_path}: no catalogue entry of that name, and no file or folder here or in {data_root}"
        f"{'; did you mean ' + ' or '.join(close) + '?' if close else ''}; the catalogue has: {', '.join(known)}"
    )


def infer(path: Place) -> Entry:
    """Return an entry for a bare folder, tar, zip or array file; its description says what was assumed.

    Raises
    ------
    SourceError
        Nothing in it is of a kind that a reader knows, or nothing can be read.
    EntryError
        The files do not say enough by themselves.
    """
    archive = open_archive(path)
    reader, names = _reader(archive)
    said: list[str] = []
    values: dict[str, Any] = {
        "name": _slug(path),
        "title": f"{path.name}: {len(names)} files",
        "licence": "unknown",
        "reader": reader,
        "location": str(path),
    }
    if reader == "molecules":
        values |= _labels(archive, names, said) | infer_molecules.guess(archive, names, said)
        values["description"] = f"Inferred from the files: {'; '.join(said)}."
        return parse(Entry, values, str(path), EntryError)
    if reader == "sky":
        values |= _labels(archive, names, said) | infer_sky.guess(archive, names, said)
        values["description"] = f"Inferred from the files: {'; '.join(said)}."
        return parse(Entry, values, str(path), EntryError)
    in_files = reader in ("images", "audio")
    values |= _labels(archive, names, said) if in_files else infer_arrays.guess(archive, names, said)
    headers = _headers(parse(Entry, values, str(path), EntryError), archive)
    if reader == "audio":
        values |= infer_audio.guess(headers, said)
        values["description"] = f"Inferred from the files: {'; '.join(said)}."
        return parse(Entry, values, str(path), EntryError)
    if reader in ("arrays", "idx"):
        headers = infer_arrays.heads(parse(Entry, values, str(path), EntryError), archive, names, headers)
    size = min(head.height for head in headers), min(head.width for head in headers)
    if len({(head.height, head.width) for head in headers}) == 1:
        values["sample"] = {"exact": True}
        said.append(f"all {len(headers)} files looked at are {size[0]}×{size[1]}")
    else:
        values["sample"] = {"crop": {"size": size}}
        said.append(
            f"sizes differ: {size[0]}×{size[1]} are cut from the centre, which fits all {len(headers)} files looked at"
        )
    if any(head.n_channels > 1 for head in headers):
        said.append("colour becomes luminance")
    J = min(_LARGEST_J, max(1, min(size).bit_length() - 3))
    said.append(f"J={J}, so that the largest scale, {2**J} pixels, fits several times")
    values["spec"] = {"J": J}
    values["description"] = f"Inferred from the files: {'; '.join(said)}."
    return parse(Entry, values, str(path), EntryError)


def _reader(archive: Archive) -> tuple[str, list[str]]:
    """Choose the reader that knows the most members."""
    known = {
        kind: [name for name in archive.names if name.lower().endswith(reader.suffixes)]
        for kind, reader in READERS.items()
    }
    kind = max(known, key=lambda kind: kind != "csv" and len(known[kind]))
    if known[kind] and kind != "csv":
        return kind, known[kind]
    if known["csv"]:
        raise EntryError(f"{archive.path}: a table does not say how its rows are images; write an entry with csv.shape")
    suffixes = [suffix for reader in READERS.values() for suffix in reader.suffixes]
    there = f"it holds {len(archive.names)} files" + (f": {some(archive.names)}" if archive.names else "")
    raise SourceError(f"{archive.path}: no file ends in {', '.join(suffixes)}; {there}")


def _slug(path: Place) -> str:
    stem = path.name.lower()
    packed, arrays = "tar|gz|tgz|bz2|tbz2|xz|txz|zip", "npz|npy|h5|hdf5|he5|nc4?|zarr|parquet"
    kinds = rf"\.({packed}|{arrays}|png|jpe?g|tiff?|wav|flac|og[ga]|opus|mp3|fits?|fts|fz|xyz)$"
    while (shorter := re.sub(kinds, "", stem)) != stem:
        stem = shorter
    return re.sub(r"[^a-z0-9]+", "-", stem)[:60].strip("-") or "archive"


def _labels(archive: Archive, names: Sequence[str], said: list[str]) -> dict[str, Any]:
    found = [re.search(_TRAIN_TEST, name) for name in names]
    matches = [match for match in found if match]
    if len(matches) == len(names) and {match["split"] for match in matches} == {"train", "test"}:
        said.append(f"{len({match['label'] for match in matches})} labels and the split are the folders'")
        return {"labels": {"pattern": _TRAIN_TEST}}
    folders = Counter(PurePosixPath(name).parent.name for name in names)
    if len(folders) > 1 and "" not in folders:
        said.append(f"{len(folders)} labels are the folders' names")
        return {"labels": {"folder": True}}
    said.append("no labels: the files are not in folders of their own")
    return {}


def _headers(entry: Entry, archive: Archive) -> list[Any]:
    """Look at the heads of some members, spread over the archive."""
    names, _ = select(entry, archive)
    looked_at = np.unique(np.linspace(0, len(names) - 1, min(len(names), _LOOKED_AT)).astype(int))
    headers, failures = [], []
    for name in archive.each([names[index] for index in looked_at.tolist()], HEAD_NBYTES):
        try:
            headers.append(READERS[entry.reader].header(entry, archive, name))
        except RecordError as failure:
            failures.append(failure)
    if not headers:
        raise SourceError(
            f"{archive.path}: none of {len(failures)} files looked at can be read; the first: {failures[0]}"
        )
    return headers
