import shutil

import datasets
import numpy as np
import pytest
from conftest import write_film, write_films
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
    assert patients == {"0": "a", "1": "a", "2": "b", "3": "train/PNEUMONIA/3.png"}
    assert _labels(films)["0.png"] == "NORMAL"


def _folder_with_metadata(folder, lines, name="metadata.csv"):
    rng = np.random.default_rng(0)
    for number in range(6):
        write_film(folder / ("NORMAL" if number < 3 else "PNEUMONIA") / f"{number}.png", number > 2, rng)
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


def test_patient_ids_are_text_and_not_numbers(tmp_path):
    lines = [
        "file_name,patient_id",
        "NORMAL/0.png,0012",
        "NORMAL/1.png,12",
        "PNEUMONIA/3.png,",
        "PNEUMONIA/4.png,7",
    ]
    films = load_films(_folder_with_metadata(tmp_path / "films", lines), tmp_path)
    patients = dict(zip((file[-5] for file in films["file"]), films["patient_id"], strict=True))
    assert [patients[film] for film in "0143"] == ["0012", "12", "7", "train/PNEUMONIA/3.png"]


def test_one_metadata_file_beside_the_split_folders_serves_them_all(film_folder, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(film_folder, folder)
    files = sorted(path.relative_to(folder) for path in folder.glob("*/*/*"))
    lines = [f'{{"file_name": "{file}", "patient_id": {number}}}' for number, file in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    films = load_films(str(folder), tmp_path)
    expected = {str(folder / file): str(number) for number, file in enumerate(files)}
    assert dict(zip(films["file"], films["patient_id"], strict=True)) == expected


def test_a_film_that_the_metadata_leave_out_is_kept(tmp_path):
    folder = _folder_with_metadata(tmp_path / "films", ["file_name,patient_id", "NORMAL/0.png,a"])
    assert len(load_films(folder, tmp_path)) == 6


def test_classes_may_stand_in_the_metadata(tmp_path):
    lines = ["file_name,label", *(f"{c}/{n}.png,{'viral' if n % 2 else 'healthy'}" for n, c in
             enumerate(["NORMAL"] * 3 + ["PNEUMONIA"] * 3))]  # fmt: skip
    labels = _labels(load_films(_folder_with_metadata(tmp_path / "films", lines), tmp_path))
    assert labels == {f"{n}.png": LABELS[n % 2] for n in range(6)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,patient_id", "NORMAL/0.png,a"], "expected a column file_name"),
        (["file_name,patient_id", "elsewhere/0.png,a"], "lists none of its films"),
        (["file_name,patient_id", "NORMAL/0.png,a\0b"], None),
    ],
)
def test_metadata_that_do_not_fit_are_an_error_of_one_line(tmp_path, lines, message):
    folder = _folder_with_metadata(tmp_path / "films", lines)
    if message is None:
        (tmp_path / "films" / "metadata.csv").write_bytes(b"\xff\xfe\x00bad")
        message = "can't be read as a table"
    with pytest.raises(UsageError, match=message) as error:
        load_films(folder, tmp_path)
    assert "\n" not in str(error.value)


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
