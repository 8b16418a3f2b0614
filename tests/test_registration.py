import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = "{'torch', 'timm', 'transformers'}"
NAMES = "{'cnn_baseline', 'cnn_improved'}"


def _python(code: str, folder) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_package_alone_imports_nothing_heavy(tmp_path):
    _python(
        f"""
import hf_pneumonia
assert not {HEAVY} & set(sys.modules)
assert hf_pneumonia.__version__
""",
        tmp_path,
    )


@pytest.mark.parametrize(
    "first",
    ["import hf_pneumonia, timm", "import timm, hf_pneumonia", "import hf_pneumonia.modeling.cnn, timm"],
)
def test_timm_knows_the_networks_whichever_is_imported_first(first, tmp_path):
    _python(
        f"""
{first}
assert {NAMES} <= set(timm.list_models("cnn_*")) and timm.is_model("resnet18")
assert not [finder for finder in sys.meta_path if "hf_pneumonia.registration" in type(finder).__module__]
import importlib
importlib.reload(timm)
assert timm.is_model("cnn_baseline")
""",
        tmp_path,
    )


def test_to_look_for_timm_finds_its_own_files_and_imports_nothing(tmp_path):
    _python(
        f"""
import importlib.util
plain = importlib.util.find_spec("timm")
import hf_pneumonia
ours = importlib.util.find_spec("timm")
assert (ours.origin, ours.submodule_search_locations) == (plain.origin, plain.submodule_search_locations)
assert type(ours.loader) is type(plain.loader)
assert importlib.util.find_spec("timm_that_is_not_there") is None
assert not {HEAVY} & set(sys.modules)
""",
        tmp_path,
    )


def test_without_timm_the_package_is_still_imported(tmp_path):
    _python(
        """
import hf_pneumonia, importlib.util
class Nowhere:
    find_spec = staticmethod(lambda name, path=None, target=None: None)
sys.meta_path[1:] = [Nowhere]
assert importlib.util.find_spec("timm") is None
try:
    import timm
except ModuleNotFoundError as error:
    assert error.name == "timm"
else:
    raise AssertionError
""",
        tmp_path,
    )


def test_a_timm_that_fails_to_import_fails_as_ever_and_registers_when_it_is_mended(tmp_path):
    (tmp_path / "timm.py").write_text("raise ImportError('no torchvision')")
    _python(
        """
import hf_pneumonia, importlib, os
try:
    import timm
except ImportError as error:
    assert str(error) == "no torchvision"
else:
    raise AssertionError
os.remove("timm.py")
importlib.invalidate_caches()
import timm
assert timm.is_model("cnn_baseline")
""",
        tmp_path,
    )


def test_spawned_workers_know_the_networks(tmp_path):
    (tmp_path / "spawned.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import hf_pneumonia
import multiprocessing

def known(name):
    import timm
    return timm.is_model(name)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(known, ["cnn_baseline", "cnn_no"]) == [True, False]
"""
    )
    done = subprocess.run(
        [sys.executable, "spawned.py"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
