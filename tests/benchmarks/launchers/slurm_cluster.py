"""A real Slurm for tests: munged, slurmctld and nodes that can be lost, in a folder and on ports of its own.

Each node's slurmd runs in a process and host name space of its own, so that a node is another machine to whoever looks,
and goes away with all that runs on it when the first process of its space is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "unshare")
PAUSE_S = 2.5  # a node refuses a job that it was told to end just now
SBIN = "/usr/sbin:/usr/local/sbin"

CONFIG = """
ClusterName=o2o
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
EnforcePartLimits=ANY
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
KillWait=5
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,requeue_delay=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
Prolog={folder}/prolog
"""


def why_not() -> str | None:
    """Why there can be no cluster here; None: there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:{SBIN}") is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "only root can start nodes in process spaces of their own"
    tried = subprocess.run([*_unshared("true")], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no process spaces here: {tried.stderr.strip()}"


class Cluster:
    """A controller and its nodes; `close` ends all of it.

    Args:
        folder: Where it lives; its path must be short, for sockets.
        nodes: Cores of each node, by name.
    """

    def __init__(self, folder: Path, nodes: dict[str, int]) -> None:
        self.folder, self.nodes = folder, tuple(nodes)
        self._requeued: dict[str, float] = {}
        self._ports = _free_ports(1 + len(nodes))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        lines = [CONFIG.format(host=socket.gethostname(), controller=self._ports[0], folder=folder)]
        for (name, cores), port in zip(nodes.items(), self._ports[1:], strict=True):
            lines.append(f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=4000 Gres=gpu:1\n")
            (folder / f"spool-{name}").mkdir()
        lines.append("PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1\n")
        lines.append("PartitionName=graced Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20\n")
        lines.append("PartitionName=short Nodes=ALL MaxTime=10 State=UP\n")
        lines.append("PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF\n")
        (folder / "slurm.conf").write_text("".join(lines))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (folder / "prolog").write_text(f"#!/bin/sh\ntest ! -e {folder}/bad-$(hostname)\n")
        (folder / "prolog").chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o400)
        key.chmod(0o600)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SBIN}",
        }

    def start(self) -> None:
        """Start everything, and wait until it is there."""
        self._begin("munged", self._munged())
        self.until(lambda: (self.folder / "munge.socket").exists())
        self._begin("slurmctld", ["slurmctld", "-D", "-c"])
        for name in self.nodes:
            self.start_node(name)
        self.until_idle()

    def until_idle(self) -> None:
        """Wait until all nodes are there and have nothing to do."""
        self.until(lambda: self.up() == set(self.nodes) and set(self.sinfo().values()) == {"idle"})

    def _munged(self) -> list[str]:
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return ["munged", "--foreground", "--force"] + [f"--{k}={self.folder}/munge.{v}" for k, v in names.items()]

    def _begin(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        """Start a node, also one that was lost."""
        (self.folder / f"slurmd-{name}.pid").unlink(missing_ok=True)
        self._begin(name, _unshared(f"hostname {name}; exec slurmd -D"))

    def lose_node(self, name: str) -> None:
        """Kill a node with all that runs on it, at once."""
        unshare = self._processes.pop(name)
        unshare.kill()  # which kills the first process of its space, and the kernel the rest
        unshare.wait()
        with contextlib.suppress(RuntimeError):  # Slurm would find out later, by itself
            self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def up(self) -> set[str]:
        """The nodes that have not been lost."""
        return {name for name in self.nodes if name in self._processes}

    def hurry(self) -> None:
        """Start requeued jobs after some seconds, for which Slurm takes two minutes."""
        rows = self.call("squeue", "--noheader", "--states=PENDING", "--format", "%i %r").splitlines()
        waiting = {row.split()[0] for row in rows if row.endswith("BeginTime")}
        now = time.monotonic()
        self._requeued = {job: self._requeued.get(job, now) for job in waiting}
        for job, since in self._requeued.items():
            if now - since > PAUSE_S:
                self.call("scontrol", "update", f"jobid={job}", "starttime=now")

    def call(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout

    def sinfo(self) -> dict[str, str]:
        """States of the nodes."""
        try:
            rows = self.call("sinfo", "--noheader", "--Node", "--partition", "low", "--format", "%N %t").split("\n")
        except RuntimeError:
            return {}
        return {row.split()[0]: row.split()[1] for row in rows if row}

    def until(self, what: Callable[[], object], within_s: float = 30.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + within_s
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(self.logs())
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every daemon's log."""
        found = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-1500:]}" for file in found)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(RuntimeError, OSError, subprocess.TimeoutExpired):
            self.call("scancel", "--full", "--signal=KILL", "--me")
        for name in list(self._processes):
            if name not in ("munged", "slurmctld"):
                self.lose_node(name)
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _unshared(script: str) -> list[str]:
    return ["unshare", "--pid", "--uts", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> int:
    """Run a cluster by hand: python -m tests.benchmarks.launchers.slurm_cluster FOLDER; Ctrl-C or SIGTERM ends it."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster(folder, {"node1": 2, "node2": 2})
    cluster.start()
    print(f"export SLURM_CONF={folder}/slurm.conf", flush=True)
    try:
        while True:
            time.sleep(1)
            for file in folder.glob("lose-*"):
                file.unlink()
                cluster.lose_node(file.name.removeprefix("lose-"))
            for file in folder.glob("start-*"):
                file.unlink()
                cluster.start_node(file.name.removeprefix("start-"))
    except KeyboardInterrupt:
        cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
