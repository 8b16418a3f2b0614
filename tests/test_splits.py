import numpy as np
import pytest

from hf_pneumonia.data.splits import assign_splits
from hf_pneumonia.errors import UsageError


def _films(split: str, normal: int, pneumonia: int, start: int = 0, per_patient: int = 1):
    """(split, label, patient) rows; patients are numbered from `start`."""
    rows = []
    for label, count in ((0, normal), (1, pneumonia)):
        rows += [(split, label, f"{label}-{start + number // per_patient}") for number in range(count)]
    return rows


def _assign(rows):
    split, notes = assign_splits(*zip(*rows, strict=True))
    return split, " ".join(notes)


def _patients(rows, split, name):
    return {patient for (_, _, patient), found in zip(rows, split, strict=True) if found == name}


def test_splits_that_exist_are_honoured():
    rows = _films("train", 100, 200) + _films("validation", 20, 30, 1000) + _films("test", 25, 25, 2000)
    split, notes = _assign(rows)
    assert split.tolist() == [row[0] for row in rows]
    assert notes == ""


def test_a_validation_split_of_sixteen_films_is_joined_to_train_and_cut_anew():
    rows = _films("train", 400, 600) + _films("validation", 8, 8, 1000) + _films("test", 50, 50, 2000)
    split, notes = _assign(rows)
    assert "16 films is too small" in notes
    assert np.sum(split == "validation") == 41 + 61  # 10% of 408 and of 608 patients
    assert {row[0] for row, found in zip(rows, split, strict=True) if found == "test"} == {"test"}


@pytest.mark.parametrize(
    ("train", "validation", "honoured"), [(40, 9, False), (40, 10, True), (400, 19, False), (400, 20, True)]
)
def test_a_small_data_set_needs_ten_validation_films_of_a_class_and_a_large_one_more(
    train, validation, honoured
):
    rows = _films("train", train, train) + _films("validation", validation, validation, 1000)
    split, _ = _assign(rows + _films("test", 20, 20, 2000))
    given = split[2 * train : 2 * (train + validation)]
    assert (set(given) == {"validation"}) is honoured


def test_a_missing_test_split_is_cut_by_patient_and_stratified():
    rows = _films("train", 200, 600, per_patient=4)
    split, notes = _assign(rows)
    assert "no test split" in notes
    assert [np.sum(split == name) for name in ("test", "validation", "train")] == [
        160,
        4 * (4 + 12),
        800 - 160 - 64,
    ]
    for name in ("test", "validation"):
        labels = [label for (_, label, _), found in zip(rows, split, strict=True) if found == name]
        assert np.mean(labels) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_stands_in_two_splits_whatever_is_given(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (
            rng.choice(["train", "validation", "test"], p=[0.8, 0.1, 0.1]),
            int(rng.integers(2)),
            f"p{rng.integers(150)}",
        )
        for _ in range(600)
    ]
    split, _ = _assign(rows)
    patients = [_patients(rows, split, name) for name in ("train", "validation", "test")]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    given_test = [found for (given, _, _), found in zip(rows, split, strict=True) if given == "test"]
    assert set(given_test) == {"test"}


def test_films_of_a_patient_who_stands_in_test_too_are_left_out_and_counted():
    rows = _films("train", 100, 100) + _films("validation", 20, 20, 1000) + _films("test", 20, 20, 90)
    split, notes = _assign(rows)
    assert np.sum(split == "") == 20  # patients 90 to 99 of each class
    assert "left out 20 films of train whose patient stands in test" in notes


def test_the_cut_does_not_depend_on_the_order_of_the_films():
    rows = _films("train", 60, 90, per_patient=2)
    order = np.random.default_rng(0).permutation(len(rows))
    split, _ = _assign(rows)
    shuffled, _ = _assign([rows[index] for index in order])
    assert np.array_equal(split[order], shuffled)


def test_a_split_without_one_of_the_classes_is_an_error():
    rows = _films("train", 50, 50) + _films("test", 0, 20, 1000)
    with pytest.raises(UsageError, match="test split has no NORMAL film"):
        _assign(rows)


def test_too_few_patients_are_an_error_and_not_an_empty_split():
    with pytest.raises(UsageError, match="too few NORMAL patients to cut a validation split"):
        _assign(_films("train", 2, 50))


def test_films_without_a_train_split_are_an_error():
    with pytest.raises(UsageError, match="no training films"):
        _assign(_films("test", 20, 20))
