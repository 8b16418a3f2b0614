import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_film, write_films

from hf_pneumonia.data.folder import films_of_folder
from hf_pneumonia.errors import UsageError

DICOM = (
    bytes(128) + b"DICM" + bytes(64)
)  # listed by its first bytes; whether it can be read is not asked here


def _write(path, content=DICOM):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _found(folder, root=None) -> dict[str, str]:
    """Path below the folder -> class."""
    rows = films_of_folder(root or folder)
    return {
        os.path.relpath(file, folder): name
        for file, name in zip(rows["file"], rows["class_name"], strict=True)
    }


def test_dicom_files_are_listed_with_the_images_whatever_their_ending(tmp_path):
    for name in ("a.dcm", "b.DCM", "c.dicom", "d", "1.2.840.10008.1", "deeper/e.dcm"):
        _write(tmp_path / "NORMAL" / name)
    write_film(tmp_path / "NORMAL" / "f.png", 0, np.random.default_rng(0))
    _write(tmp_path / "PNEUMONIA" / "g.dcm")
    assert _found(tmp_path) == {
        **{f"NORMAL/{name}": "NORMAL" for name in ("a.dcm", "b.DCM", "c.dicom", "d", "1.2.840.10008.1")},
        "NORMAL/deeper/e.dcm": "NORMAL",
        "NORMAL/f.png": "NORMAL",
        "PNEUMONIA/g.dcm": "PNEUMONIA",
    }


def test_what_is_neither_an_image_nor_dicom_is_passed_over(tmp_path):
    _write(tmp_path / "NORMAL" / "a.dcm")
    for name in ("DICOMDIR.txt", "README", "empty", ".hidden", "v1.2"):
        _write(tmp_path / "NORMAL" / name, b"" if name == "empty" else b"text")
    _write(tmp_path / ".cache" / "b.dcm")
    _write(tmp_path / "__MACOSX" / "NORMAL" / "._a.dcm")
    (tmp_path / "NORMAL" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "NORMAL" / "pipe")
    assert _found(tmp_path) == {"NORMAL/a.dcm": "NORMAL"}


def test_linked_dicom_files_are_listed_where_the_link_stands(tmp_path):
    _write(tmp_path / "archive" / "a.dcm")
    (tmp_path / "films" / "viral").mkdir(parents=True)
    (tmp_path / "films" / "viral" / "b.dcm").symlink_to(tmp_path / "archive" / "a.dcm")
    (tmp_path / "films" / "viral" / "again").symlink_to(tmp_path / "films")
    assert _found(tmp_path / "films") == {"viral/b.dcm": "viral"}


def test_split_folders_of_dicom_files_are_splits(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            _write(tmp_path / split / name / f"{split}.dcm")
    rows = films_of_folder(tmp_path)
    assert rows["split"][:] == ["train", "train", "validation", "validation", "test", "test"]
    assert len(set(rows["place"])) == 6


def test_a_patient_of_a_metadata_file_holds_for_dicom_files_too(tmp_path):
    _write(tmp_path / "NORMAL" / "a.dcm")
    (tmp_path / "metadata.csv").write_text("file_name,patient_id\nNORMAL/a.dcm,0042\n")
    assert films_of_folder(tmp_path)["patient_id"][:] == ["0042"]


@pytest.mark.parametrize("wrapper", ["", "archive", "archive/inner"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_a_folder_of_dicom_files_with_one_csv_file_is_read_by_it(tmp_path, wrapper, below):
    root = tmp_path / wrapper
    for name in "ab":
        _write(root / below / f"{name}.dcm")
    (root / "stage_2_train_labels.csv").write_text("patientId,x,Target\na,,0\nb,1,1\nb,2,1\n")
    assert _found(root, tmp_path) == {f"{below}a.dcm": "NORMAL", f"{below}b.dcm": "PNEUMONIA"}


def test_a_csv_file_is_read_in_a_folder_that_is_called_like_a_class(tmp_path):
    root = tmp_path / "pneumonia"
    for name in "ab":
        _write(root / f"{name}.dcm")
    (root / "labels.csv").write_text("path,label\na.dcm,NORMAL\nb.dcm,PNEUMONIA\n")
    assert _found(root) == {"a.dcm": "NORMAL", "b.dcm": "PNEUMONIA"}


def test_class_folders_say_more_than_a_csv_file_beside_them(tmp_path):
    write_films(tmp_path, 2, 2)
    (tmp_path / "notes.csv").write_text("film,weather\n1,rain\n")
    assert sorted(_found(tmp_path).values()) == ["NORMAL"] * 2 + ["PNEUMONIA"] * 2


def test_several_csv_files_are_an_error_that_names_them(tmp_path):
    _write(tmp_path / "a.dcm")
    for name in ("labels.csv", "classes.csv"):
        (tmp_path / name).write_text("path,label\na.dcm,NORMAL\n")
    with pytest.raises(UsageError, match=r"several CSV files \(classes.csv, labels.csv\)"):
        films_of_folder(tmp_path)


def test_folders_inside_a_covid_folder_belong_to_it(tmp_path):
    _write(tmp_path / "NORMAL" / "a.dcm")
    _write(tmp_path / "COVID19" / "Cohen" / "b.dcm")
    assert _found(tmp_path)["COVID19/Cohen/b.dcm"] == "COVID19"


def test_two_folders_for_one_split_are_an_error(tmp_path):
    for name in ("val", "validation"):
        _write(tmp_path / name / "NORMAL" / "a.dcm")
    with pytest.raises(UsageError, match="holds both val and validation: keep one"):
        films_of_folder(tmp_path)


def test_a_name_with_a_dollar_sign_is_a_name_and_no_variable_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    write_films(tmp_path / "films", 2, 2)
    for name in ("a$HF_TOKEN.png", "$HOME.jpeg", "c$.png"):
        write_film(tmp_path / "films" / "NORMAL" / name, 0, np.random.default_rng(0))
    films = films_of_folder(tmp_path / "films")
    names = [Path(image["path"]).name for image in films["image"]]
    assert {"a$HF_TOKEN.png", "$HOME.jpeg", "c$.png"} < set(names) and len(names) == 7
    assert [Path(file).name for file in films["file"]] == names


def test_films_with_dollar_signs_stand_in_the_order_of_films_without(tmp_path):
    for folder, sign in (("a", "x"), ("b", "$")):
        for name in ("z.png", "b.jpeg", "a.png", "c.jpeg"):
            write_film(tmp_path / folder / "NORMAL" / f"{sign}{name}", 0, np.random.default_rng(0))
    plain, signed = (films_of_folder(tmp_path / folder)["image"] for folder in "ab")
    assert [Path(one["path"]).name[1:] for one in signed] == [Path(one["path"]).name[1:] for one in plain]
