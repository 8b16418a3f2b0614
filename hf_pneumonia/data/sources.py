"""Any source names -> one table of labelled films. Knows nothing about pixels: films are not decoded here."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets

from hf_pneumonia.data.download import fetch_kaggle, unpack
from hf_pneumonia.data.folder import films_of_folder, films_of_splits
from hf_pneumonia.data.hub_dataset import fetch_hub_dataset
from hf_pneumonia.data.labels import LABELS, PHANTOMS, is_covid, label_of, patient_of
from hf_pneumonia.data.listing import films_of_listing
from hf_pneumonia.data.phantom import VERSION as PHANTOM_VERSION
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.data.rows import SPLIT_NAMES
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


def load_films(
    sources: str | Sequence[str], cache_dir: Path, covid: str = "drop", one_class: bool = False
) -> datasets.Dataset:
    """Load one or several sources as one table, a row per film, in a stable order.

    Args:
        sources: each `phantom`, `phantom:shortcut`, a folder, a zip file, a CSV file of paths and labels,
            `kaggle:owner/name`, or the id of a Hub data set.
        cache_dir: where the phantoms are kept once simulated, and zip files once unpacked.
        covid: "drop" leaves films of COVID-19 out, "pneumonia" counts them as pneumonia, and "keep" keeps
            them apart: in the split "covid", which is neither trained on nor chosen by, only scored.
        one_class: whether films of one class alone will do.

    Returns:
        Columns `image` ({"path", "bytes"}, not decoded), `file` (name to show), `source` (name of the source,
        as short as tells it from the others), `label` (ClassLabel over LABELS), `patient_id`, and `split` (as
        the source has it: train, validation or test; a source without splits is all train). Ids that only
        mean something inside their source carry its name where there are several.

    Raises:
        UsageError: there is no such source, no film in it, a class of unknown name, or one class only where
            both are needed.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    places = [Path(name).expanduser().resolve() if _is_local(name) else name for name in names]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise UsageError(f"--dataset names {twice[0]} twice; name every source once")
    tables = [
        _settle(_load(name, cache_dir), short if len(names) > 1 else "", short, covid)
        for name, short in zip(names, short_names(names), strict=True)
    ]
    films = datasets.concatenate_datasets(tables)
    found = set(films["label"])
    if len(found) < 2 - one_class:
        present = LABELS[found.pop()] if found else "none"
        raise UsageError(f"one class only in {', '.join(names)} (found: {present}): both are needed")
    return films


def short_names(names: Sequence[str]) -> list[str]:
    """What the sources are called in tables and reports: a local one by its last folder, and by as few more
    as tell it from the others; never by the way to it. The name of a split alone tells nothing, and what is
    above it comes too."""
    parts = [_parts(name) if _is_local(name) else (name,) for name in names]
    short = []
    for index, part in enumerate(parts):
        others = ["/" + "/".join(other) for row, other in enumerate(parts) if row != index]
        length = 2 if part[-1].lower() in SPLIT_NAMES else 1
        while length < len(part) and any(name.endswith("/" + "/".join(part[-length:])) for name in others):
            length += 1
        short.append("/".join(part[-length:]))
    return short


def _parts(name: str) -> tuple[str, ...]:
    """Folders on the way to a local source, from below the home folder on: that one's name is a person's."""
    path, home = Path(name).expanduser().resolve(), Path.home().resolve()
    inside = path.is_relative_to(home) and path != home and home != home.parent
    return path.relative_to(home).parts if inside else path.parts


def _is_local(name: str) -> bool:
    return name not in PHANTOMS and Path(name).expanduser().exists()


def _load(name: str, cache_dir: Path) -> datasets.Dataset:
    """Rows of one source, as `film_rows` has them."""
    if name in PHANTOMS:
        folder = cache_dir / f"{name.replace(':', '-')}-v{PHANTOM_VERSION}"
        write_dataset(folder, shortcut=name != "phantom")  # leaves a folder that exists as it is
        return films_of_splits(folder, {split: folder / split for split in ("train", "test")})
    if name.startswith("kaggle:"):
        return films_of_folder(fetch_kaggle(name.removeprefix("kaggle:")))
    path = Path(name).expanduser()
    if name and path.is_dir():
        return films_of_folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        folder = unpack(path, cache_dir)
        try:
            return films_of_folder(folder)
        except UsageError as error:  # the user knows the archive, and not where it was unpacked
            raise UsageError(str(error).replace(str(folder), str(path))) from error
    if path.is_file() and path.suffix.lower() == ".csv":
        return films_of_listing(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        problem = "it is none of these" if path.exists() else "no such folder"
        raise UsageError(
            f"--dataset expects `phantom`, a folder, a .zip or .csv file, kaggle:owner/name or a Hub id "
            f"(user/name), got {name!r}: {problem}"
        )
    return fetch_hub_dataset(name)


def _settle(rows: datasets.Dataset, prefix: str, source: str, covid: str) -> datasets.Dataset:
    """Map classes by name, give every film a patient, and name the source."""
    names = rows["class_name"][:]
    labels = {name: 1 if is_covid(name) else label_of(name) for name in set(names)}
    if unknown := sorted(name for name, label in labels.items() if label is None):
        raise UsageError(
            f"unknown class {', '.join(map(repr, unknown))} in {source} "
            f"(found: {', '.join(sorted(labels))}); name the class folders NORMAL and PNEUMONIA "
            "(healthy, bacterial, viral are known too), or take it out"
        )
    split = rows["split"][:]
    if corona := [row for row, name in enumerate(names) if is_covid(name)]:
        done = {
            "drop": "left out (--covid pneumonia counts them in, --covid keep scores them apart)",
            "pneumonia": "counted as PNEUMONIA",
            "keep": "kept apart: not trained on, scored after training",
        }
        logger.info("%s: %d films of COVID-19 are %s", source, len(corona), done[covid])
        if covid == "keep":
            for row in corona:
                split[row] = "covid"
    patients = [
        _patient(patient, place, prefix)
        for patient, place in zip(rows["patient_id"], rows["place"], strict=True)
    ]
    if nameless := rows["patient_id"][:].count(None):
        logger.warning(
            "%s: no patient id in %d of %d file names: each such film is its own patient",
            source,
            nameless,
            len(rows),
        )
    columns = {
        "source": [source] * len(rows),
        "label": [labels[name] for name in names],
        "patient_id": patients,
        "split": split,
    }
    features = datasets.Features(
        source=datasets.Value("string"),
        label=datasets.ClassLabel(names=list(LABELS)),
        patient_id=datasets.Value("string"),
        split=datasets.Value("string"),
    )
    settled = datasets.concatenate_datasets(
        [
            rows.select_columns(["image", "file"]),
            datasets.Dataset.from_dict(columns, features=features),
        ],
        axis=1,
    )
    if covid == "drop" and corona:
        settled = settled.select(sorted(set(range(len(names))) - set(corona)))
    return settled


def _patient(patient: str | None, place: str, prefix: str) -> str:
    """An id that a film's name tells means the same child in every copy of the data set. One of a column may
    be anybody's "12" in another source, and so may the place of a film that has no id."""
    if patient is not None and patient == patient_of(Path(place).name):
        return patient
    own = patient or place
    return f"{prefix}:{own}" if prefix else own
