"""Which GPUs a cluster works on, what it asks of Dask-CUDA for them, and what is missing where it cannot.

One worker has one GPU. A worker takes several keys at a time (``threads``): one is read and decoded while another is
on the device and a third is written; the device computes them in turn (``kernels.device.through``).
"""

import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scattercube.kernels.device import cuda_problem, n_devices

if TYPE_CHECKING:
    from scattercube.pipeline.clusters import Cluster

CUDA_NBYTES = 1 << 30  # of host memory: a CUDA context, its libraries, and CuPy, beside what any worker holds


def contradiction(cluster: "Cluster", nbytes: Callable[[str], int]) -> str | None:
    """Return None, or what in a cluster file cannot be meant, on whatever machine; ``nbytes`` reads a size."""
    for name in ("devices", "device_memory_limit", "rmm_pool"):
        if cluster.kind != "cuda" and getattr(cluster, name) is not None:
            return f"`{name}` goes with `kind: cuda`, and only there"
    if cluster.devices is not None and len(set(cluster.devices)) < len(cluster.devices):
        return "`devices` names a GPU twice: one worker has one GPU"
    pool, limit = cluster.rmm_pool, cluster.device_memory_limit
    if pool is not None and limit is not None and nbytes(pool) > nbytes(limit):
        return f"`rmm_pool` {pool} is more than `device_memory_limit` {limit}"
    return None


def chosen(cluster: "Cluster") -> tuple[str, ...]:
    """Return the devices, one a worker, by the names that CUDA_VISIBLE_DEVICES has or would have for them.

    ``devices`` counts those that this process can see, as CUDA does: a batch system's choice is kept.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [names[n].strip() if names != [""] else str(n) for n in range(n_devices())]
    wanted = visible if cluster.devices is None else [visible[n] for n in cluster.devices]
    return tuple(wanted[: cluster.workers])


def problem(cluster: "Cluster") -> str | None:
    """Return None when the GPUs of a cluster can be used, else one line that says what is missing."""
    missing = cuda_problem()
    if missing is not None:
        return missing
    if importlib.util.find_spec("dask_cuda") is None:
        return "dask-cuda is not installed; install the extra scattercube[cuda12] or scattercube[cuda13]"
    if cluster.rmm_pool is not None and importlib.util.find_spec("rmm") is None:
        return (
            "`rmm_pool` needs RMM, which is not installed; install rmm-cu12 or rmm-cu13, or leave `rmm_pool` out: "
            "CuPy then keeps a pool of its own"
        )
    there = n_devices()
    if cluster.devices is not None and max(cluster.devices) >= there:
        return f"`devices` names {max(cluster.devices)}, and this machine has {_numbers(there)}"
    usable = there if cluster.devices is None else len(cluster.devices)
    if cluster.workers is not None and cluster.workers > usable:
        return f"`workers` is {cluster.workers}, each needs a GPU of its own, and {usable} can be used"
    return None


def options(cluster: "Cluster") -> dict[str, Any]:
    """Return what ``LocalCUDACluster`` is told beside what any local cluster is."""
    told: dict[str, Any] = {"CUDA_VISIBLE_DEVICES": list(chosen(cluster))}
    if cluster.device_memory_limit is not None:
        told["device_memory_limit"] = cluster.device_memory_limit
    if cluster.rmm_pool is not None:
        # Without the external allocator CuPy would keep a pool of its own beside RMM's.
        told |= {
            "rmm_pool_size": cluster.rmm_pool,
            "rmm_maximum_pool_size": cluster.device_memory_limit,
            "rmm_allocator_external_lib_list": ["cupy"],
        }
    return told


def settings(cluster: "Cluster", nbytes: Callable[[str], int]) -> dict[str, str]:
    """Return Dask's configuration while the workers start: the limit of CuPy's own pool is in their environment.

    ``device_memory_limit`` alone would have Dask spill what it holds on a device; here that is nothing.
    """
    limit = cluster.device_memory_limit
    name = "distributed.nanny.pre-spawn-environ.CUPY_GPU_MEMORY_LIMIT"
    return {} if limit is None else {name: str(nbytes(limit))}


def _numbers(there: int) -> str:
    return "one GPU, number 0" if there == 1 else f"{there} GPUs, numbers 0 to {there - 1}"
