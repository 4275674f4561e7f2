"""Whether a sound file is whole, by its own counts and checksums: libsndfile decodes what is left, and says nothing."""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal

from scattercube.pipeline.errors import RecordError

_UNKNOWN = 0xFFFFFFFF  # a length that was not known when the header was written
_UNLIMITED = range(0x7FFFF000, 0x80000001)  # what recorders that write into a pipe put there instead
_PAGE_NBYTES = 27 + 255 + 255 * 255  # of Ogg, at most
_LAST, _FIRST = 4, 2  # flags of an Ogg page
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_MPEG_RATES = (44100, 48000, 32000)
# kbit/s by index, of MPEG-1 and of MPEG-2 and 2.5, layer III; ISO/IEC 11172-3, section 2.4.2.3, and 13818-3
_KBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAME_STREAM = 0xFFFE0C00  # sync, version, layer and rate of an MPEG frame: alike in all of them
_TAGS_BEHIND = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI", b"ID3")


@dataclass(frozen=True)
class Form:
    """How the bytes of a member are given to the decoder.

    Attributes
    ----------
    head, skip
        What stands in the place of the first ``skip`` bytes: a header that says what the member's own does not.
    """

    kind: Literal["WAV", "FLAC", "Ogg", "MP3"]
    head: bytes = b""
    skip: int = 0


def look(stream: BinaryIO, nbytes: int) -> Form:
    """Return what kind of sound file a member of this size is, by its ends.

    Raises
    ------
    RecordError
        ``unreadable``: of no known kind, or shorter than its header promises.
    """
    start = _behind_id3(stream)
    stream.seek(start)
    begin = stream.read(12)
    if begin[:4] in (b"RIFF", b"RIFX", b"RF64") and begin[8:] == b"WAVE":
        return _wav(stream, nbytes, "big" if begin[:4] == b"RIFX" else "little")
    if begin[:4] == b"fLaC":
        return Form("FLAC", skip=start)
    if begin[:4] == b"OggS":
        return _ogg(stream, nbytes)
    if len(begin) >= 4 and _frame(begin):
        return _mp3(stream, nbytes, start)
    raise RecordError(
        "unreadable",
        f"begins with {begin[:4]!r}; expected WAV, FLAC, Ogg or MP3 (MPEG layer III)" if begin else "is empty",
    )


def walk(stream: BinaryIO, nbytes: int, form: Form) -> None:
    """Go through a member that is made of pages or frames, and see that none is damaged or missing.

    Raises
    ------
    RecordError
        ``unreadable``: says where.
    """
    if form.kind == "Ogg":
        _walk_pages(stream, nbytes)
    elif form.kind == "MP3":
        _walk_frames(stream, nbytes, _behind_id3(stream))


def _cut_short(promised: str, there: str) -> RecordError:
    return RecordError("unreadable", f"promises {promised}, {there}; is it complete?")


def _wav(stream: BinaryIO, nbytes: int, order: Literal["big", "little"]) -> Form:
    """Compare the length of the chunk of sound with that of the member."""
    stream.seek(4)
    riff_size = int.from_bytes(stream.read(4), order)
    position, long_size = 12, 0
    while position + 8 <= nbytes:
        stream.seek(position)
        name, size = stream.read(4), int.from_bytes(stream.read(4), order)
        position += 8
        if name == b"ds64":
            long_size = int.from_bytes(stream.read(16)[8:], order)
        elif name == b"data":
            there = nbytes - position
            size = long_size if size == _UNKNOWN and long_size else size
            closed = size > 0 or there == 0 or riff_size + 8 == nbytes
            if size == _UNKNOWN or size in _UNLIMITED or not closed:
                # Never closed: the sound goes on to the end. libsndfile knows that of one of these values, in RIFF.
                stream.seek(0)
                head = stream.read(position - 4).replace(b"RF64", b"RIFF", 1)
                return Form("WAV", head + _UNKNOWN.to_bytes(4, order), position)
            if size > there:
                raise _cut_short(f"{size} bytes of sound", f"{there} are there")
            return Form("WAV")
        position += size + size % 2
    raise _cut_short("a chunk of sound", f"there is none in {nbytes} bytes")


def _ogg(stream: BinaryIO, nbytes: int) -> Form:
    """See that the last page is whole and says that it is the last; without that, sound is missing behind it."""
    stream.seek(14)
    serial = stream.read(4)
    start = max(0, nbytes - 2 * _PAGE_NBYTES)
    stream.seek(start)
    tail = stream.read(nbytes - start)
    at = len(tail)
    while (at := tail.rfind(b"OggS", 0, at)) >= 0:
        page = _page(tail[at : at + _PAGE_NBYTES])
        if page is None:
            continue  # what looks like one by chance, or the rest of one
        if page[14:18] != serial:
            raise RecordError("unreadable", "has several streams, chained or side by side; split it into files")
        if not page[5] & _LAST:
            break
        return Form("Ogg")
    raise _cut_short("a last page", "there is none")


def _page(content: bytes) -> bytes | None:
    """Return the Ogg page that begins here, or None where it is damaged or not whole; RFC 3533, section 6."""
    if len(content) < 27 or content[:5] != b"OggS\0":
        return None
    head_nbytes = 27 + content[26]
    nbytes = head_nbytes + sum(content[27:head_nbytes])
    if len(content) < max(nbytes, head_nbytes):
        return None
    page = content[:nbytes]
    # Ogg's checksum is zlib's with the bits of each byte, and of the sum, in the other order and nothing inverted.
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    found = (zlib.crc32(mirrored, _UNKNOWN) ^ _UNKNOWN).to_bytes(4, "big").translate(_MIRRORED)
    return page if found == page[22:26] else None


