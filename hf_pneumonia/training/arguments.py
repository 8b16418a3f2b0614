"""Recipe arguments: one dataclass, filled from a YAML file and from flags that override it."""

import dataclasses
import difflib
import json
import math
import os
import re
from argparse import SUPPRESS
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_pneumonia.data.cache import default_cache
from hf_pneumonia.data.files import read_yaml
from hf_pneumonia.data.labels import COVID_VALUES, UNCERTAIN_VALUES
from hf_pneumonia.data.splits import parse_split
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.modeling.augment import AUGMENTATIONS, MAX_STRENGTHS, Strengths
from hf_pneumonia.modeling.build import timm_name

IMBALANCE = ("none", "weights", "sampler")

# Fields of TrainingArguments that change the result: always written to the resolved recipe, also as defaults.
_ALWAYS_WRITTEN = (
    "seed num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps optim "
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps label_smoothing_factor metric_for_best_model bf16 fp16"
).split()

# Paths do not change the result, a token must not reach a file, and each run of `seeds` has its own seed.
_NOT_IN_RECIPE = "output_dir overwrite_output_dir cache_dir hub_token resume_from_checkpoint seeds".split()

# Inclusive bounds. Values outside would fail late, or train a useless network.
_RANGES = {
    (32, 2048): "image_size small_size",
    (0, 0.99): "drop_rate label_smoothing_factor",
    (0, 100): "mixup cutmix",
    (0, 100_000): "small_epochs frozen_epochs early_stopping_epochs lr_step_epochs",
    (0, 1000): "learning_rate frozen_learning_rate weight_decay",
    (0.01, 1): "layer_decay",
    (0, 0.999999): "ema_decay adam_beta1 adam_beta2",
    (0, 1): "max_unreadable adam_epsilon",
    (1, 1000): "dataloader_prefetch_factor",
    (0, 256): "dataloader_num_workers",
    (0, 2**32 - 1): "seed seeds split_seed data_seed",
    (1, 100_000): "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps",
}

# Fields of TrainingArguments that are not supported, and the reason.
_REFUSED = {
    "push_to_hub": "not supported. Publish the finished run with push_to_hub.py",
    "neftune_noise_alpha": "for language models only. For noise in the images use --noise",
    "label_names": "not supported: the labels are NORMAL and PNEUMONIA. Leave it out",
}

# Augmentation strengths that may differ by class.
_BY_CLASS = tuple(name for name in AUGMENTATIONS if name != "horizontal_flip")

# Fields of TrainingArguments that `--help` shows beside the project's own.
_SHOWN_IN_HELP = (
    "num_train_epochs learning_rate lr_scheduler_type warmup_steps weight_decay label_smoothing_factor seed "
    "resume_from_checkpoint"
).split()


