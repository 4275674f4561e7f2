"""The command line: what it says, what it returns, and that every command does its work."""

import csv

import pytest

from scattercube.flows.cli import execute
from tests.test_job import photographs

COMMANDS = ("run", "plan", "ingest", "extract", "fit", "report", "apply", "catalog", "doctor")


@pytest.fixture
def archive(tmp_path):
    return str(photographs(tmp_path / "photos"))


def call(capsys, *arguments):
    code = execute([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, said = call(capsys, command, "--help")
    assert code == 0
    assert f"scattercube {command}" in said
    assert len(said.splitlines()) > 5


def test_the_first_help_names_every_command_and_where_to_start(capsys):
    code, said = call(capsys, "--help")
    assert code == 0
    assert all(command in said for command in COMMANDS)
    assert "scattercube run textures" in said


def test_phases_build_on_each_other_and_repeat_nothing(capsys, archive, tmp_path):
    options = ("--store", tmp_path / "store", "--direct", "--serial")
    code, said = call(capsys, "plan", archive, "--store", tmp_path / "store")
    assert code == 0
    assert "24" in said
    assert not (tmp_path / "store").exists()
    code, said = call(capsys, "ingest", archive, *options)
    assert code == 0
    assert "ingest   24 samples" in said
    assert "reader: images" in said, "an inferred entry is shown"
    assert (tmp_path / "store" / "photos" / "entry.yaml").exists(), "and saved"
    code, said = call(capsys, "extract", archive, *options)
    assert "ingest   nothing new" in said
    assert "extract  24 samples" in said
    code, said = call(capsys, "fit", archive, *options)
    assert "Accuracy" in said
    code, said = call(capsys, "report", archive, *options)
    assert code == 0
    assert "report.html" in said
    code, said = call(capsys, "run", archive, *options)
    assert code == 0
    assert "nothing new: photos is up to date" in said
    code, said = call(capsys, "plan", archive, "--store", tmp_path / "store")
    assert code == 0
    assert "none: every shard is there" in said


def test_a_saved_entry_runs_like_the_bare_archive(capsys, archive, tmp_path):
    options = ("--store", tmp_path / "store", "--direct", "--serial")
    assert call(capsys, "extract", archive, *options)[0] == 0
    code, said = call(capsys, "extract", tmp_path / "store" / "photos" / "entry.yaml", *options)
    assert code == 0
    assert "nothing new" in said


def test_a_head_is_applied_to_another_cube(capsys, archive, tmp_path):
    options = ("--store", tmp_path / "store", "--direct", "--serial")
    other = photographs(tmp_path / "other", n_each=5)
    assert call(capsys, "fit", archive, *options)[0] == 0
    assert call(capsys, "extract", other, *options)[0] == 0
    (head,) = (tmp_path / "store" / "photos" / "results").glob("*/heads/ridge")
    (cube,) = (path for path in (tmp_path / "store" / "other" / "features").iterdir() if not path.suffix)
    code, said = call(capsys, "apply", head, cube, "--out", tmp_path / "predictions.csv")
    assert code == 0, said
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["sample_id"] for row in rows}) == len(rows) == 10
    assert all(row["predicted_label"] == row["label"] for row in rows)
    assert all(f"decision {label}" in rows[0] for label in ("along", "across"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run"], 2, "ENTRY requires an argument"),
        (["run", "textures", "--stor", "x"], 2, "--store"),
        (["run", "textures", "--limit", "0"], 2, "greater than or equal to 1"),
        (["runn"], 2, "run"),
        (["plan", "texturs"], 2, "did you mean textures"),
        (["plan", "textures", "--set", "J=99"], 2, "J: "),
        (["plan", "textures", "--set", "J=6"], 3, "the largest possible J is 5"),
        (["plan", "mnist", "--data", "/nonexistent"], 4, "SCATTERCUBE_DATA"),
        (["plan", "textures", "--store", "/proc/none"], 5, "/proc/none"),
        (["apply", "/nonexistent/head", "/nonexistent/cube"], 5, "/nonexistent"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_a_code(capsys, arguments, code, message):
    got, said = call(capsys, *arguments)
    assert got == code
    assert message in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said


def test_an_interruption_says_how_to_go_on(capsys, archive, tmp_path, monkeypatch):
    from scattercube.pipeline import execute as loop

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run", interrupted)
    code, said = call(capsys, "run", archive, "--store", tmp_path / "store", "--direct", "--serial")
    assert code == 130
    assert "the same command continues" in said


def test_the_catalogue_says_what_is_there(capsys, tmp_path):
    code, said = call(capsys, "catalog", "--data", tmp_path)
    assert code == 0
    for name in ("textures", "hubble", "digits", "mnist", "kth-tips", "galaxyzoo2", "cifar10-subset"):
        assert name in said
    assert "there:" in said
    assert "not under" in said


def test_the_doctor_finds_what_is_wrong(capsys, tmp_path):
    code, said = call(capsys, "doctor", "--store", tmp_path / "store")
    assert code == 0
    for what in ("numpy", "Prefect", "GPU", "entry textures"):
        assert what in said
    code, said = call(capsys, "doctor", "--store", "/proc/none")
    assert code == 1
    assert "✗" in said


def test_names_that_look_like_markup_are_only_names(capsys, archive, tmp_path):
    hostile = tmp_path / "photos" / "along" / "[red]x[bold].png"
    hostile.write_bytes(b"no picture")
    code, said = call(capsys, "ingest", archive, "--store", tmp_path / "store", "--direct", "--serial")
    assert code == 0
    assert "quarantined along/[red]x[bold].png: " in said
