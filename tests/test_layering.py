import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_pneumonia"
ROOMS = ["errors", "hub", "data", "modeling", "evaluation", "training", "inference", "publishing", "page"]


def _imports(path: Path) -> set[str]:
    """Rooms that a module imports, read from its syntax tree: imports inside functions count too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("hf_pneumonia.relative")  # spelled out everywhere, so that this test sees it
    return {name.split(".")[1] for name in names if name.startswith("hf_pneumonia.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_room_imports_only_from_itself_and_from_rooms_to_its_left(path):
    here = ROOMS.index(path.parent.name)
    assert {ROOMS.index(room) for room in _imports(path)} <= set(range(here + 1))


def test_every_folder_of_the_package_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= set(ROOMS)


def test_the_scripts_at_the_top_are_imported_by_no_room():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not modules & {"train", "app", "push_to_hub"}, path
