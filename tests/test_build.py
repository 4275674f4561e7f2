"""What an install brings: the engine for each instruction set; without a compiler, a complete and portable wheel."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scattercube.kernels import Scattering2D
from tests.conftest import relative_error

ROOT = Path(__file__).parents[1]
UV = os.environ.get("UV") or shutil.which("uv")
NOT_SOURCES = shutil.ignore_patterns(".*", "*.so", "__pycache__", "tests", "store", "data", "dist")
USE = """
import sys
import numpy as np
from scattercube.kernels import Scattering2D
from scattercube.kernels.engine import library
assert library.__file__.startswith(sys.argv[1]), library.__file__
np.save(sys.argv[2], Scattering2D(2, (20, 24), L=4)(np.load(sys.argv[3])))
print(library.active_engine(), *library.built())
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "scattercube"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=NOT_SOURCES)
    # A library that an editable install has left must not travel.
    (folder / "kernels" / "engine" / "scattering-baseline.so").write_bytes(b"stale")
    return folder


def build(sources, into, compiler):
    """Build an sdist and from it a wheel; return the wheel and the folder it was unpacked into."""
    if UV is None:
        pytest.skip("uv, which builds the wheel, is not on the path")
    command = [UV, "build", "--python", sys.executable, "--out-dir", str(into), str(sources)]
    done = subprocess.run(command, env=os.environ | {"CXX": compiler}, capture_output=True, text=True, timeout=280)
    offline = any(sign in done.stderr for sign in ("client error", "Failed to fetch", "network was disabled"))
    if done.returncode and offline and "CI" not in os.environ:
        pytest.skip("hatchling, which builds the wheel, cannot be fetched")
    assert done.returncode == 0, done.stderr
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into / "installed")
    return wheel.name, into / "installed"


def use(installed, into):
    """Scatter with the unpacked wheel in another process; return what `USE` prints once the numbers are right."""
    x = np.random.default_rng(0).standard_normal((3, 20, 24)).astype(np.float32)
    np.save(into / "x.npy", x)
    environment = {name: value for name, value in os.environ.items() if name != "SCATTERCUBE_ENGINE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE, str(installed), str(into / "S.npy"), str(into / "x.npy")],
        cwd=into,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert relative_error(np.load(into / "S.npy"), Scattering2D(2, (20, 24), L=4)(x)) < 3e-6
    return done.stdout.split()


def test_without_a_compiler_the_wheel_is_complete_and_portable(sources, tmp_path):
    name, installed = build(sources, tmp_path, "false")
    assert name.endswith("-py3-none-any.whl")
    assert not list(installed.rglob("*.so"))
    assert use(installed, tmp_path) == ["portable"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler, c++")
def test_with_a_compiler_the_wheel_holds_every_instruction_set(sources, tmp_path):
    quick = tmp_path / "quick-c++"  # what is tested is the build, not the code that a compiler takes a minute over
    quick.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    quick.chmod(0o755)
    name, installed = build(sources, tmp_path, str(quick))
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    sets = ["avx512", "avx2", "baseline"] if platform.machine() in ("x86_64", "AMD64") else ["baseline"]
    libraries = [installed / "scattercube" / "kernels" / "engine" / f"scattering-{each}.so" for each in sets]
    assert sorted(installed.rglob("*.so")) == sorted(libraries)
    engine, *built = use(installed, tmp_path)
    assert engine in sets
    assert built == sets
