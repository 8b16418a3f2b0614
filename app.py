"""Gradio page of a model, local or on a Hugging Face Space: `python app.py [--model RUN_OR_REPO]`."""

import sys
from pathlib import Path

from hf_pneumonia.errors import ArgumentParser, run_script


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--model",
        help="run folder or Hub repository (user/name); default: the environment variable MODEL_ID, the "
        "Space's own model, or the newest finished run",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="create a public address through Gradio's servers",
    )
    args = parser.parse_args(argv)
    # Not at the top: the decoding processes import this file and need neither torch nor Gradio.
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
