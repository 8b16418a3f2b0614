import csv
import io
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub import HfApi
from PIL import Image
from test_saved import _change
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_pneumonia
from hf_pneumonia import PneumoniaClassifier, Prediction
from hf_pneumonia.data.film import film_array
from hf_pneumonia.errors import UnreadableFilm, UsageError
from hf_pneumonia.hub import commit_files

FILMS = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8))


@pytest.fixture(scope="module")
def classifier(finished_run) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(finished_run)


@pytest.fixture(scope="module")
def rows(finished_run) -> list[dict]:
    with open(finished_run / "predictions_test.csv", newline="") as file:
        return list(csv.DictReader(file))


def _probabilities(predictions) -> list[float]:
    return [one.probability for one in predictions]


def test_every_film_of_the_test_split_gets_the_probability_and_decision_of_the_run(
    classifier, rows, finished_run
):
    found = classifier([row["file"] for row in rows])
    expected = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(_probabilities(found), expected, atol=1e-6)
    threshold = json.loads((finished_run / "config.json").read_text())["pneumonia"]["threshold"]
    assert [one.label == "PNEUMONIA" for one in found] == [value >= threshold for value in expected]
    assert {one.threshold for one in found} == {threshold} and len({one.label for one in found}) == 2
    band = json.loads((finished_run / "config.json").read_text())["pneumonia"]["uncertain"]
    for one, value in zip(found, expected, strict=True):
        open_ = band["low"] - 1e-6 <= value <= band["high"] + 1e-6
        assert one.decision in ({"uncertain", one.label.lower()} if open_ else {one.label.lower()})
        assert one.heat_map is None and one.reason == ""


def test_every_film_gets_the_probability_that_the_pipeline_gives_it(classifier, rows, finished_run):
    files = [row["file"] for row in rows]
    answers = pipeline("image-classification", model=str(finished_run))(files)
    expected = [next(one["score"] for one in answer if one["label"] == "PNEUMONIA") for answer in answers]
    np.testing.assert_allclose(_probabilities(classifier(files)), expected, atol=1e-6)


@pytest.mark.parametrize("collection", [list, tuple, iter, lambda films: (film for film in films)])
def test_several_films_are_answered_in_order_like_each_by_itself(classifier, rows, collection):
    files = [row["file"] for row in rows[::4]]
    alone = _probabilities(map(classifier, files))
    assert len(set(alone)) == len(alone)
    for size in (1, 3, 32):
        found = classifier(collection(files), batch_size=size)
        np.testing.assert_allclose(_probabilities(found), alone, atol=1e-6)
    assert classifier(collection([])) == []


def test_a_film_gets_one_answer_in_whichever_form_it_comes(classifier, rows):
    path = Path(rows[0]["file"])
    expected = classifier(path)
    assert isinstance(expected, Prediction)
    image = Image.open(path)
    forms = [
        str(path),
        path.read_bytes(),
        open(path, "rb"),
        image,
        image,
        np.asarray(image),
        image.convert("RGB"),
    ]
    assert [classifier(form) for form in forms] == [expected] * len(forms)
    # The same open image and file several times over, in threads.
    forms = [Image.open(path)] * 8 + [io.BytesIO(path.read_bytes())] * 8
    np.testing.assert_allclose(_probabilities(classifier(forms)), expected.probability, atol=1e-6)


def test_a_prediction_is_frozen_and_short_to_print(classifier, rows):
    prediction = classifier(rows[0]["file"], heat_map=True)
    with pytest.raises(FrozenInstanceError):
        prediction.label = "NORMAL"
    assert "\n" not in repr(prediction) and "heat_map" not in repr(prediction)


def test_heat_maps_are_those_of_heatmap_py_and_change_no_answer(classifier, rows):
    from hf_pneumonia.modeling.build import network_input
    from hf_pneumonia.modeling.heatmap import heat_maps

    files = [row["file"] for row in rows[-3:]]
    found = classifier(files, heat_map=True)
    squares = np.stack([film_array(file, 64) for file in files])
    expected = heat_maps(classifier.model, network_input(torch.from_numpy(squares))).numpy()
    np.testing.assert_allclose(np.stack([one.heat_map for one in found]), expected, atol=1e-5)
    assert found[0].heat_map.dtype == np.float32 and found[0].heat_map.shape == (64, 64)
    np.testing.assert_allclose(_probabilities(found), _probabilities(classifier(files)), atol=1e-6)
    assert all(not parameter.grad for parameter in classifier.model.parameters())


def test_threads_get_the_answers_that_one_gets(classifier, rows):
    files = [row["file"] for row in rows[:12]]
    expected, found = [classifier(file, heat_map=True) for file in files], {}

    def ask(number: int) -> None:
        found[number] = classifier(files[number], heat_map=number % 2 == 0)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in enumerate(expected):
        assert found[number].probability == pytest.approx(one.probability, abs=1e-6)
        if number % 2 == 0:
            np.testing.assert_allclose(found[number].heat_map, one.heat_map, atol=1e-5)


