"""Recordings as samples of one rate, from any place in them: the door to soundfile and soxr.

What a window holds must not depend on what was read before it. Of WAV and FLAC any place can be decoded. Lossy codecs
carry state from packet to packet, and libsndfile lands beside the place that was asked for (Vorbis and MP3 of these
tests were off by half of full scale for some hundred samples): they are decoded from the beginning, and what was
decoded last is kept. Resampling goes by blocks of a fixed grid, each from the same samples whatever window is wanted.
"""

import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from scattercube.pipeline.errors import RecordError, ScattercubeError, said_by
from scattercube.pipeline.policies import Audio
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.sounds import framing

MAX_VALUES_PER_BYTE = 1024  # decoded values per byte of a member; Opus at its lowest rates has below 200
FREE_VALUES = 1 << 24  # below this number any ratio is harmless
_WHOLE_NBYTES = 16 << 20  # members up to this are held as they are stored; larger ones are read in place
_BLOCK = 1 << 16  # frames that are decoded, and about those that are resampled, at once
_KEPT_VALUES = 1 << 23  # of blocks that are kept for the next window
_REACH = 256  # samples at the lower rate that soxr's filter reaches to each side, and more: 134 count
_QUALITY = "VHQ"  # 28 bits, in float64 inside: rounding is that of float32

_DTYPES = {
    "PCM_S8": np.int8,
    "PCM_U8": np.uint8,
    "PCM_16": np.int16,
    "PCM_24": np.int32,
    "PCM_32": np.int32,
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
}


@dataclass(frozen=True)
class Header:
    """What a recording's head says.

    Attributes
    ----------
    rate
        In Hz, and ``n_frames`` at that rate, as stored.
    dtype
        Of the stored values, where they are plain numbers.
    form
        How its bytes are given to the decoder.
    forward
        Whether only what was decoded from its beginning is right.
    """

    n_frames: int
    rate: int
    n_channels: int
    dtype: np.dtype | None
    form: framing.Form
    forward: bool

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.n_frames / self.rate

    def length(self, rate: int) -> int:
        """Return the number of samples at another rate, as soxr rounds it."""
        return (2 * self.n_frames * rate + self.rate) // (2 * self.rate)


def header(archive: Archive, name: str) -> Header:
    """Return length, rate and channels of a member. Raises RecordError where it is damaged, or a bomb."""
    known = archive.learnt.get(name)
    if isinstance(known, Header):
        return known
    with _of(name):
        nbytes = archive.nbytes(name)
        with archive.random(name) if nbytes <= _WHOLE_NBYTES else archive.open(name) as stream:
            found = _header(stream, nbytes)
    archive.learnt[name] = found
    return found


def _header(stream: BinaryIO, nbytes: int) -> Header:
    form = framing.look(stream, nbytes)
    with _Decoder(stream, nbytes, form) as decoder:
        limit = max(nbytes * MAX_VALUES_PER_BYTE, FREE_VALUES)
        n_frames, n_channels, rate = decoder.frames, decoder.channels, decoder.samplerate
        endless = n_frames >> 62 > 0  # a FLAC that was written into a pipe does not say how long it is
        if endless:
            n_frames = _count(decoder, limit)
        subtype = decoder.subtype
    if n_frames * n_channels > limit:
        raise RecordError(
            "too-large", f"{nbytes} bytes promise {n_frames} × {n_channels} values, more than {limit}; a bomb?"
        )
    if rate < 1:
        raise RecordError("unreadable", f"says that its rate is {rate} Hz")
    dtype = np.dtype(_DTYPES[subtype]) if subtype in _DTYPES else None
    forward = endless or subtype not in (*_DTYPES, "ULAW", "ALAW") or form.kind in ("Ogg", "MP3")
    return Header(n_frames, rate, n_channels, dtype, form, forward)


def opened(archive: Archive, name: str, options: Audio, *, to_the_end: bool) -> "Recording":
    """Open a member; each thread keeps its last one, so that windows that follow each other never start anew.

    Parameters
    ----------
    to_the_end
        Whether a recording of which only the beginning is there is refused, although a window may not need the rest.
    """
    key = (str(archive.path), name, *archive.signature(name), options, to_the_end)
    if _last.key != key:
        _last.key, _last.recording = (), None  # memory first
        with _of(name):
            _last.recording = Recording(archive, name, options, to_the_end=to_the_end)
        _last.key = key
    assert _last.recording is not None
    return _last.recording


