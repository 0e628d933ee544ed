"""Readers of the user's own data, on tiny files written in the official layouts."""

import pickle
from collections import defaultdict

import numpy as np
import pytest
import scipy.sparse
import torch

from sslref import data
from sslref.data import DataError, folders

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


def rng(seed=0):
    return np.random.default_rng(seed)


# --------------------------------------------------------------------------------------------------------------- images


def write_images(root):
    for name, colour, size in [
        ("dog/a.png", (255, 0, 0), (40, 20)),
        ("dog/more/b.jpg", (0, 255, 0), (20, 30)),
        ("cat/c.PNG", (0, 0, 255), (16, 16)),
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(root / name)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "empty").mkdir()


def test_image_folder(tmp_path):
    write_images(tmp_path)
    pictures = folders.image_folder(tmp_path, 8)
    assert len(pictures) == 3
    assert pictures.classes == ("cat", "dog", "empty")
    images, labels = pictures.batch(torch.tensor([0, 1, 2, 1]))
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1, 1, 1]
    for image, colour in zip(images, [2, 0, 1, 0], strict=True):
        expected = torch.zeros(3, 1, 1)
        expected[colour] = 1
        torch.testing.assert_close(image, expected.expand(3, 8, 8), atol=0.02, rtol=0)


def test_image_folder_takes_the_central_square(tmp_path):
    x = np.zeros((16, 48, 3), np.uint8)
    x[:, 16:32] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(x).save(tmp_path / "a" / "x.png")
    image = folders.image_folder(tmp_path, 16).read(torch.tensor([0]))
    assert image.dtype == torch.uint8
    assert (image == 200).all()


def test_sample_is_reproducible_and_draws_everything(tmp_path):
    write_images(tmp_path)
    pictures = folders.image_folder(tmp_path, 8)
    first = pictures.sample(40, torch.Generator().manual_seed(0))
    again = pictures.sample(40, torch.Generator().manual_seed(0))
    other = pictures.sample(40, torch.Generator().manual_seed(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert len({x.numpy().tobytes() for x in first[0]}) == 3


def test_image_folder_errors(tmp_path):
    with pytest.raises(DataError, match="expected a folder with one subfolder of images a class, found nothing"):
        folders.image_folder(tmp_path / "no", 8)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"one subfolder a class with images .*\.jpg.*found 1 subfolders without"):
        folders.image_folder(tmp_path, 8)
    (tmp_path / "dog" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"x\.png: expected an image"):
        folders.image_folder(tmp_path, 8).sample(1, torch.Generator())
    with pytest.raises(ValueError, match="size: expected at least 1 pixel, got 0"):
        folders.image_folder(tmp_path, 0)


CIFAR_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


def write_cifar10(root):
    root.mkdir(parents=True)
    out = {}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = rng(i).integers(0, 10, (4, 1), dtype=np.uint8)
        pixels = rng(i).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        np.concatenate([labels, pixels.reshape(4, -1)], axis=1).tofile(root / f"{name}.bin")
        out[name] = pixels, labels[:, 0]
    (root / "batches.meta.txt").write_text(CIFAR_NAMES.replace(" ", "\n") + "\n\n")
    return out


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inner):
    written = write_cifar10(tmp_path / "c" / inner)
    train, test = folders.cifar10(tmp_path / "c"), folders.cifar10(str(tmp_path / "c"), "test")
    assert (len(train), len(test)) == (20, 4)
    assert train.classes == tuple(CIFAR_NAMES.split())
    images, labels = train.batch(torch.tensor([5, 19]))
    assert torch.equal((images * 255).round().byte()[0], torch.from_numpy(written["data_batch_2"][0][1]))
    assert labels.tolist() == [written["data_batch_2"][1][1], written["data_batch_5"][1][3]]
    assert torch.equal(test.read(torch.arange(4)), torch.from_numpy(written["test_batch"][0]))


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_pictures_are_whatever_lies_there(tmp_path, inner):
    write_cifar10(tmp_path / "c" / inner)
    found, plain = folders.pictures(tmp_path / "c", 8), folders.cifar10(tmp_path / "c")
    index = torch.tensor([3, 19, 3])
    assert (found.name, len(found)) == ("cifar10", 20)
    assert torch.equal(found.images(index), plain.batch(index)[0])
    assert folders.pictures(tmp_path / "c", 8, device="meta").read(index.to("meta")).device.type == "meta"
    write_images(tmp_path / "folder")
    found = folders.pictures(str(tmp_path / "folder"), 8)
    assert found.images(torch.tensor([0])).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match="nowhere"):
        folders.pictures(tmp_path / "nowhere", 8)


