"""Model card (README.md) from the template card.md, and evaluation results in the Hub's format.

All numbers come from the report.
"""

import re
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from hf_pneumonia.evaluation.metrics import RANK_METRICS, THRESHOLD_METRICS
from hf_pneumonia.modeling.augment import AUGMENTATIONS

TEMPLATE = Path(__file__).with_name("card.md")

# The published plots and their alt texts. The other plots, such as plots/samples.png, show images.
PLOTS = {
    "plots/curves.png": "Loss and accuracy by epoch, training and validation.",
    "plots/confusion_matrix.png": "Confusion matrix of the test images at threshold 0.5.",
    "plots/roc.png": "ROC curves of validation and test: sensitivity against 1 - specificity.",
    "plots/reliability.png": "Reliability, validation and test: observed share by predicted probability.",
    "plots/robustness.png": "Metrics by level of blur, noise, compression, exposure, rotation, resolution.",
    "plots/class_distribution.png": "Number of images of each class in each split.",
}

# Names of copies of the data set of Kermany et al., which the card describes.
_KERMANY = re.compile(r"kermany|chest[-_]?xray[-_]pneumonia", re.IGNORECASE)

_TAGS = ["timm", "transformers", "image-classification", "chest-x-ray", "radiology", "medical", "pneumonia"]

# Metric in the report -> metric on the Hub, and its title.
_AT_HALF = {
    "auroc": ("roc_auc", "AUROC"),
    "average_precision": ("average_precision", "Average precision"),
    "accuracy": ("accuracy", "Accuracy at threshold 0.5"),
    "f1": ("f1", "F1 at threshold 0.5"),
}
_AT_POINT = {
    "sensitivity": ("recall", "Sensitivity at the operating point"),
    "specificity": ("specificity", "Specificity at the operating point"),
}


def card(report: dict, config: dict, recipe: dict, manifest: dict, repo: str) -> str:
    """Return the model card with its front matter; deterministic for a run.

    Args:
        report: from `public_report`.
        config: the model's config.json.
        recipe: from `public_recipe`.
        manifest: from `summarise_manifest`.
        repo: user/name of the published model; `USER/...` if it is not known yet.

    Raises:
        KeyError, TypeError, jinja2.UndefinedError: the report lacks a value that the card needs, or has null
            for a count or a name.
    """
    names = list(manifest["sources"])
    # Other data sets have such names, too, but not files like person1000_bacteria_2931 and IM-0115-0001.
    kermany_files = 2 * manifest["patients_known_by"]["file name"] > manifest["films"]
    kinds = [source["kind"] for source in manifest["sources"].values()]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_no_null,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"metric": show_metric, "plain": plain}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front_matter=card_data(report, recipe, manifest, repo).to_yaml(),
        repo=repo,
        published=not repo.startswith("USER/"),
        report=report,
        config=config,
        recipe=recipe,
        manifest=manifest,
        source=", ".join(map(plain, names)),
        base_model=base_model(recipe),
        own_network=config["architecture"].startswith("cnn_"),
        simulated="phantom" in kinds,
        all_simulated=set(kinds) == {"phantom"},
        kermany=kermany_files and all(_KERMANY.search(name) for name in names),
        some_kermany=kermany_files and any(_KERMANY.search(name) for name in names),
        local=[plain(name) for name, kind in zip(names, kinds, strict=True) if kind == "local"],
        augmentations=list(AUGMENTATIONS),
        at_threshold={name: metric.title for name, metric in THRESHOLD_METRICS.items()},
        of_ranks={name: metric.title for name, metric in RANK_METRICS.items()},
        plots=PLOTS,
        worst=worst_levels(report["checks"]["robustness"]),
    )


def show_metric(metric: dict | float | None, digits: int = 3) -> str:
    """Format a number of the report. Numbers are rounded only here.

    Args:
        metric: a number, or {"value"} with the interval "ci95" or "wilson95".
        digits: decimal places; more are shown where a number would be rounded to 0 or 1.
    """
    if isinstance(metric, dict):
        if metric["value"] is None:
            return "not defined"
        ends = metric["ci95"] if "ci95" in metric else metric["wilson95"]
        interval = ", ".join(show_metric(end, digits) for end in ends) if ends else "no interval"
        return f"{show_metric(metric['value'], digits)} [{interval}]"
    if metric is None:
        return "not defined"
    shown = f"{metric:.{digits}f}"
    while 0 < digits < 17 and float(shown) in (0, 1) and float(shown) != metric:
        digits += 1
        shown = f"{metric:.{digits}f}"
    return shown


def plain(text: object) -> str:
    """Return an external name without characters that have a meaning in Markdown."""
    return re.sub(r"[^\w .,:;()/+=-]+|_{2,}", "_", " ".join(str(text).split()))


