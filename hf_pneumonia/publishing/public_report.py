"""Publishable parts of a run's report, recipe and manifest.

Allow-lists select keys and types: a new key stays private until it is listed here. The manifest is reduced to
counts.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_pneumonia.data.labels import PHANTOMS, SPLITS, is_global_id
from hf_pneumonia.data.manifest import CONFLICT, COPIES, MANIFEST, PATIENT, SEEN, UNREADABLE, read_manifest
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.checks import CORRUPTIONS
from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.modeling.augment import AUGMENTATIONS

# Types of values.
NUMBER, TEXT = "number", "text"  # NUMBER includes booleans, null and lists of numbers
ANY = "*"  # any key, in tables whose keys come from the data or from a list in the code


def _numbers(keys: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), NUMBER)


_METRIC = _numbers("value ci95 wilson95 delong95 undefined_replicates if_calibrated")
_COUNTS = {ANY: NUMBER}
_SPLIT = {
    **{name: _METRIC for name in METRICS},
    "predictive_values": {ANY: {"prevalence": NUMBER, "ppv": _METRIC, "npv": _METRIC}},
    "confusion_matrix": _numbers("tn fp fn tp"),
    **_numbers("threshold films patients"),
}
_BIN = _numbers("low high films mean_probability share wilson95")
_CALIBRATION = {"ece": _METRIC, "brier": _METRIC, "nll": _METRIC, "reliability": [_BIN]}
_POINT = _numbers("threshold target_sensitivity sensitivity specificity temperature intercept")
_PAIR = {"sensitivity": _METRIC, "specificity": _METRIC}
_METRICS_AT = {"auroc": _METRIC, **_PAIR}
_GROUP = {**_numbers("films patients"), "classes": _COUNTS, **_METRICS_AT, "auroc_against": TEXT}

_REPORT = {
    "splits": {name: _SPLIT for name in (*SPLITS, "covid")},
    "operating_point": {
        **_POINT,
        "uncertain": _numbers("low high risk"),
        "validation": _SPLIT,
        "test": _SPLIT,
    },
    "operating_points": {ANY: {**_POINT, "validation": _PAIR, "test": _PAIR}},
    "calibration": {
        "bins": NUMBER,
        **{name: {"before": _CALIBRATION, "after": _CALIBRATION} for name in ("validation", "test")},
    },
    "checks": {
        "split": TEXT,
        "threshold": NUMBER,
        "appearance": {
            **_numbers("images threshold factor"),
            "vertical": TEXT,
            "proportions": {ANY: _METRICS_AT},
            "histogram_and_spectrum": _METRICS_AT,
            "appearance_auroc": _METRIC,
            "matched_auroc": _METRIC,
            "contradicting": {"images": _COUNTS, **_PAIR},
        },
        "shortcuts": {ANY: {"films": NUMBER, "auroc": _METRIC, "mean_probability": _COUNTS}},
        "robustness": {
            **_numbers("films threshold"),
            **{
                name: {"unit": TEXT, "clean": NUMBER, "levels": [{"level": NUMBER, **_METRICS_AT}]}
                for name in CORRUPTIONS
            },
        },
        # A family is the letters of file names, shared by at least five patients (evaluation/checks.py).
        "subgroups": {"sources": {ANY: _GROUP}, "families": {ANY: _GROUP}},
        "errors": {ANY: _COUNTS},
    },
    "data": {
        "source": TEXT,
        **_numbers("simulated left_out"),
        "splits": {ANY: {"films": NUMBER, "patients": NUMBER, "classes": _COUNTS}},
        "sources": _COUNTS,
        "removed": _COUNTS,
        # Sentences of splits.py with counts and split names only.
        "notes": [TEXT],
        "split_sha256": TEXT,
        "leakage": _COUNTS,
    },
    "audit": {
        **_numbers("films searched_for_text blank"),
        **dict.fromkeys(("sources", "removed", "duplicates", "label_told_by"), _COUNTS),
        "leakage": {"as_given": _COUNTS, "as_used": _COUNTS},
        "overlays": {"text": _COUNTS, "colour": _COUNTS},
        "balance": {ANY: {ANY: _COUNTS}},
        "appearance": {
            "images": NUMBER,
            "auroc": _METRIC,
            "statistics": [{"statistic": TEXT, "auroc": NUMBER, "median": _COUNTS, "words": TEXT}],
            "test_against_train": {ANY: _METRIC},
        },
    },
    "model": {"parameters": NUMBER},
    "history": [{"epoch": NUMBER, "train": _COUNTS, "validation": _COUNTS}],
    **_numbers("seed kept_epoch training_seconds processes"),
    "versions": {ANY: TEXT},
    **dict.fromkeys(("device", "weights_sha256", "gate_sha256"), TEXT),
    "gate": {"films": {ANY: {**_numbers("films refused"), "share": _METRIC}}},
    "uncertain": {split: {name: _METRIC for name in ("share", "missed", "false_alarms")} for split in SPLITS},
}

# All settings that results depend on, without the paths of images, weights and outputs.
RECIPE_KEYS = (
    *"""
    dataset model pretrained image_size drop_rate split split_seed covid uncertain allow_leakage
    max_unreadable seed data_seed num_train_epochs max_steps per_device_train_batch_size
    per_device_eval_batch_size gradient_accumulation_steps optim adam_l2 learning_rate weight_decay
    adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type lr_scheduler_kwargs lr_step_epochs
    warmup_steps layer_decay label_smoothing_factor imbalance frozen_epochs frozen_learning_rate ema_decay
    early_stopping_epochs metric_for_best_model mixup cutmix small_epochs small_size checks ood bf16 fp16
    """.split(),
    *AUGMENTATIONS,
)

# Name of an image of a Hub data set in a manifest; local images have paths.
_HUB_IMAGE = re.compile(r"(train|validation|test)/\d{6}(/|$)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_REASONS = (UNREADABLE, CONFLICT, COPIES, PATIENT)
_KNOWN_BY = ("file name", "source", "nothing")

_PRIVATE = object()  # marks a value that may not be published; None is a value


def public_report(report: dict, sources: list[str]) -> dict:
    """Return the publishable part of a report: metrics unchanged, lists of files as counts.

    Args:
        report: report.json of a run.
        sources: short names of the sources, as in `summarise_manifest`.

    Returns:
        The listed keys that the report has. `data.unreadable` and `audit.unreadable` are counts by reason,
        `audit.conflicting_labels` is a count of groups and images, and `recipe` is from `public_recipe`.
    """
    public = _pick(report, _REPORT)
    public["recipe"] = public_recipe(report["recipe"], sources)
    for name in ("data", "audit"):
        if isinstance(unreadable := report[name].get("unreadable"), list):
            reasons = Counter(_plain_reason(image["reason"]) for image in unreadable)
            public[name]["unreadable"] = dict(sorted(reasons.items()))
    if isinstance(groups := report["audit"].get("conflicting_labels"), list):
        public["audit"]["conflicting_labels"] = {"groups": len(groups), "films": sum(map(len, groups))}
    return public


def public_recipe(recipe: dict, sources: list[str]) -> dict:
    """Return the publishable part of a resolved recipe.

    Sources are replaced by their short names, local pretrained weights by the name of their folder.
    """
    public = {key: recipe[key] for key in RECIPE_KEYS if key in recipe}
    public["dataset"] = list(sources)
    if recipe["pretrained"] not in ("true", "false"):
        public["pretrained"] = Path(recipe["pretrained"]).name or "a local folder"
    return public


def recipe_yaml(recipe: dict, all_public: bool, given: Iterable[str] = ()) -> str:
    """Return a published recipe as YAML for `train.py FILE --dataset ...`.

    Args:
        recipe: from `public_recipe`.
        all_public: whether all sources can be downloaded by their names.
        given: keys of the original recipe; the unpublished ones are listed in a comment.
    """
    lines, local = ["# Training recipe of this network, with all defaults resolved."], set()
    if not all_public:
        local.add("dataset")
        sources = " ".join(", ".join(recipe["dataset"]).split())
        lines.append(
            f"# Trained on {sources}, including images that are not public. Give your own with --dataset."
        )
    if recipe["pretrained"] not in ("true", "false"):
        local.add("pretrained")
        lines.append(
            "# Started from the weights of an earlier run, which are not included. Give a folder with "
            "--pretrained."
        )
    if unpublished := sorted(set(given) - set(RECIPE_KEYS)):
        lines.append(f"# Also set, but not published: {', '.join(unpublished)}.")
    kept = {key: value for key, value in recipe.items() if key not in local}
    return "\n".join(lines) + "\n" + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def summarise_manifest(run: Path, report: dict) -> dict:
    """Return the publishable summary of a manifest: counts, without file names and patient ids.

    Args:
        run: folder of a finished run.
        report: its report.json.

    Returns:
        films: number of images found.
        sources: source -> `kind` (phantom, hub, kaggle or local) and `splits`, split -> label ->
            {"films", "patients"} of the images used; in the order of the recipe.
        removed: reason -> number of images.
        copies: number of groups and of images in them.
        patients_known_by: number of images whose patient is known by file name, source or nothing.
        seen_before: number of images that the pretrained weights were trained on.
        split_sha256, manifest_sha256: hashes that identify the images and their use.

    Raises:
        UsageError: the manifest is missing, damaged or of another version.
    """
    rows = read_manifest(run / MANIFEST)
    by_source: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    groups = Counter(row["duplicate_group"] for row in rows if row["duplicate_group"])
    known_by = Counter(map(_known_by, rows))
    seen = (run / MANIFEST).parent / SEEN
    trained_on = {row["content_hash"] for row in read_manifest(seen)} if seen.exists() else set()
    return {
        "films": len(rows),
        "sources": {
            name: {"kind": _kind(given, name, by_source[name]), "splits": _counts(by_source[name])}
            for given, name in zip(report["recipe"]["dataset"], source_names(report), strict=True)
        },
        # By their beginnings: what follows names files.
        "removed": {
            reason: sum(row["kept"] != "true" and row["reason"].startswith(reason) for row in rows)
            for reason in _REASONS
        },
        "copies": {"groups": len(groups), "films": sum(groups.values())},
        "patients_known_by": {name: known_by[name] for name in _KNOWN_BY},
        "seen_before": len(trained_on),
        "split_sha256": report["data"]["split_sha256"],
        "manifest_sha256": manifest_sha256(rows),
    }


def manifest_sha256(rows: list[dict[str, str]]) -> str:
    """Return the SHA-256 of the sorted lines `content_hash,split,label,kept`, each ending with a line feed.

    Equal hashes mean that the same images were used in the same way, whatever their names and folders.
    """
    lines = sorted(f"{row['content_hash']},{row['split']},{row['label']},{row['kept']}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_names(report: dict) -> list[str]:
    """Return the short names of a run's sources from its report, in the order of its recipe.

    Raises:
        UsageError: the names are ambiguous.
    """
    given, shown = report["recipe"]["dataset"], report["data"]["source"]
    names = [shown] if len(given) == 1 else shown.split(", ")
    if len(names) != len(given):
        raise UsageError(
            "ambiguous-sources",
            f"report.json: expected {len(given)} source names, got {shown!r}. "
            "Train again from folders without commas in their names",
        )
    return names


def _pick(value: object, allowed: object) -> Any:
    """Return the part of a JSON value that an allow-list of keys and types permits, or _PRIVATE."""
    if isinstance(allowed, dict):
        table = value if isinstance(value, dict) else {}
        picked = {key: _pick(item, allowed.get(key, allowed.get(ANY))) for key, item in table.items()}
        return {key: item for key, item in picked.items() if item is not _PRIVATE}
    if isinstance(allowed, list):
        picked = [_pick(item, allowed[0]) for item in value] if isinstance(value, list) else []
        return [item for item in picked if item is not _PRIVATE]
    if allowed == TEXT:
        return value if isinstance(value, str) else _PRIVATE
    if allowed == NUMBER:
        numbers = value if isinstance(value, list) else [value]
        return value if all(isinstance(number, int | float | None) for number in numbers) else _PRIVATE
    return _PRIVATE


def _plain_reason(reason: str) -> str:
    """Return why an image can't be read, in plain words only: decoders may quote paths or content."""
    return reason if re.fullmatch(r"[\w .,:;()+x-]{1,120}", reason) else "another reason"


