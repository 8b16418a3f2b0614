import numpy as np
import pytest
import torch

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.training.film_dataset import FilmDataset, _fits


@pytest.fixture
def films(film_folder, tmp_path):
    return prepare_films(str(film_folder), 32, tmp_path)


def test_a_batch_is_the_films_and_labels_of_its_rows(films):
    dataset = FilmDataset(films, "train")
    rows = films.rows("train")[[3, 0, 3]]
    batch = dataset.__getitems__([3, 0, 3])
    assert np.array_equal(batch["pixel_values"].numpy(), films.store[rows])
    assert batch["labels"].tolist() == films.label[rows].tolist()
    assert not dataset.on_device and len(dataset) == len(films.rows("train"))


def test_films_that_are_laid_on_a_device_give_the_same_batches(films, monkeypatch):
    monkeypatch.setattr("hf_pneumonia.training.film_dataset._CHUNK", 5)  # the last chunk is a part of one
    plain, laid = FilmDataset(films, "train"), FilmDataset(films, "train")
    laid.lay_on("cpu")
    order = np.random.default_rng(0).permutation(len(plain)).tolist()
    for start in range(0, len(order), 4):
        expected, found = (one.__getitems__(order[start : start + 4]) for one in (plain, laid))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_training_on_laid_films_ends_with_the_same_weights(trainer):
    weights = []
    for laid in (False, True):
        one = trainer("--num_train_epochs", "1", "--overwrite_output_dir", "true")
        if laid:
            one.train_dataset.lay_on("cpu")
        one.train()
        weights.append(one.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_only_gpus_are_given_films_and_only_as_many_as_leave_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000, 2_000))
    assert _fits(200, torch.device("cuda")) and not _fits(201, torch.device("cuda"))
    assert not _fits(1, torch.device("cpu")) and not _fits(1, torch.device("mps"))
