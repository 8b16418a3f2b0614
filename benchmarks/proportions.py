"""Plot for README.md: a stretched chest X-ray, and the false positive rate on stretched images.

python benchmarks/proportions.py --runs "usual recipe=runs/classic" "this project=runs/ours" \
    --output docs/proportions.png

The chest X-ray is simulated. The shares are of the NORMAL images in the first run's validation split, at
threshold 0.5. Both runs must have the same split.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.evaluation.scoring import stretch

FACTORS = (1.0, 1.2, 1.4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RUN", help="runs, with a name each")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    args = parser.parse_args()

    runs = dict(one.split("=", 1) for one in args.runs)
    with open(Path(next(iter(runs.values()))) / "predictions_validation.csv") as file:
        normal = [row["file"] for row in csv.DictReader(file) if row["label"] == "NORMAL"]
    squares = np.stack([squash(read_image(file), 448) for file in normal])
    shares = {}
    for name, run in runs.items():
        classifier = PneumoniaClassifier.from_pretrained(run)
        shares[name] = []
        for factor in FACTORS:
            answers = classifier([Image.fromarray(one) for one in stretch(squares, down=factor)])
            shares[name].append(np.mean([one.probability >= 0.5 for one in answers]))
        print(name, len(normal), np.round(shares[name], 3))

    chest = next(
        image
        for patient in (1, 2)
        for image in simulate_patient(patient, size=448)
        if image.label == "NORMAL"
    )
    figure = Figure(figsize=(7.5, 3.1), layout="constrained")
    for axes, factor, said in zip(
        figure.subplots(1, len(FACTORS)), FACTORS, zip(*shares.values(), strict=True), strict=True
    ):
        axes.imshow(stretch(chest.image[None], down=factor)[0], cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_title("as it was taken" if factor == 1 else f"stretched vertically by {factor}", fontsize=10)
        lines = [f"{name}: {share:.0%} false alarms" for name, share in zip(shares, said, strict=True)]
        axes.set_xlabel("\n".join(lines), fontsize=9)
    figure.savefig(args.output, dpi=100)


if __name__ == "__main__":
    main()
