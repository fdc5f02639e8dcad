"""What lies in a user's folder, and what the network gets to see of it."""
from __future__ import annotations

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import centre_square, list_pictures, open_picture, to_model_range

RED, BLUE = (200, 30, 40), (10, 20, 220)


def save(path, size=(24, 16), colour=RED, **options):
    Image.new("RGB", size, colour).save(path, **options)
    return path


def half_red_half_blue(width=40, height=20):
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size_and_kind = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size_and_kind) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_capital_extensions_and_webp_are_all_listed(tmp_path):
    for name in ("a.jpg", "b.JPG", "c.JPEG", "d.PNG", "e.webp", "f.Tiff", "g"):
        save(tmp_path / name, format={"g": "PNG"}.get(name))
    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.JPG", "c.JPEG", "d.PNG", "e.webp", "f.Tiff", "g"]


def test_what_is_no_picture_is_left_out_and_named_once(tmp_path, caplog):
    save(tmp_path / "photo.jpg")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "desktop.ini").write_text("[.ShellClassInfo]")
    (tmp_path / "notes.txt").write_text("shot in may")
    (tmp_path / "empty.png").touch()
    (tmp_path / "more").mkdir()
    save(tmp_path / "more" / "other.png")
    save(tmp_path / "._photo.png")
    with caplog.at_level(logging.INFO):
        assert [path.name for path in list_pictures(tmp_path)] == ["photo.jpg"]
        assert [path.name for path in list_pictures(tmp_path)] == ["photo.jpg"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 picture(s) used" in warning
    for name in (".DS_Store", "._photo.png", "Thumbs.db", "desktop.ini", "notes.txt", "empty.png", "more/"):
        assert name in warning


def test_the_count_used_is_shown_for_a_clean_folder(tmp_path, caplog):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    with caplog.at_level(logging.INFO):
        list_pictures(tmp_path)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", f"{tmp_path}: 2 picture(s)")]


def test_missing_folder_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_root.*no such place.*wanted: a folder"):
        list_pictures(tmp_path / "no such place")


def test_a_file_for_a_folder_names_it_and_its_folder(tmp_path):
    save(tmp_path / "photo.jpg")
    with pytest.raises(NotADirectoryError, match=rf"photo\.jpg is a file.*perhaps {tmp_path}"):
        list_pictures(tmp_path / "photo.jpg")


def test_empty_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match=rf"no picture in {tmp_path}; found: nothing, it is empty; wanted: pictures"):
        list_pictures(tmp_path)


def test_folder_with_only_folders_names_them(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"found: train/, val/; wanted: pictures .* in the folder itself"):
        list_pictures(tmp_path)


def test_folder_of_a_phone_advises_to_convert(tmp_path):
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match="save HEIC photographs as JPEG first"):
        list_pictures(tmp_path)


def test_all_unusable_pictures_are_reported_in_one_error(tmp_path):
    save(tmp_path / "good.jpg", size=(64, 64))
    whole = save(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "dot.png", size=(1, 1))
    (tmp_path / "poster.png").write_bytes(png_header(20_000, 20_000))
    Image.fromarray(np.zeros((16, 16), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError) as error:
        list_pictures(tmp_path)
    text = str(error.value)
    assert "4 picture(s) that cannot be used" in text and str(tmp_path) in text and "good.jpg" not in text
    assert "cut.jpg: damaged" in text
    assert "dot.png: 1×1 pixels are too few; each side needs at least 8" in text
    assert "poster.png: too many pixels" in text and "400000000 pixels" in text
    assert "depth.tiff: floating-point values" in text


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp"])
def test_a_truncated_picture_is_found_before_training(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"x.{suffix}")
    data = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=rf"(x\.{suffix}: damaged|no picture in)"):
        list_pictures(tmp_path)
    with pytest.raises(ValueError, match=rf"x\.{suffix}"):
        open_picture(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("name, content", [("1x1.png", None), ("huge.png", png_header(20_000, 20_000)), ("text.png", b"no picture at all")])
def test_opening_an_unusable_file_names_it(tmp_path, name, content):
    if content is None:
        save(tmp_path / name, size=(1, 1))
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        open_picture(tmp_path / name)


def test_exif_rotation_is_applied(tmp_path):
    upright = half_red_half_blue()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    upright.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "phone.png")), np.asarray(upright))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_shows_white_whatever_its_kind(tmp_path, mode):
    if mode == "P":
        picture = Image.new("P", (16, 16), 0)
        picture.putpalette([200, 30, 40])
        picture.save(tmp_path / "x.png", transparency=0)
    elif mode == "RGB":
        Image.new("RGB", (16, 16), RED).save(tmp_path / "x.png", transparency=RED)
    else:
        Image.new(mode, (16, 16), (*RED, 0) if mode == "RGBA" else (30, 0)).save(tmp_path / "x.png")
    assert np.asarray(open_picture(tmp_path / "x.png")).min() == 255


def test_half_transparent_is_half_way_to_white(tmp_path):
    Image.new("RGBA", (16, 16), (255, 0, 0, 128)).save(tmp_path / "x.png")
    assert np.asarray(open_picture(tmp_path / "x.png"))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
    grey = np.asarray(open_picture(tmp_path / f"x.{suffix}"))
    assert np.array_equal(grey[..., 0].ravel(), np.arange(256))
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_every_common_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{suffix}")
    picture = open_picture(tmp_path / f"x.{suffix}")
    assert picture.mode == "RGB" and np.asarray(picture).min() >= 254


@pytest.mark.parametrize("width, height", [(40, 20), (20, 41), (33, 33)])
def test_centre_square_keeps_the_middle(width, height):
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    square = np.asarray(centre_square(picture))
    side = min(width, height)
    assert square.shape == (side, side, 3)
    assert square[0, 0].tolist() == [(width - side) // 2, (height - side) // 2, 0]


def test_model_range_is_minus_one_to_one_in_float32():
    values = to_model_range(Image.fromarray(np.array([[[0, 51, 255]]], np.uint8)))
    assert values.dtype == np.float32 and values.shape == (1, 1, 3)
    np.testing.assert_allclose(values[0, 0], [-1.0, -0.6, 1.0], atol=1e-6)