def worst_levels(robustness: dict) -> dict[str, dict | None]:
    """Return, for each metric, the corruption at which it is lowest: `name`, `level`, `unit` and `metric`.

    The entry is None if the metric is not defined at any level.
    """
    worst: dict = {"auroc": None, "sensitivity": None, "specificity": None}
    corruptions = {name: one for name, one in robustness.items() if isinstance(one, dict)}
    for metric in worst:
        levels = [
            {"name": name, "level": level["level"], "unit": corruption["unit"], "metric": level[metric]}
            for name, corruption in corruptions.items()
            for level in corruption["levels"]
            if level[metric]["value"] is not None
        ]
        worst[metric] = min(levels, key=lambda level: level["metric"]["value"], default=None)
    return worst


def card_data(report: dict, recipe: dict, manifest: dict, repo: str) -> ModelCardData:
    """Return the front matter of the card.

    Args:
        report, recipe, manifest, repo: as for `card`.
    """
    kinds = {source["kind"] for source in manifest["sources"].values()}
    hub = [name for name, source in manifest["sources"].items() if source["kind"] == "hub"]
    return ModelCardData(
        license="apache-2.0",
        # As timm's own checkpoints on the Hub: library timm, with transformers as a tag.
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=base_model(recipe),
        datasets=hub or None,  # other names would be broken links
        metrics=sorted(metric for metric, _ in (_AT_HALF | _AT_POINT).values()),
        tags=[*_TAGS, *(["simulated"] if "phantom" in kinds else [])],
        model_name=repo.split("/")[-1],
        eval_results=_eval_results(report, manifest),
    )


def base_model(recipe: dict) -> str | None:
    """Return the Hub repository of the pretrained weights, or None if they are not from the Hub."""
    if recipe["pretrained"] != "true":
        return None
    import timm  # takes seconds, and many cards do not need it

    known = timm.get_pretrained_cfg(recipe["model"])
    return known.hf_hub_id if known else None


def eval_result_files(report: dict, recipe: dict, manifest: dict, repo: str) -> dict[str, bytes]:
    """Return the files `.eval_results/*.yaml` with the metrics in the Hub's format.

    The Hub shows them on the page of the data set if it is registered there as a benchmark with these tasks.
    """
    test, point = report["splits"]["test"], report["operating_point"]
    entries = [
        EvalResultEntry(
            dataset_id=_dataset_id(report, recipe, manifest),
            task_id=metric,
            value=scored[metric]["value"],
            source_url=f"https://huggingface.co/{repo}",
            source_name="Model card",
            notes=f"test split, {scored['films']} images, 95% interval {scored[metric]['ci95']}, "
            f"threshold {scored['threshold']}",
        )
        for scored, metrics in ((test, _AT_HALF), (point["test"], _AT_POINT))
        for metric in metrics
        if scored[metric]["value"] is not None
    ]
    content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return {".eval_results/test.yaml": content.encode()}


def _no_null(value: object) -> object:
    """Refuse null for counts and names; a metric that is null goes through `show_metric`."""
    if value is None:
        raise TypeError("a value, not null")
    return value


def _dataset_id(report: dict, recipe: dict, manifest: dict) -> str:
    """Return the Hub's data set if its own test split was used, else a name that no Hub data set can have.

    Models must not be compared on test images that are not public.
    """
    cut = recipe["split"] != "official" or any("no test split" in note for note in report["data"]["notes"])
    kinds = {name: source["kind"] for name, source in manifest["sources"].items()}
    if not cut and list(kinds.values()) == ["hub"]:
        return next(iter(kinds))
    # Kaggle's names begin with their kind, and "phantom" is one.
    plain = ("phantom", "kaggle")
    return " + ".join(name if kind in plain else f"{kind}:{name}" for name, kind in kinds.items())


def _eval_results(report: dict, manifest: dict) -> list[EvalResult]:
    (first, source), *more = manifest["sources"].items()
    # The name of a local folder must not look like a Hub data set; "imagefolder" loads such folders.
    kind = first if not more and source["kind"] != "local" else "imagefolder"
    scores = [(report["splits"]["test"], _AT_HALF), (report["operating_point"]["test"], _AT_POINT)]
    if appearance := report["checks"].get("appearance"):
        factor = appearance["factor"]
        # A separate metric type: a program that looks for the AUROC must not find this one.
        name = "roc_auc_proportions_swapped", f"AUROC with proportions swapped by {factor}"
        scores.append((appearance["proportions"][str(factor)], {"auroc": name}))
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=kind,
            dataset_name=", ".join(manifest["sources"]),
            dataset_split="test",
            metric_type=metric,
            metric_name=title,
            metric_value=scored[name]["value"],
        )
        for scored, metrics in scores
        for name, (metric, title) in metrics.items()
        if scored[name]["value"] is not None
    ]
