"""Report -> README.md of the model, through the template card.md. Every number in it is the report's."""

import re
from pathlib import Path

import jinja2

from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.card_data import base_model, card_data

TEMPLATE = Path(__file__).with_name("card.md")

# Names under which the films of Kermany et al. are passed on; of others the card says what the run knows.
_KERMANY = re.compile(r"kermany|chest[-_]?xray[-_]pneumonia", re.IGNORECASE)


class _Missing(jinja2.StrictUndefined):
    """A key that the template asks for and the report does not have: a run of an older version."""

    def _fail_with_undefined_error(self, *args, **kwargs):
        raise UsageError(
            f"report.json lacks {self._undefined_name!r}, which the card needs; train again with this version"
        )

    __str__ = __int__ = __iter__ = __len__ = __bool__ = __eq__ = __ne__ = __hash__ = (
        _fail_with_undefined_error
    )
    __getattr__ = __getitem__ = __add__ = __call__ = __lt__ = __contains__ = __format__ = (
        _fail_with_undefined_error
    )


def card(report: dict, config: dict, recipe: dict, manifest: dict, repo: str) -> str:
    """The model card, front matter included. The same run gives the same text.

    Args:
        report: from `public_report`.
        config: the model's config.json.
        recipe: from `public_recipe`.
        manifest: from `summarise_manifest`.
        repo: user/name, under which the model will stand; `USER/...` where it is not known yet.

    Raises:
        UsageError: the report lacks what the card needs.
    """
    names = list(manifest["sources"])
    # Others have data sets of such names, too; person1000_bacteria_2931 and IM-0115-0001 are these alone.
    named_so = 2 * manifest["patients_known_by"]["file name"] > manifest["films"]
    kinds = [source["kind"] for source in manifest["sources"].values()]
    environment = jinja2.Environment(
        undefined=_Missing,
        finalize=_no_null,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"figure": show_figure, "epochs": _show_epochs, "plain": plain}
    try:
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            front_matter=card_data(report, recipe, manifest, repo).to_yaml(),
            repo=repo,
            published=not repo.startswith("USER/"),
            report=report,
            config=config,
            recipe=recipe,
            manifest=manifest,
            source=", ".join(map(plain, names)),
            base_model=base_model(recipe),
            own_network=config["architecture"].startswith("cnn_"),
            simulated="phantom" in kinds,
            all_simulated=set(kinds) == {"phantom"},
            kermany=named_so and all(_KERMANY.search(name) for name in names),
            some_kermany=named_so and any(_KERMANY.search(name) for name in names),
            local=[plain(name) for name, kind in zip(names, kinds, strict=True) if kind == "local"],
            worst=worst_levels(report["checks"]["robustness"]),
        )
    except KeyError as error:
        raise UsageError(
            f"report.json lacks {error}, which the card needs; train again with this version"
        ) from error


def _show_epochs(number: float) -> str:
    return str(int(number) if number == int(number) else number)


def _no_null(value: object) -> object:
    """A figure may be null, and is then said to be not defined; a count or a name may not."""
    if value is None:
        raise UsageError(
            "report.json has a null where the card needs a count or a name; train again with this version"
        )
    return value


def show_figure(figure: dict | float | None, digits: int = 3) -> str:
    """A number of the report as the card shows it; the one place where numbers are rounded.

    Args:
        figure: a number; or {"value"} with "ci95", or else "wilson95", shown with that interval.
        digits: after the point. More are shown where a number would look like 0 or 1 and is not.
    """
    if isinstance(figure, dict):
        if figure["value"] is None:
            return "not defined"
        ends = figure["ci95"] if "ci95" in figure else figure["wilson95"]
        interval = ", ".join(show_figure(end, digits) for end in ends) if ends else "no interval"
        return f"{show_figure(figure['value'], digits)} [{interval}]"
    if figure is None:
        return "not defined"
    shown = f"{figure:.{digits}f}"
    while 0 < digits < 17 and float(shown) in (0, 1) and float(shown) != figure:
        digits += 1
        shown = f"{figure:.{digits}f}"
    return shown


def plain(text: object) -> str:
    """A name from outside as it can stand in a table or a sentence of Markdown."""
    return re.sub(r"[^\w .,:;()/+=-]+|_{2,}", "_", " ".join(str(text).split()))


def worst_levels(robustness: dict) -> dict[str, dict]:
    """For each figure the change of the films at which it is lowest: its `name`, `level`, `unit` and
    `figure`. None where no level defines it."""
    found: dict = {"auroc": None, "sensitivity": None, "specificity": None}
    for name, change in robustness.items():
        if not isinstance(change, dict):
            continue
        for level in change["levels"]:
            for figure in found:
                value = level[figure]["value"]
                if value is not None and (found[figure] is None or value < found[figure]["figure"]["value"]):
                    found[figure] = {
                        "name": name,
                        "level": level["level"],
                        "unit": change["unit"],
                        "figure": level[figure],
                    }
    return found
