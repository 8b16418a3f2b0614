"""Small copies of the tables of public data sets: which images, labels, patients and splits are read."""

import gzip
from pathlib import Path

import pytest
from test_layout import DICOM, put

from hf_pneumonia.data.folder import rows_of_folder
from hf_pneumonia.data.labels import label_of
from hf_pneumonia.data.sources import load_sources
from hf_pneumonia.errors import UsageError


def table(file: Path, *lines: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def read(root: Path, **options) -> dict[str, tuple]:
    """Return file name of each image -> label, split, patient."""
    rows = rows_of_folder(root, **options)
    assert all(Path(row.image).read_bytes() == DICOM for row in rows)
    return {Path(row.file).name: (label_of(row.class_name), row.split, row.patient_id) for row in rows}


def test_nih_with_several_findings_in_a_cell_and_splits_in_lists(tmp_path, caplog):
    folder = tmp_path / "nih"
    names = [f"0000001{patient}_00{visit}.png" for patient in (1, 2) for visit in (0, 1)]
    put(folder, *(f"images_001/images/{name}" for name in names))
    findings = ("No Finding,11", "Pneumonia|Infiltration,11", "Mass|Nodule,12", "No Finding,12")
    lines = [f"{name},{found},PA" for name, found in zip(names, findings, strict=True)]
    heads = "Image Index,Finding Labels,Patient ID,View Position"
    table(folder / "Data_Entry_2017.csv", heads, *lines)
    table(folder / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h]", f"{names[0]},Mass,1,1,1")
    (folder / "train_val_list.txt").write_text("\n".join(names[:2]))
    (folder / "test_list.txt").write_text("\n".join(names[2:]))
    caplog.set_level("INFO")
    expected = {names[0]: (0, "train", "11"), names[1]: (1, "train", "11"), names[3]: (0, "test", "12")}
    assert read(folder) == expected
    assert read(tmp_path) == expected  # from the parent folder
    given = load_sources(str(folder / "Data_Entry_2017.csv"), tmp_path / "cache")  # the table itself
    assert given["split"] == ["train", "train", "test"]
    assert "NIH" in caplog.text and "left out 1 images: other findings" in caplog.text


CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumonia,Support Devices"


@pytest.mark.parametrize(("uncertain", "label"), [("drop", None), ("positive", 1), ("negative", None)])
def test_chexpert_with_its_folder_in_paths_blanks_and_uncertain_findings(tmp_path, uncertain, label):
    lines, front = {"train": [], "valid": []}, "CheXpert-v1.0-small"
    for split, patient, view, cells in (
        ("train", 1, "frontal", "1.0,,,1.0"),
        ("train", 2, "frontal", ",1.0,1.0,"),
        ("train", 3, "frontal", ",,-1.0,"),
        ("train", 4, "frontal", ",1.0,0.0,"),
        ("train", 5, "lateral", "1.0,,,"),
        ("valid", 6, "frontal", "1.0,0.0,0.0,0.0"),
    ):
        path = f"{split}/patient0000{patient}/study1/view1_{view}.jpg"
        put(tmp_path / front, path)
        lines[split].append(f"{front}/{path},Male,1,{view.title()},AP,{cells}")
    for split, rows in lines.items():
        table(tmp_path / front / f"{split}.csv", CHEXPERT, *rows)
    rows = rows_of_folder(tmp_path / front, uncertain=uncertain)
    found = {row.patient_id: (label_of(row.class_name), row.split) for row in rows}
    expected = {"patient00001": (0, "train"), "patient00002": (1, "train"), "patient00006": (0, "validation")}
    assert found == expected | ({} if label is None else {"patient00003": (label, "train")})


def test_mimic_joins_labels_of_studies_to_views_and_splits_of_images(tmp_path):
    put(tmp_path, "files/p10/p10000032/s50414267/a1.jpg")
    put(tmp_path, *(f"files/p10/p10000045/s50414268/{name}.jpg" for name in ("b1", "b2")))
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", "wt") as file:
        file.write(
            "subject_id,study_id,No Finding,Pneumonia\n10000032,50414267,1.0,\n10000045,50414268,,1.0\n"
        )
    first, study = "a1,10000032,50414267", "10000045,50414268"
    views = (f"{first},PA", f"b1,{study},AP", f"b2,{study},LATERAL")
    splits = (f"{first},train", f"b1,{study},validate", f"b2,{study},validate")
    for name, column, lines in (("metadata", "ViewPosition", views), ("split", "split", splits)):
        file = tmp_path / f"mimic-cxr-2.0.0-{name}.csv"
        table(file, f"dicom_id,subject_id,study_id,{column}", *lines)
    assert read(tmp_path) == {"a1.jpg": (0, "train", "10000032"), "b1.jpg": (1, "validation", "10000045")}


# Data set -> its images, its tables, and label, split and patient of each image (as far as given).
DATA_SETS = {
    "PadChest, lists of findings": (
        ("0/a.png", "0/b.png", "0/c.png"),
        {"PADCHEST_labels.csv": (
            "ImageID,PatientID,Projection,Labels", "a.png,7,PA,['normal']",
            "b.png,8,PA,\"['pneumonia', 'pleural effusion']\"", "c.png,8,L,['normal']")},
        {"a.png": (0, None, "7"), "b.png": (1, None, "8")}),
    "VinDr, the majority of readers": (
        ("train/a.dicom", "train/b.dicom", "train/c.dicom"),
        {"annotations/image_labels_train.csv": (
            "image_id,rad_id,Pneumonia,No finding", "a,R0,0,1", "a,R1,0,1", "a,R2,1,0",
            "b,R0,1,0", "b,R1,1,0", "b,R2,0,1", "c,R0,1,0", "c,R1,0,1")},
        {"a.dicom": (0,), "b.dicom": (1,)}),
    "CoronaHack, its spelling and its column of splits": (
        ("images/train/a.jpeg", "images/train/b.jpeg", "images/test/c.jpeg"),
        {"Chest_xray_Corona_Metadata.csv": (
            ",X_ray_image_name,Label,Dataset_type,Label_2",
            "0,a.jpeg,Normal,TRAIN,", "1,b.jpeg,Pnemonia,TRAIN,", "2,c.jpeg,Pnemonia,TEST,"),
         "Chest_xray_Corona_dataset_Summary.csv": (",Label,Image_Count", "0,Normal,1342")},
        {"a.jpeg": (0, "train"), "b.jpeg": (1, "train"), "c.jpeg": (1, "test")}),
    "Roboflow, a table in each split": (
        ("train/a.jpg", "valid/b.jpg", "test/c.jpg"),
        {"train/_classes.csv": ("filename, NORMAL, PNEUMONIA", "a.jpg, 1, 0"),
         "valid/_classes.csv": ("filename, NORMAL, PNEUMONIA", "b.jpg, 0, 1"),
         "test/_classes.csv": ("filename, NORMAL, PNEUMONIA", "c.jpg, 0, 1")},
        {"a.jpg": (0, "train"), "b.jpg": (1, "validation"), "c.jpg": (1, "test")}),
    "ieee8023, findings with their kinds, without CT": (
        ("images/a.png", "images/b.png", "images/c.png", "images/d.png", "images/e.png"),
        {"metadata.csv": (
            "patientid,finding,view,modality,folder,filename", "1,No Finding,PA,X-ray,images,a.png",
            "2,Pneumonia/Bacterial/Streptococcus,PA,X-ray,images,b.png",
            "3,Tuberculosis,PA,X-ray,images,c.png", "4,Pneumonia,Axial,CT,volumes,d.png",
            "5,Pneumonia/Viral,L,X-ray,images,e.png")},
        {"a.png": (0, None, "1"), "b.png": (1, None, "2")}),
    "COVIDx, lists without a header": (
        ("train/a.png", "train/b.png", "test/c.png"),
        {"train_COVIDx9A.txt": ("1 a.png normal rsna", "2 b.png pneumonia rsna"),
         "test_COVIDx9A.txt": ("3 c.png normal rsna",)},
        {"a.png": (0, "train", "1"), "b.png": (1, "train", "2"), "c.png": (0, "test", "3")}),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_tables_of_public_data_sets_are_read_unchanged(tmp_path, name):
    images, tables, expected = DATA_SETS[name]
    put(tmp_path, *images)
    for file, lines in tables.items():
        table(tmp_path / file, *lines)
    found = read(tmp_path)
    assert {image: row[: len(expected.get(image, row))] for image, row in found.items()} == expected


@pytest.mark.parametrize(
    ("head", "no", "yes", "encoding"),
    [
        ("pneumonia", "False", "True", "utf-8-sig"),
        ("pneumonia", "negative", "positive", "utf-16"),
        ("label", "0", "1", "latin-1"),
        ("label", "0.0", "1.0", "utf-8"),
        ("pneumonia", "no", "yes", "utf-8"),
    ],
)
def test_yes_and_no_are_labels_in_the_encodings_of_spreadsheets(tmp_path, head, no, yes, encoding):
    put(tmp_path, "a.png", "b.png")
    lines = (f"path,{head},rédigé", f"a.png,{no},à", f"b.png,{yes},é")
    table(tmp_path / "labels.csv", *lines, encoding=encoding)
    assert {name: row[0] for name, row in read(tmp_path).items()} == {"a.png": 0, "b.png": 1}


def test_a_damaged_compressed_table_is_an_error(tmp_path):
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(b"path,label")[:10] + b"\xff" * 20)
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    assert error.value.code == "unreadable-table"


def test_a_table_beside_class_folders_gives_patients_or_is_reported_as_not_used(tmp_path, caplog):
    put(tmp_path, "NORMAL/a.png", "PNEUMONIA/b.png")
    table(tmp_path / "patients.csv", "image,patient_id,age", "a.png,0012,3", "b.png,0012,3")
    table(tmp_path / "notes.csv", "image,weather", "a.png,rain")
    assert {row[2] for row in read(tmp_path).values()} == {"0012"}
    assert "notes.csv: not used" in caplog.text


def test_a_table_of_other_findings_only_and_two_tables_with_labels_are_errors(tmp_path):
    put(tmp_path, "a.png")
    table(tmp_path / "d.csv", "Image Index,Finding Labels,Patient ID", "a.png,Mass,1")
    with pytest.raises(UsageError) as error:
        load_sources(str(tmp_path), tmp_path / "cache")
    assert error.value.code == "no-labelled-images"
    for name in ("labels.csv", "d.csv"):
        table(tmp_path / name, "path,label", "a.png,NORMAL")
    with pytest.raises(UsageError, match="d.csv, labels.csv") as error:
        read(tmp_path)
    assert error.value.code == "several-tables"
