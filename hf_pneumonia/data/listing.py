"""Label tables: CSV files that list images with their labels, and metadata files in image folders.

An image is positive with pneumonia and negative without any finding. Images with other findings only are left
out and counted. `PUBLIC_TABLES` lists the public data sets that are recognised (docs/data.md).
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from hf_pneumonia.data.files import kind_by_name, walk
from hf_pneumonia.data.labels import SPLITS, Row, is_class, is_covid, label_of, patient_of, split_of
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "class")

# Column names as letters in lower case, in order of preference.
_IMAGE_COLUMNS = ("path", "filepath", "imagepath", "filename", "file", "imagename", "image", "imageindex")
_IMAGE_COLUMNS += ("film", "xrayimagename", "dicompath", "dicom", "dicomid", "imageid", "img", "id")
_CLASS_COLUMNS = (*LABEL_COLUMNS, "classname", "diagnosis", "finding", "findinglabels", "target", "pneumonia")
_PATIENT_COLUMNS = ("patientid", "patient", "subjectid", "subject")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "datasettype")
_VIEW_COLUMNS = ("frontallateral", "viewposition", "projection", "view")

_YES = frozenset(("1", "1.0", "true", "t", "yes", "y", "positive", "pos"))
_NO = frozenset(("0", "0.0", "false", "f", "no", "n", "negative", "neg", ""))
_MAYBE = frozenset(("-1", "-1.0", "uncertain"))

PNEUMONIA, NO_FINDING, OTHER, UNSURE = "PNEUMONIA", "No Finding", "other findings", "uncertain"

# COVIDx: lines "patient image class source" without a header, in train.txt, test_COVIDx9.txt ...
_COVIDX = re.compile(r"(train|val|test)(_\w+)?\.txt$")


@dataclass(frozen=True)
class PublicTable:
    """A public data set, recognised by the columns of its table.

    Attributes:
        name: name for the log.
        columns: columns of its table, as letters in lower case.
        several_findings: whether one cell may have several findings.
    """

    name: str
    columns: frozenset[str]
    several_findings: bool = False


def _table_of(name: str, columns: str, several_findings: bool = False) -> PublicTable:
    return PublicTable(name, frozenset(columns.split()), several_findings)


PUBLIC_TABLES = (
    _table_of("NIH ChestX-ray14", "imageindex findinglabels patientid", several_findings=True),
    _table_of("CheXpert", "path frontallateral nofinding pneumonia"),
    _table_of("MIMIC-CXR-JPG", "subjectid studyid nofinding pneumonia"),
    _table_of("PadChest", "imageid patientid projection labels", several_findings=True),
    _table_of("VinDr-CXR or VinDr-PCXR", "imageid radid nofinding pneumonia"),
    _table_of("RSNA Pneumonia Detection Challenge", "patientid x y width height target"),
    _table_of("CoronaHack", "xrayimagename label datasettype"),
    _table_of(
        "ieee8023 covid-chestxray-dataset",
        "patientid finding view modality folder filename",
        several_findings=True,
    ),
)


def is_table(name: str) -> bool:
    """Return whether a file may be a label table by its name: CSV, metadata.jsonl, or COVIDx' train.txt."""
    return name == "metadata.jsonl" or name.lower().endswith((".csv", ".csv.gz")) or bool(_COVIDX.match(name))


class _Table:
    """A table: its rows by line, and which columns have the image, label, patient, split and view."""

    def __init__(self, file: Path, split: str | None = None):
        self.file, self.rows = file, _read_table(file)
        self.columns: dict[str, str] = {}
        for name in next(iter(self.rows.values()), ()):
            self.columns.setdefault(re.sub(r"[^a-z]", "", name.lower()), name)
        self.public = next((public for public in PUBLIC_TABLES if public.columns <= set(self.columns)), None)
        self.image, self.label, self.patient, self.split, self.view = (
            next((self.columns[name] for name in names if name in self.columns), None)
            for names in (_IMAGE_COLUMNS, _CLASS_COLUMNS, _PATIENT_COLUMNS, _SPLIT_COLUMNS, _VIEW_COLUMNS)
        )
        if self.image is None and "studyid" not in self.columns:
            self.image, self.patient = self.patient, None  # RSNA: images are named after the patient
        # One column per finding, if both pneumonia and no finding have one.
        findings = [name for name in self.columns.values() if is_class(name)]
        self.findings = findings if {0, 1} <= {label_of(name) for name in findings} else []
        self.given_split = split

    @property
    def usable(self) -> int:
        """Rank of the table as a source of labels: 2 one column per finding, 1 one label column, 0 none."""
        return 0 if self.image is None else 2 if self.findings else 1 if self.label else 0


