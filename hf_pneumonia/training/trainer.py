"""The Trainer subclass: films from the store, augmented on the device, and steps as a recipe wants them."""

import numpy as np
import torch
from timm.utils import distribute_bn
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import score_predictions
from hf_pneumonia.evaluation.scoring import pneumonia_probability
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.callbacks import EpochLines
from hf_pneumonia.training.imbalance import BalancedSampler, class_weights, weighted_cross_entropy


class FilmDataset(torch.utils.data.Dataset):
    """The films of one split with their labels. A whole batch is one read: no worker processes are needed."""

    def __init__(self, films: FilmSet, split: str) -> None:
        self.store, self.rows = films.store, films.rows(split)
        self.labels = torch.from_numpy(films.label[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """`pixel_values` (b, size, size) uint8 and `labels` (b,) int64, by a name torch's loader knows."""
        return {
            "pixel_values": torch.from_numpy(self.store[self.rows[indices]]),
            "labels": self.labels[indices],
        }


class PneumoniaTrainer(Trainer):
    """transformers' Trainer for films of uint8, which it augments and normalises on the device.

    With `imbalance: weights` or `sampler` the validation loss is weighted too, by validation's own counts.
    Like the training loss it is then that of a population with as many films of each class: the two can be
    compared, and `metric_for_best_model: loss` chooses by what is trained.

    Args:
        model: from `build_model`.
        args: the recipe.
        train_dataset, eval_dataset: films with labels.
        augment: applied to training films only.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Recipe,
        train_dataset: FilmDataset,
        eval_dataset: FilmDataset,
        augment: Augment,
    ) -> None:
        model.to(memory_format=torch.channels_last)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=_as_is,
            compute_metrics=_validation_scores,
            callbacks=[EpochLines()],
        )
        self.remove_callback(PrinterCallback)
        self.augment = augment
        # By whether the network is training.
        self._weights = {
            training: class_weights(films.labels).to(args.device)
            for training, films in ((True, train_dataset), (False, eval_dataset))
        }
        # Right answers and films since the last log, kept on the device: reading them every step would wait
        # for it.
        self._seen = torch.zeros(2, device=args.device)

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        films = inputs["pixel_values"]
        films = self.augment(films, inputs["labels"]) if self.model.training else films
        return {**inputs, "pixel_values": network_input(films)}

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        loader = super().get_train_dataloader()
        if self.args.imbalance == "sampler":
            # Set as Accelerate sets its own. Given to the loader beforehand, by `_get_train_sampler`, several
            # processes that go on within an epoch would not tell it the epoch.
            loader.set_sampler(BalancedSampler(self.train_dataset.labels, self.args.data_seed))
        return loader

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.args.imbalance == "weights" or (self.args.imbalance == "sampler" and not model.training):
            # A mean over the batch, as the network's own loss is: the Trainer divides it by the batches of a
            # step, and the processes average their gradients.
            smoothing, weights = self.args.label_smoothing_factor, self._weights[model.training]
            loss = weighted_cross_entropy(outputs["logits"], labels, weights, smoothing)
        if model.training:
            right = (outputs["logits"].detach().argmax(1) == labels).sum()
            self._seen += torch.stack([right, torch.full_like(right, len(labels))])
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.args.world_size > 1:
            # Each process has met other films; without this each would also score, and save, another network.
            distribute_bn(self.model, self.args.world_size, reduce=True)
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            right, films = self.accelerator.reduce(self._seen, "sum").tolist()
            logs["accuracy"] = right / max(films, 1)
            self._seen.zero_()
        super().log(logs, start_time)

    def history(self) -> list[dict]:
        """Loss and accuracy of each epoch: {"epoch", "train": {...}, "validation": {...}}."""
        epochs: dict[float, dict] = {}
        for line in self.state.log_history:
            epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"]})
            if "loss" in line:
                names = ("loss", "accuracy", "learning_rate")
                epoch["train"] = {name: line[name] for name in names}
            elif "eval_loss" in line:
                names = ("loss", "accuracy", "auroc")
                epoch["validation"] = {name: line[f"eval_{name}"] for name in names}
        return [epoch for epoch in epochs.values() if len(epoch) == 3]

    @property
    def kept_epoch(self) -> float:
        """The epoch whose weights are left: the best by `metric_for_best_model`, or else the last."""
        step = self.state.best_global_step if self.args.load_best_model_at_end else self.state.global_step
        return next(
            (line["epoch"] for line in self.state.log_history if line["step"] == step), self.state.epoch
        )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if not self.args.adam_l2:
            return super().create_optimizer(model)
        parameters = [
            parameter for parameter in (model or self.model).parameters() if parameter.requires_grad
        ]
        betas = (self.args.adam_beta1, self.args.adam_beta2)
        self.optimizer = torch.optim.Adam(
            parameters, self.args.learning_rate, betas, self.args.adam_epsilon, self.args.weight_decay
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if not self.args.lr_step_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        every = round(self.args.lr_step_epochs * num_training_steps / self.args.num_train_epochs)
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer or self.optimizer, every, gamma=0.1)
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # The Trainer knows only LayerNorm; timm's own rule spares every bias and scale, BatchNorm's among
        # them.
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # nobody reads it, and counting parameters every step takes time

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer's own adds training_args.bin, a pickle that holds the raw Hub token.
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(
                output_dir or self.args.output_dir, state_dict=state_dict
            )


def _as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def _validation_scores(predicted) -> dict[str, float]:
    if not np.isfinite(predicted.predictions).all():
        raise UsageError("the training diverged: the network's answers are no numbers; lower --learning_rate")
    scores = score_predictions(predicted.label_ids, pneumonia_probability(predicted.predictions))
    return {name: value for name, value in scores.items() if isinstance(value, float)}