def test_cifar10_errors(tmp_path):
    write_cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"binary version of CIFAR-10.*data_batch_1\.bin.*missing: data_batch_3\.bin"):
        folders.cifar10(tmp_path / "c")
    (tmp_path / "c" / "test_batch.bin").write_bytes(b"x" * 3074)
    with pytest.raises(DataError, match=r"test_batch\.bin: expected a multiple of 3073 bytes.*got 3074"):
        folders.cifar10(tmp_path / "c", "test")
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'all'"):
        folders.cifar10(tmp_path / "c", "all")


def test_stl10(tmp_path):
    root = tmp_path / "stl10_binary"
    root.mkdir()
    names = "airplane bird car cat deer dog horse monkey ship truck"
    (root / "class_names.txt").write_text(names.replace(" ", "\n") + "\n")
    pixels = rng().integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    pixels.transpose(0, 1, 3, 2).tofile(root / "train_X.bin")  # column by column
    np.array([1, 10, 3], np.uint8).tofile(root / "train_y.bin")
    pixels[:2].transpose(0, 1, 3, 2).tofile(root / "unlabeled_X.bin")
    train = folders.stl10(tmp_path)
    assert torch.equal(train.read(torch.tensor([2, 0])), torch.from_numpy(pixels[[2, 0]]))
    assert train.labels.tolist() == [0, 9, 2]
    assert train.classes == tuple(names.split())
    unlabeled = folders.stl10(root, "unlabeled")
    assert unlabeled.labels.tolist() == [-1, -1]
    images, labels = unlabeled.sample(5, torch.Generator().manual_seed(0))
    assert images.shape == (5, 3, 96, 96)
    assert (labels == -1).all()
    with pytest.raises(DataError, match=r"STL-10.*missing: test_X\.bin, test_y\.bin"):
        folders.stl10(tmp_path, "test")
    np.array([1, 2], np.uint8).tofile(root / "train_y.bin")
    with pytest.raises(DataError, match="expected 3 labels"):
        folders.stl10(tmp_path)
    with pytest.raises(ValueError, match="split"):
        folders.stl10(tmp_path, "x")


# --------------------------------------------------------------------------------------------------------------- videos