def rows_of_listing(file: Path, uncertain: str = "drop") -> list[Row]:
    """List the images of a CSV file.

    Columns are recognised by common names:

    - the image (`path`, `file_name`, `image` ...): a path, absolute or relative to the CSV file, or a file
      name or stem that is anywhere below the CSV file's folder;
    - the label (`label`, `class`, `Target` ...): class names, or 0 and 1; or one column per finding;
    - optionally `patient_id` and `split`.

    RSNA's table works unchanged: `patientId` names the image, and an image has one row per finding.

    Args:
        file: the table.
        uncertain: one of `labels.UNCERTAIN_VALUES`.

    Raises:
        UsageError: a column is missing, a row has no label or an unknown split, an image has two labels, or
            no image exists.
    """
    return _rows_of_table(_Table(file), file.parent, uncertain)


def rows_of_tables(root: Path, files: Sequence[Path], uncertain: str = "drop") -> list[Row]:
    """List the images of a folder by its tables: one table, one per split, or several that are joined.

    Args:
        root: the folder.
        files: the tables in it.
        uncertain: one of `labels.UNCERTAIN_VALUES`.

    Raises:
        UsageError: as for `rows_of_listing`, or several tables have labels.
    """
    depths = defaultdict(list)
    for file in files:
        depths[len(file.relative_to(root).parts)].append(file)
    for depth in sorted(depths):  # prefer the tables nearest to the root
        named = [_Table(file, _split_of_file(file.relative_to(root))) for file in sorted(depths[depth])]
        tables = _joined(named)
        if any(table.usable for table in tables):
            break
    best = max(table.usable for table in tables)
    chosen = [table for table in tables if best and table.usable == best] or tables[:1]
    if len(chosen) > 1 and len({table.given_split for table in chosen} - {None}) < len(chosen):
        names = ", ".join(str(table.file.relative_to(root)) for table in chosen)
        raise UsageError(
            "several-tables",
            f"{root}: expected one table with labels, got {names}. Give one of them as --dataset",
        )
    if len(chosen) == 1:
        chosen[0].given_split = None
    rows = []
    for table in chosen:
        rows += _rows_of_table(table, root, uncertain)
    return rows


def _split_of_file(path: PurePath) -> str | None:
    if match := _COVIDX.match(path.name):
        return split_of(match[1])
    return next((split for name in (path.stem, *path.parts[:-1]) if (split := split_of(name))), None)


def _joined(tables: list[_Table]) -> list[_Table]:
    """Join the tables of MIMIC-CXR: labels by study, views by image, splits by image."""
    labels = [table for table in tables if table.findings and table.image is None]
    images = [table for table in tables if table.image and {"studyid", "subjectid"} <= set(table.columns)]
    if not labels or not images:
        return tables
    by_study = {row[labels[0].columns["studyid"]]: row for row in labels[0].rows.values()}
    joined: dict[str, dict] = {}
    for table in images:
        for row in table.rows.values():
            study = by_study.get(row[table.columns["studyid"]], {})
            joined.setdefault(row[table.image], {}).update(study | row)
    whole = labels[0]
    whole.rows = dict(enumerate(joined.values(), start=1))
    for table in images:
        whole.columns |= table.columns
        whole.image, whole.split, whole.view = (
            getattr(table, name) or getattr(whole, name) for name in ("image", "split", "view")
        )
    return [whole, *(table for table in tables if table not in (*images, whole))]


def _listed_splits(folder: Path) -> dict[str, str]:
    """Return the split of each image in lists such as NIH's test_list.txt."""
    splits = {}
    for file, split in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        if (folder / file).is_file():
            splits |= dict.fromkeys((folder / file).read_text().split(), split)
    return splits


def _read_lines(table: _Table, uncertain: str) -> tuple[dict[str, list[str]], dict[str, tuple], Counter[str]]:
    """Return by image its answers, and its patient and split; and how many lines are left out, by reason."""
    file = table.file
    if not table.usable:
        raise UsageError(
            "no-image-or-label-column",
            f"{file}: expected the columns `path` and `label` (optionally `patient_id` and `split`), got "
            f"{', '.join(table.columns.values()) or 'an empty file'}. Rename the columns",
        )
    if table.public:
        logger.info("%s: read as %s", file, table.public.name)
    left_out: Counter[str] = Counter()
    described: dict[str, tuple] = {}  # name -> patient, split
    votes: dict[str, list[str]] = defaultdict(list)
    for number, line in table.rows.items():
        name = line[table.image]
        if not name or not (table.findings or line[table.label]):
            missing = table.label if name else table.image
            raise UsageError(
                "incomplete-line",
                f"{file}, line {number}: expected a value in column {missing}, got none. Fill it in, or "
                "remove the line",
            )
        if table.view and _is_lateral(line[table.view]):
            left_out["lateral views"] += 1
            continue
        if "modality" in table.columns and "ray" not in line[table.columns["modality"]].lower():
            left_out["images that are not X-rays"] += 1
            continue
        split = line[table.split] if table.split else None
        if split and split_of(split) is None:
            raise UsageError(
                "unknown-split",
                f"{file}, line {number}: expected one of {', '.join(SPLITS)} as split, got {split!r}. Fix it",
            )
        patient_and_split = (line.get(table.patient) or None, split)
        answer = _answer(table, line, uncertain)
        differs = described.setdefault(name, patient_and_split) != patient_and_split
        if differs or (not table.findings and votes[name] and votes[name][0] != answer):
            raise UsageError(
                "image-twice",
                f"{file}, line {number}: {name} is listed twice with different values. Keep one of the lines",
            )
        votes[name].append(answer)
    return votes, described, left_out


