"""Validation's ROC curve -> the settings of a slider, and a sentence on each of them.

Knows nothing of Gradio or of networks: moving the slider asks neither.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from hf_pneumonia.evaluation.calibration import moved_band
from hf_pneumonia.evaluation.metrics import predictive_values
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.answer import percent

# Percent of the images that show pneumonia: the default is about what a ward for coughing children sends. At
# 0 and 100 there is nothing to tell apart.
USUAL_PREVALENCE, LEAST_PREVALENCE, MOST_PREVALENCE = 20, 0.1, 99.9

_ELSEWHERE = (
    "All figures are of the model's own validation images and not of your hospital, where they can be worse."
)


@dataclass(frozen=True)
class Setting:
    """A threshold, and its sensitivity and specificity (0 to 1) on validation."""

    threshold: float
    sensitivity: float
    specificity: float


def settings_of(classifier: PneumoniaClassifier) -> list[Setting]:
    """Return the slider's settings, from the most sensitive one to the most specific one.

    These are the points of the model's trade-off; its operating point alone where it states only that; none
    where it states no metrics at all.
    """
    points = classifier.trade_off
    if points:
        columns = (points["threshold"], points["sensitivity"], points["specificity"])
        return [Setting(*map(float, values)) for values in zip(*columns, strict=True)]
    stated = classifier.operating_point
    if {"sensitivity", "specificity"} <= stated.keys():
        return [Setting(classifier.threshold, float(stated["sensitivity"]), float(stated["specificity"]))]
    return []


def own_setting(settings: list[Setting], threshold: float) -> int:
    """Return the index of the setting nearest to the model's operating point; 0 where there is none."""
    return min(range(len(settings)), key=lambda index: abs(settings[index].threshold - threshold), default=0)


def band_at(classifier: PneumoniaClassifier, threshold: float) -> tuple[float, float] | None:
    """Return the uncertain band around a threshold; None where the model has no band."""
    if classifier.band is None or threshold == classifier.threshold:
        return classifier.band
    return moved_band(classifier.band, classifier.threshold, threshold)


def of_100(share: float) -> str:
    """Return a share as "95 of 100". "100 of 100" and "0 of 100" are exact, never rounded."""
    count = round(100 * share)
    if count == 100 and share < 1:
        return "more than 99 of 100"
    if count == 0 and share > 0:
        return "fewer than 1 of 100"
    return f"{count} of 100"


def in_words(probability: float) -> str:
    """Return a threshold for a sentence: "84%", "less than 1%", "more than 99%"."""
    return percent(probability).replace("< ", "less than ").replace("> ", "more than ")


def predictive_sentence(setting: Setting, prevalence: float | None) -> str:
    """Return PPV and NPV at a setting by Bayes' theorem, in words.

    Args:
        prevalence: percent, LEAST_PREVALENCE to MOST_PREVALENCE, rounded to the first decimal; None where the
            field is empty.

    Returns:
        The sentence; and why PPV or NPV can't be told, where validation's images give only an exact 0 or 1.
    """
    if prevalence is None or not LEAST_PREVALENCE <= prevalence <= MOST_PREVALENCE:
        return f"For PPV and NPV, enter a prevalence from {LEAST_PREVALENCE} to {MOST_PREVALENCE} percent."
    per_1000 = round(10 * prevalence)
    images = f"{per_1000} of 1,000" if per_1000 % 10 else f"{per_1000 // 10} of 100"
    ppv, npv = predictive_values(setting.sensitivity, setting.specificity, per_1000 / 1000)
    called = "no image is called pneumonia (PPV)"
    if np.isfinite(ppv):
        called = f"{of_100(float(ppv))} images called pneumonia show one (PPV)"
    cleared = "no image is called normal (NPV)"
    if np.isfinite(npv):
        cleared = f"{of_100(float(npv))} called normal show none (NPV)"
    unknown = _never_seen(setting)
    known = ", and ".join(said for name, said in (("PPV", called), ("NPV", cleared)) if name not in unknown)
    first = [f"Where {images} images show pneumonia, {known}."] if known else []
    return " ".join([*first, *unknown.values()])


