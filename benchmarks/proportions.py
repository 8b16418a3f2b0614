"""Picture for README.md: a normal image, stretched, and what networks answer.

python benchmarks/proportions.py IMAGE --runs "plain=runs/classic" "ours=runs/resnet18" --output docs/proportions.png
"""  # noqa: E501

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.film import read_film, squash
from hf_pneumonia.evaluation.swaps import stretch

FACTORS = (1.0, 1.2, 1.4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, help="image file of a normal chest")
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="NAME=RUN", help="networks, with a name each"
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    args = parser.parse_args()

    square = squash(read_film(args.image), 448)[None]
    images = [stretch(square, down=factor)[0] for factor in FACTORS]
    answers = {}
    for name, run in (one.split("=", 1) for one in args.runs):
        classifier = PneumoniaClassifier.from_pretrained(run)
        found = classifier([Image.fromarray(image) for image in images])
        answers[name] = [one.probability for one in found]
        print(name, np.round(answers[name], 4))

    figure = Figure(figsize=(7.5, 3.1), layout="constrained")
    for axes, image, factor, said in zip(
        figure.subplots(1, len(FACTORS)), images, FACTORS, zip(*answers.values(), strict=True), strict=True
    ):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_title("a normal image" if factor == 1 else f"stretched vertically by {factor}", fontsize=10)
        lines = [
            f"{name}: {probability:.0%} pneumonia" for name, probability in zip(answers, said, strict=True)
        ]
        axes.set_xlabel("\n".join(lines), fontsize=10)
    figure.savefig(args.output, dpi=100)


if __name__ == "__main__":
    main()