def _rows_of_table(table: _Table, root: Path, uncertain: str) -> list[Row]:
    file = table.file
    votes, described, left_out = _read_lines(table, uncertain)
    answers = {name: _majority(cast) for name, cast in votes.items()}
    if not table.findings and not (table.public and table.public.several_findings):
        answers = _named(file, answers, uncertain)
    for name, answer in list(answers.items()):
        if answer in (OTHER, UNSURE):
            left_out[answer if answer == OTHER else "uncertain findings (see --uncertain)"] += 1
            del answers[name]
    for reason, count in left_out.items():
        logger.warning("%s: left out %d images: %s", file, count, reason)
    if not answers:
        raise UsageError(
            "no-labelled-images",
            f"{file}: expected images with {PNEUMONIA} or {NO_FINDING}, got none. Check its label column",
        )
    rows, lists = [], _listed_splits(file.parent)
    for path, (name, answer) in zip(_locate(file, root, list(answers)), answers.items(), strict=True):
        patient, split = described[name]
        inside = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
        split = split_of(split) if split else lists.get(path.name) or table.given_split
        patient = patient or patient_of(path.name, inside)
        rows.append(Row(str(path), str(path), answer, patient, name, split))
    return rows


def _answer(table: _Table, line: dict[str, str], uncertain: str) -> str:
    """Return the answer of one line: a class name, OTHER or UNSURE; or the cell of a single-label column."""
    if table.findings:
        cells = {name: line.get(name, "").lower() for name in table.findings}
        positive = {name for name, cell in cells.items() if cell in _YES}
        unsure = {name for name, cell in cells.items() if cell in _MAYBE and label_of(name) == 1}
        if unsure and not any(label_of(name) == 1 for name in positive):
            if uncertain == "drop":
                return UNSURE
            positive |= unsure if uncertain == "positive" else set()
        return _one_of(positive)
    cell = line[table.label]
    if table.public and table.public.several_findings:
        return _one_of(re.split(r"[|/,;]", re.sub(r"[\[\]'\"]", "", cell)))
    return cell


def _one_of(findings: Iterable[str]) -> str:
    """Reduce findings to one answer: COVID-19 or PNEUMONIA if present, NO_FINDING if alone, or else OTHER."""
    names = {name.strip() for name in findings if name.strip()}
    if covid := next((name for name in sorted(names) if is_covid(name)), None):
        return covid
    labels = {label_of(name) for name in names}
    return NO_FINDING if labels == {0} else PNEUMONIA if 1 in labels and 0 not in labels else OTHER


def _majority(votes: list[str]) -> str:
    """Return the answer of more than half of the readers, or UNSURE."""
    answer, count = Counter(votes).most_common(1)[0]
    return answer if 2 * count > len(votes) else UNSURE


def _named(file: Path, answers: dict[str, str], uncertain: str) -> dict[str, str]:
    """Replace 0 and 1, yes and no, by class names; leave other labels as they are."""
    cells = {cell.lower() for cell in answers.values()}
    if not cells <= _YES | _NO | _MAYBE:
        return answers
    unsure = {"drop": UNSURE, "positive": PNEUMONIA, "negative": "NORMAL"}[uncertain]
    names = {cell: PNEUMONIA if cell in _YES else "NORMAL" if cell in _NO else unsure for cell in cells}
    logger.info("%s: label %s", file, ", ".join(f"{cell} read as {names[cell]}" for cell in sorted(cells)))
    return {name: names[cell.lower()] for name, cell in answers.items()}


def _is_lateral(view: str) -> bool:
    return view.lower() in ("l", "ll", "rl", "llat") or "lateral" in view.lower()


