"""What a person sees of fields, before a run and while it goes on: parts, not samples."""

import io

import numpy as np
from rich.console import Console

from scattercube.flows.cli import execute
from scattercube.flows.progress import Bar
from scattercube.pipeline.stage import StepEvent
from tests.synthetic import oriented_noise

COST = {"digest": "", "read_s": 0.0, "compute_s": 0.0, "write_s": 0.0, "nbytes_in": 0, "nbytes_out": 0}


def watched(keys: list[str], n_samples: int) -> str:
    told = io.StringIO()
    with Bar(Console(file=told, width=200)) as bar:
        bar.begin("extract", len(keys), 0)
        for key in keys:
            bar.step(StepEvent(key=key, n_samples=n_samples, stage="extract", **COST))
    return told.getvalue().splitlines()[-1]


def test_samples_are_counted_and_of_fields_shards():
    assert watched(["sample=0", "sample=64"], 64).startswith("extract  128 samples in ")
    assert watched(["sample=0,y=0,x=0", "sample=0,y=0,x=8", "sample=0,y=8,x=0"], 1).startswith("extract  3 shards in ")


def test_a_field_is_planned_and_run_by_tiles(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scattercube.pipeline.plan.FIELD_NBYTES", 100_000)
    monkeypatch.setattr("scattercube.pipeline.plan.TILE_SIDES", {2: 100})
    monkeypatch.setattr("scattercube.pipeline.plan.TILE_HALOS", 4)
    np.save(tmp_path / "field.npy", oriented_noise((30,), 1, size=160)[0])
    options = [str(tmp_path / "field.npy"), "--store", str(tmp_path / "store"), "--set", "J=2", "--set"]
    assert execute(["plan", *options, "padding=support"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "25 shards of 8×8 outputs" in said
    assert "from 72×72 values with a halo of 20×20" in said
    assert execute(["run", *options, "padding=support", "--direct", "--serial"]) == 0
    told = capsys.readouterr()
    said = told.out + told.err
    assert "1 sample of 160×160 from" in said
    assert "extract  25 shards in" in said
    assert "nothing to fit: the cube holds one sample" in said
    assert "Maps and scattering disks" in next((tmp_path / "store").rglob("report.html")).read_text()
