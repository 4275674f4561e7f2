"""What the tests share: an array namespace to run in, the tolerance of each precision, and real archives."""

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scattercube.kernels import cuda_problem, to_device
from scattercube.pipeline.sources.archives import objects

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


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an object store on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST")).close()
    urllib.request.urlopen(urllib.request.Request(f"{moto}/bucket", method="PUT")).close()
    return "s3://bucket"


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a place in it for stores, which forget it afterwards."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    objects._store.cache_clear()
    yield f"{s3}/below"
    objects._store.cache_clear()
