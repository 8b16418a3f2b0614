import os
import shutil
from collections import Counter
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
from conftest import write_image, write_images
from datasets.table import embed_table_storage

from hf_pneumonia.data.hub_datasets import rows_of_hub
from hf_pneumonia.data.sources import load_sources, short_names
from hf_pneumonia.errors import UsageError


def test_split_folders_give_split_label_and_patient_of_every_image(image_folder, tmp_path):
    images = load_sources(str(image_folder), tmp_path)
    assert Counter(images["split"]) == {"train": 85, "validation": 20, "test": 30}
    row = images["file"].index(str(image_folder / "test" / "PNEUMONIA" / "person203_bacteria_203.jpeg"))
    assert (images["label"][row], images["split"][row]) == (1, "test")
    assert images["patient_id"][row] == "person203_bacteria"
    assert images["image"][row] == {"path": images["file"][row], "bytes": None}


def _folder_with_metadata(folder, lines):
    rng = np.random.default_rng(0)
    for number in range(6):
        write_image(folder / ("NORMAL" if number < 3 else "PNEUMONIA") / f"{number}.png", number > 2, rng)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_metadata_gives_classes_and_patients_as_text_and_other_images_are_kept(tmp_path):
    lines = ["file_name,patient_id,label", "NORMAL/0.png,0012,viral", "NORMAL/1.png,12,", "PNEUMONIA/3.png,,"]
    lines += ["PNEUMONIA/4.png,7,healthy"]
    images = load_sources(_folder_with_metadata(tmp_path / "images", lines), tmp_path)
    rows = zip(images["file"], images["patient_id"], images["label"], strict=True)
    assert {file[-5]: row for file, *row in rows} == {
        "0": ["0012", 1], "1": ["12", 0], "2": ["NORMAL/2.png", 0],
        "3": ["PNEUMONIA/3.png", 1], "4": ["7", 0], "5": ["PNEUMONIA/5.png", 1],
    }  # fmt: skip


def test_one_metadata_file_may_describe_all_split_folders(image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    files = sorted(path.relative_to(folder) for path in folder.glob("*/*/*"))
    lines = [f'{{"file_name": "{file}", "patient_id": {number}}}' for number, file in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    images = load_sources(str(folder), tmp_path)
    expected = {str(folder / file): str(number) for number, file in enumerate(files)}
    assert dict(zip(images["file"], images["patient_id"], strict=True)) == expected


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["name", "NORMAL/0.png"], "metadata-without-file-name"),
        (["file_name,patient_id", "elsewhere/0.png,a"], "metadata-without-images"),
    ],
)
def test_metadata_without_its_column_or_its_images_is_an_error(tmp_path, lines, code):
    with pytest.raises(UsageError, match="file_name") as error:
        load_sources(_folder_with_metadata(tmp_path / "images", lines), tmp_path)
    assert error.value.code == code


def test_a_file_name_that_is_not_utf_8_is_an_error(tmp_path):
    write_images(tmp_path / "images", 2, 2)
    file = next(tmp_path.glob("images/NORMAL/*"))
    os.rename(file, os.fsencode(file.parent) + b"/Andr\xe9.jpeg")
    with pytest.raises(UsageError, match="UTF-8") as error:
        load_sources(str(tmp_path / "images"), tmp_path)
    assert error.value.code == "name-not-utf8" and str(error.value).isprintable()


def test_a_single_class_is_an_error_unless_allowed(tmp_path):
    write_images(tmp_path / "images", 3, 0)
    with pytest.raises(UsageError, match="got only NORMAL") as error:
        load_sources(str(tmp_path / "images"), tmp_path)
    assert error.value.code == "one-class-only"
    assert load_sources(str(tmp_path / "images"), tmp_path, one_class=True)["label"] == [0, 0, 0]


def test_an_empty_missing_or_unknown_source_is_an_error(tmp_path):
    (tmp_path / "images" / "NORMAL").mkdir(parents=True)
    (tmp_path / "images" / "NORMAL" / "notes.txt").write_text("none here")
    (tmp_path / "images.rar").write_text("")
    problems = {"images": "no-class-folders", "none": "unknown-source", "images.rar": "unknown-source"}
    for name, code in problems.items():
        with pytest.raises(UsageError) as error:
            load_sources(str(tmp_path / name), tmp_path)
        assert error.value.code == code and str(tmp_path / name) in str(error.value)


