import datasets
import pytest
from datasets.table import embed_table_storage

from hf_pneumonia.data.hub_dataset import films_of_hub
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import load_films
from hf_pneumonia.errors import UsageError


def _labels(films) -> dict[str, str]:
    return {
        file.rsplit("/", 1)[-1]: LABELS[label]
        for file, label in zip(films["file"], films["label"], strict=True)
    }


def test_a_hub_data_set_that_cannot_be_reached_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="--dataset no/such-data-set: .* can't be had"):
        load_films("no/such-data-set", tmp_path)


@pytest.mark.parametrize("error", [OSError("no\nhost"), ValueError(), ConnectionError("no")])
def test_whatever_keeps_the_hub_from_giving_a_data_set_is_told_in_one_line(monkeypatch, tmp_path, error):
    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match=r"user/films: .* can't be had \((no|ValueError)\)") as raised:
        load_films("user/films", tmp_path)
    assert "\n" not in str(raised.value)


@pytest.fixture
def hub_data_set(film_folder, tmp_path):
    """The same films as a repository of parquet files with the bytes inside, which is what the Hub serves."""
    loaded = datasets.load_dataset("imagefolder", data_dir=str(film_folder))
    for name, rows in loaded.items():
        rows = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        rows.to_parquet(tmp_path / "repository" / f"{name}-00000-of-00001.parquet")
    return datasets.load_dataset(str(tmp_path / "repository"))


def _load_from_hub(loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    return load_films("user/films", tmp_path)


def test_a_hub_data_set_gives_the_films_of_its_folder(film_folder, hub_data_set, tmp_path, monkeypatch):
    from_folder = load_films(str(film_folder), tmp_path)
    from_hub = _load_from_hub(hub_data_set, monkeypatch, tmp_path)
    assert from_hub[0]["image"]["bytes"]
    assert _labels(from_hub) == _labels(from_folder)
    assert sorted(zip(from_hub["split"], from_hub["patient_id"], strict=True)) == sorted(
        zip(from_folder["split"], from_folder["patient_id"], strict=True)
    )


def test_a_hub_data_set_with_numbers_for_classes_is_an_error(hub_data_set):
    numbers = hub_data_set.cast_column("label", datasets.Value("int64"))
    with pytest.raises(UsageError, match="`label` with class names"):
        films_of_hub(numbers, "user/films")


def test_films_of_a_hub_data_set_that_share_their_names_are_kept_apart(hub_data_set, monkeypatch, tmp_path):
    alike = hub_data_set.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, number: {"image": {**row["image"], "path": f"{number % 5}.png"}}, with_indices=True
    )
    films = _load_from_hub(alike, monkeypatch, tmp_path)
    assert len(set(films["file"])) == len(set(films["patient_id"])) == len(films) == 135


def test_patients_of_a_column_are_text_and_a_blank_one_is_none(hub_data_set, monkeypatch, tmp_path):
    def number(_, row):
        return {"patient_id": None if row == 0 else row % 3}

    films = _load_from_hub(hub_data_set.map(number, with_indices=True), monkeypatch, tmp_path)
    train = [
        patient
        for patient, split in zip(films["patient_id"], films["split"], strict=True)
        if split == "train"
    ]
    assert set(train[1:]) == {"0", "1", "2"} and train[0] not in ("0", "1", "2", "None", "")


def test_a_split_of_an_unknown_name_is_an_error(hub_data_set):
    odd = datasets.DatasetDict(train=hub_data_set["train"], extra=hub_data_set["test"])
    with pytest.raises(UsageError, match="user/films has a split 'extra': expected train, validation, test"):
        films_of_hub(odd, "user/films")
