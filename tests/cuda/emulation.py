"""Run CUDA kernels on the CPU, through the interface of ``cupy.RawModule``, and take barriers out of their source.

    module = Module(source, ("-DWIDTH=32",), ("transpose",))
    with schedule("shuffled", seed=3):
        module.get_function("transpose")((4, 4), (32, 8), (x, y, np.int32(128)), shared_mem=4224)

``cuda_on_cpu.h`` says how a kernel runs and what is caught.
"""

import ctypes
import hashlib
import mmap
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

RUNTIME = Path(__file__).with_name("cuda_on_cpu.h")
FLAGS = (
    *("-std=c++17", "-O1", "-march=native", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fno-exceptions", "-w"),
    "-fcf-protection=none",  # a switch of stacks is what it is there to prevent
)
SCHEDULES = ("natural", "reversed", "shuffled")

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
MAX_SHARED_NBYTES = 227 * 1024
DEFAULT_SHARED_NBYTES = 48 * 1024

_MOST_LINES = 1 << 16

_order: ContextVar[tuple[str, int]] = ContextVar("order", default=("natural", 0))
_without_line: ContextVar[int] = ContextVar("without_line", default=-1)
_seen = (ctypes.c_ubyte * _MOST_LINES)()


class CompileError(RuntimeError):
    """The compiler refuses a source; the message holds what it says."""


class LaunchError(RuntimeError):
    """A kernel did what no kernel may; the message names the kernel, its block, and where it can the thread or line."""


@contextmanager
def schedule(name: Literal["natural", "reversed", "shuffled"], seed: int = 0) -> Iterator[None]:
    """Choose the order in which threads run between barriers, and blocks, for the launches within.

    ``shuffled`` draws a new order of the threads at each barrier, from `seed`.

    Raises
    ------
    ValueError
        There is no such schedule.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r}: expected one of {', '.join(SCHEDULES)}")
    token = _order.set((name, seed))
    try:
        yield
    finally:
        _order.reset(token)


@contextmanager
def barriers(without_line: int = -1) -> Iterator[set[int]]:
    """Fill a set, in the end, with the lines of sources at whose barriers launches within came by.

    What stands at ``without_line`` does nothing, as if `without_barrier` had taken it out.
    """
    lines: set[int] = set()
    ctypes.memset(_seen, 0, _MOST_LINES)
    token = _without_line.set(without_line)
    try:
        yield lines
    finally:
        _without_line.reset(token)
        lines.update(line for line in range(_MOST_LINES) if _seen[line])


def compiler_problem() -> str | None:
    """Return None when kernels can be compiled for the CPU, else one line that says what is missing."""
    compiler = _compiler()[0]
    return None if shutil.which(compiler) else f"no C++ compiler {compiler!r} to run CUDA kernels on the CPU"


class _Stacks(ctypes.Structure):
    """``cuda_on_cpu::Stacks``."""

    _fields_ = (("begin", ctypes.c_void_p), ("n", ctypes.c_uint64))


class _Launch(ctypes.Structure):
    """``cuda_on_cpu::Launch``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_nbytes", ctypes.c_uint64),
        ("stacks", ctypes.POINTER(_Stacks)),
        ("schedule", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("without_line", ctypes.c_int),
        ("seen", ctypes.POINTER(ctypes.c_ubyte)),
    )


_stacks = _Stacks()


class Module:
    """The kernels `names` of a CUDA source, compiled for the CPU.

    Of the options, those that define macros or name folders of headers (``-D``, ``-U``, ``-I``) count; those that are
    about devices are left out. Libraries are kept in a folder of the user's under the temporary one, by a digest of all
    that goes into them.

    Raises
    ------
    CompileError
        The source, or the name of a kernel, is wrong.
    """

    def __init__(self, source: str, options: Sequence[str], names: Sequence[str]) -> None:
        self.names = tuple(names)
        # Unnamed, so that nothing of one library is taken for another's, and what no kernel calls costs no time; and
        # within it a namespace of the source's own, so that it may use names that the C library has.
        text = (
            f'#include "{RUNTIME.name}"\nnamespace {{ namespace source {{\n#line 1 "source.cu"\n{source}\n}} }}\n'
            + "".join(f"CUDA_ON_CPU_KERNEL({name})\n" for name in self.names)
        )
        self._library = ctypes.PyDLL(str(_compiled(text, tuple(_about_source(options)))))
        self._kernels: dict[str, Kernel] = {}

    def get_function(self, name: str) -> "Kernel":
        """Return a kernel, the same object each time.

        Raises
        ------
        KeyError
            `name` is not among those that the module was made with.
        """
        if name not in self.names:
            raise KeyError(f"kernel {name!r}: the module has {', '.join(self.names)}")
        if name not in self._kernels:
            self._kernels[name] = Kernel(self._library, name)
        return self._kernels[name]


class Kernel:
    """One kernel, called as a ``cupy.RawKernel`` is.

    ``max_dynamic_shared_size_bytes`` is what a launch may ask for, 48 KiB until it is set.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED_NBYTES
        signature = getattr(library, f"signature_of_{name}")
        signature.restype = ctypes.c_char_p
        self.parameters = tuple((code[0], int(code[1:])) for code in signature().decode().split())
        self._launch = getattr(library, f"launch_{name}")
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = [ctypes.POINTER(_Launch), ctypes.POINTER(ctypes.c_void_p)]

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple, shared_mem: int = 0) -> None:
        """Run the kernel to its end.

        A pointer takes a C-contiguous array, or its address as a Python integer or a 64-bit scalar; a number takes a
        scalar of its kind and size, where a Python integer is a ``long long`` and a Python float a ``double``; a struct
        takes a scalar or a 0-d array of its size.

        Raises
        ------
        ValueError
            A launch of this shape, or with so much shared memory, is not possible; or an array has gaps, or cannot be
            written where the kernel's pointer is not to const.
        TypeError
            The arguments are not those that the kernel declares.
        LaunchError
            Threads wait for ones that never come, or the kernel touches memory that it has not.
        """
        grid, block = self._whole("grid", grid, MAX_GRID), self._whole("block", block, MAX_BLOCK)
        if (n_threads := block[0] * block[1] * block[2]) > MAX_THREADS:
            raise ValueError(f"{self.name}: block {block} has {n_threads} threads, more than {MAX_THREADS}")
        limit = min(self.max_dynamic_shared_size_bytes, MAX_SHARED_NBYTES)
        if not 0 <= shared_mem <= limit:
            raise ValueError(
                f"{self.name}: shared_mem={shared_mem} is not within {limit} bytes, the smaller of its "
                f"max_dynamic_shared_size_bytes and the device's {MAX_SHARED_NBYTES}"
            )
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}")
        values = [self._value(i, arg) for i, arg in enumerate(args)]
        name, seed = _order.get()
        order, without_line = (SCHEDULES.index(name), seed), _without_line.get()
        how = _Launch(grid, block, shared_mem, ctypes.pointer(_stacks), *order, without_line, _seen)
        problem = self._launch(how, (ctypes.c_void_p * (len(values) or 1))(*(value.ctypes.data for value in values)))
        if problem:
            raise LaunchError(problem.decode())

    def _whole(self, what: str, given: tuple[int, ...], limits: tuple[int, ...]) -> tuple[int, ...]:
        sizes = (*given, *(1,) * (3 - len(given)))
        if len(sizes) != 3 or not all(0 < size <= limit for size, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"{self.name}: {what} {given} is not of one to three sizes within 1 and {limits}")
        return sizes

    def _value(self, i: int, arg: Any) -> np.ndarray:
        """Return argument `i` as an array of one value, what the kernel's parameter is copied from."""
        kind, nbytes = self.parameters[i]
        where = f"{self.name}, argument {i}"
        if kind in "pc":
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise ValueError(f"{where}: an array of strides {arg.strides} is not C-contiguous")
                if kind == "p" and not arg.flags.writeable:
                    raise ValueError(f"{where}: a read-only array for a pointer that is not to const")
                return np.array(arg.ctypes.data, np.uint64)
            if type(arg) is int or isinstance(arg, np.int64 | np.uint64):
                return np.array(arg, np.uint64)
            raise TypeError(f"{where}: {type(arg).__name__} for a pointer")
        if type(arg) in (int, float):
            arg = np.int64(arg) if type(arg) is int else np.float64(arg)
        if not (isinstance(arg, np.generic) or (isinstance(arg, np.ndarray) and arg.ndim == 0)):
            raise TypeError(f"{where}: {type(arg).__name__} for a value")
        # An unsigned integer serves as a signed one of its size, as both are the same bytes to the device.
        expected = {"i": "iu", "u": "iub", "f": "f", "s": "Vc"}[kind]
        if arg.dtype.kind not in expected or arg.dtype.itemsize != nbytes:
            word = {"i": "an integer", "u": "an unsigned integer", "f": "a float", "s": "a struct"}[kind]
            raise TypeError(f"{where}: {arg.dtype} for {word} of {nbytes} bytes")
        return np.array(arg)


def guarded(array: np.ndarray) -> np.ndarray:
    """Return a copy that ends where memory cannot be accessed, to see a kernel read or write past it.

    Before it, no more than a page can be accessed.

    array : any shape, not empty -> same shape and dtype, C-contiguous
    """
    page = mmap.PAGESIZE
    inner_nbytes = -(-array.nbytes // page) * page
    data = np.frombuffer(mmap.mmap(-1, inner_nbytes + 2 * page), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in (0, page + inner_nbytes):
        if libc.mprotect(ctypes.c_void_p(data.ctypes.data + offset), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    end = page + inner_nbytes
    copy = data[end - array.nbytes : end].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def count_barriers(source: str) -> int:
    """Return how many calls of ``__syncthreads()`` a source has, comments aside."""
    return len(_barriers(source))


def without_barrier(source: str, n: int) -> str:
    """Return a source whose `n`-th call of ``__syncthreads()``, from 0, does nothing; lines keep their numbers.

    Raises
    ------
    IndexError
        There are not so many.
    """
    barriers = _barriers(source)
    if not 0 <= n < len(barriers):
        raise IndexError(f"barrier {n} of a source that has {len(barriers)}")
    begin, end = barriers[n]
    return f"{source[:begin]}(void(0)){source[end:]}"


def _barriers(source: str) -> list[tuple[int, int]]:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: " " * len(comment[0]), source, flags=re.DOTALL)
    return [call.span() for call in re.finditer(r"\b__syncthreads[ \t]*\([ \t]*\)", code)]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _about_source(options: Sequence[str]) -> Iterator[str]:
    for option, following in pairwise((*options, "")):
        if option in ("-D", "-U", "-I"):
            yield f"{option}{following}"
        elif option[:2] in ("-D", "-U", "-I"):
            yield option
        elif option.startswith(("--define-macro=", "--undefine-macro=", "--include-path=")):
            word, value = option.split("=", 1)
            yield f"-{word[2].upper()}{value}"


def _texts(text: str, folders: Sequence[Path], seen: dict[Path, str]) -> dict[Path, str]:
    """Add the headers that a text includes, and theirs, to those seen."""
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.MULTILINE):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path and path not in seen:
            seen[path] = path.read_text(encoding="utf-8")
            _texts(seen[path], (path.parent, *folders), seen)
    return seen


@cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"scattercube-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; libraries are not loaded from it")
    return folder


@cache
def _processor() -> str:
    """What ``-march=native`` stands for: a folder may be of a container that moves between machines."""
    command = [*_compiler(), "-march=native", "-Q", "--help=target"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _compiled(text: str, options: tuple[str, ...]) -> Path:
    """Return the library of a text, from the folder or compiled into it."""
    folders = [RUNTIME.parent, *(Path(option[2:]) for option in options if option.startswith("-I"))]
    headers = _texts(text, folders, {})
    key = repr((_compiler(), FLAGS, _processor(), options, text, sorted(map(str, headers)), [*headers.values()]))
    library = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        source, made = Path(scratch) / "module.cpp", Path(scratch) / "module.so"
        source.write_text(text, encoding="utf-8")
        command = [*_compiler(), *FLAGS, f"-I{RUNTIME.parent}", *options, str(source), "-o", str(made)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise CompileError(f"{shlex.join(command)}\n{result.stderr[:8000]}")
        made.replace(library)  # at once, as other processes may be compiling the same
    return library
