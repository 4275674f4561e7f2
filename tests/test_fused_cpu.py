"""The compiled engine against the portable primitives, bit for bit against itself, and what surrounds it."""

import copy
import ctypes
import json
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy._core import _multiarray_umath as multiarray

from scattercube.kernels.engine import library
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from scattercube.kernels.time_frequency import TimeFrequencyScattering
from tests.conftest import relative_error

ROOT = Path(__file__).parents[1]
EQUAL = {"float32": 3e-6, "float64": 1e-12}
"""Relative L2 distance of the engine from the primitives; what differs is the order of sums."""

compiled = pytest.mark.skipif(
    library.active_engine() == "portable", reason="the engine was not compiled, or is not wanted"
)
one_of_many = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def portable(S):
    """The same transform, left to the primitives."""
    twin = copy.copy(S)
    vars(twin)["_fused"] = None
    return twin


def noise(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(script, *arguments, **environment):
    """Run Python in a process of its own, with the engine that is in use here unless told otherwise."""
    environment = {"SCATTERCUBE_ENGINE": library.active_engine(), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- The engine computes what the primitives compute ---


@st.composite
def lines(draw):
    wavelet = draw(st.sampled_from(["morlet", "meyer"]))
    tight = wavelet == "meyer"
    padding = draw(st.sampled_from(["minimal", "periodic"] if tight else ["minimal", "support", "kymatio", "periodic"]))
    J, max_order = draw(st.integers(int(tight), 6)), draw(st.integers(0, 4))
    N = draw(st.integers(2**J, max(2**J, 400 if max_order > 2 else draw(st.sampled_from([400, 9000])))))
    parameters = {"Q": (draw(st.integers(1, 8)), draw(st.integers(1, 2)))}
    if not tight:
        parameters["T"] = draw(st.sampled_from([None, 0, "global"]) | st.floats(1, N))
    T = parameters.get("T")
    most = J if T in (None, 0, "global") else math.floor(math.log2(T))
    parameters["stride"] = draw(st.none() | st.integers(0, most).map(lambda k: 2**k))
    if padding == "periodic":
        unit = 2 ** max(J, most)
        N = max(1, N // unit) * unit
        if isinstance(T, float):
            parameters["T"] = min(T, N)
    return Scattering1D, (J, N), parameters, {"max_order": max_order, "padding": padding, "wavelet": wavelet}


@st.composite
def images(draw):
    wavelet = draw(st.sampled_from(["morlet", "meyer"]))
    tight = wavelet == "meyer"
    padding = draw(st.sampled_from(["minimal", "periodic"] if tight else ["minimal", "support", "kymatio", "periodic"]))
    J, max_order = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    largest = 50 if max_order > 2 else draw(st.sampled_from([50, 200]))
    shape = tuple(draw(st.integers(2**J, max(2**J, largest))) for _ in range(2))
    if padding == "periodic":
        shape = tuple(size // 2**J * 2**J for size in shape)
    L = draw(st.integers(3 if tight else 1, 6))
    return Scattering2D, (J, shape), {"L": L}, {"max_order": max_order, "padding": padding, "wavelet": wavelet}


@compiled
@one_of_many
@given(
    lines() | images(), st.sampled_from(["float32", "float64"]), st.sampled_from([1, 2, 3, 9, 17]), st.integers(1, 3)
)
@example((Scattering1D, (4, 9 * 11 * 13 * 16), {}, {"padding": "periodic"}), "float32", 3, 1)  # every odd radix
@example((Scattering1D, (5, 5 * 7 * 32), {"T": 0, "stride": 2}, {}), "float64", 3, 1)
@example((Scattering1D, (2, 4096 + 4), {}, {"padding": "periodic"}), "float32", 1, 1)  # 5² 41: the primitives serve
@example((Scattering2D, (1, (3**9, 2)), {}, {}), "float32", 1, 2)  # narrow, larger than a core's cache
@example((Scattering2D, (3, (104, 88)), {}, {"padding": "periodic"}), "float64", 1, 1)
@example((Scattering2D, (2, (116, 136)), {}, {"padding": "periodic"}), "float64", 1, 1)  # 29 and 17
def test_the_engine_equals_the_primitives(work, dtype, batch, threads):
    transform, arguments, parameters, common = work
    S = transform(*arguments, dtype=dtype, **parameters, **common)
    assume(batch * math.prod(S.output_shape) * len(S._grid(0)) < 1 << 20)
    x = noise(batch, *S.shape, dtype=dtype)
    actual = S(x, threads=threads)
    assert actual.shape == (batch, *S.output_shape)
    assert actual.dtype == dtype
    assert relative_error(actual, portable(S)(x)) < EQUAL[dtype]


@compiled
def test_lines_with_a_large_prime_factor_are_left_to_the_primitives():
    assert Scattering1D(2, 17 * 4, padding="periodic")._fused is None
    assert Scattering1D(2, 13 * 4, padding="periodic")._fused is not None


# --- One input, the same bits ---


def joint(J, shape, **parameters):
    return TimeFrequencyScattering(J, 2, shape, **parameters)


TRANSFORMS = [
    (Scattering2D, 2, (21, 18), {"L": 5}),
    (Scattering2D, 3, (40, 40), {"max_order": 3, "L": 2}),
    (Scattering2D, 2, (130, 97), {"L": 3}),
    (Scattering2D, 2, (24, 16), {"dtype": "float64", "wavelet": "meyer", "L": 3}),
    (Scattering1D, 4, (300,), {"Q": (5, 1)}),
    (Scattering1D, 3, (256,), {"T": 0, "max_order": 3, "dtype": "float64"}),
    (Scattering1D, 5, (5000,), {"Q": (3, 2), "T": "global"}),
    (Scattering1D, 6, (20000,), {"Q": (4, 1)}),
    (joint, 4, (300,), {"Q": (5, 1)}),
    (joint, 3, (440,), {"Q": 2, "Q_fr": 2, "F": 1, "format": "joint", "padding": "periodic", "dtype": "float64"}),
    (joint, 5, (5000,), {"Q": 2, "T": 100}),
]
transforms = pytest.mark.parametrize(("transform", "J", "shape", "parameters"), TRANSFORMS)


@compiled
@transforms
def test_bits_depend_neither_on_the_batch_nor_on_threads(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    n = 40 if math.prod(shape) < 2000 else 7
    x = noise(n, *shape)
    x[n // 2] *= 1e9  # of neighbours, however large
    alone = np.stack([S(image) for image in x])
    for batch in range(1, n + 1):
        np.testing.assert_array_equal(S(x[:batch], threads=1 + batch % 3), alone[:batch])
        np.testing.assert_array_equal(S(x[n - batch :]), alone[n - batch :])
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(S(x, threads=threads), alone)
        np.testing.assert_array_equal(S(x[0], threads=threads), alone[0])


@compiled
@transforms
def test_bits_do_not_depend_on_how_an_array_lies_in_memory(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    x = noise(6, *shape, dtype=S.dtype)
    expected = S(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    odd = np.zeros(x.nbytes + 1, np.uint8)[1:].view(S.dtype).reshape(x.shape)
    odd[...] = x
    for same in (
        x.reshape(2, 3, *shape),
        np.asfortranarray(x),
        np.repeat(x, 2, axis=0)[::2],
        np.repeat(x, 2, axis=-1)[..., ::2],
        x[::-1].copy()[::-1],
        x[..., ::-1].copy()[..., ::-1],
        x.astype(x.dtype.newbyteorder()),
        read_only,
        odd,
    ):
        before = same.copy()
        np.testing.assert_array_equal(S(same).reshape(expected.shape), expected)
        np.testing.assert_array_equal(same, before)
    assert S(x[:0]).shape == (0, *S.output_shape)
    assert S(x.reshape(2, 3, *shape)[:, :0]).shape == (2, 0, *S.output_shape)


@compiled
@transforms
@pytest.mark.parametrize("dtype", ["float16", "int16", "uint8", "bool"])
def test_narrow_types_are_converted_exactly(transform, J, shape, parameters, dtype):
    S = transform(J, shape, **parameters)
    x = (noise(3, *shape) * 4).clip(0 if dtype == "uint8" else -100, 100).astype(dtype)
    np.testing.assert_array_equal(S(x), S(x.astype(S.dtype)))


# --- Values at the ends of what a type holds ---


@compiled
@transforms
def test_a_power_of_two_scales_the_result_exactly(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    x = noise(3, *shape, dtype=S.dtype)
    expected = S(x)
    for exponent in (-80, -1, 80, 100) if S.dtype == np.float32 else (-900, 900):
        scaled = S(np.ldexp(x, exponent))
        np.testing.assert_array_equal(scaled, np.ldexp(expected, exponent))


@compiled
@transforms
def test_tiny_huge_and_zero_inputs_share_a_batch(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    limits = np.finfo(S.dtype)
    x = noise(6, *shape, dtype=S.dtype)
    x /= abs(x).max(axis=tuple(range(1, x.ndim)), keepdims=True)
    factors = np.array([limits.max / 8, limits.tiny / 256, 0, limits.smallest_subnormal, limits.max**0.8, 1], S.dtype)
    alone = S(x)
    result = S(x * factors.reshape(-1, *(1 for _ in shape)))
    assert np.isfinite(result).all()
    assert (result[2] == 0).all()
    for k, rel in ((0, 1e-5), (1, 2e-3), (4, 1e-5), (5, 0)):
        assert relative_error(result[k] / factors[k], alone[k]) <= rel


@compiled
@transforms
def test_one_value_that_is_not_finite_is_an_error(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    x = noise(3, *shape)
    x[1].flat[-1] = np.nan
    with pytest.raises(ValueError, match=r"not finite in float.. at 1 of"):
        S(x)


# --- Threads, processes, memory ---


@compiled
def test_many_callers_at_once_get_the_same_bits():
    x = noise(11, 40, 36)
    expected = Scattering2D(2, (40, 36), L=4)(x)
    S = Scattering2D(2, (40, 36), L=4)  # its plan is made while all call
    large = Scattering2D(2, (130, 97), L=3)
    image = noise(130, 97)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(S, x, threads=1 + k % 3) for k in range(24)]
        others = [pool.submit(large, image, threads=2) for _ in range(8)]
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)
        first = others[0].result()
        for other in others[1:]:
            np.testing.assert_array_equal(other.result(), first)


@compiled
def test_threads_must_be_a_positive_number():
    S = Scattering1D(3, 64)
    with pytest.raises(ValueError, match="threads=0"):
        S(noise(64), threads=0)
    with pytest.raises(TypeError, match=r"threads=1\.5"):
        S(noise(64), threads=1.5)


@compiled
def test_fewer_threads_than_wanted_do_the_same():
    script = """
import resource
import numpy as np
from scattercube.kernels.scattering import Scattering2D
S, x = Scattering2D(2, (130, 97), L=3), np.random.default_rng(0).standard_normal((130, 97)).astype(np.float32)
expected = S(x)
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 20),) * 2)  # no room for the stack of a thread
assert (S(x, threads=4) == expected).all()
print("equal")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("how much memory a process may have is set in another way here")
    assert run(script, OPENBLAS_NUM_THREADS="1") == "equal\n"


@compiled
def test_neither_plans_nor_calls_leave_memory_behind():
    script = """
import numpy as np
from scattercube.kernels.scattering import Scattering1D, Scattering2D

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

def turn():
    for S in (Scattering2D(2, (33, 40), L=4), Scattering2D(1, (110, 90), L=2), Scattering1D(4, 5000, Q=(1, 1))):
        S(np.zeros((3, *S.shape), np.float32), threads=2)

for _ in range(40):
    turn()
before = resident()
for _ in range(200):
    turn()
print(resident() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("/proc tells how much memory is resident, and is not here")
    assert int(run(script)) < 6 << 10  # KiB; plans left behind are thirty times that


def _scatter_in_child(S, x, queue):
    queue.put(S(x, threads=2))


@compiled
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_computing():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes do not fork here")
    S, x = Scattering2D(2, (32, 32), L=4), noise(40, 32, 32)
    expected = S(x, threads=2)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_scatter_in_child, args=(S, x, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(), expected)
    child.join(30)
    assert child.exitcode == 0
    np.testing.assert_array_equal(S(x), expected)


@transforms
def test_pickles_and_copies_keep_the_parameters_and_the_bits(transform, J, shape, parameters):
    S = transform(J, shape, **parameters)
    x = noise(3, *shape)
    expected = S(x)
    data = pickle.dumps(S)
    assert len(data) < 1000
    for again in (pickle.loads(data), copy.deepcopy(S)):
        assert again.filter_digest == S.filter_digest
        np.testing.assert_array_equal(again(x), expected)


# --- Which engine serves ---


@compiled
def test_instruction_sets_agree(tmp_path):
    script = """
import sys
import numpy as np
from tests.test_fused_cpu import TRANSFORMS, noise
made = [transform(J, shape, **parameters) for transform, J, shape, parameters in TRANSFORMS]
assert all(S._fused for S in made)
np.savez(sys.argv[1], *[S(noise(5, *S.shape)) for S in made])
"""
    baseline = library._load("baseline")
    assert baseline
    names = [name for name in library.built() if baseline.sc_supports(name.encode())]
    if len(names) == 1:
        pytest.skip(f"this processor has one instruction set that was built, {names[0]}")
    for name in names:
        run(script, str(tmp_path / name), SCATTERCUBE_ENGINE=name)
    first, *others = [np.load(tmp_path / f"{name}.npz") for name in names]
    for other in others:
        for key in first:
            assert relative_error(other[key], first[key]) < (1e-6 if first[key].dtype == np.float32 else 1e-13)


def test_an_unknown_engine_is_an_error_that_names_the_others():
    script = """
from scattercube.kernels.scattering import Scattering1D
import numpy as np
S = Scattering1D(3, 64)
try:
    S(np.zeros(64))
except ValueError as error:
    print(error)
"""
    assert run(script, SCATTERCUBE_ENGINE="sse9").startswith("SCATTERCUBE_ENGINE='sse9': expected one of ")


def test_without_an_engine_the_primitives_serve():
    script = """
import numpy as np
from scattercube.kernels.engine.library import active_engine
from scattercube.kernels.scattering import Scattering1D
S = Scattering1D(3, 64)
S(np.ones(64))
print(active_engine(), S._fused)
"""
    assert run(script, SCATTERCUBE_ENGINE="portable").split() == ["portable", "None"]


FIRST_USE = """
import sys, warnings
from pathlib import Path
import numpy as np
from scattercube.kernels.engine import library
from scattercube.kernels.scattering import Scattering1D
library._FOLDER = Path(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    S = Scattering1D(3, 64)
    S(np.ones(64))
print(library.active_engine(), len(caught), *(str(each.message) for each in caught))
"""


@pytest.mark.parametrize("broken", ["empty", "text", "another"])
def test_a_library_that_cannot_be_used_is_named_and_the_primitives_serve(broken, tmp_path):
    content = {"empty": b"", "text": b"no library" * 1000, "another": Path(multiarray.__file__).read_bytes()}[broken]
    (tmp_path / "scattering-baseline.so").write_bytes(content)
    engine, count, message = run(FIRST_USE, str(tmp_path), SCATTERCUBE_ENGINE="").split(maxsplit=2)
    assert (engine, count) == ("portable", "1")
    assert message.startswith(f"{tmp_path / 'scattering-baseline.so'} cannot be used; install scattercube again: ")


@compiled
def test_a_broken_library_leaves_the_others_in_use(tmp_path):
    for name in library.built():
        shutil.copy(library._FOLDER / f"scattering-{name}.so", tmp_path)
    best, *others = library.built()
    if not others:
        pytest.skip(f"one library was built, {best}")
    (tmp_path / f"scattering-{best}.so").write_bytes(b"")
    baseline = library._load("baseline")
    assert baseline
    warned = int(baseline.sc_supports(best.encode()))
    second = next(name for name in others if baseline.sc_supports(name.encode()))
    assert run(FIRST_USE, str(tmp_path), SCATTERCUBE_ENGINE="").split()[:2] == [second, str(warned)]


def test_a_folder_without_libraries_is_no_error(tmp_path):
    assert run(FIRST_USE, str(tmp_path), SCATTERCUBE_ENGINE="").split() == ["portable", "0"]


# --- Memory ---


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("transform", "J", "shape", "batch", "parameters"),
    [
        ("Scattering2D", 2, (32, 32), 512, {}),
        ("Scattering2D", 3, (80, 80), 16, {"max_order": 3, "L": 4}),
        ("Scattering2D", 5, (512, 512), 1, {}),
        ("Scattering2D", 2, (600, 400), 5, {"L": 4, "dtype": "float64"}),
        ("Scattering1D", 10, (1 << 16,), 4, {}),
        ("Scattering1D", 6, (1 << 18,), 2, {"T": "global", "Q": (4, 1)}),
        ("Scattering1D", 8, (3000,), 40, {"T": 0, "stride": 8, "Q": (2, 1)}),
        ("TimeFrequencyScattering", 8, (1 << 14,), 1, {"J_fr": 3}),
        ("TimeFrequencyScattering", 8, (1 << 14,), 5, {"J_fr": 3, "dtype": "float64", "format": "joint"}),
        ("TimeFrequencyScattering", 6, (1 << 10,), 40, {"J_fr": 3, "Q": 12}),
    ],
)
def test_projected_memory_is_what_becomes_resident(transform, J, shape, batch, parameters, threads):
    script = """
import ctypes, json, sys
import numpy as np
from scattercube import kernels

def status(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

transform, J, shape, batch, parameters, threads = json.loads(sys.argv[1])
S = getattr(kernels, transform)(J, shape=tuple(shape), **parameters)
x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(S.dtype)
S(x, threads=threads)
ctypes.CDLL(None).malloc_trim(0)  # holes that imports left would be taken unseen
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = status("VmRSS")
y = S(x, threads=threads)
print(status("VmHWM") - before, S.nbytes(batch, threads=threads))
"""
    if not Path("/proc/self/clear_refs").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("Linux's /proc tells how much memory is resident, and glibc gives it back; they are not here")
    # What is freed goes back to the system at once, and is not taken again unseen.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    work = json.dumps((transform, J, shape, batch, parameters, threads))
    grown, projected = map(int, run(script, work, **malloc).split())
    assert grown == pytest.approx(projected, rel=0.2, abs=384 << 10)  # pages that small works never touch


@compiled
def test_memory_grows_with_the_batch_by_the_result_alone():
    S = Scattering2D(2, (32, 32))
    assert S.nbytes(10_000, threads=2) - S.nbytes(5_000, threads=2) == 5_000 * math.prod(S.output_shape) * 4
    assert S.nbytes(0) == 0
