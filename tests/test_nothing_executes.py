"""Read from the syntax trees: nothing that is loaded is ever run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("hf_pneumonia/**/*.py")) + [
    ROOT / f"{name}.py" for name in ("train", "app", "push_to_hub")
]

# Modules that make objects, and so calls, of what they read.
MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle",
    "code", "runpy",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}
# Methods and functions by their last name, wherever they come from.
NEVER = {
    "extract", "extractall", "unpack_archive", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all",
    "load_all", "read_pickle", "to_pickle", "system", "popen", "load_state_dict_from_url", "hub_load",
}  # fmt: skip


def _name(node: ast.expr) -> str:
    """`torch.load` of that expression."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def found_in(source: str) -> list[str]:
    """What in a program may run what it loads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names if one.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        if not isinstance(node, ast.Call):
            continue
        name, given = _name(node.func), {one.arg: one.value for one in node.keywords}
        last = name.rpartition(".")[2]
        strict_yaml = name == "yaml.load" and len(node.args) == 2 and _name(node.args[1]) == "_PlainLoader"
        allowed = {
            "load": name.split(".")[0] not in ("torch", "np", "numpy", "yaml")
            or (name.startswith("n") and _is(given.get("allow_pickle"), False))
            or (name == "torch.load" and _is(given.get("weights_only"), True))
            or strict_yaml,
            "recv": bool(node.args),  # bytes of a socket, so many; a pipe's takes no number, and unpickles
        }
        if name in BUILT_IN or last in NEVER or not allowed.get(last, True):
            found.append(name)
        # Ours are called by what they are: a path, and no code beside it.
        if last == "from_pretrained" and name.split(".")[0].startswith("Auto"):
            found += (
                [] if _is(given.get("trust_remote_code"), False) else [f"{name} without trust_remote_code"]
            )
        for argument, fine in (
            ("trust_remote_code", False),
            ("shell", False),
            ("allow_pickle", False),
            ("weights_only", True),
        ):
            if argument in given and not _is(given[argument], fine):
                found.append(f"{name}({argument}=...)")
        if last == "import_module" and not all(isinstance(one, ast.Constant) for one in node.args):
            found.append(f"{name} of a name that is computed")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_loads(path):
    assert found_in(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "exec(x)", "__import__(x)", "torch.load(x)",
        "torch.load(x, weights_only=False)", "np.load(x)", "np.load(x, allow_pickle=True)", "yaml.load(x)",
        "yaml.load(x, yaml.SafeLoader)", "yaml.unsafe_load(x)", "archive.extractall(x)", "zip.extract(y)",
        "subprocess.run(x, shell=True)", "os.system(x)", "f(trust_remote_code=True)",
        "f(trust_remote_code=x)",
        "AutoModel.from_pretrained(x)", "importlib.import_module(x)", "pandas.read_pickle(x)",
        "pipe.recv()", "torch.hub.load(x)", "torch.jit.load(x)",
        "shutil.unpack_archive(x)",
    ],
)  # fmt: skip
def test_what_would_run_it_is_found(line):
    assert found_in(line)


@pytest.mark.parametrize(
    "line",
    [
        "np.load(x, allow_pickle=False)", "onnx.load(x)", "image.load()", "json.loads(x)", "re.compile(x)",
        "model.eval()", "image.save(x)", "AutoConfig.from_pretrained(x, trust_remote_code=False)",
        "pipe.recv_bytes()", "socket.recv(4096)",
        "subprocess.run([x])", "yaml.safe_load(x)",
    ],
)  # fmt: skip
def test_what_would_not_is_not(line):
    assert not found_in(line)
