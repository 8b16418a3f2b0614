"""Rules of the source: import order, no code execution from loaded files, valid links in the docs."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

# Packages, modules and scripts import only from themselves and from those to their left.
ORDER = (
    "errors hub data modeling evaluation training inference publishing page __init__ __main__ "
    "train app push_to_hub"
).split()


SOURCES = [*(ROOT / "hf_pneumonia").rglob("*.py"), *(ROOT / f"{name}.py" for name in ORDER[-3:])]


def _package(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return (parts[1] if parts[0] == "hf_pneumonia" else parts[0]).removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Return the packages that a module imports, also inside functions; ruff forbids relative imports."""
    line = r"^ *(?:from|import) (?:hf_pneumonia(?:\.| import ))?(\w+)"
    return set(re.findall(line, path.read_text(), re.MULTILINE)) & set(ORDER)


def test_packages_import_only_from_those_to_their_left():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        for name in _imported(path)
        if name not in ORDER[: ORDER.index(_package(path)) + 1]
    ]
    assert wrong == [] and len(SOURCES) > 50


RUNS_LOADED_CODE = """
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


def test_ruff_refuses_functions_that_run_loaded_code():
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "-"]
    command += ["--stdin-filename", str(ROOT / "hf_pneumonia" / "data" / "another.py")]
    done = subprocess.run(command, input=RUNS_LOADED_CODE, capture_output=True, text=True, cwd=ROOT)
    found = {int(line) for line in re.findall(r"another\.py:(\d+):\d+: (?:S\d|TID)", done.stdout)}
    assert found == set(range(2, RUNS_LOADED_CODE.count("\n") + 1)), done.stdout


def test_no_code_of_a_model_is_trusted():
    assert not [path for path in SOURCES if "trust_remote_code=True" in path.read_text()]


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, in GitHub's format."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_of_the_docs_is_valid():
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
