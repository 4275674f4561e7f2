"""The estimate: the first shards of the archive itself, nothing left behind, and arithmetic that one can follow."""

import numpy as np
import pytest

from scattercube.pipeline import estimate
from scattercube.pipeline.estimate import SHARING, Cost, Estimate
from scattercube.pipeline.job import Job, how_long, prepare, run


@pytest.fixture
def fields(tmp_path):
    np.save(tmp_path / "fields.npy", np.random.default_rng(0).normal(size=(64, 96, 96)).astype("f4"))
    return Job(entry=str(tmp_path / "fields.npy"), store=str(tmp_path / "deep" / "store"), set=("J=2",), serial=True)


@pytest.mark.parametrize("padding", ["minimal", "support"])
def test_the_first_shards_are_timed_and_nothing_stays(fields, tmp_path, padding, monkeypatch):
    monkeypatch.setattr("scattercube.pipeline.plan.FIELD_NBYTES", 1 << 12 if padding == "support" else 1 << 26)
    prepared = prepare(fields.model_copy(update={"set": ("J=2", f"padding={padding}")}))
    before = sorted(tmp_path.rglob("*"))
    found = how_long(prepared, serial=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.n_ingest, found.n_extract) == (
        len(prepared.plan.signal_grid.keys),
        len(prepared.plan.feature_grid.keys),
    )
    assert 2 <= found.extract.n_timed <= found.n_extract
    assert 0 < found.extract.computing <= found.extract.each
    assert found.ingest.computing == 0
    assert found.cluster_s == 0
    assert found.seconds > 0


def test_where_all_is_done_it_takes_no_time(fields):
    run(fields.model_copy(update={"until": "extract"}))
    prepared = prepare(fields)
    assert how_long(prepared, serial=True).seconds == 0


def test_a_key_that_cannot_be_done_is_said_and_nothing_stays(fields, tmp_path, monkeypatch):
    from scattercube.pipeline.errors import ChunkError

    prepared = prepare(fields)
    before = sorted(tmp_path.rglob("*"))

    def failing(name, step, key):
        raise ChunkError(f"{name} {key}: no")

    monkeypatch.setattr(estimate, "attempt", failing)
    with pytest.raises(ChunkError, match="ingest sample=0: no"):
        how_long(prepared, serial=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("workers", "cores", "expected"),
    [
        (1, 1, 10 * 0.2 + 20 * 1.0 + 3),  # one after the other
        (1, 2, SHARING * (20 * 0.9 + 3)),  # reading and writing are hidden behind computing
        (2, 2, SHARING * ((10 * 0.2 + 20 * 1.0) / 2 + 3)),  # all processors are at work
        (64, 64, SHARING * (0.9 * 1 + 3 + 0.2)),  # more workers than keys: about one key's time
    ],
)
def test_what_overlaps_and_what_does_not(workers, cores, expected):
    found = Estimate(Cost(1.0, 0.2, 0.0, 2), Cost(2.0, 1.0, 0.9, 2), 10, 20, workers, cores, 0.0)
    assert found.seconds == pytest.approx(expected, rel=0.02)
