"""Bad archives and bad entries, made from a seed: what `tests.fuzz` runs.

A case is a folder that is written, and the fields of an entry for it. There are three families:

* damage: an undamaged archive of one of `BASES`, packed in one way, of which bytes are changed;
* traps: archives that are made to do harm (`TRAPS`): bombs, names that lead out, links, pickles, promises;
* entries: entries and Specs that are wrong, extreme or hostile (`entry_case`), over an archive that is fine.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from zarr.codecs import Crc32cCodec

from tests.test_array_files import files_of, fixed, h5, lists, nc3, nc4, photos, store, table
from tests.test_audio import encoded as sounding
from tests.test_audio import sound
from tests.test_molecules import GRID, METHANE, WATER
from tests.test_sky import CUBE, IMAGE, PLACE, POSITIONS, TILES, as_bytes, compressed, hdu, primary, sphere
from tests.test_sources import CLASSES, CODES, IMAGES, NAMES, csv_text, encoded, idx, npy, png, tiff

SECRET = 211  # the value of all pixels outside of the archive
RGB = np.random.default_rng(1).integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Base:
    """An undamaged archive.

    Attributes
    ----------
    files
        Its members.
    checked
        Which of them have a checksum of their own, over all that decides their samples: a pattern of their names.
    fields
        Of its entry, beside location.
    """

    reader: str
    files: dict[str, bytes]
    checked: str = "$^"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What there is to run.

    Attributes
    ----------
    reader, kind
        What the table of totals counts it under.
    name
        What was done, for people.
    entry
        The fields of the entry, or the text of its file.
    options
        Of the job, beside entry, store and data.
    control
        The name of the undamaged archive, in `BASES`.
    sealed
        Whether a checksum covers what was changed, so that a sample that comes out must be as it was.
    damaged
        The one member that was changed; None where any may be.
    packing
        How the undamaged archive was packed.
    """

    reader: str
    kind: str
    name: str
    entry: dict[str, Any] | str
    options: dict[str, Any] = field(default_factory=dict)
    control: str | None = None
    sealed: bool = False
    damaged: str | None = None
    packing: str = ""


# --- Undamaged archives ---


def _written(write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def _files(write: Callable[[Path], Any], top: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x")
        return files_of(Path(folder) / "x", top)


def _sealed_h5(path: Path) -> None:
    """Version 3 of the superblock: all metadata have checksums, and so have the chunks."""
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("images", data=IMAGES, chunks=(2, 5, 6), fletcher32=True)


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, images=IMAGES, kind=np.array(CLASSES))


LABELLED = {"labels": {"folder": True}}
KIND = {"labels": {"column": "kind"}}
COMPANION = {"labels": {"companion": {"replace": "images", "by": "labels"}}}
CSV = {"csv": {"shape": [5, 6], "header": True}, "labels": {"column": "class"}}
SOUNDS = {"sample": {"segments": {"seconds": 0.1}}}
_ROWS = zip(*POSITIONS.values(), strict=True)
OBJECTS = (",".join(POSITIONS) + "\n" + "\n".join(",".join(map(str, row)) for row in _ROWS) + "\n").encode()
_TEXT_TABLE = "name,kind,score\n" + "\n".join(f"{name},{CLASSES[i]},{i}" for i, name in enumerate(NAMES)) + "\n"


def _sounds(kind: str, n: int = 6000) -> dict[str, bytes]:
    return {f"{i}.{kind}": sounding(sound(n, 1 + (i == 2), seed=i), kind) for i in range(4)}


def _photos(kind: str, images: np.ndarray, **options: Any) -> dict[str, bytes]:
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, "png")
    return {f"{CLASSES[i]}/{i:02d}.{suffix}": encoded(image, kind, **options) for i, image in enumerate(images)}


def _named(names: str, content: Callable[[int], bytes], n: int = 3) -> dict[str, bytes]:
    return {names.format(i): content(i) for i in range(n)}


