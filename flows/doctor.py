"""Checks of the machine: what is here, what is missing, and whether a run can work."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scattercube.pipeline.catalog import Entry, data_root, list_entries

from scattercube.flows.summary import gigabytes, prefect_server
from scattercube.pipeline.errors import ScattercubeError
from scattercube.pipeline.places import local_root
from scattercube.pipeline.sources import locate


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``fine`` is None where it is neither good nor bad."""

    what: str
    found: str
    fine: bool | None = None


def examine(store: str, data: str | None) -> list[Finding]:
    """Look at everything a run depends on."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    from scattercube.kernels.device import cuda_problem
    from scattercube.pipeline.cube import versions

    root = data_root(data)
    problem = cuda_problem()
    found = versions()
    return [
        Finding(
            "scattercube", f"{found.pop('scattercube')} on Python {found.pop('python')}, {platform.platform()}", True
        ),
        Finding("libraries", ", ".join(f"{name} {number}" for name, number in found.items()), True),
        Finding("cores, memory", f"{CPU_COUNT}, {gigabytes(int(MEMORY_LIMIT))}", True),
        Finding("kernels", "portable NumPy and SciPy primitives", True),
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
        return f"there: {locate(entry, root)}"
    except ScattercubeError:
        return f"not under {root}: {entry.location}"


def _store(store: str) -> Finding:
    try:
        root = local_root(store)
    except ScattercubeError as failure:
        return Finding("store", str(failure), False)
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = f"{gigabytes(shutil.disk_usage(existing).free)} free"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("store", f"{existing} is not a folder one can write to", False)
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            return Finding("store", f"{root}, writable, {free}", True)
    except OSError as failure:
        return Finding("store", f"{existing}: {failure.strerror}", False)
