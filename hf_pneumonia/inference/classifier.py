"""One film -> the probability of pneumonia, by a saved run or a model of the Hub."""

from pathlib import Path

import torch

from hf_pneumonia.data.film import film_array
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.saved import SavedModel, load_model


class PneumoniaClassifier:
    """A network with its input size and its operating point.

    Attributes:
        model: in evaluation mode, on the CPU.
        image_size: side of the network's input in pixels.
        threshold: probability from which a film is called pneumonia, chosen on validation.
    """

    def __init__(self, saved: SavedModel) -> None:
        self.model, self.image_size = saved.model, saved.image_size
        self.threshold = saved.operating_point["threshold"]

    @classmethod
    def from_pretrained(cls, name: str) -> "PneumoniaClassifier":
        """Load a run folder, or a repository of the Hub.

        Raises:
            UsageError: there is no such model, or it is not one that train.py made.
        """
        saved = load_model(name)
        if not saved.operating_point:
            raise UsageError(f"--model {name}: expected a model that train.py made, with labels {LABELS}")
        return cls(saved)

    @torch.inference_mode()
    def __call__(self, film: str | Path | bytes) -> float:
        """Probability of pneumonia of one film, 0 to 1.

        Raises:
            UnreadableFilm: the file can't be read as a film.
        """
        pixels = torch.from_numpy(film_array(film, self.image_size).copy())
        return self.model(network_input(pixels[None])).logits.double().softmax(1)[0, 1].item()
