import shutil

import numpy as np
import pytest

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import UsageError


def test_the_counts_are_those_of_the_folder(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 32, tmp_path)
    counts = films.counts()
    assert counts["splits"] == {
        "train": {"films": 85, "patients": 80, "classes": {"NORMAL": 40, "PNEUMONIA": 45}},
        "validation": {"films": 20, "patients": 20, "classes": {"NORMAL": 10, "PNEUMONIA": 10}},
        "test": {"films": 30, "patients": 30, "classes": {"NORMAL": 12, "PNEUMONIA": 18}},
    }
    assert (counts["left_out"], counts["unreadable"]) == (0, [])
    assert len(films.rows("test")) == 30 and set(films.split[films.rows("test")]) == {"test"}


@pytest.fixture
def damaged(film_folder, tmp_path):
    """A folder of 135 films, 4 of which (3%) are damaged, in train and in test."""
    folder = tmp_path / "damaged"
    shutil.copytree(film_folder, folder)
    victims = [*sorted((folder / "train").glob("*/*"))[:2], *sorted((folder / "test").glob("*/*"))[-2:]]
    for path in victims:
        path.write_bytes(path.read_bytes()[:200])
    return folder, victims


def test_unreadable_films_are_left_out_counted_and_listed_by_name(damaged, tmp_path, caplog):
    folder, victims = damaged
    films = prepare_films(str(folder), 32, tmp_path)
    assert {entry["file"] for entry in films.counts()["unreadable"]} == set(map(str, victims))
    assert np.sum(films.split != "") == 135 - 4
    assert "4 of 135 films can't be read" in caplog.text


def test_too_many_unreadable_films_stop_the_run_unless_allowed(damaged, tmp_path):
    folder, _ = damaged
    with pytest.raises(UsageError, match="4 of 135 films can't be read.*--max_unreadable"):
        prepare_films(str(folder), 32, tmp_path, max_unreadable=0.02)
    assert len(prepare_films(str(folder), 32, tmp_path, max_unreadable=1).store.unreadable) == 4


def test_the_fingerprint_changes_with_a_label_and_not_with_the_folders_place(film_folder, tmp_path):
    first = prepare_films(str(film_folder), 32, tmp_path).fingerprint()
    shutil.copytree(film_folder, tmp_path / "moved")
    assert prepare_films(str(tmp_path / "moved"), 32, tmp_path).fingerprint() == first
    path = next((tmp_path / "moved" / "train" / "NORMAL").iterdir())
    path.rename(tmp_path / "moved" / "train" / "PNEUMONIA" / path.name)
    assert prepare_films(str(tmp_path / "moved"), 32, tmp_path).fingerprint() != first
