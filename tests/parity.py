"""The distance of every transform from the reference vectors, configuration by configuration.

    uv run python -m tests.parity            # prints
    uv run python -m tests.parity --write    # and writes docs/parity.md

Errors are ‖S − reference‖ / ‖reference‖; the vectors were computed with Kymatio 0.4 in double precision.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scattercube.kernels import HarmonicScattering3D, Scattering1D, Scattering2D, TimeFrequencyScattering, active_engine
from tests.conftest import relative_error

DATA = Path(__file__).parent / "data"
PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
TRANSFORMS = {
    "reference_1d": Scattering1D,
    "reference_2d": Scattering2D,
    "reference_3d": HarmonicScattering3D,
    "reference_jtfs": TimeFrequencyScattering,
}
DTYPES = ("float32", "float64")


def error(transform: type, config: dict[str, Any], x: Any, expected: Any, dtype: str) -> float:
    """The distance of one transform, as its configuration in the reference file has it."""
    convention = {} if transform is HarmonicScattering3D else {"padding": "kymatio"}  # which has but one
    S = transform(**config, **convention, dtype=dtype)
    actual = S(x.astype(dtype))
    if transform is HarmonicScattering3D:
        actual = actual[..., len(S.integral_powers) :]  # the peer has no order 0
    return float(relative_error(actual.reshape(expected.shape), expected))


def rows() -> Iterator[tuple[str, str, list[float]]]:
    """Yield the transform, its configuration in words, and its error in each precision."""
    for name, transform in TRANSFORMS.items():
        with np.load(DATA / f"{name}.npz") as file:
            for i, entry in enumerate(json.loads(str(file["configs_json"]))):
                config = {key: tuple(v) if isinstance(v, list) else v for key, v in entry["config"].items()}
                words = ", ".join(f"{key}={value}" for key, value in config.items())
                x, expected = file[f"x{i}"], file[f"S{i}"]
                yield transform.__name__, words, [error(transform, config, x, expected, dtype) for dtype in DTYPES]


def table() -> str:
    """Lay out all rows in Markdown."""
    lines = ["| transform | configuration | float32 | float64 |", "| --- | --- | --: | --: |"]
    lines += [f"| {name} | {words} | {single:.1e} | {double:.1e} |" for name, words, (single, double) in rows()]
    return "\n".join(lines)


def main() -> None:
    about = (
        'Distance from the reference vectors of Kymatio 0.4, ‖S − reference‖ / ‖reference‖, with `padding="kymatio"`, '
        f"engine {active_engine()}.\nIts 2-D and 3-D filters are rounded to single precision, which double precision "
        "cannot undo.\nWritten by `python -m tests.parity --write`."
    )
    text = f"# Parity\n\n{about}\n\n{table()}\n"
    print(text)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
