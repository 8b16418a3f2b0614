"""Folders of images: split, class and patient of every image from the names of its parent folders."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePath

from hf_pneumonia.data.files import IMAGE, kind_of, walk
from hf_pneumonia.data.labels import SPLITS, Row, is_class, label_of, patient_of, split_of, words
from hf_pneumonia.data.listing import LABEL_COLUMNS, image_key, is_table, read_metadata, rows_of_tables
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Words in the names of folders: `lung_masks`, "Lung Masks" and `lungMasks` are the same.
# Folders of masks, heat maps, thumbnails and other companions of images.
_COMPANIONS = frozenset(
    "mask masks annotation annotations annotated label labels segmentation segmentations segmented seg segs "
    "bbox bboxes boxes contour contours roi rois heatmap heatmaps gradcam cam cams saliency attention "
    "overlay overlays explanation explanations thumbnail thumbnails thumb thumbs preview previews "
    "eadir recycle trash lateral laterals".split()
)
# Folders whose names say nothing about their images.
_CONTAINERS = frozenset(
    "image images img imgs picture pictures photo photos scan scans file files data original originals orig "
    "raw xray xrays ray rays x cxr cxrs chest radiograph radiographs radiography png jpg jpeg dicom dicoms "
    "dcm tiff frontal pa ap view views anat cohen".split()
)
# Folders of a project that are often beside its images.
_PROJECT = frozenset(
    "notebook notebooks figure figures plot plots doc docs result results output outputs run runs model "
    "models checkpoint checkpoints log logs script scripts src code paper report reports".split()
)
_FOLD = re.compile(r"(cv|fold|k)[-_ ]?\d+", re.IGNORECASE)
# Folder names of a patient, study or series: patient00003, p10, s50414267, study1, 1.2.840.10008, 0017.
_ID = re.compile(
    r"(patient|pat|subject|subj|sub|study|series|ses|session|case|visit|view)[-_ ]?\w*|[ps]?\d+|\d[\d.]+|"
    r"[0-9a-f]{8}[0-9a-f-]*",
    re.IGNORECASE,
)

# Public data sets recognised by class folders or file names; for COVID-QU-Ex see `_known_classes`.
_RADIOGRAPHY = {"covid", "lung_opacity", "normal", "viral pneumonia"}
_KERMANY = re.compile(r"person\d+_(bacteria|virus)_\d+", re.IGNORECASE)


@cache  # few folders, many images in each
def is_companion(name: str) -> bool:
    """Return whether a folder holds companions of images by its name: masks, heat maps, thumbnails ..."""
    found = {*words(name), "".join(words(name))}
    return bool(_COMPANIONS & found) and not {"data", "dataset"} & found and not is_class(name)


@cache
def _is_container(name: str) -> bool:
    found = words(name)
    return _ID.fullmatch(name) is not None or (bool(found) and set(found) <= _CONTAINERS)


def _is_part(name: str) -> bool:
    return _is_container(name) and any(letter.isdigit() for letter in name)


def read_layout(images: Iterable[str], root: str) -> tuple[dict[str, "_Roles"], list[str]]:
    """Read the role of every image's parent folders from their names.

    Args:
        images: POSIX path of each image, relative to the root.
        root: name of the data set, for messages.

    Returns:
        Roles for each image of the data set, and one line for each reason why images were left out.

    Raises:
        UsageError: no image is in a class folder, or the layout is ambiguous.
    """
    left_out: list[str] = []
    parts = {image: PurePath(image).parts[:-1] for image in images}
    parts = _without_companions(_known_classes(parts, root), left_out)
    wrappers = _outer_names(parts.values())
    found = {image: _Roles(folders, wrappers) for image, folders in parts.items()}
    found = _one_data_set(found, root, left_out)
    _check_classes(found, root)
    _check_splits(found, root)
    found = _labelled_only(found, root, left_out)
    logger.info("%s: %s", root, _recognised(found))
    return found, left_out


class _Roles:
    """Which parent folders of an image are splits, classes, patients or something else."""

    def __init__(self, folders: tuple[str, ...], wrappers: set[tuple[str, ...]]):
        self.folders = folders
        inner = [at for at in range(len(folders)) if folders[: at + 1] not in wrappers]
        splits = [at for at in inner if split_of(folders[at])]
        classes = [at for at in inner if is_class(folders[at])]
        self.splits = sorted({split_of(folders[at]) for at in splits})
        self.split = self.splits[0] if self.splits else None
        self.split_at = splits[0] if splits else None
        self.class_at = classes[0] if classes else None  # of PNEUMONIA/viral this is PNEUMONIA
        self.class_name = folders[classes[-1]] if classes else None
        known = [*splits, *classes]
        first = min(known, default=len(folders))
        # Folders of patients and parts (images_001) belong to one data set.
        self.wrapper = tuple(name for name in folders[:first] if not _is_part(name))
        self.inside = tuple(name for at, name in enumerate(folders) if at not in known)
        self.unknown = [
            at
            for at in range(first, len(folders))
            if known and at not in known and not _is_container(folders[at])
        ]


def _known_classes(parts: dict, root: str) -> dict:
    """Map "Non-COVID" to pneumonia in COVID-QU-Ex, which has lung masks; elsewhere it may be normal."""
    names = {name.lower() for folders in parts.values() for name in folders}
    if not {"lung masks", "non-covid"} <= names:
        return parts
    logger.info("%s: COVID-QU-Ex, Non-COVID is read as PNEUMONIA", root)
    named = {"non-covid": "PNEUMONIA"}
    return {
        image: tuple(named.get(name.lower(), name) for name in folders) for image, folders in parts.items()
    }


def _without_companions(parts: dict, left_out: list[str]) -> dict:
    """Leave out masks and other companions of images, by the name of the folder or file."""
    kept, companions = {}, Counter()
    for image, folders in parts.items():
        stem = PurePath(image).stem
        ending = re.search(r"[-_ ]([A-Za-z]+)$", stem)
        companion = next((name for name in folders if is_companion(name)), None)
        if companion is None and ending and ending[1].lower() in _COMPANIONS:
            companion = f"*{ending[0]}{PurePath(image).suffix}"
        if companion is None:
            kept[image] = folders
        else:
            companions[companion] += 1
    left_out += [
        f"{count} images in {name}: masks, lateral views or other companions"
        for name, count in sorted(companions.items())
    ]
    return kept


def _outer_names(all_parts: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Return folders named like a class or split that hold other classes or splits, as pneumonia/NORMAL."""
    outer = set()
    for folders in set(all_parts):
        for at, name in enumerate(folders):
            inside = folders[at + 1 :]
            label, split = label_of(name), split_of(name)
            if is_class(name) and any(is_class(other) and label_of(other) != label for other in inside):
                outer.add(folders[: at + 1])
            if split and any(split_of(other) not in (None, split) for other in inside):
                outer.add(folders[: at + 1])
    return outer


