"""Clusters of GPUs, as far as they can be seen without one: what is refused, what Dask-CUDA is told, who gets which.

The last tests run Dask-CUDA itself, where it is installed, on devices that are not there: its workers then compute
nothing on them, but each is given its own.
"""

import copy
import importlib.util
import inspect
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import dask
import distributed
import numpy as np
import pytest

from scattercube.kernels import device
from scattercube.pipeline import clusters, execute, extract, gpus, ingest, plan
from scattercube.pipeline.clusters import Cluster, connect, load_cluster, refuse_without_device
from scattercube.pipeline.errors import PlanError, SpecError
from scattercube.pipeline.job import Job, run
from scattercube.pipeline.stores.opening import store_at
from tests import late_cuda
from tests.synthetic import contents
from tests.test_execute import GRID, invocations, make_stage

CLUSTERS = Path(__file__).parents[1] / "deploy" / "clusters"


@pytest.fixture
def devices(monkeypatch):
    """Let this machine have two GPUs, and all that is needed for them."""
    there = {"cuda_problem": None, "n_devices": 2, "dask_cuda": True, "rmm": True}
    monkeypatch.setattr(gpus, "cuda_problem", lambda: there["cuda_problem"])
    monkeypatch.setattr(gpus, "n_devices", lambda: there["n_devices"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name] if name in there else find_spec(name))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return there


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: [0]", "`devices` goes with `kind: cuda`"),
        ("{kind: local, rmm_pool: 1GiB}", "`rmm_pool` goes with `kind: cuda`"),
        ("{kind: cuda, devices: [1, 1]}", "names a GPU twice"),
        ("{kind: cuda, devices: []}", "devices"),
        ("{kind: cuda, devices: [-1]}", "devices"),
        ("{kind: cuda, devices: 0}", "devices"),
        ("{kind: cuda, devices: [a]}", "devices"),
        ("{kind: cuda, device_memory_limit: much}", "device_memory_limit"),
        ("{kind: cuda, rmm_pool: 2GiB, device_memory_limit: 1GiB}", "`rmm_pool` 2GiB is more than"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, text, message):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        load_cluster(file)


@pytest.mark.parametrize(
    ("options", "there", "message"),
    [
        ({}, {"cuda_problem": "CuPy is not installed; …"}, "CuPy is not installed; …"),
        ({}, {"dask_cuda": None}, "dask-cuda is not installed; install the extra"),
        ({"rmm_pool": "1GiB"}, {"rmm": None}, "`rmm_pool` needs RMM, which is not installed; install rmm-cu12 or"),
        ({"devices": (0, 2)}, {}, "`devices` names 2, and this machine has 2 GPUs, numbers 0 to 1"),
        ({"devices": (1,)}, {"n_devices": 1}, "`devices` names 1, and this machine has one GPU, number 0"),
        ({"workers": 3}, {}, "`workers` is 3, each needs a GPU of its own, and 2 can be used"),
        ({"workers": 2, "devices": (1,)}, {}, "`workers` is 2, each needs a GPU of its own, and 1 can be used"),
    ],
)
def test_what_is_missing_is_said_in_one_line(devices, options, there, message):
    devices |= there
    with pytest.raises(PlanError) as refusal:
        refuse_without_device(Cluster(kind="cuda", **options))
    assert str(refusal.value).startswith(f"cluster kind cuda: {message}")
    assert "\n" not in str(refusal.value)


def test_what_is_not_asked_for_is_not_missed(devices):
    refuse_without_device(Cluster(kind="cuda", devices=(1, 0), workers=2, rmm_pool="1GiB"))
    devices["rmm"] = None
    refuse_without_device(Cluster(kind="cuda"))
    devices["cuda_problem"] = "no GPU"
    refuse_without_device(Cluster())


@pytest.mark.parametrize(
    ("options", "visible", "names"),
    [
        ({}, None, ["0", "1"]),
        ({"workers": 1}, None, ["0"]),
        ({"devices": (1,)}, None, ["1"]),
        ({"devices": (1, 0)}, None, ["1", "0"]),
        ({"devices": (1, 0), "workers": 1}, None, ["1"]),
        ({}, "5,7", ["5", "7"]),
        ({"devices": (1,)}, "5, 7", ["7"]),
        ({"devices": (1,)}, "GPU-aa,MIG-bb", ["MIG-bb"]),
    ],
)
def test_a_worker_a_device_among_those_that_are_visible(devices, monkeypatch, options, visible, names):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cluster = Cluster(kind="cuda", **options)
    assert gpus.options(cluster)["CUDA_VISIBLE_DEVICES"] == names
    assert cluster.n_workers == len(names)


