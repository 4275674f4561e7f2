"""Bad input in short: a hundred fresh cases of `tests.fuzz`, and each defect that it has found, made small."""

import gzip
import io
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scattercube.pipeline import catalog
from scattercube.pipeline.errors import EntryError, RecordError, SourceError, SpecError, one_line, said_by
from scattercube.pipeline.sources import load_entry, read, scan
from scattercube.pipeline.sources.archives.archive import open_archive
from scattercube.pipeline.spec import ImageSpec, load_yaml, parse_yaml
from tests.fuzz import Result, fuzz
from tests.fuzz_cases import PLACE, _laughs, as_bytes, base, compressed, sphere
from tests.test_sources import (
    CODES,
    IMAGES,
    entry,
    everything,
    idx,
    npy,
    png,
    reason,
    write_folder,
    write_tar,
)

N_FRESH = 100


def test_a_hundred_fresh_cases() -> None:
    """Others every day: SCATTERCUBE_FUZZ_SEED repeats those of another."""
    seed = int(os.environ.get("SCATTERCUBE_FUZZ_SEED") or datetime.now(UTC).toordinal())
    results = list(fuzz(list(range(N_FRESH)), seed, n_workers=2))
    wrong = [result for result in results if result.end == "defect"]
    assert len(results) == N_FRESH
    assert not wrong, "\n".join(map(_told(seed), wrong))
    assert {result.end for result in results} == {"refused", "quarantined", "right"}


def _told(seed: int) -> Any:
    def tell(result: Result) -> str:
        return f"python -m tests.fuzz --seed {seed} --only {result.index}: {result.name}: {result.said}"

    return tell


class TestMessages:
    """What archives and libraries say reaches terminals and pages."""

    def test_are_one_line_without_control_characters_and_addresses(self) -> None:
        failure = RecordError("unreadable", "a.png: \x1b[31mone\n ^\r\ntwo <_io.BytesIO object at 0x7f16fc80>")
        assert str(failure) == "a.png: \\x1b[31mone ^ two BytesIO"
        assert str(SourceError("two  spaces stay")) == "two  spaces stay"
        assert one_line("a\u2028b\ud800") == "a\\u2028b\\ud800"

    def test_are_not_endless(self) -> None:
        text = str(EntryError("begin " + "x" * 100_000 + " end"))
        assert len(text) < 1500
        assert (text[:6], text[-4:]) == ("begin ", " end")

    @pytest.mark.parametrize("failure", [EOFError(), MemoryError(), ValueError("ValueError"), OSError("  ")])
    def test_say_more_than_a_class(self, failure: Exception) -> None:
        assert said_by(failure) == f"damaged, or cut short ({type(failure).__name__})"

    def test_a_file_that_is_no_picture(self, tmp_path: Path) -> None:
        _, found = everything(entry(write_folder(tmp_path / "f", {"a.png": b"", "b.png": png(IMAGES[0])})))
        assert str(found[0]) == "a.png: is no PNG or JPEG, or its first bytes are damaged"


class TestDescriptions:
    @pytest.mark.parametrize(
        "text",
        [
            "limit: !!float x",
            "limit: !!int x",
            "limit: !!timestamp x",
            "limit: 2020-99-99",
            f"limit: {'9' * 5000}",
            "[" * 30_000,
            "title: !!python/object/apply:os.system [x]",
            "a: &a [*a]",
            "name: 'tiny\n",
            "\x00",
        ],
    )
    def test_that_are_no_plain_values(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(text)
        with pytest.raises(EntryError, match=r"e\.yaml: not YAML: ") as caught:
            load_yaml(tmp_path / "e.yaml", EntryError)
        assert "\n" not in str(caught.value)

    def test_that_stand_for_gigabytes(self) -> None:
        with pytest.raises(SpecError, match=r"\*a0 is an alias; write out what it stands for"):
            parse_yaml(_laughs(9), "the test", SpecError)

    @pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "2020-99-99", "!!timestamp x", "&a [*a]"])
    def test_of_settings(self, value: str) -> None:
        with pytest.raises(SpecError, match=r"--set J=.*not YAML"):
            ImageSpec().override([f"J={value}"])

    @pytest.mark.parametrize("pattern", [f"(?P<a>b{{{'9' * 20}}})", "(" * 5000 + "(?P<l>x)" + ")" * 5000])
    def test_with_patterns_that_are_none(self, pattern: str) -> None:
        with pytest.raises(EntryError, match=r"labels\.pattern: not a regular expression"):
            entry("x", labels={"pattern": pattern})

    @pytest.mark.parametrize("field", ["labels", "split"])
    def test_with_patterns_that_take_for_ever(
        self, tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalog, "_SEARCH_S", 0.05)
        path = write_folder(tmp_path / "f", {f"{'a' * 40}.png": png(IMAGES[0])})
        made = entry(path, **{field: {"pattern": "(?P<split>(a|aa)+)$"}})
        with pytest.raises(EntryError, match=rf"{field}\.pattern: .* takes more than 0\.05 s for the name 'aaaa"):
            scan(made, Path())