ALL = ".*"
_TILES = {"tile_shape": (8, 31)}
_MAKERS: dict[str, Callable[[], Base]] = {
    "png": lambda: Base("images", _photos("PNG", IMAGES), ALL, LABELLED),
    "png rgb": lambda: Base("images", _photos("PNG", RGB), ALL, {"sample": {"exact": True, "channels": "keep"}}),
    "png 16 bit": lambda: Base("images", _photos("PNG", (IMAGES.astype(np.uint16) * 257)[:4]), ALL, LABELLED),
    "png patches": lambda: Base(
        "images", _photos("PNG", RGB), ALL, {"sample": {"patches": {"size": [4, 4], "stride": [2, 3]}}}
    ),
    "png table": lambda: Base(
        "images",
        _photos("PNG", IMAGES) | {"labels.csv": _TEXT_TABLE.encode()},
        r".*\.png",
        {"labels": {"table": {"file": "labels.csv", "key": "name", "label": "kind"}}},
    ),
    "jpeg": lambda: Base("images", _photos("JPEG", np.repeat(np.repeat(RGB, 3, 1), 3, 2)), fields=LABELLED),
    "jpeg resize": lambda: Base("images", _photos("JPEG", RGB), fields={"sample": {"resize": {"size": [6, 7]}}}),
    "tiff": lambda: Base("images", _named("{}.tif", lambda i: tiff(IMAGES[i].astype(np.float32)))),
    "tiff pages": lambda: Base("images", _named("{}.tif", lambda i: tiff(IMAGES[i : i + 3], photometric="minisblack"))),
    "tiff zlib": lambda: Base("images", _named("{}.tif", lambda i: tiff(IMAGES[i], compression="zlib"))),
    "tiff lzw": lambda: Base("images", _photos("TIFF", RGB, compression="tiff_lzw")),
    "idx": lambda: Base("idx", {"images-ubyte": idx(IMAGES), "labels-ubyte": idx(CODES)}, fields=COMPANION),
    "idx.gz": lambda: Base(
        "idx",
        {"images-ubyte.gz": gzip.compress(idx(IMAGES)), "labels-ubyte.gz": gzip.compress(idx(CODES))},
        ALL,
        COMPANION,
    ),
    "npy": lambda: Base("arrays", _named("{}.npy", lambda i: npy(IMAGES[i : i + 3]))),
    "npy labels": lambda: Base(
        "arrays", {"images.npy": npy(IMAGES), "labels.npy": npy(np.array(CLASSES))}, fields=COMPANION
    ),
    "npy.gz": lambda: Base("arrays", _named("{}.npy.gz", lambda i: gzip.compress(npy(IMAGES[i : i + 3]))), ALL),
    "npz": lambda: Base("arrays", {"a.npz": _written(_npz)}, ALL, {"members": ["images.npy"]} | KIND),
    "h5": lambda: Base("arrays", {"a.h5": _written(h5)}, fields=KIND),
    "h5 chunks": lambda: Base(
        "arrays",
        _named("{}.h5", lambda i: _written(lambda p: h5(p, IMAGES[i:], chunks=(2, 3, 4), compression="gzip"))),
        fields={"arrays": {"variable": "images"}},
    ),
    "h5 sealed": lambda: Base("arrays", {"a.h5": _written(_sealed_h5)}, ALL, {"arrays": {"variable": "images"}}),
    "netCDF": lambda: Base("arrays", {"a.nc": _written(nc3)}, fields=KIND),
    "netCDF records": lambda: Base("arrays", {"a.nc": _written(lambda p: nc3(p, records=True))}, fields=KIND),
    "netCDF-4": lambda: Base("arrays", {"a.nc": _written(nc4)}, fields=KIND),
    "Zarr": lambda: Base("arrays", _files(lambda p: store(p, chunks=(2, 5, 3)), "a.zarr/"), fields=KIND),
    "Zarr shards": lambda: Base(
        "arrays", _files(lambda p: store(p, chunks=(1, 5, 3), shards=(4, 5, 6)), "a.zarr/"), fields=KIND
    ),
    "Zarr crc": lambda: Base(
        "arrays",
        _files(lambda p: store(p, chunks=(2, 5, 6), compressors=Crc32cCodec()), "a.zarr/"),
        r".*/images/c/.*",
        {"arrays": {"variable": "images"}},
    ),
    "Zarr 2": lambda: Base("arrays", _files(lambda p: store(p, 2, chunks=(2, 5, 6)), "a.zarr/"), fields=KIND),
    "Parquet photos": lambda: Base(
        "arrays",
        _named("{}.parquet", lambda i: _written(lambda p: table(p, photos(IMAGES[i : i + 3], CLASSES[:3])))),
        fields=KIND,
    ),
    "Parquet lists": lambda: Base(
        "arrays",
        {"a.parquet": _written(lambda p: table(p, lists(), row_group_size=4))},
        fields={"arrays": {"shape": [5, 6]}} | KIND,
    ),
    "Parquet fixed": lambda: Base(
        "arrays", {"a.parquet": _written(lambda p: table(p, fixed(), write_page_checksum=True))}, fields=KIND
    ),
    "csv": lambda: Base("csv", {"t.csv": csv_text(IMAGES, CLASSES)}, fields=CSV),
    "csv.gz": lambda: Base("csv", {"t.csv.gz": gzip.compress(csv_text(IMAGES, CLASSES))}, ALL, CSV),
    "wav": lambda: Base("audio", _sounds("wav")),
    "wav float": lambda: Base("audio", _sounds("float.wav"), fields=SOUNDS),
    "wav adpcm": lambda: Base("audio", _sounds("adpcm.wav"), fields=SOUNDS),
    "flac": lambda: Base("audio", _sounds("flac"), ALL),
    "flac segments": lambda: Base("audio", _sounds("flac", 30000), ALL, SOUNDS),
    "ogg": lambda: Base("audio", _sounds("ogg"), ALL),
    "opus": lambda: Base("audio", _sounds("opus"), ALL, SOUNDS | {"audio": {"rate": 5000}}),
    "mp3": lambda: Base("audio", _sounds("mp3"), fields=SOUNDS),
    "fits": lambda: Base("sky", _named("{}.fits", lambda i: as_bytes(primary(IMAGE + i)))),
    "fits sealed": lambda: Base(
        "sky",
        _named("{}.fits", lambda i: as_bytes(hdu(IMAGE + i, "SCI", **PLACE), checksum=True)),
        ALL,
        {"sky": {"hdus": ["SCI"]}},
    ),
    "fits.gz": lambda: Base("sky", _named("{}.fits.gz", lambda i: gzip.compress(as_bytes(primary(IMAGE + i)))), ALL),
    "fits.bz2": lambda: Base("sky", _named("{}.fits.bz2", lambda i: bz2.compress(as_bytes(primary(IMAGE + i)))), ALL),
    "fits.fz": lambda: Base(
        "sky",
        _named("{}.fits.fz", lambda i: as_bytes(compressed(CUBE[0] + np.int16(i), "SCI", PLACE), checksum=True)),
        ALL,
        {"sky": {"hdus": ["SCI"]}, "sample": {"patches": {"size": [8, 8]}}},
    ),
    **{
        f"fits {kind}": lambda kind=kind: Base(  # type: ignore[misc]
            "sky",
            _named(
                "{}.fits",
                lambda i: as_bytes(
                    compressed(abs(CUBE[0]) + np.int16(i), "SCI", PLACE, compression_type=kind, **_TILES)
                ),
            ),
        )
        for kind in ("RICE_1", "GZIP_2", "PLIO_1")
    },
    "fits HCOMPRESS_1": lambda: Base(  # on damage without a checksum, astropy's decoder reads beyond the tile
        "sky",
        _named(
            "{}.fits",
            lambda i: as_bytes(
                compressed(abs(CUBE[0]) + np.int16(i), "SCI", PLACE, compression_type="HCOMPRESS_1", **_TILES),
                checksum=True,
            ),
        ),
        ALL,
        {"sky": {"hdus": ["SCI"]}},
    ),
    "fits cutouts": lambda: Base(
        "sky",
        {"x.fits": as_bytes(hdu(IMAGE, "SCI", **PLACE), checksum=True), "objects.csv": OBJECTS},
        r".*\.fits",
        {"sky": {"hdus": ["SCI"], "cutouts": {"table": "objects.csv", "size": [5, 4]}, "label": "kind"}},
    ),
    "healpix": lambda: Base(
        "sky", {"map.fits": as_bytes(sphere("RING", 16), checksum=True)}, ALL, {"sky": {"healpix": TILES}}
    ),
    "xyz": lambda: Base(
        "molecules", {f"{i}.xyz": text for i, text in enumerate([METHANE, WATER] * 2)}, fields={"molecules": GRID}
    ),
    "xyz.gz": lambda: Base(
        "molecules",
        {f"{i}.xyz.gz": gzip.compress(text) for i, text in enumerate([METHANE, WATER] * 2)},
        ALL,
        {"molecules": GRID},
    ),
}
BASES = tuple(_MAKERS)


@cache
def base(name: str) -> Base:
    """Return an undamaged archive by its name."""
    return _MAKERS[name]()


def fields_of(reader: str, location: Path | str, **fields: Any) -> dict[str, Any]:
    """Return the fields of a minimal entry."""
    return {
        "name": "tiny",
        "title": "tiny",
        "licence": "CC0-1.0",
        "reader": reader,
        "location": str(location),
        "spec": {"J": 1, "L": 2} if reader in ("images", "idx", "arrays", "csv", "sky") else {"J": 1},
    } | fields


# --- Packing ---

SEALING = ("tar.gz", "tar.bz2", "tar.xz", "zip")  # with checksums over all that they hold
PACKINGS = ("folder", "folder", "tar", *SEALING)


