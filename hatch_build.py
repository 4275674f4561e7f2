"""Compile the CPU engine of the kernels while the package is built; without a compiler, build it without."""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("lanes.cpp", "points.cpp", "volumes.cpp", "bands.cpp", "plan.cpp", "module.cpp")  # the longest first
FLAGS = (
    *("-O2", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# GCC's code for all processors loads a vector again for each of its uses, where that of these ones keeps it.
AVX2 = ("-mavx2", "-mfma", "-mtune=haswell")
AVX512 = (
    *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
    "-mtune=skylake-avx512",
)
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"baseline": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": AVX2, "avx512": AVX512}


def compile_engine(sources: Path, target: Path) -> list[Path]:
    """Compile the engine once per instruction set and return the libraries.

    Raises
    ------
    OSError
        The compiler, ``CXX`` or else ``c++``, cannot be started.
    subprocess.CalledProcessError
        It refuses the sources.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    static = ("-static-libstdc++", "-static-libgcc") if sys.platform == "linux" else ()

    def run(*arguments: str) -> None:
        subprocess.run([*compiler, *FLAGS, *arguments], cwd=sources, check=True, capture_output=True, text=True)  # noqa: S603 CXX is the installing user's

    def compiled(name: str, source: str) -> str:
        made = str(objects / f"{name}-{source}.o")
        run(*INSTRUCTION_SETS[name], "-c", source, "-o", made)
        return made

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects, libraries = Path(folder), []
        parts = {name: [pool.submit(compiled, name, source) for source in SOURCES] for name in INSTRUCTION_SETS}
        for name, futures in parts.items():
            libraries.append(target / f"scattering-{name}.so")
            run("-shared", *(future.result() for future in futures), *static, "-o", str(libraries[-1]))
    return libraries


class EngineHook(BuildHookInterface[Any]):
    """Put the engine's libraries into a wheel, or beside their sources for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say why not."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "scattercube" / "kernels" / "engine"
        if version == "editable":
            for stale in folder.glob("scattering-*.so"):
                stale.unlink()
            target = folder
        else:
            target = Path(tempfile.mkdtemp(prefix="scattercube-"))
        try:
            libraries = compile_engine(folder, target)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            self.app.display_warning(f"no compiled engine, the portable one will serve, slower and equal: {reason}")
            return
        if version != "editable":
            where = "scattercube/kernels/engine"
            build_data["force_include"] |= {str(library): f"{where}/{library.name}" for library in libraries}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    from packaging.tags import platform_tags

    return next(iter(platform_tags()))
