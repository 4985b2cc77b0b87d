from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vlmeter.common.files import write_atomically
from vlmeter.inputs.images import decode_and_settle, dummy_image, read_image, write_dummy_image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (336, 336), (2800, 336), (337, 561)])
def test_a_dummy_image_has_exactly_the_size_asked_for(size: tuple[int, int], tmp_path: Path) -> None:
    write_dummy_image(tmp_path / "dummy.png", width_px=size[0], height_px=size[1], seed=3)
    with Image.open(tmp_path / "dummy.png") as image:
        assert (image.size, image.mode, image.format) == (size, "RGB", "PNG")


def test_the_pixels_of_a_seed_never_change() -> None:
    pixels = dummy_image(337, 561, seed=7).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == ("d5cfffae4892b17ea46615b1827c11e3f4aa5adc9fdb8ad23ef298b068d0fdea")
    assert dummy_image(337, 561, seed=8).tobytes() != pixels


def test_the_widest_dummy_image_of_the_notes_makes_a_modest_file(tmp_path: Path) -> None:
    write_dummy_image(tmp_path / "wide.png", width_px=2800, height_px=336, seed=0)
    assert (tmp_path / "wide.png").stat().st_size < 300_000


def test_every_patch_of_a_dummy_image_has_content() -> None:
    image = dummy_image(336, 336, seed=0)
    for left in range(0, 336, 14):
        colours = image.crop((left, 0, left + 14, 14)).getcolors(14 * 14)
        assert colours is not None
        assert len(colours) > 1


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 x 1 px, not 0 x 5"):
        dummy_image(0, 5, seed=0)


def test_an_rgb_jpeg_or_png_is_kept_byte_for_byte() -> None:
    for format, suffix in (("JPEG", ".jpg"), ("PNG", ".png")):
        data = encoded(dummy_image(40, 30, seed=0), format)
        image, kept, kept_suffix = decode_and_settle(data)
        assert (kept, kept_suffix, image.size) == (data, suffix, (40, 30))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_any_other_image_is_kept_as_the_rgb_pixels_that_the_model_sees(mode: str, tmp_path: Path) -> None:
    data = encoded(dummy_image(40, 30, seed=0).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    image, kept, suffix = decode_and_settle(data)
    assert (image.mode, suffix) == ("RGB", ".png")
    (tmp_path / "kept.png").write_bytes(kept)
    assert read_image(tmp_path / "kept.png").tobytes() == image.tobytes()


def test_the_exif_orientation_is_applied_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: to be turned by 90 degrees
    image, kept, suffix = decode_and_settle(encoded(dummy_image(40, 30, seed=0), "JPEG", exif=exif))
    assert (image.size, suffix) == ((30, 40), ".png")
    (tmp_path / "kept.png").write_bytes(kept)
    assert read_image(tmp_path / "kept.png").size == (30, 40)


def test_broken_bytes_are_refused_with_the_reason() -> None:
    png = encoded(dummy_image(400, 300, seed=0), "PNG")
    jpeg = encoded(dummy_image(400, 300, seed=0), "JPEG")
    with pytest.raises(ValueError, match="not in an image format"):
        decode_and_settle(b"this is text")
    with pytest.raises(ValueError, match="not in an image format"):
        decode_and_settle(b"")
    for data in (png[: len(png) // 2], jpeg[: len(jpeg) // 2], jpeg[:-2000]):
        with pytest.raises(ValueError, match="truncated"):
            decode_and_settle(data)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    with pytest.raises(ValueError, match=r"."):
        decode_and_settle(bytes(flipped))


def test_an_image_that_claims_to_be_monstrous_is_refused() -> None:
    png = bytearray(encoded(dummy_image(4, 4, seed=0), "PNG"))
    png[16:24] = struct.pack(">II", 100_000, 100_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(ValueError, match="decompression bomb"):
        decode_and_settle(bytes(png))


def test_sixteen_bits_per_channel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mode I;16; legal are 8 bits"):
        decode_and_settle(encoded(Image.new("I;16", (4, 4)), "PNG"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "file.bin"
    write_atomically(target, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_importing_images_and_datasets_loads_no_heavy_library() -> None:
    heavy = {"PIL", "numpy", "pandas", "pyarrow", "datasets", "huggingface_hub", "torch"}
    code = f"import sys, vlmeter.inputs.dataset, vlmeter.inputs.images; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
