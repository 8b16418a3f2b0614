import io
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub import HfApi, constants
from PIL import Image
from test_saved import _change, _change_preprocessing
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_pneumonia
from hf_pneumonia import PneumoniaClassifier, Prediction
from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.hub import commit_files
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.heatmap import heat_maps

IMAGES = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8))


@pytest.fixture(scope="module")
def classifier(finished_run) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(finished_run)


@pytest.fixture(scope="module")
def files(image_folder) -> list[Path]:
    """Twelve images of the test split."""
    return [*sorted((image_folder / "test").glob("*/*"))[::3]][:12]


def _probabilities(predictions) -> list[float]:
    return [one.probability for one in predictions]


def test_an_image_in_the_band_of_the_config_is_uncertain(classifier, finished_run):
    stated = json.loads((finished_run / "config.json").read_text())["pneumonia"]
    low, high, threshold = stated["uncertain"]["low"], stated["uncertain"]["high"], stated["threshold"]
    assert classifier.band == (min(low, threshold), max(high, threshold))
    for probability in (0, low - 1e-6, low, threshold, high, high + 1e-6, 1):
        called = "pneumonia" if probability >= threshold else "normal"
        inside = classifier.band[0] <= probability <= classifier.band[1]
        assert classifier.decide(probability) == ("uncertain" if inside else called)


@pytest.mark.parametrize("collection", [list, tuple, iter, lambda images: (image for image in images)])
def test_several_images_are_predicted_in_order_as_each_alone(classifier, files, collection):
    alone = _probabilities(map(classifier, files))
    assert len(set(alone)) == len(alone)
    for size in (1, 32):
        together = _probabilities(classifier(collection(files), batch_size=size))
        np.testing.assert_allclose(together, alone, atol=1e-6)
    assert classifier(collection([])) == []


def test_an_image_gets_the_same_prediction_in_every_form(classifier, files):
    path = files[0]
    expected = classifier(path)
    assert isinstance(expected, Prediction) and expected.heat_map is None and expected.reason == ""
    image = Image.open(path)
    forms = [str(path), path.read_bytes(), open(path, "rb"), image, image, np.asarray(image)]
    assert [classifier(form) for form in (*forms, image.convert("RGB"))] == [expected] * 7
    # The same open image and file several times, read by threads.
    forms = [Image.open(path)] * 8 + [io.BytesIO(path.read_bytes())] * 8
    np.testing.assert_allclose(_probabilities(classifier(forms)), expected.probability, atol=1e-6)


def test_heat_maps_are_those_of_heatmap_py_and_change_no_prediction(classifier, files):
    found = classifier(files[:3], heat_map=True)
    squares = np.stack([squash(read_image(file), classifier.image_size) for file in files[:3]])
    expected = heat_maps(classifier.model, network_input(torch.from_numpy(squares))).numpy()
    np.testing.assert_allclose(np.stack([one.heat_map for one in found]), expected, atol=1e-5)
    assert found[0].heat_map.dtype == np.float32 and found[0].heat_map.shape == squares.shape[1:]
    np.testing.assert_allclose(_probabilities(found), _probabilities(classifier(files[:3])), atol=1e-6)


def test_threads_get_the_same_predictions_as_one_thread(classifier, files):
    expected = [classifier(file, heat_map=True) for file in files]
    with ThreadPoolExecutor(len(files)) as threads:
        found = list(threads.map(classifier, files, [True, False] * 6))
    np.testing.assert_allclose(_probabilities(found), _probabilities(expected), atol=1e-6)
    for one, other in zip(found[::2], expected[::2], strict=True):
        np.testing.assert_allclose(one.heat_map, other.heat_map, atol=1e-5)


def test_an_unreadable_image_is_named_by_its_index(classifier, files):
    for images, error, problem in (
        (b"no image", UnreadableImage, r"\Anot an image\Z"),
        ([*files[:2], b"no image", files[2]], UnreadableImage, r"images\[2\]: not an image"),
        (iter([files[0], Path("gone.png")]), UnreadableImage, r"images\[1\] \(gone.png\): no such"),
        ([files[0], np.zeros((3, 3), np.int64)], UnreadableImage, r"images\[1\]: an array of int64"),
        ([None], TypeError, r"images\[0\]: an image is a path"),
    ):
        with pytest.raises(error, match=problem):
            classifier(images)


def test_half_precision_predicts_nearly_the_same(finished_run, classifier, files):
    half = PneumoniaClassifier.from_pretrained(finished_run, dtype="bfloat16")
    np.testing.assert_allclose(_probabilities(half(files)), _probabilities(classifier(files)), atol=0.02)
    found, expected = (one(files[0], heat_map=True).heat_map for one in (half, classifier))
    assert found.dtype == np.float32 and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("option", ["device nowhere", "device cuda:99", "dtype int8", "revision main"])
def test_an_unknown_device_dtype_or_revision_is_named(finished_run, option):
    name, value = option.split()
    with pytest.raises(UsageError, match=f"{name}.*'{value}'"):
        PneumoniaClassifier.from_pretrained(finished_run, **{name: value})


def test_nan_outputs_are_reported_in_one_line(timm_folder):
    classifier = PneumoniaClassifier.from_pretrained(timm_folder)
    torch.nn.init.constant_(classifier.model.timm_model.fc.bias, float("nan"))
    with pytest.raises(UsageError) as error:
        classifier(IMAGES[0])
    assert error.value.code == "network-output-nan"


