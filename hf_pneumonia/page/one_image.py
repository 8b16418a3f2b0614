"""The tab "One image": inputs, examples, answer and threshold."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference.classifier import REFUSED, PneumoniaClassifier
from hf_pneumonia.modeling.saved import EXAMPLE_SUFFIXES, LARGEST_EXAMPLE, MOST_EXAMPLES, evidence_folder
from hf_pneumonia.page.answer import (
    answer_html,
    answer_panel,
    percent,
    prediction_line,
    thumbnail_uri,
    viewer,
    viewer_value,
)
from hf_pneumonia.page.trade_off import (
    USUAL_PREVALENCE,
    Setting,
    in_words,
    metrics_html,
    own_setting,
    settings_of,
)
from hf_pneumonia.page.uploads import errors_shown, uploaded

logger = logging.getLogger(__name__)

# From the test split of the simulated data set (`phantom_folder`): no network is trained on them.
_PATIENTS, _SEED = (1, 2, 11, 12), 0

_THUMBNAIL = 160  # pixels on a side: twice the width of a thumbnail, for high-density screens

SIMULATED = "This image is simulated. A model trained on patients' X-rays has not seen images like it."


@dataclass(frozen=True)
class Example:
    """An example image, the caption of its thumbnail, and a note shown with its answer."""

    image: Image.Image  # mode 'L'
    caption: str
    note: str


def simulated_examples() -> list[Example]:
    """Return the same four simulated images each time: two normal ones, then two with pneumonia."""
    phantoms = [simulate_patient(patient, _SEED)[0] for patient in _PATIENTS]
    phantoms.sort(key=lambda phantom: phantom.label)
    return [
        Example(Image.fromarray(phantom.image), f"Simulated, {phantom.label.lower()}", SIMULATED)
        for phantom in phantoms
    ]


def real_examples(model: str, read: Callable[[str], Image.Image]) -> list[Example]:
    """Return the images of a model's folder `examples`; unreadable ones are skipped with a warning.

    Their captions are numbers, as file names may identify patients.

    Args:
        model: run folder, or a repository of the Hub (user/name).
        read: `read_image`, or the page's own decoder.
    """
    examples = []
    for path in _example_files(model):
        try:
            image = read(str(path))
        except UnreadableImage as error:
            logger.warning("skipped an unreadable example of the model: %s", error)
            continue
        caption = f"Example {len(examples) + 1}"
        examples.append(Example(image, caption, f"{caption}, supplied with the model."))
    return examples


def gallery_html(examples: Sequence[Example]) -> str:
    """Return a button with a thumbnail for each example, handled by one_image.js."""
    buttons = [
        f'<button type="button" data-example="{number}" title="{escape(example.note)}">'
        f'<img src="{thumbnail_uri(example.image, _THUMBNAIL)}" alt="">'
        f"<span>{escape(example.caption)}</span></button>"
        for number, example in enumerate(examples)
    ]
    return f'<div class="gallery">{"".join(buttons)}</div>'


def _example_files(model: str) -> list[Path]:
    """Images sorted by name: at most MOST_EXAMPLES, none above LARGEST_EXAMPLE."""
    try:
        folder = evidence_folder(model) / "examples"
    except UsageError:
        return []  # the tab "About the model" shows the error
    files = [
        path
        for path in sorted(folder.glob("[!.]*"))
        if path.suffix.lower() in EXAMPLE_SUFFIXES
        and path.is_file()
        and path.stat().st_size <= LARGEST_EXAMPLE
    ]
    return files[:MOST_EXAMPLES]


_HINT = "JPEG, PNG (8 or 16 bits), TIFF or DICOM. A copied image can be pasted with Ctrl+V."

# Events outside the queue and the API.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

_ZIP = b"PK\3\4"  # signature of a zip file


def classify_image(
    classifier: PneumoniaClassifier, image: Image.Image, name: str, heat_map: bool, note: str = ""
) -> tuple[dict[str, Any], Any]:
    """Classify an image for `card_html` and the viewer.

    Args:
        image: of mode 'L'.
        name: the image's name, for display.
        heat_map: whether to compute one.
        note: shown with the answer.

    Returns:
        The answer for `card_html`, as plain values since the browser keeps it, and the viewer's value.
    """
    prediction = classifier(image, heat_map=heat_map)
    refused = prediction.decision if prediction.decision in REFUSED else ""
    answer = {
        "name": name, "note": note, "probability": prediction.probability, "refused": refused,
        "reason": prediction.reason,
    }  # fmt: skip
    if refused:
        return answer, viewer_value(image, None, f"No heat map: {refused}.")
    return answer, viewer_value(image, prediction.heat_map)


def card_html(
    classifier: PneumoniaClassifier, answer: dict[str, Any] | None, threshold: float, force: bool = False
) -> str:
    """Return the content of `answer_panel`.

    Args:
        answer: of `classify_image`; or {"problem": ...}, with the image's "name" if it has one; or None
            before the first image.
        threshold: the chosen one.
        force: classify a refused image too, with the reason as a warning.
    """
    if not answer:
        return ""
    name = answer.get("name", "")
    lines = [name and f"Image: {name}"]
    if "problem" in answer:
        return f"<p>{escape(answer['problem'])}</p>" + _quiet(lines)
    probability = answer["probability"]
    lines.append(answer["note"])
    decision = _decision(classifier, answer, threshold, force)
    if decision not in REFUSED and threshold != classifier.threshold:
        lines.append(
            f"Chosen threshold: {in_words(threshold)} (the model's own: {in_words(classifier.threshold)})."
        )
    band = classifier.band_at(threshold)
    return answer_html(probability, threshold, band, decision, answer["reason"]) + _quiet(lines)


def short_html(
    classifier: PneumoniaClassifier, answer: dict[str, Any] | None, threshold: float, force: bool = False
) -> str:
    """Return the answer in one line, shown below the slider on a phone, where the card is out of view.

    Args:
        answer, threshold, force: as for `card_html`.
    """
    if not answer or "problem" in answer:
        return ""
    probability = answer["probability"]
    decision = _decision(classifier, answer, threshold, force)
    line = prediction_line(decision, probability).partition(" (")[0].removeprefix("Prediction: ")
    chance = "" if decision in REFUSED else f" (probability of pneumonia: {percent(probability)})"
    return f"<p>{escape(line + chance)}</p>"


def read_upload(read: Callable[[str], Image.Image], path: str) -> Image.Image:
    """Read an uploaded image.

    Raises:
        UnreadableImage: from `read`; or the file is a zip file.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise UnreadableImage('a zip file; use the tab "Several images"')
    return read(path)


