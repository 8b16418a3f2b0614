"""Report -> what machines read of a model: the front matter of its card, and `.eval_results/`."""

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

LICENSE = "apache-2.0"

# Figure of the report -> metric of the Hub, and what it is called.
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


def card_data(report: dict, recipe: dict, manifest: dict, repo: str) -> ModelCardData:
    """Front matter of the card.

    Args:
        report, recipe, manifest: as for `card`.
        repo: user/name.
    """
    kinds = {source["kind"] for source in manifest["sources"].values()}
    hub = [name for name, source in manifest["sources"].items() if source["kind"] == "hub"]
    tags = [
        "timm",
        "transformers",
        "image-classification",
        "chest-x-ray",
        "radiology",
        "medical",
        "pneumonia",
    ]
    metrics = {metric for metric, _ in (*_AT_HALF.values(), *_AT_POINT.values())}
    return ModelCardData(
        license=LICENSE,
        # The Hub's own timm checkpoints have it so: this library, and the tag of the other.
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=base_model(recipe),
        datasets=hub or None,  # others would be links to nowhere
        metrics=sorted(metrics),
        tags=[*tags, *(["simulated"] if "phantom" in kinds else [])],
        model_name=repo.split("/")[-1],
        eval_results=_eval_results(report, manifest),
    )


def base_model(recipe: dict) -> str | None:
    """Repository of the Hub that the starting weights came from, None where they came from nowhere, or from
    this machine."""
    if recipe["pretrained"] != "true":
        return None
    import timm  # seconds, and most cards need none of it

    known = timm.get_pretrained_cfg(recipe["model"])
    return known.hf_hub_id if known else None


def eval_result_files(report: dict, recipe: dict, manifest: dict, repo: str) -> dict[str, bytes]:
    """`.eval_results/*.yaml`: the figures for programs.

    The Hub shows them beside the data set's other models, once that data set is registered there as a
    benchmark with tasks of these names.
    """
    test, point = report["splits"]["test"], report["operating_point"]
    entries = [
        EvalResultEntry(
            dataset_id=_dataset_id(report, recipe, manifest),
            task_id=figure,
            value=scored[figure]["value"],
            source_url=f"https://huggingface.co/{repo}",
            source_name="Model card",
            notes=f"test split, {scored['films']} films, 95% interval {scored[figure]['ci95']}, "
            f"threshold {scored['threshold']}",
        )
        for scored, figures in ((test, _AT_HALF), (point["test"], _AT_POINT))
        for figure in figures
        if scored[figure]["value"] is not None
    ]
    content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return {".eval_results/test.yaml": content.encode()}


def _dataset_id(report: dict, recipe: dict, manifest: dict) -> str:
    """The Hub's data set where its own test split judged; else a name that no data set of the Hub can have:
    nobody is to be compared on films that nobody else can find."""
    cut = recipe["split"] != "official" or any("no test split" in note for note in report["data"]["notes"])
    kinds = {name: source["kind"] for name, source in manifest["sources"].items()}
    if not cut and list(kinds.values()) == ["hub"]:
        return next(iter(kinds))
    # Kaggle's names begin with their kind, and "phantom" is one.
    plain = ("phantom", "kaggle")
    return " + ".join(name if kind in plain else f"{kind}:{name}" for name, kind in kinds.items())


def _eval_results(report: dict, manifest: dict) -> list[EvalResult]:
    test, point = report["splits"]["test"], report["operating_point"]
    names = list(manifest["sources"])
    (first, source), *more = manifest["sources"].items()
    # A folder's name must not be taken for a data set of the Hub: what reads such folders is called this.
    kind = first if not more and source["kind"] != "local" else "imagefolder"
    scores = [(test, _AT_HALF), (point["test"], _AT_POINT)]
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
            dataset_name=", ".join(names),
            dataset_split="test",
            metric_type=metric,
            metric_name=title,
            metric_value=scored[figure]["value"],
        )
        for scored, figures in scores
        for figure, (metric, title) in figures.items()
        if scored[figure]["value"] is not None
    ]
