"""Trainer for chest X-rays: augmentation on the device, class imbalance, optimizers and schedules."""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from timm.utils import distribute_bn
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, SequentialLR, StepLR
from transformers import EvalPrediction
from transformers.trainer_callback import PrinterCallback

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import score_predictions
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_swapped
from hf_pneumonia.modeling.augment import Augment, mixing, shrink
from hf_pneumonia.modeling.build import network_input, trains_on_one_image
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.callbacks import (
    EarlyStop,
    EpochLines,
    FrozenBackbone,
    StopOnDivergence,
    WeightAverage,
    freeze_batch_norm,
)
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.resuming import ResumableTrainer


class PneumoniaTrainer(ResumableTrainer):
    """transformers' Trainer for uint8 images, which it augments and normalises on the device.

    With `imbalance: weights` or `sampler` the validation loss is weighted too, by the class counts of
    validation. Both losses then assume balanced classes, so they can be compared, and
    `metric_for_best_model: loss` selects by the loss that is trained.

    Args:
        model: from `build_model`.
        args: the recipe.
        train_dataset, eval_dataset: training and validation images.
        augment: applied to training images only.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Recipe,
        train_dataset: ImageDataset,
        eval_dataset: ImageDataset,
        augment: Augment,
    ) -> None:
        model.to(memory_format=torch.channels_last)
        if train_dataset.on_device or eval_dataset.on_device:
            # Nothing is left to pin, and worker processes can't read images on a GPU.
            args.dataloader_pin_memory, args.dataloader_num_workers = False, 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=_as_is,
            compute_metrics=self._validation_scores,
            callbacks=[StopOnDivergence(), EpochLines()],
        )
        self.remove_callback(PrinterCallback)
        if args.frozen_epochs:
            self.add_callback(FrozenBackbone(args.frozen_epochs))
        if args.early_stopping_epochs:
            after = max(args.frozen_epochs, args.small_epochs)
            self.early_stop = EarlyStop(args.early_stopping_epochs, after)
            self.add_callback(self.early_stop)
        if args.ema_decay:
            self.average = WeightAverage(self.model, args.ema_decay)
            self.add_callback(self.average)
        self.augment, self.mix = augment, mixing(args.mixup, args.cutmix)
        # Class weights of the loss, in training (True) and in validation (False).
        weighted = {True: args.imbalance == "weights", False: args.imbalance != "none"}
        self._weights = {
            training: (class_weights(images.labels) if weighted[training] else torch.ones(2)).to(args.device)
            for training, images in ((True, train_dataset), (False, eval_dataset))
        }
        self._check_last_batch()

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        loader = super().get_train_dataloader()
        if self.args.imbalance == "sampler":
            # Not by `_get_train_sampler`: there, a resume of several processes within an epoch would not pass
            # the epoch on to it.
            loader.set_sampler(BalancedSampler(self.train_dataset.labels, self.args.data_seed))
        return loader

    def get_eval_dataloader(self, *args, **kwargs) -> torch.utils.data.DataLoader:
        # `--dataloader_drop_last` applies to training only: every validation image is scored.
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        images, labels = inputs["pixel_values"], inputs["labels"]
        training, targets = model.training, labels
        with torch.autocast(images.device.type, enabled=False):
            if training and self.state.epoch < self.args.small_epochs:
                images = shrink(images, self.args.small_size)
            images = network_input(self.augment(images, labels) if training else images)
        if training and self.mix:
            # Neighbours are blended, and the balanced sampler alternates the classes: shuffle.
            order = torch.randperm(len(labels), device=labels.device)
            images, targets = self.mix(images[order], labels[order])
            labels = targets.argmax(1)
        if training and self.state.epoch < self.args.frozen_epochs:
            freeze_batch_norm(model)
        outputs = model(pixel_values=images)
        # The mean over the batch: the Trainer divides it by the batches per step, and processes average their
        # gradients.
        smoothing = self.args.label_smoothing_factor
        loss = weighted_cross_entropy(outputs["logits"], targets, self._weights[training], smoothing)
        if training:
            correct = (outputs["logits"].detach().argmax(1) == labels).sum()
            count = torch.full_like(correct, len(labels))
            self.seen += torch.stack([correct, count, loss.detach() * count])
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        averaged = self.average.swapped_in(self.model) if self.average else nullcontext()
        if self.args.world_size > 1:
            # BatchNorm's statistics differ between processes; average them, so that all have one network.
            for network in (self.model, self.average.network) if self.average else (self.model,):
                distribute_bn(network, self.args.world_size, reduce=True)
        with averaged:
            self._swapped = self._score_swapped()
            return super().evaluate(*args, **kwargs)

    def _score_swapped(self) -> np.ndarray:
        """Return (n,) probabilities of the validation images with proportions swapped between the classes."""
        images, batch_size = self.eval_dataset, self.args.eval_batch_size
        with self.accelerator.autocast():
            logits = score_swapped(
                self.model, images.cache, images.rows, images.labels.numpy(), batch_size, images.vertical
            )
        return pneumonia_probability(logits)

    def _validation_scores(self, predicted: EvalPrediction) -> dict[str, float]:
        if not np.isfinite(predicted.predictions).all():
            raise UsageError(
                "training-diverged",
                "--learning_rate: expected finite logits in validation, got NaN or infinity. Start over with "
                "a lower one",
            )
        scores = score_predictions(predicted.label_ids, pneumonia_probability(predicted.predictions))
        scores["auroc_swapped"] = score_predictions(self.eval_dataset.labels.numpy(), self._swapped)["auroc"]
        # Python floats: a plateau scheduler's state with numpy floats can't be read back.
        return {name: float(value) for name, value in scores.items() if isinstance(value, float)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            correct, images, loss = self.accelerator.reduce(self.seen, "sum").tolist()
            # The Trainer's own loss lacks the steps before a resume.
            logs["accuracy"], logs["loss"] = correct / max(images, 1), loss / max(images, 1)
            self.seen.zero_()
            # With float16 the weights stay finite: its scaler skips every step with a NaN.
            if not math.isfinite(logs["loss"]):
                raise UsageError(
                    "training-diverged",
                    f"--learning_rate: expected a finite loss, got {logs['loss']} at step "
                    f"{self.state.global_step}. Start over with a lower one, or without --fp16",
                )
        super().log(logs, start_time)

    def history(self) -> list[dict]:
        """Return the metrics of each epoch: {"epoch", "train": {...}, "validation": {...}}."""
        epochs: dict[float, dict] = {}
        for line in self.state.log_history:
            epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"]})
            if "loss" in line:
                names = ("loss", "accuracy", "learning_rate")
                epoch["train"] = {name: line[name] for name in names}
            elif "eval_loss" in line:
                names = ("loss", "accuracy", "auroc", "auroc_swapped")
                epoch["validation"] = {name: line[f"eval_{name}"] for name in names}
        return [epoch for epoch in epochs.values() if len(epoch) == 3]

    @property
    def kept_epoch(self) -> float:
        """The epoch of the final weights: the best by `metric_for_best_model`, or the last."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        step = self.state.best_global_step if best else self.state.global_step
        return next(
            (line["epoch"] for line in self.state.log_history if line["step"] == step), self.state.epoch
        )

    def _check_last_batch(self) -> None:
        """Check before the first epoch that BatchNorm can train on the last batch."""
        args, batch = self.args, self.args.train_batch_size
        # With several processes Accelerate fills the last batch.
        full = args.dataloader_drop_last or args.world_size > 1
        last = batch if full else len(self.train_dataset) % batch or batch
        size = args.small_size if args.small_epochs else args.image_size
        if last == 1 and not trains_on_one_image(self.model, size):
            raise UsageError(
                "last-batch-of-one",
                f"--per_device_train_batch_size: {len(self.train_dataset)} images in batches of {batch} "
                "leave one over, but BatchNorm needs two. Use another size, or --dataloader_drop_last true",
            )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        args = self.args
        if not args.adam_l2 and args.layer_decay == 1:
            return super().create_optimizer(model)
        network = (model or self.model).timm_model
        if args.layer_decay == 1:
            groups = [{"params": list(network.parameters()), "weight_decay": args.weight_decay}]
        else:
            groups = param_groups_layer_decay(
                network,
                args.weight_decay,
                weight_decay_exclude_1d=not args.adam_l2,
                layer_decay=args.layer_decay,
            )
            for group in groups:
                group["lr"] = args.learning_rate * group.pop("lr_scale")
            groups.reverse()  # the learning rate of the first group, the head, is logged
        if args.adam_l2:
            settings = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            self.optimizer = torch.optim.Adam(groups, args.learning_rate, **settings, fused=True)
        else:
            kind, settings = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        args, optimizer = self.args, optimizer or self.optimizer
        frozen = min(args.frozen_epochs * self._steps_per_epoch, num_training_steps - 1)
        if args.lr_scheduler_type == "reduce_lr_on_plateau":
            # torch's default, min, would treat a rising AUROC as a plateau.
            mode = {"mode": "max" if args.greater_is_better else "min"}
            args.lr_scheduler_kwargs = {**mode, **(args.lr_scheduler_kwargs or {})}
        if args.lr_step_epochs:
            every = args.lr_step_epochs * self._steps_per_epoch
            self.lr_scheduler = StepLR(optimizer, every, gamma=0.1)
        else:
            try:
                super().create_scheduler(num_training_steps - frozen, optimizer)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    "scheduler-settings", f"--lr_scheduler_kwargs {args.lr_scheduler_kwargs}: {error}"
                ) from error
        if frozen:
            factor = args.frozen_learning_rate / args.learning_rate
            constant = LambdaLR(optimizer, lambda _: factor)
            self.lr_scheduler = SequentialLR(optimizer, [constant, self.lr_scheduler], milestones=[frozen])
        return self.lr_scheduler

    @property
    def _steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        rounded = math.floor if self.args.dataloader_drop_last else math.ceil
        images = self.args.train_batch_size * max(self.args.world_size, 1)
        return math.ceil(rounded(len(self.train_dataset) / images) / self.args.gradient_accumulation_steps)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # timm's rule: no weight decay on biases and scales. The Trainer exempts only those of LayerNorm.
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # unused, and counting takes time in every step


