"""Readers of archives: what is there (``scan``, no pixels) and what it holds (``read``, a stream)."""

from scattercube.pipeline.sources.archive import locate
from scattercube.pipeline.sources.infer import load_entry
from scattercube.pipeline.sources.listing import READERS, Listing, Reader, read, scan

__all__ = ["READERS", "Listing", "Reader", "load_entry", "locate", "read", "scan"]