def test_several_sources_are_one_table_in_their_order(tmp_path):
    write_images(tmp_path / "one", 2, 3, names=("healthy", "Bacterial"))  # mapped by name, not by order
    write_images(tmp_path / "two" / "train", 1, 2, first=10)
    write_images(tmp_path / "two" / "test", 2, 1, first=20)
    write_images(tmp_path / "healthy only", 4, 0, first=50)
    images = load_sources([str(tmp_path / name) for name in ("one", "two", "healthy only")], tmp_path)
    assert images["source"] == ["one"] * 5 + ["two"] * 6 + ["healthy only"] * 4
    assert images["split"] == ["train"] * 8 + ["test"] * 3 + ["train"] * 4
    kinds = {file.split("/")[-2]: label for file, label in zip(images["file"], images["label"], strict=True)}
    assert kinds == {"healthy": 0, "Bacterial": 1, "NORMAL": 0, "PNEUMONIA": 1}
    alone = load_sources(str(tmp_path / "one"), tmp_path)
    for column in ("file", "label", "patient_id", "source"):
        assert images[column][:5] == alone[column]


def test_only_ids_of_public_file_names_mean_the_same_patient_in_every_source(tmp_path, caplog):
    sources = [str(tmp_path / name) for name in ("one", "two")]
    names = ("IM-0115-0001.jpeg", "person7_virus_9.jpeg", "0.png", "1.png", "c.png", "patient001_view1.png")
    for source in sources:
        for name in names:
            kind = "PNEUMONIA" if name[:2] in ("pe", "1.") else "NORMAL"
            write_image(tmp_path / source / kind / name, 0, np.random.default_rng(0))
        lines = "file_name,patient_id\nNORMAL/0.png,12\nPNEUMONIA/1.png,13\n"
        (tmp_path / source / "metadata.csv").write_text(lines)
    images = load_sources(sources, tmp_path)
    found = [set() for _ in names]
    for file, patient in zip(images["file"], images["patient_id"], strict=True):
        found[names.index(os.path.basename(file))].add(patient)
    assert found == [
        {"IM-0115"}, {"person7_virus"}, {"one:12", "two:12"}, {"one:13", "two:13"},
        {"one:NORMAL/c.png", "two:NORMAL/c.png"}, {"one:patient001", "two:patient001"},
    ]  # fmt: skip
    assert caplog.text.count("no patient id in 1 of 6 file names") == 2


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a/x/images/", "b/x/images/", "c/"], ["a/x/images", "b/x/images", "c"]),
        (["phantom", "user/images", "kaggle:user/images"], ["phantom", "user/images", "kaggle:user/images"]),
        (["data/phantom/", "phantom"], ["data/phantom", "phantom"]),
        (
            ["user/images", "b/user/images/", "c/other/images/"],
            ["user/images", "b/user/images", "other/images"],
        ),
        (["somebody/train/", "somebody/a/images/", "images/"], ["train", "a/images", "HERE/images"]),
    ],
)
def test_a_short_name_has_as_many_last_folders_as_make_it_distinct_and_not_the_home_folder(
    tmp_path, monkeypatch, names, short
):
    """Names with a slash at the end are folders, created below `tmp_path`."""
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
    there = [str(tmp_path / name) if name.endswith("/") else name for name in names]
    assert short_names(there) == [name.replace("HERE", tmp_path.name) for name in short]


@pytest.mark.parametrize("spelling", ["none/../images/", "link", "~/images"])
def test_a_source_listed_twice_is_an_error_in_any_spelling(tmp_path, monkeypatch, spelling):
    write_images(tmp_path / "images", 2, 2)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=f"{tmp_path}/images twice") as error:
        load_sources(["images", spelling], tmp_path)
    assert error.value.code == "source-twice"


@pytest.mark.parametrize(
    ("covid", "table"),
    [
        ("drop", {("train", 0): 3, ("train", 1): 2}),
        ("pneumonia", {("train", 0): 3, ("train", 1): 6}),
        ("keep", {("train", 0): 3, ("train", 1): 2, ("covid", 1): 4}),
    ],
)
def test_covid_is_dropped_counted_as_pneumonia_or_kept(tmp_path, covid, table):
    write_images(tmp_path / "images", 3, 2)
    for number in range(4):
        write_image(tmp_path / "images" / "COVID-19" / f"c{number}.png", 1, np.random.default_rng(number))
    images = load_sources(str(tmp_path / "images"), tmp_path, covid)
    assert Counter(zip(images["split"], images["label"], strict=True)) == table
    for file, split in zip(images["file"], images["split"], strict=True):
        assert (split == "covid") is (covid == "keep" and "COVID-19" in file)


