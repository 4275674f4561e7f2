"""Recordings: any window has the bits of the whole, in every codec and at every rate; what is cut short is refused."""

import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError, SourceError
from scattercube.pipeline.sources import Listing, load_entry, read, scan
from scattercube.pipeline.sources.archives import archive as archives
from scattercube.pipeline.sources.archives import containers
from scattercube.pipeline.sources.sounds import recordings
from scattercube.pipeline.spec import parse
from tests.test_sources import CountingReads, reason, write_folder, write_tar, write_zip, written

RATE = 8000


def entry(location: Path | str, **fields: Any) -> Entry:
    base = {"name": "tiny", "title": "tiny", "licence": "CC0-1.0", "reader": "audio", "location": str(location)}
    return parse(Entry, base | fields, "the test", EntryError)


def everything(made: Entry, root: Path = Path()) -> tuple[Listing, list[np.ndarray | RecordError]]:
    listing = scan(made, root)
    return listing, list(read(made, root, listing.columns))


def sound(n: int, n_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise with more low than high, ``(frame, channel)`` in 16-bit steps, so that PCM keeps it as it is."""
    noise = np.random.default_rng(seed).normal(size=(n, n_channels)).astype(np.float32)
    smooth = (noise + np.roll(noise, 1, axis=0) + np.roll(noise, 2, axis=0)) / 3
    return np.clip(np.rint(smooth * 0.2 * 2**15), -(2**15), 2**15 - 1) / np.float32(2**15)


def encoded(x: np.ndarray, kind: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    form, subtype = KINDS[kind]
    soundfile.write(buffer, x, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """What libsndfile makes of a whole file, in one piece: ``(frame, channel)``."""
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0]


def wav(x: np.ndarray, rate: int = RATE) -> bytes:
    return encoded(x, "wav", rate)


def forget() -> None:
    """Close what this thread has open, as if it were another."""
    recordings._last.key, recordings._last.recording = (), None


KINDS = {
    "wav": ("WAV", "PCM_16"),
    "u8.wav": ("WAV", "PCM_U8"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "double.wav": ("WAV", "DOUBLE"),
    "ulaw.wav": ("WAV", "ULAW"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "wavex.wav": ("WAVEX", "PCM_16"),
    "rf64.wav": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "24.flac": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
LOSSLESS = [kind for kind in KINDS if kind not in ("u8.wav", "ulaw.wav", "adpcm.wav", "ogg", "opus", "mp3")]


def without_counts(content: bytes) -> bytes:
    """An MP3 without its first frame, which says how many follow."""
    assert b"Xing" in content[:64]
    return content[content.index(content[:2], 4) :]


class TestContract:
    @pytest.mark.parametrize("kind", KINDS)
    def test_scan_agrees_with_read_and_both_with_libsndfile(self, tmp_path: Path, kind: str) -> None:
        content = encoded(sound(30000), kind)
        listing, (sample,) = everything(entry(written(tmp_path / f"a.{kind}", content)))
        layout = listing.layout
        assert (layout.dims, layout.spacing, layout.units) == (("time",), (1 / RATE,), ("s",))
        assert (sample.shape, sample.dtype) == (layout.shape, layout.dtype) == (layout.shape, np.float32)
        assert listing.columns["source_rate"].tolist() == [RATE]
        assert listing.columns["duration"].tolist() == [len(sample) / RATE]
        assert listing.columns["sample_id"].tolist() == [f"a.{kind}"]
        # Reading in one piece, MP3 of libsndfile rounds otherwise.
        np.testing.assert_allclose(sample, decoded(content)[:, 0], atol=3e-7 if kind == "mp3" else 0)
        if kind in LOSSLESS:
            np.testing.assert_array_equal(sample, sound(30000)[:, 0])

    @pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
    @pytest.mark.parametrize("in_place", [False, True])
    def test_any_archive(self, tmp_path: Path, kind: str, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if in_place:
            monkeypatch.setattr(recordings, "_WHOLE_NBYTES", 0)
        files = {f"{kind}/{i}.{kind}": encoded(sound(9000, seed=i), kind) for i in range(3) for kind in ("wav", "ogg")}
        write: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {"folder": write_folder, "zip": write_zip}
        made = entry(write.get(kind, write_tar)(tmp_path / f"a.{kind}", files), labels={"folder": True})
        listing, found = everything(made)
        assert sorted(listing.columns["label"]) == ["ogg"] * 3 + ["wav"] * 3
        for name, sample in zip(listing.columns["member"], found, strict=True):
            np.testing.assert_array_equal(sample, decoded(files[name])[:, 0])
        forget()
        backwards = {name: values[::-1] for name, values in listing.columns.items()}
        np.testing.assert_array_equal(np.stack(list(read(made, Path(), backwards)))[::-1], np.stack(found))

    def test_a_compressed_archive_is_unpacked_once_by_ascending_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also in a worker, which did not list it."""
        files = {f"{i:02d}.{kind}": encoded(sound(40000, seed=i), kind) for i in range(12) for kind in ("wav", "flac")}
        made = entry(write_tar(tmp_path / "a.tar.gz", files))
        listing = scan(made, Path())
        archives._open_file.cache_clear()
        opened: list[str] = []
        unpack = containers._UNPACK[".gz"]
        monkeypatch.setitem(
            containers._UNPACK, ".gz", lambda source: opened.append(str(source)) or CountingReads(unpack(source))
        )
        CountingReads.rewinds = 0
        with ThreadPoolExecutor(1) as pool:  # a thread of its own has no stream from before
            for row in range(24):
                rows = {name: values[row : row + 1] for name, values in listing.columns.items()}
                assert not reason(pool.submit(lambda rows: next(read(made, Path(), rows)), rows).result())
        assert CountingReads.rewinds <= 3  # to list it, to see what decides rate and length, to begin

    def test_threads_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        files = {f"{i}.{kind}": encoded(sound(20000, seed=i), kind) for i in range(3) for kind in ("flac", "ogg")}
        made = entry(write_zip(tmp_path / "a.zip", files), sample={"segments": {"seconds": 0.3}}, audio={"rate": 5000})
        listing, whole = everything(made)

        def one_by_one(order: Sequence[int]) -> list[np.ndarray | RecordError]:
            rows = [{name: values[row : row + 1] for name, values in listing.columns.items()} for row in order]
            return [next(read(made, Path(), row)) for row in rows]

        with ThreadPoolExecutor(2) as pool:
            up, down = pool.map(one_by_one, (range(len(whole)), range(len(whole))[::-1]))
        np.testing.assert_array_equal(np.stack(up), np.stack(whole))
        np.testing.assert_array_equal(np.stack(down[::-1]), np.stack(whole))

    def test_workers_that_read_images_load_no_libsndfile(self) -> None:
        code = "import sys; import scattercube.pipeline.ingest; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not {"soundfile", "soxr"} & set(loaded)


@pytest.mark.parametrize("kind", ["wav", "adpcm.wav", "flac", "ogg", "opus", "mp3", "22.mp3"])
@pytest.mark.parametrize("rate", [None, 16000])
def test_any_window_has_the_bits_of_the_whole(tmp_path: Path, kind: str, rate: int | None) -> None:
    """Also where another thread reads it, from the start or after others, in any order."""
    kind, stored = ("mp3", 22050) if kind == "22.mp3" else (kind, {"ogg": 44100, "mp3": 44100}.get(kind, 16000))
    content = encoded(sound(150_000, 2), kind, stored)
    path = written(tmp_path / f"a.{kind}", content)
    made = entry(path, audio={"rate": rate} if rate else {})
    listing, (whole,) = everything(made)
    n, rng = len(whole), random.Random(kind)
    for step in range(60):
        if step % 3 == 0:
            forget()
        start = rng.randrange(n - 1)
        window = slice(start, rng.randrange(start + 1, min(n, start + 9000) + 1))
        np.testing.assert_array_equal(next(read(made, Path(), listing.columns, (window,))), whole[window])
    cut = entry(path, sample={"segments": {"seconds": 0.7, "hop": 0.31}}, audio=made.audio and made.audio.model_dump())
    segments, found = everything(cut)
    assert len(found) >= 8
    for start, sample in zip(segments.columns["start"], found, strict=True):
        np.testing.assert_array_equal(sample, whole[start : start + len(sample)])


class TestResampling:
    @pytest.mark.parametrize(
        ("stored", "rate"),
        [(44100, 16000), (16000, 44100), (48000, 8000), (8000, 16000), (11025, 16000), (44101, 16000), (48000, 400)],
    )
    def test_equals_soxr_in_one_piece(self, tmp_path: Path, stored: int, rate: int) -> None:
        """To the last bits of float32: soxr's rounding depends on how its blocks lie."""
        x = sound(stored * 9 + 17, 1)
        listing, (sample,) = everything(entry(written(tmp_path / "a.wav", wav(x, stored)), audio={"rate": rate}))
        expected = soxr.resample(x[:, 0], stored, rate, quality="VHQ")
        assert sample.shape == expected.shape == listing.layout.shape
        np.testing.assert_allclose(sample, expected, atol=1e-6)
        assert listing.layout.spacing == (1 / rate,)
        assert listing.columns["source_rate"].tolist() == [stored]

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_windows_of_any_ratio(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        stored, rate = (data.draw(st.sampled_from([400, 441, 8000, 11025, 16000, 44100, 48000])) for _ in range(2))
        n = data.draw(st.integers(1, 200_000))
        path = written(tmp_path_factory.mktemp("a") / "a.wav", wav(sound(n), stored))
        made = entry(path, audio={"rate": rate, "channels": "keep"})
        try:
            listing = scan(made, Path())
        except SourceError:
            assert recordings.Header(n, stored, 1, None, None, False).length(rate) == 0  # type: ignore[arg-type]
            return
        (whole,) = read(made, Path(), listing.columns)
        assert not isinstance(whole, RecordError)
        start = data.draw(st.integers(0, len(whole) - 1))
        window = slice(start, data.draw(st.integers(start + 1, len(whole))))
        forget()
        np.testing.assert_array_equal(next(read(made, Path(), listing.columns, (window,))), whole[window])

    def test_a_tone_keeps_its_place_and_height(self, tmp_path: Path) -> None:
        tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * 44100) / 44100)).astype(np.float32)
        made = entry(written(tmp_path / "a.wav", encoded(tone, "float.wav", 44100)), audio={"rate": 16000})
        (sample,) = everything(made)[1]
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(sample)) / 16000)
        np.testing.assert_allclose(sample[2000:-2000], expected[2000:-2000], atol=2e-6)

    def test_what_is_not_finite_spoils_its_neighbourhood_and_no_more(self, tmp_path: Path) -> None:
        x = sound(200_000)
        x[100_000] = np.nan
        clean = entry(written(tmp_path / "a.wav", encoded(np.nan_to_num(x), "float.wav")), audio={"rate": 12000})
        holed = entry(
            written(tmp_path / "b.wav", encoded(x, "float.wav")),
            audio={"rate": 12000},
            sample={"exact": True, "missing": True},
        )
        (expected,), (sample,) = everything(clean)[1], everything(holed)[1]
        bad = np.flatnonzero(np.isnan(sample))
        assert 300 < bad[-1] - bad[0] + 1 == len(bad) < 1000
        assert abs((bad[0] + bad[-1]) / 2 - 150_000) < 2
        np.testing.assert_array_equal(np.delete(sample, bad), np.delete(expected, bad))
        made = entry(tmp_path / "b.wav", audio={"rate": 12000}, sample={"segments": {"seconds": 1}})
        assert [reason(one) for one in everything(made)[1]].count("non-finite") == 1


