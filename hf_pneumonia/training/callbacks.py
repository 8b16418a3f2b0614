"""What a person watching a training sees, a bar and a line per epoch; and when to stop watching."""

import time

from tqdm.auto import tqdm
from transformers import TrainerCallback


class EarlyStop(TrainerCallback):
    """Ends a training in which no epoch of the last few was the best.

    Judged from the log, which a checkpoint holds: transformers' own EarlyStoppingCallback counts from zero
    again when a training is resumed.

    Args:
        epochs: how many scores in a row may stay behind the best one.
        after: epochs, of a frozen backbone or of small films, that are not counted.
    """

    def __init__(self, epochs: int, after: int = 0) -> None:
        self.epochs, self.after = epochs, after

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if self.is_due(args, state):
            control.should_training_stop = True

    def is_due(self, args, state) -> bool:
        """Whether the scores in the log so far say so."""
        name = f"eval_{args.metric_for_best_model}"
        sign = 1 if args.greater_is_better else -1
        lines = [line for line in state.log_history if name in line and line["epoch"] > self.after]
        scores = [sign * line[name] for line in lines]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.epochs


def is_best(args, state, metrics: dict[str, float]) -> bool:
    """Whether these scores are better than those of every epoch before."""
    score, sign = metrics[f"eval_{args.metric_for_best_model}"], 1 if args.greater_is_better else -1
    return state.best_metric is None or sign * score > sign * state.best_metric


class EpochLines(TrainerCallback):
    """One bar over all steps and, after each epoch, its figures on training and validation."""

    def __init__(self) -> None:
        self.bar, self.started, self.training = None, 0.0, {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = time.monotonic()
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit=" steps", disable=None
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            self.training = logs

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if self.bar is None or "eval_auroc_swapped" not in (metrics or {}):
            return
        tqdm.write(
            f"epoch {state.epoch:>3.0f}/{args.num_train_epochs:.0f}"
            f"  loss {self.training.get('loss', float('nan')):.4f}, validation {metrics['eval_loss']:.4f}"
            f"  accuracy {self.training.get('accuracy', float('nan')):.3f}, {metrics['eval_accuracy']:.3f}"
            f"  AUROC {metrics['eval_auroc']:.4f}, swapped {metrics['eval_auroc_swapped']:.4f}"
            f"{' *' if is_best(args, state, metrics) else '  '}"
            f"  {time.monotonic() - self.started:5.0f} s"
        )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