def test_a_failed_download_from_the_hub_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=OSError("no\nhost")))
    with pytest.raises(UsageError, match=r"user/images: .*\(no\)") as error:
        load_sources("user/images", tmp_path)
    assert error.value.code == "hub-download" and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def hub_data_set(image_folder, tmp_path_factory):
    """The same images as Parquet files that contain the bytes, as on the Hub."""
    folder = tmp_path_factory.mktemp("repository")
    for name, rows in datasets.load_dataset("imagefolder", data_dir=str(image_folder)).items():
        rows = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return datasets.load_dataset(str(folder))


def _load_from_hub(loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    return load_sources("user/images", tmp_path)


def test_a_hub_data_set_gives_the_images_of_its_folder(image_folder, hub_data_set, tmp_path, monkeypatch):
    from_folder = load_sources(str(image_folder), tmp_path)
    from_hub = _load_from_hub(hub_data_set, monkeypatch, tmp_path)
    names = [os.path.basename(file) for file in from_folder["file"]]
    for row, file in enumerate(from_hub["file"]):
        twin = names.index(os.path.basename(file))
        for column in ("label", "split", "patient_id"):
            assert from_hub[column][row] == from_folder[column][twin]
        with open(from_folder["file"][twin], "rb") as original:
            assert from_hub["image"][row]["bytes"] == original.read()


@pytest.mark.parametrize("form", ["all splits", "one split", "parquet"])
def test_a_saved_hub_data_set_is_read(hub_data_set, tmp_path, form):
    saved, expected = tmp_path / "saved", {"train": 85, "validation": 20, "test": 30}
    if form == "parquet":
        for name, rows in hub_data_set.items():
            rows.to_parquet(saved / "data" / f"{name}-00000-of-00001.parquet")
    else:
        (hub_data_set if form == "all splits" else hub_data_set["train"]).save_to_disk(saved)
    images = load_sources(str(saved), tmp_path)
    assert Counter(images["split"]) == ({"train": 85} if form == "one split" else expected)


def test_a_damaged_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"image": ["x" * 100], "label": ["NORMAL"]}).to_parquet(path)
    path.write_bytes(b"PAR1" + bytes(20) + path.read_bytes()[24:])
    with pytest.raises(UsageError) as error:
        load_sources(str(tmp_path), tmp_path)
    assert error.value.code == "dataset-damaged" and "\n" not in str(error.value)


def test_images_of_a_hub_data_set_with_equal_names_are_distinguished(hub_data_set, monkeypatch, tmp_path):
    alike = hub_data_set.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, number: {"image": {**row["image"], "path": f"{number % 5}.png"}}, with_indices=True
    )
    images = _load_from_hub(alike, monkeypatch, tmp_path)
    assert len(set(images["file"])) == len(set(images["patient_id"])) == len(images["file"]) == 135


def test_patient_ids_of_a_column_are_text_and_blank_ones_are_none(hub_data_set, monkeypatch, tmp_path):
    numbered = hub_data_set.map(lambda _, row: {"patient_id": row % 3 if row else None}, with_indices=True)
    images = _load_from_hub(numbered, monkeypatch, tmp_path)
    patients = zip(images["patient_id"], images["split"], strict=True)
    first, *others = (patient for patient, split in patients if split == "train")
    assert set(others) == {"0", "1", "2"} and first not in ("0", "1", "2", "None", "")


def test_a_hub_data_set_with_an_unknown_split_or_without_class_names_is_an_error(hub_data_set):
    odd = datasets.DatasetDict(train=hub_data_set["train"], extra=hub_data_set["test"])
    with pytest.raises(UsageError, match="user/images: .*'extra'") as error:
        rows_of_hub(odd, "user/images")
    assert error.value.code == "unknown-split"
    unlabelled = datasets.DatasetDict(hub_data_set, test=hub_data_set["test"].map(lambda _: {"label": -1}))
    with pytest.raises(UsageError, match="split test, got none in 30 of 30") as error:
        rows_of_hub(unlabelled, "user/images")
    assert error.value.code == "images-without-label"
    numbers = hub_data_set.cast_column("label", datasets.Value("int64"))
    with pytest.raises(UsageError, match="user/images: .*class names") as error:
        rows_of_hub(numbers, "user/images")
    assert error.value.code == "no-image-or-label-column"