def write_video(path, levels, size=(64, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 1_000_000
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_video_folder(tmp_path):
    write_video(tmp_path / "run" / "a.mp4", [0, 100, 200])
    write_video(tmp_path / "jump" / "deep" / "b.avi", range(0, 250, 25))
    videos = folders.video_folder(tmp_path, frames=2, size=16)
    assert videos.classes == ("jump", "run")
    assert videos.labels.tolist() == [0, 1]
    assert len(videos) == 2
    assert videos.clip(1).shape == (2, 3, 16, 16)
    assert videos.clip(1).dtype == torch.uint8

    def levels(index, start, **options):
        return folders.video_folder(tmp_path, size=16, **options).clip(index, start).float().mean((1, 2, 3)).tolist()

    assert levels(1, 0.0, frames=2) == pytest.approx([0, 100], abs=4)
    assert levels(1, 1.0, frames=2) == pytest.approx([100, 200], abs=4)
    assert levels(1, 0.5, frames=2, step=2) == pytest.approx([0, 200], abs=4)
    assert levels(0, 1.0, frames=3, step=3) == pytest.approx([75, 150, 225], abs=4)
    clips, labels = videos.sample(6, torch.Generator().manual_seed(0))
    again, _ = videos.sample(6, torch.Generator().manual_seed(0))
    assert clips.shape == (6, 2, 3, 16, 16)
    assert clips.dtype == torch.float32
    assert clips.max() <= 1
    assert torch.equal(clips, again)
    assert set(labels.tolist()) == {0, 1}


def test_video_folder_without_classes(tmp_path):
    write_video(tmp_path / "x.mp4", [10, 20])
    videos = folders.video_folder(tmp_path, frames=2, size=8)
    assert videos.classes == ()
    assert videos.labels.tolist() == [-1]


def test_video_folder_errors(tmp_path):
    with pytest.raises(DataError, match="expected one subfolder a class with videos"):
        folders.video_folder(tmp_path)
    with pytest.raises(ValueError, match="frames: expected at least 1, got 0"):
        folders.video_folder(tmp_path, frames=0)
    write_video(tmp_path / "a.mp4", [10, 20])
    with pytest.raises(DataError, match=r"a\.mp4: expected 5 frames at least, found 2"):
        folders.video_folder(tmp_path, frames=3, step=2).clip(0)
    with pytest.raises(ValueError, match="start"):
        folders.video_folder(tmp_path, frames=1).clip(0, 1.5)
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"b\.mp4: expected a video"):
        folders.video_folder(tmp_path, frames=1).clip(1)


# --------------------------------------------------------------------------------------------------------------- series

TS = """#A comment
@problemName Toy
@timeStamps false
@univariate false
@classLabel true Up down
@data
1,2,3:4,5,6:down
1,?,3,4:0,0,0,0:Up
"""


def test_ts(tmp_path):
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Toy_{part}.ts").write_text(TS)
    sets = folders.ucr_folder(tmp_path)
    assert list(sets) == ["Toy"]
    train, test = sets["Toy"]
    assert (train.split, test.split, train.name) == ("train", "test", "Toy")
    assert train.classes == ("Up", "down")
    assert train.y.tolist() == [1, 0]
    assert train.lengths.tolist() == [3, 4]
    assert train.x.tolist() == [[[1, 2, 3, 3], [4, 5, 6, 6]], [[1, 2, 3, 4], [0, 0, 0, 0]]]
    assert folders.ucr_folder(tmp_path, length=2)["Toy"][0].x.shape == (2, 2, 2)


def test_tsv_archive(tmp_path):
    for name in ("One", "Two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_TRAIN.tsv").write_text("10\t0.5\t1\tNaN\n2\tNaN\t3\t4\n")
        (tmp_path / name / f"{name}_TEST.tsv").write_text("2\t1\t2\t3\n")
    (tmp_path / "Two" / "Two_TRAIN.ts").write_text("a .ts without its test file is passed over")
    sets = folders.ucr_folder(tmp_path)
    assert list(sets) == ["One", "Two"]
    train, test = sets["Two"]
    assert train.classes == test.classes == ("2", "10")
    assert train.y.tolist() == [1, 0]
    assert train.lengths.tolist() == [2, 3]
    assert train.x.tolist() == [[[0.5, 1, 1]], [[3, 3, 4]]]
    assert test.y.tolist() == [0]


def test_embedded_series_round_trip(tmp_path):
    """What the loader hands out, written as .tsv and read again, is the same."""
    for part in ("train", "test"):
        s = data.series("GunPoint", part)
        rows = ["\t".join([s.classes[y], *map(repr, x[0].tolist())]) for x, y in zip(s.x, s.y, strict=True)]
        (tmp_path / f"GunPoint_{part.upper()}.tsv").write_text("\n".join(rows))
    train, test = folders.ucr_folder(tmp_path)["GunPoint"]
    assert torch.equal(train.x, data.series("GunPoint").x)
    assert torch.equal(test.y, data.series("GunPoint", "test").y)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no head", r"Toy_TRAIN\.ts: expected a \.ts file"),
        (TS.replace("timeStamps false", "timeStamps true"), "no time stamps"),
        (TS.replace("true Up down", "false"), "@classLabel true"),
        (TS.replace("4,5,6", "4,5"), r"channels of one length in a series, got \[3, 2\]"),
        (TS.replace("1,2,3", "?,?,?"), "a channel without any"),
        (TS.replace("1,2,3", "1,x,3"), "Toy_TRAIN.ts: expected numbers"),
        (TS.replace(":down", ":left"), "Toy_TRAIN.ts: expected one of the classes Up, down, got left"),
    ],
)
def test_ts_errors(tmp_path, text, message):
    (tmp_path / "Toy_TRAIN.ts").write_text(text)
    (tmp_path / "Toy_TEST.ts").write_text(TS)
    with pytest.raises(DataError, match=message):
        folders.ucr_folder(tmp_path)


