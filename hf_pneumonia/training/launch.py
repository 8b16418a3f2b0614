"""Processes on CPUs: what `accelerate launch --cpu --num_processes N` is asked for and does not do."""

import argparse
import os
import sys

import psutil

_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


def start_missing_processes(script: str, argv: list[str]) -> None:
    """Start the script again in as many processes as were asked for, if it was started alone.

    Accelerate's CPU launcher starts one process, without a word, unless given an MPI hostfile. It leaves
    MASTER_ADDR in the environment, and the number only in its own command line. Returns where nothing is
    missing; otherwise torch's own launcher takes this process's place.

    Args:
        script: path of the script that is running.
        argv: its command line.
    """
    if "MASTER_ADDR" not in os.environ or _RANKS & os.environ.keys():
        return
    launcher = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("processes", "machines"):
        launcher.add_argument(f"--num_{name}", f"--num-{name}", type=int, default=1)
    asked, _ = launcher.parse_known_args(psutil.Process().parent().cmdline())
    if asked.num_processes > 1 and asked.num_machines == 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={asked.num_processes}"]
        os.execv(sys.executable, [sys.executable, *torchrun, script, *argv])
