"""The Gradio page: `python app.py [--model RUN_OR_REPO]`, here and on a Hugging Face Space. Wiring only."""

import argparse
import sys
from pathlib import Path

from hf_pneumonia.data.film import read_film
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.which_model import which_model
from hf_pneumonia.page.examples import simulated_examples
from hf_pneumonia.page.page import build_page, looks


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--model",
        help="run folder, or repository of the Hub (user/name); by default MODEL_ID of the environment, the "
        "Space's own, or the newest finished run",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="also serve it to everybody who knows the address, through Gradio's servers",
    )
    args = parser.parse_args(argv)
    model = args.model or which_model(Path(__file__).parent)
    classifier = PneumoniaClassifier.from_pretrained(model)
    page = build_page(classifier, read_film, simulated_examples())
    try:
        _, here, everywhere = page.queue(max_size=32).launch(
            share=args.share,
            max_file_size="20mb",
            run_history=False,
            prevent_thread_lock=True,
            quiet=True,
            **looks(),
        )
    except OSError as error:  # no free port, or no such address on this machine
        raise UsageError(f"the page can't be served: {error}") from error
    print(f"{classifier.name}: {everywhere or here}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    sys.exit(run_script("app.py", main, sys.argv[1:]))
