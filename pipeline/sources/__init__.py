"""Readers of archives: what is there (``scan``, no pixels) and what it holds (``read``, a stream)."""

from scattercube.pipeline.sources.archives.archive import locate
from scattercube.pipeline.sources.inference.infer import load_entry
from scattercube.pipeline.sources.listing import READERS, Listing, identify, read, scan
from scattercube.pipeline.sources.reader import Columns, Layout, Reader, Window

__all__ = [
    "READERS",
    "Columns",
    "Layout",
    "Listing",
    "Reader",
    "Window",
    "identify",
    "load_entry",
    "locate",
    "read",
    "scan",
]
