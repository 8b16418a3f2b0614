"""Folder layouts found in practice: which images, classes, patients and splits are read."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from hf_pneumonia.data.folder import rows_of_folder
from hf_pneumonia.data.sources import load_sources
from hf_pneumonia.errors import UsageError

DICOM = bytes(128) + b"DICM" + bytes(64)  # recognised by its first bytes; not decoded here


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(DICOM)


def read(root: Path) -> dict[str, tuple]:
    """Return relative path -> class, split, patient."""
    return {
        str(Path(row.file).relative_to(root)): (row.class_name, row.split, row.patient_id)
        for row in rows_of_folder(root)
    }


@pytest.mark.parametrize(
    "companions",
    [
        ["Normal/lung masks/Normal-1.dcm", "COVID/mask/COVID-1.dcm"],
        ["Normal/images/@eaDir/Normal-1.dcm/thumb.dcm"],
        ["Normal/#recycle/old.dcm", "$RECYCLE.BIN/Normal/x.dcm"],
        ["Normal/GradCAM/Normal-1.dcm", "heatmaps/Normal/Normal-1.dcm"],
        ["Normal/images/Normal-1_mask.dcm", "Normal/images/Normal-1-overlay.dcm"],
        ["Normal/BBox_Annotations/Normal-1.dcm", "Normal/Thumbnails/Normal-1.dcm"],
        ["Normal/lateral/Normal-1.dcm", "Normal/images/view2_lateral.dcm"],
    ],
)
def test_masks_and_other_companions_are_left_out_and_counted(tmp_path, caplog, companions):
    data = tmp_path / "Lung Segmentation Data"  # not a folder of masks
    put(data, "Normal/images/Normal-1.dcm", "COVID/images/COVID-1.dcm", *companions)
    assert {name.split("/", 1)[1]: row[0] for name, row in read(tmp_path).items()} == {
        "Normal/images/Normal-1.dcm": "Normal",
        "COVID/images/COVID-1.dcm": "COVID",
    }
    counts = [message.split("left out ")[1] for message in caplog.messages if "left out" in message]
    assert sum(int(count.split()[0]) for count in counts) == len(companions)


def test_non_covid_is_pneumonia_in_covid_qu_ex_and_an_error_elsewhere(tmp_path, caplog):
    for name in ("COVID-19", "Non-COVID", "Normal"):
        put(tmp_path, f"Train/{name}/images/{name}.dcm", f"Train/{name}/lung masks/{name}.dcm")
    caplog.set_level("INFO")
    assert {row[0] for row in read(tmp_path).values()} == {"COVID-19", "PNEUMONIA", "Normal"}
    assert "COVID-QU-Ex" in caplog.text
    put(tmp_path / "other", "COVID-19/images/a.dcm", "Non-COVID/images/b.dcm")
    with pytest.raises(UsageError, match="'Non-COVID'") as error:
        read(tmp_path / "other")
    assert error.value.code == "unknown-folder"


@pytest.mark.parametrize(
    "folder", ["NORMAL/enhanced", "train/NORMAL/old stuff", "TB", "train/TB", "train/TB/images"]
)
def test_an_unknown_folder_is_an_error_that_names_it(tmp_path, folder):
    split = "train/" if folder.startswith("train") else ""
    put(tmp_path, f"{split}NORMAL/a.dcm", f"{split}PNEUMONIA/b.dcm", f"{folder}/c.dcm")
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    assert error.value.code == "unknown-folder" and folder.removesuffix("/images") in str(error.value)


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
def test_splits_are_found_at_any_depth_and_beside_other_folders(tmp_path, caplog, train, test):
    for folder, name in ((train, "a"), (test, "b")):
        put(tmp_path, f"{folder}/{name}.dcm", f"{folder.replace('NORMAL', 'PNEUMONIA')}/{name}.dcm")
    put(tmp_path, "notebooks/figure.dcm", "docs/images/logo.dcm")
    rows = read(tmp_path)
    assert {(Path(name).stem, row[1]) for name, row in rows.items()} == {("a", "train"), ("b", "test")}
    assert {row[0] for row in rows.values()} == {"NORMAL", "PNEUMONIA"} and len(rows) == 4
    assert "1 images in notebooks" in caplog.text and "1 images in docs/images" in caplog.text


@pytest.mark.parametrize(
    ("files", "logged"),
    [
        (
            ["COVID/images/a.png", "Lung_Opacity/b.png", "Normal/c.png", "Viral Pneumonia/d.png"],
            "COVID-19 Radi",
        ),
        (["train/NORMAL/a.png", "train/PNEUMONIA/person1_virus_6.png", "test/NORMAL/b.png"], "Kermany"),
        (["healthy/a.png", "viral/b.png"], "class folders healthy, viral"),
        (["test/NORMAL/a.png", "train/NORMAL/b.png", "train/PNEUMONIA/c.png"], "in splits train, test"),
    ],
)
def test_the_recognised_layout_is_logged(tmp_path, caplog, files, logged):
    put(tmp_path, *files)
    caplog.set_level("INFO")
    read(tmp_path)
    assert logged in caplog.text


def test_the_copy_inside_kaggles_archive_is_left_out_with_a_warning(tmp_path, caplog):
    for folder in ("chest_xray", "chest_xray/chest_xray", "chest_xray/__MACOSX"):
        put(tmp_path, f"{folder}/train/NORMAL/a.dcm", f"{folder}/test/PNEUMONIA/b.dcm")
    assert set(read(tmp_path)) == {"chest_xray/train/NORMAL/a.dcm", "chest_xray/test/PNEUMONIA/b.dcm"}
    assert "left out 2 images in chest_xray/chest_xray" in caplog.text


@pytest.mark.parametrize(
    ("files", "code", "named"),
    [
        (["A/train/NORMAL/a.dcm", "B/NORMAL/b.dcm"], "several-data-sets", ["A", "B", "--dataset"]),
        (["fold1/NORMAL/a.dcm", "fold2/NORMAL/b.dcm"], "several-data-sets", ["fold1", "fold2", "train="]),
        (["train/NORMAL/a.dcm", "NORMAL/b.dcm"], "ambiguous-splits", ["NORMAL/b.dcm", "train="]),
        (["train/NORMAL/a.dcm", "training/NORMAL/b.dcm"], "ambiguous-splits", ["train", "training"]),
        (["train/NORMAL/a.dcm", "test/b.dcm", "test/c.dcm"], "split-without-classes", ["test", "2 images"]),
        (["holiday/a.dcm"], "no-class-folders", ["holiday"]),
        ([], "no-class-folders", []),
    ],
)
def test_an_ambiguous_layout_is_an_error_that_lists_what_was_found(tmp_path, files, code, named):
    put(tmp_path, *files)
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    message = str(error.value)
    assert error.value.code == code
    assert all(name in message.replace(str(tmp_path), "") for name in named) and "\n" not in message


def test_outer_folders_of_patients_or_parts_are_one_data_set(tmp_path):
    put(tmp_path, "0017/NORMAL/a.dcm", "0018/PNEUMONIA/b.dcm", "part/images_001/NORMAL/c.dcm")
    with pytest.raises(UsageError, match="part") as error:
        read(tmp_path)
    assert error.value.code == "several-data-sets"
    put(tmp_path / "parts", "images_001/NORMAL/a.dcm", "images_002/PNEUMONIA/b.dcm")
    assert len(read(tmp_path / "parts")) == 2


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
        ("0017/NORMAL/a.dcm", "0017"),
        ("images_001/NORMAL/a.dcm", None),
        ("NORMAL/2019/a.dcm", None),
        ("NORMAL/person7_virus_12.dcm", "person7_virus"),
        ("NORMAL/images/a.dcm", None),
        ("NORMAL/study1/view1.dcm", None),
    ],
)
def test_patients_are_read_from_the_path(tmp_path, file, patient):
    put(tmp_path, file)
    assert read(tmp_path)[file][2] == patient


def sources(*names: object, tmp_path: Path) -> dict[str, str]:
    """Load sources together; return stem of each image -> split."""
    table = load_sources([str(name) for name in names], tmp_path / "cache")
    return {Path(file).stem: split for file, split in zip(table["file"], table["split"], strict=True)}


@pytest.mark.parametrize(
    ("first", "second", "split"),
    [
        ("train", "test", "test"),
        ("kermany", "test_images", "test"),
        ("train={}/one", "val={}/two", "validation"),
    ],
)
def test_the_name_of_a_source_or_the_flag_gives_its_split(tmp_path, first, second, split):
    names = [name if "=" in name else f"{{}}/{name}" for name in (first, second)]
    for name, images in zip(names, ("ab", "cd"), strict=True):
        put(tmp_path / name.split("/")[1], f"NORMAL/{images[0]}.dcm", f"PNEUMONIA/{images[1]}.dcm")
    names = [name.format(tmp_path) for name in names]
    assert sources(*names, tmp_path=tmp_path) == {"a": "train", "b": "train", "c": split, "d": split}
    assert set(sources(names[0], tmp_path=tmp_path).values()) == {"train"}


def test_a_source_with_splits_can_not_be_one_split(tmp_path):
    put(tmp_path, "set/train/NORMAL/a.dcm", "set/test/PNEUMONIA/b.dcm")
    with pytest.raises(UsageError, match="test=.*set.*test, train") as error:
        sources(f"test={tmp_path / 'set'}", tmp_path=tmp_path)
    assert error.value.code == "source-has-splits"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_a_tar_file_is_read_as_the_folder_in_it(tmp_path, ending):
    put(tmp_path / "one", "NORMAL/a.dcm", "PNEUMONIA/b.dcm")
    with tarfile.open(tmp_path / f"packed{ending}", "w:gz" if ending.endswith("gz") else "w") as archive:
        archive.add(tmp_path / "one", "one")
    assert set(sources(tmp_path / f"packed{ending}", tmp_path=tmp_path)) == {"a", "b"}


def test_a_tar_file_with_a_path_outside_its_folder_is_rejected(tmp_path):
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.dcm"))
    with pytest.raises(UsageError, match="packed.tar") as error:
        sources(tmp_path / "packed.tar", tmp_path=tmp_path)
    assert error.value.code == "archive-unpack"
    assert not list(tmp_path.rglob("outside.dcm"))


def test_a_zip_file_may_have_windows_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for name in (r"set\train\NORMAL\a.dcm", r"set\test\PNEUMONIA\b.dcm"):
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # the constructor would replace the backslashes
            archive.writestr(entry, DICOM)
    assert sources(tmp_path / "packed.zip", tmp_path=tmp_path) == {"a": "train", "b": "test"}


def test_a_folder_of_masks_alone_is_refused_and_the_masks_are_named(tmp_path):
    put(tmp_path, "train/NORMAL/a_mask.dcm", "train/PNEUMONIA/b_mask.dcm")
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    assert error.value.code == "no-class-folders" and "2 images in *_mask.dcm" in str(error.value)
