import re
import shutil

import gradio as gr
import pytest
from browser import LAPTOP, PHONE, served
from huggingface_hub import HfApi, constants

from hf_pneumonia.hub import commit_files
from hf_pneumonia.page.about import about_tab
from hf_pneumonia.page.evidence import Evidence, example_files, plain_markdown, read_evidence
from hf_pneumonia.publishing.contents import public_files

# What would run, or be fetched, if a card could do more than be read. Each sets `window.ran`.
HOSTILE = """---
license: x
---
# A model <script>window.ran = 1</script>

<img src="x" onerror="window.ran = 2"> <svg onload="window.ran = 3"></svg>

<iframe srcdoc="<script>parent.ran = 4</script>"></iframe>

[a](javascript:window.ran=6) [b](data:text/html,<script>window.ran=7</script>) [d](https://example.org/x)

![there](https://elsewhere.example/pixel.png) !![again](https://elsewhere.example/pixel.png)
![by reference][far] [![a link](https://elsewhere.example/pixel.png)](https://example.org)

[far]: https://elsewhere.example/pixel.png

${window.ran = 9} {{window.ran}}

<style>body { display: none }</style> <link rel="stylesheet" href="https://elsewhere.example/style.css">
"""


def shown(evidence: Evidence) -> tuple[str, str]:
    """The Markdown and the HTML of the tab."""
    with gr.Blocks(analytics_enabled=False) as page:
        about_tab(evidence)
    parts = {type(block): block.value for block in page.blocks.values()}
    return parts[gr.Markdown], parts.get(gr.HTML, "")


@pytest.fixture
def bare(finished_run, tmp_path):
    """Only what other people's models have: a network."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        shutil.copy(finished_run / name, tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    """The local Hub for code that is not handed an HfApi, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return local_hub


def publish(hub, files: dict, name: str = "ann/x") -> None:
    commit_files(HfApi(hub.url, token=hub.user("ann")), name, files, message="A model")


def test_a_finished_run_shows_its_card_and_its_plots_and_names_no_place(finished_run):
    text, html = shown(read_evidence(finished_run))
    sections = re.findall(r"^## (.*)$", (finished_run / "README.md").read_text(), flags=re.MULTILINE)
    assert len(sections) > 5 and all(f"## {section}" in text for section in sections)
    assert "no medical device" in text and "Not published" in text and "license:" not in text
    assert html.count("data:image/png;base64,") == 6
    assert str(finished_run) not in text + html


def test_a_published_model_shows_the_card_that_was_published(finished_run, hub):
    files = public_files(finished_run, "ann/x")
    publish(hub, files)
    fetched = read_evidence("ann/x")
    assert fetched.card == plain_markdown(files["README.md"].decode()) and len(fetched.plots) == 6
    assert "Not published" not in fetched.card


def test_a_model_without_a_card_and_one_that_can_not_be_had_are_a_sentence(bare, hub):
    publish(hub, {path.name: path for path in bare.iterdir()})
    for model in (bare, "ann/x"):
        assert shown(read_evidence(model)) == ("This model has no card.", "")
        assert example_files(model) == []
    assert "no such repository" in shown(read_evidence("ann/none"))[0] and example_files("ann/none") == []


def test_a_card_of_other_weights_is_not_shown(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    text, html = shown(read_evidence(run))
    assert "of other weights" in text and "AUROC" not in text and html == ""


def test_a_hostile_card_keeps_its_words_and_has_neither_html_nor_images(bare):
    (bare / "README.md").write_text(HOSTILE)
    text, _ = shown(read_evidence(bare))
    assert "# A model" in text and "license" not in text
    assert not re.search(r"<[A-Za-z/!?]|!\[", text)
    (bare / "README.md").write_bytes(b"\xff\xfe" + b"[" * 200_000)
    assert len(shown(read_evidence(bare))[0]) < 110_000


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
        tab.get_by_text("window.ran = 9").wait_for()  # shown, and not computed
        assert tab.evaluate("window.ran") is None and errors == []
        assert tab.locator("a[href^=javascript]").count() == 0
        assert not [url for url in asked if "elsewhere.example" in url or "example.org" in url]
        tab.close()


def test_the_tab_fits_a_phone(finished_run, browser):
    with gr.Blocks(analytics_enabled=False) as page:
        about_tab(read_evidence(finished_run))
    with served(page) as address:
        tab = browser.new_page(viewport=PHONE, color_scheme="dark")
        tab.goto(address)
        tab.get_by_role("heading", name="Intended use").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        pictures = tab.locator("img[src^='data:image/png']")
        assert pictures.count() == 6
        assert all(pictures.evaluate_all("all => all.map(one => one.complete && one.naturalWidth > 0)"))
        assert all(pictures.evaluate_all("all => all.map(one => one.alt.length > 10)"))
        tab.close()


def test_examples_are_the_images_of_their_folder_and_their_source_is_shown(bare, hub):
    folder = bare / "examples"
    folder.mkdir()
    for name in ("b.PNG", "a.jpeg", "c.dcm", ".hidden.png", "run.py", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "deep.png").mkdir()
    (folder / "README.md").write_text("Images of *somebody*, CC0. <script>window.ran = 1</script>")
    assert [path.name for path in example_files(bare)] == ["a.jpeg", "b.PNG", "c.dcm"]
    text, _ = shown(read_evidence(bare))
    assert "come from\n\nImages of *somebody*, CC0. &lt;script>" in text
    publish(hub, {path.relative_to(bare).as_posix(): path for path in bare.rglob("*") if path.is_file()})
    assert len(example_files("ann/x")) >= 2 and "CC0" in shown(read_evidence("ann/x"))[0]
    for number in range(9):
        (folder / f"image-{number}.jpg").write_bytes(b"x")
    assert len(example_files(bare)) == 8