def _walk_pages(stream: BinaryIO, nbytes: int) -> None:
    position, expected = 0, 0
    while position < nbytes:
        stream.seek(position)
        page = _page(stream.read(_PAGE_NBYTES))
        if page is None:
            raise RecordError("unreadable", f"the Ogg page at byte {position} is damaged")
        (number,) = struct.unpack("<I", page[18:22])
        if number != expected:
            raise RecordError("unreadable", f"at byte {position} is Ogg page {number}; expected {expected}")
        if page[5] & _LAST:
            return
        position, expected = position + len(page), expected + 1


@dataclass(frozen=True)
class _Frame:
    """What the header of an MPEG frame says: its length, that of its side information, and what all have in common."""

    nbytes: int
    side_nbytes: int
    stream: int


def _frame(head: bytes) -> _Frame | None:
    """Parse the four bytes at the head of a frame of layer III; None where they are no such head."""
    (bits,) = struct.unpack(">I", head[:4])
    version = {3: 1, 2: 2, 0: 3}.get(bits >> 19 & 3)
    rate_index, kbit_index = bits >> 10 & 3, bits >> 12 & 15
    if bits >> 21 != 0x7FF or version is None or bits >> 17 & 3 != 1 or rate_index == 3 or kbit_index in (0, 15):
        return None
    rate, kbits = _MPEG_RATES[rate_index] >> (version - 1), _KBITS[min(version, 2)][kbit_index - 1]
    mono, padding = bits >> 6 & 3 == 3, bits >> 9 & 1
    if version == 1:
        return _Frame(144000 * kbits // rate + padding, 17 if mono else 32, bits & _SAME_STREAM)
    return _Frame(72000 * kbits // rate + padding, 9 if mono else 17, bits & _SAME_STREAM)


def _mp3(stream: BinaryIO, nbytes: int, start: int) -> Form:
    """Compare the member with the counts in its first frame; where it has none, count, and put one in front.

    Without them libsndfile takes the length for that of a constant bit rate, and stops there.
    """
    stream.seek(start)
    first = stream.read(1 << 12)
    frame = _frame(first)
    assert frame is not None
    tag = first.find(b"Xing", 0, 64) if b"Xing" in first[:64] else first.find(b"Info", 0, 64)
    if tag >= 0:
        flags, n_frames, promised = struct.unpack(">III", first[tag + 4 : tag + 16])
        if flags & 1 and n_frames:
            if flags & 2 and promised > nbytes - start:
                raise _cut_short(f"{promised} bytes of sound", f"{nbytes - start} are there")
            if not flags & 2 and (found := _walk_frames(stream, nbytes, start)[0]) < n_frames:
                raise _cut_short(f"{n_frames} frames", f"{found} are there")
            return Form("MP3", skip=start)
    if tag >= 0 or first[36:40] == b"VBRI":
        start += frame.nbytes  # holds counts that are of no use, and no sound
    n_frames, end = _walk_frames(stream, nbytes, start)
    return Form("MP3", _counts(first, n_frames, end - start), start)


def _counts(first: bytes, n_frames: int, nbytes: int) -> bytes:
    """Return a frame with counts, of the kind of another; the format is that of Xing's encoder, which all read."""
    (bits,) = struct.unpack(">I", first[:4])
    for index in range(1, 15):  # the shortest that is long enough
        head = struct.pack(">I", bits & ~0xF200 | index << 12 | 1 << 16)
        frame = _frame(head)
        assert frame is not None
        counts = b"Xing" + struct.pack(">III", 3, n_frames, nbytes + frame.nbytes)
        if frame.nbytes >= 4 + frame.side_nbytes + len(counts):
            return (head + bytes(frame.side_nbytes) + counts).ljust(frame.nbytes, b"\0")
    raise RecordError("unreadable", "has MPEG frames of a kind that cannot be counted")


def _walk_frames(stream: BinaryIO, nbytes: int, start: int) -> tuple[int, int]:
    """Return how many MPEG frames follow each other from ``start``, and where they end."""
    count, position, kind = 0, start, None
    while position + 4 <= nbytes:
        stream.seek(position)
        frame = _frame(stream.read(4))
        if frame is None or frame.stream != (kind := kind or frame.stream):
            stream.seek(position)
            behind = stream.read(1 << 16)
            if behind.startswith(_TAGS_BEHIND) or not behind.strip(b"\0"):
                break
            raise RecordError("unreadable", f"no MPEG frame where one should begin, at byte {position}")
        if position + frame.nbytes > nbytes:
            raise _cut_short(f"{frame.nbytes} bytes in its last frame", f"{nbytes - position} are there")
        count, position = count + 1, position + frame.nbytes
    return count, position


def _behind_id3(stream: BinaryIO) -> int:
    """Return where an ID3v2 tag in front ends, or 0; its size is in four times seven bits."""
    position = 0
    while True:
        stream.seek(position)
        head = stream.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return position
        footer = 10 if head[5] & 0x10 else 0
        position += 10 + footer + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
