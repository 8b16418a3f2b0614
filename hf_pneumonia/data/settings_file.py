"""Read a small JSON or YAML file of plain values."""

import json
from pathlib import Path

import yaml

# A recipe has 3 kB, one that names a hundred sources 10 kB; YAML is read at about 50 kB a second.
LARGEST_YAML = 100_000


def read_yaml(file: Path) -> object:
    """Return the plain values of a YAML file.

    Raises:
        ValueError: not YAML, larger than LARGEST_YAML, or with aliases, of which a few lines can expand to
            gigabytes; the message is one line.
    """
    with open(file, "rb") as content:
        data = content.read(LARGEST_YAML + 1)
    if len(data) > LARGEST_YAML:
        raise ValueError(f"more than {LARGEST_YAML:,} bytes")
    try:
        return yaml.load(data.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def read_json(file: Path) -> object:
    """Return the plain values of a JSON file.

    Raises:
        ValueError: it is not JSON; the message is one line.
        OSError: it can't be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


class _PlainLoader(yaml.SafeLoader):
    """yaml's SafeLoader without aliases."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            anchor = self.get_event().anchor
            raise yaml.YAMLError(f"the alias *{anchor}: aliases are not read, write out what it means")
        return super().compose_node(parent, index)
