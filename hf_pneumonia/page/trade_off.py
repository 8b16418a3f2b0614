"""Sensitivity, specificity and predictive values at each threshold of the slider.

Uses neither Gradio nor a network: moving the slider recomputes nothing on the image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from hf_pneumonia.evaluation.metrics import predictive_values
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.answer import percent

# Percent of images that show pneumonia. The default is about that of a ward for children with a cough.
USUAL_PREVALENCE, LEAST_PREVALENCE, MOST_PREVALENCE = 20, 0.1, 99.9


@dataclass(frozen=True)
class Setting:
    """A threshold, and its sensitivity and specificity (0 to 1) on validation."""

    threshold: float
    sensitivity: float
    specificity: float


def settings_of(classifier: PneumoniaClassifier) -> list[Setting]:
    """Return the slider's settings, from the most sensitive to the most specific one.

    These are the model's ROC points. A model that states only its operating point has one setting, and a
    model without metrics has none.
    """
    points = classifier.trade_off
    if points:
        columns = (points["threshold"], points["sensitivity"], points["specificity"])
        settings = [Setting(*map(float, values)) for values in zip(*columns, strict=True)]
        own = classifier.threshold
        if all(setting.threshold != own for setting in settings):
            # A user has changed it in config.json: it has at least the sensitivity of the next point and the
            # specificity of the point before.
            before = [setting for setting in settings if setting.threshold < own]
            after = [setting for setting in settings if setting.threshold > own]
            sensitivity = after[0].sensitivity if after else 0.0
            specificity = before[-1].specificity if before else 0.0
            settings = [*before, Setting(own, sensitivity, specificity), *after]
        return settings
    stated = classifier.operating_point
    if {"sensitivity", "specificity"} <= stated.keys():
        return [Setting(classifier.threshold, float(stated["sensitivity"]), float(stated["specificity"]))]
    return []


def own_setting(settings: list[Setting], threshold: float) -> int:
    """Return the index of the setting nearest to the model's threshold; 0 if there are no settings."""
    return min(range(len(settings)), key=lambda index: abs(settings[index].threshold - threshold), default=0)


def in_words(probability: float) -> str:
    """Return a threshold for a sentence: "84%", "less than 1%", "more than 99%"."""
    return percent(probability).replace("< ", "less than ").replace("> ", "more than ")


def rounded(share: float | None) -> str:
    """Return a share in whole percent; "100%" and "0%" are exact, never rounded. "n/a" for None."""
    if share is None:
        return "n/a"
    whole = round(100 * share)
    if whole == 100 and share < 1:
        return "> 99%"
    if whole == 0 and share > 0:
        return "< 1%"
    return f"{whole}%"


def setting_metrics(setting: Setting, prevalence: float | None) -> dict[str, float | None]:
    """Return sensitivity, specificity, PPV and NPV of a setting, 0 to 1.

    Args:
        setting: one of `settings_of`.
        prevalence: percent of images that show pneumonia; None where the field is empty.

    Returns:
        PPV and NPV by Bayes' theorem. They are None if the prevalence is out of range, and where validation
        gives exactly 0 or 1: it has too few images to show that no error occurs elsewhere.
    """
    metrics: dict[str, float | None] = {
        "Sensitivity": setting.sensitivity, "Specificity": setting.specificity, "PPV": None, "NPV": None
    }  # fmt: skip
    if _is_valid(prevalence):
        values = predictive_values(setting.sensitivity, setting.specificity, prevalence / 100)
        metrics |= {
            name: float(value) for name, value in zip(("PPV", "NPV"), values, strict=True) if 0 < value < 1
        }
    return metrics


def band_sentence(classifier: PneumoniaClassifier, threshold: float) -> str:
    """Return what the uncertain band means at a threshold; "" if the model has no band or states no risk."""
    band = classifier.band_at(threshold)
    risk = None if band is None else classifier.operating_point["uncertain"].get("risk")
    if risk is None:
        return ""
    uncertain = f"Uncertain range {' to '.join(dict.fromkeys(map(percent, band)))}"
    if threshold != classifier.threshold:
        return (
            f"{uncertain}: it moves with the threshold. Its error limits hold only at the model's own "
            "threshold."
        )
    return (
        f"{uncertain}: in validation, at most {rounded(risk)} of pneumonias were below it and at most "
        f"{rounded(risk)} of normal images above it."
    )


def metrics_html(
    classifier: PneumoniaClassifier, settings: list[Setting], index: int, prevalence: float | None
) -> str:
    """Return a table of `setting_metrics`, the chosen one and the model's own, with two sentences on it.

    Args:
        classifier: states the model's threshold and band.
        settings: of `settings_of`.
        index: of the chosen setting.
        prevalence: as for `setting_metrics`.
    """
    if not settings:
        return _region(
            f"This model states no validation metrics: its threshold ({in_words(classifier.threshold)}) "
            "can't be changed here, and its sensitivity and specificity are unknown."
        )
    chosen, own = settings[index], settings[own_setting(settings, classifier.threshold)]
    columns = {"Chosen": chosen, "Model's own": own} if len(settings) > 1 else {"Model's own": own}
    metrics = [setting_metrics(setting, prevalence) for setting in columns.values()]
    rows = {"Threshold": [percent(setting.threshold) for setting in columns.values()]}
    rows |= {name: [rounded(column[name]) for column in metrics] for name in metrics[0]}
    unknown = ""
    if not _is_valid(prevalence):
        unknown = f"For PPV and NPV, enter a prevalence from {LEAST_PREVALENCE} to {MOST_PREVALENCE} percent."
    elif any(None in column.values() for column in metrics):
        unknown = "n/a: validation has too few images to estimate this value."
    source = (
        "Measured on the model's validation images, with uncertain ones classified by the threshold. At your "
        "hospital the metrics may be lower."
    )
    return _region(unknown, source, band_sentence(classifier, chosen.threshold), table=_table(columns, rows))


def _table(columns: Iterable[str], rows: dict[str, list[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in rows.items()
    )
    return f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _is_valid(prevalence: float | None) -> bool:
    return prevalence is not None and LEAST_PREVALENCE <= prevalence <= MOST_PREVALENCE


def _region(*paragraphs: str, table: str = "") -> str:
    texts = "".join(f"<p>{escape(text)}</p>" for text in paragraphs if text)
    return f'<div class="metrics" aria-live="polite">{table}{texts}</div>'
