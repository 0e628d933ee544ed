"""The embedded sets: content, splits, integrity, errors."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from sslref import data
from sslref.data import DataError, embedded

CHECKSUMS = json.loads((data.root() / "checksums.json").read_text())


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of some folders of data/ that the loaders read instead."""

    def make(*names):
        for name in names:
            shutil.copytree(data.root() / name, tmp_path / name)
        shutil.copy(data.root() / "checksums.json", tmp_path)
        monkeypatch.setenv("SSLREF_DATA", str(tmp_path))
        return tmp_path

    return make


# ------------------------------------------------------------------------------------------------------------ integrity


def test_every_file_is_recorded_and_unchanged():
    found = {p.relative_to(data.root()).as_posix() for p in data.root().glob("*/*") if p.suffix in (".npz", ".json")}
    assert found == set(CHECKSUMS)
    for name, expected in CHECKSUMS.items():
        assert hashlib.sha256((data.root() / name).read_bytes()).hexdigest() == expected, name


def test_data_are_small():
    assert sum((data.root() / name).stat().st_size for name in CHECKSUMS) < 16e6


@pytest.mark.parametrize("place", [0, 10, 0.5, -1])
def test_one_changed_byte_is_found(copy, place):
    path = copy("emoji") / "emoji" / "google.npz"
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.emoji()
    found = hashlib.sha256(content).hexdigest()
    restore = "git checkout -- data/emoji (or rebuild it: python data/prepare.py emoji)"
    for part in (str(path), CHECKSUMS["emoji/google.npz"], found, restore):
        assert part in str(error.value)
    assert len(data.emoji(vendor="twitter")) == 1400  # the other files are intact


def test_missing_file_is_named(copy):
    path = copy("clips") / "clips" / "bikes.npz"
    path.unlink()
    with pytest.raises(DataError, match=r"bikes\.npz.*found no file.*git checkout -- data/clips"):
        data.clips()


def test_wrong_data_folder_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLREF_DATA", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"checksums\.json.*SSLREF_DATA.*git checkout"):
        data.mnist()


def test_a_file_is_read_once(copy):
    folder = copy("mnist")
    first = data.mnist()
    (folder / "mnist" / "mnist.npz").unlink()
    assert torch.equal(first.images, data.mnist().images)


def test_callers_cannot_change_the_data():
    loaders = {
        "emoji": lambda: data.emoji().rgba,
        "animations": lambda: data.animations().rgba,
        "mnist": lambda: data.mnist("all").images,
        "photographs": lambda: data.photographs(["brick"])["brick"],
        "photo_patches": lambda: data.photo_patches().images,
        "series": lambda: data.series("GunPoint", "all").x,
        "lengths": lambda: data.series("GunPoint", "all").lengths,
        "connectome": lambda: data.connectome().weight,
        "clips": lambda: data.clips("bikes").video,
        "brain": lambda: data.brain().t1,
        "microaneurysms": lambda: data.microaneurysms()[0],
    }
    for name, load in loaders.items():
        first = load()
        kept = first.clone()
        first.zero_()
        assert torch.equal(load(), kept), name


def test_import_needs_little():
    code = "import sys, sslref.data, sslref.data.folders; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"sklearn", "PIL", "av", "torch_geometric"} & set(run.stdout.split())


# ---------------------------------------------------------------------------------------------------------------- emoji


def test_emoji_counts_and_order():
    google, twitter = data.emoji("all"), data.emoji("all", vendor="twitter")
    assert (len(data.emoji()), len(data.emoji("test")), len(google)) == (1400, 511, 1911)
    assert google.rgba.shape == twitter.rgba.shape == (1911, 4, 32, 32)
    assert google.rgba.dtype == torch.uint8
    assert google.names == twitter.names
    assert google.codes == twitter.codes
    assert (len(google.categories), len(google.subcategories)) == (9, 99)
    assert google.labels.unique().tolist() == list(range(9))
    assert google.sublabels.unique().tolist() == list(range(99))
    assert data.emoji("test").labels.unique().tolist() == list(range(9))
    assert len(set(google.codes)) == 1911
    assert all(google.tags)
    assert not torch.equal(google.rgba, twitter.rgba)
    i = google.names.index("RED APPLE")
    assert (google.codes[i], google.captions[i]) == ("1F34E", "red apple")
    assert google.categories[google.labels[i]] == "Food & Drink"
    assert google.subcategories[google.sublabels[i]] == "food-fruit"
    assert "fruit" in google.tags[i]
    red = google.images()[i, :, 16, 16]
    assert red[0] > 0.6
    assert red[1:].max() < 0.4


