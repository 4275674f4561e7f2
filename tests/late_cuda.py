"""A stand-in for the part of CuPy that moves arrays, on the host, whose streams work as late as they may.

What is sent to a stream happens when somebody waits for it and not before, or in between by chance (``seed``). Memory
that is taken has been in use until then, and memory that is given up is in use again, both in the order of its stream.
So whoever forgets to wait, or gives memory up too early, gets wrong numbers, where a device would mostly forgive.
"""

import ctypes
import importlib.machinery
import random
import threading
import weakref
from collections import deque
from types import ModuleType, SimpleNamespace

import numpy as np


class Mark:
    """A place in the queue of a stream."""

    def __init__(self, stream):
        self.stream, self.reached = stream, False

    def force(self):
        while not self.reached:
            self.stream.advance()


class Block:
    def __init__(self, cuda, nbytes):
        self.cuda, self.stream, self.bytes = cuda, cuda.current(), np.empty(nbytes, np.uint8)
        self.spoil()

    def spoil(self):
        bytes_ = self.bytes
        self.stream.send(lambda: bytes_.fill(0xFF))

    __del__ = spoil


class Array:
    __module__ = "cupy"

    def __init__(self, block, host):
        self.block, self.host = block, host

    @property
    def shape(self):
        return self.host.shape

    @property
    def dtype(self):
        return self.host.dtype

    @property
    def nbytes(self):
        return self.host.nbytes

    def __getitem__(self, index):
        return Array(self.block, self.host[index])

    def view(self, dtype):
        return Array(self.block, self.host.view(dtype))

    def reshape(self, shape):
        return Array(self.block, self.host.reshape(shape))

    @property
    def data(self):
        host, cuda = self.host, self.block.cuda  # the raw memory: a copy does not keep an array alive

        def copy(kind):
            def enqueue(pointer, nbytes, stream):
                assert nbytes == host.nbytes
                assert cuda.is_pinned(pointer)
                here, there = host.ctypes.data, pointer
                target, source = (here, there) if kind == "there" else (there, here)

                def run(keep=host):
                    assert cuda.is_pinned(pointer), "given up before its copy was made"
                    ctypes.memmove(target, source, nbytes)
                    cuda.log.append((kind, nbytes))

                stream.send(run)

            return enqueue

        return SimpleNamespace(copy_from_host_async=copy("there"), copy_to_host_async=copy("back"))


def make(seed=None, n_devices=1):
    """Return a module that passes for CuPy; ``launch(work)`` sends to the current stream, ``log`` says what ran."""
    lock, local, chance = threading.RLock(), threading.local(), random.Random(seed)
    cuda = SimpleNamespace(pinned=[], log=[], streams=[])

    class Stream:
        def __init__(self):
            self.queue = deque()
            cuda.streams.append(self)

        def send(self, work):
            with lock:
                self.queue.append(work)
                while seed is not None and chance.random() < 0.5:
                    chance.choice(cuda.streams).advance()

        def advance(self):
            with lock:
                if self.queue:
                    work = self.queue.popleft()
                    if isinstance(work, tuple):
                        work[0].force()
                    elif isinstance(work, Mark):
                        work.reached = True
                    else:
                        work()

        def record(self, event):
            event.mark = Mark(self)
            self.send(event.mark)

        def wait_event(self, event):
            self.send((event.mark,))

        def synchronize(self):
            with lock:
                while self.queue:
                    self.advance()

        def __enter__(self):
            local.__dict__.setdefault("stack", []).append(self)

        def __exit__(self, *_):
            local.stack.pop()

    class Event:
        def __init__(self, block, disable_timing):
            pass

        def synchronize(self):
            with lock:
                self.mark.force()

    default = Stream()
    cuda.current = lambda: (getattr(local, "stack", None) or [default])[-1]

    def pinned(memory, offset):
        cuda.pinned.append(weakref.ref(memory))
        return memory

    def is_pinned(pointer):
        held = [memory for reference in cuda.pinned if (memory := reference()) is not None]
        return any(memory.ctypes.data <= pointer < memory.ctypes.data + memory.nbytes for memory in held)

    cuda.is_pinned = is_pinned

    cupy = ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.cuda = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Device=lambda: SimpleNamespace(id=0),
        PinnedMemory=lambda nbytes: np.full(nbytes, 0xFF, np.uint8),
        PinnedMemoryPointer=pinned,
        runtime=SimpleNamespace(getDeviceCount=lambda: n_devices),
    )

    def empty(shape, dtype):
        block = Block(cuda, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return Array(block, block.bytes.view(dtype).reshape(shape))

    cupy.empty, cupy.ascontiguousarray = empty, lambda x: x
    cupy.launch, cupy.log, cupy.pinned = lambda work: cuda.current().send(work), cuda.log, cuda.pinned
    return cupy


def on_device(cupy, function):
    """Return a function of arrays there that does, late, what ``function`` does on the host."""

    def call(x):
        source = x.host
        like = function(np.zeros_like(source))  # the shape and dtype; what is in x has not arrived yet
        result = cupy.empty(like.shape, like.dtype)
        target = result.host

        def run():
            target[...] = function(source)
            cupy.log.append(("computed", len(source)))

        cupy.launch(run)
        return result

    return call
