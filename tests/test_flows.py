"""The flow, against a real Prefect server on the loopback interface: the same bytes, artifacts, the deployment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.test_job import cube_bytes, photographs

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[1]
PREFECT, SCATTERCUBE = (Path(sys.executable).with_name(name) for name in ("prefect", "scattercube"))


def settings(home: Path, url: str | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}
    return env | quiet | {"PREFECT_HOME": str(home)} | ({"PREFECT_API_URL": url} if url else {})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the test's own, with an empty database; yields the environment that reaches it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    log = (home / "server.log").open("w")
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=settings(home, None), stdout=log, stderr=log)
    try:
        wait(lambda: urllib.request.urlopen(f"{url}/health", timeout=2).status == 200, 120, log.name)
        yield settings(home, url)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def wait(condition, seconds, log):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s; see {log}:\n{Path(log).read_text()[-2000:]}")


def scattercube(arguments, env, check=0):
    done = subprocess.run([SCATTERCUBE, *arguments], env=env, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout + done.stderr


def ask(env, path, **body):
    request = urllib.request.Request(
        f"{env['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_a_flow_writes_the_bytes_of_a_direct_run_and_leaves_artifacts(tmp_path, server):
    archive = photographs(tmp_path / "photos")
    flow, direct = tmp_path / "flow", tmp_path / "direct"
    said = scattercube(["run", str(archive), "--store", str(flow)], server)
    assert "page" in said
    scattercube(["run", str(archive), "--store", str(direct), "--direct", "--serial"], server)
    assert cube_bytes(flow) == cube_bytes(direct)
    artifacts = {row["key"]: row for row in ask(server, "artifacts/latest/filter")}
    assert {"ingest-progress", "extract-progress", "phases", "scores", "confusion", "summary"} <= set(artifacts)
    assert artifacts["extract-progress"]["data"] == 100
    assert artifacts["confusion"]["data"].startswith("data:image/png;base64,iVBOR")
    names = [run["name"] for run in ask(server, "task_runs/filter")]
    assert any(name.startswith("extract sample=0") for name in names), "a task is a range of keys"
    assert "nothing new" in scattercube(["run", str(archive), "--store", str(flow)], server)


def python(code, env):
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200, cwd=ROOT)


def test_a_refusal_comes_before_any_server(tmp_path):
    archive = photographs(tmp_path / "photos")
    nowhere = settings(tmp_path, "http://127.0.0.1:9/api")
    said = scattercube(["run", str(archive), "--store", str(tmp_path / "s"), "--set", "J=9"], nowhere, check=3)
    assert "J=9" in said
    assert "the largest possible J is 5" in said
    assert "Traceback" not in said


def test_an_interrupt_of_the_whole_group_ends_it_with_the_embedded_server(tmp_path):
    """What Ctrl-C on a terminal does: everyone gets the signal, the server included."""
    command = [SCATTERCUBE, "run", "textures", "--store", str(tmp_path / "s")]
    env = settings(tmp_path / "home", None)
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("ingest "):
            os.killpg(process.pid, signal.SIGINT)
            break
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130, "".join(seen) + rest
    assert "the same command continues" in rest


def test_a_scheduled_refusal_fails_in_one_line_and_is_not_retried(tmp_path, server):
    job = {"entry": str(photographs(tmp_path / "photos")), "store": str(tmp_path / "s"), "set": ["J=9"]}
    done = python(f"from scattercube.flows.run import run; run(job={job!r}, return_state=True)", server)
    assert "the largest possible J is 5" in done.stderr
    assert "Traceback" not in done.stderr
    (newest, *_) = ask(server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert newest["state_type"] == "FAILED"
    (plan,) = [run for run in ask(server, "task_runs/filter") if run["flow_run_id"] == newest["id"]]
    assert plan["run_count"] == 1


def test_a_failed_key_is_retried_as_a_task(server):
    code = """
from prefect import flow
from scattercube.flows.run import call_as_task
from scattercube.pipeline.errors import ChunkError

def work(calls):
    calls.append(1)
    if len(calls) < 2:
        raise ChunkError("extract sample=0: a disk that was away for a moment")
    return len(calls)

@flow
def probe():
    return call_as_task("extract sample=0", work, [])

print(probe())
"""
    done = python(code, server)
    assert done.stdout.strip().endswith("2"), done.stdout + done.stderr


def test_the_nightly_deployment_is_deployed_and_fired(tmp_path, server):
    def prefect(*arguments):
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments], env=server, capture_output=True, text=True, timeout=120, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefect("work-pool", "create", "scattercube", "--type", "process")
    prefect("deploy", "--prefect-file", "deploy/prefect.yaml", "--all")
    (deployment,) = ask(server, "deployments/filter")
    assert deployment["name"] == "nightly"
    assert deployment["concurrency_limit"] == 1 or deployment["global_concurrency_limit"]["limit"] == 1
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["30 2 * * *"]
    job = {"entry": "textures", "store": str(tmp_path / "store"), "limit": 12, "serial": True}
    prefect("deployment", "run", "scattercube/nightly", "--param", f"job={json.dumps(job)}")
    worker = [PREFECT, "worker", "start", "--pool", "scattercube", "--run-once"]
    done = subprocess.run(worker, env=server, capture_output=True, text=True, timeout=200, cwd=ROOT)
    runs = ask(server, "flow_runs/filter", deployments={"id": {"any_": [deployment["id"]]}})
    fired = [run for run in runs if run["state_type"] != "SCHEDULED"]
    assert [run["state_type"] for run in fired] == ["COMPLETED"], done.stdout + done.stderr
    (page,) = (tmp_path / "store").glob("textures*/results/*/report.html")
    assert page.stat().st_size > 10_000