class TestFolders:
    def test_names_that_are_too_long(self, tmp_path: Path) -> None:
        name = "x" * 5000
        with pytest.raises(SourceError, match="no archive at"):
            scan(entry(tmp_path / name), Path())
        with pytest.raises(EntryError, match="no catalogue entry of that name"):
            load_entry(name, tmp_path)

    def test_a_link_that_leads_to_itself(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.png": png(IMAGES[0])})
        (path / "loop.png").symlink_to("loop.png")
        listing = scan(entry(path), Path())
        assert listing.columns["member"].tolist() == ["a.png"]
        assert any("links to nothing, or devices: 1 (loop.png)" in note for note in listing.notes)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
    def test_a_folder_that_may_not_be_listed(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "f", {"a.png": png(IMAGES[0]), "b/c.png": png(IMAGES[1])})
        (path / "b").chmod(0)
        listing = scan(entry(path), Path())
        (path / "b").chmod(0o700)
        assert listing.columns["member"].tolist() == ["a.png"]
        assert any("their folders cannot be listed: 1" in note for note in listing.notes)

    @pytest.mark.parametrize("name", ["a.npy", "a.zip", "a.tar.gz"])
    @pytest.mark.parametrize("endless", [False, True])
    def test_what_is_neither_file_nor_folder(self, tmp_path: Path, name: str, endless: bool) -> None:
        if endless:
            (tmp_path / name).symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / name)
        with pytest.raises(SourceError, match="neither a file nor a folder"):
            open_archive(tmp_path / name)


def damaged(content: bytes, at: float) -> bytes:
    """Change the last bit of one byte."""
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


STACK = np.random.default_rng(5).integers(0, 4, (40, 64, 64), dtype=np.uint8)