def one_image_tab(
    classifier: PneumoniaClassifier, read: Callable[[str], Image.Image], examples: Sequence[Example]
) -> None:
    """Add the tab's components to the open gr.Blocks or gr.Tab. Arguments as for `build_page`."""
    settings = settings_of(classifier)
    own = own_setting(settings, classifier.threshold)
    heat_map = classifier.makes_heat_maps()

    def classify(choice: Any, name: str, note: str, image: Callable[[], Image.Image]) -> dict[str, Any]:
        try:
            answer, view = classify_image(classifier, image(), name, heat_map, note)
        except UnreadableImage as error:
            answer, view = {"problem": f"This file can't be read as an image: {error}", "name": name}, None
        except UsageError as error:
            answer, view = {"problem": f"Classification failed: {error}", "name": name}, None
        return {"choice": choice, "answer": answer, "view": view}

    @errors_shown()
    def from_file(file: Any, choice: Any) -> dict[str, Any] | None:
        if not file:  # superseded by another choice
            return None
        upload = uploaded(file)
        return classify(choice, upload.name, "", lambda: read_upload(read, upload.path))

    @errors_shown()
    def from_example(event: gr.EventData) -> dict[str, Any]:
        example = examples[event.number]
        return classify(event.choice, example.caption, example.note, lambda: example.image)

    @errors_shown()
    def move(
        index: float, prevalence: float | None, answer: dict | None, force: bool = False
    ) -> tuple[str, str, str]:
        index = int(index)
        threshold = settings[index].threshold if settings else classifier.threshold
        return (
            card_html(classifier, answer, threshold, force),
            short_html(classifier, answer, threshold, force),
            metrics_html(classifier, settings, index, prevalence),
        )

    parts = _parts(settings, own, examples, metrics_html(classifier, settings, own, USUAL_PREVALENCE))
    _connect(parts, own, from_file, from_example, move)


