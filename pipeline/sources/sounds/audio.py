"""Reader of recordings: WAV, FLAC, Ogg (Vorbis, Opus) and MP3, as float32 samples in time; integers become -1 to 1."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Audio
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.reader import Columns, Layout, Window

if TYPE_CHECKING:
    from scattercube.pipeline.sources.sounds.recordings import Header

suffixes = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
single = suffixes
offsets = ("start",)
_MAX_RATE_RATIO = 256  # beyond it, a small recording could become a huge sample
_AS_STORED = Audio()


def header(entry: Entry, archive: Archive, name: str) -> "Header":
    """Return length, rate and channels of a recording, without decoding it. Raises RecordError.

    Only one that was written into a pipe, and does not say how long it is, is counted.
    """
    from scattercube.pipeline.sources.sounds import recordings  # libsndfile: not for those who read images

    return _usable(entry, recordings.header(archive, name), name)


def _usable(entry: Entry, header: "Header", name: str) -> "Header":
    """Return a head, or raise RecordError where there is nothing to make samples of."""
    rate = (entry.audio or _AS_STORED).rate or header.rate
    if max(header.rate, rate) > _MAX_RATE_RATIO * min(header.rate, rate):
        raise RecordError(
            "wrong-shape",
            f"{name}: rate {header.rate} Hz; more than {_MAX_RATE_RATIO} times from audio.rate, {rate} Hz",
        )
    if header.length(rate) < 1:
        raise RecordError("wrong-shape", f"{name}: holds no sound: {header.n_frames} frames at {header.rate} Hz")
    return header


def layout(entry: Entry, header: "Header") -> Layout:
    """Return what samples look like when the archive's recordings look like this one.

    Raises
    ------
    EntryError
        A clip or segment is shorter than one sample.
    """
    options = entry.audio or _AS_STORED
    rate, n_channels = options.rate or header.rate, header.n_channels
    length = _length(entry, rate)
    if length == 0:
        raise EntryError(f"sample: {_seconds(entry)} seconds at {rate} Hz are less than one sample")
    shape: tuple[int, ...] = (header.length(rate) if length is None else length,)
    dims: tuple[str, ...] = ("time",)
    names: tuple[str, ...] = ()
    note = ""
    if n_channels > 1 and options.channels == "keep":
        dims, shape = ("channel", "time"), (n_channels, *shape)
        names = tuple(f"channel{index}" for index in range(n_channels))
    elif n_channels > 1:
        note = f"{'the first' if options.channels == 'first' else 'the mean'} of {n_channels} channels is taken"
    return Layout(dims, shape, np.dtype(np.float32), names, (1 / rate,), ("s",), header.dtype, note)


def needs_header(entry: Entry, name: str) -> bool:
    """Every recording says by itself how long it is, and how many windows fit."""
    return True


def samples(entry: Entry, header: "Header | None") -> Columns:
    """List the samples of a recording: itself, or its windows.

    Columns: ``start`` (int64, in samples) and ``t0`` (float64, in s) of a window; ``duration`` of the recording
    (float64, in s) and ``source_rate`` (float64, in Hz), both NaN where its head cannot be read.
    """
    rate = (entry.audio or _AS_STORED).rate or (header.rate if header else 1)
    start = np.zeros(1, np.int64)
    if header and entry.sample.segments:
        length, step = _length(entry, rate) or 1, max(1, round(entry.sample.segments.step * rate))
        # One that is shorter than a window has one row too: reading it says what is wrong.
        start = np.arange(0, max(0, header.length(rate) - length) + 1, step)
    columns: Columns = {"item": np.zeros(len(start), np.int64)}
    if entry.sample.segments:
        columns |= {"start": start, "t0": start / rate}
    about = (header.seconds, float(header.rate)) if header else (np.nan, np.nan)
    return columns | {"duration": np.full(len(start), about[0]), "source_rate": np.full(len(start), about[1])}


def read(
    entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
) -> Iterator[np.ndarray | RecordError]:
    """Yield the window of some samples of a recording; where its codec allows it, no more is decoded than they need."""
    starts = rows["start"].tolist() if entry.sample.segments else [0] * len(rows["item"])
    for item, start in zip(rows["item"].tolist(), starts, strict=True):
        try:
            if item:
                raise RecordError("missing", f"item {item}; a sound file holds one")
            yield _sample(entry, archive, name, layout, start, window[0])
        except RecordError as failure:
            text = str(failure)
            yield RecordError(failure.reason, text if text.startswith(name) else f"{name}: {text}")


def _sample(entry: Entry, archive: Archive, name: str, layout: Layout, start: int, window: slice) -> np.ndarray:
    """Decode the window of one sample that starts somewhere in its recording, or of the middle of it."""
    from scattercube.pipeline.sources.sounds import recordings

    policy = entry.sample
    recording = recordings.opened(archive, name, entry.audio or _AS_STORED, to_the_end=not policy.segments)
    known = _usable(entry, recording.header, name)
    _refuse_other_form(entry, known, layout)
    (length,) = layout.signal_shape
    there = known.length(round(1 / layout.spacing[0]))
    if there < start + length if policy.segments else policy.exact and there != length:
        wanted = "need at least" if policy.segments else "expected"
        raise RecordError("wrong-shape", f"{there} samples; {wanted} {start + length}")
    if policy.clip:
        start = (there - length) // 2 if there >= length else -((length - there) // 2)
    sample = np.zeros((*layout.shape[:-1], window.stop - window.start), layout.dtype)
    by_time = sample.reshape(-1, sample.shape[-1]).T
    first, last = max(0, start + window.start), min(there, start + window.stop)
    if first < last:
        recording.read(first, by_time[first - start - window.start : last - start - window.start])
    if not (finite := np.isfinite(sample)).all():
        if not policy.missing:
            raise RecordError("non-finite", f"{np.count_nonzero(~finite)} values are not finite")
        sample[~finite] = np.nan
    return sample


def _refuse_other_form(entry: Entry, header: "Header", layout: Layout) -> None:
    options, rate = entry.audio or _AS_STORED, round(1 / layout.spacing[0])
    if options.rate is None and header.rate != rate:
        raise RecordError(
            "wrong-shape",
            f"rate {header.rate} Hz; the archive's first recording has {rate} Hz; to resample all, set audio.rate",
        )
    n_channels = len(layout.channels) or 1
    if options.channels == "keep" and header.n_channels != n_channels:
        raise RecordError(
            "wrong-shape", f"{header.n_channels} channels; the archive's first recording has {n_channels}"
        )


def _seconds(entry: Entry) -> float | None:
    """How long samples are by the policy; None where as long as the first recording."""
    frame = entry.sample.clip or entry.sample.segments
    return frame.seconds if frame else None


def _length(entry: Entry, rate: int) -> int | None:
    seconds = _seconds(entry)
    return None if seconds is None else round(seconds * rate)
