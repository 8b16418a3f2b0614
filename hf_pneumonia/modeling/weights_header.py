"""The header of a safetensors file -> names, kinds and shapes of its tensors, checked ahead of any reader.

Knows nothing of networks, and reads no number of a tensor.
"""

import json
import math
import os
from pathlib import Path

# Bytes of one number, of the kinds that a network is saved in.
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}

# The largest of timm's networks has 1,900 tensors, whose header is 250 kB. The format allows 100 MB.
LARGEST_HEADER = 8 * 2**20
MOST_TENSORS = 100_000
_MOST_AXES = 8


def read_weights_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names of the tensors in a file -> (kind of number, shape).

    The tensors must fill the rest of the file from end to end, without gap or overlap: what is read later is
    then no larger than the file.

    Args:
        file: of the format safetensors.

    Raises:
        ValueError: it is damaged, or no such file; the message is one line, without the file's name.
        OSError: it can't be read.
    """
    size = os.path.getsize(file)
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"its header claims {length:,} bytes, of a file of {size:,}")
        header = content.read(length)
    try:
        tensors = json.loads(header, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({str(error).splitlines()[0]})") from error
    if not isinstance(tensors, dict):
        raise ValueError("its header is damaged (no object)")
    tensors.pop("__metadata__", None)
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"{len(tensors):,} tensors, more than {MOST_TENSORS:,}")
    entries = {name: _entry(name, said) for name, said in tensors.items()}
    place = 0
    for start, stop, name in sorted((*entry[2], name) for name, entry in entries.items()):
        if start != place:
            raise ValueError(f"{name!r} begins at byte {start:,}, and expected is {place:,}")
        place = stop
    if place != size - 8 - length:
        raise ValueError(f"{size - 8 - length:,} bytes of tensors, and its header tells of {place:,}")
    return {name: (kind, shape) for name, (kind, shape, _) in entries.items()}


def _entry(name: str, said: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """(kind, shape, (start, stop) in bytes) of one tensor."""
    said = said if isinstance(said, dict) else {}
    kind, shape, offsets = (said.get(key) for key in ("dtype", "shape", "data_offsets"))
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    whole = all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    if not isinstance(kind, str) or kind not in _BYTES or not whole or len(offsets) != 2:
        raise ValueError(f"{name!r} has a damaged entry in its header")
    if len(shape) > _MOST_AXES or math.prod(shape) * _BYTES[kind] != offsets[1] - offsets[0]:
        raise ValueError(f"{name!r} of shape {shape[:_MOST_AXES]} and {kind} does not fit its bytes")
    return kind, tuple(shape), (offsets[0], offsets[1])


def _without_repetition(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found