def _connect(
    parts: SimpleNamespace, own: int, from_file: Callable, from_example: Callable, move: Callable
) -> None:
    """Connect the components' events to their handlers; `own` is the index of the model's own setting."""
    fresh = move(own, USUAL_PREVALENCE, None)
    answer, view, answered, card, short = parts.answer, parts.view, parts.answered, parts.card, parts.short
    moved = [card, short, parts.metrics]
    setting = [parts.slider, parts.prevalence, answer, parts.force]

    def then_check(done: Any) -> None:
        """Remove the answer again if its image was removed meanwhile."""
        done.then(None, answer, [card, short], js="(answer) => answer ? [] : ['', '']", **AT_ONCE)

    # Every choice is classified; the browser drops the answers that it no longer awaits.
    running = {"show_progress_on": [card], "trigger_mode": "multiple", "api_visibility": "private"}
    number = "(file) => window.oneImage.file(file)"
    # Not preprocessed, which would lose the original name.
    chosen = [parts.file, parts.choice]
    of_file = parts.file.upload(from_file, chosen, answered, preprocess=False, js=number, **running)
    for done in (of_file, parts.gallery.select(from_example, None, answered, **running)):
        # The input is emptied, so that the next image can be dropped there.
        show = "(answer) => window.oneImage.show(answer)"
        shown = done.then(None, answered, [answer, view, parts.file], js=show, **AT_ONCE)
        # Uses the slider's present position, not that of the time of upload.
        then_check(shown.then(move, setting, moved, **AT_ONCE))
        fail = "() => window.oneImage.fail('No answer from the server. Try again.')"
        done.failure(None, None, [answer, card, parts.file], js=fail, **AT_ONCE)
    # A new choice removes the last image at once: the new one may fail.
    empty = "() => [null, null, '', '', null]"
    parts.gallery.input(None, None, [answer, view, card, short, answered], js=empty, **AT_ONCE)
    everything = [parts.slider, parts.prevalence, parts.force, parts.file, answer, view, answered, *moved]
    as_new = json.dumps([own, USUAL_PREVALENCE, False, None, None, None, None, *fresh])
    clear = f"() => {{ window.oneImage.clear(); return {as_new}; }}"
    parts.clear.click(None, None, everything, js=clear, **AT_ONCE)
    sliding = {"trigger_mode": "always_last", **AT_ONCE}
    then_check(
        gr.on(
            [parts.slider.input, parts.prevalence.input, parts.force.input], move, setting, moved, **sliding
        )
    )

    def reset(prevalence: float | None, answer: dict | None, force: bool) -> tuple:
        return own, *move(own, prevalence, answer, force)

    then_check(parts.reset.click(reset, setting[1:], [parts.slider, *moved], **AT_ONCE))


def _parts(settings: list[Setting], own: int, examples: Sequence[Example], metrics: str) -> SimpleNamespace:
    """The tab's components, laid out."""
    parts = SimpleNamespace()
    with gr.Row(elem_id="one-image"):
        with gr.Column(elem_id="image-input"):
            parts.file = gr.File(label="Chest X-ray", file_count="single", height=132, elem_id="image-file")
            _html(f'<p class="quiet">{_HINT}</p>')
            parts.gallery = _html(
                gallery_html(examples),
                js_on_load=Path(__file__).with_name("one_image.js").read_text(encoding="utf-8"),
                elem_id="image-examples",
                points=[f"Threshold {in_words(setting.threshold)}" for setting in settings],
            )
            parts.clear = gr.Button("Clear", size="sm", elem_id="image-clear")
        with gr.Column(elem_id="image-answer"):
            parts.answer, parts.choice = (gr.JSON(visible=False) for _ in range(2))
            parts.answered = gr.HTML(visible=False)  # gr.HTML, as Gradio does not serve files of a gr.JSON
            parts.card = answer_panel()
            parts.force = gr.Checkbox(
                label="Classify a refused image too, with a warning", elem_id="image-force"
            )
            parts.view = viewer()
        with gr.Column(elem_id="image-threshold"):
            movable = len(settings) > 1
            _html("<h2>Sensitivity and specificity</h2>")
            parts.slider = gr.Slider(
                0,
                max(len(settings) - 1, 1),
                value=own,
                step=1,
                label="Threshold",
                visible=movable,
                buttons=[],
                elem_id="image-setting",
            )
            _html(
                '<div class="ends" aria-hidden="true"><span>sensitive</span><span>specific</span></div>',
                visible=movable,
            )
            # Screen readers announce changes only in a region that exists before its content.
            live = '<div aria-live="polite">${value || ""}</div>'
            parts.short = _html("", html_template=live, visible=movable, elem_id="image-short")
            parts.reset = gr.Button(
                "Reset to the model's threshold", size="sm", visible=movable, elem_id="image-reset"
            )
            parts.prevalence = gr.Number(
                USUAL_PREVALENCE,
                label="Prevalence of pneumonia (%)",
                step=1,
                visible=bool(settings),
                elem_id="image-prevalence",
            )
            parts.metrics = _html(metrics, elem_id="image-metrics")
    return parts


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def _decision(classifier: PneumoniaClassifier, answer: dict[str, Any], threshold: float, force: bool) -> str:
    if answer.get("refused") and not force:
        return answer["refused"]
    return classifier.decide(answer["probability"], threshold)


def _quiet(lines: Sequence[str]) -> str:
    return "".join(f'<p class="answer-quiet">{escape(line)}</p>' for line in lines if line)
