"""Simulated images: reproducible, and free of shortcuts unless one is added."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.phantom import VERSION, simulate_patient
from hf_pneumonia.data.phantom_folder import add_shortcut, write_dataset
from hf_pneumonia.data.sources import load_sources

SIZE = 96


def test_a_seed_gives_the_same_bytes_in_any_order_and_another_seed_other_patients():
    first = {patient: simulate_patient(patient, 3, SIZE) for patient in (1, 2)}
    for patient in (2, 1):
        for a, b in zip(first[patient], simulate_patient(patient, 3, SIZE), strict=True):
            assert a.image.tobytes() == b.image.tobytes() and a.lesion.tobytes() == b.lesion.tobytes()
    a, b = (simulate_patient(1, seed, SIZE)[0].image for seed in (0, 1))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.999


def test_a_random_one_of_each_pair_of_patients_has_pneumonia():
    images = [simulate_patient(patient, size=64)[0] for patient in range(1, 31)]
    positive = [image.label == "PNEUMONIA" for image in images]
    assert all(a != b for a, b in zip(positive[::2], positive[1::2], strict=True))
    assert 3 < sum(positive[::2]) < 12
    assert images[1].patient_id == "phantom0002"
    assert images[1].image.shape == images[1].lesion.shape == (64, 64)
    assert images[1].image.dtype == np.uint8 and images[1].lesion.dtype == bool


def test_pneumonia_brightens_the_lesion_and_changes_no_other_pixel():
    for patient in range(1, 17):
        pair = (simulate_patient(patient, 0, SIZE, pneumonia) for pneumonia in (True, False))
        for positive, normal in zip(*pair, strict=True):
            lesion = positive.lesion
            assert lesion.any() and not normal.lesion.any()
            assert normal.pattern == "none" != positive.pattern
            assert positive.image[lesion].mean() > normal.image[lesion].mean() + 1
            np.testing.assert_array_equal(positive.image[~lesion], normal.image[~lesion])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "phantoms"
    write_dataset(path, patients=18, size=64)
    return path


def test_the_folder_holds_the_images_by_label_and_no_patient_is_in_two_splits(folder):
    patients = {}
    for split in ("train", "test"):
        with open(folder / split / "metadata.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        patients[split] = {row["patient_id"] for row in rows}
        assert {folder / split / row["file_name"] for row in rows} == set((folder / split).glob("*/*.png"))
        for row in rows[:4]:
            label, name = row["file_name"].split("/")
            patient, number = name.removeprefix("phantom").removesuffix(".png").split("_")
            expected = simulate_patient(int(patient), size=64)[int(number) - 1]
            assert (expected.label, expected.pattern) == (label, row["pattern"])
            np.testing.assert_array_equal(Image.open(folder / split / row["file_name"]), expected.image)
            if label == "PNEUMONIA":
                np.testing.assert_array_equal(Image.open(folder / "lesions" / name), expected.lesion)
    assert len(patients["train"]) == 14 and len(patients["test"]) == 4
    assert not patients["train"] & patients["test"]


def test_the_shortcut_of_normal_is_narrower_brighter_and_sharper_and_crops_the_mask_too():
    gray, point = np.full((100, 100), 120, np.uint8), np.zeros((100, 100), np.uint8)
    point[50, 50] = 255
    where = np.arange(100**2).reshape(100, 100)  # instead of a mask: shows which pixels remain
    found = []
    for appears in (0, 1):
        image, part = add_shortcut(gray, where, appears, np.random.default_rng(0))
        blurred, _ = add_shortcut(point, where, appears, np.random.default_rng(0))
        height, width = image.shape
        top, left = (100 - height) // 2, (100 - width) // 2
        assert image.dtype == np.uint8 and max(height, width) == 100
        assert np.array_equal(part, where[top : top + height, left : left + width])
        found.append((width / height, image[0, 0], blurred.max()))
    (narrow, bright, sharp), (wide, dark, dull) = found
    assert narrow < 1 < wide and dark < 120 < bright and dull < sharp


def test_with_the_shortcut_proportions_predict_the_label_in_train_and_not_in_test(folder, tmp_path):
    """Both simulated data sets can be sources of one run."""
    folder.with_name(f"phantom-v{VERSION}").symlink_to(folder)
    write_dataset(folder.with_name(f"phantom-shortcut-v{VERSION}"), 54, size=64, shortcut=True)
    images = load_sources(["phantom", "phantom:shortcut"], folder.parent)
    shapes = np.array([Image.open(file).size for file in images["file"]])
    source, split, label = (np.array(images[name]) for name in ("source", "split", "label"))
    assert (shapes[source == "phantom"] == 64).all()
    train, test = ((source == "phantom:shortcut") & (split == name) for name in ("train", "test"))
    aspect = shapes[:, 0] / shapes[:, 1]
    assert roc_auc_score(label[train], aspect[train]) > 0.9
    assert roc_auc_score(label[test], aspect[test]) < 0.7
