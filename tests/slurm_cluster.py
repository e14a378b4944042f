"""A Slurm cluster of one node on loopback: real daemons of Debian's `slurm-wlm` and `munge`, all in a temporary folder.

`with slurm_cluster() as environment:` starts it and gives the variables with which `sbatch` and its like find it. It
needs no privileges, touches no cluster that the machine may already have, and leaves no process behind. Of its two
partitions `urgent` takes what it needs from `main`, whose jobs are queued again.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Debian keeps daemons where only root's PATH leads
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

# Accounting, cgroups and binding to cores need a machine of one's own. Jobs are stopped within seconds, and what runs
# on the node is decided at once, because somebody waits.
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing() -> list[str]:
    """The programs of Slurm and munge that this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED)]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until a condition holds; an AssertionError says what did not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


@contextmanager
def slurm_cluster(cpus: int) -> Iterator[dict[str, str]]:
    """Start a cluster of one node, which runs as many one-core jobs at a time as `cpus` says, and stop it at the end.

    Gives the environment for its clients; `SLURM_CONF` there lies in the folder with all logs.
    """
    with ExitStack() as stack:
        # A socket's path is short, so this is not pytest's folder
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        file = folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        own = {"host": host, "user": getpass.getuser(), "folder": folder, "cpus": cpus}
        ports = {"controller_port": free_port(), "node_port": free_port()}
        file.write_text(CONFIGURATION.format(**own, **ports))
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        # Slurm and submitit believe the variables of a job that this may itself be running in
        outside = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SUBMITIT"))
        }
        environment = outside | {"SLURM_CONF": str(file), "PATH": SEARCHED}
        stack.callback(_kill_what_is_left, file)

        def start(*words: str) -> None:
            program = str(shutil.which(words[0], path=SEARCHED))
            with (folder / f"{words[0]}.output").open("w") as output:
                daemon = subprocess.Popen(
                    ["setpriv", "--pdeathsig=TERM", program, *words[1:]],  # or it would survive a killed test
                    env=environment, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            stack.callback(_stop, daemon)

        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        # Forced, because it wants a socket that every user can reach, and this one is for us alone
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *places)
        wait_for("munged", (folder / "munge.socket").exists)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)

        def ready() -> bool:
            told = subprocess.run(
                ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True
            )
            return set(told.stdout.split()) == {"idle"}

        try:
            wait_for("an idle node", ready)
            yield environment
        finally:
            for log in sorted(folder.glob("*.log")):  # pytest shows them when a test fails
                print(f"==> {log.name}", *log.read_text().splitlines()[-40:], sep="\n")


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(timeout=10)
    daemon.kill()
    daemon.wait()


def _kill_what_is_left(file: Path) -> None:
    """Jobs outlive the daemon that started them; they are known by the variable that leads to their cluster."""
    mark = f"SLURM_CONF={file}".encode()
    for place in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile, or is not ours to look into
            if place.name.isdecimal() and mark in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)
