"""What needs a CUDA device: tests, and the measurement that writes docs/gpu.md.

A machine with a GPU often holds a checkout that nobody has installed. The package asks the metadata of its installation
for its version; where there is none, the checkout's own pyproject.toml answers.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Checkout(Distribution):
    """The metadata of a checkout: its name and its version."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"

    def locate_file(self, path: object) -> Path:
        return ROOT / str(path)


class CheckoutFinder(DistributionFinder):
    """Finds the checkout by its name."""

    @classmethod
    def find_spec(cls, *_names: object) -> None:
        """Find no module: those of a checkout lie on the path."""

    @classmethod
    def find_distributions(cls, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        if context is not None and context.name == "scattercube":
            yield Checkout()


try:
    distribution("scattercube")
except PackageNotFoundError:
    sys.meta_path.append(CheckoutFinder())
