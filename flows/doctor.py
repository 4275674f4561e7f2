"""Checks of the machine: what is here, what is missing, and whether a run can work."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from scattercube.flows.summary import prefect_server
from scattercube.pipeline.catalog import Entry, data_root, list_entries
from scattercube.pipeline.clusters import machine
from scattercube.pipeline.errors import ScattercubeError
from scattercube.pipeline.places import free_nbytes, root_address
from scattercube.pipeline.plan import in_words
from scattercube.pipeline.sources import locate

_NO_ENGINE = (
    "the compiled engine was not built when scattercube was installed, for want of a working C++ compiler (CXX, else "
    "c++); get one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install; conda: conda install cxx-compiler) "
    "and install again: uv sync --reinstall-package scattercube"
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``fine`` is None where it is neither good nor bad."""

    what: str
    found: str
    fine: bool | None = None


def examine(store: str, data: str | None) -> list[Finding]:
    """Look at everything a run depends on."""
    from scattercube.kernels.device import cuda_problem
    from scattercube.pipeline.cube import versions

    root = data_root(data)
    problem = cuda_problem()
    found = versions()
    cores, memory_nbytes = machine()
    return [
        Finding(
            "scattercube", f"{found.pop('scattercube')} on Python {found.pop('python')}, {platform.platform()}", True
        ),
        Finding("libraries", ", ".join(f"{name} {number}" for name, number in found.items()), True),
        Finding("cores, memory", f"{cores}, {in_words(memory_nbytes)}", True),
        _kernels(),
        Finding("GPU", "usable" if problem is None else f"none: {problem}", True if problem is None else None),
        Finding("Prefect", prefect_server()),
        _store(store),
        Finding(
            "data folder", f"{root}{'' if root.is_dir() else ' (absent: only entries that need no download will run)'}"
        ),
        *(Finding(f"entry {entry.name}", availability(entry, root)) for entry in list_entries()),
    ]


def availability(entry: Entry, root: Path) -> str:
    """Say whether the archive of an entry is there."""
    try:
        place = locate(entry, root)
        return f"there: {place}" if isinstance(place, Path) else f"elsewhere, not asked now: {place}"
    except ScattercubeError:
        return f"not under {root}: {entry.location}"


def _kernels() -> Finding:
    from scattercube.kernels.engine.library import active_engine, built

    sets = built()
    try:
        active = active_engine()
    except ValueError as failure:
        return Finding("kernels", str(failure), False)
    if active != "portable":
        return Finding("kernels", f"compiled engine for {active}; built: {', '.join(sets)}", True)
    portable = "portable primitives of NumPy and SciPy, slower and equal"
    if sets:
        chosen = os.environ.get("SCATTERCUBE_ENGINE")
        why = "as SCATTERCUBE_ENGINE says" if chosen else "for no library works here; install scattercube again"
        return Finding("kernels", f"{portable}, {why}; built: {', '.join(sets)}")
    return Finding("kernels", f"{portable}: {_NO_ENGINE}")


def _store(store: str) -> Finding:
    try:
        root = root_address(store)
        free = free_nbytes(root)
    except ScattercubeError as failure:
        return Finding("store", str(failure), False)
    room = f", {in_words(free)} free" if math.isfinite(free) else ""
    return Finding("store", f"{root}, writable{room}", True)
