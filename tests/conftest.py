"""What the tests share: an array namespace to run in, the tolerance of each precision, and real archives."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scattercube.kernels import cuda_problem, to_device

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""Relative L2 error that rounding may leave in a transform."""


def relative_error(actual: Any, expected: Any) -> float:
    """‖actual − expected‖ / ‖expected‖, in float64."""
    expected = np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(np.asarray(actual, dtype=np.float64) - expected) / np.linalg.norm(expected))


@pytest.fixture(params=["numpy", "numpy:readonly", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Any]:
    """Move a host array into the namespace under test; the read-only one catches writes to the input."""

    def move(x: np.ndarray) -> Any:
        x = x.copy()
        x.flags.writeable = request.param != "numpy:readonly"
        return to_device(x, "cuda") if request.param == "cupy" else x

    if request.param == "cupy" and (problem := cuda_problem()):
        pytest.skip(problem)
    return move


@pytest.fixture
def real() -> Path:
    """The folder of real archives; tests that ask for it are skipped where it is absent."""
    root = Path(os.environ.get("SCATTERCUBE_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not root.is_dir():
        pytest.skip(f"no data at {root}; set SCATTERCUBE_DATA")
    return root