def test_emoji_splits_share_no_drawing():
    assert not set(data.emoji().codes) & set(data.emoji("test").codes)
    assert set(data.emoji().codes) | set(data.emoji("test").codes) == set(data.emoji("all").codes)
    for vendor in embedded.VENDORS:
        train, test = (data.emoji(split, vendor=vendor).rgba.double() / 255 for split in ("train", "test"))
        train, test = ((x[:, :3] * x[:, 3:], x[:, 3:]) for x in (train, test))
        train, test = (torch.cat(x, 1).flatten(1) for x in (train, test))
        for mirrored in (False, True):
            other = test.view(-1, 4, 32, 32).flip(-1).flatten(1) if mirrored else test
            nearest = torch.cdist(train, other).min() / train.shape[1] ** 0.5
            assert nearest >= 0.0199, (vendor, mirrored, nearest)


def test_emoji_images_against_loops():
    emoji = data.emoji("test")
    background = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = emoji.images(background)
    assert images.shape == (511, 3, 32, 32)
    assert images.dtype == torch.float32
    for n, y, x in [(0, 0, 0), (7, 16, 16), (100, 3, 20), (510, 31, 5)]:
        alpha = int(emoji.rgba[n, 3, y, x]) / 255
        for c in range(3):
            expected = alpha * int(emoji.rgba[n, c, y, x]) / 255 + (1 - alpha) * float(background[c, y, x])
            assert float(images[n, c, y, x]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(emoji.images()[0, :, 0, 0], torch.ones(3))  # transparent corner
    assert torch.equal(emoji.images(0.25)[0, :, 0, 0], torch.full((3,), 0.25))
    hidden = emoji.rgba[:, 3:] == 0
    assert (emoji.rgba[:, :3][hidden.expand(-1, 3, -1, -1)] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.emoji("valid"), "split: expected one of 'train', 'test', 'all', got 'valid'"),
        (lambda: data.emoji(vendor="apple"), "vendor: expected one of 'google', 'twitter', got 'apple'"),
        (lambda: data.animations("x"), "split"),
        (lambda: data.mnist("x"), "split"),
        (lambda: data.photo_patches("all"), "split"),
        (lambda: data.photo_patches(size=97), "size: expected 1 to 96"),
        (lambda: data.photo_patches(stride=0), "stride"),
        (lambda: data.photo_patches(per_photo=10_000), "per_photo: expected 1 to"),
        (lambda: data.photographs(["nobody"]), "names: expected one of 'astronaut'"),
        (lambda: data.series("Gun"), "name: expected one of 'ACSF1'"),
        (lambda: data.series("GunPoint", "valid"), "split"),
        (lambda: data.series("GunPoint", length=0), "length: expected at least 1, got 0"),
        (lambda: data.connectome("top"), "side"),
        (lambda: data.clips("x"), "name"),
        (lambda: data.digits_graph(1), "num_nodes"),
        (lambda: data.digits_graph(1798), "num_nodes"),
        (lambda: data.digits_graph(10, neighbours=10), "neighbours"),
        (lambda: data.digits_graph(rewired=1.5), "rewired"),
        (lambda: data.digits_graph(noise=-1.0), "noise"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------------------------- animations


def test_animations():
    train, test, both = (data.animations(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (48, 16, 64)
    assert both.rgba.shape == (64, 16, 4, 32, 32)
    assert both.rgba.dtype == torch.uint8
    assert set(train.codes) <= set(data.emoji().codes)
    assert set(test.codes) <= set(data.emoji("test").codes)
    assert train.videos(0.5).shape == (48, 16, 3, 32, 32)
    emoji = data.emoji("all")
    for name, caption, code in zip(both.names, both.captions, both.codes, strict=True):
        i = emoji.codes.index(code)
        assert (emoji.names[i], emoji.captions[i]) == (name, caption)
    assert (both.rgba[:, :, 3] > 127).float().mean((2, 3)).min() > 0.05  # never gone
    video = both.videos()
    assert (video - video.roll(4, 1)).abs().mean((1, 2, 3, 4)).min() > 0.01  # all move


# --------------------------------------------------------------------------------------------------------------- images


def test_mnist():
    train, test, both = (data.mnist(split) for split in ("train", "test", "all"))
    assert train.images.shape == (4000, 1, 28, 28)
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.labels.bincount().tolist() == [400] * 10
    assert len(both) == 5000
    assert 0 == train.images.min() < train.images.max() == 1
    assert {x.numpy().tobytes() for x in train.images}.isdisjoint(x.numpy().tobytes() for x in test.images)
    # the picture belongs to its label: class means of the training images classify the test images
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(10)])
    guess = torch.cdist(test.images.flatten(1), means).argmin(1)
    assert (guess == test.labels).float().mean() > 0.75


def test_photographs():
    pictures = data.photographs()
    assert len(pictures) == 12
    for name, picture in pictures.items():
        assert picture.shape[:2] == (3, 240), name
        assert picture.shape[2] >= 240
        assert picture.dtype == torch.float32
        assert picture.min() >= 0
        assert 0.5 < picture.max() <= 1
        assert torch.equal(picture[0], picture[1]) == (name in ("brick", "camera", "grass", "gravel")), name
    assert list(data.photographs(["rocket", "china"])) == ["rocket", "china"]


def test_photo_patches_have_disjoint_support(monkeypatch):
    columns = {"a": torch.arange(240.0).expand(3, 240, 240), "b": torch.arange(361.0).expand(3, 240, 361)}
    monkeypatch.setattr(embedded, "photographs", lambda: columns)
    for size, stride, per_photo in [(32, 8, 200), (16, 5, None), (96, 3, 10)]:
        train = data.photo_patches("train", size=size, stride=stride, per_photo=per_photo)
        test = data.photo_patches("test", size=size, stride=stride, per_photo=per_photo)
        for label, width in enumerate((240, 361)):
            last, first = train.images[train.labels == label].max(), test.images[test.labels == label].min()
            assert last < 0.55 * width
            assert first >= 0.6 * width - 1
            assert first - last > 0.04 * width  # the gap


def test_photo_patches_are_cut_where_the_grid_says():
    patches = data.photo_patches("train", size=32, stride=8, per_photo=None)
    astronaut = data.photographs(["astronaut"])["astronaut"]
    columns = (132 - 32) // 8 + 1
    assert (patches.labels == 0).sum() == columns * 27
    assert torch.equal(patches.images[2 * columns + 3], astronaut[:, 16:48, 24:56])
    assert patches.classes[0] == "astronaut"
    some = data.photo_patches("test")
    assert some.images.shape == (2400, 3, 32, 32)
    assert some.labels.bincount().tolist() == [200] * 12


# --------------------------------------------------------------------------------------------------------------- series


@pytest.mark.parametrize(
    ("name", "train", "test", "channels", "steps", "classes"),
    [
        ("ACSF1", 100, 100, 1, (1460, 1460), 10),
        ("ArrowHead", 36, 175, 1, (251, 251), 3),
        ("BasicMotions", 40, 40, 6, (100, 100), 4),
        ("GunPoint", 50, 150, 1, (150, 150), 2),
        ("ItalyPowerDemand", 67, 1029, 1, (24, 24), 2),
        ("JapaneseVowels", 270, 370, 12, (7, 29), 9),
        ("OSULeaf", 200, 242, 1, (427, 427), 6),
        ("PickupGestureWiimoteZ", 50, 50, 1, (29, 361), 10),
    ],
)
def test_series(name, train, test, channels, steps, classes):
    parts = {split: data.series(name, split) for split in ("train", "test", "all")}
    assert {k: len(v) for k, v in parts.items()} == {"train": train, "test": test, "all": train + test}
    both = parts["all"]
    assert both.x.shape == (train + test, channels, steps[1])
    assert (both.lengths.min(), both.lengths.max()) == steps
    assert both.x.dtype == torch.float32
    assert both.x.isfinite().all()
    assert len(both.classes) == classes
    assert both.y.unique().tolist() == list(range(classes))
    assert torch.equal(torch.cat([parts["train"].x, parts["test"].x]), both.x)
    for i in (0, train, train + test - 1):
        end = both.lengths[i]
        assert (both.x[i, :, end:] == both.x[i, :, end - 1 : end]).all()
    assert data.series(name, length=64).x.shape == (train, channels, 64)


def test_series_names():
    assert len(data.series_names()) == 8
    assert "GunPoint" in data.series_names()


def test_stack_series():
    x, y = torch.tensor([[1.0, 3.0, 5.0, 7.0]]), torch.tensor([[2.0, 4.0]])
    assert torch.equal(embedded.stack_series([x, y], 4), torch.tensor([[[1, 3, 5, 7.0]], [[2, 4, 4, 4.0]]]))
    # shrinking averages, growing interpolates between the centres of the steps
    assert torch.equal(embedded.stack_series([x], 2, resample=True), torch.tensor([[[2.0, 6.0]]]))
    assert torch.equal(embedded.stack_series([y], 4, resample=True), torch.tensor([[[2.0, 2.5, 3.5, 4.0]]]))
    assert torch.equal(embedded.stack_series([x], 4, resample=True)[0], x)


# --------------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize(
    ("side", "cells", "arcs", "synapses"),
    [
        ("right", [100, 21, 29, 63], 7536, 26371),
        ("left", [101, 21, 29, 58], 7425, 25322),
    ],
)
def test_connectome(side, cells, arcs, synapses):
    graph = data.connectome(side)
    n = sum(cells)
    assert graph.num_nodes == n
    assert graph.y.bincount().tolist() == cells
    assert graph.directed.shape == (2, arcs)
    assert graph.weight.sum() == synapses
    edges = set(map(tuple, graph.edge_index.T.tolist()))
    assert len(edges) == graph.edge_index.shape[1]
    expected = {(i, j) for i, j in graph.directed.T.tolist() if i != j}
    assert edges == expected | {(j, i) for i, j in expected}
    # an arc runs from sender to receiver: projection neurons bring smells in, nothing comes back to them
    kinds = dict(zip(graph.classes, range(4), strict=True))
    assert not (graph.y[graph.directed[1]] == kinds["projection neuron"]).any()
    # features: strengths by hand, eigenvectors by their definition
    assert graph.x.shape == (n, 10)
    received = torch.zeros(n).index_add_(0, graph.directed[1], graph.weight).log1p()
    torch.testing.assert_close(graph.x[:, 0], (received - received.mean()) / received.std(), atol=1e-5, rtol=0)
    adjacency = torch.zeros(n, n).index_put_(tuple(graph.edge_index), torch.tensor(1.0))
    scale = adjacency.sum(1).rsqrt()
    vectors = graph.x[:, 2:]
    image = vectors - scale[:, None] * (adjacency @ (scale[:, None] * vectors))
    values = (image * vectors).sum(0) / vectors.square().sum(0)
    assert (image - values * vectors).abs().max() < 1e-4
    assert values.diff().min() >= 0
    assert values[0] > 0.1  # the constant one is left out
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(vectors.square().mean(0), torch.ones(8), atol=1e-5, rtol=0)


def test_graphs_go_to_pyg():
    graph = data.connectome()
    converted = graph.to_pyg()
    assert converted.num_nodes == 213
    assert converted.is_undirected()
    assert not converted.has_self_loops()
    assert "train_mask" not in converted


def test_digits_graph_without_rewiring_is_scikit_learns():
    graph = data.digits_graph(300, neighbours=6, rewired=0, noise=0, generator=torch.Generator().manual_seed(3))
    pixels = graph.x.double().numpy()
    distance, _ = NearestNeighbors(n_neighbors=7, metric="cosine").fit(pixels).kneighbors(pixels)
    linked = {i: set() for i in range(300)}
    for i, j in graph.edge_index.T.tolist():
        linked[i].add(j)
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    for i in range(300):
        own = sorted(1 - unit[i] @ unit[j] for j in linked[i])[:6]
        np.testing.assert_allclose(own, distance[i, 1:], atol=1e-7)
    assert 300 * 6 <= graph.edge_index.shape[1] <= 2 * 300 * 6
    known = {tuple(row): label for row, label in zip(*load_digits(return_X_y=True), strict=True)}
    for row, label in zip((graph.x * 16).numpy(), graph.y.tolist(), strict=True):
        assert known[tuple(row.astype(float))] == label


def test_digits_graph_rewires_the_share_it_says():
    def arcs(rewired):
        graph = data.digits_graph(200, neighbours=3, rewired=rewired, generator=torch.Generator().manual_seed(1))
        return set(map(tuple, graph.edge_index.T.tolist()))

    clean, some, all_of_them = arcs(0), arcs(0.25), arcs(1)
    assert all((j, i) in some and i != j for i, j in some)
    # 150 of 600 arcs move; an undirected edge survives if one of its arcs does
    assert 0.7 <= len(clean & some) / len(clean) <= 0.95
    assert len(clean & all_of_them) / len(clean) < 0.1
    # the random end is any other node
    ends = {
        arc
        for seed in range(20)
        for arc in map(
            tuple,
            data.digits_graph(
                4, neighbours=1, rewired=1, generator=torch.Generator().manual_seed(seed)
            ).edge_index.T.tolist(),
        )
    }
    assert ends == {(i, j) for i in range(4) for j in range(4) if i != j}


def test_digits_graph_noise_and_generator():
    def make(seed, **options):
        return data.digits_graph(generator=torch.Generator().manual_seed(seed), **options)

    first, again, other = make(0), make(0), make(1)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.edge_index, again.edge_index)
    assert not torch.equal(first.y, other.y)
    assert first.x.shape == (600, 64)
    noise = first.x - make(0, noise=0).x
    assert torch.equal(first.edge_index, make(0, noise=0).edge_index)
    assert noise.std() == pytest.approx(1, abs=0.02)
    state = torch.get_rng_state()
    make(0)
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------------- clips


