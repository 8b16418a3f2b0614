"""A classifier whose network is in another process, which it asks of films."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from PIL import Image

from hf_pneumonia.inference.prediction import FilmClassifier, Prediction
from hf_pneumonia.page.network import NetworkProcess


class RemoteClassifier(FilmClassifier):
    """Gives the answers of the `PneumoniaClassifier` in a process, to the last bit."""

    def __init__(self, process: NetworkProcess) -> None:
        """The classifier, which may be loading yet: the first that is asked of it waits for that.

        Whatever is asked first raises what `NetworkProcess.facts` does.
        """
        self._process = process

    def __getattr__(self, name: str) -> object:
        if name not in FilmClassifier.__annotations__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        facts = self._process.facts()
        self.name, self.image_size, self.notes = facts["name"], facts["image_size"], facts["notes"]
        self.threshold, self.operating_point = facts["threshold"], facts["operating_point"]
        self.band = facts["band"] and tuple(facts["band"])
        self.trade_off = self.operating_point.get("trade_off", {})
        return getattr(self, name)

    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """As `FilmClassifier.predict_squares` says.

        Raises:
            UsageError: also where the process died meanwhile.
        """
        return self._ask(squares, heat_map, problems, one_core=False)

    def makes_heat_maps(self) -> bool:
        return self._process.facts()["heat_maps"]

    def _squash(self, film: Image.Image) -> np.ndarray:
        # Not here: large films are resized by torch, and a page that never imports it starts sooner.
        question = {"ask": "squash", "size": film.size}
        square = self._process.ask(question, film.tobytes())[1]
        return np.frombuffer(square, np.uint8).reshape(self.image_size, self.image_size)

    def _predict_batch(
        self, squares: np.ndarray, heat_map: bool, problems: Sequence[str]
    ) -> list[Prediction]:
        return self._ask(squares, heat_map, problems, one_core=True)

    def _one_core_each(self) -> AbstractContextManager:
        return nullcontext()  # nothing is computed here

    def _ask(
        self, squares: np.ndarray, heat_map: bool, problems: Sequence[str] | None, one_core: bool
    ) -> list[Prediction]:
        question = {"ask": "predict", "heat_map": heat_map, "problems": problems, "one_core": one_core}
        answer, maps = self._process.ask(question, np.ascontiguousarray(squares).tobytes())
        found = answer["predictions"]
        heat_maps: Sequence[np.ndarray | None] = [None] * len(found)
        if heat_map:
            heat_maps = np.frombuffer(maps, np.float32).reshape(len(found), *squares.shape[1:]).copy()
        return [Prediction(**one, heat_map=map_) for one, map_ in zip(found, heat_maps, strict=True)]
