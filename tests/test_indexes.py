"""Tests of what is remembered of large tars."""

import io
import tarfile

import numpy as np
import pytest

from scattercube.pipeline.sources.archives import containers, indexes
from scattercube.pipeline.sources.archives.containers import open_container


@pytest.fixture
def tar(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "REMEMBERED", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.tar"
    pack(path, {"a.txt": b"1", "b/ü.txt": b"22", "c.txt": b"333", "../evil": b"4"})
    return path


def pack(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 7
            file.addfile(info, io.BytesIO(content))


def contents(path):
    container = open_container(path)
    found = {name: container.open(name).read() for name in container.names}
    return found, dict(container.skipped), {name: container.mark(name) for name in container.names}


def test_a_large_tar_is_indexed_once(tar, monkeypatch):
    first = contents(tar)
    assert first[0] == {"a.txt": b"1", "b/ü.txt": b"22", "c.txt": b"333"}
    assert first[1] == {"their names leave the archive": ["../evil"]}
    assert first[2]["c.txt"] == [3, 7]
    with monkeypatch.context() as patch:
        patch.setattr(containers._Tar, "_index", lambda self: pytest.fail("it was indexed again"))
        assert contents(tar) == first
    pack(tar, {"a.txt": b"1", "b.txt": b"2", "c.txt": b"3", "d.txt": b"4"})
    assert list(contents(tar)[0]) == ["a.txt", "b.txt", "c.txt", "d.txt"]


@pytest.mark.parametrize("damage", ["cut", "other", "folder"])
def test_what_cannot_be_read_back_is_made_again(tar, damage):
    first = contents(tar)
    (file,) = indexes.folder().glob("tar-*.npz")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "other":
        np.savez(file, about=np.frombuffer(b"{}", np.uint8), names=np.zeros(1, np.uint8), rows=[0], places=[[0, 1, 2]])
    else:
        file.unlink()
        file.mkdir()
    assert contents(tar) == first


def test_a_small_tar_is_not_remembered(tar, monkeypatch):
    monkeypatch.setattr(indexes, "REMEMBERED", 4)
    contents(tar)
    assert not indexes.folder().exists()


def test_no_more_than_some_are_kept(tar, monkeypatch, tmp_path):
    monkeypatch.setattr(indexes, "MOST_FILES", 2)
    for name in "bcd":
        path = tmp_path / f"{name}.tar"
        pack(path, {f"{name}{n}": b"1" for n in range(3)})
        contents(path)
    assert len(list(indexes.folder().iterdir())) == 2
