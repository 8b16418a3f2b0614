"""audit/manifest.csv of a run -> counts that name no file and no patient, and what they can be checked by."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from hf_pneumonia.data.labels import PHANTOMS, is_global_id
from hf_pneumonia.data.manifest import CONFLICT, COPIES, MANIFEST, PATIENT, SEEN, UNREADABLE, read_manifest
from hf_pneumonia.errors import UsageError

# How a film of a Hub data set is named in a manifest; a file of this machine is named by the way to it.
_HUB_FILM = re.compile(r"(train|validation|test)/\d{6}(/|$)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

REASONS = (UNREADABLE, CONFLICT, COPIES, PATIENT)
KNOWN_BY = ("file name", "source", "nothing")


def summarise_manifest(run: Path, report: dict) -> dict:
    """What of a manifest may be published.

    Args:
        run: folder of a finished run.
        report: its report.json.

    Returns:
        `films`, as found; `sources`, by name and in the order of the recipe: `kind` (phantom, hub, kaggle, or
        local for what only this machine has) and `splits`: split -> label -> {"films", "patients"} of the
        films that are used; `removed`, by reason; `copies`, groups and films; `patients_known_by`, the films
        whose patient is known by the file's name, by the source, or by nothing; `seen_before`, the films that
        the starting weights had been taught; `split_sha256` of the report; and `manifest_sha256`.

    Raises:
        UsageError: the manifest is missing, or none that this version writes.
    """
    rows = read_manifest(run / MANIFEST)
    by_source: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    groups = Counter(row["duplicate_group"] for row in rows if row["duplicate_group"])
    seen = (run / MANIFEST).parent / SEEN
    taught = {row["content_hash"] for row in read_manifest(seen)} if seen.exists() else set()
    return {
        "films": len(rows),
        "sources": {
            name: {"kind": _kind(given, name, by_source[name]), "splits": _counts(by_source[name])}
            for given, name in zip(report["recipe"]["dataset"], source_names(report), strict=True)
        },
        "removed": _count(REASONS, (_reason(row["reason"]) for row in rows if row["kept"] != "true")),
        "copies": {"groups": len(groups), "films": sum(groups.values())},
        "patients_known_by": _count(KNOWN_BY, map(_known_by, rows)),
        "seen_before": len(taught),
        "split_sha256": report["data"]["split_sha256"],
        "manifest_sha256": manifest_sha256(rows),
    }


def manifest_sha256(rows: list[dict[str, str]]) -> str:
    """SHA-256 over the sorted lines `content_hash,split,label,kept`, each ended by a line feed: equal where
    the same films were used in the same way, whatever they are called and wherever they lie."""
    lines = sorted(f"{row['content_hash']},{row['split']},{row['label']},{row['kept']}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_names(report: dict) -> list[str]:
    """The sources of a run by the names that they have in its report, in the order of its recipe.

    Taken from the report: the folders themselves may be gone.

    Raises:
        UsageError: they can't be told apart.
    """
    given, shown = report["recipe"]["dataset"], report["data"]["source"]
    names = [shown] if len(given) == 1 else shown.split(", ")
    if len(names) != len(given):
        raise UsageError(
            f"report.json names {len(given)} sources as {shown!r}: which is which can't be told; "
            "train again from folders without a comma in their names"
        )
    return names


def _kind(given: str, name: str, rows: list[dict[str, str]]) -> str:
    if given in PHANTOMS:
        return "phantom"
    if given.startswith("kaggle:") and given == name:
        return "kaggle"
    # A relative folder can look like user/name too.
    is_hub = given == name and _HUB_NAME.fullmatch(name) and rows
    return "hub" if is_hub and all(_HUB_FILM.match(row["path"]) for row in rows) else "local"


def _counts(rows: list[dict[str, str]]) -> dict:
    films: dict = defaultdict(lambda: defaultdict(int))
    patients: dict = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["kept"] == "true":
            films[row["split"]][row["label"]] += 1
            patients[row["split"]][row["label"]].add(row["patient_id"])
    return {
        split: {
            label: {"films": count, "patients": len(patients[split][label])}
            for label, count in sorted(films[split].items())
        }
        for split in sorted(films)
    }


def _count(names: Iterable[str], found: Iterable[str]) -> dict[str, int]:
    """How often each name was found, 0 included."""
    counted = Counter(found)
    return {name: counted[name] for name in names}


def _reason(said: str) -> str:
    """Why a film is not used, without what names it or its copy."""
    for reason in REASONS:
        if said.startswith(reason):
            return reason
    raise UsageError(f"{MANIFEST} has an unknown reason; train again with this version")


def _known_by(row: dict[str, str]) -> str:
    patient = row["patient_id"].removeprefix(f"{row['source']}:")
    if is_global_id(patient):
        return "file name"
    # A film without an id is called by its place in the source, below the name of its split.
    path = "/" + row["path"].replace("\\", "/")
    return (
        "nothing" if path.endswith((f"/{patient}", f"/{patient.partition('/')[2] or patient}")) else "source"
    )
