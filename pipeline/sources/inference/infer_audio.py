"""What an entry for bare recordings should say: their rate, their length, a scale."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scattercube.pipeline.sources.sounds.recordings import Header

_LONG_S = 60.0  # recordings that are all longer than this are cut into windows
_WINDOW_S = 10.0
_LONGEST_CLIP_S = 30.0
_LARGEST_SCALE_S = 0.25  # about a syllable


def guess(headers: "Sequence[Header]", said: list[str]) -> dict[str, Any]:
    """Return the fields ``audio``, ``sample`` and ``spec`` of an entry, and say why.

    Parameters
    ----------
    headers
        Of some recordings of the archive.
    said
        Gets a phrase for each choice.
    """
    values: dict[str, Any] = {}
    looked_at = f"the {len(headers)} recordings looked at"
    rates = sorted({header.rate for header in headers})
    if len(rates) > 1:
        values["audio"] = {"rate": rates[0]}
        said.append(f"rates go from {rates[0]} to {rates[-1]} Hz: all are resampled to the lowest")
    if any(header.n_channels > 1 for header in headers):
        said.append("the mean of the channels is taken")
    lengths = sorted(header.seconds for header in headers)
    span = f"{lengths[0]:.3g} to {lengths[-1]:.3g} s long"
    if len({header.length(rates[0]) for header in headers}) == 1:
        values["sample"], seconds = {"exact": True}, lengths[0]
        said.append(f"{looked_at} are {seconds:.6g} s long")
    elif lengths[0] > _LONG_S:
        values["sample"], seconds = {"segments": {"seconds": _WINDOW_S}}, _WINDOW_S
        said.append(f"{looked_at} are {span}: they are cut into windows of {_WINDOW_S:.3g} s")
    else:
        most = lengths[(len(lengths) * 9 - 1) // 10]  # nine in ten are no longer
        seconds = min(math.ceil(most * 10) / 10, _LONGEST_CLIP_S)
        values["sample"] = {"clip": {"seconds": seconds}}
        said.append(f"{looked_at} are {span}: the middle {seconds:.3g} s are taken, amid zeros where there is less")
    scale = min(seconds / 4, _LARGEST_SCALE_S) * rates[0]
    J = max(1, int(scale).bit_length() - 1)
    said.append(f"J={J}, so that averages go over {2**J / rates[0]:.3g} s")
    return values | {"spec": {"transform": "scattering1d", "J": J}}
