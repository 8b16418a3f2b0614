"""Miniatures of folders as people have them: which images, classes, patients and splits are read."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import write_film, write_films

from hf_pneumonia.data.folder import films_of_folder
from hf_pneumonia.errors import UsageError

DICOM = bytes(128) + b"DICM" + bytes(64)  # told by its first bytes; nothing is decoded here


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(DICOM)


def read(root: Path) -> dict[str, tuple]:
    """Path below the root -> class, split, patient."""
    return {
        str(Path(row.file).relative_to(root)): (row.class_name, row.split, row.patient_id)
        for row in films_of_folder(root)
    }


def test_a_plain_folder_is_read_as_imagefolder_of_datasets_reads_it(tmp_path):
    for split in ("train", "test"):
        write_films(tmp_path / split, 3, 4)
    rows = films_of_folder(tmp_path)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path))
    for split, table in theirs.items():
        table = table.cast_column("image", datasets.Image(decode=False))
        names = table.features["label"].names
        expected = {(row["image"]["path"], names[row["label"]]) for row in table}
        assert {(row.image, row.class_name) for row in rows if row.split == split} == expected


@pytest.mark.parametrize(
    "companions",
    [
        ["Normal/masks/Normal-1.dcm", "COVID/masks/COVID-1.dcm"],
        ["Normal/lung masks/Normal-1.dcm", "Normal/infection masks/Normal-1.dcm"],
        ["Normal/mask/Normal-1.dcm"],
        ["Normal/images/@eaDir/Normal-1.dcm/thumb.dcm"],
        ["Normal/#recycle/old.dcm", "$RECYCLE.BIN/Normal/x.dcm"],
        ["Normal/GradCAM/Normal-1.dcm", "heatmaps/Normal/Normal-1.dcm"],
        ["Normal/images/Normal-1_mask.dcm", "Normal/images/Normal-1-overlay.dcm"],
        ["Normal/BBox_Annotations/Normal-1.dcm", "Normal/Thumbnails/Normal-1.dcm"],
    ],
)
def test_what_accompanies_images_is_left_out_and_counted(tmp_path, caplog, companions):
    put(tmp_path, "Normal/images/Normal-1.dcm", "COVID/images/COVID-1.dcm", *companions)
    assert {name: row[0] for name, row in read(tmp_path).items()} == {
        "Normal/images/Normal-1.dcm": "Normal",
        "COVID/images/COVID-1.dcm": "COVID",
    }
    said = [message for message in caplog.messages if "left out" in message]
    assert sum(int(message.split("left out ")[1].split()[0]) for message in said) == len(companions)


def test_a_data_set_that_is_called_segmentation_data_is_a_data_set(tmp_path):
    inside = "Lung Segmentation Data/Lung Segmentation Data/Train/Normal"
    put(tmp_path, f"{inside}/images/a.dcm", f"{inside}/lung masks/a.dcm")
    assert read(tmp_path) == {f"{inside}/images/a.dcm": ("Normal", "train", None)}


@pytest.mark.parametrize(
    "folder", ["NORMAL/enhanced", "train/NORMAL/old stuff", "TB", "train/TB", "train/TB/images"]
)
def test_a_folder_of_unknown_meaning_is_asked_about_by_its_name(tmp_path, folder):
    split = "train/" if folder.startswith("train") else ""
    put(tmp_path, f"{split}NORMAL/a.dcm", f"{split}PNEUMONIA/b.dcm", f"{folder}/c.dcm")
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    assert folder.removesuffix("/images") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("chest_xray/train/NORMAL", "chest_xray/test/NORMAL"),
        ("train_images/NORMAL", "test_images/NORMAL"),
        ("Training/NORMAL", "Testing/NORMAL"),
        ("trainData/NORMAL", "testData/NORMAL"),
        ("stage_2_train_images/NORMAL", "stage_2_test_images/NORMAL"),
        ("NORMAL/train", "NORMAL/test"),
        ("pneumonia/train/NORMAL", "pneumonia/test/NORMAL"),
        ("train/images/NORMAL", "test/images/NORMAL"),
        ("a/b/Train/NORMAL/images", "a/b/Test/NORMAL/images"),
        ("test/train/NORMAL", "test/test/NORMAL"),
    ],
)
def test_splits_are_known_wherever_they_are_and_whatever_is_beside_them(tmp_path, train, test):
    for folder, name in ((train, "a"), (test, "b")):
        put(tmp_path, f"{folder}/{name}.dcm", f"{folder.replace('NORMAL', 'PNEUMONIA')}/{name}.dcm")
    put(tmp_path, "notebooks/figure.dcm", "docs/images/logo.dcm")
    rows = read(tmp_path)
    assert {(Path(name).stem, row[1]) for name, row in rows.items()} == {("a", "train"), ("b", "test")}
    assert {row[0] for row in rows.values()} == {"NORMAL", "PNEUMONIA"} and len(rows) == 4


def test_the_copy_inside_kaggles_archive_is_left_out_and_said(tmp_path, caplog):
    for folder in ("chest_xray", "chest_xray/chest_xray", "chest_xray/__MACOSX"):
        put(tmp_path, f"{folder}/train/NORMAL/a.dcm", f"{folder}/test/PNEUMONIA/b.dcm")
    assert set(read(tmp_path)) == {"chest_xray/train/NORMAL/a.dcm", "chest_xray/test/PNEUMONIA/b.dcm"}
    assert "left out 2 images in chest_xray/chest_xray" in caplog.text


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["A/train/NORMAL/a.dcm", "B/NORMAL/b.dcm"], ["A", "B", "--dataset"]),
        (["fold1/NORMAL/a.dcm", "fold2/NORMAL/b.dcm"], ["fold1", "fold2", "train="]),
        (["train/NORMAL/a.dcm", "NORMAL/b.dcm"], ["NORMAL/b.dcm", "train="]),
        (["train/NORMAL/a.dcm", "training/NORMAL/b.dcm"], ["train", "training"]),
        (["train/NORMAL/a.dcm", "test/b.dcm", "test/c.dcm"], ["test", "2 images", "label"]),
        (["a.dcm", "b.dcm"], ["class folders"]),
        (["holiday/a.dcm"], ["holiday", "class folders"]),
        ([], ["class folders"]),
    ],
)
def test_a_layout_that_may_mean_two_things_is_refused_with_what_was_found(tmp_path, files, named):
    put(tmp_path, *files)
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    message = str(error.value)
    assert all(name in message.replace(str(tmp_path), "") for name in named) and "\n" not in message


def test_a_picture_beside_the_data_set_is_left_out_by_its_folder(tmp_path, caplog):
    put(tmp_path, "set/train/NORMAL/a.dcm", "set/train/PNEUMONIA/b.dcm", "stray.dcm", "poster/c.dcm")
    assert len(read(tmp_path)) == 2
    assert "1 images in ., in no class folder" in caplog.text and "1 images in poster" in caplog.text


@pytest.mark.parametrize(
    ("file", "patient"),
    [
        ("NORMAL/patient00003/study1/view1_frontal.dcm", "patient00003"),
        ("NORMAL/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.dcm", "p10000032"),
        ("NORMAL/00000013_005.dcm", "00000013"),
        ("NORMAL/images/00000013_005.dcm", "00000013"),
        ("NORMAL/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm", "0004cfab-14fd-4e49-80ba-63a80b6bddd6"),
        ("NORMAL/sub-S03044/ses-E07/anat/cxr.dcm", "sub-S03044"),
        ("NORMAL/1.2.826.0.1.3680043.8.498/1.2.3.4/1.dcm", "1.2.826.0.1.3680043.8.498"),
        ("NORMAL/patient00003_study1_view1.dcm", "patient00003"),
        ("train/NORMAL/0017/a.dcm", "0017"),
        ("NORMAL/person7_virus_12.dcm", "person7_virus"),
        ("NORMAL/images/a.dcm", None),
        ("NORMAL/study1/view1.dcm", None),
    ],
)
def test_patients_are_read_from_the_path(tmp_path, file, patient):
    put(tmp_path, file)
    assert read(tmp_path)[file][2] == patient


def test_class_folders_may_be_links_and_a_loop_of_links_ends(tmp_path):
    put(tmp_path, "archive/1/a.dcm", "archive/2/b.dcm")
    data = tmp_path / "data"
    data.mkdir()
    (data / "NORMAL").symlink_to(tmp_path / "archive" / "1")
    (data / "PNEUMONIA").symlink_to(tmp_path / "archive" / "2")
    (tmp_path / "archive" / "1" / "around").symlink_to(data)
    assert set(read(data)) == {"NORMAL/a.dcm", "PNEUMONIA/b.dcm"}


def test_an_image_without_an_ending_is_an_image(tmp_path):
    write_film(tmp_path / "NORMAL" / "a.jpg", 0, np.random.default_rng(0))
    (tmp_path / "NORMAL" / "a.jpg").rename(tmp_path / "NORMAL" / "IM1")
    (tmp_path / "NORMAL" / "README").write_text("text")
    put(tmp_path, "PNEUMONIA/b.dcm")
    assert set(read(tmp_path)) == {"NORMAL/IM1", "PNEUMONIA/b.dcm"}
