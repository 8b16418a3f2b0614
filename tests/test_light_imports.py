import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = {"torch", "timm", "transformers", "datasets", "accelerate", "sklearn", "scipy.stats", "matplotlib"}


@pytest.mark.parametrize(
    "module",
    [
        "data.cores",
        "data.manifest",
        "evaluation.trade_off",
        "inference.gate",
        "inference.inputs",
        "inference.which_model",
        "page.decoding_process",
        "page.examples",
    ],
)
def test_what_the_page_needs_beside_the_network_imports_nothing_heavy(module):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import hf_pneumonia.{module}\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
