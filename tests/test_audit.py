"""The audit of a small folder with known faults, against counts made by hand."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, write_image
from PIL import Image, ImageDraw

from hf_pneumonia.__main__ import AUDIT_STRENGTHS, main
from hf_pneumonia.data.cohort import prepare_cohort
from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.data.manifest import COLUMNS, SEEN, read_seen, write_manifest, write_seen
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.evaluation.appearance import audit_lines
from hf_pneumonia.evaluation.audit import (
    auroc_alone,
    check_leakage,
    count_images,
    crossing_ids,
    summary,
    write_audit,
)
from hf_pneumonia.evaluation.audit_plots import measure_images
from hf_pneumonia.training.arguments import parse_recipe


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Split folders of 12 + 12 training, 10 + 10 validation and 10 + 10 test images, with these faults:

    a copy of a test image in train under another name; a larger copy in train; copies with two labels; a test
    patient with another image in train; a pair with one coarse id (IM-0300, NORMAL2-IM-0300); a damaged file.
    """
    folder = tmp_path_factory.mktemp("faulty") / "images"
    rng = np.random.default_rng(0)
    for split, first, count in (("train", 0, 12), ("val", 100, 10), ("test", 200, 10)):
        for number in range(first, first + count):
            write_image(folder / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg", 0, rng)
            write_image(folder / split / "PNEUMONIA" / f"person{number}_virus_1.jpeg", 1, rng)
    normal, pneumonia = folder / "train" / "NORMAL", folder / "train" / "PNEUMONIA"
    shutil.copy(folder / "test" / "PNEUMONIA" / "person200_virus_1.jpeg", pneumonia / "x1.jpeg")
    Image.open(normal / "IM-0000-0001.jpeg").resize((360, 280)).save(normal / "x2.png")
    shutil.copy(normal / "IM-0001-0001.jpeg", pneumonia / "x3.jpeg")
    write_image(normal / "IM-0200-0002.jpeg", 0, rng)
    write_image(normal / "IM-0300-0001.jpeg", 0, rng)
    write_image(folder / "test" / "NORMAL" / "NORMAL2-IM-0300-0001.jpeg", 0, rng)
    (pneumonia / "person11_virus_1.jpeg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture(scope="module")
def images(faulty, tmp_path_factory):
    return prepare_cohort(str(faulty), 32, tmp_path_factory.mktemp("cache"), max_unreadable=1)


@pytest.fixture(scope="module")
def audited(images, tmp_path_factory):
    """The findings, and the folder that the audit wrote."""
    folder, before = tmp_path_factory.mktemp("audit") / "out", torch.get_rng_state()
    findings = write_audit(images, folder, {"rotation": 10, "blur": 0.0, "noise": (0.02, 0.01)})
    assert torch.equal(before, torch.get_rng_state())  # plots do not change the global random state
    return findings, folder


def test_every_fault_is_counted(audited):
    findings, _ = audited
    assert findings["films"] == 70
    copies = {"copy": 2, "copies with different labels": 2}  # x1, and the smaller of IM-0000 and x2
    assert findings["removed"] == {"unreadable": 1, **copies, "patient of another split": 1}
    assert findings["unreadable"][0]["reason"].startswith("an HTML page")
    assert findings["duplicates"]["groups"] == 3 and findings["duplicates"]["groups_of_equal_bytes"] == 2
    assert [len(group) for group in findings["conflicting_labels"]] == [2]
    # Leakage in use: the coarse id alone.
    assert findings["leakage"] == {
        "as_given": {"patients_fine": 1, "patients_coarse": 2, "duplicate_groups": 1},
        "as_used": {"patients_fine": 0, "patients_coarse": 1, "duplicate_groups": 0},
    }


def test_the_manifest_has_a_row_for_every_image_with_its_split_or_reason(audited, faulty):
    with open(audited[1] / "manifest.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = {row["path"].removeprefix(f"{faulty}/"): row for row in reader}
    assert tuple(reader.fieldnames) == COLUMNS
    assert len(rows) == 70 and sum(row["kept"] == "true" for row in rows.values()) == 64
    copy, test = rows["train/PNEUMONIA/x1.jpeg"], rows["test/PNEUMONIA/person200_virus_1.jpeg"]
    assert copy["content_hash"] == test["content_hash"] and len(test["content_hash"]) == 64
    assert copy["duplicate_group"] == test["duplicate_group"] != ""
    assert (copy["kept"], copy["split"], test["kept"], test["split"]) == ("false", "train", "true", "test")
    for name, reason in {
        "PNEUMONIA/x1": f"copy of {faulty}/test/PNEUMONIA/person200_virus_1.jpeg",
        "NORMAL/IM-0000-0001": f"copy of {faulty}/train/NORMAL/x2.png",
        "NORMAL/IM-0001-0001": "copies with different labels",
        "NORMAL/IM-0200-0002": "patient of another split",
        "PNEUMONIA/person11_virus_1": "unreadable: an HTML page",
    }.items():
        assert rows[f"train/{name}.jpeg"]["reason"].startswith(reason)
    alone = rows["train/NORMAL/IM-0005-0001.jpeg"]
    assert (alone["duplicate_group"], alone["reason"], alone["label"]) == ("", "", "NORMAL")
    assert (alone["source"], alone["patient_id"]) == ("images", "IM-0005")


def test_the_page_is_self_contained_and_shows_the_findings(images, audited):
    findings, folder = audited
    html = (folder / "audit.html").read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {"audit.html", "audit.json", "manifest.csv"}
    assert json.loads((folder / "audit.json").read_text()) == findings
    plots = re.findall('<img src="data:image/png;base64,([^"]+)"', html)
    assert len(plots) == html.count("<img") == 10
    for data in plots:
        with Image.open(io.BytesIO(base64.b64decode(data))) as plot:
            assert np.ptp(np.asarray(plot.convert("L"))) > 100
    assert not re.search(r"<(script|link|iframe|object|a)\b|(http|https|file)://|url\(|@import", html)
    lines = audit_lines(findings["appearance"])
    assert "private" in html and all(note in html for note in (*images.notes, *lines))
    assert summary(findings)[-len(lines) :] == lines
    for name, count in findings["removed"].items():
        assert f"<td>{name}</td><td>{count}</td>" in html
    # Medians of gray values are shares in the JSON, and 0 to 255 on the page, as in the plots.
    for row in findings["appearance"]["statistics"]:
        scale = 1 if re.match("width|height|log", row["statistic"]) else 255
        shown = re.search(rf"<td>{re.escape(row['statistic'])}</td><td>.*?</td><td>(.*?)</td>", html)[1]
        assert float(shown) == pytest.approx(scale * row["median"]["NORMAL"], abs=0.01)


def test_the_table_counts_images_and_patients_of_each_split_and_source(images):
    number = np.arange(70)
    label = np.where((number >= 48) & (number < 64), 1, number % 2)
    images = dataclasses.replace(
        images,
        split=np.repeat(np.array(["train", "test", "covid", ""], dtype=object), [40, 24, 3, 3]),
        source=np.where(number < 30, "a", "b").astype(object),
        patient=(number // 2).astype(str).astype(object),  # two images each
        label=label,
    )
    heads, rows = count_images(images)
    assert heads == ["split", "NORMAL", "PNEUMONIA", "COVID-19", "images", "patients", "ratio"]
    rows = {name: " ".join(row) for name, *row in rows}
    assert rows["train"] == "20 20 0 40 20 1 : 1" and rows["train, a"] == "15 15 0 30 15 1 : 1"
    assert rows["test"] == rows["test, b"] == "4 20 0 24 12 1 : 5"
    assert rows["covid"] == "0 0 3 3 2 –" and rows["all"] == "24 40 3 67 34 1 : 1.67"


def test_brightness_sizes_and_gray_values_are_those_of_the_decoded_files(images):
    facts = measure_images(images)
    assert len(facts.row) == np.sum(images.split != "") and not set(facts.row) & set(images.cache.unreadable)
    decoded = np.stack([squash(read_image(str(path)), 32) for path in images.file[facts.row]])
    np.testing.assert_allclose(facts.brightness, decoded.reshape(len(decoded), -1).mean(axis=1))
    for kind in range(2):
        levels = np.bincount(decoded[facts.kind == kind].ravel(), minlength=256)
        np.testing.assert_array_equal(facts.levels[kind], levels)
    assert set(zip(facts.width, facts.height, strict=True)) == {(90, 70), (360, 280)}


def test_auroc_alone_counts_pairs_in_either_direction():
    rng = np.random.default_rng(3)
    values, label = rng.integers(0, 9, 60), rng.integers(0, 2, 60)
    positives, negatives = values[label == 1][:, None], values[label == 0]
    area = np.mean((positives > negatives) + 0.5 * (positives == negatives))
    for either in (values, -values):
        assert auroc_alone(either, label) == pytest.approx(max(area, 1 - area))
    assert auroc_alone(values[label > 0], label[label > 0]) is None


def test_an_id_crosses_if_it_is_in_two_of_the_three_splits():
    ids = np.array(["a", "a", "b", "b", "c", "c", "d"])
    split = np.array(["train", "test", "train", "train", "train", "", "covid"])
    assert crossing_ids(ids, split) == {"a"}


def test_text_colour_and_source_that_belong_to_one_class_predict_the_label(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(9):
        write_image(tmp_path / "one" / "NORMAL" / f"{number}.png", 0, rng, size=(600, 500))
        path = tmp_path / "two" / "PNEUMONIA" / f"{number}.png"
        write_image(path, 1, rng, size=(600, 500))
        image = Image.open(path).convert("RGB")
        ImageDraw.Draw(image).text((8, 8), "mAs 2.56 kV 55 15:42:07", fill="white", font_size=20)
        ImageDraw.Draw(image).rectangle((250, 200, 310, 240), fill="red")
        image.save(path)
    cohort = prepare_cohort([str(tmp_path / "one"), str(tmp_path / "two")], 32, tmp_path)
    findings = write_audit(cohort, tmp_path / "out")
    assert findings["overlays"]["text"] == findings["overlays"]["colour"] == {"NORMAL": 0, "PNEUMONIA": 9}
    aurocs = findings["label_told_by"]
    assert aurocs["burned-in text"] == aurocs["colour"] == aurocs["source"] == 1
    assert aurocs["width / height"] == 0.5


def _run_folder(images, folder):
    """The audit files of a training run."""
    (folder / "audit").mkdir(parents=True)
    write_manifest(images, folder / "audit" / "manifest.csv")
    return folder


def test_weights_that_have_seen_test_images_are_refused_unless_allowed(faulty, images, tmp_path):
    run = _run_folder(images, tmp_path / "run")
    second = prepare_cohort(str(faulty), 32, tmp_path, max_unreadable=1, split="1/1/1")
    # By hand: test images that were in train or validation, and validation images that were in train.
    sha, before = images.cache.facts["sha256"], images.split
    first = {name: {sha[row] for row in np.flatnonzero(before == name)} for name in ("train", "validation")}
    expected = sum(sha[row] in first["train"] | first["validation"] for row in second.rows("test"))
    expected += sum(sha[row] in first["train"] for row in second.rows("validation"))
    with pytest.raises(UsageError, match=f"{expected} validation and test images") as error:
        check_leakage(second, read_seen(run), allowed=False)
    assert error.value.code == "leakage" and "\n" not in str(error.value) and expected > 0
    for weights in (run, run / "checkpoint-3"):
        assert check_leakage(second, read_seen(weights), allowed=True)["films_seen"] == expected
    assert check_leakage(second, [], allowed=False)["films_seen"] == 0
    # Training on with the same split is not leakage.
    assert len(read_seen(run)) == np.sum(np.isin(images.split, ("train", "validation")))
    assert check_leakage(images, read_seen(run), allowed=False)["films_seen"] == 0


def test_a_run_lists_the_images_that_its_starting_weights_had_seen(images, tmp_path):
    first, second = (_run_folder(images, tmp_path / name) for name in ("first", "second"))
    write_seen([{**read_seen(first)[0], "content_hash": "another"}], second / "audit" / SEEN)
    assert len(read_seen(second)) == 1 + len(read_seen(first))


def test_leakage_between_splits_is_refused(images):
    patient_id = images.patient_id.copy()
    patient_id[np.flatnonzero(images.split == "test")[0]] = "IM-0005"
    with pytest.raises(UsageError, match="1 patients"):
        check_leakage(dataclasses.replace(images, patient_id=patient_id), [], allowed=False)


def test_the_command_audits_a_data_set_too_small_to_train_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(2):  # too few to cut a split
        write_image(tmp_path / "images" / "NORMAL" / f"{number}.png", 0, rng)
        write_image(tmp_path / "images" / "PNEUMONIA" / f"{number}.png", 1, rng)
    argv = [
        "audit",
        str(tmp_path / "images"),
        "--output",
        str(tmp_path / "out"),
        "--cache_dir",
        str(tmp_path),
    ]
    assert run_script("hf_pneumonia", main, argv) == 0
    output = capsys.readouterr().out
    assert "4 images, sources: images" in output and "fewer than 10 patients" in output
    assert (tmp_path / "out" / "manifest.csv").read_text().count("\n") == 5
    html = (tmp_path / "out" / "audit.html").read_text()
    assert html.count("<img") > 4 and 'id="appearance"' not in html
    assert run_script("hf_pneumonia", main, ["audit", "/no/such/folder", *argv[2:]]) == 2
    error = capsys.readouterr().err.strip()
    assert "no such folder" in error and "\n" not in error


def test_the_examples_of_augmentation_have_the_strengths_of_the_main_recipe():
    recipe, _ = parse_recipe([str(ROOT / "recipes" / "resnet18.yaml")], default=None)
    assert {name: strength for name, strength in recipe.augmentation.items() if strength} == AUDIT_STRENGTHS