@pytest.fixture
def told(monkeypatch):
    """What Dask-CUDA is told, and Dask's configuration meanwhile."""
    told = {}

    def cluster(**options):
        told.update(options, config=copy.deepcopy(dask.config.get("distributed")))
        return SimpleNamespace(close=lambda timeout: None)

    module = ModuleType("dask_cuda")
    module.LocalCUDACluster = cluster
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr(distributed, "Client", lambda cluster: cluster)
    return told


def test_dask_cuda_is_told_what_the_file_says(devices, told, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "{kind: cuda, devices: [1, 0], threads: 3, memory: 8GiB, device_memory_limit: 2GiB, rmm_pool: 1GiB}"
    )
    with connect(load_cluster(file)):
        config = told.pop("config")
    assert told == {
        "n_workers": 2,
        "threads_per_worker": 3,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": "8GiB",
        "CUDA_VISIBLE_DEVICES": ["1", "0"],
        "device_memory_limit": "2GiB",
        "rmm_pool_size": "1GiB",
        "rmm_maximum_pool_size": "2GiB",
        "rmm_allocator_external_lib_list": ["cupy"],
    }
    environ = config["nanny"]["pre-spawn-environ"]
    assert environ["CUPY_GPU_MEMORY_LIMIT"] == str(2 << 30)
    assert environ["OMP_NUM_THREADS"] == 1, "Dask's own settings stay"
    assert "CUPY_GPU_MEMORY_LIMIT" not in dask.config.get("distributed.nanny.pre-spawn-environ")


def test_without_a_pool_cupy_keeps_its_own(devices, told):
    """RMM without a pool would ask the driver for every array."""
    with connect(Cluster(kind="cuda")):
        assert not [name for name in told if name.startswith(("rmm", "device_memory"))]
        assert "CUPY_GPU_MEMORY_LIMIT" not in told["config"]["nanny"]["pre-spawn-environ"]


def test_a_worker_that_dies_is_not_given_up(devices, told):
    """Dask drops one that it has missed for 15 s, or whose second death comes just then; a run would wait for ever."""
    with connect(Cluster(kind="cuda")):
        assert told["config"]["deploy"]["lost-worker-timeout"] == "1 day"


def test_dask_cuda_knows_these_names(devices):
    cuda = pytest.importorskip("dask_cuda", reason="dask-cuda is not installed")
    known = inspect.signature(cuda.LocalCUDACluster).parameters
    cluster = Cluster(kind="cuda", device_memory_limit="2GiB", rmm_pool="1GiB")
    assert set(gpus.options(cluster)) | {"n_workers", "threads_per_worker", "memory_limit"} <= set(known)


@pytest.mark.parametrize("name", ["one-gpu", "multi-gpu"])
def test_the_cluster_files(devices, tmp_path, name):
    """As they are, and with all that is commented out."""
    file = CLUSTERS / f"{name}.yaml"
    cluster = load_cluster(file)
    assert cluster.kind == "cuda"
    assert cluster.threads == 8
    assert cluster.n_workers == (1 if name == "one-gpu" else 2)
    lines = [line.removeprefix("# ") for line in file.read_text().splitlines()]
    whole = tmp_path / file.name
    whole.write_text("\n".join(line for line in lines if line.partition(":")[0] in Cluster.model_fields))
    assert load_cluster(whole).model_fields_set == set(Cluster.model_fields) - {"address"}


def test_the_context_of_a_gpu_takes_memory_of_its_worker(devices):
    cluster = Cluster(kind="cuda", memory="4GiB")
    assert cluster.worker_nbytes() == (4 << 30) - gpus.CUDA_NBYTES
    assert Cluster(kind="cuda", memory="100MiB").worker_nbytes() == 0
    assert Cluster(kind="cuda").worker_nbytes() == clusters.machine()[1] // 2 - gpus.CUDA_NBYTES


@pytest.fixture
def ingested(tmp_path, monkeypatch):
    """A chunk store of 22 images, one of them quarantined, for a cube of several shards."""
    monkeypatch.setattr(plan, "SMALL_SHARD_NBYTES", 1 << 14)
    values = np.random.default_rng(0).normal(size=(22, 16, 16)).astype("f4")
    values[5, 3, 4] = np.nan
    np.save(tmp_path / "fields.npy", values)
    store = str(tmp_path / "store")
    return run(Job(entry=str(tmp_path / "fields.npy"), store=store, set=("J=2",), serial=True, until="ingest")).prepared


def reading(prepared):
    """The stage that has been run already."""
    return ingest.stage(prepared.places, prepared.entry, prepared.data_root, prepared.listing, prepared.plan)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("part_nbytes", [1, 1 << 26])
