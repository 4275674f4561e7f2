"""Labelled cubes of wavelet scattering features from large archives.

The package is a shell over three folders of the project, in the order in which they may import each other:
``scattercube.flows`` (Prefect, command line) → ``scattercube.pipeline`` (Zarr, xarray, Dask) → ``scattercube.kernels``
(arrays in, arrays out). Imports are absolute: ``from scattercube.kernels import Scattering2D``.
"""

from importlib.metadata import version

__version__ = version("scattercube")


def __getattr__(name: str) -> object:
    """Load ``scatter`` when it is first asked for: kernels alone need no xarray."""
    if name == "scatter":
        from scattercube.pipeline.lazy import scatter

        return scatter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
