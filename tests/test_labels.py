import pytest

from hf_pneumonia.data.labels import coarse_patient, is_class, is_covid, label_of, patient_of


@pytest.mark.parametrize(
    "name",
    [
        "NORMAL",
        "0_normals",
        "Healthy",
        "No Finding",
        "no findings",
        "no_pneumonia",
        "Non-Pneumonia",
        "not pneumonia",
    ],
)
def test_normal_is_known_by_its_names(name):
    assert label_of(name) == 0


@pytest.mark.parametrize(
    "name",
    ["PNEUMONIA", "1_pneumonia", "Bacterial", "viral", "Pneumonia-Viral", "BACTERIAL PNEUMONIA", "virus"]
    + ["opacity", "Lung Opacity"],
)
def test_pneumonia_is_known_by_its_names(name):
    assert label_of(name) == 1


@pytest.mark.parametrize("name", ["0", "1", "covid", "tuberculosis", "abnormal", "", "pneumothorax"])
def test_any_other_name_is_unknown(name):
    assert label_of(name) is None


@pytest.mark.parametrize(
    ("file", "patient"),
    [
        ("person1000_bacteria_2931.jpeg", "person1000_bacteria"),
        ("person1000_virus_1681.jpeg", "person1000_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0429-0001-0002.jpeg", "IM-0429"),
        ("NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087"),
        ("scan_0001.png", None),
        ("person.jpeg", None),
    ],
)
def test_the_patient_is_read_from_the_file_name(file, patient):
    assert patient_of(file) == patient


@pytest.mark.parametrize("name", ["COVID19", "covid-19", "COVID", "Covid-19 Pneumonia", "coronavirus"])
def test_covid_is_a_class_that_is_neither_of_the_two(name):
    assert is_covid(name) and label_of(name) is None and is_class(name)


@pytest.mark.parametrize("name", ["NORMAL", "viral", "non-covid", "train", "", "archive"])
def test_nothing_else_is_covid(name):
    assert not is_covid(name)
    assert is_class(name) is (name in ("NORMAL", "viral"))


@pytest.mark.parametrize(
    ("patient", "coarse"),
    [
        ("NORMAL2-IM-0383", "IM-0383"),
        ("NORMAL-IM-0383", "IM-0383"),
        ("normal2-im-0383", "im-0383"),
        ("IM-0383", "IM-0383"),
        ("NORMAL-28501", "NORMAL-28501"),
        ("BACTERIA-1008087", "BACTERIA-1008087"),
        ("person12", "person12"),
        ("person12_bacteria", "person12"),
        ("person12_virus", "person12"),
        ("ward_virus", "ward_virus"),
        ("hospital:person12_virus", "hospital:person12_virus"),
        ("hospital:NORMAL2-IM-0383", "hospital:NORMAL2-IM-0383"),
    ],
)
def test_the_coarse_reading_drops_the_series_of_a_guangzhou_id_and_nothing_else(patient, coarse):
    assert coarse_patient(patient) == coarse
