"""One answer -> the card that says it: decision, probability, operating point, uncertain band."""

from html import escape
from pathlib import Path

import gradio as gr

from hf_pneumonia.inference.prediction import NOT_A_FILM, PNEUMONIA, UNCERTAIN
from hf_pneumonia.page.wording import WORDS, percent, shape

_STYLE = Path(__file__).with_name("answer.css")


def answer_panel() -> gr.HTML:
    """The component; its value is "" or an `answer_html`. What changes in it is read out."""
    return gr.HTML(
        "",
        # The region has to be there before its content for a screen reader to notice it.
        html_template='<div class="answer-region" role="status" aria-live="polite" aria-atomic="false">'
        "${value || '<p class=\"answer-empty\">The answer appears here.</p>'}</div>",
        css_template=_STYLE.read_text(encoding="utf-8"),
        js_on_load=None,
        apply_default_css=False,
    )


def prediction_line(decision: str, probability: float | None) -> str:
    """The answer as one line of plain text.

    Args:
        decision: one of `prediction.DECISIONS`.
        probability: of pneumonia, 0 to 1; looked at for "pneumonia" and "normal" only.

    Returns:
        With a confidence, that is never below 50%; with the probability of pneumonia where the class that is
        named is the less likely one.
    """
    if decision == NOT_A_FILM:
        return WORDS[decision]
    if decision == UNCERTAIN:
        return f"Prediction: {WORDS[decision]}"
    confidence = probability if decision == PNEUMONIA else 1 - probability
    # Away from 0.5 the operating point may name the less likely class: nobody is confident of that one.
    if confidence < 0.5:
        return (
            f"Prediction: {WORDS[decision]} at this operating point "
            f"(probability of pneumonia: {percent(probability)})"
        )
    return f"Prediction: {WORDS[decision]} (Confidence: {percent(confidence)})"


def answer_html(
    probability: float | None,
    threshold: float,
    band: tuple[float, float] | None,
    decision: str,
    reason: str = "",
) -> str:
    """The card of one answer.

    Args:
        probability: of pneumonia, 0 to 1; None, or not looked at, for what is no chest film.
        threshold: the operating point that the decision was made at.
        band: lowest and highest probability that is left open there, or None.
        decision: one of `prediction.DECISIONS`.
        reason: why it is refused, one line of plain text.

    Returns:
        HTML for `answer_panel`. Of what is no chest film it holds no number.
    """
    kind = decision.replace(" ", "-")
    said, parted, confidence = prediction_line(decision, probability).partition(" (")
    if parted:  # the best place to break the line at
        confidence = f' <span class="answer-whole">({escape(confidence)}</span>'
    head = f'<p class="answer-line">{shape(decision)}<span>{said}{confidence}</span></p>'
    rest = _refusal(reason) if decision == NOT_A_FILM else _bar(probability, threshold, band)
    return f'<div class="answer answer-{kind}">{head}{rest}</div>'


def _refusal(reason: str) -> str:
    why = f"<p>Reason: {escape(reason)}</p>" if reason else ""
    return f'{why}<p class="answer-quiet">Such a picture gets no probability.</p>'


def _bar(probability: float, threshold: float, band: tuple[float, float] | None) -> str:
    """The value's label above the bar and the tick's below it, so that they can't meet. Each is moved to the
    left by as much of its own width as it stands to the right, so that none leaves the bar at an end."""
    said = [f"Probability of pneumonia {percent(probability)}", f"operating point {percent(threshold)}"]
    stretch = legend = ""
    if band is not None:
        low, high = band
        ends = " to ".join(dict.fromkeys((percent(low), percent(high))))
        said.append(f"uncertain: {ends}")
        stretch = f'<i class="answer-band" style="left:{_place(low)};width:{_place(high - low)}"></i>'
        legend = (
            '<p class="answer-quiet"><i class="answer-swatch"></i>'
            f"<span>Uncertain, have it read: {ends}</span></p>"
        )
    return (
        '<p class="answer-title">Probability of pneumonia</p>'
        f'<div class="answer-scale" role="img" aria-label="{escape("; ".join(said))}">'
        f"<b>0%</b>{_label('answer-value', probability, percent(probability))}"
        f'<div class="answer-track"><i class="answer-fill" style="width:{_place(probability)}"></i>{stretch}'
        f'<i class="answer-tick" style="left:{_place(threshold)}"></i>'
        f'<i class="answer-mark" style="left:{_place(probability)}"></i></div>'
        f"{_label('answer-point', threshold, f'Operating point {percent(threshold)}')}<b>100%</b></div>"
        f"{legend}"
    )


def _label(name: str, at: float, text: str) -> str:
    place = _place(at)
    return (
        f'<div class="{name}"><span style="left:{place};transform:translateX(-{place})">{escape(text)}'
        "</span></div>"
    )


def _place(share: float) -> str:
    return f"{100 * share:.2f}%"
