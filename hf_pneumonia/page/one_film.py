"""The tab "One film": a film in, by whatever way, and the answer, the film and the trade-off out.

Of the last film the browser keeps what was said of it, so that the slider needs no forward pass. The server
keeps the film and its pictures as files, for some minutes, and no answer.
"""

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_pneumonia.errors import UnreadableFilm, UsageError
from hf_pneumonia.inference.prediction import NOT_A_FILM, FilmClassifier
from hf_pneumonia.page.answer import answer_html, answer_panel, percent, prediction_line
from hf_pneumonia.page.examples import Example, gallery_html
from hf_pneumonia.page.handler_errors import errors_told
from hf_pneumonia.page.trade_off import (
    USUAL_PREVALENCE,
    Setting,
    band_at,
    in_words,
    own_setting,
    setting_html,
    settings_of,
    worth_html,
)
from hf_pneumonia.page.uploads import uploaded
from hf_pneumonia.page.viewer import viewer, viewer_value

_JS = (Path(__file__).parent / "one_film.js").read_text(encoding="utf-8")

_WAYS_IN = "JPEG, PNG of 8 or 16 bits, TIFF, DICOM. A copied picture can be pasted anywhere here (Ctrl+V)."

# Events that need no turn in the queue, and none of which is for programs: /predict is.
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

_ZIP = b"PK\3\4"  # a zip file begins so

_NO_ANSWER = "No answer came. Try again."


def look_at(
    classifier: FilmClassifier, film: Image.Image, name: str, heat_map: bool, note: str = ""
) -> tuple[dict[str, Any], Any]:
    """Ask the network of a film.

    Args:
        film: of mode 'L'.
        name: what the person calls it.
        heat_map: whether the network can say where it looked.
        note: to stand with the answer.

    Returns:
        What was said, for `card_html` (plain values: it lies in the browser), and the viewer's value. Of what
        is no chest film the first holds no probability.
    """
    prediction = classifier(film, heat_map=heat_map)
    refused = prediction.decision == NOT_A_FILM
    said = {
        "name": name,
        "note": note,
        "probability": None if refused else prediction.probability,
        "reason": prediction.reason,
    }
    if refused:
        return said, viewer_value(film, None, "Without a heat map: this is not a chest film.")
    return said, viewer_value(film, prediction.heat_map)


def card_html(classifier: FilmClassifier, said: dict[str, Any] | None, threshold: float) -> str:
    """What stands in the answer's place, for `answer_panel`.

    Args:
        said: of `look_at`; where there is no answer, {"problem": ...} and the film's "name" if it has one;
            None before any film.
        threshold: of the setting.
    """
    if not said:
        return ""
    if "problem" in said:
        return f"<p>{escape(said['problem'])}</p>" + _quiet([_film(said.get("name", ""))])
    probability = said["probability"]
    decision = _decision(classifier, probability, threshold)
    band = band_at(classifier, threshold)
    lines = [_film(said["name"]), said["note"]]
    if probability is not None and threshold != classifier.threshold:
        lines.append(
            f"The operating point is moved to {in_words(threshold)}; the model's own is "
            f"{in_words(classifier.threshold)}."
        )
    return answer_html(probability, threshold, band, decision, said["reason"]) + _quiet(lines)


def short_html(classifier: FilmClassifier, said: dict[str, Any] | None, threshold: float) -> str:
    """The answer in one line, to stand under the slider where a phone has no room for the card beside it.

    Args:
        said, threshold: as for `card_html`.
    """
    if not said or "problem" in said:
        return ""
    probability = said["probability"]
    decision = _decision(classifier, probability, threshold)
    line = prediction_line(decision, probability).partition(" (")[0].removeprefix("Prediction: ")
    of_it = "" if probability is None else f" (probability of pneumonia: {percent(probability)})"
    return f"<p>{escape(f'This film: {line}{of_it}')}</p>"


