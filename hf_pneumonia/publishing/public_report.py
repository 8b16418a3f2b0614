"""report.json, recipe and manifest of a run -> what of them may leave this machine.

An allow-list of keys and kinds: a key of a later version stays private until it is named here. The manifest
becomes counts.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import yaml

from hf_pneumonia.data.labels import PHANTOMS, SPLITS, is_global_id
from hf_pneumonia.data.manifest import CONFLICT, COPIES, MANIFEST, PATIENT, SEEN, UNREADABLE, read_manifest
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.checks import CORRUPTIONS
from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.modeling.augment import AUGMENTATIONS

# Kinds of leaves.
NUMBER, TEXT = "number", "text"  # a number may be a list of numbers, a boolean or null
ANY = "*"  # any key of a table whose keys come from the data, or from a list in the code


def _numbers(keys: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), NUMBER)


_FIGURE = _numbers("value ci95 wilson95 delong95 undefined_replicates if_calibrated")
_COUNTS = {ANY: NUMBER}
_SPLIT = {
    **{name: _FIGURE for name in METRICS},
    "predictive_values": {ANY: {"prevalence": NUMBER, "ppv": _FIGURE, "npv": _FIGURE}},
    "confusion_matrix": _numbers("tn fp fn tp"),
    **_numbers("threshold images patients"),
}
_BIN = _numbers("low high images mean_probability share wilson95")
_CALIBRATION = {"ece": _FIGURE, "brier": _FIGURE, "nll": _FIGURE, "reliability": [_BIN]}
_POINT = _numbers("threshold target_sensitivity sensitivity specificity temperature intercept")
_PAIR = {"sensitivity": _FIGURE, "specificity": _FIGURE}
_METRICS_AT = {"auroc": _FIGURE, **_PAIR}
_GROUP = {**_numbers("images patients"), "classes": _COUNTS, **_METRICS_AT, "auroc_against": TEXT}

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
            "appearance_auroc": _FIGURE,
            "matched_auroc": _FIGURE,
            "contradicting": {"images": _COUNTS, **_PAIR},
        },
        "shortcuts": {ANY: {"films": NUMBER, "auroc": _FIGURE, "mean_probability": _COUNTS}},
        "robustness": {
            **_numbers("images threshold"),
            **{
                name: {"unit": TEXT, "clean": NUMBER, "levels": [{"level": NUMBER, **_METRICS_AT}]}
                for name in CORRUPTIONS
            },
        },
        # A family of file names is letters that five patients or more have in common (evaluation/checks.py).
        "subgroups": {"sources": {ANY: _GROUP}, "families": {ANY: _GROUP}},
        "errors": {ANY: _COUNTS},
    },
    "data": {
        "source": TEXT,
        **_numbers("simulated left_out"),
        "splits": {ANY: {"films": NUMBER, "patients": NUMBER, "classes": _COUNTS}},
        "sources": _COUNTS,
        "removed": _COUNTS,
        # Sentences of splits.py, of counts and names of splits.
        "notes": [TEXT],
        "split_sha256": TEXT,
        "leakage": _COUNTS,
    },
    "audit": {
        **_numbers("images searched_for_text blank"),
        **dict.fromkeys(("sources", "removed", "duplicates", "label_told_by"), _COUNTS),
        "leakage": {"as_given": _COUNTS, "as_used": _COUNTS},
        "overlays": {"text": _COUNTS, "colour": _COUNTS},
        "balance": {ANY: {ANY: _COUNTS}},
        "appearance": {
            "images": NUMBER,
            "auroc": _FIGURE,
            "statistics": [{"statistic": TEXT, "auroc": NUMBER, "median": _COUNTS, "words": TEXT}],
            "test_against_train": {ANY: _FIGURE},
        },
    },
    "history": [{"epoch": NUMBER, "train": _COUNTS, "validation": _COUNTS}],
    **_numbers("seed kept_epoch training_seconds processes"),
    "versions": {ANY: TEXT},
    **dict.fromkeys(("device", "weights_sha256", "gate_sha256"), TEXT),
    "gate": {"films": {ANY: {**_numbers("films refused"), "share": _FIGURE}}},
    "uncertain": {split: {name: _FIGURE for name in ("share", "missed", "false_alarms")} for split in SPLITS},
}

# Every choice that a run depends on, but not where its images, weights and outputs are.
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

# An image of a Hub data set has such a name in a manifest; a file of this machine has its path.
_HUB_IMAGE = re.compile(r"(train|validation|test)/\d{6}(/|$)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_REASONS = (UNREADABLE, CONFLICT, COPIES, PATIENT)
_KNOWN_BY = ("file name", "source", "nothing")

_STAYS = object()  # in place of a value that is not let through; None is a value


def public_report(report: dict, sources: list[str]) -> dict:
    """Return what of a report may be published: its metrics as they are, lists of files as counts.

    Args:
        report: report.json of a run.
        sources: their short names, as the manifest's summary has them.

    Returns:
        The keys of the allow-list that the report has. `data.unreadable` and `audit.unreadable` are counts by
        reason, `audit.conflicting_labels` counts groups and images, `recipe` is `public_recipe`'s.
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
    """Return what of a resolved recipe may be published.

    Its sources have their short names, and starting weights of this machine the name of their folder.
    """
    public = {key: recipe[key] for key in RECIPE_KEYS if key in recipe}
    public["dataset"] = list(sources)
    if recipe["pretrained"] not in ("true", "false"):
        public["pretrained"] = Path(recipe["pretrained"]).name or "a local folder"
    return public


