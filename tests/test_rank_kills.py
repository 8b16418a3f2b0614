"""Processes of a training that die, one at a time; `soak/rank_kills.py` kills all of them at every stage."""

import os

import pytest

from soak.dying_rank import STAGES as KNOWN
from soak.rank_kills import STAGES, one_death

slow = pytest.mark.skipif(not os.environ.get("HF_PNEUMONIA_SLOW"), reason="a minute; HF_PNEUMONIA_SLOW=1")


def _die(rank: int, how: str, stage: str, films, tmp_path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ended, wrong = one_death(rank, 2, how, stage, films, tmp_path / "run", cache)
    assert not wrong and max(ended.seconds) < 60


def test_a_training_of_which_a_process_was_killed_ends_and_goes_on(film_folder, tmp_path):
    _die(1, "kill", "training", film_folder, tmp_path)


@slow
@pytest.mark.parametrize("rank, how, stage", [(1, "exit", "evaluation"), (0, "raise", "writing")])
def test_so_does_one_of_which_a_process_left_or_failed(rank, how, stage, film_folder, tmp_path):
    _die(rank, how, stage, film_folder, tmp_path)


def test_the_soak_kills_at_every_stage_that_there_is():
    assert STAGES == KNOWN
