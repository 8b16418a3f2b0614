"""Stopping a training by signals, and resuming it."""

import signal
from pathlib import Path

import pytest
from trainings import changed, weights
from transformers import TrainerCallback

from hf_pneumonia.errors import Stopped
from hf_pneumonia.training.checkpoints import damage


@pytest.fixture(autouse=True)
def _handle_ctrl_c():
    """Undo the SIG_IGN for SIGINT of a shell's background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


FLAGS = ("--num_train_epochs", "2", "--learning_rate", "0.001")  # of 3 steps each


class SignalAt(TrainerCallback):
    """Signal this process at the beginning of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_with_a_checkpoint_and_an_exit_code(trainer, number, code):
    before = signal.getsignal(number)
    run = trainer(*FLAGS)
    run.add_callback(SignalAt(1, number, number))  # the second one is ignored as a repetition
    with pytest.raises(Stopped, match=f"{number.name} after step 2 of 6.*--resume_from") as stopped:
        run.train()
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert [path.name for path in Path(run.args.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize(
    "step, more",
    [
        (1, ()),  # within an epoch
        # A checkpoint is due anyway: at the end of an epoch, and at the end of the training within an epoch.
        (2, ("--save_strategy", "steps", "--save_steps", "3", "--load_best_model_at_end", "false")),
        (3, ("--max_steps", "4")),
    ],
)
def test_a_stopped_training_resumes_to_the_weights_and_curves_of_an_uninterrupted_one(
    trainer, tmp_path, step, more
):
    flags = (*FLAGS, "--ema_decay", "0.9", "--mixup", "0.2", *more)
    whole = trainer(*flags, "--output_dir", str(tmp_path / "whole"))
    whole.train()

    stopped = trainer(*flags)
    stopped.add_callback(SignalAt(step, signal.SIGTERM))
    with pytest.raises(Stopped, match=f"after step {step + 1} of"):
        stopped.train()
    assert damage(Path(stopped.args.output_dir, f"checkpoint-{step + 1}")) == ""
    again = trainer(*flags)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step
    assert again.history() == whole.history() and again.kept_epoch == whole.kept_epoch
    assert not changed(weights(whole.model), again.model.state_dict())


def test_a_second_signal_ends_at_once(trainer, monkeypatch):
    monkeypatch.setattr("hf_pneumonia.training.stopping.IGNORE_REPEAT_SECONDS", -1.0)
    run = trainer(*FLAGS)
    run.add_callback(SignalAt(1, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not list(Path(run.args.output_dir).glob("checkpoint-*"))
