"""Generators of valid files and seeded corruptions of them, independent of the readers."""

import copy
import io
import json
import struct
import zipfile

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

_EXTREMES = (
    0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1,
)  # fmt: skip

# Replacements for plain values in settings.
_VALUES = (
    None, True, False, 0, -1, 1, 10**6, 10**9, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x",
    "\0", "../../etc/passwd", "a" * 10_000, [], [[]], [1] * 1000, {}, {"a": {"b": []}}, [None], ["a", 1],
    "true", "1e999",
)  # fmt: skip


# Keys that name files or code to transformers or timm, and what they may name.
_KEYS = (
    "transformers_weights", "auto_map", "quantization_config", "base_model_name_or_path", "_name_or_path",
)  # fmt: skip
_FILES = ("gate.safetensors", "model.bin", "../model.safetensors", "/etc/passwd", {"AutoConfig": "x.Y"}, {})


def corrupt(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Apply one to four random changes to bytes.

    Bytes are flipped, cut, doubled, or overwritten with extreme numbers, zeros, or a part of another file.
    """
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not content:
            break
        # Headers are at the front, and matter more than pixels.
        reach = len(content) if rng.random() < 0.5 else min(len(content), 512)
        place, length = int(rng.integers(reach)), int(rng.integers(1, 65))
        kind = rng.integers(8)
        if kind == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[int(rng.integers(len(content))) :]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        elif kind == 3:
            width, order = int(rng.choice([1, 2, 4, 8])), "little" if rng.random() < 0.5 else "big"
            number = _EXTREMES[rng.integers(len(_EXTREMES))] % (1 << (8 * width))
            content[place : place + width] = number.to_bytes(width, order)
        elif kind == 4:
            content[place : place + length] = bytes(length)
        elif kind == 5:
            del content[place : place + length]
        elif kind == 6 and other:
            start = int(rng.integers(len(other)))
            content[place : place + length] = other[start : start + 8 * length]
        else:
            content[place : place + length] = rng.bytes(length)
    return bytes(content)


def corrupt_settings(settings: dict, rng: np.random.Generator) -> dict:
    """Change one to three values of nested settings to extremes, or remove or move them."""
    settings = copy.deepcopy(settings)
    for _ in range(rng.integers(1, 4)):
        places = [(settings, key) for key in settings]
        for holder, key in places:
            inner = holder[key]
            if isinstance(inner, dict):
                places += [(inner, one) for one in inner]
            elif isinstance(inner, list):
                places += [(inner, one) for one in range(min(len(inner), 4))]
        if not places:
            break
        holder, key = places[rng.integers(len(places))]
        kind = rng.integers(5)
        if kind == 0:
            del holder[key]
        elif kind == 4:  # what somebody else reads
            settings[_KEYS[rng.integers(len(_KEYS))]] = _FILES[rng.integers(len(_FILES))]
        elif kind == 1:
            other, name = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[name])
        else:
            value = holder[key]
            numbers = (-value, value * 10, value * 1000, value + 1) if type(value) in (int, float) else ()
            values = (*_VALUES, *numbers)
            holder[key] = copy.deepcopy(values[rng.integers(len(values))])
    return settings


def images(rng: np.random.Generator) -> dict[str, bytes]:
    """Return one small image in every supported format."""
    gray = rng.integers(0, 256, (48, 64), dtype=np.uint8)
    gray[8:40, 8:56] //= 2
    deep = gray.astype(np.uint16) * 17
    colour = np.stack([gray] * 3, axis=2)
    found = {}
    for name, pixels, kind, options in (
        ("png", gray, "PNG", {}),
        ("png16", deep, "PNG", {}),
        ("png-rgb", colour, "PNG", {}),
        ("jpeg", gray, "JPEG", {}),
        ("jpeg-progressive", colour, "JPEG", {"progressive": True, "exif": _exif()}),
        ("tiff", gray, "TIFF", {}),
        ("tiff-deflate", deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff-lzw", gray, "TIFF", {"compression": "tiff_lzw"}),
        ("bmp", gray, "BMP", {}),
        ("gif", gray, "GIF", {}),
        ("webp", colour, "WEBP", {}),
        ("jpeg2000", gray, "JPEG2000", {}),
        ("pgm", gray, "PPM", {}),
    ):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        found[name] = file.getvalue()
    return found


def dicoms(rng: np.random.Generator) -> dict[str, bytes]:
    """Return one small image as DICOM files of several transfer syntaxes, with windows and lookup tables."""
    pixels = rng.integers(0, 4096, (32, 40), dtype=np.uint16)
    gray = (pixels >> 4).astype(np.uint8)
    jpeg, jpeg2000 = io.BytesIO(), io.BytesIO()
    Image.fromarray(gray).save(jpeg, "JPEG")
    Image.fromarray(gray).save(jpeg2000, "JPEG2000", no_jp2=True)
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [16, 0, 16])
    table.add_new("LUTData", "OW", struct.pack("<16H", *range(0, 65536, 4096)))
    rle = RLELosslessEncoder.encode(
        gray, rows=32, columns=40, samples_per_pixel=1, bits_allocated=8, bits_stored=8,
        pixel_representation=0, number_of_frames=1, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    return {
        "explicit": _dicom(
            pixels, WindowCenter="2048", WindowWidth="4096", RescaleSlope="1", RescaleIntercept="0"
        ),
        "implicit": _dicom(pixels, uid.ImplicitVRLittleEndian, PixelPaddingValue=0),
        "big-endian": _dicom(pixels, uid.ExplicitVRBigEndian),
        "table": _dicom(pixels, VOILUTSequence=[table]),
        "modality": _dicom(pixels, ModalityLUTSequence=[table], PhotometricInterpretation="MONOCHROME1"),
        "jpeg": _dicom(gray, uid.JPEGBaseline8Bit, jpeg.getvalue()),
        "jpeg2000": _dicom(gray, uid.JPEG2000Lossless, jpeg2000.getvalue()),
        "rle": _dicom(gray, uid.RLELossless, rle),
    }


def zips(members: dict[str, bytes], rng: np.random.Generator) -> bytes:
    """Return a zip file of these members, corrupted in at most one respect."""
    kind = rng.integers(10)
    method = [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA][rng.integers(4)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if kind == 0:
            long = f"NORMAL/{'a' * 300}.png"
            for name in ("/abs/NORMAL/a.png", "../../NORMAL/a.png", "C:\\NORMAL\\a.png", long):
                archive.writestr(name, next(iter(members.values())))
        elif kind == 1:
            link = zipfile.ZipInfo("NORMAL/link.png")
            link.external_attr = int(rng.choice([0o120777, 0o020666, 0o010666])) << 16
            archive.writestr(link, "/etc/passwd")
        elif kind == 2:
            archive.writestr("NORMAL/few.png", bytes(10**6))
            if rng.random() < 0.5:  # by the quick one: others take seconds to pack so many
                archive.writestr("NORMAL/zeros.png", bytes(10**8), zipfile.ZIP_DEFLATED)
        elif kind == 3:
            archive.writestr("inner.zip", file.getvalue())
            archive.writestr("NORMAL/inner.zip", file.getvalue())
        elif kind == 4:
            for number in range(3000):
                archive.writestr(f"NORMAL/{number}.txt", b"")
        elif kind == 5:
            archive.writestr("NORMAL", b"a file and a folder")
            archive.writestr(next(iter(members)), b"the same name", compress_type=zipfile.ZIP_STORED)
    data = file.getvalue()
    if kind == 6:  # every entry of the directory points at the first member
        content = bytearray(data)
        for place in _places(data, b"PK\1\2"):
            content[place + 42 : place + 46] = bytes(4)
        data = bytes(content)
    elif kind == 7:  # sizes and flags in the directory are extreme
        content = bytearray(data)
        for place in _places(data, b"PK\1\2"):
            if rng.random() < 0.5:
                at = place + int(rng.choice([8, 10, 20, 24, 28, 30, 42]))
                content[at : at + 2] = int(rng.choice([0, 1, 9, 12, 14, 0xFFFF])).to_bytes(2, "little")
        data = bytes(content)
    return data if kind == 9 else data if rng.random() < 0.3 else corrupt(data, rng, data)


def safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a weights file with a changed header, length or values."""
    length = int.from_bytes(data[:8], "little")
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.integers(8)
    if kind == 0:
        if rng.random() < 0.5:
            return corrupt(data, rng)
        return data[: 8 + length] + corrupt(content[:-512], rng) + content[-512:]
    if kind == 1:
        return corrupt(data[:8], rng).ljust(8, b"\0")[:8] + data[8:]
    if kind == 2:
        return data[:8] + corrupt(data[8 : 8 + length], rng) + content
    if kind == 3:
        number = np.float32([np.nan, np.inf, -np.inf, 3e38][rng.integers(4)]).tobytes()
        place = 4 * int(rng.integers(len(content) // 4))
        count = int(rng.choice([1, 1000, len(content) // 4]))
        content = (content[:place] + number * count + content[place + 4 * count :])[: len(content)]
        return data[: 8 + length] + content
    if kind == 4:
        return _pack((b'{"a":' if rng.random() < 0.5 else b"[") * 20_000, content)
    return _pack(json.dumps(corrupt_settings(header, rng)).encode(), content)


def corrupt_text(text: str, rng: np.random.Generator) -> bytes:
    """Move, double or remove lines, add aliases, tags and depth, or corrupt bytes."""
    lines = text.splitlines()
    kind = rng.integers(7)
    place = int(rng.integers(len(lines)))
    if kind == 0:
        lines[place:place] = lines[int(rng.integers(len(lines))) :][:3]
    elif kind == 1:
        del lines[place]
    elif kind == 2:
        lines.append("a: &a [x, x, x, x, x, x, x, x, x]")
        lines += [
            f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]"
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ]
    elif kind == 3:
        tags = ("!!python/object/apply:os.system ['true']", "!!python/name:os.system")
        tags += ("!!binary x", "!!set {a}", "!x y")
        lines[place] = f"model: {tags[rng.integers(len(tags))]}"
    elif kind == 4:
        opening = str(rng.choice(["[", "{a: ", "- ", "? "]))
        lines[place] = "model: " + opening * int(rng.choice([10, 1000, 40_000]))
    elif kind == 5:
        key = lines[place].split(":")[0]
        value = _VALUES[rng.integers(len(_VALUES))]
        lines[place] = f"{key}: {value if not isinstance(value, str) else json.dumps(value)}"
    else:
        return corrupt(text.encode(), rng)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _pack(header: bytes, content: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def _places(data: bytes, mark: bytes) -> list[int]:
    places, place = [], data.find(mark)
    while place >= 0:
        places.append(place)
        place = data.find(mark, place + 1)
    return places


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def _dicom(
    pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, stream: bytes | None = None, **tags
) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if syntax == uid.ExplicitVRBigEndian:
        pixels = pixels.byteswap()
    dataset.PixelData = encapsulate([stream]) if stream else pixels.tobytes()
    dataset["PixelData"].VR = "OB" if stream or pixels.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