def read_upload(read: Callable[[str], Image.Image], path: str) -> Image.Image:
    """The film of an uploaded file.

    Raises:
        UnreadableFilm: by `read`; or it is a zip file, and those are read by another tab.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise UnreadableFilm('a zip file: the tab "Many films" reads it')
    return read(path)


def one_film_tab(
    classifier: FilmClassifier, read: Callable[[str], Image.Image], examples: Sequence[Example] = ()
) -> None:
    """Put the tab's parts into the open Blocks.

    Args:
        classifier: that answers.
        read: path -> film of mode 'L', or UnreadableFilm.
        examples: that can be taken instead of a film of one's own.
    """
    settings = settings_of(classifier)
    own = own_setting(settings, classifier.threshold)
    heat_map = classifier.makes_heat_maps()

    with gr.Row(elem_id="one-film"):
        with gr.Column(elem_id="film-input"):
            file = gr.File(label="Chest film", file_count="single", height=132, elem_id="film-file")
            gr.HTML(f'<p class="quiet">{_WAYS_IN}</p>', apply_default_css=False)
            gallery = gr.HTML(
                gallery_html(examples),
                js_on_load=_JS,
                apply_default_css=False,
                elem_id="film-examples",
                points=[f"Operating point {in_words(setting.threshold)}" for setting in settings],
            )
            clear = gr.Button("Clear", size="sm", elem_id="film-clear")
        with gr.Column(elem_id="film-answer"):
            said, choice = (gr.JSON(visible=False) for _ in range(2))
            answered = gr.HTML(visible=False)  # of gr.JSON Gradio does not serve the files
            card = answer_panel()
            view = viewer()
        with gr.Column(elem_id="film-trade-off"):
            slider, short, back, of_setting, prevalence, worth = _trade_off(classifier, settings, own)

    def threshold_at(index: float) -> float:
        return settings[int(index)].threshold if settings else classifier.threshold

    def answer(choice: Any, name: str, note: str, film: Callable[[], Image.Image]) -> dict[str, Any]:
        try:
            said, view = look_at(classifier, film(), name, heat_map, note)
        except UnreadableFilm as error:
            said, view = {"problem": f"This file can't be read as a film: {error}", "name": name}, None
        except UsageError as error:
            said, view = {"problem": f"The model gave no answer: {error}", "name": name}, None
        return {"choice": choice, "said": said, "view": view}

    @errors_told()
    def from_file(file: Any, choice: Any) -> dict[str, Any] | None:
        if not file:  # another choice has been made since
            return None
        upload = uploaded(file)
        return answer(choice, upload.name, "", lambda: read_upload(read, upload.path))

    @errors_told()
    def from_example(event: gr.EventData) -> dict[str, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        number = data.get("number")
        if not isinstance(number, int) or not 0 <= number < len(examples):
            raise UsageError("there is no such example")
        example = examples[number]
        return answer(data.get("choice"), example.caption, example.note, lambda: example.film)

    @errors_told()
    def move(index: float, percent: float | None, said: dict | None) -> tuple[str, str, str, str]:
        index = int(index)
        return (
            card_html(classifier, said, threshold_at(index)),
            short_html(classifier, said, threshold_at(index)),
            setting_html(classifier, settings, index),
            worth_html(classifier, settings, index, percent),
        )

    moved = [card, short, of_setting, worth]
    setting = [slider, prevalence, said]

    def then_check(done: Any) -> None:
        """Meanwhile the film may be gone; what was said of it goes too."""
        done.then(None, said, [card, short], js="(said) => said ? [] : ['', '']", **_AT_ONCE)

    # Each choice is scored, and the browser knows whether its answer is still awaited.
    scoring: dict[str, Any] = {
        "show_progress_on": [card],
        "trigger_mode": "multiple",
        "api_visibility": "private",
    }
    scored = [
        file.upload(
            from_file,
            [file, choice],
            answered,
            preprocess=False,  # which would lose the film's own name
            js="(file) => window.oneFilm.file(file)",
            **scoring,
        ),
        gallery.select(from_example, None, answered, **scoring),
    ]
    for done in scored:
        # The field is emptied: the next film can be dropped where this one was.
        shown = done.then(
            None, answered, [said, view, file], js="(answer) => window.oneFilm.show(answer)", **_AT_ONCE
        )
        # By where the slider is now, and not where it was when the film was handed in.
        then_check(shown.then(move, setting, moved, **_AT_ONCE))
        fail = f"() => window.oneFilm.fail({json.dumps(_NO_ANSWER)})"
        done.failure(None, None, [said, card, file], js=fail, **_AT_ONCE)
    # With a new choice the last film goes, though the new one may never come.
    gallery.input(
        None, None, [said, view, card, short, answered], js="() => [null, null, '', '', null]", **_AT_ONCE
    )
    fresh = [own, USUAL_PREVALENCE, None, None, None, None, *move(own, USUAL_PREVALENCE, None)]
    clear.click(
        None,
        None,
        [slider, prevalence, file, said, view, answered, *moved],
        js=f"() => {{ window.oneFilm.clear(); return {json.dumps(fresh)}; }}",
        **_AT_ONCE,
    )
    sliding = {"trigger_mode": "always_last", **_AT_ONCE}
    then_check(gr.on([slider.input, prevalence.input], move, setting, moved, **sliding))
    then_check(
        back.click(
            lambda percent, said: (own, *move(own, percent, said)),
            [prevalence, said],
            [slider, *moved],
            **_AT_ONCE,
        )
    )


def _trade_off(classifier: FilmClassifier, settings: list[Setting], own: int) -> tuple:
    movable = len(settings) > 1
    gr.HTML("<h2>Sensitivity against specificity</h2>", apply_default_css=False)
    slider = gr.Slider(
        0,
        max(len(settings) - 1, 1),
        value=own,
        step=1,
        label="Operating point: sensitive to specific",
        visible=movable,
        buttons=[],
        elem_id="film-setting",
    )
    gr.HTML(
        '<div class="ends" aria-hidden="true"><span>finds more</span><span>clears more</span></div>',
        apply_default_css=False,
        visible=movable,
    )
    short = gr.HTML(
        "",
        # The region has to be there before its content for a screen reader to notice it.
        html_template='<div aria-live="polite">${value || ""}</div>',
        apply_default_css=False,
        visible=movable,
        elem_id="film-short",
    )
    of_setting = gr.HTML(
        setting_html(classifier, settings, own), apply_default_css=False, elem_id="film-found"
    )
    back = gr.Button("Back to the model's operating point", size="sm", visible=movable, elem_id="film-back")
    prevalence = gr.Number(
        USUAL_PREVALENCE,
        label="Prevalence where you are, in percent of films",
        step=1,
        visible=bool(settings),
        elem_id="film-prevalence",
    )
    worth = gr.HTML(
        worth_html(classifier, settings, own, USUAL_PREVALENCE), apply_default_css=False, elem_id="film-worth"
    )
    return slider, short, back, of_setting, prevalence, worth


def _decision(classifier: FilmClassifier, probability: float | None, threshold: float) -> str:
    if probability is None:
        return NOT_A_FILM
    return classifier.decide(probability, None if threshold == classifier.threshold else threshold)


def _film(name: str) -> str:
    return name and f"Film: {name}"


def _quiet(lines: Sequence[str]) -> str:
    return "".join(f'<p class="answer-quiet">{escape(line)}</p>' for line in lines if line)
