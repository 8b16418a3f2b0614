from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_pneumonia.data.splits import assign_splits, parse_split, shifted_test
from hf_pneumonia.errors import UsageError


def _images(split: str, normal: int, pneumonia: int, start: int = 0, per_patient: int = 1):
    """(split, label, patient) rows; patients are numbered from `start`."""
    rows = []
    for label, count in ((0, normal), (1, pneumonia)):
        rows += [(split, label, f"{label}-{start + number // per_patient}") for number in range(count)]
    return rows


def _assign(rows):
    split, notes = assign_splits(*zip(*rows, strict=True))
    return split, " ".join(notes)


def test_existing_splits_are_kept():
    rows = _images("train", 100, 200) + _images("validation", 20, 30, 1000) + _images("test", 25, 25, 2000)
    split, notes = _assign(rows)
    assert split.tolist() == [row[0] for row in rows] and notes == ""


def test_a_validation_split_of_sixteen_images_is_joined_to_train_and_cut_anew():
    rows = _images("train", 400, 600) + _images("validation", 8, 8, 1000) + _images("test", 50, 50, 2000)
    split, notes = _assign(rows)
    assert "16 images is too small" in notes
    assert np.sum(split == "validation") == 41 + 61  # 10% of 408 and of 608 patients
    assert {row[0] for row, found in zip(rows, split, strict=True) if found == "test"} == {"test"}


@pytest.mark.parametrize(("train", "needed"), [(40, 10), (400, 20), (2000, 50)])
def test_a_small_data_set_needs_ten_validation_images_of_a_class_and_a_large_one_up_to_fifty(train, needed):
    for validation in (needed - 1, needed):
        rows = _images("train", train, train) + _images("validation", validation, validation, 1000)
        split, _ = _assign(rows + _images("test", 20, 20, 2000))
        given = split[2 * train : 2 * (train + validation)]
        assert (set(given) == {"validation"}) is (validation == needed)


def test_a_missing_test_split_is_cut_by_patient_and_stratified():
    rows = _images("train", 200, 600, per_patient=4)
    split, notes = _assign(rows)
    assert "no test split" in notes
    assert [np.sum(split == name) for name in ("test", "validation", "train")] == [160, 64, 800 - 160 - 64]
    for name in ("test", "validation"):
        labels = [label for (_, label, _), found in zip(rows, split, strict=True) if found == name]
        assert np.mean(labels) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("rows", "code", "value"),
    [
        (_images("train", 50, 50) + _images("test", 0, 20, 1000), "class-missing-in-split", "test.*NORMAL"),
        (_images("train", 2, 50), "too-few-patients", "2 or more NORMAL patients, got 1"),
        (_images("test", 20, 20), "no-training-images", "got test"),
    ],
)
def test_images_that_cannot_be_split_are_an_error(rows, code, value):
    with pytest.raises(UsageError, match=value) as error:
        _assign(rows)
    assert error.value.code == code


def test_three_numbers_are_the_shares_of_the_splits_whatever_they_add_up_to():
    assert parse_split("official") is parse_split("shifted") is None
    assert parse_split("70/20/10") == pytest.approx((0.7, 0.2, 0.1))
    assert parse_split("8/1/1") == pytest.approx((0.8, 0.1, 0.1))
    for text in ("", "random", "OFFICIAL", "70/30", "70/20/10/5", "a/b/c", "0/50/50", "-70/20/10", "1/nan/1"):
        with pytest.raises(UsageError) as error:
            parse_split(text)
        assert error.value.code == "invalid-split"


def test_the_shifted_test_split_has_the_patients_of_each_class_that_look_most_like_the_other():
    # class, cluster, score: above 0 the image looks like a pneumonia
    rows = [
        (0, "a", -3.0), (0, "a", 1.0),  # contradiction -1
        (0, "b", 2.0), (0, "b", 0.0),  # 1
        (0, "c", -2.0), (0, "d", 0.5), (0, "e", -4.0), (0, "f", -5.0),
        (1, "g", 4.0), (1, "h", -0.5), (1, "i", 3.0), (0, "i", 9.0), (1, "i", 3.0), (1, "j", 0.1),
    ]  # fmt: skip
    labels, clusters, scores = (np.array(column) for column in zip(*rows, strict=True))
    chosen = {
        share: set(clusters[shifted_test(labels, clusters, scores, share)]) for share in (0.2, 0.3, 0.5)
    }
    # 8 images in clusters of class 0 and 6 of class 1, as i, with contradiction (-3 - 3 + 9) / 3 = 1.
    assert chosen == {0.2: {"b", "i"}, 0.3: {"b", "d", "i"}, 0.5: {"b", "d", "a", "i"}}


TRIO = ("train", "validation", "test")
SHARES = [(0.7, 0.2, 0.1), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.1, 0.1, 0.8), (0.96, 0.02, 0.02)]


