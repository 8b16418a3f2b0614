"""Rules of the source: the order of imports, nothing that is loaded is run, links of the docs."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

# A package, module or script imports from itself and from what stands to its left.
ORDER = (
    "errors hub data modeling evaluation training inference publishing page __init__ __main__ "
    "train app push_to_hub"
).split()


SOURCES = [*(ROOT / "hf_pneumonia").rglob("*.py"), *(ROOT / f"{name}.py" for name in ORDER[-3:])]


def _place(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return (parts[1] if parts[0] == "hf_pneumonia" else parts[0]).removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Places that a module imports, inside of functions too; relative imports are refused by ruff."""
    line = r"^ *(?:from|import) (?:hf_pneumonia(?:\.| import ))?(\w+)"
    return set(re.findall(line, path.read_text(), re.MULTILINE)) & set(ORDER)


def test_everything_imports_only_from_what_stands_to_its_left():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        for name in _imported(path)
        if name not in ORDER[: ORDER.index(_place(path)) + 1]
    ]
    assert wrong == [] and len(SOURCES) > 50


RUNS_WHAT_IT_LOADS = """
import pickle
from joblib import load
import dill as fine
x = eval("1")
exec("1")
from torch import load as read; read("x")
import torch as t; t.load("x", weights_only=False)
t.save(1, "x")
t.hub.load("x")
t.jit.load("x")
import numpy as np; np.load("x", allow_pickle=True)
import yaml; yaml.load("x", yaml.SafeLoader)
yaml.unsafe_load("x")
import shutil; shutil.unpack_archive("x")
import os; os.system("x")
import subprocess; subprocess.run("x", shell=True)
import pandas; pandas.read_pickle("x")
import importlib; importlib.import_module("x")
from transformers import AutoModel
from . import relative
"""


def test_ruff_refuses_whatever_runs_what_it_loads_by_any_name():
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "-"]
    command += ["--stdin-filename", str(ROOT / "hf_pneumonia" / "data" / "another.py")]
    done = subprocess.run(command, input=RUNS_WHAT_IT_LOADS, capture_output=True, text=True, cwd=ROOT)
    found = {int(line) for line in re.findall(r"another\.py:(\d+):\d+: (?:S\d|TID)", done.stdout)}
    assert found == set(range(2, RUNS_WHAT_IT_LOADS.count("\n") + 1)), done.stdout


def test_no_code_of_a_model_is_trusted():
    assert not [path for path in SOURCES if "trust_remote_code=True" in path.read_text()]


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_of_the_docs_leads_to_a_file_and_a_heading():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)", page.read_text()):
            file, _, anchor = "".join(link).partition("#")
            target = page.parent / file if file else page
            if not file.startswith("http") and not (
                target.exists() and (not anchor or anchor in _anchors(target))
            ):
                broken.append(f"{page.name}: {''.join(link)}")
    assert broken == [] and len(pages) > 10
