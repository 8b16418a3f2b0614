import pytest

from hf_pneumonia.data.labels import coarse_patient, is_class, is_covid, label_of, patient_of


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (0, "NORMAL, 0_normals, Healthy, No Finding, no findings, Non-Pneumonia, not pneumonia"),
        (1, "PNEUMONIA, 1_pneumonia, Bacterial, viral, Pneumonia-Viral, BACTERIAL PNEUMONIA, virus, opacity"),
        (1, "Lung Opacity"),
        (None, "0, 1, tuberculosis, abnormal, pneumothorax, train, archive, non-covid, "),
    ],
)
def test_classes_are_recognised_by_name(label, names):
    for name in names.split(", "):
        assert label_of(name) == label and is_class(name) is (label is not None) and not is_covid(name)


@pytest.mark.parametrize("name", ["COVID19", "covid-19", "COVID", "Covid-19 Pneumonia", "coronavirus"])
def test_covid_is_neither_normal_nor_pneumonia(name):
    assert is_covid(name) and label_of(name) is None and is_class(name)


@pytest.mark.parametrize(
    ("file", "patient", "coarse"),
    [
        ("person1000_bacteria_2931.jpeg", "person1000_bacteria", "person1000"),
        ("person447_virus_921_1.jpeg", "person447_virus", "person447"),
        ("IM-0429-0001-0002.jpeg", "IM-0429", "IM-0429"),
        ("NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383", "IM-0383"),
        ("NORMAL-IM-0383-0001.jpeg", "NORMAL-IM-0383", "IM-0383"),
        ("normal2-im-0383-0001.jpeg", "normal2-im-0383", "im-0383"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087", "BACTERIA-1008087"),
        ("NORMAL-28501-0001.jpeg", "NORMAL-28501", "NORMAL-28501"),
    ],
)
def test_patient_ids_and_their_coarse_form_come_from_file_names(file, patient, coarse):
    assert patient_of(file) == patient and coarse_patient(patient) == coarse


def test_other_names_have_no_patient_id_and_other_ids_no_coarse_form():
    assert patient_of("scan_0001.png") is None and patient_of("person.jpeg") is None
    for name in ("person12", "ward_virus", "hospital:person12_virus", "hospital:NORMAL2-IM-0383"):
        assert coarse_patient(name) == name
