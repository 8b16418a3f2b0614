"""train.py as one of several processes, one of which dies at a stage.

    python -m soak.dying_rank RANK HOW STAGE FLAGS      # as rank_kills.py starts each process

RANK -1: none dies. HOW: kill (SIGKILL), raise (a bug), exit (code 0, no word). The stages are `STAGES`.
"""

import os
import signal
import sys
import threading
import time

import train
from hf_pneumonia.errors import run_script
from hf_pneumonia.training.trainer import PneumoniaTrainer

STAGES = ("decoding", "training", "evaluation", "saving", "writing")
STEP = 13  # of the training in which to die, and with it of the evaluation and the checkpoint after it


def die(how: str) -> None:
    print(f"process {os.environ['RANK']} dies", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(0)
    raise ZeroDivisionError("a bug of one process")


def arrange(rank: int, how: str, stage: str) -> None:
    """Put the death into the stage. Others are slow where they would have left the stage before."""
    mine = rank == int(os.environ["RANK"])
    taught = [0]

    def before(owner: object, name: str, act) -> None:
        original = getattr(owner, name)

        def acting(*args, **kwargs):
            act()
            return original(*args, **kwargs)

        setattr(owner, name, acting)

    def late() -> None:
        if mine and taught[0] >= STEP:
            die(how)

    if stage == "decoding":
        if mine and rank == 0:
            before(train, "prepare_films", lambda: die(how))
        elif mine:  # in the queue behind process 0
            before(train, "local_main_first", lambda: threading.Timer(1, die, [how]).start())
        elif rank >= 0:
            before(train, "prepare_films", lambda: time.sleep(120))
    elif stage == "writing":
        if mine and rank == 0:
            before(train, "save_model", lambda: die(how))
        elif mine:  # done with its share
            before(train, "run_checks", lambda: die(how))
        elif rank >= 0:
            before(train, "save_model", lambda: time.sleep(120))
    else:
        before(PneumoniaTrainer, "training_step", lambda: taught.__setitem__(0, taught[0] + 1))
        name = {"training": "training_step", "evaluation": "prediction_step", "saving": "_write_own"}
        before(PneumoniaTrainer, name[stage], late)


if __name__ == "__main__":
    arrange(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.exit(run_script("train.py", train.main, sys.argv[4:]))
