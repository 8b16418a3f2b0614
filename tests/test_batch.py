import csv
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import ROOT, TORCHRUN
from PIL import Image
from sklearn.datasets import load_sample_images
from test_dicom import _dicom

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.__main__ import main
from hf_pneumonia.data.images import read_image
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.plots import overlay_heat_map
from hf_pneumonia.inference.batch import PredictionRow, Progress, print_scores

HEADER = ["file", "decision", "label", "probability", "threshold", "error", "reason"]


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory) -> Path:
    """Thirty images and two that can't be read, in one folder."""
    folder = tmp_path_factory.mktemp("scored") / "images"
    shutil.copytree(image_folder / "test", folder)
    (folder / "NORMAL" / "IM-0205-bad.jpeg").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def reference(finished_run, images, tmp_path_factory) -> bytes:
    """Scores of an uninterrupted job."""
    output = tmp_path_factory.mktemp("reference") / "scores.csv"
    _predict(finished_run, images, "--output", output)
    return output.read_bytes()


def _predict(run, *flags) -> None:
    main(["predict", "--model", str(run), "--batch_size", "4", *map(str, flags)])


def _rows(data: bytes) -> list[dict]:
    reader = csv.DictReader(io.StringIO(data.decode()))
    rows = list(reader)
    assert reader.fieldnames == HEADER
    return rows


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Batch sizes of the forward passes, without trial passes on blank input."""
    sizes, ask = [], PneumoniaClassifier.predict_squares

    def count(self, squares, *more, **options):
        if squares.any():
            sizes.append(len(squares))
        return ask(self, squares, *more, **options)

    monkeypatch.setattr(PneumoniaClassifier, "predict_squares", count)
    return sizes


def test_an_image_that_can_not_be_read_is_a_row_with_its_reason_in_its_place(images, reference):
    rows = _rows(reference)
    assert [row["file"] for row in rows] == list(map(str, sorted(images.rglob("*.*g"))))
    bad = [row for row in rows if row["error"]]
    assert [row["error"] for row in bad] == ["not an image", "empty file"]
    assert all(row["decision"] == row["label"] == row["probability"] == "" for row in bad)


def test_an_image_that_is_refused_has_a_reason_and_no_probability_or_heat_map_unless_forced(
    finished_run, tmp_path
):
    picture, output = tmp_path / "palace.jpeg", tmp_path / "scores.csv"
    Image.fromarray(load_sample_images().images[0]).save(picture)
    rows, maps = [], []
    for flags in ((), ("--force",)):
        _predict(finished_run, picture, "--output", output, "--heatmaps", tmp_path / "maps", *flags)
        rows += _rows(output.read_bytes())
        maps.append(len(os.listdir(tmp_path / "maps")))
    row, forced = rows
    assert row["decision"] == "not a chest X-ray" and row["reason"].startswith("a colour picture")
    assert row["error"] == row["probability"] == row["label"] == ""
    assert 0 <= float(forced["probability"]) <= 1 and forced["reason"] == row["reason"]
    assert forced["decision"] in ("pneumonia", "normal", "uncertain") and maps == [0, 1]


def test_only_the_csv_goes_to_standard_output_and_its_reader_may_stop_early(
    finished_run, images, reference, capsys, monkeypatch
):
    _predict(finished_run, images)
    assert capsys.readouterr().out.encode() == reference
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        print_scores([PredictionRow("a.png", "normal", "NORMAL", 0.1, 0.5, None, None)] * 10_000)


def test_parquet_holds_what_csv_holds(finished_run, images, reference, tmp_path):
    _predict(finished_run, images, "--output", tmp_path / "new" / "scores.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "new" / "scores.parquet")
    expected = [{key: value or None for key, value in row.items()} for row in _rows(reference)]
    for row in expected:
        row["threshold"] = float(row["threshold"])
        row["probability"] = row["probability"] and float(row["probability"])
    assert table.column_names == HEADER and table.to_pylist() == expected


def test_zip_files_folders_dicom_and_missing_paths_share_one_list(
    finished_run, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = sorted((images / "PNEUMONIA").iterdir())[0]
    gray = np.asarray(read_image(source))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "IM0001").write_bytes(_dicom(gray, WindowCenter=128, WindowWidth=256))
    with zipfile.ZipFile("images.zip", "w") as archive:
        archive.write(source, "a/=1+1.jpeg")
        archive.writestr("a/bad.png", b"x")
    _predict(finished_run, "images.zip", "gone.png", "tree", source)
    rows = _rows(capsys.readouterr().out.encode())
    assert [row["file"] for row in rows] == [
        "images.zip/a/=1+1.jpeg", "images.zip/a/bad.png", "gone.png", "tree/IM0001", str(source)
    ]  # fmt: skip
    assert [row["error"] for row in rows] == ["", "not an image", "no such file", "", ""]
    values = [float(row["probability"]) for row in rows if row["probability"]]
    np.testing.assert_allclose(values, values[0], atol=1e-6)


@pytest.fixture
def stopped(finished_run, images, tmp_path) -> Path:
    """The output of a job that was stopped after two batches."""
    batches, add = [], Progress.add

    def end(self, scores) -> None:
        batches.append(scores)
        if len(batches) > 2:
            raise InterruptedError
        add(self, scores)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Progress, "add", end)
        _predict(finished_run, images, "--output", tmp_path / "scores.csv")
    return tmp_path / "scores.csv"


def test_a_stopped_job_resumes_and_ends_with_the_file_of_an_uninterrupted_job(
    finished_run, images, reference, stopped, asked
):
    assert not stopped.exists()
    with open(stopped.with_name(".scores.csv.progress"), "a") as file:
        file.write('\n["a model", {"a key": [0.5, ')  # a line cut off by a kill
    _predict(finished_run, images, "--output", stopped)
    # Two batches of four are saved; one of their images is unreadable, and so is one later.
    assert abs(sum(asked) - 22) <= 1
    assert stopped.read_bytes() == reference
    assert os.listdir(stopped.parent) == ["scores.csv"]


def test_another_model_and_a_changed_image_are_scored_anew(finished_run, images, stopped, tmp_path, asked):
    other, progress = tmp_path / "other", stopped.with_name(".scores.csv.progress")
    shutil.copytree(finished_run, other, ignore=shutil.ignore_patterns("gate.safetensors"))
    kept = progress.read_bytes()
    config = json.loads((other / "config.json").read_text())
    config["pneumonia"]["threshold"] = 0.123
    (other / "config.json").write_text(json.dumps(config))
    _predict(other, images, "--output", stopped)
    assert sum(asked) == 30 and {row["threshold"] for row in _rows(stopped.read_bytes())} == {"0.123"}

    progress.write_bytes(kept)
    asked.clear()
    first = sorted((images / "NORMAL").iterdir())[0]
    os.utime(first, ns=(1, first.stat().st_mtime_ns + 1))
    _predict(finished_run, images, "--output", stopped)
    assert 1 in asked and 20 <= sum(asked) <= 24  # batches are scored by threads, in any order


@pytest.mark.slow
def test_several_processes_resume_a_job_and_score_no_image_twice(finished_run, images, reference, stopped):
    # A hard link to the progress file, which the job deletes.
    kept = stopped.with_name("kept")
    os.link(stopped.with_name(".scores.csv.progress"), kept)
    before = kept.read_bytes()
    command = [sys.executable, "-m", *TORCHRUN, "-m", "hf_pneumonia", "predict", "--model", finished_run]
    command += ["--batch_size", "4", images, "--output", stopped]
    done = subprocess.run(command, capture_output=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"" and kept.read_bytes().startswith(before)
    keys = [key for line in kept.read_bytes().splitlines()[1:] for key in json.loads(line)[1]]
    assert len(keys) == len(set(keys)) == 32
    found, expected = _rows(stopped.read_bytes()), _rows(reference)
    for name in ("file", "decision", "label", "threshold", "error"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert float(one["probability"] or 0) == pytest.approx(float(other["probability"] or 0), abs=1e-6)


def test_heat_maps_are_drawn_also_for_images_that_are_already_scored(finished_run, images, stopped, asked):
    folder = stopped.with_name("heat")
    _predict(finished_run, images, "--output", stopped, "--heatmaps", folder)
    # The images of the first two batches are scored again for their heat maps.
    assert sum(asked) == 30
    scored = [row["file"] for row in _rows(stopped.read_bytes()) if not row["error"]]
    drawn = sorted(folder.iterdir())  # 000001-NAME-DIGEST.png
    assert [path.stem[7:].rpartition("-")[0] for path in drawn] == [Path(one).stem for one in scored]
    heat_map = PneumoniaClassifier.from_pretrained(finished_run)(scored[0], heat_map=True).heat_map
    want = np.asarray(overlay_heat_map(read_image(scored[0]), heat_map)).astype(int)
    assert np.abs(np.asarray(Image.open(drawn[0])).astype(int) - want).max() <= 2


def test_an_overlay_keeps_its_place_on_an_image_of_other_proportions():
    heat, image = np.zeros((8, 8), np.float32), Image.new("L", (400, 200), 90)
    heat[1, 6] = 1  # rows 1/8 to 2/8, columns 6/8 to 7/8
    picture = overlay_heat_map(image, heat)
    assert (picture.size, picture.mode) == (image.size, "RGB")
    coloured = np.ptp(np.asarray(picture, float), axis=2)
    assert np.unravel_index(coloured.argmax(), coloured.shape) == pytest.approx((37, 325), abs=30)
    rows, columns = np.nonzero(coloured > 1)
    # Pillow's bicubic filter reaches two pixels to each side.
    assert rows.max() <= 200 * 3.5 / 8 and columns.min() >= 400 * 4.5 / 8


def test_the_heat_map_of_another_image_in_the_same_row_is_not_reused(finished_run, image_folder, tmp_path):
    for image in ("NORMAL/IM-0203-0001.jpeg", "PNEUMONIA/person203_bacteria_203.jpeg"):
        shutil.copy(image_folder / "test" / image, tmp_path / "x.jpeg")
        _predict(finished_run, tmp_path / "x.jpeg", "--heatmaps", tmp_path / "heat")
    assert len({path.read_bytes() for path in (tmp_path / "heat").iterdir()}) == 2


def test_file_names_in_any_encoding_are_kept(finished_run, image_folder, tmp_path, asked):
    names = [b"lat\xe9.jpeg", "ü 胸.jpeg".encode(), b"=1+1.jpeg", b"a\nb.jpeg", b'"q", x.jpeg', b"-o.jpeg"]
    images, output, heat = tmp_path / "images", tmp_path / "s.csv", tmp_path / "heat"
    images.mkdir()
    for name in names:
        shutil.copy(image_folder / "test" / "NORMAL" / "IM-0203-0001.jpeg", images / os.fsdecode(name))
    _predict(finished_run, images, images / "-o.jpeg", images, "--output", output, "--heatmaps", heat)
    written = [os.fsdecode(name).encode(errors="backslashreplace").decode() for name in names]
    found = [Path(row["file"]).name for row in _rows(output.read_bytes())]
    # An image that is listed twice has two rows and is scored once.
    assert sorted(found) == sorted([*written, *written, "-o.jpeg"])
    assert len(list(heat.iterdir())) == sum(asked) == len(names)
    _predict(finished_run, images, "--output", tmp_path / "s.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "s.parquet")
    assert sorted(Path(name).name for name in table["file"].to_pylist()) == sorted(written)


def test_mistakes_are_reported_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for flags, named in (
        ("images --output scores.txt", "scores.txt"),
        ("images --heatmaps file", "--heatmaps"),
        ("images --batch_size 0", "--batch_size"),
        ("gone", "gone: no such file"),
    ):
        with pytest.raises(UsageError, match=named):
            main(["predict", "--model", "no/model/at/all", *flags.split()])
    assert os.listdir() == ["file"]
