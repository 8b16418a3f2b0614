import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.subgroups import check_subgroups, family_of

NAMES = ("IM-{}-0001.jpeg", "NORMAL2-IM-{}-0001.jpeg", "person{}_bacteria_1.jpeg", "person{}_virus_2.jpeg")


@pytest.fixture
def films():
    """20 films of each family of the Guangzhou films, two sources, two films per patient."""
    rng = np.random.default_rng(0)
    file = [name.format(number) for name in NAMES for number in range(20)]
    label = np.repeat([0, 0, 1, 1], 20)
    patient = [f"{index // 2}" for index in range(80)]
    source = ["east", "west"] * 40
    return file, source, label, np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1), patient


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("/films/person1000_bacteria_2931.jpeg", "person-bacteria"),
        ("person7_virus_9.jpeg", "person-virus"),
        ("IM-0115-0001.jpeg", "IM"),
        ("NORMAL2-IM-0383-0001.jpeg", "NORMAL-IM"),
        ("phantom0001_1.png", "phantom"),
        ("00012.png", "numbers"),
        ("Zoë 2.png", "Zoë"),
    ],
)
def test_the_family_is_the_letters_of_the_name(file, family):
    assert family_of(file) == family


def test_each_family_has_its_own_figures(films):
    file, source, label, probability, patient = films
    found = check_subgroups(*films, 0.5)["families"]
    assert list(found) == ["IM", "NORMAL-IM", "person-bacteria", "person-virus"]
    virus = found["person-virus"]
    assert (virus["films"], virus["patients"]) == (20, 10)
    assert virus["classes"] == {"NORMAL": 0, "PNEUMONIA": 20}
    assert virus["sensitivity"]["value"] == pytest.approx(np.mean(probability[60:] >= 0.5))
    assert virus["specificity"]["value"] is virus["specificity"]["ci95"] is None
    against = np.r_[0:40, 60:80]
    assert virus["auroc"]["value"] == pytest.approx(roc_auc_score(label[against], probability[against]))
    assert virus["auroc_against"] == "all NORMAL films"
    assert found["IM"]["auroc_against"] == "all PNEUMONIA films"


def test_each_source_is_measured_on_its_own_films(films):
    file, source, label, probability, patient = films
    found = check_subgroups(*films, 0.5)["sources"]
    assert list(found) == ["east", "west"]
    assert found["west"]["auroc"]["value"] == pytest.approx(roc_auc_score(label[1::2], probability[1::2]))
    assert found["west"]["auroc_against"] == "own films"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_families_of_few_films_or_few_patients_are_left_out(films):
    _, source, label, probability, _ = films
    file = (
        [f"big{n}.png" for n in range(61)]
        + [f"few{n}.png" for n in range(9)]
        + [f"ann{n}.png" for n in range(10)]
    )
    patient = [str(n) for n in range(70)] + ["ann"] * 10
    assert list(check_subgroups(file, source, label, probability, patient, 0.5)["families"]) == ["big"]


def test_only_the_largest_families_are_shown():
    sizes = range(10, 24)  # 14 families
    file = [f"{chr(97 + index)}{n}.png" for index, size in enumerate(sizes) for n in range(size)]
    label = np.arange(len(file)) % 2
    found = check_subgroups(file, ["one"] * len(file), label, label / 2, file, 0.5)["families"]
    assert list(found) == [chr(97 + index) for index in range(2, 14)]


@pytest.mark.filterwarnings("error")
def test_films_of_one_class_have_no_area(films):
    file, source, _, probability, patient = films
    found = check_subgroups(file, source, np.ones(80, int), probability, patient, 0.5)
    for group in (*found["sources"].values(), *found["families"].values()):
        assert group["auroc"]["value"] is group["specificity"]["value"] is None