@st.composite
def tables(draw):
    """Random tables of patients with one or many images, of one class or both, in sources and clusters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(60, 250))
    patient = rng.integers(draw(st.integers(20, 200)), size=n)
    if draw(st.booleans()):  # a few patients with many images
        patient = patient // rng.integers(1, 8)
    by_patient = rng.random(250) < draw(st.sampled_from([0.3, 0.5, 0.8]))
    noise = rng.random(n) < draw(st.sampled_from([0, 0, 0.2]))  # patients with images of both classes
    joined = np.where(rng.random(250) < draw(st.sampled_from([0, 0.3])), np.arange(250) // 3, np.arange(250))
    names = draw(st.sampled_from([("train",), ("train", "test"), ("train", "validation", "test", "covid")]))
    return {
        "given": rng.choice(names, n).tolist(),
        "labels": (by_patient[patient] ^ noise).astype(int).tolist(),
        "patients": [f"p{one:03d}" for one in patient],
        "clusters": [f"c{joined[one]:03d}" for one in patient],
        "strata": rng.choice(["a", "b"], n, p=[0.8, 0.2]).tolist(),
    }


def _call(table, order=None, **options):
    order = range(len(table["given"])) if order is None else order
    columns = {name: [column[row] for row in order] for name, column in table.items()}
    try:
        given, labels, patients = (columns.pop(name) for name in ("given", "labels", "patients"))
        return assign_splits(given, labels, patients, **columns, **options)[0]
    except UsageError as error:  # too few images of one class
        return str(error)


def _most_splits(names, split) -> int:
    """Largest number of splits that share one name."""
    splits = defaultdict(set)
    for name, assigned in zip(names, split, strict=True):
        splits[name] |= {assigned} - {""}
    return max(map(len, splits.values()))


ANYTHING = given(tables(), st.sampled_from([None, *SHARES]), st.integers(0, 9))
MANY = settings(derandomize=True, deadline=None, max_examples=40)


@MANY
@ANYTHING
def test_no_two_splits_share_a_patient_and_a_given_test_split_stays_complete(table, shares, seed):
    split = _call(table, shares=shares, seed=seed)
    assume(not isinstance(split, str))
    assert _most_splits(table["patients"], split) == 1
    for name in TRIO:
        labels = [label for label, assigned in zip(table["labels"], split, strict=True) if assigned == name]
        assert set(labels) == {0, 1}
    if not shares and "test" in table["given"]:
        assert [name == "test" for name in split] == [name == "test" for name in table["given"]]


@MANY
@given(tables(), st.sampled_from(SHARES), st.integers(0, 9))
def test_a_cut_keeps_clusters_together_leaves_no_image_out_and_is_near_its_shares(table, shares, seed):
    """There is no proven bound for the shares. In 20,000 such tables no split was further from its share of a
    class than twice the images of the largest cluster."""
    table = {**table, "given": ["train"] * len(table["given"])}
    split = _call(table, shares=shares, seed=seed)
    assume(not isinstance(split, str))
    assert "" not in split and _most_splits(table["clusters"], split) == 1
    if shares == SHARES[-1]:
        return
    labels = np.array(table["labels"])
    largest = np.unique(table["clusters"], return_counts=True)[1].max()
    for label in (0, 1):
        for name, share in zip(TRIO, shares, strict=True):
            excess = np.sum((labels == label) & (split == name)) - share * np.sum(labels == label)
            assert abs(excess) <= 2 * largest


@MANY
@ANYTHING
def test_the_split_depends_on_the_seed_and_not_on_the_order(table, shares, seed):
    split = _call(table, shares=shares, seed=seed)
    again = _call(table, shares=shares, seed=seed)
    order = np.random.default_rng(seed).permutation(len(table["given"]))
    shuffled = _call(table, order, shares=shares, seed=seed)
    if isinstance(split, str):
        assert again == shuffled == split
    else:
        assert np.array_equal(again, split) and np.array_equal(shuffled, split[order])


def test_a_cut_deals_the_largest_patients_first_and_evens_out_with_the_small_ones():
    # Each class has four patients with 6 images, and 24 with one.
    patients = [f"{label}-{max(number // 6, number - 20)}" for label in (0, 1) for number in range(48)]
    labels = np.repeat([0, 1], 48)
    split, _ = assign_splits(["train"] * 96, labels, patients, shares=(1 / 3, 1 / 3, 1 / 3))
    assert [np.sum((split == name) & (labels == 0)) for name in TRIO] == [16, 16, 16]


def test_another_seed_is_another_split():
    rows = _images("train", 60, 90)
    splits = [assign_splits(*zip(*rows, strict=True), shares=SHARES[0], seed=seed)[0] for seed in range(2)]
    assert np.mean(splits[0] != splits[1]) > 0.2


@MANY
@given(st.integers(0, 2**32 - 1), st.sampled_from(SHARES), st.booleans())
def test_the_shares_are_kept_within_the_largest_patient_of_each_class_and_source(seed, shares, two_sources):
    """A patient of one class and source goes to a split that lacks images of its kind, so no split exceeds
    its share by more than one patient. The excess of the other two splits is what a split may lack."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, rng.integers(2, 12), size=rng.integers(30, 120))
    patient = np.repeat(np.arange(len(sizes)), sizes)
    label = (np.arange(len(sizes)) % rng.integers(2, 5) == 0)[patient].astype(int)
    source = (rng.random(len(sizes)) < 0.5 * two_sources)[patient].astype(str)
    split, _ = assign_splits(
        ["train"] * len(patient), label, patient.astype(str), strata=source, shares=shares, seed=seed % 7
    )
    for kind in np.unique(np.stack([label, source == "True"]), axis=1).T:
        of_kind = (label == kind[0]) & ((source == "True") == kind[1])
        largest = np.bincount(patient[of_kind]).max()
        for name, share in zip(TRIO, shares, strict=True):
            excess = np.sum(of_kind & (split == name)) - share * of_kind.sum()
            assert -2 * largest <= excess <= largest


def test_images_of_another_split_are_kept_unless_they_share_a_patient_with_a_split_in_use():
    rows = _images("train", 60, 60) + _images("covid", 0, 30, 50)  # 10 of them of training patients
    split, notes = _assign(rows)
    covid = [found for row, found in zip(rows, split, strict=True) if row[0] == "covid"]
    assert covid == [""] * 10 + ["covid"] * 20
    assert "left out 10 images of covid" in notes
