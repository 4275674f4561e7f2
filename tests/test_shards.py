"""Shards as we write them: the bytes of zarr-python, and extended such that no reader of before is misled."""

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec, ZstdCodec

from scattercube.pipeline.stores.documents import array_in
from scattercube.pipeline.stores.shards import Coding

DTYPES = ("float32", "float64", "float16", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "complex64")


def zarr_array(shape, shard, chunk, dtype, **options):
    """Make an array in memory; return it, its files and its metadata."""
    files: dict = {}
    options = {"compressors": [BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")], **options}
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            zarr.storage.MemoryStore(files),
            name="a",
            shape=shape,
            chunks=chunk,
            shards=shard,
            dtype=dtype,
            fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
            **options,
        )
    return array, files, json.loads(files["a/zarr.json"].to_bytes())


def some(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, shape) * rng.choice([0, 1, 0.37], shape)
    return (values + 1j * values if np.dtype(dtype).kind == "c" else values).astype(dtype)


def boxes(shape, cut) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    for index in np.ndindex(*(-(-n // c) for n, c in zip(shape, cut, strict=True))):
        yield index, tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, cut, shape, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    chunk=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    beyond=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    dtype=st.sampled_from(DTYPES),
    sharded=st.booleans(),
)
def test_the_bytes_are_those_of_zarr(counts, chunk, beyond, dtype, sharded):
    chunk = tuple(chunk[: len(counts)])
    shard = tuple(n * c for n, c in zip(counts, chunk, strict=True))
    shape = tuple(max(1, n + b - 4) for n, b in zip(shard, beyond, strict=False))
    array, files, metadata = zarr_array(shape, shard if sharded else None, chunk, dtype)
    values = some(shape, dtype)
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(array.store, path="a", mode="r+")[...] = values
    coding = Coding.of(metadata)
    for index, box in boxes(shape, shard if sharded else chunk):
        name = "/".join(map(str, ("a", "c", *index)))
        assert b"".join(coding.encode(values[box])) == files[name].to_bytes(), name


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), sharded=st.booleans(), n_axes=st.integers(1, 3))
def test_any_box_of_what_zarr_wrote_is_read(data, dtype, sharded, n_axes):
    chunk = tuple(data.draw(st.lists(st.integers(1, 4), min_size=n_axes, max_size=n_axes)))
    shard = tuple(n * data.draw(st.integers(1, 3)) for n in chunk)
    array, files, metadata = zarr_array(shard, shard if sharded else None, chunk, dtype)
    values = some(shard, dtype)
    with zarr.config.set({"array.write_empty_chunks": data.draw(st.booleans())}):
        zarr.open_array(array.store, path="a", mode="r+")[...] = values
    coding = Coding.of(metadata)
    file = shard if sharded else chunk
    for index, whole in boxes(shard, file):
        if (content := files.get("/".join(map(str, ("a", "c", *index))))) is None:
            continue  # of zeros only
        starts = [data.draw(st.integers(0, n - 1)) for n in file]
        box = tuple(slice(start, data.draw(st.integers(start + 1, n))) for start, n in zip(starts, file, strict=True))
        out = np.empty([each.stop - each.start for each in box], coding.dtype)
        coding.decode(content.to_bytes(), box, out)
        np.testing.assert_array_equal(out, values[whole][box])
        assert np.prod([len(each) for each in coding.touched(box)]) <= np.prod(coding.counts)


@pytest.mark.parametrize("shard", [(8, 4), None])
def test_what_is_damaged_is_not_decoded(shard):
    _, _, metadata = zarr_array((8, 4), shard, (4, 4), "float32")
    coding, values = Coding.of(metadata), some((8, 4), "float32")
    content = b"".join(coding.encode(values[: coding.shape[0]]))
    box, out = tuple(slice(0, n) for n in coding.shape), np.empty(coding.shape, coding.dtype)
    for at, said in ((4, "says that it has"), (12, "says that it has")):  # bytes before and after compression
        with pytest.raises(ValueError, match=said):
            coding.decode(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], box, out)
    for damaged in (content[:10], content[:-20], b"") if shard is None else (content[:-1], content[:40], b""):
        with pytest.raises(ValueError, match=r"cut off|says that it has|checksum"):
            coding.decode(damaged, box, out)
    if shard is not None:  # a part of the shard is gone, the index is whole
        with pytest.raises(ValueError, match=r"behind its end|says that it has"):
            coding.decode(content[-(16 * 2 + 4) :], box, out)


def test_a_large_shard_has_the_bytes_of_zarr():
    array, files, metadata = zarr_array((3000, 217, 3, 3), (2211, 217, 3, 3), (67, 217, 3, 3), "float32")
    values = np.random.default_rng(0).lognormal(size=(2211, 217, 3, 3)).astype("f4")
    array[:2211] = values
    assert b"".join(Coding.of(metadata).encode(values)) == files["a/c/0/0/0/0"].to_bytes()


