import shutil

import numpy as np
import pytest
from conftest import write_image

from hf_pneumonia.data.listing import rows_of_listing
from hf_pneumonia.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """Four images beside each other and one further down."""
    for name in ("a.png", "b.png", "c.png", "d.png", "deep/below/e.png"):
        write_image(tmp_path / name, 0, np.random.default_rng(0))
    return tmp_path


def _rows(folder, *lines):
    (folder / "LABELS.CSV").write_text("\n".join(lines) + "\n")
    return rows_of_listing(folder / "LABELS.CSV")


def _column(rows, name):
    return [getattr(row, name) for row in rows]


@pytest.mark.parametrize(
    "header",
    ["File_Name,Class", "filename,labels", "Image Index,Finding Labels", "image,diagnosis",
     "X_ray_image_name,Label", "ImageID,Target", "\ufeffpath,label", " path , label ", "path;label",
     "path\tlabel"],
)  # fmt: skip
def test_columns_are_known_by_their_usual_names_and_parted_as_spreadsheets_do(folder, header):
    sign = next(one for one in ",;\t" if one in header)
    rows = _rows(folder, header, f"a.png{sign}NORMAL", sign, f"a.png{sign}NORMAL")
    assert _column(rows, "class_name") == ["NORMAL"]  # empty lines are skipped, and equal ones are one


def test_an_image_may_be_named_absolutely_by_its_bare_name_without_its_ending_or_as_on_windows(folder):
    lines = ("c.png", f"{folder}/a.png", "e.png", "d", r"deep\below\e.png")
    rows = _rows(folder, "path,label,label_2", *(f"{line},NORMAL,x" for line in lines))
    names = ("c.png", "a.png", "deep/below/e.png", "d.png", "deep/below/e.png")
    assert _column(rows, "file") == _column(rows, "image") == [str(folder / name) for name in names]
    assert _column(rows, "class_name") == ["NORMAL"] * 5 and _column(rows, "patient_id") == [None] * 5


def test_patients_and_splits_are_read_where_there_are_such_and_else_from_the_name(folder):
    (folder / "c.png").rename(folder / "person12_virus_3.png")
    lines = ("a.png,NORMAL,007,Training", "b.png,NORMAL,,val", "person12_virus_3.png,viral,,test")
    rows = _rows(folder, "path,label,patient_id,split", *lines)
    assert _column(rows, "patient_id") == ["007", None, "person12_virus"]
    assert _column(rows, "split") == ["train", "validation", "test"]


def test_the_table_of_the_rsna_challenge_is_read_as_it_is(folder):
    """One row for each finding, several of some patients, and files named by the patient."""
    lines = ("a,,,,,0", "b,264.0,152.0,213.0,379.0,1", "b,562.0,152.0,256.0,453.0,1", "e,1,2,3,4,1")
    rows = _rows(folder, "patientId,x,y,width,height,Target", *lines)
    assert _column(rows, "file") == [str(folder / name) for name in ("a.png", "b.png", "deep/below/e.png")]
    assert _column(rows, "class_name") == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]


def test_an_image_that_is_not_there_is_kept_to_be_reported_with_the_unreadable(folder):
    rows = _rows(folder, "path,label", "a.png,NORMAL", "lost.png,NORMAL", f"{'x' * 300}.png,NORMAL")
    assert len(rows) == 3 and rows[1].file == str(folder / "lost.png")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (("path,age", "a.png,4"), "`path` and `label` .*, got path, age"),
        (("path:label", "a.png:NORMAL"), "got path:label"),
        (("path,label",), "an empty file"),
        (("path,label", "a.png,NORMAL", "b.png,"), "line 3: no label"),
        (("path,label", ",NORMAL"), "line 2: no path"),
        (("path,label,split", "a.png,NORMAL,later"), "line 2: split 'later'"),
        (("path,label", "a.png,NORMAL", "a.png,viral"), "line 3: a.png is listed twice"),
        (("path,label", "x.png,NORMAL", "y.png,viral"), "none of its 2 .*x.png"),
        (("path,label", "twin.png,NORMAL"), "twin.png may be .*twin.png or .*twin.png"),
    ],
)  # fmt: skip
def test_a_table_that_is_no_list_of_images_is_an_error_of_one_line(folder, lines, match):
    for below in ("one", "two"):
        (folder / below).mkdir()
        shutil.copy(folder / "a.png", folder / below / "twin.png")
    with pytest.raises(UsageError, match=match) as error:
        _rows(folder, *lines)
    assert "\n" not in str(error.value)
