"""Pictures as files: a number that is free, a name that every file system takes, never over another file."""
from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from ldm.inference import files


def test_numbers_go_on_after_the_largest_and_gaps_stay(tmp_path):
    assert files.next_number(tmp_path / "nowhere") == 0
    for name in ("00000.png", "00007.jpg", "cat-0003.png", "cat-12-0009.png", "notes.txt", "00009.png.tmp"):
        (tmp_path / name).touch()
    assert files.next_number(tmp_path) == 8
    assert files.next_number(tmp_path, "cat-") == 4
    assert files.next_number(tmp_path, "cat-12-") == 10
    assert files.next_number(tmp_path, "dog-") == 0


def test_a_file_is_never_written_over(tmp_path):
    (tmp_path / "0.png").write_bytes(b"mine")
    (tmp_path / "1.png").symlink_to(tmp_path / "nowhere")
    path, number = files.write_new(tmp_path, "{}.png".format, b"new")
    assert (path.name, number) == ("2.png", 2) and path.read_bytes() == b"new"
    assert (tmp_path / "0.png").read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    def full(path, mode):
        path.touch()
        return Full()

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(ValueError, match="0.png could not be written: the disk is full"):
        files.write_new(tmp_path, "{}.png".format, b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a photo of *", "a-photo-of-*"), ("  two   spaces ", "two-spaces"), ("a/b\x00\n..", "a_b_-.."), ("../../etc", "_.._etc"), ("", "empty-prompt"),
        ("é" * 100, "é" * 75), (".hidden", "hidden"),
    ],
)  # fmt: skip
def test_names_of_prompts(text, name):
    assert files.name_of(text) == name


def test_what_a_picture_was_drawn_from_is_read_back():
    about = {"prompt": "ein großes * ☃", "seed": "7", "settings": {"steps": 2, "scale": 7.5}}
    image = Image.open(io.BytesIO(files.png(Image.new("RGB", (2, 2)), about)))
    assert image.text == {"prompt": "ein großes * ☃", "seed": "7", "settings": '{"steps": 2, "scale": 7.5}'}


def test_a_grid_holds_the_pictures_in_rows():
    pictures = [torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)]
    image = files.grid(pictures, 2)
    assert image.size == (2 * 8 + 2, 2 * 6 + 2)
    assert [image.getpixel(place)[0] for place in ((4, 4), (12, 4), (4, 10), (12, 10))] == [0, 128, 255, 0]
