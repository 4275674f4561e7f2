"""Arrays through a function on a device: what overlaps, what is waited for, what is used again.

CuPy is a stand-in here (`tests.late_cuda`) that shows whatever is not waited for; the last test takes a device.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scattercube.kernels import Scattering2D, device
from scattercube.kernels.device import through
from tests import late_cuda
from tests.conftest import TOLERANCE, relative_error


@pytest.fixture(params=[None, *range(8)], ids=lambda seed: "late" if seed is None else f"chance {seed}")
def cupy(request, monkeypatch):
    module = late_cuda.make(request.param)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "_CONVEYORS", {})
    return module


def parts(n=7, size=5):
    rng = np.random.default_rng(n)
    return [rng.normal(size=(size, 3)).astype("f4") for _ in range(n)]


def pairs(x):
    """Something whose result is larger than its input, and of another dtype."""
    return np.concatenate([x, 2 * x], axis=1).astype(np.float64)


def copied(results):
    return [result.copy() for result in results]


def test_on_the_cpu_it_is_map(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    asked = []
    results = through(lambda x: x + 1, (asked.append(k) or np.full(2, k) for k in range(3)), "cpu")
    assert next(results).tolist() == [1, 1]
    assert asked == [0], "one after the other"
    assert [r.tolist() for r in results] == [[2, 2], [3, 3]]


def test_a_device_gives_what_the_host_gives(cupy):
    found = copied(through(late_cuda.on_device(cupy, pairs), iter(parts()), "cuda"))
    np.testing.assert_array_equal(found, [pairs(part) for part in parts()])


@pytest.mark.parametrize("sizes", [[], [4], [1, 9, 2, 9, 30, 1]])
def test_parts_of_any_size(cupy, sizes):
    of_all = [part for k, size in enumerate(sizes) for part in parts(k + 1, size)[:1]]
    found = copied(through(late_cuda.on_device(cupy, pairs), of_all, "cuda"))
    assert [len(f) for f in found] == sizes
    for one, part in zip(found, of_all, strict=True):
        np.testing.assert_array_equal(one, pairs(part))


def test_the_next_part_is_read_and_sent_before_anything_waits(monkeypatch):
    cupy = late_cuda.make()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device, "_CONVEYORS", {})

    def read():
        for k, part in enumerate(parts(5)):
            cupy.log.append(("read", k))
            yield part

    copied(through(late_cuda.on_device(cupy, pairs), read(), "cuda"))
    what = [kind for kind, _ in cupy.log]
    for k in range(4):
        computed = [place for place, kind in enumerate(what) if kind == "computed"]
        assert cupy.log.index(("read", k + 1)) < computed[k], f"part {k + 1} was read after part {k} was computed"


def test_what_is_yielded_is_nobody_elses_until_the_next_is_asked_for(cupy):
    function = late_cuda.on_device(cupy, pairs)
    results, others = through(function, parts(3), "cuda"), through(function, parts(4), "cuda")
    for k in range(3):
        mine, theirs = next(results), next(others)
        np.testing.assert_array_equal(mine, pairs(parts(3)[k]))
        np.testing.assert_array_equal(theirs, pairs(parts(4)[k]))


def test_memory_is_pinned_once(cupy):
    function = late_cuda.on_device(cupy, pairs)
    for _ in range(3):
        copied(through(function, parts(), "cuda"))
    assert len(cupy.pinned) == 4, "two parts in flight, two ways"


def test_several_threads_share_a_device(cupy):
    function = late_cuda.on_device(cupy, pairs)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda k: copied(through(function, parts(4, size=k + 1), "cuda")), range(12)))
    for k, results in enumerate(found):
        np.testing.assert_array_equal(results, [pairs(part) for part in parts(4, size=k + 1)])
    assert len(device._CONVEYORS[0]._idle) <= 6, "two for each thread"


@pytest.mark.parametrize("broken", ["function", "reader", "consumer"])
def test_after_a_failure_the_device_is_as_before(cupy, broken):
    function, calls = late_cuda.on_device(cupy, pairs), []

    def fails_at_third(x):
        calls.append(1)
        if broken == "function" and len(calls) == 3:
            raise ValueError("third")
        return function(x)

    def read():
        for k, part in enumerate(parts()):
            if broken == "reader" and k == 2:
                raise ValueError("third")
            yield part

    def consume():
        for k, found in enumerate(through(fails_at_third, read(), "cuda")):
            np.testing.assert_array_equal(found, pairs(parts()[k]))
            if broken == "consumer" and k == 2:
                raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        consume()
    for n in (7, 3):
        found = copied(through(function, parts(n), "cuda"))
        np.testing.assert_array_equal(found, [pairs(part) for part in parts(n)])


def test_without_a_device_it_says_what_is_missing(monkeypatch):
    if problem := device.cuda_problem():
        with pytest.raises(RuntimeError, match=problem[:20]):
            through(pairs, parts(), "cuda")
    with pytest.raises(ValueError, match="device='tpu'"):
        through(pairs, parts(), "tpu")


def test_the_stand_in_shows_what_is_not_waited_for():
    """A conveyor without its events would be found out."""
    cupy = late_cuda.make()
    there, work = cupy.cuda.Stream(), cupy.cuda.Stream()
    sent = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(8), 0)
    with there:
        x = cupy.empty(8, np.uint8)
    sent[:] = 1
    x.data.copy_from_host_async(sent.ctypes.data, 8, there)
    with work:
        y = late_cuda.on_device(cupy, lambda v: v + 1)(x)
    work.synchronize()
    assert (y.host != 2).all()


@pytest.mark.gpu
def test_on_a_device_several_threads_at_once():
    if problem := device.cuda_problem():
        pytest.skip(problem)
    S, images = Scattering2D(3, (64, 64)), [np.random.default_rng(k).normal(size=(k + 1, 64, 64)) for k in range(9)]

    def scattered(seed):
        return copied(through(S, images[seed:] + images[:seed], "cuda"))

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(scattered, range(9)))
    for seed, results in enumerate(found):
        for result, x in zip(results, images[seed:] + images[:seed], strict=True):
            assert relative_error(result, S(x)) < TOLERANCE["float32"]
