"""Folders that are one member of an archive: Zarr stores, whose chunks are files of their own."""

from collections.abc import Iterable

from scattercube.pipeline.sources.archives.remote import Place

SUFFIX = ".zarr"
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")  # what describes a store, versions 3 and 2
_ROOTS = {"zarr.json", ".zarray", ".zgroup"}


def is_bundle(name: str) -> bool:
    """Whether a folder of this name is one member."""
    return name.lower().endswith(SUFFIX)


def is_document(name: str) -> bool:
    """Whether a file describes a store, so that it is read although it may be hidden."""
    return name.rpartition("/")[2] in DOCUMENTS


def collapse(names: Iterable[str], archive: Place) -> tuple[list[str], dict[str, str]]:
    """Return the members among the names of files, and what the names of each bundle's files begin with.

    Parameters
    ----------
    archive
        The tar or zip. One that has a store's document at its top is that store, packed.
    """
    files = list(names)
    if _ROOTS & set(files):
        stem = archive.name.split(SUFFIX)[0] if SUFFIX in archive.name else archive.name.split(".")[0]
        return [stem + SUFFIX], {stem + SUFFIX: ""}
    bundles: dict[str, str] = {}
    members: dict[str, None] = {}
    for name in files:
        folders = name.split("/")[:-1]
        depth = next((depth for depth, folder in enumerate(folders, 1) if is_bundle(folder)), None)
        member = name if depth is None else "/".join(folders[:depth])
        if depth is not None:
            bundles[member] = member + "/"
        members[member] = None
    return list(members), bundles
