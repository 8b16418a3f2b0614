"""report.json and config.json of a model -> what a reader wants to know first, in Markdown.

The files may be anybody's: what is not as train.py writes it is left out. Numbers look as in the card.
"""

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.publishing.card import plain, show_figure

_NO_DEVICE = (
    "> **This is no medical device.** It is for research and teaching. Nobody may be diagnosed, treated, "
    "triaged or sent home by it."
)
_SIMULATED = (
    "> **Simulated films.** Some or all of the films that it was trained and judged on were drawn by a "
    "program and show no patient."
)
_LEAKAGE = (
    "> **Leakage.** The films that judged this model are not all new to it. Its figures are too high, by an "
    "amount that nobody knows."
)


_KINDS = 20  # of pictures that a gate was tried on; train.py has fewer


def notices(report: dict, missing: list[str]) -> str:
    """What a reader must know ahead of any figure.

    Args:
        report: report.json, of any shape.
        missing: a sentence on each thing that is not there, in Markdown.
    """
    crossings = ("patients", "duplicate_groups", "films_seen")
    leaked = any(_count(report, "data", "leakage", name) for name in crossings)
    simulated = _below(report, "data", "simulated") is True
    parts = [_NO_DEVICE, _SIMULATED if simulated else "", _LEAKAGE if leaked else "", " ".join(missing)]
    return "\n\n".join(filter(None, parts))


def figures(report: dict, config: dict) -> list[str]:
    """A section for each kind of figures that is there, each under its heading.

    Args:
        report: report.json, of any shape.
        config: config.json, of any shape.
    """
    sections = (
        _how_good(report),
        _matrix(report),
        _decisions(report, config),
        _gate(report),
        _data(report),
        _limits(report),
    )
    return list(filter(None, sections))


def number(table: object, *keys: str) -> dict | float | None:
    """A figure below some keys, as `show_figure` takes it: a number, or {"value", "ci95"}, where the interval
    may be Wilson's.

    Returns:
        None where there is no such key, or where it holds something else.
    """
    found = _below(table, *keys)
    if _is_number(found):
        return found
    if not isinstance(found, dict) or not _is_number(found.get("value")):
        return None
    ends = found["ci95"] if "ci95" in found else found.get("wilson95")
    whole = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))
    return {"value": found["value"], "ci95": ends if whole else None}


def _below(table: object, *keys: str) -> object:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _is_number(value: object) -> bool:
    # JSON has NaN here, and numbers that are larger than a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _count(table: object, *keys: str) -> int | None:
    found = _below(table, *keys)
    return found if _is_number(found) and isinstance(found, int) and found >= 0 else None


def _percent(value: object) -> str:
    return f"{100 * value:.3g}%" if _is_number(value) and 0 <= value <= 1 else ""


def _how_good(report: dict) -> str:
    test, point = _below(report, "splits", "test"), _below(report, "operating_point", "test")
    threshold = number(report, "operating_point", "threshold")
    at = f" at threshold {show_figure(threshold)}" if threshold is not None else ""
    rows = {
        "AUROC": number(test, "auroc"),
        f"Sensitivity{at}": number(point, "sensitivity"),
        f"Specificity{at}": number(point, "specificity"),
        **_appearance(report),
    }
    values = _below(point, "predictive_values")
    for name, one in values.items() if isinstance(values, dict) else []:
        if name != "own" and (share := _percent(_below(one, "prevalence"))):
            rows[f"PPV where {share} of films show pneumonia"] = number(one, "ppv")
            rows[f"NPV where {share} of films show pneumonia"] = number(one, "npv")
    rows["Expected calibration error"] = number(report, "calibration", "test", "after", "ece")
    if not any(value is not None for value in rows.values()):
        return ""
    counts = [_count(test, name) for name in ("films", "patients")]
    of = "" if None in counts else f": {counts[0]} films of {counts[1]} patients"
    return _section(
        "How good it is",
        f"On the test split{of}. In brackets are 95% intervals.",
        _table(
            ("Figure", "Test films"),
            [(name, show_figure(one)) for name, one in rows.items() if one is not None],
        ),
    )


