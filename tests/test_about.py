import json
import re
import shutil

import gradio as gr
import pytest
from browser import LAPTOP, PHONE, served
from huggingface_hub import HfApi, constants
from written import written_config, written_report

from hf_pneumonia.hub import commit_files
from hf_pneumonia.page.about import about_html, about_tab, whole_card_html
from hf_pneumonia.page.card_html import card_html
from hf_pneumonia.page.evidence import example_files, read_evidence
from hf_pneumonia.page.figures import figures, notices, number
from hf_pneumonia.publishing.contents import public_files

# What would run, or would be fetched, if a card could do more than be read. Each sets `window.ran`.
HOSTILE = """---
license: x
---
# A model <script>window.ran = 1</script>

<img src="x" onerror="window.ran = 2"> <svg onload="window.ran = 3"></svg>

<iframe srcdoc="<script>parent.ran = 4</script>"></iframe>

<details open ontoggle="window.ran = 5"><summary>more</summary></details>

[a](javascript:window.ran=6) [b](data:text/html,<script>window.ran=7</script>) [c](report.json)
[d](https://example.org/x) <https://example.org/y>

![there](https://elsewhere.example/pixel.png) ![roc](plots/roc.png) ![" onerror="window.ran=8](x.png)

${window.ran = 9} {{window.ran}} `${window.ran = 10}`

<style>body { display: none }</style>
<link rel="stylesheet" href="https://elsewhere.example/style.css">
<form action="https://elsewhere.example"><input name="password"></form>

| a | b |
|---|---|
| <b onclick="window.ran = 11">bold</b> | </table><script>window.ran = 12</script> |
"""


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def about(folder) -> str:
    return text_of(about_html(read_evidence(folder)))


