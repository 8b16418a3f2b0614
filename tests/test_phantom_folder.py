"""The embedded data set as it lies on disk."""

import csv
import os
import time

import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.data.phantom_folder import write_dataset


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


def test_what_a_killed_start_half_simulated_is_taken_away_a_day_later(tmp_path):
    old = time.time() - 25 * 3600
    for name in (".phantoms-simulating-old", ".phantoms-simulating-young", ".phantoms-mine"):
        (tmp_path / name).mkdir()
        if name != ".phantoms-simulating-young":
            os.utime(tmp_path / name, (old, old))
    write_dataset(tmp_path / "phantoms", patients=4, size=64, workers=1)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"phantoms", ".phantoms-simulating-young", ".phantoms-mine"}