def _option(default: object, text: str):
    """Return a field with its default and its `--help` text."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class Recipe(Strengths, TrainingArguments):
    """transformers' TrainingArguments, with fields for the data, the network and the augmentation."""

    dataset: list[str] = _option(
        ["phantom"],
        "One source or several: phantom, phantom:shortcut, a folder, a .zip, .tar or .csv file, "
        "kaggle:owner/name, or a Hub id (user/name); prefix train=, validation= or test= to use it as this "
        "split.",
    )
    split: str = _option(
        "official",
        "official: the splits of the sources, or a random split by patient if they have none; shares of "
        "train, validation and test, such as 70/20/10, to split all images anew; or shifted: test on the "
        "patients with images that look most like the other class.",
    )
    split_seed: int = _option(0, "Seed of the random splits.")
    covid: str = _option(
        "drop",
        "Images of COVID-19: drop; pneumonia: label them PNEUMONIA; keep: only score them, separately.",
    )
    uncertain: str = _option(
        "drop", "Images labelled uncertain in a table (-1 in CheXpert): drop, positive or negative."
    )
    allow_leakage: bool = _option(
        False, "Train despite leakage between the splits; report.json and config.json record it."
    )
    model: str = _option("resnet18.a1_in1k", "Name of a timm architecture.")
    pretrained: str = _option(
        "true",
        "true: download timm's weights; false: train from scratch; or a folder with model.safetensors.",
    )
    image_size: int = _option(224, "Side of the network's square input, in pixels.")
    drop_rate: float = _option(0.0, "Dropout rate before the head; 0: off.")

    mixup: float = _option(0.0, "Blend pairs of images: alpha of the Beta distribution; 0: off.")
    cutmix: float = _option(
        0.0, "Paste a box of one image into another: alpha of the Beta distribution; 0: off."
    )
    small_epochs: int = _option(0, "Train the first epochs on smaller images (progressive resizing); 0: off.")
    small_size: int = _option(128, "Side of the smaller images, in pixels.")

    imbalance: str = _option(
        "none",
        "Class imbalance: none; weights: weight the loss by class; sampler: draw both classes equally often. "
        "The last two shift the logits, which calibration corrects; see docs/training.md.",
    )
    adam_l2: bool = _option(
        False,
        "Use torch.optim.Adam with L2 on every parameter. Off: AdamW (or `optim`) without weight decay on "
        "biases and normalisation layers.",
    )
    frozen_epochs: int = _option(0, "Train only the head for the first epochs; 0: off.")
    frozen_learning_rate: float = _option(
        0.0, "Constant learning rate of the frozen epochs; 0: the same as `learning_rate`."
    )
    layer_decay: float = _option(
        1.0, "Layer-wise learning rate decay: factor from each layer to the one before it; 1: off."
    )
    ema_decay: float = _option(
        0.0,
        "Validate, keep and publish an exponential moving average of the weights, with this decay per step "
        "(0.99 to 0.9999); 0: off.",
    )
    early_stopping_epochs: int = _option(0, "Stop after this many epochs without improvement; 0: off.")
    lr_step_epochs: int = _option(0, "Divide the learning rate by 10 every N epochs (StepLR); 0: off.")

    seeds: list[int] = _option(
        [], "Train once per seed, such as 0 1 2, and report mean and standard deviation of the metrics."
    )
    checks: bool = _option(
        True, "Run the robustness, shortcut, appearance and error checks after the training."
    )
    ood: bool = _option(
        True, "Fit the out-of-distribution check, which refuses images unlike the training images."
    )
    max_unreadable: float = _option(0.05, "Stop if a larger share of the images can't be read; 1: never.")
    cache_dir: str | None = _option(None, "Folder of the image cache (default ~/.cache/hf-pneumonia).")
    overwrite_output_dir: bool = _option(False, "Start over in an output folder that contains a run.")

    # Defaults of TrainingArguments that do not suit images.
    output_dir: str | None = _option(None, "The run folder (default runs/<recipe>).")
    bf16: bool | None = _option(
        None, "Use bfloat16 mixed precision; unset: if the CPU or GPU supports it in hardware."
    )
    per_device_train_batch_size: int = _option(32, "Images per step and process.")
    per_device_eval_batch_size: int = _option(128, "Images per step and process in evaluation.")
    eval_strategy: str = _option("epoch", "When to evaluate on validation.")
    save_strategy: str = _option("epoch", "When to save a checkpoint.")
    logging_strategy: str = _option("epoch", "When to log the training loss.")
    save_total_limit: int | None = _option(1, "Number of checkpoints to keep, besides the best one.")
    load_best_model_at_end: bool = _option(True, "Keep the weights of the best epoch, not of the last.")
    metric_for_best_model: str | None = _option(
        "auroc_swapped",
        "Validation metric that chooses the best epoch: loss, auroc_swapped (AUROC with the proportions "
        "swapped between the classes) or another metric of report.json.",
    )
    logging_nan_inf_filter: bool = _option(False, "Off: it would hide a loss of NaN.")
    remove_unused_columns: bool = _option(False, "Off: it would drop the images.")
    disable_tqdm: bool | None = _option(True, "On: the project has its own progress bar.")
    report_to: str = _option("none", "Experiment tracker: tensorboard, wandb, trackio ...")
    # Every step uses every parameter; searching for unused ones costs a pass over the graph.
    ddp_find_unused_parameters: bool | None = _option(False, "See TrainingArguments.")

    def __post_init__(self) -> None:
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true"
        if self.pretrained.lower() in ("true", "false"):
            self.pretrained = self.pretrained.lower()
        if self.data_seed is None:
            # Otherwise Accelerate shuffles by torch's seed, which differs between processes: an epoch would
            # miss some images and repeat others.
            self.data_seed = self.seed
        self._check_values()
        self._check_consistency()
        if self.frozen_epochs:
            self.frozen_learning_rate = self.frozen_learning_rate or self.learning_rate
            # The frozen backbone is unused; finding it costs far less than its gradients.
            self.ddp_find_unused_parameters = True
        for name in _BY_CLASS:
            # A single number stays a number in the resolved recipe.
            values = _numbers(getattr(self, name))
            setattr(self, name, values if len(values) == 2 else values[0])
        no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.use_cpu = self.use_cpu or no_gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        if self.fp16 and self.use_cpu:
            raise UsageError("fp16-without-gpu", "--fp16: expected a GPU, got a CPU. Use --bf16 true instead")
        if self.bf16 is None:
            self.bf16 = _has_bf16(self.use_cpu) and not self.fp16
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()

    @property
    def augmentation(self) -> dict[str, float | list[float]]:
        """The arguments of `Augment`."""
        return {name: getattr(self, name) for name in AUGMENTATIONS}

    @property
    def cache(self) -> Path:
        """The folder of the image cache."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_cache()

    def _check_values(self) -> None:
        for name in _BY_CLASS:
            if len(values := _numbers(getattr(self, name))) not in (1, 2):
                raise UsageError(
                    "strength-count",
                    f"--{name}: expected one number, or two (NORMAL, PNEUMONIA), got {len(values)}",
                )
        ranges = {name: limits for limits, names in _RANGES.items() for name in names.split()}
        ranges |= {name: (0, largest) for name, largest in MAX_STRENGTHS.items()}
        for name, (low, high) in ranges.items():
            # Not `value < low or value > high`: NaN has to fail.
            values = [value for value in _numbers(getattr(self, name)) if value is not None]
            if wrong := [value for value in values if not low <= value <= high]:
                raise UsageError(
                    "out-of-range", f"--{name}: expected a number from {low:g} to {high:g}, got {wrong[0]}"
                )
        if not 0 < self.num_train_epochs < math.inf and self.max_steps <= 0:
            raise UsageError(
                "out-of-range", f"--num_train_epochs: expected a number above 0, got {self.num_train_epochs}"
            )
        choices = {
            "metric_for_best_model": (*METRICS, "auroc_swapped", "loss"),
            "covid": COVID_VALUES,
            "uncertain": UNCERTAIN_VALUES,
            "imbalance": IMBALANCE,
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(
                    "unknown-choice", f"--{name}: expected one of {', '.join(allowed)}, got {value!r}"
                )
        parse_split(self.split)
        self.model = timm_name(self.model)
        self.lr_scheduler_kwargs = _settings("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise UsageError("unsupported-flag", f"--{name}: {reason}")

    def _check_consistency(self) -> None:
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UsageError(
                "overwrite-and-resume",
                "--overwrite_output_dir: expected no --resume_from_checkpoint, got both. Leave out one",
            )
        if self.frozen_epochs and self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise UsageError(
                "frozen-with-plateau",
                "--frozen_epochs: expected a scheduler other than reduce_lr_on_plateau. Use cosine or linear",
            )
        for name in ("frozen_epochs", "small_epochs"):
            epochs = getattr(self, name)
            if self.max_steps <= 0 and 0 < self.num_train_epochs <= epochs:
                limit = f"--num_train_epochs {self.num_train_epochs:g}"
                raise UsageError("phase-too-long", f"--{name}: expected less than {limit}, got {epochs}")
        if self.frozen_epochs and not self.learning_rate:
            raise UsageError(
                "frozen-without-learning-rate",
                "--frozen_epochs: expected a --learning_rate above 0 for the epochs that follow, got 0",
            )
        if self.small_epochs and self.small_size >= self.image_size:
            limit = f"--image_size {self.image_size}"
            raise UsageError("small-size", f"--small_size: expected less than {limit}, got {self.small_size}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(
                "repeated-seed", f"--seeds: expected each seed once, got {' '.join(map(str, self.seeds))}"
            )
        if self.seeds and self.resume_from_checkpoint not in (None, True, False, "auto"):
            raise UsageError(
                "resume-seeds",
                f"--resume_from_checkpoint: expected auto with --seeds, got {self.resume_from_checkpoint!r}",
            )
        if self.early_stopping_epochs and self.eval_strategy == "no":
            raise UsageError(
                "early-stopping-unevaluated",
                "--early_stopping_epochs: expected evaluation, got --eval_strategy no. Use epoch instead",
            )


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = ". Put the recipe before the flags" if re.search(r"unrecognized.*\.ya?ml", message) else ""
        if "--warmup_ratio" in message:
            hint = ". Use --warmup_steps, which below 1 is a share of all steps"
        raise UsageError("invalid-flag", _without_tokens(message) + hint)

    def format_help(self) -> str:
        """Describe the project's flags and the main ones of TrainingArguments, which has a hundred more."""
        order = [*Recipe.__annotations__, *AUGMENTATIONS, *_SHOWN_IN_HELP]
        shown = sorted((a for a in self._actions if a.dest in order), key=lambda a: order.index(a.dest))
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.start_section("flags, which are also the keys of a recipe")
        formatter.add_arguments(shown)
        formatter.end_section()
        formatter.add_text(
            "Every field of transformers.TrainingArguments is a flag and a key too; see its documentation."
        )
        return formatter.format_help()


