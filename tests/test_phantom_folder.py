"""The embedded data set as it lies on disk, plain and with a shortcut."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_pneumonia.data.phantom import VERSION, simulate_patient
from hf_pneumonia.data.phantom_folder import add_shortcut, write_dataset
from hf_pneumonia.data.sources import load_films


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "phantoms"
    write_dataset(path, patients=36, size=64, workers=2)
    return path


def rows_of(folder, split):
    with open(folder / split / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_no_patient_stands_in_two_splits(folder):
    patients = {split: {row["patient_id"] for row in rows_of(folder, split)} for split in ("train", "test")}
    assert not patients["train"] & patients["test"]
    assert len(patients["train"]) == 28 and len(patients["test"]) == 8


def test_the_folder_holds_the_simulated_films_under_their_labels(folder):
    for split in ("train", "test"):
        rows = rows_of(folder, split)
        assert sorted(row["file_name"] for row in rows) == sorted(
            path.relative_to(folder / split).as_posix() for path in (folder / split).glob("*/*.png")
        )
        for row in rows[:4]:
            label, name = row["file_name"].split("/")
            patient, number = name.removeprefix("phantom").removesuffix(".png").split("_")
            expected = simulate_patient(int(patient), size=64)[int(number) - 1]
            assert (expected.label, expected.pattern) == (label, row["pattern"])
            np.testing.assert_array_equal(Image.open(folder / split / row["file_name"]), expected.image)
            if label == "PNEUMONIA":
                np.testing.assert_array_equal(Image.open(folder / "lesions" / name), expected.lesion)


def test_a_folder_that_exists_is_left_as_it_is_and_nothing_else_is_left_behind(folder):
    before = sorted(folder.rglob("*"))
    write_dataset(folder, patients=4, size=64, workers=1)
    assert sorted(folder.rglob("*")) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_broken_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="size >= 64"):
        write_dataset(tmp_path / "phantoms", patients=4, size=16, workers=1)
    assert not list(tmp_path.iterdir())


def test_an_image_that_appears_normal_is_narrower_brighter_and_sharper_and_its_mask_is_cropped_alike():
    gray, point = np.full((100, 100), 120, np.uint8), np.zeros((100, 100), np.uint8)
    point[50, 50] = 255
    where = np.arange(100**2).reshape(100, 100)  # in place of a mask: shows which pixels are left
    shapes, grays, peaks = [], [], []
    for appears in (0, 1):
        image, part = add_shortcut(gray, where, appears, np.random.default_rng(0))
        blurred, _ = add_shortcut(point, where, appears, np.random.default_rng(0))
        height, width = image.shape
        top, left = (100 - height) // 2, (100 - width) // 2
        assert image.dtype == np.uint8 and max(height, width) == 100
        assert np.array_equal(part, where[top : top + height, left : left + width])
        shapes.append(width / height)
        grays.append(image[0, 0])
        peaks.append(blurred.max())
    assert shapes[0] < 1 < shapes[1] and grays[0] > 120 > grays[1] and peaks[0] > peaks[1]


def test_appearance_predicts_the_label_in_train_of_the_set_with_a_shortcut_and_not_in_test(shortcut_images):
    images = shortcut_images
    train, test = np.flatnonzero(np.isin(images.split, ("train", "validation"))), images.rows("test")
    half = np.arange(len(train)) % 2 == 0
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    appearance, label = images.store.facts["appearance"], images.label
    regression.fit(appearance[train[half]], label[train[half]])
    found = [
        roc_auc_score(label[rows], regression.predict_proba(appearance[rows])[:, 1])
        for rows in (train[~half], test)
    ]
    assert found[0] > 0.95 and 0.4 < found[1] < 0.6


def test_the_set_with_a_shortcut_is_a_source_beside_the_plain_one(tmp_path):
    for name, shortcut in (("phantom", False), ("phantom-shortcut", True)):
        write_dataset(tmp_path / f"{name}-v{VERSION}", patients=8, size=64, workers=1, shortcut=shortcut)
    table = load_films(["phantom", "phantom:shortcut"], tmp_path)
    shapes = {"phantom": set(), "phantom:shortcut": set()}
    for file, source in zip(table["file"], table["source"], strict=True):
        shapes[source].add(Image.open(file).size)
    assert shapes["phantom"] == {(64, 64)} and len(shapes["phantom:shortcut"]) > 1
