"""A small file of settings, JSON or YAML -> plain values: no objects are made of it, and none too large.

Knows nothing of what the settings mean.
"""

import json
from pathlib import Path

import yaml

# A recipe has 3 kB, one that names a hundred sources 10 kB; YAML is read at about 50 kB a second.
LARGEST_YAML = 100_000

# config.json of a network with 21,000 classes has 1.5 MB.
LARGEST_JSON = 5_000_000

_DEEPEST = 64


def read_yaml(file: Path) -> object:
    """Plain values of a YAML file.

    Raises:
        ValueError: it is no YAML, too large, too deep, or repeats itself by aliases, of which a few lines can
            stand for gigabytes; the message is one line.
        OSError: it can't be read.
    """
    text = _text(file, LARGEST_YAML)
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def read_json(file: Path) -> object:
    """Plain values of a JSON file.

    Raises:
        ValueError: it is no JSON, too large or too deep; the message is one line.
        OSError: it can't be read.
    """
    text = _text(file, LARGEST_JSON)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    _check_depth(values)
    return values


class _PlainLoader(yaml.SafeLoader):
    """yaml's SafeLoader without aliases, and not deeper than settings are."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.YAMLError(f"the alias *{event.anchor}: aliases are not read, write out what it means")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _text(file: Path, largest: int) -> str:
    with open(file, "rb") as content:
        data = content.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"more than {largest:,} bytes")
    return data.decode("utf-8")


def _check_depth(values: object) -> None:
    level, depth = [values], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
