import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import write_film, write_films

from hf_pneumonia.data.folder import films_of_folder

DICOM = bytes(128) + b"DICM" + bytes(64)  # listed by its first bytes; it is not decoded here


def _write(path, content=DICOM):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _found(folder, root=None) -> dict[str, str]:
    """Path below the folder -> class."""
    return {os.path.relpath(row.file, folder): row.class_name for row in films_of_folder(root or folder)}


def test_images_are_listed_as_imagefolder_lists_them(film_folder, tmp_path):
    for name in ("b.PNG", "a.png", "c.jpeg", "images/a.png", "images/z.jpg"):
        write_film(tmp_path / "NORMAL" / name, 0, np.random.default_rng(0))
    for folder, split in ((film_folder / "train", "train"), (tmp_path, "train")):
        listed = datasets.load_dataset("imagefolder", data_dir=str(folder), drop_labels=True)[split]
        listed = listed.cast_column("image", datasets.Image(decode=False))["image"]
        assert {row.image for row in films_of_folder(folder)} == {image["path"] for image in listed}
    order = [Path(row.image).name for row in films_of_folder(tmp_path)]
    assert order == ["b.PNG", "c.jpeg", "z.jpg", "a.png", "a.png"]  # by ending, and then by path


def test_dicom_files_are_listed_with_the_images_whatever_their_ending(tmp_path):
    names = ("a.dcm", "b.DCM", "c.dicom", "d", "1.2.840.10008.1", "2019/e.dcm")
    for name in names:
        _write(tmp_path / "NORMAL" / name)
    write_film(tmp_path / "NORMAL" / "f.png", 0, np.random.default_rng(0))
    _write(tmp_path / "PNEUMONIA" / "g.dcm")
    expected = {f"NORMAL/{name}": "NORMAL" for name in (*names, "f.png")}
    assert _found(tmp_path) == {**expected, "PNEUMONIA/g.dcm": "PNEUMONIA"}


def test_what_is_neither_an_image_nor_dicom_is_skipped(tmp_path):
    _write(tmp_path / "NORMAL" / "a.dcm")
    for name in ("DICOMDIR.txt", "README", "empty", ".hidden", "v1.2"):
        _write(tmp_path / "NORMAL" / name, b"" if name == "empty" else b"text")
    _write(tmp_path / ".cache" / "b.dcm")
    _write(tmp_path / "__MACOSX" / "NORMAL" / "._a.dcm")
    (tmp_path / "NORMAL" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "NORMAL" / "pipe")
    assert _found(tmp_path) == {"NORMAL/a.dcm": "NORMAL"}


def test_linked_files_and_folders_are_listed_where_the_link_is_and_a_loop_ends(tmp_path):
    _write(tmp_path / "archive" / "a.dcm")
    write_film(tmp_path / "archive" / "c.png", 1, np.random.default_rng(0))
    (tmp_path / "films" / "viral").mkdir(parents=True)
    (tmp_path / "films" / "viral" / "b.dcm").symlink_to(tmp_path / "archive" / "a.dcm")
    (tmp_path / "films" / "viral" / "again").symlink_to(tmp_path / "films")
    (tmp_path / "films" / "healthy").symlink_to(tmp_path / "archive")
    assert _found(tmp_path / "films") == {
        "viral/b.dcm": "viral", "healthy/a.dcm": "healthy", "healthy/c.png": "healthy",
    }  # fmt: skip


def test_file_names_that_sound_like_a_split_do_not_make_one(tmp_path):
    write_films(tmp_path, 3, 3)
    write_film(tmp_path / "NORMAL" / "test_1.png", 0, np.random.default_rng(0))
    rows = films_of_folder(tmp_path)
    assert len(rows) == 7 and {row.split for row in rows} == {None}


def test_a_patient_of_a_metadata_file_holds_for_dicom_files_too(tmp_path):
    _write(tmp_path / "NORMAL" / "a.dcm")
    (tmp_path / "metadata.csv").write_text("file_name,patient_id\nNORMAL/a.dcm,0042\n")
    assert [row.patient_id for row in films_of_folder(tmp_path)] == ["0042"]


@pytest.mark.parametrize("wrapper", ["", "archive/inner"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_a_folder_of_dicom_files_with_one_csv_file_is_read_by_it(tmp_path, wrapper, below):
    root = tmp_path / wrapper
    for name in "ab":
        _write(root / below / f"{name}.dcm")
    (root / "stage_2_train_labels.csv").write_text("patientId,x,Target\na,,0\nb,1,1\nb,2,1\n")
    assert _found(root, tmp_path) == {f"{below}a.dcm": "NORMAL", f"{below}b.dcm": "PNEUMONIA"}


def test_a_csv_file_is_read_in_a_folder_that_is_called_like_a_class_and_not_beside_class_folders(tmp_path):
    for name in "ab":
        _write(tmp_path / "pneumonia" / f"{name}.dcm")
    (tmp_path / "pneumonia" / "labels.csv").write_text("path,label\na.dcm,NORMAL\nb.dcm,PNEUMONIA\n")
    assert _found(tmp_path / "pneumonia") == {"a.dcm": "NORMAL", "b.dcm": "PNEUMONIA"}
    write_films(tmp_path / "classes", 2, 2)
    (tmp_path / "classes" / "notes.csv").write_text("film,weather\n1,rain\n")
    assert sorted(_found(tmp_path / "classes").values()) == ["NORMAL"] * 2 + ["PNEUMONIA"] * 2


def test_names_with_glob_signs_and_dollar_signs_are_taken_literally(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = tmp_path / "films [1] *"
    names = {"a$HF_TOKEN.png", "$HOME.jpeg", "?.png"}
    for name in names:
        write_film(folder / "NORMAL" / name, 0, np.random.default_rng(0))
    assert {Path(row.image).name for row in films_of_folder(folder)} == names