def _one_data_set(found: dict, root: str, left_out: list[str]) -> dict:
    """Keep the images of one data set; leave out copies nested in it, as in Kaggle's archive."""
    sets = defaultdict(list)
    for image, roles in found.items():
        if roles.class_name is not None:
            sets[roles.wrapper].append(image)
    if not sets:
        excluded = f" (left out: {_listed(left_out)})" if left_out else ""
        got = {"/".join(roles.folders) or "images without folders" for roles in found.values()}
        raise UsageError(
            "no-class-folders",
            f"{root}: expected images in class folders such as NORMAL and PNEUMONIA, got "
            f"{_listed(got) or 'none'}{excluded}. Sort the images into class folders, or add a table of "
            "labels",
        )
    outer = min(sets, key=len)
    others = [wrapper for wrapper in sets if wrapper != outer]
    nested = all(wrapper[: len(outer)] == outer for wrapper in others)
    if others and not (nested and any(found[image].split for image in sets[outer])):
        names = sorted("/".join(wrapper) or "." for wrapper in sets)
        parts = [f"{root}/{name}" for name in names[:5]]
        if all(_FOLD.fullmatch(name.rsplit("/", 1)[-1]) for name in names):
            parts = [*(f"train={part}" for part in parts[:-1]), f"test={parts[-1]}"]
        raise UsageError(
            "several-data-sets",
            f"{root}: expected one data set, got {len(names)}: {_listed(names)}. Choose one or more of them: "
            f"--dataset {' '.join(parts)}",
        )
    for wrapper in others:
        left_out.append(f"{len(sets[wrapper])} images in {'/'.join(wrapper)}, a data set inside this one")
    return {
        image: roles for image, roles in found.items() if roles.class_name is None or roles.wrapper == outer
    }


def _check_classes(found: dict, root: str) -> None:
    """Reject unknown folders in classes and splits, or beside classes."""
    parents = {roles.folders[: roles.class_at] for roles in found.values() if roles.class_name}
    unknown: dict[str, int] = Counter()
    for roles in found.values():
        if roles.class_name is None:
            for at, name in enumerate(roles.folders):
                if roles.folders[:at] in parents and not split_of(name) and not set(words(name)) & _PROJECT:
                    unknown["/".join(roles.folders[: at + 1])] += 1
        elif roles.unknown:
            unknown["/".join(roles.folders[: roles.unknown[0] + 1])] += 1
    if unknown:
        classes = sorted({roles.class_name for roles in found.values() if roles.class_name})
        folder, count = next(iter(sorted(unknown.items())))
        more = f" (and {len(unknown) - 1} more such folders)" if len(unknown) > 1 else ""
        name = folder.rsplit("/", 1)[-1]
        raise UsageError(
            "unknown-folder",
            f"{root}/{folder}: expected a class or a known folder name, got {name!r} with {count} images"
            f"{more}; classes found: {', '.join(classes)}. Rename it (NORMAL, PNEUMONIA, healthy, viral ... "
            "or images), or move it away",
        )


