"""A first entry for FITS files: which HDUs are images, their sizes, and whether pixels are missing."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from scattercube.pipeline.errors import RecordError, SourceError
from scattercube.pipeline.policies import Sky
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.sky_maps.fits import opened
from scattercube.pipeline.sources.sky_maps.fits_headers import Hdu, decoding, whole

_LOOKED_AT = 64  # members whose headers are read, spread over the archive
_SEEN_NBYTES = 64 << 20  # of pixels that are looked at, to see whether some are missing
_FIELD = 1024  # pixels; images that are larger are fields, to be worked on in tiles
_LARGEST_J = 5


def guess(archive: Archive, names: Sequence[str], said: list[str]) -> dict[str, Any]:
    """Return what an entry for FITS files says of ``sky``, ``sample`` and ``spec``; what was assumed goes to ``said``.

    Raises
    ------
    SourceError
        None of the files looked at holds an image or a map of the sphere.
    """
    looked_at = np.unique(np.linspace(0, len(names) - 1, min(len(names), _LOOKED_AT)).astype(int)).tolist()
    found: dict[str, list[Hdu]] = {}
    failures: list[RecordError] = []
    for index in looked_at:
        try:
            found[names[index]] = list(opened(archive, names[index]).hdus)
        except RecordError as failure:
            failures.append(failure)
    images = {name: [hdu for hdu in hdus if hdu.n_planes] for name, hdus in found.items()}
    if not any(images.values()):
        for name, hdu in ((name, hdu) for name, hdus in found.items() for hdu in hdus if hdu.kind == "table"):
            with suppress(RecordError), decoding(name, hdu.index):
                return _sphere(whole(hdu.header, "NSIDE"), said)
        why = f"; {failures[0]}" if failures else ""
        raise SourceError(f"{archive.path}: no image among the HDUs of {len(looked_at)} files looked at{why}")
    return _images(archive, images, said)


def _images(archive: Archive, images: dict[str, list[Hdu]], said: list[str]) -> dict[str, Any]:
    first = next(hdus for hdus in images.values() if hdus)
    values: dict[str, Any] = {}
    if len({hdu.dtype for hdu in first}) > 1:
        alike = [hdu for hdu in first if hdu.dtype == first[0].dtype]
        values["sky"] = {"hdus": [hdu.name or hdu.index for hdu in alike]}
        said.append(f"HDUs of dtype {first[0].dtype} are images; masks and others are not")
    chosen = [(name, hdu) for name, hdus in images.items() for hdu in hdus if hdu.dtype == first[0].dtype]
    sizes = {(hdu.shape[-2], hdu.shape[-1]) for _, hdu in chosen}
    size = min(height for height, _ in sizes), min(width for _, width in sizes)
    if len(sizes) == 1:
        values["sample"] = {"exact": True}
        said.append(f"all images in the {len(images)} files looked at are {size[0]}×{size[1]}")
    else:
        values["sample"] = {"crop": {"size": size}}
        said.append(f"sizes differ: {size[0]}×{size[1]} are cut from the centre, which fits all files looked at")
    J = min(_LARGEST_J, max(1, min(size).bit_length() - 3))
    said.append(f"J={J}, so that the largest scale, {2**J} pixels, fits several times")
    values["spec"] = {"J": J}
    if any(_some_are_missing(archive, name, hdu) for name, hdu in chosen[:4]):
        values["sample"]["missing"] = True
        values["spec"]["padding"] = "support"
        said.append("pixels that are NaN or blank are missing")
    elif min(size) >= _FIELD:
        values["spec"]["padding"] = "support"
    return values


def _some_are_missing(archive: Archive, name: str, hdu: Hdu) -> bool:
    """Whether an image says that pixels may be missing, or a first plane that is not too large has such pixels."""
    if hdu.dtype.kind != "f":
        return False
    height, width = hdu.shape[-2:]
    if hdu.blank is not None or height * width * hdu.dtype.itemsize > _SEEN_NBYTES:
        return hdu.blank is not None
    try:
        plane = opened(archive, name).plane(hdu, 0, slice(0, height), slice(0, width))
    except RecordError:
        return False
    return not bool(np.isfinite(plane).all())


def _sphere(nside: int, said: list[str]) -> dict[str, Any]:
    """Tiles of 64 pixels, about two for one of the map, and no wider than a quarter of a circle."""
    resolution = math.floor(100 * min(90 * 60 / 64, 60 * 58.6 / nside / 2)) / 100
    said.append(f"a map of the sphere, of NSIDE {nside}, in tiles of 64 pixels of {resolution}'")
    sky = Sky.model_validate_json(f'{{"healpix": {{"tile": 64, "resolution": {resolution}}}}}')
    sample = {"exact": True, "missing": True}
    return {
        "sky": sky.model_dump(mode="json", exclude_defaults=True),
        "sample": sample,
        "spec": {"J": 3, "padding": "support"},
    }
