"""One film -> the probability of pneumonia, by a saved run or a model of the Hub."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification

from hf_pneumonia.data.film import film_array
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import network_input


class PneumoniaClassifier:
    """A network with its input size and its operating point.

    Attributes:
        model: in evaluation mode, on the CPU.
        image_size: side of the network's input in pixels.
        threshold: probability from which a film is called pneumonia, chosen on validation.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()
        self.image_size = model.config.pretrained_cfg["input_size"][-1]
        self.threshold = model.config.pneumonia["threshold"]

    @classmethod
    def from_pretrained(cls, name: str) -> "PneumoniaClassifier":
        """Load a run folder, or a repository of the Hub.

        Raises:
            UsageError: there is no such model, or it is not one that train.py made.
        """
        try:
            model = AutoModelForImageClassification.from_pretrained(name)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"--model expects a run folder or a Hub repository, got {name!r}: {reason}"
            ) from error
        if tuple(model.config.id2label.values()) != LABELS or not hasattr(model.config, "pneumonia"):
            raise UsageError(f"--model {name}: expected a model that train.py made, with labels {LABELS}")
        return cls(model)

    @torch.inference_mode()
    def __call__(self, film: str | Path | bytes) -> float:
        """Probability of pneumonia of one film, 0 to 1.

        Raises:
            UnreadableFilm: the file can't be read as a film.
        """
        pixels = torch.from_numpy(film_array(film, self.image_size).copy())
        return self.model(network_input(pixels[None])).logits.double().softmax(1)[0, 1].item()