def test_a_film_that_can_not_be_read_is_named_by_its_place(classifier, rows, tmp_path):
    good = rows[0]["file"]
    with pytest.raises(UnreadableFilm, match="^not an image$"):
        classifier(b"no film")
    with pytest.raises(UnreadableFilm, match=r"^films\[2\]: not an image$"):
        classifier([good, good, b"no film", good])
    with pytest.raises(UnreadableFilm, match=r"^films\[1\] \(gone.png\): no such file$"):
        classifier(iter([good, tmp_path / "gone.png"]))
    with pytest.raises(UnreadableFilm, match=r"^films\[1\]: an array of int64"):
        classifier([good, np.zeros((3, 3), np.int64)])
    with pytest.raises(TypeError, match=r"films\[0\]: a film is a path, bytes"):
        classifier([None])
    with pytest.raises(TypeError, match="a film is a path, bytes"):
        classifier(3.5)


def test_films_of_a_generator_are_not_all_held_at_once(classifier):
    taken = []

    def films():
        for number in range(200):
            taken.append(number)
            yield FILMS[0]

    sizes = []
    ask = classifier.predict_squares
    classifier.predict_squares = lambda *arguments: sizes.append(len(taken)) or ask(*arguments)
    try:
        assert len(classifier(films(), batch_size=4)) == 200
    finally:
        del classifier.predict_squares
    assert sizes[0] <= 12 and sizes[10] <= 52


@pytest.mark.parametrize("size", [0, -1, 2.5, "many"])
def test_a_batch_size_that_is_none_is_one_line(classifier, size):
    with pytest.raises(UsageError, match="batch_size expects a number from 1"):
        classifier([], batch_size=size)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision_answers_nearly_the_same_and_in_full_numbers(finished_run, classifier, rows, dtype):
    half = PneumoniaClassifier.from_pretrained(finished_run, dtype=dtype)
    files = [row["file"] for row in rows]
    found = _probabilities(half(files))
    np.testing.assert_allclose(found, _probabilities(classifier(files)), atol=0.02)
    # Numbers of 16 bits would fall on few values; the softmax is of 64.
    logits = half._ask(np.stack([film_array(file, 64) for file in files[:5]]))[0].astype(np.float64)
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(found[:5], expected, atol=1e-2)
    assert half(files[0], heat_map=True).heat_map.dtype == np.float32


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"device": "nowhere"}, "device expects cpu, cuda.*got 'nowhere'"),
        ({"device": "meta"}, "device expects"),
        ({"device": "cuda:99"}, "device expects .*'cuda:99'"),
        ({"device": 3.5}, "device expects"),
        ({"dtype": "int8"}, "dtype expects float32, bfloat16, float16, got 'int8'"),
        ({"dtype": torch.complex64}, "dtype expects"),
        ({"revision": "main"}, "a folder has no revision 'main'"),
    ],
)
def test_an_unknown_device_dtype_or_revision_is_one_line(finished_run, options, problem):
    with pytest.raises(UsageError, match=problem) as error:
        PneumoniaClassifier.from_pretrained(finished_run, **options)
    assert "\n" not in str(error.value)


def test_a_model_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="expected a run folder"):
        PneumoniaClassifier.from_pretrained(tmp_path)


def test_answers_that_are_no_numbers_are_one_line(timm_folder):
    classifier = PneumoniaClassifier.from_pretrained(timm_folder)
    torch.nn.init.constant_(classifier.model.timm_model.fc.bias, float("nan"))
    with pytest.raises(UsageError, match="its answers are no numbers"):
        classifier(FILMS[0])


def test_a_model_of_other_people_has_a_threshold_of_one_half_and_its_notes_are_warned_of_once(
    vit_folder,
    caplog,
):
    with caplog.at_level(logging.WARNING, "hf_pneumonia"):
        classifier = PneumoniaClassifier.from_pretrained(vit_folder)
        classifier(FILMS)
    assert classifier.threshold == 0.5 and classifier.operating_point == {} and classifier.name == "vit"
    assert [record.getMessage() for record in caplog.records] == [f"vit: {note}" for note in classifier.notes]
    with pytest.raises(UsageError, match="heat maps are made of timm's networks.*ViTForImageClassification"):
        classifier(FILMS[0], heat_map=True)


def _foreign(folder: Path, kind: str) -> Path:
    if kind == "labels reversed":
        names = ["pneumonia", "Normal"]
        _change(
            folder, id2label=dict(enumerate(names)), label_names=names, label2id={"pneumonia": 0, "Normal": 1}
        )
    if kind == "another mean" and "pretrained_cfg" in (
        config := json.loads((folder / "config.json").read_text())
    ):
        own = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        _change(folder, pretrained_cfg=config["pretrained_cfg"] | own)
    if kind == "half precision":
        AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["as it is", "labels reversed", "another mean", "half precision"])
