"""What a recipe may say: one dataclass, filled from a YAML file and from flags that override it."""

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

import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_pneumonia.data.cache import default_cache
from hf_pneumonia.data.files import read_yaml
from hf_pneumonia.data.labels import COVID, UNCERTAIN
from hf_pneumonia.data.splits import parse_split
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.modeling.augment import AUGMENTATIONS, LARGEST, Strengths
from hf_pneumonia.modeling.build import timm_name

IMBALANCE = ("none", "weights", "sampler")

# Fields of TrainingArguments that decide what a run computes: written to the resolved recipe though unsaid.
_DECISIVE = (
    "seed num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps optim "
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps label_smoothing_factor metric_for_best_model bf16 fp16"
).split()

# Where a run is written is not part of it, a token must not reach a file, and each run has its own seed.
_NOT_IN_RECIPE = "output_dir overwrite_output_dir cache_dir hub_token resume_from_checkpoint seeds".split()

# Bounds, both included, of what would otherwise fail late or train nonsense.
_RANGES = {
    (32, 2048): "image_size small_size",
    (0, 0.99): "drop_rate label_smoothing_factor",
    (0, 100): "mixup cutmix",
    (0, 100_000): "small_epochs frozen_epochs early_stopping_epochs lr_step_epochs",
    (0, 1000): "learning_rate frozen_learning_rate weight_decay",
    (0.01, 1): "layer_decay",
    (0, 0.999999): "ema_decay adam_beta1 adam_beta2",
    (0, 1): "max_unreadable adam_epsilon",
    (0, 256): "dataloader_num_workers",
    (0, 2**32 - 1): "seed seeds split_seed data_seed",
    (1, 100_000): "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps",
}

# Fields of TrainingArguments that mean nothing here, and why.
_REFUSED = {
    "push_to_hub": "a run is published when it is finished, by push_to_hub.py",
    "neftune_noise_alpha": "it adds noise to the embeddings of language models; see --noise",
    "label_names": "the labels are NORMAL and PNEUMONIA, by the class folders",
}

# Strengths of the augmentation that may differ by class.
_BY_CLASS = tuple(name for name in AUGMENTATIONS if name != "horizontal_flip")

# Fields of TrainingArguments that `--help` shows beside the project's own.
_SHOWN_IN_HELP = (
    "num_train_epochs learning_rate lr_scheduler_type warmup_steps weight_decay label_smoothing_factor seed "
    "resume_from_checkpoint"
).split()