def parse_recipe(argv: list[str], default: Path) -> tuple[Recipe, dict]:
    """Read `[RECIPE.yaml] [--flags]`.

    Args:
        argv: command line without the program's name.
        default: recipe to use if `argv` names none.

    Returns:
        The arguments, and the resolved recipe: every setting that changes the result, as plain values for
        `yaml.safe_dump`. This function can read them back.

    Raises:
        UsageError: the recipe can't be read, or a key, flag or value is invalid.
    """
    argv = list(argv)
    path = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else default
    parser = _Parser(Recipe, allow_abbrev=False, prog="train.py", usage="train.py [RECIPE.yaml] [--flags]")
    if not {"-h", "--help"} & set(argv):
        # Parse only what is given; the dataclass fills in the defaults.
        for action in parser._actions:
            action.default = SUPPRESS
    try:
        given = vars(parser.parse_args(_tokens(_read_yaml(path))))
    except UsageError as error:
        raise UsageError(error.code, f"{path}: {error}") from error
    given |= vars(parser.parse_args(argv))
    given.setdefault("output_dir", f"runs/{path.stem}")
    try:
        recipe = Recipe(**given)
    except (ValueError, ImportError) as error:
        raise UsageError("invalid-recipe", " ".join(str(error).split())) from error
    own = [
        *AUGMENTATIONS,
        *(name for name in Recipe.__annotations__ if name not in TrainingArguments.__annotations__),
    ]
    resolved = {**given, **{name: getattr(recipe, name) for name in (*own, *_ALWAYS_WRITTEN)}}
    return recipe, {
        name: value.value if isinstance(value, Enum) else value
        for name, value in resolved.items()
        if name not in _NOT_IN_RECIPE
    }