def _kind(given: str, name: str, rows: list[dict[str, str]]) -> str:
    if given in PHANTOMS:
        return "phantom"
    if given.startswith("kaggle:") and given == name:
        return "kaggle"
    # A relative folder may look like user/name too.
    is_hub = given == name and _HUB_NAME.fullmatch(name) and rows
    return "hub" if is_hub and all(_HUB_IMAGE.match(row["path"]) for row in rows) else "local"


def _counts(rows: list[dict[str, str]]) -> dict:
    images: dict = defaultdict(lambda: defaultdict(int))
    patients: dict = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["kept"] == "true":
            images[row["split"]][row["label"]] += 1
            patients[row["split"]][row["label"]].add(row["patient_id"])
    return {
        split: {
            label: {"films": count, "patients": len(patients[split][label])}
            for label, count in sorted(images[split].items())
        }
        for split in sorted(images)
    }


def _known_by(row: dict[str, str]) -> str:
    patient = row["patient_id"].removeprefix(f"{row['source']}:")
    if is_global_id(patient):
        return "file name"
    # Without an id, the patient is the image's path in the source, below the name of its split.
    path = "/" + row["path"].replace("\\", "/")
    return (
        "nothing" if path.endswith((f"/{patient}", f"/{patient.partition('/')[2] or patient}")) else "source"
    )
