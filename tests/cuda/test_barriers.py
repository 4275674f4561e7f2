"""Every barrier of the engine is needed: without it some order of the threads gives something else."""

import re

import numpy as np
import pytest

from scattercube.kernels.arguments import units
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.cuda import emulated as plans
from tests.cuda.emulated import Case, noise
from tests.cuda.emulation import LaunchError, barriers

pytestmark = pytest.mark.usefixtures("emulated")

CASES = [
    (Case(Scattering2D, 2, (12, 20), {}, 3), set()),
    (Case(Scattering1D, 4, 256, {"Q": 4}, 3), set()),
    # `average_of_line` has ended with one.
    (Case(Scattering1D, 2, 128, {"Q": 2, "T": "global", "max_order": 3}, 9), {"finish_whole 2"}),
    (Case(Scattering1D, 2, 90, {"Q": 4, "T": 0}, 3), set()),
    (Case(Scattering2D, 2, (32, 50), {}, 3, 12000), set()),
    (Case(Scattering1D, 4, 5000, {"max_order": 3}, 2, 24000), set()),
    # Threads take the samples that they have laid.
    (
        Case(Scattering1D, 2, 1500, {"Q": 2, "T": "global", "max_order": 3}, 2, 12000),
        {"finish_whole 2", "extend_columns 0"},
    ),
]
"""Whole and large images, and lines with each kind of average, as others test them; and which of the barriers that they
come to they do without: other cases need them."""


def outcome(plan, x, unit):
    """The coefficients, or None where the emulator refuses what a kernel does."""
    out = np.full((len(x), *plan._cascade._kept), np.nan, x.dtype)
    try:
        plan(x, unit, out)
    except LaunchError:
        return None
    return out


def names(source):
    """The barriers of a source by their lines, as the function that one stands in and its number there."""
    found, function = {}, ""
    for line, text in enumerate(source.splitlines(), 1):
        if begun := re.search(r"\bvoid (?:__launch_bounds__\([^)]*\) )?(\w+)\(", text):
            function = begun[1]
        if re.match(r"\s*[^/]*\b__syncthreads\(\)", text):
            found[line] = f"{function} {sum(name.startswith(f'{function} ') for name in found.values())}"
    return found


@pytest.fixture(scope="module")
def seen_and_needed():
    """The barriers that all cases came to, and those that one or more need."""
    return set(), set()


@pytest.mark.parametrize(("case", "unneeded"), CASES, ids=[str(case) for case, _ in CASES])
def test_without_any_one_barrier_some_order_goes_wrong(seen_and_needed, case, unneeded):
    S = case.transform()
    plan, x = S._fused_cuda, noise(S, case.batch)
    unit = units(x)
    plans.compile_all([plan._schedule(case.batch)])
    with barriers() as lines:
        expected = outcome(plan, x, unit)
    known = names(plans.text_of(plan._modules[0].source))
    assert lines
    needed = {known[n] for n in lines if plans.barrier_is_needed(lambda: outcome(plan, x, unit), expected, n)}
    seen_and_needed[0].update(known[line] for line in lines)
    seen_and_needed[1].update(needed)
    assert {known[line] for line in lines} - needed <= unneeded


def test_no_barrier_is_one_too_many(seen_and_needed):
    """Runs behind all cases."""
    seen, needed = seen_and_needed
    if "rows_forth 0" not in seen or "extend_whole 0" not in seen:
        pytest.skip("not all cases have run")
    assert not seen - needed
    source = Case(Scattering2D, 1, (4, 4), {}).transform()._fused_cuda._modules[0].source
    others = {name for name in names(plans.text_of(source)).values() if name not in seen}
    assert all(name.startswith("average_lines ") for name in others)  # of joint transforms, and tested there
