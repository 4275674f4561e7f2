"""How large a packed chunk unpacks, found out without keeping what comes out: libraries take the memory unasked."""

import bz2
import io
import lzma
import zlib
from typing import Any

DEFLATE_FREE_NBYTES = 1 << 20  # packed: a byte unpacks to 1032 at most, so below this nothing needs unpacking twice
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE_NBYTES = 1 << 20


def unpacked_nbytes(packed: bytes, compressor: str, limit: int) -> int:
    """Return how many bytes come out of a chunk, or, where they are more than the limit, some number above it.

    0 stands for what is harmless whatever it is. Damage is raised as its decoder raises it.
    """
    if compressor == "blosc":
        return int.from_bytes(packed[4:8], "little")
    if compressor == "lz4":
        return int.from_bytes(packed[:4], "little")
    if compressor in ("gzip", "zlib") and len(packed) <= DEFLATE_FREE_NBYTES:
        return 0
    if compressor == "zstd" and (nbytes := _zstd_nbytes(packed)) is not None:
        return nbytes
    return _counted(packed, compressor, limit) if compressor else len(packed)


def _zstd_nbytes(packed: bytes) -> int | None:
    """Return the size that a Zstandard frame declares: RFC 8878, section 3.1.1.1; None where it does not."""
    if packed[:4] != _ZSTD_MAGIC or len(packed) < 18:
        return None if len(packed) >= 18 else 0
    descriptor = packed[4]
    size_flag, single, dictionary = descriptor >> 6, descriptor >> 5 & 1, descriptor & 3
    if size_flag == 0 and not single:
        return None
    at = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    width = (1, 2, 4, 8)[size_flag]
    return int.from_bytes(packed[at : at + width], "little") + (256 if width == 2 else 0)


def _counted(packed: bytes, compressor: str, limit: int) -> int:
    """Unpack and count, without keeping anything; stops above the limit."""
    import pyarrow as pa

    received = 0
    if compressor in ("gzip", "zlib"):
        unpacker, rest = zlib.decompressobj(47), packed
        while rest and received <= limit:
            received += len(unpacker.decompress(rest, _PIECE_NBYTES))
            rest = unpacker.unconsumed_tail or unpacker.unused_data
            unpacker = zlib.decompressobj(47) if unpacker.eof else unpacker  # gzip may have several parts
        return received
    stream: Any = pa.CompressedInputStream(pa.BufferReader(packed), "zstd") if compressor == "zstd" else None
    if stream is None:
        stream = {"bz2": bz2.BZ2File, "lzma": lzma.LZMAFile}[compressor](io.BytesIO(packed))
    while received <= limit and (piece := stream.read(_PIECE_NBYTES)):
        received += len(piece)
    return received