class TestPolicies:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        """Four recordings of 1 s, 1.5 s, 0.25 s and 1 s."""
        lengths = (8000, 12000, 2000, 8000)
        return write_folder(
            tmp_path / "m", {f"{i}.wav": wav(sound(length, seed=i)) for i, length in enumerate(lengths)}
        )

    def test_exact_quarantines_other_lengths(self, mixed: Path) -> None:
        listing, found = everything(entry(mixed))
        assert listing.layout.shape == (8000,)
        assert [reason(sample) for sample in found] == ["", "wrong-shape", "wrong-shape", ""]
        assert "1.wav: 12000 samples; expected 8000" in str(found[1])

    def test_clip_is_the_middle_or_stands_amid_zeros(self, mixed: Path) -> None:
        listing, found = everything(entry(mixed, sample={"clip": {"seconds": 0.5}}))
        assert listing.layout.shape == (4000,)
        np.testing.assert_array_equal(found[0], sound(8000, seed=0)[2000:6000, 0])
        np.testing.assert_array_equal(found[1], sound(12000, seed=1)[4000:8000, 0])
        np.testing.assert_array_equal(found[2][1000:3000], sound(2000, seed=2)[:, 0])
        assert not found[2][:1000].any()
        assert not found[2][3000:].any()

    @given(n=st.integers(1, 400), length=st.integers(1, 400), data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_windows_of_a_clip(
        self, tmp_path_factory: pytest.TempPathFactory, n: int, length: int, data: st.DataObject
    ) -> None:
        path = written(tmp_path_factory.mktemp("c") / "a.wav", wav(sound(n)))
        made = entry(path, sample={"clip": {"seconds": length / RATE}})
        listing, (whole,) = everything(made)
        before = (length - n) // 2 if length > n else 0
        middle = sound(n)[(n - length) // 2 :, 0][:length] if n >= length else sound(n)[:, 0]
        np.testing.assert_array_equal(whole, np.pad(middle, (before, length - len(middle) - before)))
        start = data.draw(st.integers(0, length - 1))
        window = slice(start, data.draw(st.integers(start + 1, length)))
        np.testing.assert_array_equal(next(read(made, Path(), listing.columns, (window,))), whole[window])

    @given(n=st.integers(1, 400), length=st.integers(1, 100), hop=st.none() | st.integers(1, 120))
    @settings(max_examples=60, deadline=None)
    def test_segments_are_all_that_fit(
        self, tmp_path_factory: pytest.TempPathFactory, n: int, length: int, hop: int | None
    ) -> None:
        path = written(tmp_path_factory.mktemp("s") / "a.wav", wav(sound(n)))
        policy = {"seconds": length / RATE} | ({"hop": hop / RATE} if hop else {})
        listing, found = everything(entry(path, sample={"segments": policy}))
        if n < length:
            assert [reason(sample) for sample in found] == ["wrong-shape"]
            assert f"{n} samples; need at least {length}" in str(found[0])
            return
        windows = np.lib.stride_tricks.sliding_window_view(sound(n)[:, 0], length)[:: hop or length]
        np.testing.assert_array_equal(np.stack(found), windows)
        start, t0 = listing.columns["start"], listing.columns["t0"]
        assert (start.dtype, t0.dtype) == (np.int64, np.float64)
        np.testing.assert_array_equal(start, np.arange(len(windows)) * (hop or length))
        np.testing.assert_array_equal(t0, start / RATE)
        assert listing.columns["sample_id"].tolist() == [f"a.wav@{at}" for at in start]

    def test_segments_of_a_resampled_recording_are_counted_at_its_new_rate(self, mixed: Path) -> None:
        listing, found = everything(entry(mixed, sample={"segments": {"seconds": 0.5}}, audio={"rate": 16000}))
        assert listing.columns["start"].tolist() == [0, 8000, 0, 8000, 16000, 0, 0, 8000]
        assert listing.columns["t0"].tolist() == [0, 0.5, 0, 0.5, 1, 0, 0, 0.5]
        assert [reason(sample) for sample in found] == [""] * 5 + ["wrong-shape"] + [""] * 2

    def test_another_rate_is_refused_or_resampled(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "r", {"a.wav": wav(sound(8000)), "b.wav": wav(sound(16000), 16000)})
        for policy in ({"exact": True}, {"clip": {"seconds": 1}}, {"segments": {"seconds": 1}}):
            _, found = everything(entry(path, sample=policy))
            assert [reason(sample) for sample in found] == ["", "wrong-shape"]
            assert str(found[1]) == (
                "b.wav: rate 16000 Hz; the archive's first recording has 8000 Hz; to resample all, set audio.rate"
            )
            listing, found = everything(entry(path, sample=policy, audio={"rate": 4000}))
            assert [sample.shape for sample in found] == [(4000,), (4000,)]
            assert listing.columns["source_rate"].tolist() == [8000, 16000]

    def test_channels(self, tmp_path: Path) -> None:
        x, mono = sound(8000, 2), sound(8000, seed=1)
        path = write_folder(tmp_path / "c", {"a.wav": wav(x), "b.wav": wav(mono)})
        listing, found = everything(entry(path))
        np.testing.assert_array_equal(found[0], (x[:, 0] + x[:, 1]) / 2)
        np.testing.assert_array_equal(found[1], mono[:, 0])
        assert any("the mean of 2 channels" in note and "a.wav" in note for note in listing.notes)
        listing, found = everything(entry(path, audio={"channels": "first"}))
        np.testing.assert_array_equal(found[0], x[:, 0])
        assert any("the first of 2 channels" in note for note in listing.notes)
        kept = entry(path, audio={"channels": "keep"})
        listing, found = everything(kept)
        assert (listing.layout.dims, listing.layout.shape) == (("channel", "time"), (2, 8000))
        assert listing.layout.channels == ("channel0", "channel1")
        np.testing.assert_array_equal(found[0], x.T)
        assert "b.wav: 1 channels; the archive's first recording has 2" in str(found[1])
        window = next(read(kept, Path(), listing.columns, (slice(100, 300),)))
        np.testing.assert_array_equal(window, x.T[:, 100:300])

    def test_channels_are_resampled_each(self, tmp_path: Path) -> None:
        x = sound(30000, 3)
        made = entry(written(tmp_path / "a.wav", wav(x)), audio={"channels": "keep", "rate": 6000})
        (sample,) = everything(made)[1]
        for channel in range(3):
            expected = soxr.resample(x[:, channel], 8000, 6000, quality="VHQ")
            np.testing.assert_allclose(sample[channel], expected, atol=1e-6)

    def test_columns_of_a_table_do_not_take_the_place_of_the_reader_s(self, tmp_path: Path) -> None:
        table = b"file,start,duration,source_rate\na,5,6,7\n"
        path = write_folder(tmp_path / "t", {"a.wav": wav(sound(8000)), "t.csv": table})
        made = entry(
            path,
            sample={"segments": {"seconds": 0.5}},
            labels={"table": {"file": "t.csv", "key": "file", "match": "stem"}},
        )
        columns = everything(made)[0].columns
        assert columns["start"].tolist() == [0, 4000]
        assert columns["meta_start"].tolist() == [5, 5]
        assert columns["duration"].tolist() == [1, 1]


class TestLongRecordings:
    """Hours of sound, of which a window takes the memory of a window."""

    n = 4 * 3600 * RATE  # 115 million frames, 230 MB

    def peak(self, made: Entry, windows: Sequence[slice]) -> tuple[int, list[np.ndarray]]:
        listing = scan(made, Path())
        assert listing.columns["duration"][0] == self.n / RATE
        forget()
        tracemalloc.start()
        try:
            found = [next(read(made, Path(), listing.columns, (window,))) for window in windows]
            return tracemalloc.get_traced_memory()[1], found
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("rate", [None, 5000])
    @pytest.mark.parametrize("packed", [False, True])
    def test_wav(self, tmp_path: Path, rate: int | None, packed: bool) -> None:
        head = wav(sound(0))
        marks = sound(2000)[:, 0]
        path = tmp_path / "a.wav"
        with path.open("wb") as file:  # with a hole: it takes no space
            file.write(head[:4] + struct.pack("<I", 36 + 2 * self.n) + head[8:40] + struct.pack("<I", 2 * self.n))
            for at in (0, self.n // 2, self.n - len(marks)):
                file.seek(44 + 2 * at)
                file.write((marks * 2**15).astype("<i2").tobytes())
        place = write_tar(tmp_path / "a.tar", {"a.wav": path.read_bytes()}) if packed else path
        made = entry(place, audio={"rate": rate} if rate else {})
        half = self.n // 2 * (rate or RATE) // RATE
        windows = [slice(0, 2000), slice(half, half + 2000), slice(2 * half - 2000, 2 * half)]
        peak, found = self.peak(made, windows)
        assert peak < 12e6
        if rate is None:
            for sample in found:
                np.testing.assert_array_equal(sample, marks)
        else:
            np.testing.assert_allclose(found[1][:900], soxr.resample(marks, RATE, rate, "VHQ")[:900], atol=0.2)
            assert not found[1][1500:].any() or abs(found[1][1500:]).max() < 1e-5

    def test_flac(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="FLAC") as file:
            minute = np.rint(2**12 * np.sin(np.arange(60 * RATE) / 9)).astype(np.int16)
            for _ in range(4 * 60):
                file.write(minute)
        peak, found = self.peak(entry(path), [slice(self.n - 3000, self.n), slice(60 * RATE, 60 * RATE + 3000)])
        assert peak < 30e6  # the file itself is held: it is below 16 MiB as it is stored
        np.testing.assert_array_equal(found[0], (minute / np.float32(2**15))[-3000:])
        np.testing.assert_array_equal(found[1], (minute / np.float32(2**15))[:3000])


class TestCutShort:
    """libsndfile decodes what is left of most of these and says nothing."""

    def refused(self, path: Path, good: bytes, bad: bytes, suffix: str, **fields: Any) -> str:
        archive = write_tar(path / "a.tar", {f"0.{suffix}": good, f"1.{suffix}": bad, f"2.{suffix}": good})
        forget()
        _, found = everything(entry(archive, **fields))
        assert [isinstance(sample, RecordError) for sample in found] == [False, True, False], found
        np.testing.assert_array_equal(found[0], found[2])
        assert f"1.{suffix}: " in str(found[1])
        return reason(found[1])

    @pytest.mark.parametrize("kind", [*KINDS, "plain.mp3"])
    @pytest.mark.parametrize("policy", [{"exact": True}, {"clip": {"seconds": 0.5}}], ids=["exact", "clip"])
    def test_at_any_byte(self, tmp_path: Path, kind: str, policy: dict[str, Any]) -> None:
        good = encoded(sound(24000), kind.removeprefix("plain."))
        good = without_counts(good) if kind == "plain.mp3" else good
        rng = random.Random(kind)
        for nbytes in {0, 1, 3, 11, 40, len(good) - 1, *(rng.randrange(len(good)) for _ in range(8))}:
            assert self.refused(tmp_path, good, good[:nbytes], kind, sample=policy) == "unreadable"

    @pytest.mark.parametrize("kind", ["wav", "rf64.wav", "ogg", "mp3"])
    def test_in_segments_it_is_refused_as_a_whole(self, tmp_path: Path, kind: str) -> None:
        good = encoded(sound(24000), kind)
        made = entry(
            write_folder(tmp_path / "a", {f"0.{kind}": good, f"1.{kind}": good[: len(good) * 2 // 3]}),
            sample={"segments": {"seconds": 1}},
        )
        assert [reason(sample) for sample in everything(made)[1]] == ["", "", "", "unreadable"]

    def test_in_segments_a_flac_gives_what_is_before_the_break(self, tmp_path: Path) -> None:
        good = encoded(sound(80000), "flac")
        path = written(tmp_path / "a.flac", good[: len(good) * 2 // 3])
        _, found = everything(entry(path, sample={"segments": {"seconds": 1}}))
        assert len(found) == 10
        n_good = [reason(sample) for sample in found].index("unreadable")
        assert 4 < n_good < 8
        assert {reason(sample) for sample in found[n_good:]} == {"unreadable"}
        np.testing.assert_array_equal(np.concatenate(found[:n_good]), sound(80000)[: n_good * RATE, 0])

    def test_the_message_says_what_is_missing(self, tmp_path: Path) -> None:
        good = wav(sound(8000))
        path = write_folder(tmp_path / "a", {"0.wav": good, "1.wav": good[:-500]})
        found = everything(entry(path))[1]
        assert str(found[1]) == "1.wav: promises 16000 bytes of sound, 15500 are there; is it complete?"

    def test_an_mp3_without_counts_is_counted(self, tmp_path: Path) -> None:
        """Its length is taken by libsndfile for that of a constant bit rate: here, for a third of what is there."""
        counted = encoded(np.concatenate([sound(100_000), 0.01 * sound(200_000)]), "mp3", 44100)
        plain = without_counts(counted)
        listing, (sample,) = everything(entry(written(tmp_path / "a.mp3", plain)))
        assert len(decoded(plain)) < 0.9 * 300_000 < 300_000 <= len(sample) < 303_000
        whole = decoded(counted)[:, 0]
        # The encoder's delay is in the counts, too.
        delay = next(d for d in range(3000) if np.allclose(sample[d + 50_000 : d + 51_000], whole[50_000:51_000]))
        np.testing.assert_allclose(sample[delay : delay + 299_000], whole[:299_000], atol=1e-6)
        assert listing.layout.shape == sample.shape

    @pytest.mark.parametrize("kind", ["mp3", "plain.mp3", "flac"])
    def test_tags_around_the_sound_are_no_sound(self, tmp_path: Path, kind: str) -> None:
        good = encoded(sound(24000), kind.removeprefix("plain."))
        good = without_counts(good) if kind == "plain.mp3" else good
        tagged = b"ID3\x03\x00\x00\x00\x00\x02\x00" + bytes(256) + good
        tagged += b"TAG" + bytes(125) if kind != "flac" else b""
        path = write_folder(tmp_path / "a", {f"0.{kind}": good, f"1.{kind}": tagged})
        found = everything(entry(path))[1]
        np.testing.assert_array_equal(found[0], found[1])


class TestStreamed:
    """Files that were written into a pipe, or whose recorder lost power, do not know their length."""

    @pytest.mark.parametrize(
        ("riff_size", "data_size"),
        [(0, 0), (36, 0), (2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000), (2**31 + 35, 2**31 - 1), (0, 2**32 - 1)],
    )
    def test_wav(self, tmp_path: Path, riff_size: int, data_size: int) -> None:
        content = wav(sound(5000))
        content = (
            content[:4] + struct.pack("<I", riff_size) + content[8:40] + struct.pack("<I", data_size) + content[44:]
        )
        (sample,) = everything(entry(written(tmp_path / "a.wav", content)))[1]
        np.testing.assert_array_equal(sample, sound(5000)[:, 0])

    def test_rf64(self, tmp_path: Path) -> None:
        content = encoded(sound(5000), "rf64.wav")
        content = content[:20] + bytes(24) + content[44:]
        (sample,) = everything(entry(written(tmp_path / "a.wav", content)))[1]
        np.testing.assert_array_equal(sample, sound(5000)[:, 0])

    def test_flac(self, tmp_path: Path) -> None:
        content = bytearray(encoded(sound(100_000), "flac"))
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        made = entry(written(tmp_path / "a.flac", bytes(content)), sample={"segments": {"seconds": 1, "hop": 3}})
        _, found = everything(made)
        for index, sample in enumerate(found):
            np.testing.assert_array_equal(sample, sound(100_000)[index * 24000 : index * 24000 + 8000, 0])
        assert len(found) == 4


class TestDamage:
    def test_no_sound_at_all_is_a_row(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "a", {"0.wav": wav(sound(0)), "1.wav": wav(sound(100)), "2.wav": wav(sound(0))})
        listing, found = everything(entry(path))
        assert [reason(sample) for sample in found] == ["wrong-shape", "", "wrong-shape"]
        assert "0.wav: holds no sound: 0 frames" in str(found[0])
        assert np.isnan(listing.columns["duration"][[0, 2]]).all()
        with pytest.raises(SourceError, match="holds no sound"):
            scan(entry(written(tmp_path / "only.wav", wav(sound(0)))), Path())
        path = write_folder(tmp_path / "f", {"0.ogg": encoded(sound(0), "ogg"), "1.ogg": encoded(sound(9), "ogg")})
        assert [reason(sample) for sample in everything(entry(path))[1]] == ["wrong-shape", ""]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"<html>404</html>", "begins with b'<htm'"),
            (b"RIFF\x04\x00\x00\x00WAVE", "a chunk of sound"),
            (b"fLaC" + bytes(50), "a.wav: "),
            (b"OggS" + bytes(50), "promises a last page"),
            (b"\xff\xfd\x90\x04" + bytes(500), "MPEG layer III"),
            (b"FORM\x00\x00\x00\x00AIFF", "expected WAV, FLAC, Ogg or MP3"),
        ],
    )
    def test_what_is_no_sound_file(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = write_folder(tmp_path / "a", {"a.wav": content, "b.wav": wav(sound(100))})
        found = everything(entry(path))[1]
        assert [reason(sample) for sample in found] == ["unreadable", ""]
        assert message in str(found[0])

    def test_content_decides_not_the_name(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "a", {"a.wav": encoded(sound(100), "flac"), "b.flac": wav(sound(100))})
        np.testing.assert_array_equal(np.stack(everything(entry(path))[1]), [sound(100)[:, 0]] * 2)

    @pytest.mark.parametrize("kind", ["flac", "ogg", "opus"])
    def test_one_bit_of_a_codec_with_checksums(self, tmp_path: Path, kind: str) -> None:
        """A damaged page is dropped without a word: what is behind it would come early."""
        good, rng = encoded(sound(60000), kind), random.Random(kind)
        for _ in range(12):
            bad = bytearray(good)
            bad[rng.randrange(len(bad) // 3, len(bad) - 20)] ^= 1 << rng.randrange(8)
            forget()
            path = write_folder(tmp_path / "a", {f"0.{kind}": good, f"1.{kind}": bytes(bad)})
            assert [reason(sample) for sample in everything(entry(path))[1]] == ["", "unreadable"]

    def test_a_page_of_ogg_that_is_missing(self, tmp_path: Path) -> None:
        good = encoded(sound(400_000), "ogg")
        pages = good.split(b"OggS")
        bad = b"OggS".join(pages[:5] + pages[6:])
        path = write_folder(tmp_path / "a", {"0.ogg": good, "1.ogg": bad})
        found = everything(entry(path, sample={"clip": {"seconds": 1}}))[1]
        assert [reason(sample) for sample in found] == ["", "unreadable"]
        assert "expected 4" in str(found[1])

    def test_ogg_with_several_streams(self, tmp_path: Path) -> None:
        good = encoded(sound(9000), "ogg")
        other = encoded(sound(9000, seed=1), "ogg")
        assert good[14:18] != other[14:18]
        path = write_folder(tmp_path / "a", {"0.ogg": good, "1.ogg": good + other})
        found = everything(entry(path))[1]
        assert "several streams" in str(found[1])

    @pytest.mark.parametrize("plain", [False, True])
    def test_a_hole_in_an_mp3(self, tmp_path: Path, plain: bool) -> None:
        good = encoded(sound(100_000), "mp3", 44100)
        good = without_counts(good) if plain else good
        middle = len(good) // 2
        path = write_folder(
            tmp_path / "a", {"0.mp3": good, "1.mp3": good[:middle] + bytes(3000) + good[middle + 3000 :]}
        )
        found = everything(entry(path, sample={"clip": {"seconds": 0.1}}))[1]
        assert [reason(sample) for sample in found] == ["", "unreadable"]
        assert "no MPEG frame where one should begin" in str(found[1])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        x = sound(1000, 2)
        x[500, 1] = value
        path = write_folder(
            tmp_path / "a", {"0.wav": encoded(sound(1000, 2), "float.wav"), "1.wav": encoded(x, "float.wav")}
        )
        found = everything(entry(path))[1]
        assert [reason(sample) for sample in found] == ["", "non-finite"]
        assert "1.wav: 1 values" in str(found[1])
        kept = everything(entry(path, sample={"exact": True, "missing": True}))[1]
        assert np.flatnonzero(np.isnan(kept[1])).tolist() == [500]

    def test_a_bomb(self, tmp_path: Path) -> None:
        bomb = bytearray(encoded(sound(1000), "flac"))
        bomb[21] |= 0x0F
        bomb[22:26] = b"\xff" * 4  # 2^36 - 1 samples
        path = write_folder(tmp_path / "a", {"0.flac": encoded(sound(1000), "flac"), "1.flac": bytes(bomb)})
        _, found = everything(entry(path, sample={"segments": {"seconds": 0.1}}))
        assert [reason(sample) for sample in found] == ["", "too-large"]
        assert "promise 68719476735 × 1 values" in str(found[1])

    @pytest.mark.parametrize("rate", [1, 2**31 - 1])
    def test_rates_that_cannot_be(self, tmp_path: Path, rate: int) -> None:
        bad = bytearray(wav(sound(100_000)))
        bad[24:28] = struct.pack("<I", rate)
        path = write_folder(tmp_path / "a", {"0.wav": wav(sound(8000)), "1.wav": bytes(bad)})
        for policy in ({"exact": True}, {"segments": {"seconds": 0.5}}, {"clip": {"seconds": 0.5}}):
            _, found = everything(entry(path, sample=policy, audio={"rate": 8000}))
            assert reason(found[-1]) == "wrong-shape"
            assert len(found) <= 3

    def test_member_that_went_away_or_was_replaced(self, tmp_path: Path) -> None:
        path = write_folder(tmp_path / "a", {f"{i}.wav": wav(sound(1000, seed=i)) for i in range(3)})
        listing, before = everything(entry(path))
        (path / "0.wav").unlink()
        written(path / "2.wav", wav(sound(1001, seed=5)[1:]))
        os.utime(path / "2.wav", (1, 1))
        found = list(read(entry(path), Path(), listing.columns))
        assert reason(found[0]) == "missing"
        np.testing.assert_array_equal(found[1], before[1])
        np.testing.assert_array_equal(found[2], sound(1001, seed=5)[1:, 0])

    def test_bad_checksum_in_a_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as stored:
            for index in range(3):
                stored.writestr(f"{index}.wav", wav(sound(1000, seed=index)))
        content = bytearray(path.read_bytes())
        content[content.index(wav(sound(1000, seed=1))) + 500] ^= 1  # one bit of a sample: only the checksum can tell
        path.write_bytes(content)
        assert [reason(sample) for sample in everything(entry(path))[1]] == ["", "unreadable", ""]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("in_place", [False, True])
    def test_random_damage_is_never_more_than_a_named_error(
        self, tmp_path: Path, kind: str, in_place: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if in_place:
            monkeypatch.setattr(recordings, "_WHOLE_NBYTES", 0)
        whole, rng = encoded(sound(20000, 2), kind), random.Random(kind)
        names = [f"0.{kind}", f"1.{kind}"]
        for step in range(25):
            damaged = bytearray(whole)
            end = 200 if step % 2 else len(damaged)
            for _ in range(rng.randint(1, 5)):
                damaged[rng.randrange(end)] = rng.randrange(256)
            if rng.random() < 0.2:
                del damaged[rng.randrange(len(damaged)) :]
            write = rng.choice([write_zip, write_tar])
            path = write(tmp_path / ("a.zip" if write is write_zip else "a.tar"), {names[0]: whole, names[1]: damaged})
            os.utime(path, ns=(step, step))
            policy = rng.choice([{"exact": True}, {"clip": {"seconds": 1}}, {"segments": {"seconds": 0.2}}])
            made = entry(path, sample=policy, audio=rng.choice([{}, {"rate": 5000}]))
            listing, found = everything(made)
            for name, sample in zip(listing.columns["member"], found, strict=True):
                if isinstance(sample, RecordError):
                    assert name == names[1]
                    assert str(sample).startswith(f"{name}: ")
                else:
                    assert sample.shape == listing.layout.shape


class TestEntry:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"reader": "images", "audio": {"rate": 8000}}, "audio: is for the reader audio, not images"),
            ({"reader": "images", "sample": {"clip": {"seconds": 1}}}, "clip and segments are for recordings"),
            ({"reader": "arrays", "sample": {"segments": {"seconds": 1}}}, "clip and segments are for recordings"),
            ({"sample": {"crop": {"size": [2, 2]}}}, "recordings take exact, clip or segments"),
            ({"sample": {"resize": {"size": [2, 2]}}}, "recordings take exact, clip or segments"),
            ({"sample": {"patches": {"size": [2, 2]}}}, "recordings take exact, clip or segments"),
            ({"sample": {"exact": True, "channels": "keep"}}, "recordings take audio.channels: keep"),
            ({"audio": {"rate": 0}}, "audio.rate"),
            ({"audio": {"rate": 22050.5}}, "audio.rate"),
            ({"sample": {"clip": {"seconds": 0}}}, "sample.clip.seconds"),
            ({"labels": {"column": 0}}, "labels.column: is for the readers"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(EntryError, match=message):
            entry("a.wav", **fields)

    def test_a_clip_of_nothing(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.wav", wav(sound(100)))
        with pytest.raises(EntryError, match=r"1e-05 seconds at 8000 Hz are less than one sample"):
            scan(entry(path, sample={"clip": {"seconds": 1e-5}}), Path())

    def test_rates_and_channels_are_part_of_its_digest(self) -> None:
        digests = {entry("a", audio=audio).digest for audio in (None, {"rate": 1}, {"rate": 2}, {"channels": "first"})}
        assert len(digests) == 4


class TestInference:
    def inferred(self, path: Path) -> tuple[Entry, Listing, list[np.ndarray | RecordError]]:
        made = load_entry(str(path), Path())
        assert made.reader == "audio"
        return made, *everything(made)

    def test_recordings_of_one_length_in_folders(self, tmp_path: Path) -> None:
        files = {f"{kind}/{i}.wav": wav(sound(16000, seed=i)) for kind in ("dog", "cat") for i in range(3)}
        made, listing, found = self.inferred(write_tar(tmp_path / "My sounds.tar", files))
        assert made.name == "my-sounds"
        assert made.sample.exact
        assert made.audio is None
        assert sorted(set(listing.columns["label"])) == ["cat", "dog"]
        assert made.spec.model_dump(include={"transform", "J"}) == {"transform": "scattering1d", "J": 10}
        assert "6 recordings looked at are 2 s long; J=10, so that averages go over 0.128 s" in made.description
        assert not [one for one in found if isinstance(one, RecordError)]

    def test_other_lengths_rates_and_channels(self, tmp_path: Path) -> None:
        files = {f"{i}.flac": encoded(sound(4000 + 400 * i), "flac") for i in range(19)}
        files["20.flac"] = encoded(sound(44100, 2), "flac", 44100)
        made, listing, found = self.inferred(write_folder(tmp_path / "f", files))
        assert made.audio is not None
        assert made.audio.rate == 8000
        assert made.sample.clip is not None
        assert made.sample.clip.seconds == 1.3
        assert listing.layout.shape == (10400,)
        assert not [one for one in found if isinstance(one, RecordError)]
        for part in ("rates go from 8000 to 44100 Hz", "mean of the channels", "0.5 to 1.4 s long", "middle 1.3 s"):
            assert part in made.description

    def test_long_recordings_are_cut_into_windows(self, tmp_path: Path) -> None:
        files = {f"{i}.wav": wav(sound(61 * 400 + i), 400) for i in range(3)}
        made, _, found = self.inferred(write_zip(tmp_path / "a.zip", files))
        assert made.sample.segments is not None
        assert made.sample.segments.seconds == 10
        assert len(found) == 18
        assert made.spec.model_dump()["J"] == 6

    @pytest.mark.parametrize("n", [8, 9, 100])
    def test_very_short_ones(self, tmp_path: Path, n: int) -> None:
        made, _, found = self.inferred(written(tmp_path / "a.wav", wav(sound(n))))
        assert 2 ** made.spec.model_dump()["J"] <= n
        assert found[0].shape == (n,)


@pytest.mark.realdata
class TestRealArchives:
    @pytest.mark.parametrize(
        ("name", "n", "rate", "counts", "n_classes"),
        [
            ("fsdd", 8000, 8000, {"train": 1800, "test": 200}, 10),
            ("esc10", 80000, 16000, {"train": 80, "test": 80}, 10),
            ("librispeech", 32000, 16000, {"train": 231, "test": 79}, 5),
            ("long-recordings", 3200, 400, {"": 329}, 0),
        ],
    )
    def test_entries(self, real: Path, name: str, n: int, rate: int, counts: dict[str, int], n_classes: int) -> None:
        listing, found = everything(load_entry(name, real), real)
        assert (listing.layout.shape, listing.layout.dtype, listing.layout.spacing) == ((n,), np.float32, (1 / rate,))
        assert not [sample for sample in found if isinstance(sample, RecordError)]
        assert listing.notes == ()
        split = listing.columns["split"].astype(str)
        assert dict(zip(*np.unique(split, return_counts=True), strict=True)) == counts
        assert len(set(listing.columns.get("label", []))) == n_classes
        if n_classes:
            assert {len(set(listing.columns["label"][split == part])) for part in counts} == {n_classes}

    def test_fsdd_takes_and_speakers(self, real: Path) -> None:
        columns = scan(load_entry("fsdd", real), real).columns
        assert sorted(set(columns["speaker"])) == ["george", "jackson", "lucas", "nicolas"]
        takes = columns["take"].astype(int)
        np.testing.assert_array_equal(columns["split"] == "test", takes < 5)
        assert set(takes) == set(range(50))
        assert columns["duration"].min() == 0.143625
        assert set(columns["source_rate"]) == {8000}

    def test_esc10_against_libsndfile_and_soxr(self, real: Path) -> None:
        made = load_entry("esc10", real)
        listing = scan(made, real)
        assert {len(name) for name in listing.columns["fold"]} == {1}
        assert set(listing.columns["source_rate"]) == {44100}
        thin = {name: values[::20] for name, values in listing.columns.items()}
        with zipfile.ZipFile(real / made.location) as archive:
            for name, sample in zip(thin["member"], read(made, real, thin), strict=True):
                whole = soxr.resample(decoded(archive.read(name))[:, 0], 44100, 16000, quality="VHQ")
                start = (len(whole) - 80000) // 2
                middle = whole[max(0, start) : max(0, start) + 80000]
                before = (80000 - len(middle)) // 2
                np.testing.assert_allclose(sample[before : before + len(middle)], middle, atol=1e-6)

    def test_librispeech_sentences_are_not_torn_apart(self, real: Path) -> None:
        columns = scan(load_entry("librispeech", real), real).columns
        for member in set(columns["member"]):
            assert len(set(columns["split"][columns["member"] == member])) == 1
        assert sorted(columns["t0"][columns["member"] == columns["member"][0]].tolist()) == list(range(14))
        assert set(columns["source_rate"]) == {16000}

    def test_long_recordings_and_the_empty_one(self, real: Path) -> None:
        made = load_entry("long-recordings", real)
        columns = scan(made, real).columns
        assert {name: (columns["recording"] == name).sum() for name in ("025", "033", "038")} == {
            "025": 107,
            "033": 103,
            "038": 119,
        }
        both = parse(Entry, made.model_dump(mode="json") | {"location": "audio", "labels": None}, "t", EntryError)
        listing, found = everything(both, real)
        assert [reason(one) for one in found if reason(one)] == ["unreadable"]
        assert listing.columns["member"][0] == "bad/empty_2c.wav"

    def test_piano_and_drums(self, real: Path) -> None:
        made = entry("piano-drums.zip", sample={"clip": {"seconds": 1}}, audio={"channels": "keep"})
        listing, found = everything(made, real)
        assert len(found) == 26
        assert (listing.layout.dims, listing.layout.shape) == (("channel", "time"), (2, 44100))
        assert {sample.shape for sample in found} == {(2, 44100)}
        assert set(listing.columns["source_rate"]) == {44100}
        assert (listing.columns["duration"].min(), listing.columns["duration"].max()) == (2994 / 44100, 1102476 / 44100)
        whole = entry("piano-drums.zip", members=["*/A0.mp3"], audio={"channels": "keep"})
        listing, (sample,) = everything(whole, real)
        rng = random.Random(0)
        for _ in range(20):
            forget()
            start = rng.randrange(sample.shape[1] - 5000)
            window = slice(start, start + 5000)
            np.testing.assert_array_equal(next(read(whole, real, listing.columns, (window,))), sample[:, window])
