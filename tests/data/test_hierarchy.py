"""The hierarchy world: places belong where the docstring says, features are the codes, the truth is a tree."""

import math

import pytest
import torch

from sslref.data.worlds.hierarchy import PARTS, Hierarchies, HierarchyWorld, truth
from sslref.nn import connected_components


def drawn(count=24, seed=0, **options) -> Hierarchies:
    return HierarchyWorld(**options).sample(count, torch.Generator().manual_seed(seed))


def test_shapes_ranges_and_generator():
    scenes = drawn(200, size=20)
    assert scenes.features.shape == (200, 44, 20, 20)
    assert scenes.parts.shape == scenes.objects.shape == scenes.kinds.shape == (200, 20, 20)
    assert torch.equal(scenes.objects == 0, scenes.parts == 0)
    assert torch.equal(scenes.objects == 0, scenes.kinds == 0)
    assert torch.equal((scenes.parts + PARTS - 1) // PARTS, scenes.objects)
    assert scenes.kinds.max() == 10
    assert scenes.objects.max() == 8
    again, other = drawn(200, size=20), drawn(200, seed=1, size=20)
    assert torch.equal(scenes.features, again.features)
    assert not torch.equal(scenes.objects, other.objects)
    assert torch.equal(scenes[torch.tensor([3])].kinds[0], scenes.kinds[3])
    assert len(scenes) == 200
    # noise and mixing change the features alone
    assert torch.equal(drawn(200, size=20, sigma=1.0, blur=1.0).parts, scenes.parts)


def test_one_kind_an_object_and_no_kind_twice():
    scenes = drawn(60)
    for objects, kinds in zip(scenes.objects, scenes.kinds, strict=True):
        pairs = torch.stack([objects.flatten(), kinds.flatten()], 1).unique(dim=0)
        assert len(pairs) == len(objects.unique()) == len(kinds.unique())


@pytest.mark.parity("hierarchy.HierarchyWorld", against="float64 loops", tolerance=1e-5)
def test_codes():
    world = HierarchyWorld(kinds=3, objects=(1, 3), likeness=0.65, sigma=0.0)
    codes = world.codes().double()
    assert codes.shape == (4, 3, 16)
    flat = codes.flatten(0, 1) / 4  # a mean square of 1 in 16 dimensions
    for a in range(12):
        for b in range(12):
            expected = 1.0 if a == b else 0.65 if a // 3 == b // 3 else 0.0
            assert (flat[a] @ flat[b]).item() == pytest.approx(expected, abs=1e-6)
    scenes = world.sample(8, torch.Generator().manual_seed(0))
    for i in range(8):
        for y in range(28):
            for x in range(28):
                kind, part = scenes.kinds[i, y, x], (scenes.parts[i, y, x] - 1) % 3 if scenes.parts[i, y, x] else 0
                assert torch.equal(scenes.features[i, :, y, x], world.codes()[kind, part])


def test_places_belong_to_discs_cut_along_straight_lines():
    """One object: a disc of radius 3 to 6 whose parts are its sectors."""
    scenes = drawn(40, objects=(1, 1), parts=(2, 2), sigma=0.0)
    for objects, parts in zip(scenes.objects, scenes.parts, strict=True):
        y, x = objects.nonzero().double().T + 0.5
        area = len(x)
        assert area > 0
        if 7 < x.mean() < 21 and 7 < y.mean() < 21:  # a whole disc
            assert math.pi * 2.5**2 < area < math.pi * 6.5**2
            away = ((x - x.mean()) ** 2 + (y - y.mean()) ** 2).sqrt().max()
            assert away == pytest.approx(math.sqrt(area / math.pi), abs=0.9)
            shares = [(parts == p).sum().item() / area for p in (1, 2)]
            assert sum(shares) == 1
            assert min(shares) > 0.35
        assert parts.max() <= 2


def test_objects_and_parts_are_connected():
    pieces = whole = 0
    for labels in [m for scenes in (drawn(30),) for maps in (scenes.objects, scenes.parts) for m in maps]:
        node = torch.arange(labels.numel()).view(labels.shape)
        edges = torch.cat(
            [
                torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()]),
                torch.stack([node[:-1].flatten(), node[1:].flatten()]),
            ],
            1,
        )
        flat = labels.flatten()
        component = connected_components(edges[:, flat[edges[0]] == flat[edges[1]]], len(flat))
        for name in flat[flat > 0].unique():
            sizes = component[flat == name].bincount()
            whole += int(sizes.sum())
            pieces += int(sizes.max())
    assert pieces / whole > 0.995  # a sliver may hang on by a corner


def test_noise_and_mixing():
    clean, noisy = drawn(16, sigma=0.0), drawn(16, sigma=0.5)
    noise = noisy.features - clean.features
    assert noise.std().item() == pytest.approx(0.5, abs=0.01)
    mixed = drawn(16, sigma=0.0, blur=1.0).features
    torch.testing.assert_close(mixed.sum((2, 3)), mixed.sum((2, 3)))
    line = torch.arange(-3.0, 4.0)
    weight = (-0.5 * line**2).exp()
    weight = (weight / weight.sum()).double()
    picture = clean.features[2].double()
    for y, x in ((0, 0), (5, 9), (14, 14), (27, 20)):
        total = torch.zeros(44, dtype=torch.float64)
        for i in range(7):
            for j in range(7):
                at = min(max(y + i - 3, 0), 27), min(max(x + j - 3, 0), 27)
                total += weight[i] * weight[j] * picture[:, at[0], at[1]]
        torch.testing.assert_close(mixed[2, :, y, x].double(), total, rtol=0, atol=1e-5)


def test_truth():
    parts = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 5, 5, 5], [7, 7, 7, 7, 10, 10, 0, 0]])
    objects = (parts + 2) // 3
    scenes = Hierarchies(torch.zeros(1, 1, 3, 8), parts[None], objects[None], objects[None])
    wholes, pieces = truth(scenes, 0)
    assert [int(m.sum()) for m in wholes] == [8, 8, 4]  # the last object has too few places
    assert [int(m.sum()) for m in pieces] == [4, 4]  # the second object shows one part of four places or more
    assert torch.equal(pieces[0], parts == 1)
    empty = Hierarchies(*(torch.zeros(1, *s, dtype=torch.int64) for s in ((1, 2, 2), (2, 2), (2, 2), (2, 2))))
    assert [len(m) for m in truth(empty, 0)] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected at least 1"),
        ({"kinds": 0}, "kinds: expected at least 1"),
        ({"objects": (3, 11)}, "objects: expected a range"),
        ({"parts": (0, 2)}, "parts: expected a range"),
        ({"parts": (1, 4)}, "parts: expected a range"),
        ({"likeness": 1.1}, "likeness: expected a cosine"),
        ({"sigma": -1.0}, "sigma: expected at least 0"),
        ({"blur": math.nan}, "blur: expected at least 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchyWorld(**options)
    with pytest.raises(ValueError, match="count: expected at least 1"):
        drawn(0)
