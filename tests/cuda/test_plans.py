"""The plans of the CUDA engine: passes and places, modules, filters, and the memory between launches."""

import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from scattercube.kernels import cuda_modules, fused_cuda
from scattercube.kernels.cuda_filters import Filters
from scattercube.kernels.cuda_modules import SHARED_NBYTES, passes, places, split
from scattercube.kernels.cuda_schedule import Schedule, Space
from scattercube.kernels.filterbank import Bank, Box
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.test_fused_cpu import images, lines

RADICES = set(cuda_modules._RADICES)
few = settings(deadline=None, max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
smooth = st.lists(st.sampled_from([2, 2, 2, 3, 5, 7, 11, 13]), max_size=8).map(math.prod).filter(lambda n: n <= 4096)


def is_smooth(n):
    for p in (2, 3, 5, 7, 11, 13):
        while n % p == 0:
            n //= p
    return n == 1


# --- Passes ---


@given(st.integers(1, 3000) | smooth)
def test_passes_are_the_fewest_whose_product_it_is(n):
    found = passes(n)
    assert (found is not None) == is_smooth(n)
    if found is None or n == 1:
        return
    assert math.prod(found) == n
    assert set(found) <= RADICES
    reached = {1}
    for _ in found[1:]:  # with one pass less
        reached = {m * r for m in reached for r in RADICES if n % (m * r) == 0}
    assert n not in reached


@given(st.integers(1, 5000) | smooth)
def test_a_line_is_split_where_it_can_be(n):
    grid = split(n)
    assert (grid is not None) == is_smooth(n)
    if grid:
        assert math.prod(grid) == n
        assert passes(grid[0])
        assert passes(grid[1])
        assert grid[1] % 2 == 0 or n % 2


def in_passes(z, forwards):
    """What `Passes` in scattering.cu does: to reversed order, or from there to natural order."""
    z, n, L, steps = z.copy(), len(z), 1, []
    for R in passes(n):
        steps.append((L, R))
        L *= R
    for L, R in steps if forwards else reversed(steps):
        dft = np.exp(2j * np.pi * np.outer(np.arange(R), np.arange(R)) / R)
        for s in range(n // R):
            j = s % L
            at = s // L * (L * R) + j + L * np.arange(R)
            turns = np.exp(2j * np.pi * j * np.arange(R) / (L * R))
            z[at] = dft @ (turns * z[at]) if forwards else turns * (dft @ z[at])
    return z


@given(smooth, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_places_are_where_passes_leave_elements(n, seed):
    place = places(n)
    assert sorted(place) == list(range(n))
    real, imaginary = np.random.default_rng(seed).standard_normal((2, n))
    z = real + 1j * imaginary
    expected = n * np.fft.ifft(z)
    np.testing.assert_allclose(in_passes(z, forwards=False)[place], expected, rtol=1e-9, atol=1e-9)
    laid = np.empty_like(z)
    laid[place] = z
    np.testing.assert_allclose(in_passes(laid, forwards=True), expected, rtol=1e-9, atol=1e-9)


# --- Transforms ---


@st.composite
def planned(draw):
    transform, arguments, parameters, common = draw(lines() | images())
    dtype, shared_nbytes = draw(st.sampled_from(["float32", "float64"])), draw(st.sampled_from([0, 0, 24000, 12000]))
    with pytest.MonkeyPatch.context() as patch:
        if shared_nbytes:
            patch.setattr(cuda_modules, "SHARED_NBYTES", shared_nbytes)
        S = transform(*arguments, **parameters, **common, dtype=dtype)
        assume(S._fused_cuda)
    return S


@few
@given(planned())
def test_modules_fit_a_block(S):
    for level, module in enumerate(S._fused_cuda._modules):
        assert module.threads % 32 == 0
        assert 32 <= module.threads <= 1024
        assert math.prod(module.shape) == math.prod(S._grid(level))
        n1, n2 = module.shape
        used = [module.whole_nbytes] if module.whole else [module.rows_nbytes, module.columns_nbytes]
        assert max(*used, module.average_nbytes) <= SHARED_NBYTES - (1 << 10)
        assert module.averaged * module.dtype.itemsize >= module.average_nbytes
        if module.whole:
            assert 1 <= module.signals <= 8
            assert module.whole_nbytes >= module.signals * n1 * n2 * module.complex_nbytes
        else:
            assert module.columns % 8 == 0
            assert module.rows >= 8
        n_blocks = int(module.defines["BLOCKS_PER_SM"])
        assert n_blocks >= 1
        assert n_blocks * module.threads <= max(module.threads, 2048)
        assert not module.whole or n_blocks == 1 or n_blocks * module.whole_nbytes <= SHARED_NBYTES


def test_what_a_tall_image_reads_of_a_filter_fits_static_shared_memory():
    """An assembler refuses more than 48 KiB of it; 20 bytes are kept for each row and alias."""
    plan = Scattering2D(2, (2400, 16), L=2)._fused_cuda
    for module in plan._modules if plan else []:
        assert module.rows * int(module.defines["ALIASES1"]) * 20 <= 47 << 10


def unpacked(filters, bank):
    """The filters as the engine reads them, each on the whole grid that is read: (filters, M1, M2)."""
    M1, M2 = (1, *bank.grid)[-2:]
    dense = np.zeros((len(filters), M1, M2))
    for f, (origin1, origin2, height, width, first, *_) in enumerate(filters.filters.host):
        assert 0 <= origin1 < M1
        assert 0 <= origin2 < M2
        assert height <= min(M1, filters.aliases[0] * (1, *bank.out)[-2])
        assert width <= min(M2, filters.aliases[1] * bank.out[-1])
        for i in range(height):
            begin, end, weights = (0, width, first) if len(bank.grid) == 1 else filters.rows.host[first + i][:3]
            assert 0 <= begin <= end <= width
            assert end == begin or 0 <= weights + begin <= weights + end <= len(filters.weights.host)
            for c in range(begin, end):
                dense[f, (origin1 + i) % M1, (origin2 + c) % M2] += filters.weights.host[weights + c]
    return dense


def folds_as(filters, bank, seed):
    dense, (M1, M2), (n1, n2) = unpacked(filters, bank), (1, *bank.grid)[-2:], (1, *bank.out)[-2:]
    X = np.random.default_rng(seed).standard_normal((2, M1, M2))
    nothing = 4 * {"float32": 1e-6, "float64": 1e-12}[bank.boxes[0].weights.dtype.name]
    for box, packed in zip(bank.boxes, dense, strict=True):
        exact = box.dense(bank.grid).reshape(M1, M2) / (M1 * M2)
        rounding = 2 * np.finfo(box.weights.dtype).eps
        dropped = packed == 0
        np.testing.assert_allclose(packed[~dropped], exact[~dropped], rtol=rounding)
        assert (abs(exact[dropped]) <= nothing * abs(exact).max()).all()
        for part in X:
            ours, theirs = ((part * w).reshape(M1 // n1, n1, M2 // n2, n2).sum((0, 2)) for w in (packed, exact))
            assert np.linalg.norm(ours - theirs) <= 10 * nothing * np.linalg.norm(theirs)


@few
@given(planned(), st.integers(0, 99))
def test_filters_fold_as_those_of_the_bank(S, seed):
    filters = S._fused_cuda._filters
    assume(sum(sum(box.weights.size for box in bank.boxes) for bank in filters) < 100_000)
    for bank, packed in filters.items():
        assert len(packed) == len(bank)
        folds_as(packed, bank, seed)


def test_filters_wider_than_the_grid_that_is_written_fold_more_than_once():
    rng = np.random.default_rng(4)
    line = Bank((Box((-13,), rng.standard_normal(37)), Box((5,), rng.standard_normal(8))), (40,), (10,))
    assert Filters.of(line).aliases == (1, 4)
    folds_as(Filters.of(line), line, 0)
    image = Bank((Box((-5, 2), rng.standard_normal((11, 14))),), (12, 18), (4, 9))
    assert Filters.of(image).aliases == (3, 2)
    folds_as(Filters.of(image), image, 0)


# --- Blocks and memory ---


@few
@given(planned(), st.integers(0, 50), st.integers(1, 1 << 20))
def test_blocks_cover_a_batch_once(S, batch, spectra_nbytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_cuda, "_SPECTRA_NBYTES", spectra_nbytes)
        plan = fused_cuda.Plan(S, S._fused_cuda._modules, S._fused_cuda._filters)
        blocks = list(plan._blocks(batch))
        assert plan.nbytes(batch) == max((ends_of(plan._schedule(b.stop - b.start)) for b in blocks), default=0)
    assert [i for some in blocks for i in range(some.start, some.stop)] == list(range(batch))
    sizes = [some.stop - some.start for some in blocks]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def spaces_of(launch):
    """The memory that a launch reads, and what it writes: pointers to const, and others."""
    text = re.search(rf"\b{launch.name}\(([^)]*)\)", launch.source.source)[1]
    parameters = text.split(",")
    assert len(parameters) == len(launch.arguments)
    pairs = [(p, a) for p, a in zip(parameters, launch.arguments, strict=True) if isinstance(a, Space)]
    assert all("*" in parameter for parameter, _ in pairs)
    return [a for p, a in pairs if "const" in p], [a for p, a in pairs if "const" not in p]


def ends_of(schedule):
    return max((space.end for launch in schedule.launches for part in spaces_of(launch) for space in part), default=0)


def overlap(a, b):
    return a.start < b.end and b.start < a.end


def check(schedule):
    """Assert that whatever a launch reads has been written, and not been written over."""
    alive = []
    for launch in schedule.launches:
        read, written = spaces_of(launch)
        for space in read:
            assert any(space is other for other in alive), (launch.name, space)
        for i, space in enumerate(written):
            assert space.start % 256 == 0
            assert space.end <= schedule.nbytes
            assert not any(overlap(space, other) for other in (*read, *written[:i]))
            alive = [other for other in alive if not overlap(space, other)] + [space]


@few
@given(planned(), st.integers(1, 20))
@example(Scattering2D(3, (160, 200), L=2, max_order=3), 2)
@example(Scattering1D(6, 2**15, max_order=3), 2)
def test_nothing_is_written_over_that_is_still_read(S, n_images):
    schedule = S._fused_cuda._schedule(n_images)
    check(schedule)
    assert ends_of(schedule) == schedule.nbytes
    for launch in schedule.launches:
        assert all(0 < n < limit for n, limit in zip(launch.grid, (1 << 31, 1 << 16, 1 << 16), strict=False))


def test_what_is_written_over_is_seen():
    S = Scattering2D(2, (160, 200), L=2)
    launches = S._fused_cuda._schedule(1).launches
    squeezed = Schedule(nbytes=1 << 40)
    for launch in launches:
        arguments = (Space(0, a.end - a.start) if isinstance(a, Space) else a for a in launch.arguments)
        squeezed.launch(launch.source, launch.name, launch.grid, launch.shared_nbytes, *arguments)
    with pytest.raises(AssertionError):
        check(squeezed)


@few
@given(planned(), st.integers(1, 40), st.integers(200, 1 << 20), st.integers(2, 1 << 10))
def test_what_the_engine_counts_in_32_bits_and_blocks_of_a_launch_stay_within_bounds(S, batch, elements, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_cuda, "_MOST_ELEMENTS", elements)
        patch.setattr(fused_cuda, "_MOST_BLOCKS", most)
        plan = fused_cuda.Plan(S, S._fused_cuda._modules, S._fused_cuda._filters)
        assume(plan.possible())
        for some in plan._blocks(batch):
            for launch in plan._schedule(some.stop - some.start).launches:
                assert max((*launch.grid, 1)[1:]) < most
                for space in (space for part in spaces_of(launch) for space in part):
                    assert (space.end - space.start) // (2 * S.dtype.itemsize) < elements


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lines_whose_moments_do_not_fit_a_block_are_averaged_all_the_same(dtype):
    S = Scattering1D(4, 1 << 17, Q=1, dtype=dtype)
    modules = S._fused_cuda._modules
    assert any(module.defines["MOMENTS_FIT"] == "0" and module.average_nbytes == 0 for module in modules)