def _without_tokens(message: str) -> str:
    """Redact tokens: argparse quotes the command line in its messages."""
    message = re.sub(r"(--\S*(?:token|key|password)[^\s=]*[ =])\S+", r"\1...", message, flags=re.IGNORECASE)
    return re.sub(r"\b(hf|api_org)_\w{8,}", r"\1_...", message)


def _read_yaml(path: Path) -> dict:
    try:
        recipe = read_yaml(path)
    except FileNotFoundError:
        raise UsageError("recipe-not-found", "expected a recipe, got no such file. See recipes/") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError("unreadable-recipe", f"expected YAML, got an error: {reason}") from error
    if not isinstance(recipe, dict):
        raise UsageError("unreadable-recipe", f"expected lines of `key: value`, got {type(recipe).__name__}")
    known = {field.name for field in dataclasses.fields(Recipe) if field.init}
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "See train.py --help"
            raise UsageError("unknown-recipe-key", f"expected a known key, got {key!r}. {hint}")
    return recipe


def _numbers(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _settings(name: str, value: dict | str | None) -> dict | None:
    try:
        settings = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        settings = value
    if not isinstance(settings, dict | None):
        raise UsageError(
            "scheduler-settings", f"--{name}: expected settings such as '{{\"factor\": 0.3}}', got {value!r}"
        )
    return settings


def _tokens(recipe: dict) -> list[str]:
    """Turn a recipe into command line flags, so that one parser checks both."""
    tokens = []
    for key, value in recipe.items():
        if isinstance(value, list):
            tokens += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            tokens.append(f"--{key}={json.dumps(value)}")
        elif value is not None:
            tokens.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
    return tokens


def _has_bf16(use_cpu: bool) -> bool:
    """Return whether the hardware supports bfloat16; emulated, it is slower than float32."""
    if use_cpu:
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