def test_ucr_folder_errors(tmp_path):
    with pytest.raises(DataError, match="expected a folder with the files <name>_TRAIN.ts"):
        folders.ucr_folder(tmp_path / "no")
    with pytest.raises(DataError, match=r"expected <name>_TRAIN\.ts and <name>_TEST\.ts .* found no such pair"):
        folders.ucr_folder(tmp_path)
    (tmp_path / "A_TRAIN.tsv").write_text("1\tx\n")
    (tmp_path / "A_TEST.tsv").write_text("1\t2\n")
    with pytest.raises(DataError, match=r"A_TRAIN\.tsv: expected a label and numbers"):
        folders.ucr_folder(tmp_path)


# --------------------------------------------------------------------------------------------------------------- graphs


def test_planetoid(tmp_path):
    pytest.importorskip("torch_geometric")
    nodes, features, classes, labelled, tested = 600, 5, 3, 9, 20
    r = rng()
    x = r.random((nodes, features)).astype(np.float32)
    y = r.integers(0, classes, nodes)
    edges = r.integers(0, nodes, (1000, 2)).tolist()
    graph = defaultdict(list, {i: [] for i in range(nodes)})
    for i, j in edges:
        graph[i].append(j)
        graph[j].append(i)
    order = r.permutation(np.arange(nodes - tested, nodes))  # test rows are stored in the order of test.index
    hot, known = np.eye(classes)[y], nodes - tested
    parts = {
        "x": scipy.sparse.csr_matrix(x[:labelled]),
        "allx": scipy.sparse.csr_matrix(x[:known]),
        "tx": scipy.sparse.csr_matrix(x[order]),
        "y": hot[:labelled],
        "ally": hot[:known],
        "ty": hot[order],
        "graph": graph,
    }
    for part, value in parts.items():
        (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(value))
    np.savetxt(tmp_path / "ind.cora.test.index", order, fmt="%d")
    read = folders.planetoid(tmp_path, "Cora")
    torch.testing.assert_close(read.x, torch.from_numpy(x))
    assert read.y.tolist() == y.tolist()
    assert read.classes == ("0", "1", "2")
    both_ways = {(i, j) for a, b in edges for i, j in ((a, b), (b, a)) if i != j}
    assert sorted(map(tuple, read.edge_index.T.tolist())) == sorted(both_ways)
    assert read.train_mask.nonzero().flatten().tolist() == list(range(labelled))
    assert read.val_mask.sum() == 500
    assert read.test_mask.nonzero().flatten().tolist() == sorted(order.tolist())
    assert torch.equal(read.to_pyg().train_mask, read.train_mask)
    (tmp_path / "ind.cora.graph").unlink()
    with pytest.raises(DataError, match=r"raw Planetoid files of cora.*ind\.cora\.tx.*missing: ind\.cora\.graph"):
        folders.planetoid(tmp_path, "cora")


def test_nothing_is_printed(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", [1, 2, 3])
    folders.video_folder(tmp_path, frames=3, size=8).clip(0)
    assert capsys.readouterr() == ("", "")
