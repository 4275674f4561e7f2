"""Headers that promise much: a plan says no in one sentence, before anything of that size is made."""

import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.plan import plan, refuse_what_cannot_fit
from scattercube.pipeline.sources import Layout
from scattercube.pipeline.spec import ImageSpec, JointSpec, SignalSpec, VolumeSpec

PEAK_NBYTES = 500 << 20
MODEST_NBYTES = 32 << 20  # imports that come late are in it
FEW = ("--set", "J=6", "--set", "max_order=1")  # coefficients that a disk has room for


def npy(*shape):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue(), int(np.prod(shape, dtype=object))


def fits(width, height):
    cards = (
        *("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"),
        *(f"NAXIS1  = {width:20}", f"NAXIS2  = {height:20}", "END"),
    )
    head = "".join(card.ljust(80) for card in cards)
    return head.ljust(2880).encode(), -(-width * height // 2880) * 2880


def png(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""), 0


CASES = {
    "image.npy": (npy(1, 30_000, 30_000), FEW, 3, r"a worker needs about [\d.]+ [GT]B .* and may use"),
    "larger.npy": (npy(1, 10**6, 10**6), FEW, 3, r"may write [\d.]+ TB and .* are free"),
    "short.npy": ((npy(1, 200_000, 200_000)[0], 0), (), 4, "short.npy"),
    "image.fits": (fits(30_000, 30_000), (*FEW, "--set", "padding=minimal"), 3, r"a worker needs about [\d.]+ [GT]B"),
    "image.png": (png(200_000, 200_000), (), 4, "40000000000 pixels"),
}


PLANS = """
import sys
from scattercube.flows.cli import main
from scattercube.pipeline.execute import peak_nbytes

folder = sys.argv[1]
for line in sys.stdin.read().splitlines():
    name, *options = line.split()
    sys.argv = ["scattercube", "plan", f"{folder}/{name}", "--store", f"{folder}/store", *options]
    print(name, file=sys.stderr)
    try:
        main()
    except SystemExit as end:
        print("ends with", end.code, file=sys.stderr)
print(peak_nbytes())
"""


def test_headers_that_promise_much_are_refused_in_a_sentence_and_take_no_memory(tmp_path):
    """All in one process of their own, whose peak is then known: 3 s, of which most is its start."""
    for name, ((head, n_more), *_) in CASES.items():
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + n_more)  # a hole: nothing is on the disk
    plans = "\n".join(" ".join([name, *options]) for name, (_, options, *_) in CASES.items())
    command = [sys.executable, "-c", PLANS, str(tmp_path)]
    done = subprocess.run(command, input=plans, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stderr.split())
    for name, (_, _, code, said) in CASES.items():
        assert re.search(rf"{name} (?:(?!ends with).)*{said}(?:(?!ends with).)* ends with {code}\b", text), text
    assert "Traceback" not in text
    assert int(done.stdout.split()[-1]) < PEAK_NBYTES
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ImageSpec(), (200_000, 200_000)),
        (ImageSpec(padding="kymatio"), (16, 1 << 40)),
        (SignalSpec(), (1 << 40,)),
        (SignalSpec(padding="support", T="global"), (1 << 40,)),
        (JointSpec(), (1 << 40,)),
        (VolumeSpec(), (10_000, 10_000, 10_000)),
    ],
)
def test_what_no_worker_holds_is_refused_from_integers_alone(spec, shape, tmp_path):
    planned, peak_nbytes = planned_within(spec, shape)
    assert peak_nbytes < MODEST_NBYTES
    assert planned.worker_nbytes > 1 << 40
    with pytest.raises(PlanError, match=r"a worker needs about [\d.e+]+ TB"):
        refuse_what_cannot_fit(planned, str(tmp_path), 0, 1 << 40, 1)


def test_large_fields_are_cut_into_tiles_as_before():
    planned, peak_nbytes = planned_within(ImageSpec(padding="support"), (20_000, 20_000))
    assert planned.axes
    assert planned.worker_nbytes < 1 << 30
    assert peak_nbytes < MODEST_NBYTES


def test_a_plan_makes_no_filters_of_what_fits_either():
    planned, peak_nbytes = planned_within(ImageSpec(), (4096, 4096))
    assert planned.worker_nbytes > 1 << 30
    assert peak_nbytes < MODEST_NBYTES


def planned_within(spec, shape):
    """A plan of one sample of this shape, and the bytes that it took at most."""
    units = ("pixel",) * len(shape)
    layout = Layout(spec.signal_dims, shape, np.dtype(np.float32), spacing=(1.0,) * len(shape), units=units)
    tracemalloc.start()
    try:
        return plan(spec, 1, layout), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
