"""Accuracy of heat maps on simulated lesions, and agreement with captum.

    python benchmarks/heat_maps.py RUN

RUN is a folder of train.py, trained on the simulated images, whose lesions are known. For each detected
pneumonia of the test split: is the peak of the heat map within the lesion, or within 5% or 10% of the image's
side of it? The chance level uses the lesions of the other images, since all lesions are in the lungs. The
same is measured for the network's last feature map by captum's LayerGradCam, with the agreement of both on
the feature map used here. The last line is JSON. Needs the test extra.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerGradCam
from PIL import Image
from scipy import ndimage
from torch import nn

from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.heatmap import finer_stage, heat_maps
from hf_pneumonia.modeling.saved import load_model

SHARES = (0, 0.05, 0.1)
BATCH = 32


class Difference(nn.Module):
    """Difference of the two logits, the scalar output that captum explains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.model(inputs).logits
        return logits[:, 1] - logits[:, 0]


def captum_maps(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """Return (n, h, w) heat maps of that layer by captum, scaled as by `heat_maps`."""
    captum = LayerGradCam(Difference(model), model.timm_model.get_submodule(layer))
    parts = [captum.attribute(part, relu_attributions=True).detach() for part in inputs.split(BATCH)]
    maps = nn.functional.interpolate(torch.cat(parts), inputs.shape[2:], mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


def hits(maps: np.ndarray, lesions: np.ndarray) -> dict:
    """Return the share of maps whose peak is near their own lesion, and near the lesions of other images."""
    images, size, full = len(maps), maps.shape[1], lesions.shape[1]
    row, column = np.divmod(maps.reshape(images, -1).argmax(1), size)
    row, column = (((place + 0.5) * full / size).astype(int) for place in (row, column))
    distance = (
        np.stack([ndimage.distance_transform_edt(~lesion) for lesion in lesions])[:, row, column] / full
    )
    found = {}
    for share in SHARES:
        near = distance <= share  # (image, peak of image)
        own = np.trace(near)
        others = (near.sum() - own) / (images * (images - 1))
        found[f"{share:.0%}"] = {"own": round(own / images, 3), "by_chance": round(float(others), 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    folder = parser.parse_args().run
    saved = load_model(str(folder))
    model, network = saved.model, saved.model.timm_model
    with open(folder / "predictions_test.csv") as file:
        sick = [row for row in csv.DictReader(file) if row["label"] == "PNEUMONIA"]
    called = [
        Path(row["file"]) for row in sick if float(row["probability"]) >= saved.operating_point["threshold"]
    ]
    lesions = [Image.open(path.parents[2] / "lesions" / path.name) for path in called]
    lesions = np.stack([np.asarray(lesion) > 0 for lesion in lesions])
    inputs = network_input(
        torch.from_numpy(np.stack([squash(read_image(path), saved.image_size) for path in called]))
    )

    started = time.perf_counter()
    maps = torch.cat([heat_maps(model, part) for part in inputs.split(BATCH)])
    seconds = time.perf_counter() - started
    last = network.feature_info[-1]["module"]
    read = finer_stage(network, saved.image_size) or last
    started = time.perf_counter()
    theirs = captum_maps(model, read, inputs)
    peer_seconds = time.perf_counter() - started
    result = {
        "films": len(called),
        "missed": len(sick) - len(called),
        "map": read,
        "hits": hits(maps.numpy(), lesions),
        "last_map": last,
        "hits_of_last_map": hits(captum_maps(model, last, inputs).numpy(), lesions),
        "correlation_with_captum": round(float(np.corrcoef(maps.flatten(), theirs.flatten())[0, 1]), 6),
        "largest_difference": float((maps - theirs).abs().max()),
        "seconds": round(seconds, 1),
        "captum_seconds": round(peer_seconds, 1),
    }
    for name in ("hits", "hits_of_last_map"):
        print(name, result["map" if name == "hits" else "last_map"])
        for share, one in result[name].items():
            print(f"  within {share:>3} of the side: {one['own']:.1%}, by chance {one['by_chance']:.1%}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
