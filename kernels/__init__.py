"""Wavelet scattering kernels: arrays in, arrays out."""

from scattercube.kernels.device import cuda_problem, to_device, to_host
from scattercube.kernels.paths import Paths
from scattercube.kernels.scattering import Scattering2D

__all__ = ["Paths", "Scattering2D", "cuda_problem", "to_device", "to_host"]
