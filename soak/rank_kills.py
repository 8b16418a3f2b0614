"""Every process of a training killed once in turn, at every stage; then the training goes on to its end.

    python -m soak.rank_kills [--ranks 2] [--how kill raise exit] [--stages decoding training ...]

The processes are started without a launcher, which would end the others of its own machine: here each has to
end by itself. Prints a line per death. The last line is JSON, exit code 1 where anything went wrong.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hf_pneumonia.training.checkpoints import holds_training

ROOT = Path(__file__).parents[1]
STAGES = ("decoding", "training", "evaluation", "saving", "writing")
LIMIT = 60.0  # seconds that the others may take to end
FLAGS = (
    "--pretrained", "false", "--model", "resnet10t", "--image_size", "32", "--num_train_epochs", "3",
    "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--bf16", "false",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """Of each process its exit code (None: it had to be killed after LIMIT), its stderr, and the seconds
    from the first process's end to its own."""

    codes: list[int | None]
    errors: list[str]
    seconds: list[float]

    @property
    def lines(self) -> list[str]:
        """What train.py said about the end, on all of stderr."""
        text = "\n".join(self.errors)
        return [line for line in text.splitlines() if line.startswith("train.py: ")]


def run_ranks(
    command: list[object], ranks: int, environment: dict[str, str], start_limit: float = 240.0
) -> Ended:
    """Run one command as several processes of one machine, each with its rank, and wait for all."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        files = [open(Path(folder, str(rank)), "w+") for rank in range(ranks)]  # noqa: SIM115
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
            for rank, file in enumerate(files)
        ]
        ends: dict[int, float] = {}
        deadline = time.monotonic() + start_limit
        while len(ends) < ranks and time.monotonic() < deadline:
            for rank, process in enumerate(processes):
                if rank not in ends and process.poll() is not None:
                    deadline = min(deadline, time.monotonic() + LIMIT) if not ends else deadline
                    ends[rank] = time.monotonic()
            time.sleep(0.02)
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
        errors = []
        for file in files:
            file.seek(0)
            errors.append(file.read())
            file.close()
    first = min(ends.values(), default=time.monotonic())
    return Ended(codes, errors, [ends.get(rank, time.monotonic()) - first for rank in range(ranks)])


def one_death(
    rank: int, ranks: int, how: str, stage: str, films: Path, run: Path, environment: dict[str, str]
) -> tuple[Ended, list[str]]:
    """Train until the process dies, then go on.

    Returns:
        How the first training ended, and what was wrong with it or with going on.
    """
    flags = ["--dataset", films, "--output_dir", run, *FLAGS]
    script = ("-m", "soak.dying_rank")
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    ended = run_ranks([*script, rank, how, stage, *flags], ranks, environment)
    others = [code for other, code in enumerate(ended.codes) if other != rank]
    wrong = []
    if None in ended.codes:
        wrong.append("some did not end")
    if 0 in others:
        wrong.append(f"exit codes {ended.codes}")
    if len(ended.lines) != 1 or f"process {rank} of {ranks}" not in ended.lines[0]:
        wrong.append(f"said {ended.lines}")
    if "".join(ended.errors).count("Traceback") != (how == "raise"):
        wrong.append("tracebacks: " + ended.errors[others and min(set(range(ranks)) - {rank})][-500:])
    if (run / "report.json").exists():
        wrong.append("the run counts as finished")
    resume = ["--resume_from_checkpoint", "true"] * holds_training(run)
    if not resume and run.exists():
        shutil.rmtree(run)
    again = run_ranks([*script, -1, "kill", "training", *flags, *resume], ranks, environment)
    if set(again.codes) != {0} or not (run / "report.json").exists():
        wrong.append(f"going on: exit codes {again.codes} {again.errors[0][-500:]}")
    return ended, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--how", nargs="+", default=["kill"], choices=("kill", "raise", "exit"))
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_films  # simulated by a few lines, and small

    started = time.monotonic()
    deaths, failures, slowest = 0, [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        films, cache = Path(folder, "films"), {"XDG_CACHE_HOME": folder, "HF_HOME": folder}
        for split, first, count in (("train", 0, 40), ("val", 100, 10), ("test", 200, 15)):
            write_films(films / split, count, count, first=first)
        print(f"{'stage':12}{'how':7}{'process':9}{'others ended after':20}exit codes")
        for stage in args.stages:
            for how in args.how:
                for rank in range(args.ranks):
                    run = Path(folder, f"run-{stage}-{how}-{rank}")
                    ended, wrong = one_death(rank, args.ranks, how, stage, films, run, cache)
                    deaths, slowest = deaths + 1, max(slowest, *ended.seconds)
                    failures += [f"{stage} {how} {rank}: {what}" for what in wrong]
                    took = f"{max(ended.seconds):.1f} s"
                    print(f"{stage:12}{how:7}{rank:<9}{took:20}{ended.codes} {'; '.join(wrong)}", flush=True)
    seconds = round(time.monotonic() - started, 1)
    head = {"soak": "rank_kills", "settings": vars(args), "failures": len(failures), "seconds": seconds}
    found = {"deaths": deaths, "slowest_end_seconds": round(slowest, 1), "cases": failures}
    print(json.dumps({**head, **found}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