@pytest.mark.parametrize("network", ["timm_folder", "vit_folder"])
def test_what_is_saved_answers_as_before_here_and_in_transformers(network, kind, request, tmp_path):
    folder = _foreign(request.getfixturevalue(network), kind)
    first = PneumoniaClassifier.from_pretrained(folder)
    names = first.save_pretrained(tmp_path / "saved" / "deep")
    again = PneumoniaClassifier.from_pretrained(tmp_path / "saved" / "deep")
    assert again(FILMS) == first(FILMS)
    assert (again.notes, again.operating_point) == (first.notes, first.operating_point)
    more = ["preprocessor_config.json"] if network == "vit_folder" else []
    assert names == sorted(["config.json", "model.safetensors", *more])
    assert sorted(path.name for path in (tmp_path / "saved" / "deep").iterdir()) == names
    assert not any(
        str(tmp_path).encode() in (tmp_path / "saved" / "deep" / name).read_bytes() for name in names
    )

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "saved" / "deep")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved" / "deep")
    images = [Image.fromarray(film).convert("RGB") for film in FILMS]  # of the input size: no way to squash
    with torch.no_grad():
        shares = model(**processor(images, return_tensors="pt")).logits.softmax(-1).numpy()
    column = 0 if kind == "labels reversed" else 1
    np.testing.assert_allclose(shares[:, column], _probabilities(first(FILMS)), atol=1e-5)


def test_heat_maps_of_swapped_classes_are_those_of_the_same_network_unswapped(timm_folder, tmp_path):
    expected = PneumoniaClassifier.from_pretrained(timm_folder)(FILMS, heat_map=True)
    # The head's rows are swapped with the names: nothing should change.
    classifier = PneumoniaClassifier.from_pretrained(timm_folder)
    with torch.no_grad():
        for tensor in (classifier.model.timm_model.fc.weight, classifier.model.timm_model.fc.bias):
            tensor.copy_(tensor.flip(0).clone())
    classifier.save_pretrained(tmp_path)
    _change(tmp_path, label_names=["PNEUMONIA", "NORMAL"])
    swapped = PneumoniaClassifier.from_pretrained(tmp_path)
    assert swapped.model.adapter.swapped
    for one, other in zip(swapped(FILMS, heat_map=True), expected, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        np.testing.assert_allclose(one.heat_map, other.heat_map, atol=1e-5)


def test_saving_over_another_model_leaves_nothing_of_it_that_would_be_read(
    timm_folder,
    vit_folder,
    tmp_path,
):
    PneumoniaClassifier.from_pretrained(vit_folder).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    first = PneumoniaClassifier.from_pretrained(timm_folder)
    first.save_pretrained(tmp_path / "saved")
    assert PneumoniaClassifier.from_pretrained(tmp_path / "saved")(FILMS) == first(FILMS)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json", "model.safetensors", "notes.txt"
    }  # fmt: skip
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; choose another folder"):
        first.save_pretrained(tmp_path / "file")


def test_what_is_pushed_to_the_hub_loads_again_by_its_commit_with_the_same_answers(
    finished_run, film_folder, local_hub, tmp_path
):
    code = """
import sys
from hf_pneumonia import PneumoniaClassifier
run, film = sys.argv[1:]
classifier = PneumoniaClassifier.from_pretrained(run)
commit = classifier.push_to_hub("ann/x", private=True)
again = PneumoniaClassifier.from_pretrained("ann/x", revision=commit.sha)
assert commit.changed and not again.push_to_hub("ann/x").changed
assert again(film) == classifier(film) and again.name == "ann/x"
"""
    film = next((film_folder / "test" / "PNEUMONIA").iterdir())
    token = local_hub.user("ann")
    before = {"preprocessor_config.json": b"{}", "README.md": b"the card of another model"}
    commit_files(HfApi(local_hub.url, token=token), "ann/x", before, message="Before", private=True)
    environment = local_hub.environment(token, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code, finished_run, film],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "ann/x also holds README.md, of what was there before" in done.stderr
    repository = local_hub.repositories["model", "ann/x"]
    kept = {".gitattributes", "README.md"}
    sent = {"config.json", "gate.safetensors", "model.safetensors"}
    assert repository.private and repository.head.keys() - kept == sent


def test_the_package_names_its_class_and_imports_nothing_for_it(tmp_path):
    code = """
import sys, hf_pneumonia
assert {"PneumoniaClassifier", "Prediction"} <= set(dir(hf_pneumonia)) & set(hf_pneumonia.__all__)
assert not {"torch", "numpy", "transformers", "PIL"} & set(sys.modules)
try:
    hf_pneumonia.Nothing
except AttributeError as error:
    assert "no attribute 'Nothing'" in str(error)
from hf_pneumonia import Prediction
assert Prediction is hf_pneumonia.Prediction and "torch" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert hf_pneumonia.PneumoniaClassifier is PneumoniaClassifier