def _locate(file: Path, root: Path, names: list[str]) -> list[Path]:
    """Return the path of each image; of a missing image, the path relative to the table."""
    root = root.absolute()
    below: dict[str, list[Path]] = {}  # by file name and by stem; filled on demand

    def locate(name: str) -> Path:
        path = file.parent.absolute() / os.path.expanduser(name)
        parts = PurePath(name.replace("\\", "/")).parts  # a Windows path
        # Paths in CheXpert begin with the data set's own folder.
        for candidate in (path, *(root.joinpath(*parts[at:]) for at in range(len(parts) - 1))):
            if os.path.isfile(candidate):
                return candidate
        if not below:
            for parent, files in walk(root):
                for file_name in filter(kind_by_name, files):
                    for key in {file_name, os.path.splitext(file_name)[0]}:
                        below.setdefault(key, []).append(Path(parent, file_name))
        candidates = below.get(name, [path])
        if len(candidates) > 1:
            raise UsageError(
                "ambiguous-image",
                f"{file}: expected one image {name}, got {candidates[0]} and {candidates[1]}. Write its path "
                "relative to the CSV file",
            )
        return candidates[0]

    paths = [locate(name) for name in names]
    if not any(os.path.isfile(path) for path in paths):
        raise UsageError(
            "images-missing",
            f"{file}: expected {len(names)} images, got none (no file {paths[0]}). Write their paths "
            "relative to the CSV file",
        )
    return paths


def image_key(path: Path) -> str:
    """Resolve the links to the folders of a path, but not to its file, which equal files of the Hub share."""
    folder = str(path.parent).replace("\0", "")  # realpath refuses a zero byte
    return os.path.join(os.path.realpath(folder), path.name)


def read_metadata(root: Path, tables: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Read the metadata files of a folder, and patient ids from its other tables.

    Values stay text: as a number, the patient id 0012 would be 12, or 12.0 in a column with blanks, and one
    patient could be in two splits.

    Args:
        root: the folder.
        tables: the tables in it; of those that are not metadata.csv or .jsonl only the patient ids are used.

    Returns:
        `image_key` of each image -> its row, without blank values.

    Raises:
        UsageError: a file can't be read, or has no column `file_name`.
    """
    described = {}
    for file in (table for table in tables if table.stem == "metadata"):
        for row in _read_table(file).values():
            if not row.get("file_name"):
                raise UsageError(
                    "metadata-without-file-name",
                    f"{file}: expected the path of an image in column file_name of each row, got none. "
                    "Add the missing paths",
                )
            given = {key: value for key, value in row.items() if value != ""}
            described[image_key(file.parent / row["file_name"])] = given
    for file in (table for table in tables if table.stem != "metadata"):
        table = _Table(file)
        if not (table.image and table.patient):
            logger.warning("%s: not used, because the class folders give the labels", file)
            continue
        rows = [row for row in table.rows.values() if row[table.image]]
        for path, row in zip(_locate(file, root, [row[table.image] for row in rows]), rows, strict=True):
            if row[table.patient]:
                described.setdefault(image_key(path), {}).setdefault("patient_id", row[table.patient])
        logger.info("%s: patient ids are read from column %s, labels from the folders", file, table.patient)
    return described


def _read_table(file: Path) -> dict[int, dict[str, str]]:
    """Read a CSV or JSON Lines file: number of each line -> its columns as text, "" for a missing cell."""
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix.lower() == ".gz" else content
        text = _decoded(content)
        lines = io.StringIO(text, newline="")  # str.splitlines also splits at characters such as \u2028
        if file.suffix.lower() == ".jsonl":
            rows = {number: json.loads(line) for number, line in enumerate(lines, 1) if line.strip()}
            if not all(isinstance(row, dict) for row in rows.values()):
                raise ValueError("a line that is not an object")
        elif file.suffix.lower() == ".txt":
            cells = ((number, line.split()) for number, line in enumerate(lines, 1))
            cells = [(number, line) for number, line in cells if len(line) >= 3 and is_class(line[2])]
            columns = ("patient_id", "path", "label")
            rows = {number: dict(zip(columns, line, strict=False)) for number, line in cells}
        else:
            # Spreadsheets in many locales separate cells by a semicolon.
            head = text.partition("\n")[0]
            reader = csv.DictReader(lines, delimiter=max(",;\t", key=head.count))
            rows = dict((reader.line_num, row) for row in reader)
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise UsageError(
            "unreadable-table", f"{file}: expected a CSV or JSON Lines file, got {error}. Save it again"
        ) from error
    # The csv module gives None for a missing cell, and puts surplus cells under the key None.
    rows = {
        number: {key: "" if value is None else str(value).strip() for key, value in row.items() if key}
        for number, row in rows.items()
    }
    return {number: row for number, row in rows.items() if any(row.values())}


def _decoded(content: bytes) -> str:
    """Decode text as UTF-8, as UTF-16 (as some spreadsheets save it), or else as Latin-1."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