def band_sentence(classifier: PneumoniaClassifier, setting: Setting) -> str:
    """Return what the uncertain band means at a setting; "" where the model has no band."""
    band = band_at(classifier, setting.threshold)
    if band is None:
        return ""
    low, high = map(in_words, band)
    between = f"Between {low} and {high} the answer is left open"
    if low == high:
        between = "Close to the operating point the answer is left open"
    counted = "Such images are counted above by the side of the operating point on which they lie."
    if setting.threshold != classifier.threshold:
        return (
            f"{between}: the band moves along with the setting. What it was chosen for in validation holds "
            f"at the model's own operating point only. {counted}"
        )
    risk = of_100(classifier.operating_point["uncertain"].get("risk", 0))
    return (
        f"{between}, and the image should be read: the band was chosen in validation so that at most {risk} "
        f"pneumonias lie below it and at most {risk} normal images above it. {counted}"
    )


def setting_html(classifier: PneumoniaClassifier, settings: list[Setting], index: int) -> str:
    """Return the text beside the slider: a setting on validation, and compared with the model's own one."""
    if not settings:
        return _paragraphs(
            f"This model states no figures of its validation images: its operating point "
            f"({in_words(classifier.threshold)}) can't be moved here, and how often it is right is not known."
        )
    setting, own = settings[index], settings[own_setting(settings, classifier.threshold)]
    found = (
        f"At this setting the model found {of_100(setting.sensitivity)} pneumonias and cleared "
        f"{of_100(setting.specificity)} normal images in validation."
    )
    compared = f"This is the model's own operating point ({in_words(own.threshold)})."
    if setting != own:
        compared = (
            f"Against the model's own operating point ({in_words(own.threshold)}: {of_100(own.sensitivity)} "
            f"and {of_100(own.specificity)}) it found {_more_or_fewer(setting.sensitivity, own.sensitivity)} "
            f"pneumonias and cleared {_more_or_fewer(setting.specificity, own.specificity)} normal images."
        )
    fixed = "" if len(settings) > 1 else " The model states no other, so that it can't be moved here."
    return _paragraphs(f"{found} {compared}{fixed}")


def worth_html(
    classifier: PneumoniaClassifier, settings: list[Setting], index: int, prevalence: float | None
) -> str:
    """Return the text beside the prevalence, in percent: predictive values, uncertain band, their limits."""
    if not settings:
        return ""
    setting = settings[index]
    return _paragraphs(
        predictive_sentence(setting, prevalence), band_sentence(classifier, setting), _ELSEWHERE
    )


def _never_seen(setting: Setting) -> dict[str, str]:
    """Why PPV or NPV can't be told: where validation has no image of a kind, they would be exactly 0 or 1,
    and promise that there is none elsewhere either."""
    found, missed = setting.sensitivity > 0, setting.sensitivity < 1
    cleared, in_vain = setting.specificity > 0, setting.specificity < 1
    why = {}
    if found and not in_vain:
        why["PPV"] = "normal image of validation was called pneumonia"
    if in_vain and not found:
        why["PPV"] = "pneumonia of validation was found"
    if cleared and not missed:
        why["NPV"] = "pneumonia of validation was called normal"
    if missed and not cleared:
        why["NPV"] = "normal image of validation was cleared"
    return {
        name: f"No {case} at this setting, so that the {name} can't be told." for name, case in why.items()
    }


def _more_or_fewer(share: float, own: float) -> str:
    if share == own:
        return "as many"
    return "more" if share > own else "fewer"


def _paragraphs(*texts: str) -> str:
    lines = "".join(f"<p>{escape(text.strip())}</p>" for text in texts if text)
    return f'<div class="figures" aria-live="polite">{lines}</div>'
