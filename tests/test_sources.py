import shutil

import datasets
import numpy as np
import pytest
from conftest import write_film, write_films
from datasets.table import embed_table_storage

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import films_of_hub, load_films
from hf_pneumonia.errors import UsageError


def _labels(films) -> dict[str, str]:
    return {
        file.rsplit("/", 1)[-1]: LABELS[label]
        for file, label in zip(films["file"], films["label"], strict=True)
    }


def test_split_folders_give_every_film_with_its_split_label_and_patient(film_folder, tmp_path):
    films = load_films(str(film_folder), tmp_path)
    assert {name: films["split"][:].count(name) for name in ("train", "validation", "test")} == {
        "train": 85, "validation": 20, "test": 30,
    }  # fmt: skip
    row = films["file"][:].index(str(film_folder / "test" / "PNEUMONIA" / "person203_bacteria_203.jpeg"))
    assert (films[row]["label"], films[row]["patient_id"], films[row]["split"]) == (1, "person203", "test")
    assert films[row]["image"]["path"] == films[row]["file"]


@pytest.mark.parametrize(
    "names", [("0_normal", "1_pneumonia"), ("healthy", "Bacterial"), ("NORMAL", "viral")]
)
def test_classes_are_mapped_by_name_and_never_by_index(tmp_path, names):
    write_films(tmp_path / "films", 3, 2, names=names)
    labels = _labels(load_films(str(tmp_path / "films"), tmp_path))
    assert labels["IM-0000-0001.jpeg"] == "NORMAL" and labels["person1_bacteria_1.jpeg"] == "PNEUMONIA"
    assert sorted(labels.values()) == ["NORMAL"] * 3 + ["PNEUMONIA"] * 2


def test_class_folders_alone_are_all_train(tmp_path):
    write_films(tmp_path / "films", 3, 2)
    assert set(load_films(str(tmp_path / "films"), tmp_path)["split"]) == {"train"}


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    write_film(tmp_path / "films" / "NORMAL" / "2019" / "scan.png", 0, np.random.default_rng(0))
    assert _labels(load_films(str(tmp_path / "films"), tmp_path))["scan.png"] == "NORMAL"


def test_a_kaggle_archive_is_found_inside_its_folder_and_its_second_copy_ignored(
    film_folder, tmp_path, caplog
):
    inner = tmp_path / "archive" / "chest_xray"
    shutil.copytree(film_folder, inner)
    shutil.copytree(film_folder, inner / "chest_xray")
    write_films(inner / "__MACOSX" / "train", 2, 2)
    films = load_films(str(tmp_path / "archive"), tmp_path)
    assert len(films) == 135
    assert "ignored: chest_xray" in caplog.text


def test_file_names_that_sound_like_a_split_do_not_make_one(tmp_path):
    write_films(tmp_path / "films", 3, 3)
    write_film(tmp_path / "films" / "NORMAL" / "test_1.png", 0, np.random.default_rng(0))
    films = load_films(str(tmp_path / "films"), tmp_path)
    assert len(films) == 7 and set(films["split"]) == {"train"}


def test_folder_names_with_glob_signs_are_taken_literally(tmp_path):
    write_films(tmp_path / "films [1] *", 2, 2)
    assert len(load_films(str(tmp_path / "films [1] *"), tmp_path)) == 4


def test_the_patient_comes_from_a_metadata_column_where_there_is_one(tmp_path):
    folder = tmp_path / "films"
    rng = np.random.default_rng(0)
    for number in range(4):
        write_film(folder / ("NORMAL" if number < 2 else "PNEUMONIA") / f"{number}.png", number > 1, rng)
    lines = [
        "file_name,patient_id",
        "NORMAL/0.png,a",
        "NORMAL/1.png,a",
        "PNEUMONIA/2.png,b",
        "PNEUMONIA/3.png,",
    ]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    films = load_films(str(folder), tmp_path)
    patients = dict(zip((file[-5] for file in films["file"]), films["patient_id"], strict=True))
    assert patients == {"0": "a", "1": "a", "2": "b", "3": str(folder / "PNEUMONIA" / "3.png")}
    assert _labels(films)["0.png"] == "NORMAL"


def test_a_metadata_file_that_leaves_out_films_is_an_error(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    (tmp_path / "films" / "metadata.csv").write_text("file_name,patient_id\nNORMAL/IM-0000-0001.jpeg,a\n")
    with pytest.raises(UsageError, match="holds 4 images but its metadata file lists 1"):
        load_films(str(tmp_path / "films"), tmp_path)


def test_films_without_a_patient_id_are_patients_of_their_own_and_the_log_says_so(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_film(tmp_path / "films" / "NORMAL" / f"{name}.png", 0, rng)
        write_film(tmp_path / "films" / "PNEUMONIA" / f"{name}.png", 1, rng)
    films = load_films(str(tmp_path / "films"), tmp_path)
    assert len(set(films["patient_id"])) == 4
    assert "no patient id in 4 of 4 file names" in caplog.text


def test_an_unknown_class_is_an_error_that_lists_what_was_found(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    write_film(tmp_path / "films" / "TUBERCULOSIS" / "1.png", 1, np.random.default_rng(0))
    with pytest.raises(
        UsageError, match="unknown class 'TUBERCULOSIS'.*found: NORMAL, PNEUMONIA, TUBERCULOSIS"
    ):
        load_films(str(tmp_path / "films"), tmp_path)


def test_one_class_only_is_an_error(tmp_path):
    write_films(tmp_path / "films", 3, 0)
    with pytest.raises(UsageError, match="one class only .*found: NORMAL"):
        load_films(str(tmp_path / "films"), tmp_path)


@pytest.mark.parametrize("make", ["nothing", "a text"])
def test_a_folder_without_images_is_an_error(tmp_path, make):
    (tmp_path / "films" / "NORMAL").mkdir(parents=True)
    if make == "a text":
        (tmp_path / "films" / "NORMAL" / "notes.txt").write_text("none here")
    with pytest.raises(UsageError, match="no images in"):
        load_films(str(tmp_path / "films"), tmp_path)


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "none"])
def test_a_missing_folder_is_an_error(tmp_path, source):
    with pytest.raises(UsageError, match="no such folder"):
        load_films(source, tmp_path)


def test_a_hub_data_set_that_cannot_be_reached_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="--dataset no/such-data-set: .* can't be had"):
        load_films("no/such-data-set", tmp_path)


@pytest.fixture
def hub_data_set(film_folder, tmp_path):
    """The same films as a repository of parquet files with the bytes inside, which is what the Hub serves."""
    loaded = datasets.load_dataset("imagefolder", data_dir=str(film_folder))
    for name, rows in loaded.items():
        rows = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        rows.to_parquet(tmp_path / "repository" / f"{name}-00000-of-00001.parquet")
    return datasets.load_dataset(str(tmp_path / "repository"))


def test_a_hub_data_set_gives_the_films_of_its_folder(film_folder, hub_data_set, tmp_path):
    from_folder, from_hub = load_films(str(film_folder), tmp_path), films_of_hub(hub_data_set, "user/films")
    assert from_hub[0]["image"]["bytes"]
    assert _labels(from_hub) == _labels(from_folder)
    assert sorted(zip(from_hub["split"], from_hub["patient_id"], strict=True)) == sorted(
        zip(from_folder["split"], from_folder["patient_id"], strict=True)
    )


def test_a_hub_data_set_with_numbers_for_classes_is_an_error(hub_data_set):
    numbers = hub_data_set.cast_column("label", datasets.Value("int64"))
    with pytest.raises(UsageError, match="`label` with class names"):
        films_of_hub(numbers, "user/films")
