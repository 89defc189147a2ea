"""A real SLURM of one node, for tests: munged, slurmctld and slurmd, with everything of theirs in a folder."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "setpriv")
_WAIT_S = 120.0
#: Daemons end with the process that started them, however that ends.
_WITH_THIS_PROCESS = ["setpriv", "--pdeathsig", "TERM"]

_CONF = """
ClusterName=medloss
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class SlurmMissing(Exception):
    """No SLURM can be started here; says why, and what to install."""


@contextmanager
def slurm_node() -> Iterator[dict[str, str]]:
    """Run a SLURM of one node, two cores and two made-up GPUs; gives the environment that its commands need.

    Raises:
        SlurmMissing: programs or rights are missing, or the node does not come up.
    """
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        raise SlurmMissing(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        raise SlurmMissing("only root can start slurmd and munged")
    # Not pytest's folder: munged's own user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="slurm-node-"))
    folder.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        _configure(folder)
        daemons.append(_munged(folder))
        daemons.append(_daemon(folder, "slurmctld", environment))
        daemons.append(_daemon(folder, "slurmd", environment))
        _wait_until_idle(folder, environment, daemons)
        yield environment
    finally:
        if len(daemons) == 3:
            with suppress(subprocess.TimeoutExpired):
                _end_jobs(folder, environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _end_jobs(folder: Path, environment: dict[str, str]) -> None:
    """End every process of this SLURM's jobs: they outlive slurmd, so that it can be started anew."""

    def call(*command: str) -> str:
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return shown.stdout.strip()

    call("scancel", "--user", "root")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            known = process.environ()
            if known.get("SLURM_CONF") == str(folder / "slurm.conf") and "SLURM_JOB_ID" in known:
                process.kill()
    deadline = time.monotonic() + _WAIT_S
    # slurmstepd ends when it has told that its step has.
    while call("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    content = _CONF.format(
        host=socket.gethostname().partition(".")[0],
        folder=folder,
        controller_port=_free_port(),
        node_port=_free_port(),
        memory=memory // 2,
    )
    (folder / "slurm.conf").write_text(content)
    # Any device files will do: no driver is asked.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    """munged, with a key of its own, as its own user: it refuses files that others may write."""
    try:
        user = pwd.getpwnam("munge")
    except KeyError:
        raise SlurmMissing("no user munge: apt-get install munge") from None
    own = folder / "munge"
    own.mkdir(mode=0o755)
    (own / "key").write_bytes(os.urandom(1024))
    (own / "key").chmod(0o400)
    for path in (own, own / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    command = ["munged", "--foreground", f"--key-file={own}/key", f"--socket={own}/socket", f"--pid-file={own}/pid"]
    command += [f"--seed-file={own}/seed", f"--log-file={own}/log"]
    with (folder / "munged.log").open("wb") as log:
        daemon = subprocess.Popen(
            [*_WITH_THIS_PROCESS, *command],
            stdout=log, stderr=log, user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            env=os.environ | {"PATH": _path()}, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + _WAIT_S
    while not (own / "socket").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SlurmMissing(f"munged does not start: {_last_line(folder / 'munged.log')}")
        time.sleep(0.05)
    return daemon


def _daemon(folder: Path, name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*_WITH_THIS_PROCESS, name, "-D", "-f", str(folder / "slurm.conf")],
            stdout=log,
            stderr=log,
            env=environment,
            cwd="/",
        )


def _wait_until_idle(folder: Path, environment: dict[str, str], daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        shown = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if shown.stdout.strip() == "idle":
            return
        if any(daemon.poll() is not None for daemon in daemons) or time.monotonic() > deadline:
            told = "; ".join(f"{name}: {_last_line(folder / f'{name}.log')}" for name in ("slurmctld", "slurmd"))
            raise SlurmMissing(f"the node does not come up ({shown.stdout.strip() or 'no state'}): {told}")
        time.sleep(0.2)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return lines[-1][:300] if lines else "it said nothing"
