"""Labelled cubes of wavelet scattering features from large archives.

The package is a shell over three folders of the project, in the order in which they may import each other:
``scattercube.flows`` (Prefect, command line) → ``scattercube.pipeline`` (Zarr, xarray, Dask) → ``scattercube.kernels``
(arrays in, arrays out). Imports are absolute: ``from scattercube.kernels import Scattering2D``.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("scattercube")


_LATE = {  # kernels alone need no xarray
    "scatter": "scattercube.pipeline.lazy",
    "iter_batches": "scattercube.pipeline.batches",
    "open_cube": "scattercube.pipeline.stores.opening",
}


def __getattr__(name: str) -> object:
    """Load what works on cubes when it is first asked for."""
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
