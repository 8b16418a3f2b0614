import numpy as np
import pytest
import torch
from trainings import changed, weights

from hf_pneumonia.training.film_dataset import FilmDataset


@pytest.mark.parametrize("laid", [False, True])
def test_a_batch_is_the_films_and_labels_of_its_rows_laid_on_a_device_or_not(small_films, laid):
    films, dataset = small_films, FilmDataset(small_films, "train")
    assert not dataset.on_device  # the CPU is not given them
    if laid:
        dataset.lay_on("cpu")
    rows = films.rows("train")
    assert dataset.on_device is laid and len(dataset) == len(rows)
    for chosen in ([3, 0, 3], np.random.default_rng(0).permutation(len(rows)).tolist()):
        batch = dataset.__getitems__(chosen)
        assert batch["pixel_values"].dtype == torch.uint8
        assert np.array_equal(batch["pixel_values"].numpy(), films.store[rows[chosen]])
        assert batch["labels"].tolist() == films.label[rows[chosen]].tolist()


def test_a_training_on_laid_films_ends_with_the_same_weights(trainer):
    left = []
    for laid in (False, True):
        run = trainer("--num_train_epochs", "1", "--save_strategy", "no", "--load_best_model_at_end", "false")
        if laid:
            run.train_dataset.lay_on("cpu")
        run.train()
        left.append(weights(run.model))
    assert not changed(*left)