def _option(default: object, text: str):
    """Return a field with its default and its line of `--help`."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class Recipe(Strengths, TrainingArguments):
    """transformers' TrainingArguments with the data, the network and the augmentation beside them."""

    dataset: list[str] = _option(
        ["phantom"],
        "One source or several: phantom, phantom:shortcut, a folder, a .zip or .csv file, kaggle:owner/name, "
        "or a Hub id (user/name).",
    )
    split: str = _option(
        "official",
        "official: the splits that the sources have, cut where they have none; the shares of train, "
        "validation and test, as in 70/20/10, to split all images anew; or shifted, to test on the patients "
        "whose images look most like the other class.",
    )
    split_seed: int = _option(0, "Seed of the splits that are cut.")
    covid: str = _option(
        "drop", "Images of COVID-19: drop; pneumonia, to count them as such; or keep, apart."
    )
    uncertain: str = _option(
        "drop", "Images whose finding a table calls uncertain (-1 in CheXpert): drop, positive or negative."
    )
    allow_leakage: bool = _option(False, "Train in spite of leakage; the report and config.json say so.")
    model: str = _option("resnet18.a1_in1k", "timm architecture, by name.")
    pretrained: str = _option(
        "true", "true: fetch timm's weights; false: from scratch; or a folder with model.safetensors."
    )
    image_size: int = _option(224, "Side of the square image that the network sees, in pixels.")
    drop_rate: float = _option(0.0, "Dropout before the head, 0 to 1; 0: off.")

    mixup: float = _option(0.0, "Blend pairs of images: alpha of the Beta distribution; 0: off.")
    cutmix: float = _option(
        0.0, "Paste a box of one image into another: alpha of the Beta distribution; 0: off."
    )
    small_epochs: int = _option(0, "Train the first epochs on smaller images (progressive resizing); 0: off.")
    small_size: int = _option(128, "Side of the smaller images, in pixels.")

    imbalance: str = _option(
        "none",
        "Classes of unequal size: none; weights in the loss; or a sampler that draws as many images of each. "
        "The last two change what a probability means: see docs/training.md.",
    )
    adam_l2: bool = _option(
        False,
        "torch.optim.Adam with L2 on every parameter. Off: AdamW (or `optim`), and neither biases nor "
        "normalisation layers decay.",
    )
    frozen_epochs: int = _option(0, "Train only the head for the first epochs; 0: off.")
    frozen_learning_rate: float = _option(
        0.0, "Constant learning rate of those epochs; 0: `learning_rate`, that of the rest."
    )
    layer_decay: float = _option(
        1.0, "Factor of the learning rate from each layer to the one before it; 1: off."
    )
    ema_decay: float = _option(
        0.0,
        "Validate, keep and publish an exponential moving average of the weights, with this decay per step "
        "(0.99 to 0.9999); 0: off.",
    )
    early_stopping_epochs: int = _option(0, "Stop after so many epochs without a new best one; 0: off.")
    lr_step_epochs: int = _option(0, "Divide the learning rate by ten every so many epochs (StepLR); 0: off.")

    seeds: list[int] = _option([], "Train once per seed (0 1 2), and give mean and spread of the metrics.")
    checks: bool = _option(True, "Check robustness, shortcuts, appearance and errors after the training.")
    ood: bool = _option(True, "Fit the statistics by which a model refuses what is no chest X-ray.")
    max_unreadable: float = _option(0.05, "Stop where a larger share of the images can't be read; 1: never.")
    cache_dir: str | None = _option(
        None, "Where decoded and simulated images are kept (default ~/.cache/hf-pneumonia)."
    )
    overwrite_output_dir: bool = _option(False, "Start over in an output folder that already holds a run.")

    # Defaults of TrainingArguments that do not suit images.
    output_dir: str | None = _option(None, "The run folder (default runs/<recipe>).")
    bf16: bool | None = _option(
        None, "Compute in bfloat16; unset: where the processor or GPU has it in hardware."
    )
    per_device_train_batch_size: int = _option(32, "Images per step and process.")
    per_device_eval_batch_size: int = _option(128, "Images per forward pass when scoring.")
    eval_strategy: str = _option("epoch", "When validation is scored.")
    save_strategy: str = _option("epoch", "When a checkpoint is written.")
    logging_strategy: str = _option("epoch", "When the training loss is logged.")
    save_total_limit: int | None = _option(1, "Checkpoints kept beside the best one.")
    load_best_model_at_end: bool = _option(True, "Keep the best epoch, not the last.")
    metric_for_best_model: str | None = _option(
        "auroc_swapped",
        "What makes an epoch the best: a metric of validation, auroc_swapped (with proportions swapped "
        "between the classes) or loss.",
    )
    logging_nan_inf_filter: bool = _option(False, "Hides a diverged loss; off.")
    remove_unused_columns: bool = _option(False, "Would drop the images; off.")
    disable_tqdm: bool | None = _option(True, "The Trainer's own bar; ours replaces it.")
    report_to: str = _option("none", "Experiment tracker: tensorboard, wandb, trackio ...")
    # Every parameter takes part in every step, and looking for others costs a pass over the graph.
    ddp_find_unused_parameters: bool | None = _option(False, "See TrainingArguments.")

    def __post_init__(self) -> None:
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true"
        if self.pretrained.lower() in ("true", "false"):
            self.pretrained = self.pretrained.lower()
        if self.data_seed is None:
            # Else Accelerate orders the images by torch's seed, which differs between processes: an epoch
            # would miss some images and repeat others.
            self.data_seed = self.seed
        self._check()
        if self.frozen_epochs:
            self.frozen_learning_rate = self.frozen_learning_rate or self.learning_rate
            # Those of the frozen backbone take no part; looking for them costs far less than their gradients.
            self.ddp_find_unused_parameters = True
        for name in _BY_CLASS:
            # One number stays one, in the resolved recipe too.
            values = _numbers(getattr(self, name))
            setattr(self, name, values if len(values) == 2 else values[0])
        no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.use_cpu = self.use_cpu or no_gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        if self.fp16 and self.use_cpu:
            raise UsageError("post-init", "--fp16 expects a GPU, got a CPU; leave it out, or use --bf16 true")
        if self.bf16 is None:
            self.bf16 = _has_bf16(self.use_cpu) and not self.fp16
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()

    @property
    def augmentation(self) -> dict[str, float | list[float]]:
        """Arguments of `Augment`."""
        return {name: getattr(self, name) for name in AUGMENTATIONS}

    @property
    def cache(self) -> Path:
        """Folder of the decoded and simulated images."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_cache()

    def _check(self) -> None:
        for name in _BY_CLASS:
            if len(values := _numbers(getattr(self, name))) not in (1, 2):
                raise UsageError(
                    "check", f"--{name} expects one number, or two: NORMAL, PNEUMONIA; got {len(values)}"
                )
        ranges = {name: limits for limits, names in _RANGES.items() for name in names.split()}
        ranges |= {name: (0, largest) for name, largest in LARGEST.items()}
        for name, (low, high) in ranges.items():
            # Written so that NaN, which is neither less nor more than anything, fails.
            if wrong := [value for value in _numbers(getattr(self, name)) if not low <= value <= high]:
                raise UsageError(
                    "check", f"--{name} expects a number from {low:g} to {high:g}, got {wrong[0]}"
                )
        if not 0 < self.num_train_epochs < math.inf and self.max_steps <= 0:
            raise UsageError(
                "check", f"--num_train_epochs expects a number above 0, got {self.num_train_epochs}"
            )
        if self.metric_for_best_model not in (*METRICS, "auroc_swapped", "loss"):
            raise UsageError(
                "check",
                f"--metric_for_best_model expects one of loss, {', '.join(METRICS)}, auroc_swapped, "
                f"got {self.metric_for_best_model!r}",
            )
        parse_split(self.split)
        for name, choices in (("covid", COVID), ("uncertain", UNCERTAIN)):
            if (given := getattr(self, name)) not in choices:
                raise UsageError("check", f"--{name} expects one of {', '.join(choices)}, got {given!r}")
        self.model = timm_name(self.model)
        if self.imbalance not in IMBALANCE:
            raise UsageError(
                "check", f"--imbalance expects one of {', '.join(IMBALANCE)}, got {self.imbalance!r}"
            )
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise UsageError("check", f"--{name}: {reason}")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UsageError(
                "check", "--overwrite_output_dir and --resume_from_checkpoint exclude each other"
            )
        if self.frozen_epochs and self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise UsageError(
                "check", "--frozen_epochs does not go with a plateau scheduler: choose cosine or linear"
            )
        for name in ("frozen_epochs", "small_epochs"):
            epochs = getattr(self, name)
            if self.max_steps <= 0 and 0 < self.num_train_epochs <= epochs:
                limit = f"--num_train_epochs {self.num_train_epochs:g}"
                raise UsageError("check", f"--{name} expects less than {limit}, got {epochs}")
        if self.frozen_epochs and not self.learning_rate:
            raise UsageError(
                "check", "--frozen_epochs needs a --learning_rate above 0 for what comes after them"
            )
        self.lr_scheduler_kwargs = _settings("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if self.small_epochs and self.small_size >= self.image_size:
            limit = f"--image_size {self.image_size}"
            raise UsageError("check", f"--small_size expects less than {limit}, got {self.small_size}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError("check", f"--seeds expects each seed once, got {' '.join(map(str, self.seeds))}")
        if self.seeds and self.resume_from_checkpoint not in (None, True, False, "auto"):
            raise UsageError(
                "check",
                f"--seeds goes on with --resume_from_checkpoint auto, got {self.resume_from_checkpoint!r}",
            )
        if self.early_stopping_epochs and self.eval_strategy == "no":
            raise UsageError(
                "check", "--early_stopping_epochs needs validation: leave --eval_strategy at epoch"
            )


def default_values() -> dict:
    """Return the default of every field, one strength for both classes as one number."""
    defaults = {
        one.name: one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        for one in dataclasses.fields(Recipe)
    }
    return {**defaults, **{name: defaults[name][0] for name in _BY_CLASS}}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:
        hint = "; the recipe comes first" if re.search(r"unrecognized.*\.ya?ml", message) else ""
        if "--warmup_ratio" in message:
            hint = "; --warmup_steps below 1 is a share of all steps"
        raise UsageError("error", _without_tokens(message) + hint)

    def format_help(self) -> str:
        """The flags that matter for images; TrainingArguments has a hundred more, and a page about them."""
        order = [*Recipe.__annotations__, *AUGMENTATIONS, *_SHOWN_IN_HELP]
        shown = sorted((a for a in self._actions if a.dest in order), key=lambda a: order.index(a.dest))
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.start_section("flags, each of which may be a line of a recipe too")
        formatter.add_arguments(shown)
        formatter.end_section()
        formatter.add_text("So may be every field of transformers.TrainingArguments (see its documentation).")
        return formatter.format_help()


def parse_recipe(argv: list[str], default: Path) -> tuple[Recipe, dict]:
    """Read `[RECIPE.yaml] [--flags]`.

    Args:
        argv: the command line without the program's name.
        default: the recipe where none is named.

    Returns:
        The arguments, and the resolved recipe: every choice that the run depends on, as plain values that
        `yaml.safe_dump` writes and this function reads again.

    Raises:
        UsageError: the recipe can't be read, or a key, flag or value is not known.
    """
    argv = list(argv)
    path = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else default
    parser = _Parser(Recipe, allow_abbrev=False, prog="train.py", usage="train.py [RECIPE.yaml] [--flags]")
    if not {"-h", "--help"} & set(argv):
        # Only what was said is parsed; the dataclass itself knows the defaults.
        for action in parser._actions:
            action.default = SUPPRESS
    try:
        given = vars(parser.parse_args(_tokens(_read_yaml(path))))
    except UsageError as error:
        raise UsageError("recipe", f"{path}: {error}") from error
    given |= vars(parser.parse_args(argv))
    given.setdefault("output_dir", f"runs/{path.stem}")
    try:
        recipe = Recipe(**given)
    except (ValueError, ImportError) as error:
        raise UsageError("recipe", " ".join(str(error).split())) from error
    own = [
        *AUGMENTATIONS,
        *(name for name in Recipe.__annotations__ if name not in TrainingArguments.__annotations__),
    ]
    resolved = {**given, **{name: getattr(recipe, name) for name in (*own, *_DECISIVE)}}
    return recipe, {
        name: value.value if isinstance(value, Enum) else value
        for name, value in resolved.items()
        if name not in _NOT_IN_RECIPE
    }


def _without_tokens(message: str) -> str:
    """What argparse quotes of a command line may be a token, under a flag that is known or not."""
    message = re.sub(r"(--\S*(?:token|key|password)[^\s=]*[ =])\S+", r"\1...", message, flags=re.IGNORECASE)
    return re.sub(r"\b(hf|api_org)_\w{8,}", r"\1_...", message)


def _read_yaml(path: Path) -> dict:
    try:
        recipe = read_yaml(path)
    except FileNotFoundError:
        raise UsageError("yaml", "no such recipe; recipes/ holds those that come with the project") from None
    except (OSError, ValueError) as error:
        raise UsageError("yaml", f"can't be read as a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UsageError("yaml", f"expected lines of `key: value`, got {type(recipe).__name__}")
    known = {field.name for field in dataclasses.fields(Recipe) if field.init}
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                "yaml", f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
            )
    return recipe


def _numbers(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _settings(name: str, value: dict | str | None) -> dict | None:
    try:
        settings = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        settings = value
    if not isinstance(settings, dict | None):
        raise UsageError("settings", f"--{name} expects settings as in '{{\"factor\": 0.3}}', got {value!r}")
    return settings


def _tokens(recipe: dict) -> list[str]:
    """A recipe as command line flags, so that one parser judges both."""
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
    """Whether bfloat16 runs in hardware; emulated it is slower than float32."""
    if use_cpu:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
