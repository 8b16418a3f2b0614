"""report.json and recipe of a run -> what of them may leave this machine, by an allow-list of keys and kinds.

What is not named here stays at home, so that a key of a later version can't slip out.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from hf_pneumonia.data.rows import SPLITS
from hf_pneumonia.evaluation.metrics import METRICS

# Kinds of leaves.
NUMBER, TEXT = "number", "text"  # a number may be a list of numbers, a boolean or null
ANY = "*"  # any key of a table whose keys come from the data, or from a list in the code

_FIGURE = {
    name: NUMBER
    for name in ("value", "ci95", "wilson95", "delong95", "undefined_replicates", "if_calibrated")
}
_CLASSES = {ANY: NUMBER}
_SPLIT = {
    **{name: _FIGURE for name in METRICS},
    "predictive_values": {ANY: {"prevalence": NUMBER, "ppv": _FIGURE, "npv": _FIGURE}},
    "confusion_matrix": {name: NUMBER for name in ("tn", "fp", "fn", "tp")},
    "threshold": NUMBER,
    "films": NUMBER,
    "patients": NUMBER,
}
_BIN = {name: NUMBER for name in ("low", "high", "films", "mean_probability", "share", "wilson95")}
_CALIBRATION = {"ece": _FIGURE, "brier": _FIGURE, "nll": _FIGURE, "reliability": [_BIN]}
_POINT = {
    name: NUMBER
    for name in (
        "threshold",
        "target_sensitivity",
        "sensitivity",
        "specificity",
        "temperature",
        "intercept",
    )
}
_BAND = {name: NUMBER for name in ("low", "high", "risk")}
_PAIR = {"sensitivity": _FIGURE, "specificity": _FIGURE}
_GROUP = {
    "films": NUMBER,
    "patients": NUMBER,
    "classes": _CLASSES,
    **_PAIR,
    "auroc": _FIGURE,
    "auroc_against": TEXT,
}
_METRICS_AT = {"auroc": _FIGURE, **_PAIR}
_LEVEL = {"level": NUMBER, **_METRICS_AT}
_EPOCH = {"epoch": NUMBER, "train": {ANY: NUMBER}, "validation": {ANY: NUMBER}}
_CROSSING = {ANY: NUMBER}

_REPORT = {
    "splits": {name: _SPLIT for name in (*SPLITS, "covid")},
    "operating_point": {**_POINT, "uncertain": _BAND, "validation": _SPLIT, "test": _SPLIT},
    "operating_points": {ANY: {**_POINT, "validation": _PAIR, "test": _PAIR}},
    "calibration": {
        "bins": NUMBER,
        **{name: {"before": _CALIBRATION, "after": _CALIBRATION} for name in ("validation", "test")},
    },
    "checks": {
        "split": TEXT,
        "threshold": NUMBER,
        "appearance": {
            "images": NUMBER,
            "threshold": NUMBER,
            "vertical": TEXT,
            "factor": NUMBER,
            "proportions": {ANY: _METRICS_AT},
            "histogram_and_spectrum": _METRICS_AT,
            "appearance_auroc": _FIGURE,
            "matched_auroc": _FIGURE,
            "contradicting": {"images": _CLASSES, **_PAIR},
        },
        "shortcuts": {ANY: {"films": NUMBER, "auroc": _FIGURE, "mean_probability": {ANY: NUMBER}}},
        "robustness": {
            "films": NUMBER,
            "threshold": NUMBER,
            **{
                name: {"unit": TEXT, "clean": NUMBER, "levels": [_LEVEL]}
                for name in ("blur", "noise", "jpeg", "exposure", "rotation", "resolution")
            },
        },
        # A family of file names is letters that five patients or more have in common (subgroups.py).
        "subgroups": {"sources": {ANY: _GROUP}, "families": {ANY: _GROUP}},
        "errors": {ANY: {ANY: NUMBER}},
    },
    "seed": NUMBER,
    "data": {
        "source": TEXT,
        "simulated": NUMBER,
        "splits": {ANY: {"films": NUMBER, "patients": NUMBER, "classes": _CLASSES}},
        "sources": {ANY: NUMBER},
        "left_out": NUMBER,
        "removed": {ANY: NUMBER},
        # Sentences of splits.py, of counts and names of splits.
        "notes": [TEXT],
        "split_sha256": TEXT,
        "leakage": _CROSSING,
    },
    "audit": {
        "films": NUMBER,
        "sources": {ANY: NUMBER},
        "removed": {ANY: NUMBER},
        "duplicates": {ANY: NUMBER},
        "leakage": {"as_given": _CROSSING, "as_used": _CROSSING},
        "overlays": {"text": _CLASSES, "colour": _CLASSES},
        "searched_for_text": NUMBER,
        "blank": NUMBER,
        "balance": {ANY: {ANY: {ANY: NUMBER}}},
        "label_told_by": {ANY: NUMBER},
        "appearance": {
            "images": NUMBER,
            "auroc": _FIGURE,
            "statistics": [{"statistic": TEXT, "auroc": NUMBER, "median": _CLASSES, "words": TEXT}],
            "test_against_train": {ANY: _FIGURE},
        },
    },
    "history": [_EPOCH],
    "kept_epoch": NUMBER,
    "training_seconds": NUMBER,
    "versions": {ANY: TEXT},
    "device": TEXT,
    "processes": NUMBER,
    "weights_sha256": TEXT,
    "gate_sha256": TEXT,
    "gate": {
        "films": {ANY: {"films": NUMBER, "refused": NUMBER, "share": _FIGURE}},
    },
    "uncertain": {split: {name: _FIGURE for name in ("share", "missed", "false_alarms")} for split in SPLITS},
}

# Every choice that a run depends on, and nothing of where its films, weights and outputs lie.
RECIPE_KEYS = (
    "dataset",
    "model",
    "pretrained",
    "image_size",
    "drop_rate",
    "split",
    "split_seed",
    "covid",
    "allow_leakage",
    "max_unreadable",
    "seed",
    "data_seed",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "adam_l2",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "lr_step_epochs",
    "warmup_steps",
    "layer_decay",
    "label_smoothing_factor",
    "imbalance",
    "frozen_epochs",
    "frozen_learning_rate",
    "ema_decay",
    "early_stopping_epochs",
    "metric_for_best_model",
    "rotation",
    "zoom",
    "proportions",
    "shift",
    "resolution",
    "blur",
    "exposure",
    "noise",
    "horizontal_flip",
    "mixup",
    "cutmix",
    "small_epochs",
    "small_size",
    "checks",
    "ood",
    "bf16",
    "fp16",
)


def public_report(report: dict, sources: list[str]) -> dict:
    """What of a report may be published: its figures as they are, lists of files as counts.

    Args:
        report: report.json of a run.
        sources: their short names, as the manifest's summary has them.

    Returns:
        The keys of the allow-list that the report has. `data.unreadable` and `audit.unreadable` are counts by
        reason, `audit.conflicting_labels` counts groups and films, `recipe` is `public_recipe`'s.
    """
    public = _pick(report, _REPORT)
    public["recipe"] = public_recipe(report["recipe"], sources)
    for name in ("data", "audit"):
        if isinstance(unreadable := report[name].get("unreadable"), list):
            reasons = Counter(_plain_reason(film["reason"]) for film in unreadable)
            public[name]["unreadable"] = dict(sorted(reasons.items()))
    if isinstance(groups := report["audit"].get("conflicting_labels"), list):
        public["audit"]["conflicting_labels"] = {"groups": len(groups), "films": sum(map(len, groups))}
    return public


def public_recipe(recipe: dict, sources: list[str]) -> dict:
    """What of a resolved recipe may be published: the short names of its sources, and the last folder of
    starting weights that lie on this machine."""
    public = {key: recipe[key] for key in RECIPE_KEYS if key in recipe}
    public["dataset"] = list(sources)
    if recipe["pretrained"] not in ("true", "false"):
        public["pretrained"] = Path(recipe["pretrained"]).name or "a local folder"
    return public


def recipe_yaml(recipe: dict, all_public: bool, given: Iterable[str] = ()) -> str:
    """A published recipe as a file that `train.py FILE --dataset ...` takes.

    Args:
        recipe: from `public_recipe`.
        all_public: whether everybody can have all of its sources by their names.
        given: keys of the recipe that it was made of; those that stay at home are named.
    """
    lines, local = ["# What the network was trained by, every choice resolved."], set()
    if not all_public:
        local.add("dataset")
        sources = " ".join(", ".join(recipe["dataset"]).split())
        lines.append(
            f"# It was trained on {sources}, of which this file can't name all the places: give yours with "
            "--dataset."
        )
    if recipe["pretrained"] not in ("true", "false"):
        local.add("pretrained")
        lines.append(
            "# It started from the weights of an earlier run, which are not part of this: give a folder "
            "with --pretrained."
        )
    if unpublished := sorted(set(given) - set(RECIPE_KEYS)):
        lines.append(f"# Set as well, and not published: {', '.join(unpublished)}.")
    kept = {key: value for key, value in recipe.items() if key not in local}
    return "\n".join(lines) + "\n" + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _pick(value: object, allowed: object) -> object:
    """The part of a plain value that an allow-list of its keys and kinds lets through."""
    if isinstance(allowed, dict):
        found = value if isinstance(value, dict) else {}
        picked = {key: _pick(one, allowed.get(key, allowed.get(ANY))) for key, one in found.items()}
        return {key: one for key, one in picked.items() if one is not _STAYS}
    if isinstance(allowed, list):
        picked = [_pick(one, allowed[0]) for one in value] if isinstance(value, list) else []
        return [one for one in picked if one is not _STAYS]
    if allowed == TEXT:
        return value if isinstance(value, str) else _STAYS
    if allowed == NUMBER:
        numbers = value if isinstance(value, list) else [value]
        return value if all(isinstance(one, int | float | None) for one in numbers) else _STAYS
    return _STAYS


_STAYS = object()  # what is not let through; None is a value


def _plain_reason(reason: str) -> str:
    """Why a film can't be read: decoders may quote what they were given, so that only plain words pass."""
    return reason if re.fullmatch(r"[\w .,:;()+x-]{1,120}", reason) else "another reason"
