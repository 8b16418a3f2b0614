import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import write_image, write_images
from test_layout import put

from hf_pneumonia.data.folder import rows_of_folder


def _found(folder, root=None) -> dict[str, str]:
    """Return relative path -> class."""
    return {os.path.relpath(row.file, folder): row.class_name for row in rows_of_folder(root or folder)}


def test_images_are_listed_as_imagefolder_lists_them(image_folder, tmp_path):
    for name in ("b.PNG", "a.png", "c.jpeg", "images/a.png", "images/z.jpg"):
        write_image(tmp_path / "NORMAL" / name, 0, np.random.default_rng(0))
    for folder, split in ((image_folder / "train", "train"), (tmp_path, "train")):
        listed = datasets.load_dataset("imagefolder", data_dir=str(folder), drop_labels=True)[split]
        listed = listed.cast_column("image", datasets.Image(decode=False))["image"]
        assert {row.image for row in rows_of_folder(folder)} == {image["path"] for image in listed}
    order = [Path(row.image).name for row in rows_of_folder(tmp_path)]
    assert order == ["b.PNG", "c.jpeg", "z.jpg", "a.png", "a.png"]  # by extension, then by path


def test_dicom_files_are_listed_with_any_extension_or_none(tmp_path):
    names = ("a.dcm", "b.DCM", "c.dicom", "d", "1.2.840.10008.1", "2019/e.dcm", "f.png", "IM1")
    put(tmp_path, *(f"NORMAL/{name}" for name in names[:-2]), "PNEUMONIA/g.dcm")
    write_image(tmp_path / "NORMAL" / "f.png", 0, np.random.default_rng(0))
    shutil.copy(tmp_path / "NORMAL" / "f.png", tmp_path / "NORMAL" / "IM1")
    expected = {f"NORMAL/{name}": "NORMAL" for name in names} | {"PNEUMONIA/g.dcm": "PNEUMONIA"}
    for name in ("DICOMDIR.txt", "README", "empty", ".hidden", "v1.2"):  # skipped
        (tmp_path / "NORMAL" / name).write_text("" if name == "empty" else "text")
    put(tmp_path, ".cache/b.dcm", "__MACOSX/NORMAL/._a.dcm")
    (tmp_path / "NORMAL" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "NORMAL" / "pipe")
    assert _found(tmp_path) == expected


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path):
    put(tmp_path, "archive/a.dcm")
    write_image(tmp_path / "archive" / "c.png", 1, np.random.default_rng(0))
    (tmp_path / "images" / "viral").mkdir(parents=True)
    (tmp_path / "images" / "viral" / "b.dcm").symlink_to(tmp_path / "archive" / "a.dcm")
    (tmp_path / "images" / "viral" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "healthy").symlink_to(tmp_path / "archive")
    assert _found(tmp_path / "images") == {
        "viral/b.dcm": "viral", "healthy/a.dcm": "healthy", "healthy/c.png": "healthy",
    }  # fmt: skip


def test_metadata_describes_linked_images_and_those_in_linked_folders(tmp_path):
    put(tmp_path, "blobs/a.dcm", "elsewhere/viral/b.dcm")
    (tmp_path / "images" / "NORMAL").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm"):  # equal files, as in a snapshot of the Hub
        (tmp_path / "images" / "NORMAL" / name).symlink_to(tmp_path / "blobs" / "a.dcm")
    (tmp_path / "images" / "PNEUMONIA").symlink_to(tmp_path / "elsewhere")
    lines = "file_name,patient_id\nNORMAL/1.dcm,7\nNORMAL/2.dcm,8\n"
    (tmp_path / "images" / "metadata.csv").write_text(lines)
    (tmp_path / "elsewhere" / "metadata.csv").write_text("file_name,patient_id\nviral/b.dcm,9\n")
    assert [row.patient_id for row in rows_of_folder(tmp_path / "images")] == ["7", "8", "9"]


def test_file_names_that_sound_like_a_split_are_not_splits(tmp_path):
    write_images(tmp_path, 3, 3)
    write_image(tmp_path / "NORMAL" / "test_1.png", 0, np.random.default_rng(0))
    (tmp_path / "notes.csv").write_text("image,weather\n1,rain\n")  # not a table of labels
    rows = rows_of_folder(tmp_path)
    assert len(rows) == 7 and {row.split for row in rows} == {None}


@pytest.mark.parametrize(
    ("given", "wrapper", "below"), [("pneumonia", "", ""), ("x", "archive/inner", ""), ("x", "", "images/")]
)
def test_a_folder_of_dicom_files_is_read_by_its_csv_file(tmp_path, given, wrapper, below):
    root = tmp_path / given / wrapper
    put(root, f"{below}a.dcm", f"{below}b.dcm")
    (root / "stage_2_train_labels.csv").write_text("patientId,x,Target\na,,0\nb,1,1\nb,2,1\n")
    assert _found(root, tmp_path / given) == {f"{below}a.dcm": "NORMAL", f"{below}b.dcm": "PNEUMONIA"}


def test_glob_characters_and_dollar_signs_in_names_are_literal(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = tmp_path / "images [1] *"
    names = {"a$HF_TOKEN.png", "$HOME.jpeg", "?.png"}
    for name in names:
        write_image(folder / "NORMAL" / name, 0, np.random.default_rng(0))
    assert {Path(row.image).name for row in rows_of_folder(folder)} == names
