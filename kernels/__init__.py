"""Wavelet scattering kernels: arrays in, arrays out."""
