import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_pneumonia.modeling import weights_header
from hf_pneumonia.modeling.weights_header import read_weights_header


def _write(path, header, content=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)
    return path


def _entry(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


WHOLE = {"a": _entry(0, 8, [2]), "b": _entry(8, 24, [2, 2])}


def test_a_header_says_what_safetensors_own_reader_finds(tmp_path):
    tensors = {
        "a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int64), "c": np.zeros((0, 4), np.float16),
        "d": np.zeros(5, np.uint8),
    }  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    with safe_open(tmp_path / "x.safetensors", "np") as content:
        expected = {}
        for name in tensors:
            part = content.get_slice(name)
            expected[name] = (part.get_dtype(), tuple(part.get_shape()))
    assert read_weights_header(tmp_path / "x.safetensors") == expected


DAMAGED = {
    "claims 40 bytes, of a file of 30": lambda path: _write(path, b"{" + bytes(21), b"", 40),
    "claims 6,513,249 bytes, of a file of 3": lambda path: path.write_bytes(b"abc"),
    "9,223,372,036,854,775,807 bytes": lambda path: _write(path, WHOLE, length=2**63 - 1),
    "header is damaged": lambda path: _write(path, b"{"),
    "damaged (maximum recursion": lambda path: _write(path, b"[" * 100_000),
    "no object": lambda path: _write(path, b"[]"),
    "a name stands there twice": lambda path: _write(path, b'{"a": 1, "a": 2}'),
    "'b' begins at byte 4, and expected is 8": lambda path: _write(
        path, {**WHOLE, "b": _entry(4, 20, [2, 2])}
    ),
    "'b' begins at byte 12": lambda path: _write(path, {**WHOLE, "b": _entry(12, 28, [2, 2])}),
    "20 bytes of tensors, and its header tells of 24": lambda path: _write(path, WHOLE, bytes(20)),
    "28 bytes of tensors, and its header tells of 24": lambda path: _write(path, WHOLE, bytes(28)),
    "does not fit its bytes": lambda path: _write(path, {**WHOLE, "a": _entry(0, 8, [3])}),
    "'a' has a damaged entry": lambda path: _write(path, {**WHOLE, "a": _entry(0, 8, [2], "OBJECT")}),
    "'b' has a damaged entry": lambda path: _write(path, {**WHOLE, "b": _entry(8, 24, [-2, -2])}),
    "'a' has a damaged": lambda path: _write(path, {**WHOLE, "a": _entry(0, 8, [True, 2])}),
    "'a' has a": lambda path: _write(path, {**WHOLE, "a": _entry(0, 8, [2.0])}),
    "'a' of shape": lambda path: _write(path, {**WHOLE, "a": _entry(0, 8, [1] * 40 + [2])}),
    "'a' has": lambda path: _write(path, {**WHOLE, "a": None}),
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_a_file_that_contradicts_itself_is_refused_in_one_line(tmp_path, reason):
    DAMAGED[reason](tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as error:
        read_weights_header(tmp_path / "x.safetensors")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_headers_and_numbers_of_tensors_have_limits(tmp_path, monkeypatch):
    file = _write(tmp_path / "x.safetensors", WHOLE)
    assert len(read_weights_header(file)) == 2
    monkeypatch.setattr(weights_header, "MOST_TENSORS", 1)
    with pytest.raises(ValueError, match="2 tensors, more than 1"):
        read_weights_header(file)
    monkeypatch.setattr(weights_header, "LARGEST_HEADER", 10)
    with pytest.raises(ValueError, match="its header claims"):
        read_weights_header(file)
