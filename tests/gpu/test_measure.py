"""What the measurement computes and prints, where no device is needed."""

import math
from importlib.metadata import Distribution

import numpy as np
import pytest

from scattercube.flows.bench import QUICK
from scattercube.pipeline.stage import StepEvent
from tests.benchmarks.where_time_goes import transforms
from tests.gpu import Checkout, archive, measure, peers
from tests.gpu.gauge import Timing, errors, within
from tests.gpu.measure import CASES, Case, Ceilings, Row


def test_errors_are_relative_and_by_path():
    expected = np.ones((2, 3, 4))
    actual = expected.copy()
    actual[:, 1] += 0.3
    total, worst = errors(actual, expected)
    assert total == pytest.approx(0.3 / math.sqrt(3))
    assert worst == pytest.approx(0.3)


def test_a_silent_path_must_be_silent():
    expected = np.ones((1, 2))
    expected[0, 1] = 0
    assert errors(expected, expected) == (0, 0)
    assert errors(expected + np.array([[0, 1e-9]]), expected)[1] == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad):
    actual = np.ones((1, 2, 2))
    actual[0, 1, 0] = bad
    found = errors(actual, np.ones((1, 2, 2)))
    assert not within(*found, "float32")
    assert within(1e-6, 1e-5, "float32")
    assert not within(1e-6, 1e-4, "float32")
    assert not Row(0, CASES[0], times={"ours": Timing(1, 1)}).ok, "an error that was not computed"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="has shape"):
        errors(np.ones((1, 2)), np.ones((2, 1)))


def test_the_floor_is_the_larger_of_two_times():
    row = Row(0, Case(QUICK[0]), flops=3e9, nbytes=1e6, times={"ours": Timing(2e-3, 4e-3), "Kymatio": Timing(0.1, 0)})
    ceilings = Ceilings(bandwidth=1e12, flop_rate=1e12)
    assert row.floor_s(ceilings) == pytest.approx(3e-3)
    assert "75%" in measure.cost_table([row], ceilings)
    assert "**25×**" in measure.speed_table([row])
    row.times["ours, graph"] = Timing(3e-3, 1e-3)
    assert "100%" in measure.cost_table([row], ceilings)
    row.flops = math.nan
    assert math.isnan(row.floor_s(ceilings))


def test_a_row_of_failures_is_a_row():
    row = Row(3, CASES[0])
    with measure.guarded("ours", row.notes):
        raise RuntimeError("out of memory\nand more")
    page = measure.page("A machine.", Ceilings(), [row], measure.Archives(notes=["archives: none"]), {"row 3": 1.0})
    assert "- 256 × 32², J=2, ours: RuntimeError: out of memory\n" in page
    assert "**failed**" in page
    assert "\n- archives: none\n" in page
    assert "and more" not in page
    for line in (measure.speed_table([row]), measure.error_table([row]), measure.cost_table([row], Ceilings())):
        head, _, body = line.splitlines()
        assert head.count("|") == body.count("|")
        assert "nan" not in body


def test_a_gradient_that_is_wrong_or_missing_fails_its_row():
    right = Row(0, Case(QUICK[0], adjoint=True), times={"ours": Timing(1, 1)}, error=0, worst=0, adjoint_error=1e-6)
    assert right.ok
    assert "1.0e-06" in measure.adjoint_table([right, Row(1, Case(QUICK[0]))])
    assert measure.adjoint_table([right, Row(1, Case(QUICK[0]))]).count("\n") == 2
    for wrong in (1e-3, math.nan):
        right.adjoint_error = wrong
        assert not right.ok


@pytest.mark.parametrize("number", range(len(archive.WORKS)))
def test_archives_go_to_their_cubes_on_processors_too(number, tmp_path, monkeypatch, capsys):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, workers: 1, threads: 2, memory: 2GiB}")
    arguments = ["--cluster", str(cluster), "--part", "512", "--rows", str(number), "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["archive", *arguments])
    assert archive.main() == 0
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert head.count("|") == row.count("|")
    assert list(archive.WORKS)[number] in row


def test_the_steady_state_begins_when_every_thread_has_ended_a_key():
    events = [StepEvent(str(i), "", 0, 1, 0, 0, 0, 1, started=[0, 0, 5, 6][i]) for i in range(4)]
    assert archive.steady(events, 2, kernels_s=2) == pytest.approx(2 * 2 / 4 / 6)
    assert math.isnan(archive.steady(events, 4, kernels_s=2))


def test_every_work_has_nominal_flops():
    for work in QUICK:
        root, count = transforms(Case(work).work.make())
        assert 0 < root < count


def test_rows_that_no_one_has_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["measure", "--rows", str(len(CASES))])
    with pytest.raises(SystemExit):
        measure.main()
    assert "there is no row" in capsys.readouterr().err


@pytest.mark.parametrize("work", QUICK[:3], ids=lambda work: work.transform)
def test_the_peers_coefficients_are_laid_out_as_ours(work):
    S = work.make()
    values = np.ones((2, *S.output_shape))
    if work.transform == "HarmonicScattering3D":
        values = values[:, len(S.integral_powers) :].reshape(2, -1, S.L + 1, len(S.integral_powers))
    laid_out, which = peers.as_ours(work, S, values)
    assert laid_out.shape == np.ones((2, *S.output_shape))[:, which].shape


def test_a_checkout_knows_its_name_and_version():
    found: Distribution = Checkout()
    assert found.metadata["Name"] == "scattercube"
    assert found.version