def _as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


class BalancedSampler(torch.utils.data.Sampler[int]):
    """Sample both classes equally often, with n draws per epoch from n images.

    The larger class is undersampled, with a new random part each epoch; the smaller one is oversampled, each
    image equally often (plus or minus one). The classes alternate, so every batch is balanced, and so are the
    images with which Accelerate fills the last batches.

    The order depends on seed and epoch only: it is the same in every process.

    Args:
        labels: (n,) int64, 0 or 1, both present.
        seed: seed of the order, 0 or more.
    """

    def __init__(self, labels: torch.Tensor, seed: int) -> None:
        classes = [np.flatnonzero(labels.numpy() == label) for label in (0, 1)]
        self.smaller, self.larger = sorted(classes, key=len)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.smaller) + len(self.larger)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.empty(len(self), dtype=np.int64)
        for places, images in ((order[0::2], self.larger), (order[1::2], self.smaller)):
            rounds = -(-len(places) // len(images))
            places[:] = np.concatenate([rng.permutation(images) for _ in range(rounds)])[: len(places)]
        return iter(order.tolist())


def class_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return (2,) float32 weights n / (2 n_class) for (n,) int64 labels; their mean over images is 1."""
    return len(labels) / (2 * torch.bincount(labels, minlength=2))


def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross entropy with class weights.

    Divided by the number of images, not by the sum of their weights as in torch: that sum varies between
    batches, so the mean over batches or processes would differ from the mean over images.

    Args:
        logits: (b, 2) float.
        labels: (b,) int64, or (b, 2) float shares of the classes in a blended image.
        weights: (2,) float32, one weight per class.
        label_smoothing: 0 to 1.

    Returns:
        Scalar float.
    """
    shares = F.one_hot(labels, logits.shape[1]).float() if labels.ndim == 1 else labels
    weighted = shares * weights
    spread = weighted.sum(1, keepdim=True) / logits.shape[1]
    target = (1 - label_smoothing) * weighted + label_smoothing * spread
    return -(target * logits.log_softmax(1)).sum(1).mean()
