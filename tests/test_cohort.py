import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.cohort import CONFLICT, PATIENT, UNREADABLE, build_cohort, prepare_cohort
from hf_pneumonia.errors import UsageError


def test_the_counts_are_those_of_the_folder_and_unreadable_images_are_listed_by_name(image_folder, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(image_folder, folder)
    victims = [*sorted((folder / "train").glob("*/*"))[:2], *sorted((folder / "test").glob("*/*"))[-2:]]
    for path in victims:
        path.write_bytes(path.read_bytes()[:200])
    cohort = prepare_cohort(str(folder), 32, tmp_path)
    counts = cohort.counts()
    assert counts["splits"] == {
        "train": {"films": 83, "patients": 78, "classes": {"NORMAL": 38, "PNEUMONIA": 45}},
        "validation": {"films": 20, "patients": 20, "classes": {"NORMAL": 10, "PNEUMONIA": 10}},
        "test": {"films": 28, "patients": 28, "classes": {"NORMAL": 12, "PNEUMONIA": 16}},
    }
    assert counts["left_out"] == 0
    assert {entry["file"] for entry in counts["unreadable"]} == set(map(str, victims))
    assert len(cohort.rows("test")) == 28 and set(cohort.split[cohort.rows("test")]) == {"test"}
    with pytest.raises(UsageError, match="4 of 135") as error:
        prepare_cohort(str(folder), 32, tmp_path, max_unreadable=0.02)
    assert error.value.code == "unreadable-images"


TRIO = ("train", "validation", "test")


class _Cache:
    """A fake image cache: hashes, sizes, appearance, pairs of similar images, and unreadable rows."""

    def __init__(self, sha256, width, pairs, correlation, unreadable, appearance=0):
        kinds = [("sha256", "S64"), ("width", "i4"), ("height", "i4"), ("appearance", "f4", 4)]
        self.facts = np.zeros(len(sha256), kinds)
        self.facts["appearance"] = appearance
        self.facts["sha256"], self.facts["width"], self.facts["height"] = sha256, width, width
        self.unreadable = {int(row): "damaged" for row in unreadable}
        self._copies = np.reshape(pairs, (-1, 2)).astype(np.int64), np.array(correlation, dtype=np.float32)

    def __len__(self):
        return len(self.facts)

    def similar_pairs(self):
        return self._copies


SPLITS = [("train",), ("train", "train", "test"), TRIO, ("train", "train", "test", "covid")]


def _sources(rng):
    """A random table of images and copies. Copies share `image`, byte-for-byte copies also `bytes`; their
    splits, labels, patients and sources are random."""
    distinct = rng.integers(60, 151)
    image = np.concatenate([np.arange(distinct), rng.integers(distinct, size=rng.integers(61))])
    n = len(image)
    child = rng.integers(rng.choice([30, 100, 1000]), size=distinct)[image]
    label = (child % 2) ^ (rng.random(n) < rng.choice([0, 0.05, 0.3]))
    renamed = rng.random(n) < 0.2
    given = rng.choice(SPLITS[rng.integers(4)], n)
    return {
        "image": image,
        "bytes": rng.integers(rng.choice([1, 3]), size=n),
        "width": rng.choice([100, 200, 300], n),
        "unreadable": rng.random(n) < rng.choice([0, 0.05]),
        "file": np.array([f"f{row:03d}" for row in rng.permutation(n)]),
        "source": rng.choice(["a", "b"], n),
        "patient_id": np.where(renamed, [f"new{row:04d}" for row in range(n)], [f"p{one}" for one in child]),
        "label": np.where(given == "covid", 1, label),
        "split": given,
    }


def _run(images, order=None, **options):
    """Settle the table in some order. Returns split, reason and fingerprint in the table's own order; None
    if it can't be split. Copies form a chain of similar pairs; two more pairs are nearly similar."""
    rows = np.arange(len(images["image"])) if order is None else order
    images = {name: column[rows] for name, column in images.items()}
    unreadable = np.flatnonzero(images["unreadable"])
    # All damaged files are empty, and so equal: this must not join their patients.
    named = [f"{image}-{version}" for image, version in zip(images["image"], images["bytes"], strict=True)]
    sha = np.where(images["unreadable"], "empty", named)
    pairs, correlation = [], []
    for image in np.unique(images["image"]):
        same = np.setdiff1d(np.flatnonzero(images["image"] == image), unreadable)
        pairs += zip(same[:-1], same[1:], strict=True)
        correlation += [0.9] * max(len(same) - 1, 0)
    back = np.argsort(rows)
    pairs += [sorted(back[[0, 1]]), sorted(back[[2, 5]])]  # the same two pairs in any order
    correlation += [
        0.87 if images["image"][low] != images["image"][high] else 0.9 for low, high in pairs[-2:]
    ]
    appearance = np.random.default_rng(0).normal(size=(images["image"].max() + 1, 4))[images["image"]]
    cache = _Cache(sha, images["width"], pairs, correlation, unreadable, appearance)
    table = {name: images[name].tolist() for name in ("file", "source", "patient_id", "split", "label")}
    try:
        cohort = build_cohort(table, cache, **options)
    except UsageError:
        return None
    return cohort.split[back], cohort.reason[back], cohort.fingerprint()


def _groups(images):
    """Rows of the readable copies of each image."""
    readable = ~images["unreadable"]
    return [
        np.flatnonzero(readable & (images["image"] == image))
        for image in np.unique(images["image"][readable])
    ]


def _children(images):
    """Join the patients that share a readable image, by brute force."""
    child = {patient: {patient} for patient in images["patient_id"]}
    for rows in _groups(images):
        joined = set().union(*(child[patient] for patient in images["patient_id"][rows]))
        for patient in joined:
            child[patient] = joined
    return np.array([min(child[patient]) for patient in images["patient_id"]])


@pytest.fixture(scope="module")
def cases():
    """Random tables, the way they are split, the seed, and the results of `_run`."""
    found = []
    for seed in range(60):
        images = _sources(np.random.default_rng(seed))
        split = ("official", "70/20/10", "1/1/1", "shifted", "official")[seed % 5]
        if result := _run(images, split=split, split_seed=seed):
            found.append((images, split, seed, *result))
    assert len(found) > 40
    return found


def test_no_patient_and_no_image_is_in_two_splits_and_no_image_is_lost(cases):
    for images, split, _, assigned, reason, _ in cases:
        children = _children(images)
        for rows in [*_groups(images), *(np.flatnonzero(children == child) for child in np.unique(children))]:
            assert len(set(assigned[rows]) - {""}) <= 1
        assert np.array_equal(assigned == "", reason != "")
        assert np.array_equal(reason == UNREADABLE, images["unreadable"])
        for rows in _groups(images):
            if len(set(images["label"][rows])) == 1:  # one image is kept, or its patient is in another split
                assert (assigned[rows] != "").any() or PATIENT in reason[rows]
            assert len(rows) > 1 or reason[rows[0]] in ("", PATIENT)
        if split != "official":
            assert PATIENT not in reason or "covid" in images["split"]


def test_an_image_counts_once_in_training_and_its_largest_copy_in_the_best_split_is_kept(cases):
    best_first = ["test", "validation", "train", "covid"]
    for images, split, _, assigned, _, _ in cases:
        for rows in _groups(images):
            used = rows[assigned[rows] != ""]
            if "test" not in assigned[used] or split != "official":
                assert len(used) <= 1
            if len(used) != 1:
                continue
            if split == "official":
                best = min(images["split"][rows], key=best_first.index)
                rivals = rows[images["split"][rows] == best]
            else:  # the splits of the sources are ignored
                rivals = rows[images["split"][rows] != "covid"]
            assert images["width"][used[0]] == images["width"][rivals if len(rivals) else rows].max()


def test_a_test_image_is_never_dropped_in_favour_of_a_training_image(cases):
    """All test images of one source are kept, and none of the others."""
    for images, split, _, assigned, _, _ in cases:
        for rows in _groups(images):
            in_test = rows[images["split"][rows] == "test"]
            if split == "official" and len(in_test):
                kept = rows[assigned[rows] != ""]
                sources = set(images["source"][kept])
                assert len(sources) == 1
                assert set(kept) == {row for row in in_test if images["source"][row] in sources}


def test_copies_with_different_labels_are_left_out_of_training_and_listed(cases):
    for images, split, _, assigned, reason, _ in cases:
        for rows in _groups(images):
            if len(set(images["label"][rows])) == 1:
                assert CONFLICT not in reason[rows]
            elif split == "official" and "test" in images["split"][rows]:
                assert set(assigned[rows]) <= {"", "test"} and set(reason[rows]) <= {"", CONFLICT}
            else:
                assert set(assigned[rows]) == {""} and set(reason[rows]) == {CONFLICT}


def test_the_result_does_not_depend_on_the_order_of_the_images(cases):
    for images, split, seed, *expected in cases:
        order = np.random.default_rng(seed).permutation(len(images["image"]))
        shuffled = _run(images, order, split=split, split_seed=seed)
        assert all(np.array_equal(a, b) for a, b in zip(expected, shuffled, strict=True))


def _children_of_a_data_set(count, rng):
    """Table and cache of one to three images of each child; their appearance predicts the label."""
    child = np.repeat(np.arange(count), rng.integers(1, 4, count))
    label = child % 3 % 2
    appearance = rng.normal(size=(len(child), 4)) + 0.7 * label[:, None]
    names = [f"{rng.integers(10**12)}" for _ in child]
    table = {
        "file": names,
        "source": ["a"] * len(child),
        "patient_id": [f"p{one}" for one in child],
        "split": rng.choice(["train", "test"], len(child)).tolist(),
        "label": label.tolist(),
    }
    return table, _Cache(names, 100, [], [], [], appearance)


def test_a_cut_and_the_fingerprint_depend_on_labels_and_not_on_names_and_folders():
    table, cache = _children_of_a_data_set(150, np.random.default_rng(0))
    cohort = build_cohort(table, cache)
    moved = {**table, "file": [f"elsewhere/{name}" for name in table["file"]]}
    assert build_cohort(moved, cache).fingerprint() == cohort.fingerprint()
    moved["label"] = [1 - table["label"][0], *table["label"][1:]]
    assert build_cohort(moved, cache).fingerprint() != cohort.fingerprint()
    # Each image is a patient, named after its file.
    names = table["file"]
    for split in ("70/20/10", "shifted"):
        tables = [{**table, "file": ids, "patient_id": ids} for ids in (names, names[::-1])]
        first, second = (build_cohort(table, cache, split=split) for table in tables)
        assert np.array_equal(first.split, second.split)


def test_images_of_a_shifted_test_split_contradict_their_label_more_than_those_of_train():
    table, cache = _children_of_a_data_set(150, np.random.default_rng(0))
    cohort = build_cohort(table, cache, split="shifted")
    logits = cache.facts["appearance"].sum(1)  # the best prediction from this appearance
    contradiction = np.where(cohort.label == 1, -logits, logits)
    in_test = cohort.split == "test"
    for of_class in (cohort.label == 0, cohort.label == 1):
        assert contradiction[of_class & in_test].mean() > contradiction[of_class & ~in_test].mean() + 1
        assert 0.2 * of_class.sum() <= np.sum(of_class & in_test) <= 0.2 * of_class.sum() + 3
    area = {name: roc_auc_score(cohort.label[cohort.rows(name)], logits[cohort.rows(name)]) for name in TRIO}
    assert area["test"] < 0.5 < 0.85 < min(area["train"], area["validation"])
    assert len(cohort.rows("validation")) == pytest.approx(0.1 * np.sum(cohort.split != "test"), abs=3)
    assert set(cohort.source_split) == {"train", "test"}  # as the source has them


def test_a_shifted_split_needs_ten_patients_of_each_class():
    table, cache = _children_of_a_data_set(27, np.random.default_rng(0))  # 9 of class 1
    with pytest.raises(UsageError, match="--split shifted: expected 10 ") as error:
        build_cohort(table, cache, split="shifted")
    assert error.value.code == "too-few-patients"
    cohort = build_cohort(table, cache, split="shifted", must_split=False)
    assert cohort.split.tolist() == table["split"]


def test_the_two_series_of_a_person_number_are_two_patients_that_a_cut_keeps_together():
    """60 person numbers with an image of each series: 40 have the bacterial image in train and the viral one
    in test, the others the reverse."""
    rows = []
    for number in range(60):
        for series, train in (("bacteria", number < 40), ("virus", number >= 40)):
            rows.append((f"person{number}_{series}", "train" if train else "test", 1))
        rows.append((f"IM-{number:04d}", ("train", "test")[number % 2], 0))
    names, splits, labels = zip(*rows, strict=True)
    table = {"file": names, "source": ["a"] * 180, "patient_id": names, "split": splits, "label": labels}
    cache = _Cache(names, 100, [], [], [])
    cohort = build_cohort(table, cache)
    assert cohort.counts()["left_out"] == 0 and len(cohort.rows("test")) == 60 + 30
    cut = build_cohort(table, cache, split="2/1/1")
    splits = dict(zip(names, cut.split, strict=True))
    assert all(splits[f"person{one}_bacteria"] == splits[f"person{one}_virus"] for one in range(60))
    assert set(cut.split) == set(TRIO)


@pytest.mark.parametrize("why", ["unreadable", "duplicates of test images"])
def test_it_is_an_error_if_no_training_image_is_left(why):
    cache = _Cache([*"abcdef"] * 2, 9, [], [], range(6) if why == "unreadable" else [])
    names = [f"f{row}" for row in range(12)]
    splits, labels = ["train"] * 6 + ["test"] * 6, [0, 1] * 6
    table = {"file": names, "source": names, "patient_id": names, "split": splits, "label": labels}
    with pytest.raises(UsageError, match=f"0 of 6: .*{why}") as error:
        build_cohort(table, cache)
    assert error.value.code == "no-training-images-left"
    cohort = build_cohort(table, cache, must_split=False)
    assert not np.any(cohort.split == "train") and sum(cohort.counts()["removed"].values()) == 6
