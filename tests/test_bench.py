import math
import shutil
import sys
import time

import numpy as np
import pytest

from scattercube.flows import bench
from scattercube.flows.cli import execute
from scattercube.flows.doctor import examine
from scattercube.kernels import Scattering2D, TimeFrequencyScattering
from scattercube.kernels.engine import library
from tests.benchmarks.stand_in import JointStandIn
from tests.benchmarks.where_time_goes import flops, split, transforms
from tests.conftest import TOLERANCE, relative_error


@pytest.fixture(scope="module")
def found():
    return dict(bench.measure(quick=True, threads=2))


def test_every_engine_does_every_work(found):
    ours = [name for name in found if name != bench.PEER]
    assert ours[0] == "portable"
    assert library.active_engine() in ours
    for name in ours:
        assert len(found[name]) == len(bench.QUICK)
        for measured in found[name]:
            assert 0 < measured.seconds < 10
            assert measured.nbytes > 0
            assert 0 < measured.error < TOLERANCE["float32"], "single precision differs from double, a little"


def test_the_table_says_it_all(found, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_arguments: iter(found.items()))
    monkeypatch.setenv("COLUMNS", "200")  # a line per work, also beside a peer's column
    assert execute(["bench", "--quick"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    for work in bench.QUICK:
        assert sum(line.startswith(work.title) for line in lines) == 1
    for word in (*found, "error", "MB", "images/s", "s audio/s", "volumes/s"):
        assert word in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--threads", "two"], ["--quik"]])
def test_wrong_usage(capsys, arguments):
    assert execute(["bench", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_engine_that_is_not_here_is_left_out(tmp_path):
    assert bench._elsewhere("neon", True, 1, tmp_path / "neon", "float32") is None


def test_an_engine_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="the engine portable failed"):
        bench._elsewhere("portable", True, 1, tmp_path / "portable", "float32")


def test_the_peer_does_what_it_can(tmp_path, monkeypatch):
    package = tmp_path / "site" / "kymatio"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    peer = "import time\nclass Scattering2D:\n    def __init__(self, J, shape): pass\n"
    peer += "    def __call__(self, x): time.sleep(0.02); return x\n"
    for backend in ("numpy", "torch"):
        (package / f"{backend}.py").write_text(peer)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    image, *others = bench._elsewhere(bench.PEER, True, 1, tmp_path / "peer", "float32")
    assert 0.02 <= image[0] < 1
    assert others == [None] * (len(bench.QUICK) - 1)
    ours = [bench.Measured(0.25, 1000, 1e-7)] * len(bench.QUICK)
    table = bench.table(
        {"portable": ours, bench.PEER: [bench.Measured(0.5, 0, math.nan), None, None, None]}, quick=True
    )
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["Kymatio"] == ["500", "–", "–", "–"]
    assert cells["portable"] == ["250"] * 4
    assert cells["error"] == ["1e-07"] * 4, "the peer has no part in the error"


def test_the_best_time_counts():
    naps = iter([0.03, 0.001, *[0.03] * 100])
    assert 0.001 <= bench.best_s(lambda: time.sleep(next(naps)), 0.05) < 0.03
    calls = []
    bench.best_s(lambda: calls.append(1), 0)
    assert len(calls) == 1


def test_speeds_are_told_in_words():
    image, signal, volume, joint = bench.QUICK
    assert image.speed(0.001) == "8,000 images/s"
    assert volume.speed(0.5) == "2 volumes/s"
    assert signal.speed(0.001) == f"{4 * 512 / 0.001 / 44_100:.3g} s audio/s"
    assert joint.speed(1.0).endswith("audio/s")


# --- The doctor ---


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The doctor's line on kernels, in an environment and with a set of libraries."""

    def line(wanted, sets):
        if wanted is None:
            monkeypatch.delenv("SCATTERCUBE_ENGINE", raising=False)
        else:
            monkeypatch.setenv("SCATTERCUBE_ENGINE", wanted)
        monkeypatch.setattr(library, "built", lambda: sets)
        library.active_engine.cache_clear()
        return next(row for row in examine(str(tmp_path), None) if row.what == "kernels")

    yield line
    monkeypatch.undo()
    library.active_engine.cache_clear()


BUILT = library.built()
needs_engine = pytest.mark.skipif("baseline" not in BUILT, reason="the compiled engine was not built")


@needs_engine
def test_the_doctor_names_the_engine(kernels):
    row = kernels(None, BUILT)
    assert row.fine is True
    assert row.found == f"compiled engine for {library.active_engine()}; built: {', '.join(BUILT)}"
    assert library.active_engine() in BUILT


@needs_engine
def test_the_doctor_says_that_a_choice_was_made(kernels):
    row = kernels("portable", BUILT)
    assert row.fine is None
    assert "as SCATTERCUBE_ENGINE says" in row.found
    assert BUILT[0] in row.found


def test_the_doctor_finds_no_compiler(kernels):
    row = kernels(None, [])
    assert row.fine is None, "slower, and not wrong"
    assert "for want of a working C++ compiler" in row.found
    assert "apt install g++" in row.found


def test_the_doctor_refuses_an_engine_that_is_not_there(kernels, capsys, tmp_path):
    row = kernels("neon", BUILT)
    assert row.fine is False
    assert "SCATTERCUBE_ENGINE='neon'" in row.found
    assert execute(["doctor", "--store", str(tmp_path)]) == 1
    assert "✗" in capsys.readouterr().out


# --- What the benchmark measures with ---


@pytest.mark.parametrize("N", [256, 512])
def test_the_stand_in_for_the_peer_finds_the_same(N):
    S = TimeFrequencyScattering(5, 2, N, 4, padding="kymatio")
    x = np.random.default_rng(N).standard_normal((2, N)).astype(np.float32)
    assert relative_error(JointStandIn(S, np)(x), S(x)) < TOLERANCE["float32"]


def test_transforms_are_counted():
    S = Scattering2D(1, (8, 8), L=3, max_order=1)
    n = math.prod(S._grid(0))
    root = 2.5 * n * math.log2(n)
    assert transforms(S) == pytest.approx((root, root + 3 * 5 * n * math.log2(n)))
    S = Scattering2D(2, (16, 16), L=2)
    n, m = math.prod(S._grid(0)), math.prod(S._grid(1))
    back = 2 * flops(n) + 2 * flops(m) + 4 * flops(m)  # j = 0, j = 1, and j = 1 after 0
    assert transforms(S) == pytest.approx((flops(n, real=True), back + 3 * flops(n, real=True)))


def test_a_call_is_taken_apart():
    S, x = Scattering2D(2, (32, 32)), np.ones((4, 32, 32), np.float32)
    S(x)
    taken = split(S, len(x), lambda: S(x), turns=2)
    assert sum(taken.spent.values()) < taken.seconds
    if library.active_engine() == "portable":
        assert not taken.spent
        assert math.isnan(taken.rate)
        assert str(taken) == ""
    else:
        assert {"extend", "spectrum", "wavelet, inner", "wavelet, last"} <= set(taken.spent)
        assert 1e8 < taken.rate < 1e12
        assert "Python" in str(taken)