def test_other_memory_layouts_are_the_same_numbers():
    _, _, metadata = zarr_array((8, 6), (8, 6), (4, 3), "float32")
    coding, values = Coding.of(metadata), some((8, 6), "float32")
    expected = coding.encode(values)
    assert coding.encode(np.asfortranarray(values)) == expected
    assert coding.encode(values.astype(">f4")) == expected
    assert coding.encode(np.repeat(values, 2, axis=1)[:, ::2]) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": [ZstdCodec()]},
        {"compressors": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")]},
        {"compressors": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")]},
        {"compressors": [BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")]},
        {"compressors": None},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
    ],
    ids=str,
)
@pytest.mark.parametrize("shard", [(4, 4), None])
def test_what_is_encoded_otherwise_is_refused(options, shard):
    _, _, metadata = zarr_array((8, 4), shard, (2, 4), "float32", **options)
    with pytest.raises(ValueError, match="this version writes"):
        Coding.of(metadata)


def test_an_index_elsewhere_is_refused():
    _, _, metadata = zarr_array((8, 4), (4, 4), (2, 4), "float32")
    metadata["codecs"][0]["configuration"]["index_location"] = "start"
    with pytest.raises(ValueError, match="at the end"):
        Coding.of(metadata)
    metadata["codecs"][0]["configuration"] |= {"index_location": "end", "index_codecs": [{"name": "bytes"}]}
    with pytest.raises(ValueError, match="crc32c"):
        Coding.of(metadata)


@settings(max_examples=80, deadline=None)
@given(
    per_shard=st.integers(1, 5),
    chunk=st.integers(1, 4),
    beside=st.sampled_from([(), (3,), (5, 2)]),
    wider=st.integers(0, 2),
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=9),
    given_up=st.lists(st.booleans(), min_size=9, max_size=9),
    dtype=st.sampled_from(DTYPES[:6]),
)
def test_an_extended_shard_misleads_nobody(per_shard, chunk, beside, wider, lengths, given_up, dtype):
    """Whichever of the last indexes a reader holds, it finds in the file what was there for it, published or not."""
    n, within = per_shard * chunk, tuple(min(2, size) for size in beside)
    ends = [int(end) for end in np.minimum(np.cumsum(lengths), n)]
    ends = [end for end, before in zip(ends, [0, *ends], strict=False) if end > before]
    shape, shard = (n, *beside), (n, *((-(-size // w) + wider) * w for size, w in zip(beside, within, strict=True)))
    values, others = some(shape, dtype), some(shape, dtype, seed=1)
    _, _, metadata = zarr_array(shape, shard, (chunk, *within), dtype)
    coding = Coding.of(metadata)
    file, moments = b"".join(coding.encode(values[: ends[0]])), []
    moments.append((ends[0], coding._ending(file).index, file))
    for number, (before, end) in enumerate(pairwise(ends)):
        if given_up[number]:  # its rows never count, but who reads meanwhile may hold its index
            file = coding.extended(file, before, others[before:], f"given up {number}")
            moments.append((before, coding._ending(file).index, file))
        extended = coding.extended(file, before, values[before:end], f"{number}")
        # One that was killed, and runs again.
        assert coding.extended(extended, before, values[before:end], f"{number}") == extended
        assert coding.is_extended_by(extended[-coding.ending_nbytes :], f"{number}")
        assert not coding.is_extended_by(file[-coding.ending_nbytes :], f"{number}")
        file = extended
        moments.append((end, coding._ending(file).index, file))
    for now, (_, _, later) in enumerate(moments):
        for end, index, _ in moments[max(0, now - 2) : now + 1]:
            found = decoded(coding, later, index)[(slice(0, end), *map(slice, beside))]
            assert found.tobytes() == values[:end].tobytes()
    for end, _, published in moments:  # zarr reads them all, as long as the array is then
        files: dict = {}
        store = zarr.storage.MemoryStore(files)
        key = "/".join(map(str, ("a", "c", *[0] * len(shape))))
        files[key] = zarr.core.buffer.cpu.Buffer.from_bytes(published)
        np.testing.assert_array_equal(array_in(store, "a", {**metadata, "shape": [end, *beside]})[...], values[:end])


def test_a_shard_that_grows_by_single_rows_stays_small():
    _, _, metadata = zarr_array((512, 40, 6), (512, 40, 6), (16, 10, 6), "float32")
    coding, values = Coding.of(metadata), np.random.default_rng(0).normal(size=(512, 40, 6)).astype("f4")
    file = b"".join(coding.encode(values[:1]))
    for row in range(1, 512):
        file = coding.extended(file, row, values[row : row + 1], str(row))
        at_once = sum(map(len, coding.encode(values[: row + 1])))
        assert len(file) <= at_once + 6 * values[:16].nbytes + 3 * coding.ending_nbytes, row
    np.testing.assert_array_equal(decoded(coding, file, coding._ending(file).index), values)


def decoded(coding, file, index):
    """Read a shard as a reader does that holds an index: each inner chunk from where it says."""
    values = np.empty(coding.shape, coding.dtype)
    for place in np.ndindex(*coding.counts):
        offset, nbytes = (int(n) for n in index[place])
        if offset == nbytes == 2**64 - 1:
            continue
        box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, coding.chunk, strict=True))
        unpacked = Blosc().decode(file[offset : offset + nbytes])
        values[box] = np.frombuffer(unpacked, coding.dtype).reshape(coding.chunk)
    return values


def test_a_damaged_index_is_not_extended():
    _, _, metadata = zarr_array((8, 4), (8, 4), (2, 4), "float32")
    coding, values = Coding.of(metadata), some((8, 4), "float32")
    file = b"".join(coding.encode(values[:3]))
    for damaged in (file[:-1] + bytes([file[-1] ^ 1]), file[:20], b""):
        with pytest.raises(ValueError, match="checksum"):
            coding.extended(damaged, 3, values[3:], "next")
    with pytest.raises(ValueError, match="behind its end"):
        coding.extended(file[-coding.ending_nbytes :][-(16 * 4 + 4) :], 3, values[3:], "next")
    # What is in front of the index counts only where it is whole: else the shard is taken for one as Zarr writes it.
    extended = bytearray(coding.extended(file, 3, values[3:6], "next"))
    extended[-(16 * 4 + 4) - 30] ^= 1
    assert not coding.is_extended_by(bytes(extended), "next")
    again = coding.extended(bytes(extended), 6, values[6:], "third")
    np.testing.assert_array_equal(decoded(coding, again, coding._ending(again).index), values)
