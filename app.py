"""The Gradio page: `python app.py [--model RUN_OR_REPO]`, here and on a Hugging Face Space. Wiring only."""

import argparse
import sys
from pathlib import Path

from hf_pneumonia.errors import run_script


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
    # Here, as the decoding processes import this file, and need neither torch nor Gradio.
    import transformers

    from hf_pneumonia.inference.classifier import PneumoniaClassifier, which_model
    from hf_pneumonia.page.decoder import Decoder
    from hf_pneumonia.page.guard import UploadFolder
    from hf_pneumonia.page.one_image import real_examples, simulated_examples
    from hf_pneumonia.page.page import build_page, serve

    transformers.utils.logging.disable_progress_bar()
    model = args.model or which_model(Path(__file__).parent)
    classifier = PneumoniaClassifier.from_pretrained(model)
    with Decoder() as decoder, UploadFolder() as uploads:
        examples = simulated_examples() + real_examples(model, decoder.read)
        serve(build_page(classifier, decoder.read, examples, model), uploads, args.share)


if __name__ == "__main__":
    sys.exit(run_script("app.py", main, sys.argv[1:]))