def test_extraction_through_a_device_writes_the_same_bytes(ingested, monkeypatch, seed, part_nbytes):
    """The device is a stand-in that works as late as it may; shards are cut into parts, and keys overlap."""
    cupy, transform, found = late_cuda.make(seed), plan.Plan.transform, {}
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device, "_CONVEYORS", {})
    for where in ("cpu", "cuda"):
        cube = store_at(f"{ingested.places.root}/{where}")
        places = SimpleNamespace(chunk_store=ingested.places.chunk_store, cube_store=cube)
        stage = extract.stage(places, ingested.entry, ingested.spec, ingested.plan, where, reading(ingested))
        stage.begin()
        if where == "cuda":
            monkeypatch.setattr(extract, "PART_NBYTES", part_nbytes)
            monkeypatch.setattr(plan.Plan, "transform", lambda *a: late_cuda.on_device(cupy, transform(*a)))
        assert len(stage.keys) > 4
        with ThreadPoolExecutor(3) as pool:
            events = list(pool.map(stage.step, stage.keys))
        found[where] = [(e.key, e.digest, e.n_samples, e.bad) for e in events], contents(places.cube_store)
    assert found["cpu"] == found["cuda"]
    computed = [n for kind, n in cupy.log if kind == "computed"]
    assert sum(computed) == 21
    assert set(computed) == {1} if part_nbytes == 1 else len(computed) == len(stage.keys)


def test_only_metadata_travels(ingested):
    places, entry, spec, plan = ingested.places, ingested.entry, ingested.spec, ingested.plan
    stage = extract.stage(places, entry, spec, plan, "cuda", reading(ingested))
    assert len(pickle.dumps((stage.step, tuple(stage.keys)))) < 4000, (
        "no filters, no arrays: nothing on a device for Dask to spill"
    )


def test_overlapping_keys_stay_within_the_plan(tmp_path, monkeypatch):
    """The memory of a worker that has three shards of full size at a time."""
    if importlib.util.find_spec("cupy"):
        pytest.skip("Zarr imports CuPy where it is, which the plan counts for workers of GPUs only")
    monkeypatch.setattr(plan, "SMALL_ARCHIVE_SHARDS", 5)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (1800, 64, 64), dtype=np.uint8))
    (tmp_path / "cluster.yaml").write_text("{kind: local, workers: 1, threads: 3, memory: 2GiB}")
    entry, store = str(tmp_path / "images.npy"), str(tmp_path / "store")
    prepared = run(
        Job(entry=entry, store=store, set=("J=3",), cluster=str(tmp_path / "cluster.yaml"), until="extract")
    ).prepared
    events = prepared.places.cube_store.events()
    assert len(events) >= 5
    assert max(event["nbytes_out"] for event in events) > 0.9 * plan.SHARD_NBYTES
    key_nbytes = prepared.plan.worker_nbytes - plan.PROCESS_NBYTES
    measured = max(event["peak_nbytes"] for event in events)
    assert measured < plan.PROCESS_NBYTES + 3 * key_nbytes


@pytest.fixture
def absent_gpus(monkeypatch):
    """Dask-CUDA on two devices that are not there."""
    pytest.importorskip("dask_cuda", reason="dask-cuda is not installed")
    if device.cuda_problem() is None:
        pytest.skip("this machine has a GPU: tests/gpu")
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")
    monkeypatch.setenv("DASK_CUDA_TEST_SINGLE_GPU", "1")
    monkeypatch.setattr(gpus, "n_devices", lambda: 2)
    monkeypatch.setattr("dask_cuda.local_cuda_cluster.parse_device_memory_limit", lambda limit, **_: limit)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def visible():
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_dask_cuda_gives_each_worker_its_device_and_again_when_it_dies(absent_gpus, tmp_path):
    with connect(Cluster(kind="cuda", memory="1GiB", threads=3)) as client:
        assert sorted(client.run(visible).values()) == ["0,1", "1,0"]
        assert set(client.nthreads().values()) == {3}
        stage = make_stage(tmp_path, {"sample=4": ["die", None]})
        assert execute.run(stage, stage.keys, client) == len(GRID.keys)
        assert not stage.store.missing(stage.keys)
        assert invocations(tmp_path)["sample=4"] == 2
        client.wait_for_workers(2, timeout=30)
        deadline = time.monotonic() + 30
        while sorted(client.run(visible).values()) != ["0,1", "1,0"]:
            assert time.monotonic() < deadline


def test_dask_cuda_works_on_the_devices_that_are_chosen(absent_gpus):
    with connect(Cluster(kind="cuda", memory="1GiB", devices=(1,), device_memory_limit="2GiB")) as client:
        assert list(client.run(visible).values()) == ["1"]
        assert list(client.run(os.getenv, "CUPY_GPU_MEMORY_LIMIT").values()) == [str(2 << 30)]