def test_clips():
    clips = data.clips()
    assert [c.name for c in clips] == ["bigbuckbunny", "bikes", "carphone"]
    for clip in clips:
        assert clip.video.shape == (60, 3, 64, 112)
        assert clip.video.dtype == torch.uint8
        step = clip.video.float().diff(dim=0).abs().mean((1, 2, 3))
        assert step.max() < 40  # no cut: the cuts of bikes are above 50
        assert step.mean() > 1  # it moves
    assert [c.fps for c in clips] == [12.5, 25.0, pytest.approx(14.985, abs=1e-3)]


# -------------------------------------------------------------------------------------------------------------- medical


def test_brain():
    brain = data.brain()
    for x in (brain.t1, brain.grey, brain.white):
        assert x.shape == (94, 116, 98)
        assert x.min() == 0
        assert 0.9 < x.max() <= 1
    tissue = brain.t1 > 0
    assert ((brain.grey + brain.white) <= 1 + 2 / 255).all()
    assert (brain.grey + brain.white)[~tissue].mean() < 1e-3
    white, grey = brain.t1[brain.white > 0.9], brain.t1[brain.grey > 0.9]
    assert white.mean() > grey.mean() + 0.1  # T1: white matter is bright
    # 2 mm voxels: a brain has between one and two litres
    assert 1 < tissue.sum().item() * 8e-6 < 2.2
    assert not tissue[80:].any()  # slices run upwards, and above the head there is nothing
    cerebellum = brain.t1[15].mean(1)
    assert cerebellum[60:].mean() > 2 * cerebellum[:60].mean()  # rows run from the forehead back: it lies behind


def test_microaneurysms():
    image, marks = data.microaneurysms()
    assert image.shape == (1, 102, 102)
    assert 0.1 < image.min() < image.max() < 0.6
    for row, column in marks.tolist():  # dark in the middle, bright around
        around = image[0, row - 7 : row + 8, column - 7 : column + 8]
        assert image[0, row, column] < around.median() - 0.08


# ------------------------------------------------------------------------------------------------------------ catalogue


def test_catalogue():
    entries = data.catalogue()
    sets = {key.split("/")[0] for key in CHECKSUMS}
    assert {e.name for e in entries} == sets | {"digits"}
    for entry in entries:
        assert all(entry)
        assert entry.folder == f"data/{entry.name}"
        assert "## Licence" in (data.root() / entry.name / "README.md").read_text()


def test_catalogue_names_a_bad_datasheet(copy):
    sheet = copy("mnist") / "mnist" / "README.md"
    sheet.write_text(sheet.read_text().replace("licence: ", "license: "))
    with pytest.raises(DataError, match=r"mnist/README\.md: expected an entry 'licence'"):
        data.catalogue()
