"""What the tests of the CUDA engine share."""

import pytest

from tests.cuda import emulated as plans
from tests.cuda.emulation import compiler_problem


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what is meant for a device by the emulator, on NumPy arrays; memory that nobody has written is NaN."""
    if problem := compiler_problem():
        pytest.skip(problem)
    plans.install(monkeypatch)
