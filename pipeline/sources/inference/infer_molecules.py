"""What an entry for bare molecules should say: a box that holds them, a grid, a scale."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from scattercube.pipeline.errors import RecordError, SourceError
from scattercube.pipeline.policies import MARGIN
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.molecules import load, n_valence, turned

_LOOKED_AT = 4096  # files are small, and one that is larger than those looked at will be quarantined
_SPACING = 0.3  # Å, a third of the shortest bonds
_MOST_VOXELS = 64  # an axis
_LARGEST_J = 3


def guess(archive: Archive, names: Sequence[str], said: list[str]) -> dict[str, Any]:
    """Return the fields ``molecules``, ``spec`` and ``fit`` of an entry, and say why. Raises SourceError.

    Parameters
    ----------
    said
        Gets a phrase for each choice.
    """
    looked_at = np.unique(np.linspace(0, len(names) - 1, min(len(names), _LOOKED_AT)).astype(int))
    extents, numbers, failures = [], set(), []
    for index in looked_at.tolist():
        try:
            molecule = load(archive, names[index])
        except RecordError as failure:
            failures.append(failure)
            continue
        extents.append(np.ptp(turned(molecule.positions), axis=0)[::-1])
        numbers |= set(molecule.numbers.tolist())
    if not extents:
        raise SourceError(f"{archive.path}: none of {len(names)} files can be read; the first: {failures[0]}")
    extent = np.max(extents, axis=0)
    spacing = round(max(_SPACING, float(extent.max()) / (_MOST_VOXELS - 2 * MARGIN - 1)), 3)
    size = [_smooth(ceil(length / spacing) + 2 * MARGIN) for length in extent.tolist()]
    J = max(0, min(_LARGEST_J, (min(size) // 3).bit_length() - 1))
    span, box = "×".join(f"{length:.2f}" for length in extent), "×".join(map(str, size))
    said.append(
        f"the {len(extents)} molecules looked at, turned to their principal axes, span at most "
        f"{span} Å (z, y, x), which a box of {box} voxels of {spacing:g} Å holds"
    )
    grid = {"size": size, "spacing": spacing, "width": spacing, "orientation": "principal"}
    if not all(n_valence(number) for number in numbers):
        grid["channels"] = ["full"]
        said.append(
            "charges are those of nuclei alone, because there are metals whose valence electrons are not defined"
        )
    said.append(f"J={J}, so that the largest scale fits into the box")
    return {"molecules": grid, "spec": {"transform": "solid_harmonic", "J": J}}


def _smooth(least: int) -> int:
    """Return the next size that Fourier transforms like: no prime factor above 5."""
    size = least
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