def recipe_yaml(recipe: dict, all_public: bool, given: Iterable[str] = ()) -> str:
    """Return a published recipe as a file that `train.py FILE --dataset ...` takes.

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


def summarise_manifest(run: Path, report: dict) -> dict:
    """Return what of a manifest may be published: counts that name no file and no patient.

    Args:
        run: folder of a finished run.
        report: its report.json.

    Returns:
        `images`, as found; `sources`, by name and in the order of the recipe: `kind` (phantom, hub, kaggle, or
        local for what only this machine has) and `splits`: split -> label -> {"images", "patients"} of the
        images that are used; `removed`, by reason; `copies`, groups and images; `patients_known_by`, the
        images whose patient is known by the file's name, by the source, or by nothing; `seen_before`, the
        images that the starting weights were trained on; `split_sha256` of the report; `manifest_sha256`.

    Raises:
        UsageError: the manifest is missing, or none that this version writes.
    """
    rows = read_manifest(run / MANIFEST)
    by_source: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    groups = Counter(row["duplicate_group"] for row in rows if row["duplicate_group"])
    seen = (run / MANIFEST).parent / SEEN
    trained_on = {row["content_hash"] for row in read_manifest(seen)} if seen.exists() else set()
    return {
        "films": len(rows),
        "sources": {
            name: {"kind": _kind(given, name, by_source[name]), "splits": _counts(by_source[name])}
            for given, name in zip(report["recipe"]["dataset"], source_names(report), strict=True)
        },
        "removed": _count(_REASONS, (_reason(row["reason"]) for row in rows if row["kept"] != "true")),
        "copies": {"groups": len(groups), "films": sum(groups.values())},
        "patients_known_by": _count(_KNOWN_BY, map(_known_by, rows)),
        "seen_before": len(trained_on),
        "split_sha256": report["data"]["split_sha256"],
        "manifest_sha256": manifest_sha256(rows),
    }


def manifest_sha256(rows: list[dict[str, str]]) -> str:
    """Return the SHA-256 over the sorted lines `content_hash,split,label,kept`, each ended by a line feed.

    It is equal where the same images were used in the same way, whatever their names and folders.
    """
    lines = sorted(f"{row['content_hash']},{row['split']},{row['label']},{row['kept']}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_names(report: dict) -> list[str]:
    """Return the sources of a run by their names in its report, in the order of its recipe.

    Raises:
        UsageError: they can't be told apart.
    """
    given, shown = report["recipe"]["dataset"], report["data"]["source"]
    names = [shown] if len(given) == 1 else shown.split(", ")
    if len(names) != len(given):
        raise UsageError(
            "source-names",
            f"report.json names {len(given)} sources as {shown!r}: which is which can't be told; "
            "train again from folders without a comma in their names",
        )
    return names


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


def _plain_reason(reason: str) -> str:
    """Why an image can't be read: decoders may quote what they were given, so that only plain words pass."""
    return reason if re.fullmatch(r"[\w .,:;()+x-]{1,120}", reason) else "another reason"


def _kind(given: str, name: str, rows: list[dict[str, str]]) -> str:
    if given in PHANTOMS:
        return "phantom"
    if given.startswith("kaggle:") and given == name:
        return "kaggle"
    # A relative folder can look like user/name too.
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


def _count(names: Iterable[str], found: Iterable[str]) -> dict[str, int]:
    """How often each name was found, 0 included."""
    counted = Counter(found)
    return {name: counted[name] for name in names}


def _reason(said: str) -> str:
    """Why an image is not used, without what names it or its copy."""
    for reason in _REASONS:
        if said.startswith(reason):
            return reason
    raise UsageError("reason", f"{MANIFEST} has an unknown reason; train again with this version")


def _known_by(row: dict[str, str]) -> str:
    patient = row["patient_id"].removeprefix(f"{row['source']}:")
    if is_global_id(patient):
        return "file name"
    # An image without an id is called by its place in the source, below the name of its split.
    path = "/" + row["path"].replace("\\", "/")
    return (
        "nothing" if path.endswith((f"/{patient}", f"/{patient.partition('/')[2] or patient}")) else "source"
    )
