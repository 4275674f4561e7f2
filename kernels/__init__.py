"""Wavelet scattering kernels: arrays in, arrays out."""

from scattercube.kernels.device import cuda_problem, to_device, to_host
from scattercube.kernels.engine.library import active_engine
from scattercube.kernels.meyer import TightFrame
from scattercube.kernels.paths import Paths
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from scattercube.kernels.solid_harmonic import HarmonicScattering3D
from scattercube.kernels.time_frequency import TimeFrequencyScattering

__all__ = [
    "HarmonicScattering3D",
    "Paths",
    "Scattering1D",
    "Scattering2D",
    "TightFrame",
    "TimeFrequencyScattering",
    "active_engine",
    "cuda_problem",
    "to_device",
    "to_host",
]
