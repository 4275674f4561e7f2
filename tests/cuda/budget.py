"""What a kernel takes on a GPU, without one: registers, stack, spills and shared memory, as NVRTC reports them.

NVRTC comes in the wheel ``nvidia-cuda-nvrtc`` (CUDA 13) or ``nvidia-cuda-nvrtc-cu12``, and needs neither a driver nor
the toolkit's headers.
"""

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
"""An A100, an H100 or H200, and the consumer cards of 2025."""

_LIBRARIES = ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12")


class CompileError(RuntimeError):
    """NVRTC refuses a source or an option; the message holds what it says."""


@dataclass(frozen=True)
class Budget:
    """What one kernel takes: per thread, and of static shared memory per block.

    ``stack_nbytes`` counts arrays that are not in registers, as well as what spills; a kernel whose loops unroll has 0.
    """

    registers: int
    stack_nbytes: int
    spill_stores_nbytes: int
    spill_loads_nbytes: int
    shared_nbytes: int


def nvrtc_problem() -> str | None:
    """Return None when kernels can be compiled for a GPU, else one line that says what is missing."""
    if not (path := _path()):
        return "NVRTC is not installed; install the package nvidia-cuda-nvrtc"
    try:
        _library()
    except OSError as error:
        return f"{path} cannot be loaded: {error}"
    return None


def budgets(source: str, options: Sequence[str] = (), architecture: str = "sm_90") -> dict[str, Budget]:
    """Compile a source for a GPU and return the budget of each kernel, by its name.

    `options` are those that ``cupy.RawModule`` takes, but for the architecture.

    Raises
    ------
    CompileError
        The source or an option is wrong.
    RuntimeError
        NVRTC is missing; `nvrtc_problem` says why.
    """
    if problem := nvrtc_problem():
        raise RuntimeError(problem)
    words = (*options, f"-arch={architecture}", "--ptxas-options=-v")
    return _parsed(_log(source, tuple(word.encode() for word in words)))


def _path() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    paths = (Path(folder) / name for name in _LIBRARIES for folder in folders or ())
    return next((path for path in paths if path.is_file()), None)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path()))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _log(source: str, options: tuple[bytes, ...]) -> str:
    """What the compiler and the assembler say of a source."""
    nvrtc, program, nbytes = _library(), ctypes.c_void_p(), ctypes.c_size_t()

    def check(status: int) -> None:
        if status:
            raise CompileError(nvrtc.nvrtcGetErrorString(status).decode())

    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None))
    try:
        words = (ctypes.c_char_p * len(options))(*options)
        status = nvrtc.nvrtcCompileProgram(program, len(options), words)
        check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(nbytes)))
        log = ctypes.create_string_buffer(nbytes.value)
        check(nvrtc.nvrtcGetProgramLog(program, log))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise CompileError(f"{nvrtc.nvrtcGetErrorString(status).decode()}\n{log.value.decode()[:8000]}")
    return log.value.decode()


def _parsed(log: str) -> dict[str, Budget]:
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        # Functions that were not inlined have frames of their own; those that spill should not hide.
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        stack, stores, loads = (sum(map(int, numbers)) for numbers in zip(*frames, strict=True))
        used = re.search(r"Used (\d+) registers(.*)", part)
        if not used:
            raise CompileError(f"the assembler's report has a form that is not known:\n{log[:2000]}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        found[name] = Budget(int(used[1]), stack, stores, loads, int(shared[1]) if shared else 0)
    return found
