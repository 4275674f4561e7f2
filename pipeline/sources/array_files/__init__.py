"""Readers of arrays on disk: images, signals and volumes."""