def pack(files: dict[str, bytes], packing: str, path: Path) -> Path:
    """Write files as a folder (or, of one file, that file), tar or zip; return where it is."""
    if packing == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        (name, *others) = files
        return path / name if not others and "/" not in name else path
    path.mkdir(parents=True, exist_ok=True)
    place = path / f"a.{packing}"
    if packing == "zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in files.items():
                made.writestr(name, content)
        return place
    with tarfile.open(place, f"w:{packing.removeprefix('tar').removeprefix('.')}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            tar.addfile(_info(name, size=len(content)), io.BytesIO(content))
    return place


def _info(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


# --- Damage ---

_PLACES = re.compile(rb"IHDR|IDAT|IEND|PK\x01\x02|PK\x03\x04|PK\x05\x06|OggS|fmt |data|fLaC|END   |OHDR|TREE|PAR1|SNOD")
_LENGTHS = (0, 1, 2, 4, 8, 127, 255, 512, 2880)


def _structural(rng: random.Random, content: bytes) -> int:
    """A place where something begins."""
    found = [match.start() for match in _PLACES.finditer(content)] + list(range(0, len(content), 512))
    return min(len(content), rng.choice(found or [0]) + rng.choice((0, 0, 1, 4, 8)))


def _at(rng: random.Random, content: bytes) -> int:
    """A place, more often where headers are than elsewhere."""
    if rng.random() < 0.5:
        return rng.randrange(min(len(content), rng.choice((64, 256, 512))))
    return rng.randrange(len(content))


def _put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new[: len(content) - at] + content[at + len(new) :]


def _number(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1, 1 << (4 * size)))
    return _put(content, _at(rng, content), value.to_bytes(size, rng.choice(("little", "big"))))


def _block(rng: random.Random, content: bytes) -> slice:
    size = rng.choice((1, 4, 16, 64, 512, 2880))
    at = _at(rng, content)
    return slice(at, at + size)


def _digits(rng: random.Random, content: bytes) -> bytes:
    """Replace a number in text."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return _number(rng, content)
    match = rng.choice(found)
    new = rng.choice((b"-1", b"0", b"9" * 20, b"1e400", b"nan", b"inf", b"", b"9" * 5000, b"1.5", b"0x10"))
    return content[: match.start()] + new + content[match.end() :]


DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": lambda rng, c: c[: rng.randrange(len(c))],
    "cut at a place": lambda rng, c: c[: _structural(rng, c)],
    "cut near the end": lambda rng, c: c[: -rng.choice((1, 2, 4, 5, 8, 12, 64))],
    "bit": lambda rng, c: _put(c, at := _at(rng, c), bytes([c[at] ^ 1 << rng.randrange(8)])),
    "bit of the rest": lambda rng, c: _put(c, at := rng.randrange(len(c)), bytes([c[at] ^ 1 << rng.randrange(8)])),
    "byte": lambda rng, c: _put(c, _at(rng, c), rng.randbytes(1)),
    "number": _number,
    "digits": _digits,
    "zeros": lambda rng, c: _put(c, (part := _block(rng, c)).start, bytes(part.stop - part.start)),
    "noise": lambda rng, c: _put(c, (part := _block(rng, c)).start, rng.randbytes(part.stop - part.start)),
    "twice": lambda rng, c: c[: (part := _block(rng, c)).stop] + c[part] + c[part.stop :],
    "removed": lambda rng, c: c[: (part := _block(rng, c)).start] + c[part.stop :],
    "inserted": lambda rng, c: c[: (at := _structural(rng, c))] + rng.randbytes(rng.choice((1, 7, 512))) + c[at:],
    "appended": lambda rng, c: c + rng.randbytes(rng.choice((1, 100, 5000))),
    "again": lambda rng, c: c + c,
    "empty": lambda rng, c: b"",
}


def damage_case(rng: random.Random, folder: Path) -> Case:
    """Damage a member, or the archive as a whole."""
    name = rng.choice(BASES)
    of = base(name)
    packing = "folder" if name == "npz" else rng.choice(PACKINGS)
    of_member = packing == "folder" or rng.random() < 0.5
    files = dict(of.files)
    damaged: str | None = None
    kinds = rng.choices(tuple(DAMAGES), k=rng.choice((1, 1, 1, 2, 3)))
    if of_member:
        damaged = rng.choice(tuple(files))
        files[damaged] = _damaged(rng, kinds, files[damaged])
        sealed = re.fullmatch(of.checked, damaged) is not None
    place = pack(files, packing, folder / "archive")
    if not of_member:
        place.write_bytes(_damaged(rng, kinds, place.read_bytes()))
        sealed = packing in SEALING or all(re.fullmatch(of.checked, file) for file in files)
    what = f"{name} in {packing}, {damaged or 'archive'}: {', '.join(kinds)}"
    return Case(of.reader, "damage", what, fields_of(of.reader, place, **of.fields), {}, name, sealed, damaged, packing)


def _damaged(rng: random.Random, kinds: list[str], content: bytes) -> bytes:
    for kind in kinds:
        if content:
            content = DAMAGES[kind](rng, content)
    return content


# --- Traps ---

TRAPS: dict[str, tuple[str, Callable[[random.Random, Path], dict[str, Any]]]] = {}
Make = Callable[[random.Random, Path], dict[str, Any]]


def trap(reader: str) -> Callable[[Make], Make]:
    """Register how to write a trap for a reader; it returns fields of the entry, ``location`` among them."""

    def register(make: Make) -> Make:
        TRAPS[make.__name__.strip("_").replace("_", " ")] = (reader, make)
        return make

    return register


def _tar(path: Path, files: dict[str, bytes], *infos: tarfile.TarInfo, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files.items():
            tar.addfile(_info(name, size=len(content)), io.BytesIO(content))
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return path


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_of(width: int, height: int, packed: bytes, depth: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


GOOD = {"cat/0.png": png(IMAGES[0]), "dog/1.png": png(IMAGES[1])}
HUGE = (1 << 14, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


@trap("images")
def names_that_lead_out(rng: random.Random, folder: Path) -> dict[str, Any]:
    wrong = [
        "../outside/s.png",
        "/etc/x.png",
        "a/../../outside/s.png",
        "..\\s.png",
        "C:\\s.png",
        "a/./b.png",
        "//x.png",
    ]
    wrong += [f"{folder}/outside/s.png", "a/..", ".png", " .png", "a" * 300 + ".png", "é\u202e.png", "x.png/"]
    files = GOOD | {name: png(IMAGES[2]) for name in rng.sample(wrong, 5)}
    if rng.random() < 0.5:
        return {"location": pack(files, "zip", folder / "archive")}
    return {"location": _tar(folder / "archive/a.tar", files)}


@trap("images")
def links_in_a_tar(rng: random.Random, folder: Path) -> dict[str, Any]:
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        b"Z",
    )
    targets = ("../outside/s.png", "/etc/passwd", "cat/0.png", "x.png", f"{folder}/outside/s.png")
    infos = [
        _info(f"l/{i}.png", type=rng.choice(kinds), linkname=rng.choice(targets), devmajor=1, devminor=5)
        for i in range(4)
    ]
    return {"location": _tar(folder / "archive/a.tar", GOOD, *infos)}


@trap("images")
def links_in_a_zip(rng: random.Random, folder: Path) -> dict[str, Any]:
    place = pack(GOOD, "zip", folder / "archive")
    with zipfile.ZipFile(place, "a") as made:
        info = zipfile.ZipInfo("l/2.png")
        info.external_attr = rng.choice((0o120777, 0o020666, 0o010666, 0o060666)) << 16
        made.writestr(info, rng.choice(("../outside/s.png", f"{folder}/outside/s.png", "cat/0.png")))
    return {"location": place}


@trap("images")
def links_in_a_folder(rng: random.Random, folder: Path) -> dict[str, Any]:
    place = pack(GOOD, "folder", folder / "archive")
    for i, target in enumerate(
        rng.sample(("/dev/zero", "nothing", str(place), "loop.png", "/dev/stdin", "/proc/self/mem"), 3)
    ):
        (place / f"l{i}.png").symlink_to(target)
    (place / "loop.png").symlink_to("loop.png")
    (place / "out").symlink_to(folder / "outside")
    os.mkfifo(place / "fifo.png")
    return {"location": place}


@trap("arrays")
def a_location_that_is_no_file(rng: random.Random, folder: Path) -> dict[str, Any]:
    place = folder / "archive"
    place.mkdir()
    os.mkfifo(place / "f.npy")
    (place / "z.npy").symlink_to("/dev/zero")
    (place / "z.tar.gz").symlink_to("/dev/zero")
    os.mkfifo(place / "f.zip")
    return {
        "location": rng.choice((place / "f.npy", place / "z.npy", place / "z.tar.gz", place / "f.zip", "/dev/null"))
    }


@trap("images")
def names_that_are_hard_to_write(rng: random.Random, folder: Path) -> dict[str, Any]:
    names = [b"a\xff\xfe.png", b"new\nline.png", b"esc\x1b[31m.png", b"\\xff.png", "\u2028.png".encode(), b"'\";--.png"]
    names += [b"%s{}.png", b"*[!a].png", b" a.png ", b"$(touch sprung).png", b"a\tb.png", b"\xc2\x85.png", b"-rf.png"]
    files = {name: png(IMAGES[i]) for i, name in enumerate(rng.sample(names, 5))}
    place = folder / "archive"
    place.mkdir()
    if rng.random() < 0.5:
        for name, content in files.items():
            Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(content)
        return {"location": place, "labels": {"pattern": r"(?P<label>^.)"}}
    return {"location": _tar(place / "a.tar", {os.fsdecode(n): c for n, c in files.items()}, encoding="utf-8")}


@trap("images")
def names_that_come_twice(rng: random.Random, folder: Path) -> dict[str, Any]:
    place = folder / "archive"
    place.mkdir()
    images = [png(image) for image in IMAGES[:3]]
    if rng.random() < 0.5:
        with tarfile.open(place / "a.tar", "w") as tar:
            for content in images:
                tar.addfile(_info("cat/0.png", size=len(content)), io.BytesIO(content))
        return {"location": place / "a.tar"}
    with zipfile.ZipFile(place / "a.zip", "w") as made:
        for i, content in enumerate(images):
            made.writestr(f"cat/{i}.png", content)
    content = (place / "a.zip").read_bytes().replace(b"cat/1.png", b"cat/0.png")
    (place / "a.zip").write_bytes(content)
    return {"location": place / "a.zip"}


@trap("images")
def archives_in_archives(rng: random.Random, folder: Path) -> dict[str, Any]:
    inner = pack(GOOD, rng.choice(("zip", "tar.gz")), folder / "inner").read_bytes()
    names = rng.sample(("inner.png", "inner.zip", "inner.tar", "inner.tar.gz", "x.tif"), 3)
    return {"location": pack(GOOD | dict.fromkeys(names, inner), rng.choice(PACKINGS), folder / "archive")}


@trap("images")
def bombs_of_containers(rng: random.Random, folder: Path) -> dict[str, Any]:
    place = folder / "archive"
    place.mkdir()
    much = bytes(200 << 20)
    which = rng.choice(("zip", "gz", "bz2", "xz", "tar.gz", "zip of lies"))
    if which == "tar.gz":
        head = _info("b.png", size=len(much)).tobuf()
        (place / "a.tar.gz").write_bytes(gzip.compress(head + much, 9))
        return {"location": place / "a.tar.gz"}
    if which == "zip of lies":  # the directory says that there is less
        with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("a.png", png(IMAGES[0]))
            made.writestr("b.png", much)
        content = (place / "a.zip").read_bytes()
        (place / "a.zip").write_bytes(content.replace(struct.pack("<I", len(much)), struct.pack("<I", 1000)))
        return {"location": place / "a.zip"}
    if which == "zip":
        pack(GOOD | {"b.png": much}, "zip", place)
        return {"location": place / "a.zip"}
    packer = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[which]
    if which == "gz" and rng.random() < 0.5:
        (place / "t.csv.gz").write_bytes(packer(b"1," * (100 << 20)))
        return {"location": place / "t.csv.gz", "reader": "csv", "csv": {"shape": [2, 2]}}
    (place / f"x.fits.{which}").write_bytes(packer(as_bytes(primary(IMAGE)) + much))
    return {"location": place, "reader": "sky"}


@trap("images")
def pictures_that_promise_too_much(rng: random.Random, folder: Path) -> dict[str, Any]:
    width, height = rng.choice(HUGE), rng.choice(HUGE)
    packed = zlib.compress(bytes(rng.choice((10, 1 << 20, 100 << 20))), 9)
    bad = _png_of(width, height, packed, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 6)))
    if rng.random() < 0.3:
        bad = bad[:33] + _chunk(rng.choice((b"iCCP", b"zTXt")), b"x\0\0" + zlib.compress(bytes(100 << 20))) + bad[33:]
    files = GOOD | {"a/9.png": bad}
    if rng.random() < 0.5:
        content = bytearray(tiff(IMAGES[0]))
        at = content.index(struct.pack("<HHI", 256, 3, 1)) if struct.pack("<HHI", 256, 3, 1) in content else 8
        content[at + 8 : at + 12] = struct.pack("<I", width & 0xFFFFFFFF)
        files = {"a.tif": bytes(content), "b.tif": tiff(IMAGES[0])}
    first = rng.random() < 0.5
    place = pack(dict(sorted(files.items(), reverse=first)), "folder", folder / "archive")
    return {
        "location": place,
        "sample": rng.choice(({"exact": True}, {"patches": {"size": [2, 2]}}, {"resize": {"size": [4, 4]}})),
    }


@trap("images")
def a_real_bomb_of_pixels(rng: random.Random, folder: Path) -> dict[str, Any]:
    side = rng.choice((9000, 13000, 14000))
    bad = _png_of(side, side, zlib.compress(bytes((side + 1) * side), 9))
    return {"location": pack(GOOD | {"z.png": bad}, "folder", folder / "archive"), "sample": {"crop": {"size": [4, 4]}}}


@trap("images")
def pictures_of_all_kinds(rng: random.Random, folder: Path) -> dict[str, Any]:
    from PIL import Image

    made = {
        "g.png": png(IMAGES[0]),
        "c.png": png(RGB[0]),
        "e.png": b"",
        "h.png": b"<html>",
        "s.png": png(IMAGES[0][:1, :1]),
    }
    for mode in ("1", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"):
        buffer = io.BytesIO()
        image = Image.new(mode, (6, 5))
        image.save(buffer, "TIFF")
        made[f"{mode.replace(';', '')}.tif"] = buffer.getvalue()
        if mode in ("1", "LA", "P", "RGBA"):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            made[f"{mode}.png"] = buffer.getvalue()
    made["nan.tif"] = tiff(np.full((5, 6), np.nan, np.float32))
    made["complex.tif"] = tiff(np.zeros((5, 6), complex))
    made["half.tif"] = tiff(np.ones((5, 6), np.float16))
    made["deep.tif"] = tiff(np.ones((3, 4, 5, 6), np.uint8))
    names = rng.sample(tuple(made), 6)
    policy = rng.choice(({"exact": True}, {"crop": {"size": [2, 2]}}, {"exact": True, "missing": True}))
    return {"location": pack({n: made[n] for n in names}, rng.choice(PACKINGS), folder / "archive"), "sample": policy}


class Pickled:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


_DTYPES = ("O", "c8", "c16", "f2", "?", ">f4", ">i2", "u8", "i8", "f8", "S3", "U3", "M8[s]", "m8[s]", "V4", "g", "a,f4")


@trap("arrays")
def dtypes(rng: random.Random, folder: Path) -> dict[str, Any]:
    dtype = rng.choice(_DTYPES)
    if dtype == "O":
        content = np.array([[[Pickled(folder / "sprung")] * 3] * 2] * 2, object)
    else:
        content = np.zeros((3, 4, 5), [("a", "f4")] if dtype == "a,f4" else dtype)
    files = {"a.npy": npy(content, allow_pickle=dtype == "O")}
    if rng.random() < 0.5:
        files |= {"b.npy": npy(IMAGES)}
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        np.savez(buffer, a=content, b=IMAGES, allow_pickle=dtype == "O")
        return {"location": pack({"a.npz": buffer.getvalue()}, "folder", folder / "archive"), "members": ["a.npy"]}
    return {"location": pack(files, rng.choice(PACKINGS), folder / "archive")}


@trap("arrays")
def headers_of_npy(rng: random.Random, folder: Path) -> dict[str, Any]:
    shapes = [
        "(2, 3, 4)",
        "(-1, 3, 4)",
        "(0, 3, 4)",
        "(2**40, 3, 4)",
        "(1099511627776, 3, 4)",
        "(2, 0, 0)",
        "(4294967296, 0, 4)",
    ]
    shapes += [
        "()",
        "(3,)",
        "(1," * 40 + ")" * 40,
        "(" + "1, " * 70 + ")",
        "(True, 3, 4)",
        "(2.0, 3, 4)",
        "__import__('os')",
    ]
    shapes += ["(1000000000, 0, 0)", "(3, 4, 1000000000000000000000)", "[2, 3, 4]", "(" * 300 + ")" * 300]
    descr = rng.choice(
        ("'|u1'", "'<f4'", "'|O'", "'<f99'", "'<f4' * 10", "[('a', '<f4')]", "'|V1'", "'|S1073741824'", "'|S0'")
    )
    text = (
        f"{{'descr': {descr}, 'fortran_order': {rng.choice(('False', 'True', '0'))}, 'shape': {rng.choice(shapes)}, }}"
    )
    version = rng.choice((1, 1, 1, 2, 3, 9))
    head = text.encode().ljust(118) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", rng.choice((len(head), len(head), 0, 65535)))
    content = b"\x93NUMPY" + bytes([version, 0]) + size + head + bytes(24 * 4)
    suffix = rng.choice(("", ".gz"))
    files = {f"a.npy{suffix}": gzip.compress(content) if suffix else content}
    if rng.random() < 0.5:
        files[f"b.npy{suffix}"] = gzip.compress(npy(IMAGES)) if suffix else npy(IMAGES)
    return {"location": pack(files, "folder", folder / "archive")}


@trap("idx")
def headers_of_idx(rng: random.Random, folder: Path) -> dict[str, Any]:
    n_dims = rng.choice((0, 1, 2, 3, 4, 255))
    sizes = [rng.choice((0, 1, 2, 3, 1 << 16, (1 << 32) - 1)) for _ in range(n_dims)]
    head = struct.pack(
        f">HBB{n_dims}I", rng.choice((0, 0, 0, 1)), rng.choice((8, 9, 11, 12, 13, 14, 0, 255)), n_dims, *sizes
    )
    content = head + bytes(rng.choice((0, 100, 10000)))
    packed = rng.random() < 0.5
    name = "a-ubyte.gz" if packed else "a-ubyte"
    return {"location": pack({name: gzip.compress(content) if packed else content}, "folder", folder / "archive")}


@trap("arrays")
def promises_of_hdf5(rng: random.Random, folder: Path) -> dict[str, Any]:
    path = folder / "archive"
    path.mkdir()
    with h5py.File(path / "a.h5", "w") as file:
        which = rng.randrange(8)
        if which == 0:
            file.create_dataset("images", (1 << rng.choice((20, 33, 62)), 64, 64), "f8", chunks=(1, 64, 64))
        elif which == 1:
            file.create_dataset("images", (2, 1 << 14, 1 << 14), "u1", chunks=(1, 1 << 14, 1 << 14), compression="gzip")
            file["images"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(rng.choice((100, 300 << 20)))))
        elif which == 2:
            images = file.create_dataset("images", (4, 100, 100), "u1", chunks=(1, 100, 100), compression="gzip")
            images[:] = 3
            images.id.write_direct_chunk((1, 0, 0), zlib.compress(bytes(200 << 20), 9))
        elif which == 3:
            file["images"] = h5py.ExternalLink("../outside/s.h5", "images")
        elif which == 4:
            file.create_dataset("images", (2, 5, 6), "u1", external=[(str(folder / "outside/s.raw"), 0, 60)])
        elif which == 5:
            layout = h5py.VirtualLayout((2, 5, 6), "u1")
            layout[:] = h5py.VirtualSource(str(folder / "outside/s.h5"), "images", (2, 5, 6))
            file.create_virtual_dataset("images", layout)
        elif which == 6:
            file["images"] = h5py.SoftLink("/images")
            file["loop"] = file["/"]
        else:
            file["images"] = np.zeros((2, 5, 6), rng.choice(("f2", "c8", "S3", "V5", "?", ">f4", "i8")))
    return {"location": path / "a.h5", "arrays": {"variable": "images"}}


@trap("arrays")
def documents_of_zarr(rng: random.Random, folder: Path) -> dict[str, Any]:
    version = rng.choice((2, 3))
    files = _files(lambda p: store(p, version, chunks=(2, 5, 6)), "a.zarr/")
    name = "a.zarr/images/" + (".zarray" if version == 2 else "zarr.json")
    document = json.loads(files[name])
    values: list[Any] = [
        None,
        0,
        -1,
        1 << 40,
        1 << 70,
        [],
        {},
        "",
        "x",
        True,
        [1 << 40, 5, 6],
        [0, 0, 0],
        [2, 5],
        [-2, 5, 6],
    ]
    values += [
        [{"id": "pickle"}],
        [{"name": "pickle"}],
        "|O",
        "object",
        "float16",
        "complex64",
        "<c8",
        "NaN",
        [[["f4"]]],
        1e308,
    ]
    values += [
        [1 << 30, 1 << 10, 1 << 10],
        {"name": "regular", "configuration": {"chunk_shape": [0, 5, 6]}},
        [2, 5, 6.5],
    ]
    values += [
        {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 5, 6]}},
        {"name": "x" * 1000},
        "../../outside",
    ]
    for _ in range(rng.choice((1, 1, 2))):
        document[rng.choice(tuple(document))] = rng.choice(values)
    text = json.dumps(document)
    if rng.random() < 0.15:
        text = rng.choice(
            (
                "[" * 100_000,
                "{}",
                "null",
                "1e999",
                '{"a":' * 20_000,
                "\ud800".encode("utf-8", "replace").decode(),
                "9" * 5000,
            )
        )
    files[name] = text.encode()
    return {
        "location": pack(files, rng.choice(("folder", "zip", "tar")), folder / "archive"),
        "arrays": {"variable": "images"},
    }


@trap("arrays")
def promises_of_parquet(rng: random.Random, folder: Path) -> dict[str, Any]:
    path = folder / "archive"
    path.mkdir()
    which = rng.randrange(6)
    if which == 0:
        table(
            path / "a.parquet",
            {"image": [png(IMAGES[0]) + bytes(64 << 20)] * 2},
            compression="zstd",
            use_dictionary=False,
        )
    elif which == 1:
        rows = pa.ListArray.from_arrays([0, 16 << 20, 32 << 20], pa.array(np.zeros(32 << 20, np.float32)))
        table(path / "a.parquet", {"x": rows})
    elif which == 2:
        table(path / "a.parquet", {"image": [png(IMAGES[0]), None, b"", b"x", _png_of(1 << 30, 9, b"")]})
    elif which == 3:
        table(path / "a.parquet", {"x": [[1.0, 2.0], [float("nan"), 1.0], None, [1.0], []]})
    elif which == 4:
        table(path / "a.parquet", {"x": pa.array([[b"a"]] * 3, pa.list_(pa.binary()))})
    else:
        parquet.write_table(pa.table({"x": pa.array([], pa.list_(pa.float32()))}), path / "a.parquet")
    dims = {} if which in (0, 2) else {"arrays": {"dims": ["sample", "time"]}}
    return {"location": path / "a.parquet"} | dims


@trap("csv")
def rows_of_text(rng: random.Random, folder: Path) -> dict[str, Any]:
    rows = [
        "1,2,3,4",
        "1,2,3",
        "1,2,x,4",
        "nan,1,2,3",
        "inf,1,2,3",
        "1e400,1,2,3",
        '"1","2","3","4"',
        "",
        ",,,",
        "1_0,2,3,4",
    ]
    rows += [
        "\x00,1,2,3",
        "9" * 5000 + ",1,2,3",
        "１,2,3,4",
        "0x1,2,3,4",
        "1,2,3,4" * 5000,
        "\ufeff1,2,3,4",
        "1,2,3,4\r",
        "True,1,2,3",
    ]
    text = (
        rng.choice(("\n", "\r\n", "\r")).join(rng.sample(rows, 6)).encode(rng.choice(("utf-8", "utf-16", "utf-8-sig")))
    )
    labels = rng.choice(({}, {"labels": {"column": rng.choice((0, -1, 3, 9, -9, 1 << 40))}}))
    shape = [2, 2] if not labels else [1, 3]
    return {"location": pack({"t.csv": text}, "folder", folder / "archive"), "csv": {"shape": shape}} | labels


@trap("audio")
def promises_of_sounds(rng: random.Random, folder: Path) -> dict[str, Any]:
    good = sounding(sound(3000), "wav")
    bad = bytearray(good)
    rate, n_channels, bits = (
        rng.choice((0, 1, 8000, (1 << 31) - 1, (1 << 32) - 1)),
        rng.choice((0, 1, 2, 65535)),
        rng.choice((0, 1, 16, 64)),
    )
    bad[22:28] = struct.pack("<HI", n_channels, rate)
    bad[34:36] = struct.pack("<H", bits)
    if rng.random() < 0.5:
        bad[40:44] = struct.pack("<I", rng.choice((0, 1, (1 << 31) - 1, (1 << 32) - 1)))
    if rng.random() < 0.3:
        bad = bytearray(sounding(sound(3000), "flac"))
        bad[21] |= 0x0F
        bad[22:26] = b"\xff" * 4
    names = ("0", "1") if rng.random() < 0.5 else ("1", "0")
    files = {f"{names[0]}.wav": good, f"{names[1]}.wav": bytes(bad)}
    policy = rng.choice(
        (
            {"exact": True},
            {"clip": {"seconds": 0.1}},
            {"segments": {"seconds": 0.1, "hop": 0.001}},
            {"clip": {"seconds": 2}},
        )
    )
    return {
        "location": pack(files, "folder", folder / "archive"),
        "sample": policy,
        "audio": rng.choice(({}, {"rate": 4000}, {"rate": 1 << 20}, {"rate": 1})),
    }


@trap("audio")
def sounds_of_all_kinds(rng: random.Random, folder: Path) -> dict[str, Any]:
    files = {
        "a.wav": sounding(sound(900), "wav"),
        "b.wav": sounding(sound(900, 2), "wav", 4000),
        "c.wav": sounding(sound(0), "wav"),
    }
    x = sound(900)
    x[5] = rng.choice((np.nan, np.inf, 1e38))
    files |= {
        "d.wav": sounding(x, "float.wav"),
        "e.wav": b"",
        "f.mp3": b"ID3" + bytes(500),
        "g.ogg": b"OggS" * 100,
        "h.flac": b"fLaC" + b"\x84" + b"\xff" * 60,
    }
    return {
        "location": pack({n: files[n] for n in rng.sample(tuple(files), 5)}, rng.choice(PACKINGS), folder / "archive"),
        "audio": {"channels": rng.choice(("mean", "first", "keep"))},
    }


def _fits(*cards: str, data: bytes = b"") -> bytes:
    head = "".join(card.ljust(80)[:80] for card in ("SIMPLE  =                    T", *cards, "END")).encode()
    return head.ljust(-(-len(head) // 2880) * 2880) + data


@trap("sky")
def headers_of_fits(rng: random.Random, folder: Path) -> dict[str, Any]:
    sizes = (
        "0",
        "1",
        "5",
        "-1",
        "999999",
        "4294967296",
        "99999999999999999999",
        "1.5",
        "'a'",
        "T",
        "",
        "1E400",
        "9" * 60,
    )
    cards = [
        f"BITPIX  = {rng.choice(('8', '16', '-32', '-64', '64', '7', '0', '-1', 'x')):>20}",
        f"NAXIS   = {rng.choice(('2', '2', '2', '3', '0', '999', '-1', '1')):>20}",
    ]
    cards += [f"NAXIS{i}  = {rng.choice(sizes):>20}" for i in (1, 2, 3)]
    extra = [
        "BSCALE  = 1E300",
        "BZERO   = NaN",
        "BLANK   = 9999999999999999999999",
        "BSCALE  = 0",
        "CTYPE1  = 'RA---TAN'",
        "CRVAL1  = 'x'",
    ]
    extra += [
        "CTYPE2  = 'DEC--TPV'",
        "CD1_1   = 0",
        "CDELT1  = NaN",
        "GROUPS  = T",
        "PCOUNT  = -5",
        "GCOUNT  = 99999999999",
        "EXTEND  = 3",
        "CHECKSUM= 'x'",
    ]
    extra += [
        "DATASUM = '-1'",
        "CONTINUE  'x&'",
        "HIERARCH A B = 1",
        "\x00\x01\x02",
        "END" + " " * 77 + "X",
        "NAXIS1  = 5",
        "EXTNAME = '&'",
    ]
    bad = _fits(*cards, *rng.sample(extra, 4), data=rng.choice((b"", bytes(2880), rng.randbytes(5760))))
    files = {"b.fits": bad} | ({"a.fits": as_bytes(primary(IMAGE))} if rng.random() < 0.5 else {})
    return {
        "location": pack(files, "folder", folder / "archive"),
        "sample": {"exact": True, "missing": rng.random() < 0.5},
    }


@trap("sky")
def tiles_of_fits(rng: random.Random, folder: Path) -> dict[str, Any]:
    made = bytearray(as_bytes(compressed(CUBE[0], "SCI", PLACE)))
    key = rng.choice(
        (
            b"ZNAXIS1",
            b"ZNAXIS2",
            b"ZTILE1 ",
            b"ZTILE2 ",
            b"ZBITPIX",
            b"NAXIS1 ",
            b"NAXIS2 ",
            b"PCOUNT ",
            b"THEAP  ",
            b"ZVAL1  ",
            b"ZCMPTYPE",
        )
    )
    at = made.find(key)
    value = rng.choice((b"0", b"1", b"-1", b"99999", b"4294967296", b"'PLIO_1'", b"'x'", b"32")).rjust(20)
    if at >= 0:
        made[at + 10 : at + 30] = value
    return {
        "location": pack({"a.fits": bytes(made)}, "folder", folder / "archive"),
        "sky": {"checksum": rng.random() < 0.5},
    }


@trap("sky")
def maps_of_the_sphere(rng: random.Random, folder: Path) -> dict[str, Any]:
    cards = rng.choice(
        (
            {"NSIDE": 1 << 29},
            {"NSIDE": 3},
            {"NSIDE": 0},
            {"ORDERING": "x"},
            {"NSIDE": "x"},
            {"COORDSYS": 5},
            {"PIXTYPE": "x"},
        )
    )
    made = sphere(rng.choice(("RING", "NESTED")), 8)
    made.header.update(cards)
    tiles = rng.choice((TILES, TILES | {"nside": 64}, {"tile": 4096, "resolution": 0.001}, TILES | {"column": "no"}))
    return {"location": pack({"m.fits": as_bytes(made)}, "folder", folder / "archive"), "sky": {"healpix": tiles}}


@trap("molecules")
def texts_of_molecules(rng: random.Random, folder: Path) -> dict[str, Any]:
    atoms = [
        "H 0 0 0",
        "H 1e308 -1e308 0",
        "H nan 0 0",
        "Xx 0 0 0",
        "H 0 0",
        "H 0 0 0 0 0",
        "6 0 0 0",
        "H 0,0 0 0",
        "h 1d3 0 0",
        "\xff 0 0 0",
        "H inf 0 0",
    ]
    n = rng.choice(("1", "2", "3", "-1", "0", "999999999999", "9" * 5000, "1.0", "x", "", "１"))
    text = "\n".join([n, rng.choice(("", "comment", "\x00")), *rng.sample(atoms, rng.choice((1, 2, 3)))])
    files = {"0.xyz": WATER, "1.xyz": text.encode("latin-1", "replace"), "2.xyz": b"\n" * 1000}
    if rng.random() < 0.3:
        files = {"1.xyz.gz": gzip.compress(text.encode() + b"H 0 0 0\n" * (20 << 20), 9)}
    return {"location": pack(files, "folder", folder / "archive"), "molecules": GRID}


@trap("images")
def tables_of_labels(rng: random.Random, folder: Path) -> dict[str, Any]:
    rows = [
        "name,kind",
        "cat/0.png,a",
        "cat/0.png,b",
        "dog/1.png",
        "dog/1.png,c,d,e",
        '"dog/1.png,c',
        "\x00,\x00",
        "nan,nan",
        "=cmd|' /C calc'!A0,1",
        "x" * 100_000,
    ]
    text = "\n".join([rows[0], *rng.sample(rows[1:], 4)]).encode(rng.choice(("utf-8", "utf-16", "utf-8-sig")))
    name = rng.choice(("t.csv", "t.parquet", "t.csv.gz", "t.tsv"))
    content = gzip.compress(rng.choice((text, bytes(100 << 20)))) if name.endswith("gz") else text
    spec = {"file": name, "key": "name"} | rng.choice(({"label": "kind"}, {"target": "kind"}, {"label": "no"}))
    return {
        "location": pack(GOOD | {name: content}, rng.choice(PACKINGS), folder / "archive"),
        "labels": {"table": spec},
    }


@trap("arrays")
def shapes_that_differ(rng: random.Random, folder: Path) -> dict[str, Any]:
    shapes = [(2, 5, 6), (2, 5, 7), (0, 5, 6), (5, 6), (2, 0, 6), (1, 1, 1), (2, 5, 6, 1), (3,), ()]
    dtypes = ("u1", "f4", ">f4", "i8", "f8")
    files = {f"{i}.npy": npy(np.ones(rng.choice(shapes), rng.choice(dtypes))) for i in range(5)}
    bad = np.ones((2, 5, 6), "f4")
    bad[1, 2, 3] = rng.choice((np.nan, np.inf, -np.inf, 3e38))
    files["9.npy"] = npy(bad)
    policy = rng.choice(
        ({"exact": True}, {"crop": {"size": [2, 2]}}, {"resize": {"size": [3, 3]}}, {"exact": True, "missing": True})
    )
    return {"location": pack(files, rng.choice(PACKINGS), folder / "archive"), "sample": policy}


def trap_case(rng: random.Random, folder: Path) -> Case:
    """Write one of the traps, and beside it what nobody may read."""
    name = rng.choice(tuple(TRAPS))
    reader, make = TRAPS[name]
    outside = folder / "outside"
    outside.mkdir()
    secret = np.full((5, 6), SECRET, np.uint8)
    (outside / "s.png").write_bytes(png(secret))
    (outside / "s.raw").write_bytes(bytes([SECRET]) * 60)
    h5(outside / "s.h5", np.full((2, 5, 6), SECRET, np.uint8))
    fields = {key: str(value) if key == "location" else value for key, value in make(rng, folder).items()}
    reader = str(fields.pop("reader", reader))
    return Case(reader, "trap", name, fields_of(reader, **fields))


# --- Entries and Specs ---

_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1 << 31,
        1 << 63,
        1 << 64,
        10**400,
        1.5,
        1e308,
        "",
        "x",
        " ",
        "\n",
        "\x00",
        "x" * 100_000,
    ),
    *(
        [],
        [[]],
        {},
        {"a": 1},
        [1, 2, 3],
        ["x"],
        [None],
        {"exact": True},
        "2020-01-01",
        "é\u202e",
        "NaN",
        "*",
        [0, 0],
        [1, 1],
    ),
    *([1 << 16, 1 << 16], [65537, 1], "../x", "\\", "~", "${HOME}", "{{ 1 }}", "!!python/object:x", [[1] * 3] * 3),
)
_LOCATIONS = (
    *("../x", "/dev", "/etc/passwd", "/dev/zero", "/proc/self/mem", "file:///etc/passwd", "FILE://x", "ftp://x/y"),
    *(
        "http://169.254.169.254/latest/meta-data/a.png",
        "https://[fe80::1]/a.png",
        "http://user:secret@localhost:1/a.png",
    ),
    *(
        "package:os/x",
        "package:../../etc/x",
        "package:numpy/../../..",
        "package:nothing/x",
        "package:",
        "s3://",
        "s3:///x",
    ),
    *(
        "http://127.0.0.1:1/a.png?x=1",
        "http://169.254.1.1:80/x/a.zip",
        "a\x00b",
        "a\nb",
        "x" * 5000,
        "~root/x",
        "C:\\x",
        ".",
    ),
    *(
        "http://2852039166/a.png",
        "http://0xA9FEA9FE/a.png",
        "http://[::ffff:169.254.169.254]/a.png",
        "http://169.254.169.254./a.png",
    ),
)
_PATTERNS = (
    *("(?P<label>(a+)+)$", "(?P<label>(a|a)*)b", "(?P<label>(.*)*)x$", "(?P<label>a{1,65535}){1,65535}b", "(?P<label>"),
    *(
        "(?P<label>a{99999999999})",
        "(" * 5000 + "(?P<label>x)" + ")" * 5000,
        "(?P<label>.)" * 3,
        "(?P<split>.*)",
        "no group",
    ),
    *(
        "(?P<label>)",
        "(?P<sample_id>.)",
        "(?P<member>.)",
        "(?P<status>.)",
        "(?P<label>.+?.+?.+?.+?.+?.+?.+?.+?x)$",
        "[[a](?P<label>x)",
    ),
    *(
        "(?P<label>\\d+)(?<=a+)",
        "(?P<target>.)",
        "(?P<item>.)",
        "(?P<scattering>.)",
        "(?P<signal>.)",
        "(?P<path>.)",
        "(?P<y>.)",
    ),
)
_GLOBS = (
    ["*" * 3000],
    ["*a" * 60 + "b"],
    ["[" * 1000],
    ["?" * 100],
    ["**/*.png"],
    ["../*"],
    [""],
    ["[!]"],
    ["*"] * 500,
    ["(a+)+$"],
)
_SPECS: tuple[tuple[str, Any], ...] = (
    *(("J", value) for value in (0, 1, 2, 5, 12, 13, 60, -1, "NaN", 1.5, "x", 10**30, True, [1], None)),
    *(("L", value) for value in (0, 1, 64, 65, 10**6, -1)),
    *(("max_order", value) for value in (0, 1, 6, 7, -1, 99)),
    *(("Q", value) for value in (0, -1, 1, 10**6, [0, 0], [8, 10**6], [1], "x")),
    *(("T", value) for value in (-1, 0, 1e300, ".nan", ".inf", "global", 1, 10**30)),
    *(("stride", value) for value in (0, 1, 3, 10**9)),
    *(("J_fr", value) for value in (0, 12, 13, -1)),
    *(("Q_fr", value) for value in (0, 1, 10**6)),
    *(("F", value) for value in (0, 1, 1e300)),
    *(("sigma_0", value) for value in (0, -1, 1e-300, 1e300, ".nan", ".inf", 1)),
    *(("integral_powers", value) for value in ([], [0], [-1], [1e300], [".nan"], [0.5] * 1000)),
    *(("padding", value) for value in ("support", "kymatio", "x")),
    *(("boundary", value) for value in ("zero", ["reflect", "periodic"], "x", [])),
    *(("transform", value) for value in ("scattering1d", "time_frequency", "solid_harmonic", "x", None, 3)),
    *(("dtype", value) for value in ("float64", "float16", "object")),
    *(("min_coverage", value) for value in (0, 1, 1.1, -0.1)),
)
_SETTINGS = (
    "",
    "=",
    "J",
    "J=",
    "J=[",
    "J=!!python/object/apply:os.system [ls]",
    "J=&a [*a]",
    "J=2020-99-99",
    "J=" + "9" * 5000,
    "J=" + "[" * 3000,
    "=3",
    "a=b=c",
    "J=3\nL=2",
    "J=!!binary x",
    "J=!!timestamp x",
    "J=\x00",
    "J=? x",
    "spec.J=3",
    "__class__=3",
)


def _laughs(depth: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


def _texts(fields: dict[str, Any]) -> tuple[str, ...]:
    plain = json.dumps(fields)
    return (
        _laughs(9) + "name: tiny\n",
        f"{plain[:-1]}, description: &a [*a]}}",
        f"{plain[:-1]}, title: !!python/object/apply:os.system ['touch sprung']}}",
        f"{plain[:-1]}, title: !!python/name:os.system ''}}",
        f"{plain[:-1]}, limit: {'9' * 5000}}}",
        f"{plain[:-1]}, limit: 2020-99-99}}",
        f"{plain[:-1]}, limit: !!timestamp x}}",
        f"{plain[:-1]}, limit: !!int x}}",
        f"{plain[:-1]}, limit: !!float x}}",
        f"{plain[:-1]}, limit: !!bool x}}",
        f"{plain[:-1]}, title: !!binary '~'}}",
        f"{plain[:-1]}, ? [a, b] : 3}}",
        f"{plain[:-1]}, ? {{a: b}} : 3}}",
        f"{plain[:-1]}, 3: 4, null: 5}}",
        f"{plain[:-1]}, limit: 1:2:3:4}}",
        f"{plain[:-1]}, <<: 3}}",
        f"{plain[:-1]}, name: other}}",
        f"--- {plain}\n--- {plain}",
        "[" * 30_000,
        "{a: " * 30_000,
        "",
        "null",
        "- a\n- b",
        "\x00",
        "\ufeff" + plain,
        "a: b: c",
        "%YAML 9.9\n---\n" + plain,
        "!!set {a, b}",
        "key: |\n" + "x" * (2 << 20),
        plain[: len(plain) // 2],
        "\t" + plain,
        "name: 'tiny\n",
        "@",
        "name: *nothing",
    )


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += _paths(value[key], (*at, key))
    return found


_UNKNOWN = (
    "labels",
    "split",
    "sample",
    "arrays",
    "csv",
    "sky",
    "audio",
    "molecules",
    "fit",
    "limit",
    "index",
    "spec",
    "members",
    "no_such",
)


def entry_case(rng: random.Random, folder: Path) -> Case:
    """Make an entry or a Spec that is wrong, extreme or hostile, over an archive that is fine."""
    name = rng.choice(BASES)
    of = base(name)
    files = of.files
    kind = rng.choice(("value", "value", "location", "pattern", "glob", "spec", "spec", "set", "text", "text", "infer"))
    if kind in ("pattern", "glob"):
        files = {f"{'a' * 28}{i}/!{k}": v for i, (k, v) in enumerate(GOOD.items()) for k in (k.replace("/", "_"),)}
        of = Base("images", files)
    place = pack(files, "folder" if name == "npz" else rng.choice(PACKINGS), folder / "archive")
    fields: dict[str, Any] = json.loads(json.dumps(fields_of(of.reader, place, **of.fields)))
    options: dict[str, Any] = {}
    said = kind
    made: dict[str, Any] | str = fields
    if kind == "value":
        for _ in range(rng.choice((1, 1, 2))):
            path = rng.choice(_paths(fields))
            if rng.random() < 0.3:
                path = (rng.choice(_UNKNOWN),)
            value = rng.choice(_VALUES)
            said += f" {'.'.join(map(str, path))}={str(value)[:40]!r}"
            here = fields
            try:
                for key in path[:-1]:
                    here = here[key]
                here[path[-1]] = value
            except (TypeError, KeyError, IndexError):
                pass
    elif kind == "location":
        fields["location"] = rng.choice(_LOCATIONS)
        said += f" {fields['location'][:40]!r}"
    elif kind == "pattern":
        pattern = rng.choice(_PATTERNS)
        where = rng.choice(("labels", "split"))
        fields[where] = {"pattern": pattern.replace("label", "split") if where == "split" else pattern}
        said += f" {where} {pattern[:40]!r}"
    elif kind == "glob":
        fields["members"] = rng.choice(_GLOBS)
        said += f" {str(fields['members'])[:40]!r}"
    elif kind == "spec":
        for _ in range(rng.choice((1, 1, 2, 3))):
            key, value = rng.choice(_SPECS)
            fields["spec"] |= {key: value}
        said += f" {str(fields['spec'])[:80]}"
    elif kind == "set":
        options["set"] = [rng.choice(_SETTINGS)]
        said += f" {options['set'][0][:40]!r}"
    elif kind == "text":
        made = rng.choice(_texts(fields))
        said += f" {made[-60:]!r}"
    else:
        options["bare"] = str(place)
    return Case(of.reader, "entry", f"{name}: {said}", made, options)


# --- A case from a seed ---


def make_case(seed: int, index: int, folder: Path) -> Case:
    """Write the case of a seed and a number into a folder."""
    rng = random.Random(f"{seed}:{index}")
    return rng.choices((damage_case, trap_case, entry_case), (6, 2, 2))[0](rng, folder)
