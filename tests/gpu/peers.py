"""Kymatio's torch transforms on a device, and our own results in double precision: made in processes of their own.

Making Kymatio's filters takes seconds to a minute; the processes do it side by side, while nothing is measured.
"""

import importlib
import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from scattercube.flows.bench import Work
from tests.benchmarks.stand_in import JointStandIn

_ONE_EACH = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextmanager
def processes(n: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes, each of one thread and with the portable engine, that know nothing of the device."""
    before = dict(os.environ)
    os.environ.update(_ONE_EACH, SCATTERCUBE_ENGINE="portable", CUDA_VISIBLE_DEVICES="")
    try:
        with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.clear()
        os.environ.update(before)


def exact(work: Work, options: dict[str, Any], n_inputs: int) -> np.ndarray:
    """Return our coefficients of the first inputs, by NumPy in double precision."""
    x = work.inputs()[:n_inputs].astype(np.float64)
    result: np.ndarray = work.make(**options, dtype="float64")(x)
    return result


def exact_adjoint(work: Work, options: dict[str, Any]) -> np.ndarray:
    """Return the gradient of the first input, with its `weights`, by NumPy in double precision."""
    S = work.make(**options, dtype="float64")
    result: np.ndarray = S.adjoint(work.inputs()[:1].astype(np.float64), weights(S, 1).astype(np.float64))
    return result


def weights(S: Any, batch: int) -> np.ndarray:
    """Return weights of coefficients, always the same: (batch, *output shape), float32.

    Integrals of powers below one have none: where a modulus is small the derivative of its root is large, and the
    gradient of 128³ values of noise would be off by 2 % in single precision, NumPy's too.
    """
    found = np.random.default_rng(1).standard_normal((batch, *S.output_shape), np.float32)
    if "power" in S.paths.columns:
        found[:, S.paths.columns["power"] < 1] = 0
    return found


def write_peer(work: Work, file: Path) -> Path:
    """Make Kymatio's transform and write it to a file, for `read_peer`."""
    transform = _class(work.transform)(**work.parameters)
    with file.open("wb") as stream:
        pickle.dump(transform, stream, protocol=pickle.HIGHEST_PROTOCOL)
    return file


def read_peer(work: Work, written: Future[Path]) -> Any:
    """Return the transform that `write_peer` wrote, on the device; its file is removed."""
    _class(work.transform)
    file = written.result()
    with file.open("rb") as stream:
        transform = pickle.load(stream)
    file.unlink()
    return transform.cuda()


def stand_in(S: Any) -> JointStandIn:
    """Return what stands in for Kymatio's joint transform beside ours, on the device."""
    torch = importlib.import_module("torch")
    on_device = SimpleNamespace(
        fft=torch.fft,
        stack=torch.stack,
        moveaxis=torch.moveaxis,
        concatenate=torch.cat,
        zeros=lambda shape, dtype: torch.zeros(shape, dtype=dtype, device="cuda"),
        from_numpy=lambda array: torch.from_numpy(array).cuda(),
    )
    return JointStandIn(S, on_device)  # type: ignore[arg-type]  # what it asks torch for, and no more


def as_ours(work: Work, S: Any, values: np.ndarray) -> tuple[np.ndarray, slice]:
    """Lay out the peer's coefficients (batch, …) as ours, and say which of our paths they are.

    Release 0.3 takes the mean over aliases where ours takes the sum: at order m in 1-D it lacks 2^(j1 + … + jm). In 3-D
    it has no order 0.
    """
    if work.transform == "Scattering1D":
        exponent = sum(np.maximum(S.paths.columns[f"j{m}"], 0).astype(int) for m in (1, 2))
        return values * np.ldexp(1.0, exponent)[:, None], slice(None)
    if work.transform == "HarmonicScattering3D":
        return values.reshape(len(values), -1), slice(len(S.integral_powers), None)
    return values, slice(None)


@dataclass(frozen=True)
class Wanted:
    """What is to be made for a work: `exact` of so many inputs, `exact_adjoint`, and the peer."""

    work: Work
    options: dict[str, Any]
    n_inputs: int
    adjoint: bool
    peer: bool


@dataclass(frozen=True)
class Known:
    """What is made for a work; None of what was not wanted."""

    exact: Future[np.ndarray]
    adjoint: Future[np.ndarray] | None
    peer: Future[Path] | None


def prepare(pool: ProcessPoolExecutor, all_wanted: Sequence[Wanted], folder: Path) -> list[Known]:
    """Have all made, peers first, of which the longest."""
    peers = {
        i: pool.submit(write_peer, wanted.work, folder / f"{i}.pickle")
        for i, wanted in sorted(enumerate(all_wanted), key=lambda one: -_size(one[1].work))
        if wanted.peer
    }
    return [
        Known(
            pool.submit(exact, wanted.work, wanted.options, wanted.n_inputs),
            pool.submit(exact_adjoint, wanted.work, wanted.options) if wanted.adjoint else None,
            peers.get(i),
        )
        for i, wanted in enumerate(all_wanted)
    ]


def _size(work: Work) -> int:
    return int(np.prod(work.parameters["shape"])) * int(work.parameters["J"])


def _class(name: str) -> Any:
    """Return one of Kymatio's torch classes, in a state in which its objects can be pickled."""
    special: Any = importlib.import_module("scipy.special")
    if not hasattr(special, "sph_harm"):  # gone in SciPy 1.17, imported by Kymatio for its 3-D transform
        special.sph_harm = lambda m, n, azimuth, polar: special.sph_harm_y(n, m, polar, azimuth)
    module = importlib.import_module("kymatio.torch")
    found = getattr(module, name)
    setattr(module, found.__qualname__, found)  # the class says that it is found there, by this name
    return found