@pytest.fixture
def copied(finished_run, tmp_path):
    """The finished run, to be spoilt."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def bare(copied):
    """Only what other people's models have: a network."""
    for path in list(copied.iterdir()):
        if path.name not in ("config.json", "model.safetensors"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return copied


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    """The local Hub for code that is not handed an HfApi, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return local_hub


def test_the_figures_are_the_reports_with_their_intervals():
    report, text = written_report(), "\n".join(figures(written_report(), written_config()))
    test, point = report["splits"]["test"], report["operating_point"]["test"]

    def shown(figure):
        return "{:.3f} [{:.3f}, {:.3f}]".format(figure["value"], *figure["ci95"])

    appearance = report["checks"]["appearance"]
    swapped, other = appearance["proportions"]["1.2"], appearance["histogram_and_spectrum"]
    contradicting = appearance["contradicting"]
    matrix = point["confusion_matrix"]
    rare = point["predictive_values"]["0.05"]
    for row in (
        f"| AUROC | {shown(test['auroc'])} |",
        f"| Sensitivity at threshold 0.843 | {shown(point['sensitivity'])} |",
        f"| Specificity at threshold 0.843 | {shown(point['specificity'])} |",
        f"| AUROC with proportions swapped by 1.2 | {shown(swapped['auroc'])} |",
        f"| Specificity with proportions swapped by 1.2 | {shown(swapped['specificity'])} |",
        f"| Sensitivity with histogram and spectrum swapped | {shown(other['sensitivity'])} |",
        f"| AUROC of pairs matched by appearance | {shown(appearance['matched_auroc'])} |",
        f"| Sensitivity where appearance contradicts the label | {shown(contradicting['sensitivity'])} |",
        f"| Specificity where appearance contradicts the label | {shown(contradicting['specificity'])} |",
        f"| PPV where 5% of films show pneumonia | {shown(rare['ppv'])} |",
        f"| NPV where 5% of films show pneumonia | {shown(rare['npv'])} |",
        f"| Expected calibration error | {shown(report['calibration']['test']['after']['ece'])} |",
        f"| NORMAL | {matrix['tn']} | {matrix['fp']} |",
        f"| PNEUMONIA | {matrix['fn']} | {matrix['tp']} |",
        "| test | 3006 | 2903 | 1003 | 2003 |",
        "On the test split: 3006 films of 2903 patients.",
        "Missed pneumonias at the operating point: 41; false alarms: 42; of 3006 test films.",
    ):
        assert row in text
    assert text.count("PPV") == 1  # the test split's own prevalence is no other hospital's


def test_the_band_is_told_with_its_promise_and_where_validation_is_too_small_for_it():
    config = {"pneumonia": {"threshold": 0.5, "uncertain": {"low": 0.25, "high": 0.75, "risk": 0.02}}}
    report = written_report()
    (said,) = [one for one in figures(report, config) if one.startswith("# Decisions")]
    assert "From 0.250 to 0.750 it is called uncertain: have it read." in said
    assert "at most 2% of the pneumonias" in said and "too few" not in said
    report["data"]["splits"]["validation"]["classes"]["NORMAL"] = 49  # 1 / 0.02 is 50
    assert "Validation has 49 films of one class, too few to promise that." in figures(report, config)[2]
    del config["pneumonia"]["uncertain"]
    assert "uncertain" not in "".join(figures(report, config))


def test_what_the_band_and_the_gate_come_to_is_told_where_the_report_says_so():
    report, config = written_report(), written_config()
    share = {"value": 0.871, "wilson95": [0.861, 0.881]}
    report["uncertain"] = {
        "test": {"share": share, "missed": {"value": 0.0}, "false_alarms": {"value": 0.25}}
    }
    report["gate"] = {
        "films": {
            "test": {"films": 300, "refused": 4, "share": {}},
            "damaged": {"films": "x"},
            "third": 5,
        },
    }
    text = "\n".join(figures(report, config))
    assert "Of the test films 0.871 [0.861, 0.881] are left open" in text
    assert "of the pneumonias 0.000 [no interval] lie below" in text and "0.250 [no interval] above" in text
    assert "| chest films, test | 300 | 4 |" in text
    assert "damaged" not in text and "third" not in text


def test_notices_stand_ahead_where_they_must_and_nowhere_else():
    report = written_report()
    plain = notices(report, [])
    assert "no medical device" in plain and "Simulated" not in plain and "Leakage" not in plain
    report["data"] |= {"simulated": True, "leakage": {"films_seen": 1}}
    assert "Simulated films" in notices(report, []) and "Leakage" in notices(report, ["It has no card."])


def test_a_run_folder_shows_its_figures_its_plots_and_the_card_that_publishing_would_send(finished_run):
    evidence = read_evidence(finished_run)
    assert evidence.missing == [] and set(evidence.plots) > {"plots/roc.png", "plots/reliability.png"}
    html, card = about_html(evidence), text_of(whole_card_html(evidence))
    assert html.count("data:image/png;base64,") == 2 and "AUROC" in html
    published = public_files(finished_run, "local/tiny")["README.md"].decode()
    sections = re.findall(r"^## (.*)$", published, flags=re.MULTILINE)
    assert len(sections) > 5 and all(section in card for section in sections)
    assert "license: apache" not in card and str(finished_run) not in html + card


def test_a_published_model_shows_the_same_figures_as_the_run_that_it_is_of(finished_run, hub):
    files = public_files(finished_run, "ann/x")
    commit_files(HfApi(hub.url, token=hub.user("ann")), "ann/x", files, message="A model")
    fetched, run = read_evidence("ann/x"), read_evidence(str(finished_run))
    assert about_html(fetched) == about_html(run)
    assert fetched.card == files["README.md"].decode()


def test_a_model_of_other_people_has_nothing_and_that_is_a_sentence(bare, hub):
    commit_files(
        HfApi(hub.url, token=hub.user("ann")),
        "ann/x",
        {path.name: path for path in bare.iterdir()},
        message="A model",
    )
    for model in (bare, "ann/x"):
        evidence = read_evidence(model)
        text = text_of(about_html(evidence))
        assert "This model publishes no report. This model publishes no card." in text
        assert "AUROC" not in text and evidence.card == "" and example_files(model) == []


def test_what_can_not_be_had_is_a_sentence(hub):
    text = about("ann/none")
    assert "can't be had" in text and "no such repository" in text and example_files("ann/none") == []


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"splits": [], "operating_point": 5, "checks": [1], "data": "x", "calibration": null}',
        b'{"splits": {"test": {"auroc": {"value": "<b>1</b>", "ci95": [0]}, "films": NaN}}}',
        b'{"operating_point": {"threshold": {"value": 1e999}, "test": {"predictive_values": {"x": 1}}}}',
        b'{"operating_point": {"test": {"sensitivity": {"value": 0.9, "ci95": "x"}}}, "checks": {"a": 1}}',
        b'{"accuracy": 0.99}',
    ],
)
def test_a_report_that_is_damaged_or_of_others_breaks_nothing(copied, content):
    (copied / "report.json").write_bytes(content)
    evidence = read_evidence(copied)
    text = text_of(about_html(evidence))
    assert "no medical device" in text and "<b>" not in about_html(evidence)
    assert "card can be made of this run" in text and str(copied) not in text


def test_every_key_of_a_report_may_be_missing_or_of_another_kind():
    config = written_config()

    def spoilt(table: dict, value: object):
        for key in list(table):
            kept = table[key]
            table[key] = value
            yield
            table[key] = kept
            if isinstance(kept, dict):
                yield from spoilt(kept, value)

    for value in (None, "x", [], [1], {}, -5, float("nan"), True, 10**400):
        report = written_report()
        for _ in spoilt(report, value):
            notices(report, [])
            assert "nan" not in "".join(figures(report, config))


def test_figures_of_other_weights_are_not_shown(copied):
    report = json.loads((copied / "report.json").read_text())
    report["weights_sha256"] = "0" * 64
    (copied / "report.json").write_text(json.dumps(report))
    text = about(copied)
    assert "is of other weights than these" in text and "How good it is" not in text


def test_why_a_card_stays_away_never_names_a_film(copied):
    manifest = (copied / "audit" / "manifest.csv").read_text()
    # A patient whose id stands in every card of this run.
    name = "calibration-error"
    (copied / "audit" / "manifest.csv").write_text(manifest.replace(",person200_bacteria,", f",{name},"))
    report = json.loads((copied / "report.json").read_text())
    report["data"]["notes"] = [f"split by {name}"]
    (copied / "report.json").write_text(json.dumps(report))
    text = about(copied)
    assert "No card can be made of this run: it would name a film" in text and name not in text


def test_a_figure_is_a_number_with_or_without_an_interval_and_nothing_else():
    table = {"a": {"b": 0.5}, "c": {"value": 0.5, "ci95": [0.4, 0.6]}, "d": {"value": 1, "ci95": [0, None]}}
    assert number(table, "a", "b") == 0.5 and number(table, "c") == table["c"]
    assert number(table, "d") == {"value": 1, "ci95": None}
    assert (
        number(table, "a") is None
        and number(table, "a", "b", "c") is None
        and number({"x": True}, "x") is None
    )


def test_a_card_keeps_its_words_and_loses_its_front_matter():
    html = card_html(
        "---\nlicense: x\n---\n# A\n\nsee [B b](#b-b), [r](report.json)\n\n## B *b*\n\n![R](p.png)", {}
    )
    assert "license" not in html and '<h2 id="card-a">A</h2>' in html
    assert '<a href="#card-b-b">' not in html or '<h3 id="card-b-b">' in html
    assert "<span>r</span>" in html and "<p>R</p>" in html and "<img" not in html
    assert card_html("---\n\na line, and no front matter", {}).endswith(
        "<p>a line, and no front matter</p>\n"
    )
    assert "<img alt='x'>" in card_html("![R](p.png)", {"p.png": "<img alt='x'>"})


def test_nothing_of_a_hostile_card_is_left_in_the_html():
    html = card_html(HOSTILE, {})
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= {
        "h2", "p", "a", "span", "code", "div", "table", "thead", "tbody", "tr", "th", "td"
    }  # fmt: skip
    assert set(re.findall(r'href="([^"]*)"', html)) == {"https://example.org/x", "https://example.org/y"}
    assert not re.search(r"<[^>]*\son\w+=", html)


def test_a_hostile_card_runs_nothing_and_fetches_nothing_in_a_browser(bare, browser):
    (bare / "README.md").write_text(HOSTILE)
    with gr.Blocks(analytics_enabled=False) as page:
        about_tab(read_evidence(bare))
    with served(page) as address:
        tab = browser.new_page(viewport=LAPTOP)
        asked, errors = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(address)
        tab.get_by_role("button", name="The whole model card").click()
        tab.get_by_text("A model").wait_for()
        tab.get_by_text("window.ran = 9").wait_for()  # shown, and not computed
        assert tab.evaluate("window.ran") is None and errors == []
        assert not [url for url in asked if "elsewhere.example" in url or "example.org" in url]
        tab.close()


def test_the_tab_fits_a_phone_and_its_card_opens_by_keyboard(finished_run, browser):
    with gr.Blocks(analytics_enabled=False) as page:
        about_tab(read_evidence(finished_run))
    with served(page) as address:
        tab = browser.new_page(viewport=PHONE, color_scheme="dark")
        tab.goto(address)
        tab.get_by_role("heading", name="How good it is").wait_for()
        assert tab.get_by_role("heading", name="Intended use").count() == 0
        tab.get_by_role("button", name="The whole model card").focus()
        tab.keyboard.press("Enter")
        tab.get_by_role("heading", name="Intended use").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        pictures = tab.locator("img[src^='data:image/png']")
        assert pictures.count() == 6
        assert all(pictures.evaluate_all("all => all.map(one => one.complete && one.naturalWidth > 0)"))
        assert all(pictures.evaluate_all("all => all.map(one => one.alt.length > 10)"))
        tab.close()


def test_examples_are_the_films_of_their_folder_and_their_source_is_shown(bare):
    folder = bare / "examples"
    folder.mkdir()
    for name in ("b.PNG", "a.jpeg", "c.dcm", ".hidden.png", "run.py", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "deep.png").mkdir()
    (folder / "README.md").write_text("Films of *somebody*, CC0. <script>window.ran = 1</script>")
    assert [path.name for path in example_files(bare)] == ["a.jpeg", "b.PNG", "c.dcm"]
    assert "Where its examples come from Films of somebody , CC0." in about(bare)
    for number_ in range(9):
        (folder / f"film-{number_}.jpg").write_bytes(b"x")
    assert len(example_files(bare)) == 8


def test_examples_of_a_repository_come_with_its_evidence(bare, hub):
    files = {path.name: path for path in bare.iterdir()}
    files |= {"examples/film.jpeg": b"x", "examples/LICENSE": b"CC0"}
    commit_files(HfApi(hub.url, token=hub.user("ann")), "ann/x", files, message="A model")
    assert [path.read_bytes() for path in example_files("ann/x")] == [b"x"]
    assert "CC0" in about("ann/x")