def _appearance(report: dict) -> dict[str, dict | float | None]:
    """Rows on images with the appearance of the other class; those that are not there are None."""
    appearance = _below(report, "checks", "appearance")
    factor = number(appearance, "factor")
    swaps = {
        f"with proportions swapped by {factor}": _below(appearance, "proportions", str(factor)),
        "with histogram and spectrum swapped": _below(appearance, "histogram_and_spectrum"),
    }
    names = {"AUROC": "auroc", "Sensitivity": "sensitivity", "Specificity": "specificity"}
    rows = {f"{title} {how}": number(one, key) for how, one in swaps.items() for title, key in names.items()}
    rows["AUROC of pairs matched by appearance"] = number(appearance, "matched_auroc")
    for title, key in list(names.items())[1:]:
        rows[f"{title} where appearance contradicts the label"] = number(appearance, "contradicting", key)
    return rows


def _matrix(report: dict) -> str:
    cells = {
        name: _count(report, "operating_point", "test", "confusion_matrix", name)
        for name in ("tn", "fp", "fn", "tp")
    }
    if None in cells.values():
        return ""
    return _section(
        "Confusion matrix",
        "Test films at the operating point.",
        _table(
            ("Labelled", "called NORMAL", "called PNEUMONIA"),
            [("NORMAL", cells["tn"], cells["fp"]), ("PNEUMONIA", cells["fn"], cells["tp"])],
        ),
    )


def _decisions(report: dict, config: dict) -> str:
    """The operating point and the band, of config.json, which is what decides here."""
    stated = _below(config, "pneumonia")
    threshold, target = number(stated, "threshold"), number(stated, "target_sensitivity")
    if not _is_number(threshold):
        return ""
    lines = [f"A film is called pneumonia from a probability of {show_figure(threshold)} on."]
    if _is_number(target):
        lines.append(f"This threshold was chosen to find {_percent(target)} of the pneumonias in validation.")
    band = [_below(stated, "uncertain", name) for name in ("low", "high", "risk")]
    if band_known := all(map(_is_number, band)):
        low, high, risk = band
        lines.append(
            f"From {show_figure(low)} to {show_figure(high)} it is called uncertain: have it read. Of films "
            f"like those of validation, at most {_percent(risk)} of the pneumonias lie below that band, and "
            f"at most {_percent(risk)} of the normal films above it."
        )
        films = [_count(report, "data", "splits", "validation", "classes", label) for label in LABELS]
        if None not in films and min(films) * risk < 1:
            lines.append(f"Validation has {min(films)} films of one class, too few to promise that.")
    open_, missed, alarms = (
        number(report, "uncertain", "test", name) for name in ("share", "missed", "false_alarms")
    )
    if band_known and None not in (open_, missed, alarms):
        lines.append(
            f"Of the test films {show_figure(open_)} are left open; of the pneumonias {show_figure(missed)} "
            f"lie below the band, and of the normal films {show_figure(alarms)} above it."
        )
    return _section("Decisions", " ".join(lines))


def _gate(report: dict) -> str:
    rows = []
    kinds = _below(report, "gate", "films")
    for name, one in list(kinds.items())[:_KINDS] if isinstance(kinds, dict) else []:
        counts = [_count(one, key) for key in ("films", "refused")]
        if None not in counts:
            rows.append((f"chest films, {plain(name)}", *counts))
    if not rows:
        return ""
    return _section("What is not a chest film", _table(("Pictures", "Number", "Refused"), rows))


def _data(report: dict) -> str:
    keys = (("films",), ("patients",), *(("classes", label) for label in LABELS))
    rows = []
    for name in ("train", "validation", "test"):
        counts = [_count(report, "data", "splits", name, *key) for key in keys]
        if None not in counts:
            rows.append((name, *counts))
    return _section("Data", _table(("Split", "Films", "Patients", *LABELS), rows)) if rows else ""


def _limits(report: dict) -> str:
    checks = _below(report, "checks")
    if not isinstance(checks, dict):
        return ""
    lines = [
        "Its test films are of the same sources as its training films. How it answers on films from "
        "elsewhere was not measured."
    ]
    without = number(checks, "shortcuts", "lungs_blacked_out", "auroc")
    if isinstance(without, dict):
        more = without["ci95"] and without["ci95"][0] > 0.5
        lines.append(
            f"With the lungs blacked out its AUROC is {show_figure(without)}, where 0.5 would be nothing"
            f"{': it reads more than lungs' if more else ''}."
        )
    missed, alarms, films = (
        _count(checks, "errors", "test", name) for name in ("miss", "false_alarm", "films")
    )
    if None not in (missed, alarms, films):
        lines.append(
            f"Missed pneumonias at the operating point: {missed}; false alarms: {alarms}; of {films} test "
            "films."
        )
    lines.append("It finds no other disease than pneumonia.")
    return _section("Limits", "\n".join(f"- {line}" for line in lines))


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", *parts))


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
