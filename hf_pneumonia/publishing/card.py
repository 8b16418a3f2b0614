"""Report -> README.md of the model, through the template card.md, and metrics that programs read.

Every number in both is the report's.
"""

import re
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import AT_THRESHOLD, OF_RANKS
from hf_pneumonia.modeling.augment import AUGMENTATIONS

TEMPLATE = Path(__file__).with_name("card.md")

# Names under which the images of Kermany et al. are passed on; of others the card says what the run knows.
_KERMANY = re.compile(r"kermany|chest[-_]?xray[-_]pneumonia", re.IGNORECASE)

_TAGS = ["timm", "transformers", "image-classification", "chest-x-ray", "radiology", "medical", "pneumonia"]

# Metric of the report -> metric of the Hub, and its title.
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
    """Return the model card, front matter included. The same run gives the same text.

    Args:
        report: from `public_report`.
        config: the model's config.json.
        recipe: from `public_recipe`.
        manifest: from `summarise_manifest`.
        repo: user/name of the published model; `USER/...` where it is not known yet.

    Raises:
        KeyError, jinja2.UndefinedError: the report lacks what the card needs.
        UsageError: it has a null where the card needs a count or a name.
    """
    names = list(manifest["sources"])
    # Others have data sets of such names, too; person1000_bacteria_2931 and IM-0115-0001 are these alone.
    named_so = 2 * manifest["patients_known_by"]["file name"] > manifest["films"]
    kinds = [source["kind"] for source in manifest["sources"].values()]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_no_null,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"figure": show_figure, "epochs": _show_epochs, "plain": plain}
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
        kermany=named_so and all(_KERMANY.search(name) for name in names),
        some_kermany=named_so and any(_KERMANY.search(name) for name in names),
        local=[plain(name) for name, kind in zip(names, kinds, strict=True) if kind == "local"],
        augmentations=list(AUGMENTATIONS),
        at_threshold={name: metric.title for name, metric in AT_THRESHOLD.items()},
        of_ranks={name: metric.title for name, metric in OF_RANKS.items()},
        worst=worst_levels(report["checks"]["robustness"]),
    )


def show_figure(figure: dict | float | None, digits: int = 3) -> str:
    """Format a number of the report; the one place where numbers are rounded.

    Args:
        figure: a number; or {"value"} with "ci95", or else "wilson95", shown with that interval.
        digits: after the point. More are shown where a number would look like 0 or 1 and is not.
    """
    if isinstance(figure, dict):
        if figure["value"] is None:
            return "not defined"
        ends = figure["ci95"] if "ci95" in figure else figure["wilson95"]
        interval = ", ".join(show_figure(end, digits) for end in ends) if ends else "no interval"
        return f"{show_figure(figure['value'], digits)} [{interval}]"
    if figure is None:
        return "not defined"
    shown = f"{figure:.{digits}f}"
    while 0 < digits < 17 and float(shown) in (0, 1) and float(shown) != figure:
        digits += 1
        shown = f"{figure:.{digits}f}"
    return shown


def plain(text: object) -> str:
    """Return a name from outside as it can stand in a table or a sentence of Markdown."""
    return re.sub(r"[^\w .,:;()/+=-]+|_{2,}", "_", " ".join(str(text).split()))


def worst_levels(robustness: dict) -> dict[str, dict | None]:
    """Return for each metric the corruption at which it is lowest: `name`, `level`, `unit`, `figure`.

    A metric that no level defines is None.
    """
    found: dict = {"auroc": None, "sensitivity": None, "specificity": None}
    changes = {name: change for name, change in robustness.items() if isinstance(change, dict)}
    for metric in found:
        levels = [
            {"name": name, "level": level["level"], "unit": change["unit"], "figure": level[metric]}
            for name, change in changes.items()
            for level in change["levels"]
            if level[metric]["value"] is not None
        ]
        found[metric] = min(levels, key=lambda level: level["figure"]["value"], default=None)
    return found


def card_data(report: dict, recipe: dict, manifest: dict, repo: str) -> ModelCardData:
    """Return the front matter of the card.

    Args:
        report, recipe, manifest, repo: as for `card`.
    """
    kinds = {source["kind"] for source in manifest["sources"].values()}
    hub = [name for name, source in manifest["sources"].items() if source["kind"] == "hub"]
    return ModelCardData(
        license="apache-2.0",
        # The Hub's own timm checkpoints have it so: this library, and the tag of the other.
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=base_model(recipe),
        datasets=hub or None,  # others would be links to nowhere
        metrics=sorted(metric for metric, _ in (_AT_HALF | _AT_POINT).values()),
        tags=[*_TAGS, *(["simulated"] if "phantom" in kinds else [])],
        model_name=repo.split("/")[-1],
        eval_results=_eval_results(report, manifest),
    )


def base_model(recipe: dict) -> str | None:
    """Return the repository of the Hub that the starting weights came from; None for any other start."""
    if recipe["pretrained"] != "true":
        return None
    import timm  # seconds, and most cards need none of it

    known = timm.get_pretrained_cfg(recipe["model"])
    return known.hf_hub_id if known else None


def eval_result_files(report: dict, recipe: dict, manifest: dict, repo: str) -> dict[str, bytes]:
    """Return `.eval_results/*.yaml`: the metrics for programs.

    The Hub shows them beside the data set's other models, once that data set is registered there as a
    benchmark with tasks of these names.
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


def _show_epochs(number: float) -> str:
    return str(number).removesuffix(".0")


def _no_null(value: object) -> object:
    """A metric may be null, and is then shown as not defined; a count or a name may not."""
    if value is None:
        raise UsageError(
            "no-null",
            "report.json has a null where the card needs a count or a name; train again with this version",
        )
    return value


def _dataset_id(report: dict, recipe: dict, manifest: dict) -> str:
    """The Hub's data set where its own test split judged; else a name that no data set of the Hub can have:
    no model is to be compared on images that nobody else can find."""
    cut = recipe["split"] != "official" or any("no test split" in note for note in report["data"]["notes"])
    kinds = {name: source["kind"] for name, source in manifest["sources"].items()}
    if not cut and list(kinds.values()) == ["hub"]:
        return next(iter(kinds))
    # Kaggle's names begin with their kind, and "phantom" is one.
    plain = ("phantom", "kaggle")
    return " + ".join(name if kind in plain else f"{kind}:{name}" for name, kind in kinds.items())


def _eval_results(report: dict, manifest: dict) -> list[EvalResult]:
    (first, source), *more = manifest["sources"].items()
    # A folder's name must not be taken for a data set of the Hub: what reads such folders is called this.
    kind = first if not more and source["kind"] != "local" else "imagefolder"
    scores = [(report["splits"]["test"], _AT_HALF), (report["operating_point"]["test"], _AT_POINT)]
    if appearance := report["checks"].get("appearance"):
        factor = appearance["factor"]
        # Of a type of its own: a program that looks for the AUROC must not find this one.
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
