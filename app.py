"""The Gradio page: `python app.py [--model RUN_OR_REPO]`, here and on a Hugging Face Space. Wiring only."""

import argparse
import sys
from pathlib import Path

from hf_pneumonia.errors import run_script
from hf_pneumonia.page.network import NetworkProcess
from hf_pneumonia.page.quick_imports import without_collector


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
    model = args.model or _own_model()
    with NetworkProcess(model) as network:
        # Gradio takes its time, and torch, there, as much: at a time, on a core each.
        with without_collector():
            from hf_pneumonia.page.decoder import Decoder
            from hf_pneumonia.page.evidence import example_files
            from hf_pneumonia.page.examples import real_examples, simulated_examples
            from hf_pneumonia.page.page import build_page, looks
            from hf_pneumonia.page.remote_classifier import RemoteClassifier
            from hf_pneumonia.page.serving import serve
            from hf_pneumonia.page.upload_folder import UploadFolder
        examples = simulated_examples()
        with Decoder() as decoder, UploadFolder() as uploads:
            classifier = RemoteClassifier(network)
            if not Path(model).expanduser().is_dir():
                network.facts()  # it is fetched then; what it says of itself is to be of the same commit
            examples += real_examples(example_files(model), decoder.read)
            page = build_page(classifier, decoder.read, examples, model)
            serve(page, uploads, args.share, **looks())


def _own_model() -> str:
    from hf_pneumonia.inference.which_model import which_model

    return which_model(Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(run_script("app.py", main, sys.argv[1:]))
