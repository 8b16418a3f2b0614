import os

import numpy as np
import pytest
from conftest import write_film

from hf_pneumonia.data.listing import films_of_listing
from hf_pneumonia.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """Four films beside each other and one further down."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "deep/below/e.png"):
        write_film(tmp_path / name, 0, rng)
    return tmp_path


def _rows(folder, *lines, name="labels.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return films_of_listing(folder / name)


def _error(folder, *lines, match):
    with pytest.raises(UsageError, match=match) as error:
        _rows(folder, *lines)
    assert "\n" not in str(error.value)


def test_a_file_of_paths_and_labels_gives_its_films_in_its_order(folder):
    rows = _rows(folder, "path,label", "b.png,NORMAL", "a.png,viral", "deep/below/e.png,NORMAL")
    paths = [str(folder / name) for name in ("b.png", "a.png", "deep/below/e.png")]
    assert rows["file"][:] == paths and [image["path"] for image in rows["image"]] == paths
    assert rows["class_name"][:] == ["NORMAL", "viral", "NORMAL"]
    assert rows["patient_id"][:] == [None] * 3 and set(rows["split"]) == {"train"}


@pytest.mark.parametrize(
    "header",
    ["path,label", "File_Name,Class", "filename,labels", "Image Index,Finding Labels", "image,diagnosis",
     "X_ray_image_name,Label", "ImageID,Target", "\ufeffpath,label", " path , label "],
)  # fmt: skip
def test_columns_are_known_by_their_usual_names(folder, header):
    assert _rows(folder, header, "a.png,NORMAL")["class_name"][:] == ["NORMAL"]


def test_of_two_columns_of_nearly_one_name_the_first_counts(folder):
    assert _rows(folder, "path,label,label_2", "a.png,NORMAL,x")["class_name"][:] == ["NORMAL"]


def test_a_film_may_be_named_absolutely_by_its_bare_name_or_without_its_ending(folder):
    rows = _rows(folder, "path,label", f"{folder}/a.png,NORMAL", "e.png,NORMAL", "d,NORMAL")
    assert rows["file"][:] == [str(folder / name) for name in ("a.png", "deep/below/e.png", "d.png")]


def test_patients_and_splits_are_read_where_there_are_such(folder):
    rows = _rows(
        folder,
        "path,label,patient_id,split",
        "a.png,NORMAL,007,Training",
        "b.png,NORMAL,,val",
        "c.png,viral,x,test",
    )
    assert rows["patient_id"][:] == ["007", None, "x"]
    assert rows["split"][:] == ["train", "validation", "test"]


def test_a_patient_is_read_from_the_film_name_where_no_column_tells_it(folder):
    (folder / "a.png").rename(folder / "person12_virus_3.png")
    assert _rows(folder, "path,label", "person12_virus_3.png,viral")["patient_id"][:] == ["person12_virus"]


@pytest.mark.parametrize("numbers", [("0", "1"), ("0.0", "1.0")])
def test_zero_is_normal_and_one_is_pneumonia_and_the_log_says_so(folder, caplog, numbers):
    caplog.set_level("INFO")
    rows = _rows(folder, "path,label", f"a.png,{numbers[0]}", f"b.png,{numbers[1]}")
    assert rows["class_name"][:] == ["NORMAL", "PNEUMONIA"]
    assert "label 0 is read as NORMAL, 1 as PNEUMONIA" in caplog.text


def test_the_table_of_the_rsna_challenge_is_read_as_it_is(folder):
    """One row for each finding, several of some patients, and files named by the patient."""
    rows = _rows(
        folder,
        "patientId,x,y,width,height,Target",
        "a,,,,,0",
        "b,264.0,152.0,213.0,379.0,1",
        "b,562.0,152.0,256.0,453.0,1",
        "e,1,2,3,4,1",
    )
    assert rows["file"][:] == [str(folder / name) for name in ("a.png", "b.png", "deep/below/e.png")]
    assert rows["class_name"][:] == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]


def test_an_ending_in_capitals_is_an_ending(folder):
    assert len(_rows(folder, "path,label", "a.png,NORMAL", name="LABELS.CSV")) == 1


def test_a_film_that_is_not_there_is_kept_to_be_reported_with_the_unreadable(folder):
    rows = _rows(folder, "path,label", "a.png,NORMAL", "lost.png,NORMAL", f"{'x' * 300}.png,NORMAL")
    assert rows["file"][1] == str(folder / "lost.png") and not os.path.exists(rows["file"][1])
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (("path,age", "a.png,4"), "expected columns `path` and `label` .*, got path, age"),
        (("label", "NORMAL"), "expected columns `path` and `label`"),
        (("path:label", "a.png:NORMAL"), "expected columns .*got path:label"),
        (("path,label",), "an empty file"),
        ((), "an empty file"),
        (("path,label", "a.png,NORMAL", "b.png,"), "line 3: no label"),
        (("path,label", ",NORMAL"), "line 2: no path"),
        (("path,label,split", "a.png,NORMAL,later"), "line 2: split 'later', expected train, valid"),
        (("path,label", "a.png,NORMAL", "a.png,viral"), "line 3: a.png stands there twice, and not alike"),
        (("path,label", "x.png,NORMAL", "y.png,viral"), "none of its 2 films is there .*x.png"),
    ],
)  # fmt: skip
def test_a_table_that_is_no_list_of_films_is_an_error_of_one_line(folder, lines, match):
    _error(folder, *lines, match=match)


def test_a_bare_name_that_two_films_have_is_an_error_that_names_both(folder):
    write_film(folder / "other" / "e.png", 0, np.random.default_rng(0))
    _error(folder, "path,label", "e.png,NORMAL", match="e.png may be .*e.png or .*e.png; give the path")


@pytest.mark.parametrize("sign", [";", "\t"])
def test_cells_may_be_parted_as_spreadsheets_do_and_empty_lines_are_none(folder, sign):
    rows = _rows(folder, f"path{sign}label", f"a.png{sign}NORMAL", sign)
    assert rows["class_name"][:] == ["NORMAL"]


def test_a_path_may_be_written_as_windows_does(folder):
    write_film(folder / "sub" / "w.png", 0, np.random.default_rng(0))
    assert _rows(folder, "path,label", r"sub\w.png,NORMAL")["file"][0] == str(folder / "sub" / "w.png")


def test_a_film_that_stands_twice_and_alike_is_one_film(folder):
    assert len(_rows(folder, "path,label", "a.png,NORMAL", "a.png,NORMAL")) == 1