def test_a_third_party_model_has_a_threshold_of_one_half_and_logs_its_notes_once(vit_folder, caplog):
    with caplog.at_level(logging.WARNING, "hf_pneumonia"):
        classifier = PneumoniaClassifier.from_pretrained(vit_folder)
        classifier(IMAGES)
    assert classifier.threshold == 0.5 and classifier.operating_point == {} and classifier.name == "vit"
    assert [record.getMessage() for record in caplog.records] == [f"vit: {note}" for note in classifier.notes]
    with pytest.raises(UsageError, match="no heat maps: ViTForImageClassification"):
        classifier(IMAGES[0], heat_map=True)


@pytest.mark.parametrize(
    "network, kind",
    [
        *(("timm_folder", kind) for kind in ("labels reversed", "another mean", "half precision")),
        ("vit_folder", "unchanged"),
        ("vit_folder", "labels reversed"),
    ],
)
def test_a_saved_model_predicts_as_before_here_and_in_transformers(network, kind, request, tmp_path):
    folder, saved = request.getfixturevalue(network), tmp_path / "saved" / "deep"
    if kind == "labels reversed":
        names, by_name = ["pneumonia", "Normal"], {"pneumonia": 0, "Normal": 1}
        _change(folder, id2label=dict(enumerate(names)), label_names=names, label2id=by_name)
    if kind == "another mean":
        _change_preprocessing(folder, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    if kind == "half precision":
        AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    first = PneumoniaClassifier.from_pretrained(folder)
    names = first.save_pretrained(saved)
    again = PneumoniaClassifier.from_pretrained(saved)
    assert again(IMAGES) == first(IMAGES)
    assert (again.notes, again.operating_point) == (first.notes, first.operating_point)
    assert sorted(path.name for path in saved.iterdir()) == names
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in saved.iterdir())

    model = AutoModelForImageClassification.from_pretrained(saved)
    images = [Image.fromarray(image).convert("RGB") for image in IMAGES]  # already of the input size
    inputs = AutoImageProcessor.from_pretrained(saved)(images, return_tensors="pt")
    with torch.no_grad():
        shares = model(**inputs).logits.softmax(-1).numpy()
    column = 0 if kind == "labels reversed" else 1
    np.testing.assert_allclose(shares[:, column], _probabilities(first(IMAGES)), atol=1e-5)


def test_heat_maps_of_swapped_classes_are_those_of_the_same_network_unswapped(timm_folder, tmp_path):
    classifier = PneumoniaClassifier.from_pretrained(timm_folder)
    expected = classifier(IMAGES, heat_map=True)
    # Swapping the head's rows and the label names together changes nothing.
    with torch.no_grad():
        for tensor in (classifier.model.timm_model.fc.weight, classifier.model.timm_model.fc.bias):
            tensor.copy_(tensor.flip(0).clone())
    classifier.save_pretrained(tmp_path)
    _change(tmp_path, label_names=["PNEUMONIA", "NORMAL"])
    swapped = PneumoniaClassifier.from_pretrained(tmp_path)
    for one, other in zip(swapped(IMAGES, heat_map=True), expected, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        np.testing.assert_allclose(one.heat_map, other.heat_map, atol=1e-5)


def test_saving_over_another_model_removes_what_loaders_would_read_of_it(
    finished_run, timm_folder, vit_folder, tmp_path
):
    saved = tmp_path / "saved"
    PneumoniaClassifier.from_pretrained(vit_folder).save_pretrained(saved)
    (saved / "notes.txt").write_text("mine")
    PneumoniaClassifier.from_pretrained(finished_run).save_pretrained(saved)
    assert (saved / "gate.safetensors").read_bytes() == (finished_run / "gate.safetensors").read_bytes()
    first = PneumoniaClassifier.from_pretrained(timm_folder)
    first.save_pretrained(saved)
    assert PneumoniaClassifier.from_pretrained(saved)(IMAGES) == first(IMAGES)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}


def test_a_model_pushed_to_the_hub_loads_by_its_commit_and_predicts_the_same(
    classifier, files, local_hub, tmp_path, monkeypatch, caplog
):
    template = local_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", local_hub.user("ann"))
    before = {"preprocessor_config.json": b"{}", "README.md": b"the card of another model"}
    commit_files(HfApi(), "ann/x", before, message="Before", private=True)

    commit = classifier.push_to_hub("ann/x", private=True)
    assert commit.changed and "ann/x: kept README.md" in caplog.text
    again = PneumoniaClassifier.from_pretrained("ann/x", revision=commit.sha)
    assert again(files[0]) == classifier(files[0]) and again.name == "ann/x"
    assert not again.push_to_hub("ann/x").changed
    repository = local_hub.repositories["model", "ann/x"]
    sent = {"config.json", "gate.safetensors", "model.safetensors", "README.md"}
    assert repository.private and repository.head.keys() - {".gitattributes"} == sent


def test_the_package_exports_its_class_lazily():
    code = "import sys, hf_pneumonia; sys.exit(bool({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert hf_pneumonia.PneumoniaClassifier is PneumoniaClassifier and hf_pneumonia.Prediction is Prediction
