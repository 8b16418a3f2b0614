"""The Gradio page: `python app.py [--model RUN_OR_REPO]`, here and on a Hugging Face Space. Wiring only."""

import argparse
import sys
from pathlib import Path

import gradio as gr

from hf_pneumonia.errors import UnreadableFilm, run_script
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.which_model import which_model

NOTE = (
    "For research and teaching. This is no medical device: a film is read by a person who is trained for it."
)


def build_page(classifier: PneumoniaClassifier) -> gr.Interface:
    def classify(film: str | None) -> tuple[str, dict[str, float]]:
        if film is None:
            raise gr.Error("Choose a film first.", print_exception=False)
        try:
            prediction = classifier(film)
        except UnreadableFilm as error:
            raise gr.Error(f"This file can't be read as a film: {error}", print_exception=False) from error
        probability = prediction.probability
        return prediction.decision, {"Pneumonia": probability, "Normal": 1 - probability}

    # Nothing is kept: no flagging, no analytics, no examples cached; each minute what is older than nine is
    # deleted, uploads are gone within ten.
    return gr.Interface(
        classify,
        gr.Image(type="filepath", image_mode=None, label="Chest film", sources=["upload", "clipboard"]),
        [gr.Textbox(label="Decision at the operating point"), gr.Label(label="Probability")],
        title="Pneumonia on chest films",
        description=f"{NOTE} The operating point of this model is {classifier.threshold:.2f}.",
        flagging_mode="never",
        analytics_enabled=False,
        delete_cache=(60, 540),
        api_name="predict",
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--model",
        help="run folder, or repository of the Hub (user/name); by default MODEL_ID of the environment, the "
        "Space's own, or the newest finished run",
    )
    args = parser.parse_args(argv)
    model = args.model or which_model(Path(__file__).parent)
    page = build_page(PneumoniaClassifier.from_pretrained(model))
    page.queue(max_size=32).launch(max_file_size="20mb", run_history=False)


if __name__ == "__main__":
    sys.exit(run_script("app.py", main, sys.argv[1:]))
