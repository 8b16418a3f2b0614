import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from scipy.spatial.distance import mahalanobis
from scipy.stats import t as students
from sklearn.datasets import load_sample_images

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.film import gray_image, read_film
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.gate import (
    Gate,
    Spread,
    fit_gate,
    image_problem,
    layout_numbers,
    load_gate,
    watch_stages,
)
from hf_pneumonia.inference.prediction import NOT_A_FILM, NOT_ASSESSED, REFUSED, UNLIKE
from hf_pneumonia.modeling.build import build_model, network_input

FILMS = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)


def _squares(films: int, seed: int) -> np.ndarray:
    """Pictures that share a layout, each with noise of its own."""
    rng = np.random.default_rng(seed)
    shared = np.add.outer(np.linspace(0, 90, 32), np.abs(np.linspace(-90, 90, 32)))
    return (shared + rng.normal(40, 12, (films, 32, 32))).clip(0, 255).astype(np.uint8)


def _taught(films: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(films, 6)) @ np.random.default_rng(9).normal(size=(6, 20))
    return _squares(films, seed), [(mixed + rng.normal(0, 0.1, (films, 20))).astype(np.float32)]


@pytest.fixture(scope="module")
def gate() -> Gate:
    return fit_gate(_taught(600, 0), _taught(400, 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("resnet10t", 64).eval()


def test_the_statistics_are_mean_and_deviation_of_what_timm_extracts_at_each_stage(model):
    inputs = network_input(torch.from_numpy(FILMS))
    extractor = timm.create_model("resnet10t", features_only=True).eval()
    extractor.load_state_dict(model.timm_model.state_dict(), strict=False)
    with torch.inference_mode():
        before, stages = model(inputs).logits, extractor(inputs)
        with watch_stages(model.timm_model) as kept:
            assert torch.equal(model(inputs).logits, before)
        count = len(kept)
        model(inputs)
    assert len(kept) == count == len(stages) + 1
    # One more: the middle stage, by fields.
    fields, middle = kept.pop(len(stages) // 2), stages[len(stages) // 2]
    torch.testing.assert_close(fields, F.adaptive_avg_pool2d(middle, 4).flatten(1), rtol=1e-4, atol=1e-5)
    for found, maps in zip(kept, stages, strict=True):
        expected = torch.cat([maps.mean((2, 3)), maps.flatten(2).std(2, correction=0)], 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_picture_is_refused_by_layout_or_one_stage_alone(gate):
    """Each of the distances decides by its own limit: the others may be as small as they like."""
    squares, (stage,) = _taught(3, 2)
    usual = gate.scores(squares, [stage])
    strange_stage = gate.scores(squares, [stage + 3 * gate.stages[0].scale])
    strange_layout = gate.scores(squares[:, ::-1], [stage])
    assert usual.max() < 1 and strange_stage.min() > 1 and strange_layout.min() > 1
    for part, found in enumerate((strange_layout, strange_stage)):
        changed = (squares[:, ::-1], [stage]) if part == 0 else (squares, [stage + 3 * gate.stages[0].scale])
        np.testing.assert_allclose(found, gate.distances(*changed)[:, part] / gate.limits[part])


@pytest.mark.parametrize("name", ["test_mambaout", "test_vit"])
def test_networks_with_channels_last_and_with_tokens_are_watched_too(name):
    network = timm.create_model(name, num_classes=2).eval()
    with torch.inference_mode(), watch_stages(network) as kept:
        network(torch.randn(2, 3, 160, 160))
    widths = {stage["num_chs"] for stage in network.feature_info}
    allowed = {2 * width for width in widths} | {16 * width for width in widths}
    assert kept and {one.shape[1] for one in kept} <= allowed
    assert all(one.shape[0] == 2 and torch.isfinite(one).all() for one in kept)


def test_the_distance_along_all_directions_is_that_of_mahalanobis():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 5
    values, vectors = np.linalg.eigh(np.cov(numbers.T))
    spread = Spread(numbers.mean(0), np.ones(3), vectors.T, values)
    inverse = np.linalg.inv(np.cov(numbers.T))
    expected = [mahalanobis(one, numbers.mean(0), inverse) ** 2 for one in numbers[:20]]
    found = spread.distances(numbers[:20])
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-9)


def test_the_distance_across_is_what_the_directions_do_not_reach():
    spread = Spread(np.zeros(3), np.array([1, 1, 2.0]), np.eye(3)[:1], np.array([4.0]))
    # 3 along the one direction; 4 and 10 / 2 across it.
    np.testing.assert_allclose(spread.distances(np.array([[3.0, 4.0, 10.0]])), [[9 / 4, 16 + 25]])


def test_new_films_pass_and_films_of_another_kind_do_not(gate):
    squares, statistics = _taught(1000, 2)
    assert np.mean(gate.scores(squares, statistics) > 1) < 0.01
    strange = [statistics[0] + np.random.default_rng(3).normal(0, 1, statistics[0].shape)]
    assert np.mean(gate.scores(squares, strange) > 1) > 0.99
    assert np.mean(gate.scores(np.rot90(squares, axes=(1, 2)), statistics) > 1) > 0.99


def test_the_limit_is_the_conformal_quantile_or_students_forecast_with_a_tenth_more(gate):
    found = gate.distances(*_taught(400, 1))
    for column, limit in zip(found.T, gate.limits, strict=True):
        rank = sorted(column)[400 - 1]  # ceil(0.9975 * 401) = 400
        logs = np.log(column)
        foretold = np.exp(logs.mean() + students.ppf(0.99875, 399) * logs.std(ddof=1) * np.sqrt(1 + 1 / 400))
        assert limit == pytest.approx(1.1 * max(rank, foretold))


def test_a_layout_has_neither_brightness_nor_contrast():
    squares = _squares(3, 0)
    darker, flatter = squares - squares.min(), (squares * 0.5 + 20).astype(np.uint8)
    numbers = layout_numbers(squares)
    np.testing.assert_allclose(layout_numbers(darker), numbers, atol=1e-5)
    for one, other in zip(layout_numbers(flatter), numbers, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999 and one.std() == pytest.approx(1, abs=0.25)


def test_a_gate_that_was_saved_scores_the_same(gate, tmp_path):
    assert load_gate(tmp_path) is None
    gate.save(tmp_path)
    films = _taught(50, 4)
    np.testing.assert_array_equal(load_gate(tmp_path).scores(*films), gate.scores(*films))
    assert [path.name for path in tmp_path.iterdir()] == ["gate.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "no numbers", "missing", "shape", "variance"])
def test_a_damaged_gate_is_said_in_one_line(gate, tmp_path, damage):
    file, tensors = tmp_path / "gate.safetensors", gate.tensors()
    if damage == "no numbers":
        tensors["limits"][0] = np.nan
    if damage == "missing":
        del tensors["stage0.scale"]
    if damage == "shape":
        tensors["stage0.mean"] = tensors["stage0.mean"][:-1]
    if damage == "variance":
        tensors["stage0.variances"][0] = 0
    save_file(tensors, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"\A.*gate.safetensors is damaged.*\Z"):
        load_gate(tmp_path)


def test_colour_no_contrast_and_what_dicom_says_speak_against_a_picture():
    flower = gray_image(Image.fromarray(load_sample_images().images[1]))
    assert image_problem(flower).startswith("a colour picture")
    film = Image.fromarray(_squares(1, 0)[0])
    assert image_problem(film) == ""
    assert image_problem(Image.new("L", (50, 50), 90)).startswith("blank")
    for said, expected in (
        ({"modality": "CT"}, "its DICOM header says CT"),
        ({"body_part": "HAND"}, "its DICOM header says hand"),
        ({"modality": "DX", "body_part": "CHEST", "view": "PA"}, ""),
        ({"view": "LL"}, "its DICOM header says that it is a side view"),
        ({"modality": "<b>", "body_part": "<b>"}, ""),
    ):
        film.info = said
        assert image_problem(film) == expected


def test_training_leaves_a_gate_whose_figures_the_class_comes_to_again(finished_run):
    report = json.loads((finished_run / "report.json").read_text())["gate"]["films"]
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    rows = (finished_run / "predictions_test.csv").read_text().splitlines()[1:]
    refused = [one.decision in REFUSED for one in classifier([row.split(",")[0] for row in rows])]
    assert report["test"]["films"] == len(refused) and report["validation"]["films"] > 0
    assert report["test"]["refused"] == sum(refused) <= 1


def test_a_film_that_was_inverted_is_refused_and_told_so(finished_run, film_folder):
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    films = [read_film(file) for file in sorted((film_folder / "test" / "NORMAL").iterdir())]
    said = classifier([255 - np.asarray(film) for film in films])
    assert {one.decision for one in said} <= set(REFUSED)
    assert sum(one.reason.startswith("inverted") for one in said) >= len(films) - 1
    assert all((one.decision == NOT_A_FILM) == (one.reason != UNLIKE) for one in said)


def test_an_image_unlike_the_training_images_is_not_assessed_unless_it_is_forced(finished_run):
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    strange = np.random.default_rng(0).integers(60, 200, (90, 70), np.uint8)
    said = classifier(strange)
    assert said.decision == NOT_ASSESSED and said.reason == UNLIKE
    forced = classifier(strange, force=True)
    assert forced.decision == classifier.decide(said.probability) and forced.reason == UNLIKE
    assert [one.decision for one in classifier([strange] * 2, force=True)] == [forced.decision] * 2


@pytest.mark.parametrize("folder", ["wider", "vit_folder"])
def test_a_gate_of_another_network_is_refused_at_the_start(finished_run, folder, request, tmp_path):
    if folder == "wider":
        folder = tmp_path / "wider"
        build_model("test_resnet", 64).save_pretrained(folder)
    else:
        folder = request.getfixturevalue(folder)
    shutil.copy(finished_run / "gate.safetensors", folder)
    with pytest.raises(UsageError, match="is of another network"):
        PneumoniaClassifier.from_pretrained(folder)
