"""The tab "Many films": files and zip files -> a table of answers, while a bar shows how far it is."""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.inputs import Source
from hf_pneumonia.inference.prediction import FilmClassifier
from hf_pneumonia.page.film_rows import FilmRow, score_films
from hf_pneumonia.page.film_table import table
from hf_pneumonia.page.handler_errors import errors_told
from hf_pneumonia.page.limits import AT_A_TIME, MAX_FILE_BYTES, MAX_FILMS, MAX_UNPACKED_BYTES
from hf_pneumonia.page.uploads import films_of, uploaded

_HERE = Path(__file__).parent

# Jobs of many films at a time, of the page and of the API together: each holds one batch of films.
IN_TURN = {"concurrency_limit": AT_A_TIME, "concurrency_id": "many films"}

_LIMITS = (
    f"Up to {MAX_FILMS} films, as files or in zip files: {MAX_FILE_BYTES >> 20} MB each, "
    f"{MAX_UNPACKED_BYTES >> 20} MB in all once unpacked. "
    "The table stays in this tab of your browser; nothing is kept here."
)


def many_films_tab(classifier: FilmClassifier, read: Callable[[str | bytes], Image.Image]) -> None:
    """The tab's parts, in the open gr.Blocks or gr.Tab.

    Args:
        classifier: answers.
        read: a film's path or bytes -> an image of mode 'L', or UnreadableFilm.
    """

    def score(films: list[Source], progress: gr.Progress) -> Iterator[str]:
        rows: list[FilmRow] = []
        progress((0, len(films)), unit="films")
        for batch in score_films(classifier, read, films):
            rows += batch
            progress((len(rows), len(films)), unit="films")
            yield gr.skip()
        yield table(rows)

    # A generator: when the tab is closed, Gradio asks for no further batch.
    def read_them(files: list[dict] | None, progress: gr.Progress = gr.Progress()) -> Iterator[str]:  # noqa: B008
        with errors_told():
            try:
                films = films_of(map(uploaded, files or []))
            except UsageError as error:
                yield _notice(f"These files are not read: {error}.")
                return
            if not films:
                yield _notice("Choose films first.")
                return
            try:
                yield from score(films, progress)
            except UsageError as error:
                yield _notice(f"The model gave no answer: {error}.")

    gr.Markdown(_LIMITS)
    files = gr.File(label="Films, or zip files of them", file_count="multiple", height=180)
    button = gr.Button("Read them", variant="primary")
    answers = gr.HTML(
        css_template=(_HERE / "film_table.css").read_text(encoding="utf-8"),
        apply_default_css=False,
        js_on_load=(_HERE / "film_table.js").read_text(encoding="utf-8"),
        min_height=80,
    )
    # Not preprocessed: Gradio would leave an empty file per film behind, and lose the films' own names.
    reading = button.click(read_them, files, answers, preprocess=False, api_visibility="private", **IN_TURN)
    # Of other films the table says nothing; nor is one to come of the films that were there before.
    files.change(
        None,
        None,
        answers,
        js="() => ''",
        cancels=reading,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _notice(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'