class TestChecksumsAtTheEnd:
    """Of what is packed as a whole the first parts come out long before the checksum is met."""

    @pytest.mark.parametrize("at", [0.2, 0.5, 0.9, 0.99999])
    def test_of_a_member_that_is_packed_by_itself(self, tmp_path: Path, at: float) -> None:
        files = {"0-ubyte.gz": gzip.compress(idx(STACK)), "1-ubyte.gz": damaged(gzip.compress(idx(STACK)), at)}
        listing, found = everything(entry(write_folder(tmp_path / "f", files), "idx"))
        of = dict(zip(listing.columns["sample_id"], found, strict=True))
        assert {reason(sample) for name, sample in of.items() if name.startswith("1")} == {"unreadable"}
        np.testing.assert_array_equal(np.stack([of[f"0-ubyte.gz#{i}"] for i in range(len(STACK))]), STACK)

    def test_of_labels(self, tmp_path: Path) -> None:
        files = {"images-ubyte": idx(IMAGES), "labels-ubyte.gz": damaged(gzip.compress(idx(CODES)), 0.999)}
        made = entry(
            write_folder(tmp_path / "f", files),
            "idx",
            labels={"companion": {"replace": "images-ubyte", "by": "labels-ubyte.gz"}},
        )
        with pytest.raises(SourceError, match="the labels cannot be read: labels-ubyte"):
            scan(made, Path())

    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
    @pytest.mark.parametrize("at", [0.3, 0.7])
    def test_of_a_tar(self, tmp_path: Path, suffix: str, at: float) -> None:
        files = {f"{i}.npy": npy(STACK[i : i + 10]) for i in range(0, 40, 10)}
        path = write_tar(tmp_path / f"a.tar.{suffix}", files)
        path.write_bytes(damaged(path.read_bytes(), at))
        with pytest.raises(SourceError, match=r"changed since it was packed|cannot be listed as \.tar"):
            scan(entry(path, "arrays"), Path())

    def test_of_a_tar_that_has_more_behind_it(self, tmp_path: Path) -> None:
        files = {f"{i}.npy": npy(STACK[i : i + 10]) for i in range(0, 40, 10)}
        path = write_tar(tmp_path / "a.tar.gz", files)
        path.write_bytes(path.read_bytes() + b"more")
        np.testing.assert_array_equal(np.stack(everything(entry(path, "arrays"))[1]), STACK)

    @pytest.mark.parametrize("suffix", ["gz", "xz"])
    def test_of_a_tar_that_breaks_off(self, tmp_path: Path, suffix: str) -> None:
        """A block was lost on the way: what comes behind it is noise that unpacks, up to where it breaks off."""
        files = {f"{i}.npy": npy(STACK[i : i + 10]) for i in range(0, 40, 10)}
        path = write_tar(tmp_path / f"a.tar.{suffix}", files)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        with pytest.raises(SourceError, match="it breaks off, or was changed since it was packed"):
            scan(entry(path, "arrays"), Path())

    def test_of_a_member_that_breaks_off(self, tmp_path: Path) -> None:
        packed = gzip.compress(npy(STACK))
        files = {"0.npy.gz": packed, "1.npy.gz": packed[: len(packed) * 9 // 10]}
        listing, found = everything(entry(write_folder(tmp_path / "f", files), "arrays"))
        bad = {str(name) for name, sample in zip(listing.columns["member"], found, strict=True) if reason(sample)}
        assert bad == {"1.npy.gz"}

    def test_blocks_of_bzip2_have_their_own(self, tmp_path: Path) -> None:
        stack = np.random.default_rng(6).integers(0, 256, (300, 64, 64), dtype=np.uint8)
        path = write_tar(tmp_path / "a.tar.bz2", {"0.npy": npy(stack[:200]), "1.npy": npy(stack[200:])})
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 9 // 10])
        _, found = everything(entry(path, "arrays"))
        good = [sample for sample in found if not isinstance(sample, RecordError)]
        assert len(good) >= 200
        np.testing.assert_array_equal(np.stack(good), stack[: len(good)])

    @pytest.mark.parametrize("at", [0.6, 0.9])
    def test_of_a_member_of_a_zip(self, tmp_path: Path, at: float) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("0.npy", npy(STACK))
            made.writestr("1.npy", npy(STACK[::-1]))
        path.write_bytes(damaged(path.read_bytes(), at))
        listing, found = everything(entry(path, "arrays"))
        bad = {name for name, sample in zip(listing.columns["member"], found, strict=True) if reason(sample)}
        assert bad == {"1.npy"}
        assert sum(not reason(sample) for sample in found) == len(STACK)

    def test_is_met_once_in_a_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = entry(write_folder(tmp_path / "f", {"0-ubyte.gz": gzip.compress(idx(STACK))}), "idx")
        listing = scan(made, Path())
        monkeypatch.setattr("scattercube.pipeline.sources.archives.archive.drain", _never)
        assert len(list(read(made, Path(), listing.columns))) == len(STACK)


def _never(*_: Any) -> None:
    raise AssertionError("it was unpacked to its end before")


class TestPictures:
    def test_without_pixels_decide_nothing(self, tmp_path: Path) -> None:
        import tifffile

        buffer = io.BytesIO()
        tifffile.imwrite(buffer, IMAGES[0])
        content = bytearray(buffer.getvalue())
        with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
            at = file.pages[0].tags["ImageLength"].valueoffset
        content[at : at + 2] = bytes(2)
        path = write_folder(tmp_path / "f", {"0.tif": bytes(content), "1.tif": buffer.getvalue()})
        listing, found = everything(entry(path))
        assert listing.layout.shape == IMAGES[0].shape
        assert [reason(sample) for sample in found][1:] == [""]
        assert reason(found[0])

    @pytest.mark.parametrize("where", ["length", "kind", "checksum", "data"])
    def test_bits_of_a_png(self, tmp_path: Path, where: str) -> None:
        whole = png(IMAGES[0])
        start = whole.index(b"IDAT")
        at = {"length": start - 1, "kind": start + 1, "data": start + 20, "checksum": whole.index(b"IEND") - 6}[where]
        bad = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        _, found = everything(entry(write_folder(tmp_path / "f", {"0.png": whole, "1.png": bad})))
        for sample in found:
            if not isinstance(sample, RecordError):
                np.testing.assert_array_equal(sample, IMAGES[0])

    def test_a_png_that_only_its_checksum_betrays(self, tmp_path: Path) -> None:
        """Pillow checks those of all chunks but of those with the pixels."""
        good, other = (png(image) for image in IMAGES[:2])
        bad = good[: good.index(b"IDAT") - 4] + other[other.index(b"IDAT") - 4 : -16] + good[-16:]
        _, found = everything(entry(write_folder(tmp_path / "f", {"0.png": good, "1.png": bad, "2.png": other})))
        assert [reason(sample) for sample in found] == ["", "unreadable", ""]
        assert "checksum of its IDAT chunk at byte 33 does not fit" in str(found[1])


class TestTables:
    def test_whose_heading_is_no_text(self, tmp_path: Path) -> None:
        files = {"a.png": png(IMAGES[0]), "t.csv": b"\xff\xfen\x00a\x00,\x00b\n1,2\n"}
        made = entry(
            write_folder(tmp_path / "f", files), labels={"table": {"file": "t.csv", "key": "name", "label": "b"}}
        )
        with pytest.raises(SourceError, match=r"labels\.table: t\.csv cannot be read: 'utf-8'"):
            scan(made, Path())


class TestTiles:
    @pytest.mark.parametrize("kind", ["PLIO_1", "HCOMPRESS_1"])
    def test_of_decoders_that_believe_what_a_tile_says(self, tmp_path: Path, kind: str) -> None:
        pixels = np.arange(23 * 31, dtype=np.int16).reshape(23, 31)
        content = as_bytes(compressed(pixels, "SCI", PLACE, compression_type=kind, tile_shape=(23, 31)))
        heads = {"PLIO_1": np.array([0, 7, -100], ">i2").tobytes(), "HCOMPRESS_1": b"\xdd\x99"}
        at = content.index(heads[kind]) + (6 if kind == "PLIO_1" else 2)
        bad = content[:at] + b"\x7f\xff" + content[at + 2 :]
        path = write_folder(tmp_path / "f", {"0.fits": content, "1.fits": bad})
        _, found = everything(entry(path, "sky"))
        np.testing.assert_array_equal(found[0], pixels)
        assert reason(found[1]) == "unreadable"
        assert f"tile 0, {kind}: its head does not fit its size" in str(found[1])

    def test_that_are_of_another_kind_than_the_header_says(self, tmp_path: Path) -> None:
        content = as_bytes(compressed(np.arange(23 * 31, dtype=np.int16).reshape(23, 31), "SCI", PLACE))
        path = write_folder(tmp_path / "f", {"0.fits": content.replace(b"'RICE_1  '", b"'PLIO_1  '")})
        listing = scan(entry(path, "sky"), Path())
        first, second = (next(read(entry(path, "sky"), Path(), listing.columns)) for _ in range(2))
        assert [reason(first), reason(second)] == ["unreadable"] * 2


@pytest.mark.parametrize("resolution", [1e-3, 1e-9, 1e-300])
def test_a_grid_of_more_tiles_than_can_be_listed(tmp_path: Path, resolution: float) -> None:
    path = write_folder(tmp_path / "f", {"m.fits": as_bytes(sphere("RING", 8))})
    made = entry(path, "sky", sky={"healpix": {"tile": 2, "resolution": resolution}})
    with pytest.raises((EntryError, SourceError), match="leave gaps in a grid of nside 1024"):
        scan(made, Path())


def test_every_base_is_read_whole() -> None:
    """A damage that makes no difference would say nothing of a base that is refused anyway."""
    from tests.fuzz import control
    from tests.fuzz_cases import BASES

    for name in BASES:
        listing, known = control(name, "folder")
        assert len(known) == len(listing.columns["sample_id"]) > 0
        assert base(name).files
