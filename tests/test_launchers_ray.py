"""What the Ray launcher does without a cluster: its errors, what it passes on, and the guard of its children."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from jsonschema import ValidationError

from selfreward import load_recipe
from selfreward.launchers import launch

ray = pytest.importorskip("ray")


@pytest.fixture
def recipe(tmp_path: Path):
    return load_recipe("recipes/quickstart/run.yaml", [f"run_dir={tmp_path}", "launch.launcher=ray"])


def test_without_ray_the_way_out_is_told(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("selfreward.launchers.ray")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ValueError, match=r'launcher: ray needs ray, which is not installed: pip install "selfreward\[ray\]"'
    ):
        launch.find_launcher(recipe)


def test_without_a_cluster_the_way_out_is_told(tmp_path: Path) -> None:
    """In a world of its own, as Ray looks at all processes of the machine for a cluster."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a namespace for processes")
    command = [sys.executable, "-m", "selfreward", "run", "recipes/quickstart/run.yaml", f"run_dir={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*apart, *command, "launch.launcher=ray"],
        check=False,
        env={**environment, "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "there is no cluster of Ray that this process can join: Could not find any running Ray instance" in said
    assert "ray start --head" in said
    assert "launch/ray/README.md" in said


def test_nothing_imports_ray_unless_it_is_chosen() -> None:
    program = "import sys, selfreward.cli, selfreward.loop; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_child_gets_what_the_driver_says_to_libraries_and_no_rank() -> None:
    from selfreward.launchers.ray.hosts import ours

    passed = {"PYTHONPATH": "tests", "HF_TOKEN": "t", "VLLM_LOGGING_LEVEL": "INFO", "NCCL_DEBUG": "WARN"}
    kept_back = {"PATH": "/bin", "RANK": "1", "TORCHELASTIC_RUN_ID": "2", "MASTER_ADDR": "h", "OPENAI_API_KEY": "k"}
    assert ours({**passed, **kept_back}) == passed


# A process that starts a guarded command, whose child is in the same process group; then it does nothing.
ACTOR = """
import os, sys, time
from selfreward.launchers.base import ProcessJob
from selfreward.launchers.ray.hosts import GUARDED
stdin, end = os.pipe()
shell = "sleep 600 & echo $$ $!; wait"
ProcessJob(["sh", "-c", GUARDED, "sh", "sh", "-c", shell], dict(os.environ), stdin, 1)
time.sleep(600)
"""


def test_the_whole_group_ends_with_an_actor_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ACTOR], stdout=subprocess.PIPE, text=True) as actor:
        assert actor.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in actor.stdout.readline().split()]
        assert all(process.is_running() for process in processes)
        os.kill(actor.pid, signal.SIGKILL)
        killed = time.monotonic()
        gone, alive = psutil.wait_procs(processes, timeout=20)
    assert (len(gone), alive) == (2, [])
    print(f"a command and its child ended {time.monotonic() - killed:.2f} s after their actor")


def test_the_cluster_file_is_one_of_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(Path("launch/ray/cluster.yaml").read_text()))
    validate_config(config)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert gpu["min_workers"] == gpu["max_workers"] == config["max_workers"]
    with pytest.raises(ValidationError, match="'max_worker' was unexpected"):
        validate_config({**config, "max_worker": 2})


def test_the_job_of_kubernetes_runs_a_recipe_with_this_launcher() -> None:
    job = yaml.safe_load(Path("launch/kubernetes/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, verb, _, *overrides = job["spec"]["entrypoint"].split()
    assert (program, verb) == ("selfreward", "run")
    settings = load_recipe("recipes/quickstart/run.yaml", overrides)
    assert settings.launch.launcher == "ray"
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [workers] = cluster["workerGroupSpecs"]
    # A cluster that grows while the run starts would be seen half.
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
