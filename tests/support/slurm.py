"""A SLURM cluster of one node with two fake GPUs, from Debian's packages, in a folder of its own.

Nothing of the system's own SLURM or munge is read or changed: configuration, keys, sockets, ports and states are the
test's, and every daemon is stopped at its end. Runs as root, without systemd.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.sessions import wait_until

#: What has to be installed: munge, slurmctld, slurmd, slurm-client.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

CONFIGURATION = """\
ClusterName=vlmeter
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
MinJobAge=300
KillWait=1
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=64000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster; `environment` leads its commands to it."""

    folder: Path
    environment: Mapping[str, str]

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands."""
        done = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def jobs(self) -> list[str]:
        """Ids of the jobs that run now."""
        return self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()

    def submitted(self) -> list[str]:
        """What every job of this cluster asked for: id, state, cores, memory, GPUs, minutes."""
        return self.ask("squeue", "--noheader", "--states=all", "--format=%i %T %C %m %b %l").splitlines()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _version() -> tuple[int, int]:
    done = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True)
    year, month = done.stdout.split()[-1].split(".")[:2]
    return int(year), int(month)


def _wrappers(folder: Path, configuration: Path) -> Path:
    """Make SLURM's commands find this cluster even where the executor plugin clears their variables."""
    found = folder / "bin"
    found.mkdir()
    for name in ("srun", "sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr"):
        if program := shutil.which(name):
            (found / name).write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {program} "$@"\n')
            (found / name).chmod(0o755)
    return found


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Bring a cluster up, and take it down with everything that it started."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ctld_port, slurmd_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, ctld_port=ctld_port, slurmd_port=slurmd_port)
    )
    for number in range(2):  # SLURM counts devices by their files
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Type=fake File={folder}/gpu[0-1]\n")
    # "disabled" exists from 23.11 on; before, slurmd stops at it, and autodetect does without control groups
    plugin = "disabled" if _version() >= (23, 11) else "autodetect"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    path = os.pathsep.join([str(_wrappers(folder, configuration)), os.environ["PATH"]])
    environment = {**os.environ, "SLURM_CONF": str(configuration), "PATH": path}
    commands = [
        [
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        ],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration), "-N", host],
    ]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    cluster = Slurm(folder, environment)
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("wb")
            with log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists)
        wait_until(lambda: cluster.ask("sinfo", "--noheader", "--format=%t").strip() == "idle", patience_s=30)
        yield cluster
    finally:
        cluster.ask("scancel", "--user=root", "--full")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not cluster.jobs(), patience_s=10)
        for daemon in reversed(daemons):
            _stop(daemon)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    """Stop a daemon and what it started: the step daemons are slurmd's children, and not of its process group."""
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(daemon.pid).children(recursive=True)
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=5)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
    daemon.kill()
    daemon.wait()
