"""Ray cluster on this machine for a test, with small nodes that are removed afterwards, and the application on them."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from tests.conftest import REPOSITORY as ROOT

CONFIG = ROOT / "deploy/ray/serve.yaml"
APPLICATION, DEPLOYMENT = "tlcli", "Replica"
STORE_BYTES = 100 * 1024 * 1024

_MARK = "TLCLI_TEST_CLUSTER"
"""Environment variable that all processes of a cluster inherit."""

Config = dict[str, Any]


@dataclass
class RayCluster:
    """Running cluster.

    cluster: Ray's cluster.
    second: the node that is not the head; None if there is only one.
    """

    cluster: Any
    second: Any = None
    port: int = 0
    http_port: int = 0

    @property
    def nodes(self) -> list[Any]:
        """Nodes of the cluster, the head first."""
        return [self.cluster.head_node, *([] if self.second is None else [self.second])]

    def deploy(self, config: Config, until: str = "RUNNING") -> None:
        """Deploy the application like `serve run`, and wait until it has the expected status."""
        from ray.serve import scripts

        file = Path(self.cluster.head_node.get_session_dir_path()) / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        done = CliRunner().invoke(scripts.cli, ["run", str(file), "--non-blocking"])
        assert done.exit_code == 0, done.output
        wait_until(lambda: status().status.value == until, why=lambda: str(status()))

    def configured(self, models: Path, **deployment: Any) -> Config:
        """Return the config in deploy/ray/serve.yaml with a repository, free ports, and one core per replica.

        `deployment` overrides fields of the deployment.
        """
        config: Config = yaml.safe_load(CONFIG.read_text())
        config["http_options"]["port"] = self.http_port
        config["grpc_options"]["port"] = self.port
        (application,) = config["applications"]
        application["args"]["models"] = str(models)
        (one,) = application["deployments"]
        one |= {"ray_actor_options": {"num_cpus": 1}, "max_replicas_per_node": 1, **deployment}
        return config

    def replicas(self) -> dict[int, int]:
        """Return the index in `nodes` of each replica's node, by the replica's process id."""
        found = {}
        for number, node in enumerate(self.nodes):
            for pid in processes_of(node):
                if command(pid).startswith(f"ray::ServeReplica:{APPLICATION}:{DEPLOYMENT}"):
                    found[pid] = number
        return found

    def kill_second(self) -> None:
        """Kill all processes of the second node at once, without a shutdown."""
        for pid in [raylet(self.second), *processes_of(self.second)]:
            os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@contextmanager
def ray_cluster(nodes: int, cpus: int = 1) -> Iterator[RayCluster]:
    """Run a cluster whose nodes have `cpus` cores each, as Ray counts. No process is left, whatever happens."""
    import ray

    mark = f"{_MARK}={uuid.uuid4().hex}"
    os.environ[_MARK] = mark.partition("=")[2]
    cluster = _started(cpus)
    try:
        second = cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES) if nodes > 1 else None
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        try:
            yield RayCluster(cluster, second, free_port(), free_port())
        finally:
            ray.shutdown()
    finally:
        cluster.shutdown()
        del os.environ[_MARK]
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def _started(cpus: int) -> Any:
    """Start a cluster of one node; a second time if Ray's own wait of 30 s was too short for a busy machine."""
    from ray.cluster_utils import Cluster

    for last in (False, True):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False)
        except RuntimeError as error:
            cluster.shutdown()
            if last or "Timed out" not in str(error):
                raise
        else:
            return cluster
    raise AssertionError


def marked(mark: str) -> list[int]:
    """Return the processes that have a variable in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended, or belongs to another user
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def status() -> Any:
    """Return the status of the application."""
    from ray import serve

    return serve.status().applications[APPLICATION]


def wait_until(true: Callable[[], bool], timeout_s: float = 60, why: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it did not hold in time.
    """
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


def raylet(node: Any) -> int:
    """Return the process that starts the other processes of a node."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def processes_of(node: Any) -> list[int]:
    """Return the processes that a node's raylet has started."""
    parent = raylet(node)
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and parent_of(one) == parent]


def parent_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number