class Recording:
    """A recording that one thread has open.

    Attributes
    ----------
    rate
        Of its samples, in Hz; there are ``n_samples``.
    width
        Number of channels of a sample.
    """

    def __init__(self, archive: Archive, name: str, options: Audio, *, to_the_end: bool) -> None:
        self._name, self._mean = name, options.channels == "mean"
        self._stream, self._nbytes = _held(archive, name)
        known = archive.learnt.get(name)
        self.header = known if isinstance(known, Header) else _header(self._stream, self._nbytes)
        archive.learnt[name] = self.header
        self.rate = options.rate or self.header.rate
        self.n_samples = self.header.length(self.rate)
        self.width = self.header.n_channels if options.channels == "keep" else 1
        framing.walk(self._stream, self._nbytes, self.header.form)
        self._piece = max(1 << 10, _BLOCK // self.header.n_channels)
        self._decoded = _Blocks(self._decoded_block, self._piece, self.width)
        self._plan_resampling()
        self._start_anew()
        n_frames = self.header.n_frames
        if to_the_end and self.header.form.kind == "FLAC" and n_frames and not self.header.forward:
            self._decode(n_frames - 1, np.empty((1, self.width), np.float32))  # all others say it themselves

    def read(self, start: int, out: np.ndarray) -> None:
        """Decode samples from ``start`` into ``out``: (time, channel) float32. Raises RecordError."""
        try:
            with _of(self._name):
                (self._decode if self.rate == self.header.rate else self._resampled.read)(start, out)
        except BaseException:
            _last.key, _last.recording = (), None  # after an error nobody knows where the decoder stands
            raise

    def _start_anew(self) -> None:
        self._decoder, self._at = _Decoder(self._stream, self._nbytes, self.header.form), 0

    def _decode(self, start: int, out: np.ndarray) -> None:
        """Decode frames at the stored rate."""
        if self.header.forward:
            self._decoded.read(start, out)
            return
        if start != self._at:
            self._decoder.seek(start)
            self._at = start
        for first in range(0, len(out), self._piece):
            piece = out[first : first + self._piece]
            piece[:] = self._next(len(piece))

    def _decoded_block(self, index: int) -> np.ndarray:
        if index * self._piece < self._at:
            self._start_anew()
        while self._at < index * self._piece:
            self._next(self._piece)
        return self._next(min(self._piece, self.header.n_frames - self._at))

    def _next(self, n_frames: int) -> np.ndarray:
        """Decode what follows, and bring it to the channels of a sample."""
        frames = self._decoder.take(n_frames)
        self._at += len(frames)
        if len(frames) < n_frames:
            raise RecordError("unreadable", f"breaks off after {self._at} of {self.header.n_frames} frames")
        if frames.shape[1] == self.width:
            return frames
        mixed = frames[:, :1].copy()
        if self._mean:
            for channel in range(1, frames.shape[1]):
                mixed += frames[:, channel : channel + 1]
            mixed /= np.float32(frames.shape[1])
        return mixed

    def _plan_resampling(self) -> None:
        """Lay out the grid: ``_up`` samples take the time of ``_down`` frames, blocks are whole multiples of these."""
        shared = math.gcd(self.rate, self.header.rate)
        self._up, self._down = self.rate // shared, self.header.rate // shared
        self._margin = math.ceil(_REACH * max(1, self._down / self._up) / self._down) * self._down
        frames = max(_BLOCK // self.width * min(1, self._down / self._up), 2 * self._margin)
        self._cells = math.ceil(frames / self._down)
        self._resampled = _Blocks(self._resampled_block, self._cells * self._up, self.width)

    def _resampled_block(self, index: int) -> np.ndarray:
        """Resample a block from its frames and a margin: the filter's reach, so that it has the bits of the whole.

        soxr begins the first block of a recording as it would begin the recording. Behind the end are zeros.
        """
        start, margin = index * self._cells * self._down, self._margin if index else 0
        stop = start + self._cells * self._down + self._margin
        frames = np.zeros((stop - start + margin, self.width), np.float32)
        self._decode(start - margin, frames[: min(stop, self.header.n_frames) - start + margin])
        bad = np.any(~np.isfinite(frames), axis=1)
        frames[bad] = 0
        skip = margin // self._down * self._up
        samples: np.ndarray = soxr.resample(frames, self.header.rate, self.rate, quality=_QUALITY)
        samples = samples[skip : skip + self._cells * self._up]
        if bad.any():  # whatever has a bad frame in its reach
            before = np.concatenate([[0], np.cumsum(bad)])
            centre = margin + np.arange(len(samples)) * self._down // self._up
            behind = np.minimum(centre + self._margin + 1, len(bad))
            samples[before[behind] > before[np.maximum(centre - self._margin, 0)]] = np.nan
        return samples


class _Blocks:
    """Blocks of a fixed grid, made when they are asked for. The last ones are kept: windows may overlap."""

    def __init__(self, make: Callable[[int], np.ndarray], size: int, width: int) -> None:
        self._make, self._size = make, size
        self._n_kept = max(4, _KEPT_VALUES // (size * width))
        self._kept: dict[int, np.ndarray] = {}

    def read(self, start: int, out: np.ndarray) -> None:
        """Copy what the grid holds from ``start``."""
        stop = start + len(out)
        for index in range(start // self._size, -(-stop // self._size)):
            if index not in self._kept:
                self._kept[index] = self._make(index)
                if len(self._kept) > self._n_kept:
                    del self._kept[next(iter(self._kept))]
            origin = index * self._size
            first, last = max(start, origin), min(stop, origin + self._size)
            out[first - start : last - start] = self._kept[index][first - origin : last - origin]


class _Last(threading.local):
    key: tuple[Any, ...] = ()
    recording: Recording | None = None


_last = _Last()


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Name the member, and turn whatever a decoder raises on damaged bytes into a RecordError."""
    try:
        yield
    except RecordError as failure:
        text = str(failure)
        raise RecordError(failure.reason, text if text.startswith(name) else f"{name}: {text}") from failure
    except ScattercubeError:
        raise
    except soundfile.LibsndfileError as failure:
        why = failure.error_string.strip() or f"damaged or cut short; libsndfile stops with error {failure.code}"
        raise RecordError("unreadable", f"{name}: {why}") from failure
    except Exception as failure:  # of the container below: the list of that has no end
        raise RecordError("unreadable", f"{name}: {said_by(failure)}") from failure


def _held(archive: Archive, name: str) -> tuple[BinaryIO, int]:
    """Return the bytes of a member and their number: in memory, and checked, where they are few."""
    nbytes = archive.nbytes(name)
    if nbytes > _WHOLE_NBYTES:
        return io.BufferedReader(_InPlace(archive, name, nbytes), 1 << 17), nbytes
    content = archive.read(name)
    return io.BytesIO(content), len(content)


class _InPlace(io.RawIOBase):
    """A member that is read where it lies."""

    def __init__(self, archive: Archive, name: str, nbytes: int) -> None:
        self._archive, self._name, self._nbytes, self._position = archive, name, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._nbytes}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        with self._archive.stream(self._name) as stream:
            stream.seek(self._position)
            content = stream.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Source:
    """The bytes of a member as the decoder is to see them. What goes wrong must not pass through C: it waits here."""

    def __init__(self, stream: BinaryIO, nbytes: int, form: framing.Form) -> None:
        self._stream, self._head, self._skip = stream, form.head, form.skip
        self._size = len(form.head) + max(0, nbytes - form.skip)
        self._position = 0
        self.failure: Exception | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        content = self._head[self._position : self._position + size]
        wanted = min(size, self._size - self._position) - len(content)
        try:
            if wanted > 0:
                self._stream.seek(self._position + len(content) - len(self._head) + self._skip)
                content += self._stream.read(wanted)
        except Exception as failure:
            self.failure = failure
        self._position += len(content)
        return content


class _Decoder(soundfile.SoundFile):  # type: ignore[misc]
    """A decoder that only goes where it is sent: soundfile's own seeks after every read, to where it is already."""

    def __init__(self, stream: BinaryIO, nbytes: int, form: framing.Form) -> None:
        self.source = _Source(stream, nbytes, form)
        with self._reading():
            super().__init__(self.source)

    def seekable(self) -> bool:
        return False

    def take(self, n_frames: int) -> np.ndarray:
        """Return the next frames as (frame, channel) float32, fewer where it ends."""
        with self._reading():
            frames: np.ndarray = self.read(n_frames, dtype="float32", always_2d=True)
        return frames

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise what went wrong below the decoder rather than what it made of that."""
        try:
            yield
        except soundfile.LibsndfileError:
            if not self.source.failure:
                raise
        if self.source.failure:
            raise self.source.failure


def _count(decoder: _Decoder, limit: int) -> int:
    """Return the number of frames, by decoding them; stops where there are more values than the limit."""
    total = 0
    while found := len(decoder.take(_BLOCK // decoder.channels or 1)):
        total += found
        if total * decoder.channels > limit:
            break
    return total