def _check_splits(found: dict, root: str) -> None:
    """Reject nested splits, two folders for one split, and images outside the splits."""
    for roles in found.values():
        if len(roles.splits) > 1:
            raise UsageError(
                "ambiguous-splits",
                f"{root}/{'/'.join(roles.folders)}: expected one split, got {' and '.join(roles.splits)}. "
                "Name the split folders: --dataset train=DIR test=DIR",
            )
    names = defaultdict(set)
    for roles in found.values():
        if roles.split:
            names[roles.folders[: roles.split_at], roles.split].add(roles.folders[roles.split_at])
    for (parent, split), same in names.items():
        if len(same) > 1:
            raise UsageError(
                "ambiguous-splits",
                f"{'/'.join((root, *parent))}: expected one folder for the split {split}, got "
                f"{' and '.join(sorted(same))}. Merge them, or keep one",
            )
    without = [image for image, roles in found.items() if roles.class_name and roles.split is None]
    if without and len(without) < sum(roles.class_name is not None for roles in found.values()):
        inside = sorted({roles.split for roles in found.values() if roles.split})
        raise UsageError(
            "ambiguous-splits",
            f"{root}: expected all images in split folders or none, got {len(without)} outside "
            f"{', '.join(inside)}, such as {without[0]}. Name the split folders: --dataset train=DIR "
            "test=DIR",
        )


def _labelled_only(found: dict, root: str, left_out: list[str]) -> dict:
    """Leave out images outside class folders; reject a split without class folders."""
    for roles in found.values():
        if roles.class_name is None and roles.split:
            folder = "/".join(roles.folders[: roles.split_at + 1])
            count = sum(
                other.folders[: roles.split_at + 1] == roles.folders[: roles.split_at + 1]
                and other.class_name is None
                for other in found.values()
            )
            raise UsageError(
                "split-without-classes",
                f"{root}/{folder}: expected class folders, got {count} images without a label. Sort them "
                "into class folders, or move them away",
            )
    stray = Counter("/".join(roles.folders) or "." for roles in found.values() if roles.class_name is None)
    left_out += [
        f"{count} images in {folder}, outside the class folders" for folder, count in sorted(stray.items())
    ]
    return {image: roles for image, roles in found.items() if roles.class_name is not None}


def _recognised(found: dict) -> str:
    """Describe the classes and splits found, and name the public data set that has them."""
    classes = sorted({roles.class_name for roles in found.values()})
    splits = [name for name in SPLITS if name in {roles.split for roles in found.values()}]
    text = f"class folders {', '.join(classes)}" + (f" in splits {', '.join(splits)}" if splits else "")
    if {name.lower() for name in classes} == _RADIOGRAPHY:
        text += ", read as COVID-19 Radiography Database"
    elif any(_KERMANY.match(PurePath(image).name) for image in found):
        text += ", read as Kermany et al. (patients from the file names)"
    return text


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def rows_of_folder(root: Path, uncertain: str = "drop") -> list[Row]:
    """List the images of a folder.

    Class, split and patient come from the names of the parent folders (`read_layout`), or, without class
    folders, from the tables in the folder (`rows_of_tables`).

    Args:
        root: the folder.
        uncertain: one of `labels.UNCERTAIN_VALUES`, for tables.

    Raises:
        UsageError: there are no images, or the layout is ambiguous.
    """
    kinds, tables, classes = {}, [], False
    for parent, names in walk(root):
        classes = classes or (is_class(parent.name) and parent != root)
        found = {(parent / name).relative_to(root).as_posix(): kind_of(parent / name) for name in names}
        kinds |= {name: kind for name, kind in found.items() if kind}
        tables += [parent / name for name in names if is_table(name)]
    if tables and not classes:
        return rows_of_tables(root, tables, uncertain)
    layout, left_out = read_layout(kinds, str(root))
    for line in left_out:
        logger.warning("%s: left out %s", root, line)
    metadata = read_metadata(root, tables)
    rows, listed = [], 0
    for name in sorted(layout, key=lambda name: _order(layout[name].split, name, kinds[name])):
        path, roles = root / name, layout[name]
        described = metadata.get(image_key(path), {}) if metadata else {}
        listed += bool(described)
        rows.append(
            Row(
                image=str(path.resolve()),
                file=str(path),
                class_name=_class_name(described) or roles.class_name,
                patient_id=described.get("patient_id") or patient_of(path.name, roles.inside),
                place=name,
                split=roles.split,
            )
        )
    if metadata and not listed:
        raise UsageError(
            "metadata-without-images",
            f"{root}: expected a metadata file that lists the images in this folder, got other paths. Write "
            "file_name relative to the metadata file",
        )
    return rows


def _order(split: str | None, name: str, kind: str) -> tuple:
    """Return the sort key of an image: split, extension, path as in datasets' `imagefolder`; DICOM last."""
    return SPLITS.index(split) if split else 0, kind != IMAGE, os.path.splitext(name)[1], name


def _class_name(described: dict[str, str]) -> str | None:
    """Return the class in a row of a metadata file. Numbers do not count: there the folder decides."""
    name = next((described[column] for column in LABEL_COLUMNS if column in described), "")
    return None if name.isdigit() else name or None
