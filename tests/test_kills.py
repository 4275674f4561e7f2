"""A few random kills, as `python -m tests.kills` does hundreds of; and that it notices what it is there to notice."""

import shutil

import pytest
import zarr

from tests.kills import Held, journal, kill, stores


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return kill(3, "zarr", 5, tmp_path_factory.mktemp("kills"))


def test_whatever_is_killed_the_same_command_ends_with_the_same_cube(campaign):
    assert campaign.violations == []
    assert sum(campaign.hits.values()) >= 3
    assert campaign.counts["reader: whole"] > 0
    assert campaign.counts["stores compared"] >= 2 * (campaign.trial + 1)


def change_a_value(cube):
    zarr.open_array(cube / "status", mode="r+")[3] = 1


def record_twice(cube):
    (log,) = cube.with_name(cube.name + ".run").glob("journal*")
    first = log.read_bytes().splitlines(keepends=True)[0]
    log.write_bytes(log.read_bytes() + first)


def leave_half_a_file(cube):
    (cube / "scattering" / "c.partial").write_bytes(b"half")


def hide(cube):
    (cube / "zarr.json").unlink()


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        (record_twice, "keys twice"),
        (leave_half_a_file, "c.partial"),
        (hide, "GroupNotFoundError"),
        (change_a_value, "status: other values"),
    ],
)
def test_what_is_wrong_is_noticed(campaign, tmp_path, monkeypatch, damage, noticed):
    root = tmp_path / "root"
    shutil.copytree(campaign.truth_root, root)
    monkeypatch.setattr(campaign, "violations", [])
    campaign.check("copied", root, Held())
    assert campaign.violations == []
    damage(stores(root)["cube"])
    campaign.check("damaged", root, Held())
    assert noticed in " ".join(campaign.violations)


def test_a_key_that_is_computed_again_is_noticed(campaign, monkeypatch):
    monkeypatch.setattr(campaign, "violations", [])
    found = {name: journal(store) for name, store in stores(campaign.truth_root).items()}
    campaign.check("rewritten", campaign.truth_root, Held({"cube": found["chunks"]}))
    assert "does not begin with what it held" in campaign.violations[0]
    monkeypatch.setattr(campaign, "violations", [])
    campaign.check("early", campaign.truth_root, Held({}, ended_at=1e12))
    assert "was begun before" in campaign.violations[0]
