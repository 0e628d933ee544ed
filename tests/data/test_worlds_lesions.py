"""The lesion world: splits that share no slice, lesions by loops, masks that are exact."""

import math

import pytest
import torch

from sslref.data import embedded
from sslref.data.worlds import lesions
from sslref.data.worlds.lesions import SLICES, Pictures, ellipse, healthy, move, plant


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_splits_keep_apart():
    height = {z: split for split, pieces in SLICES.items() for a, b in pieces for z in range(a, b + 1)}
    assert len(height) == sum(b - a + 1 for pieces in SLICES.values() for a, b in pieces)
    assert [list(height.values()).count(s) for s in SLICES] == [30, 3, 8]
    for z, split in height.items():
        assert all(height.get(z + d, split) == split for d in range(-3, 4))
    with pytest.raises(ValueError, match="split"):
        healthy("all", 1)
    for field in (0, 99):
        with pytest.raises(ValueError, match="field"):
            healthy("train", 1, field=field)


def test_pictures_are_pieces_of_the_brain():
    """Drawn as large as their voxels they are the voxels; drawn larger, bilinear interpolation of them."""
    slices = {s: torch.cat([embedded.brain().t1[a : b + 1] for a, b in p]) * 0.7 for s, p in SLICES.items()}
    for split in SLICES:
        images, tissue = healthy(split, 20, size=24, field=24, generator=_generator())
        assert images.shape == (20, 1, 24, 24)
        assert torch.equal(tissue, images[:, 0] > 0)
        assert (tissue.double().mean((1, 2)) >= 0.7).all()
        pieces = slices[split].unfold(1, 24, 1).unfold(2, 24, 1)
        at = (pieces[..., 0, 0], pieces[..., 0, 23], pieces[..., 23, 0], pieces[..., 12, 7])
        for x in images[:5, 0]:
            found = False
            for y in (x, x.flip(1)):
                corners = (y[0, 0], y[0, 23], y[23, 0], y[12, 7])
                places = torch.stack([a == c for a, c in zip(at, corners, strict=True)]).all(0).nonzero()
                found |= any(torch.equal(pieces[tuple(p)], y) for p in places)
            assert found
    fine, tissue = healthy("val", 3, size=32, field=20, generator=_generator(1))
    coarse, _ = healthy("val", 3, size=20, field=20, generator=_generator(1))
    assert fine.shape == (3, 1, 32, 32)
    assert tissue.shape == (3, 32, 32)
    for i, j in ((0, 0), (7, 30), (16, 9)):
        y, x = (max((k + 0.5) * 20 / 32 - 0.5, 0) for k in (i, j))
        top, left = min(int(y), 18), min(int(x), 18)
        a, b = coarse[:, 0, top, left : left + 2], coarse[:, 0, top + 1, left : left + 2]
        expected = (1 - (y - top)) * a + (y - top) * b
        expected = (1 - (x - left)) * expected[:, 0] + (x - left) * expected[:, 1]
        torch.testing.assert_close(fine[:, 0, i, j], expected, atol=1e-5, rtol=0)


def test_an_ellipse_by_loops():
    middles = torch.tensor([[7, 9], [3, 3]])
    axes = torch.tensor([[5.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    angle = torch.tensor([0.6, 0.0], dtype=torch.float64)
    out = ellipse(middles, axes, angle, 16)
    for b in range(2):
        for i in range(16):
            for j in range(16):
                y, x = i - middles[b, 0].item(), j - middles[b, 1].item()
                cos, sin = math.cos(angle[b]), math.sin(angle[b])
                r = math.hypot((cos * x + sin * y) / axes[b, 0], (cos * y - sin * x) / axes[b, 1])
                assert out[b, i, j].item() == pytest.approx((r - 1) * axes[b].min().item(), abs=1e-12)
    assert out[1, 3, 3] == -2
    assert out[1, 3, 8] == 3  # of a circle it is the distance


def test_lesions_change_what_their_mask_says():
    pictures = healthy("test", 200, generator=_generator())
    images, masks = plant(pictures, radius=(3, 5), contrast=(0.2, 0.3), blur=1.0, generator=_generator(1))
    change = (images - pictures.images)[:, 0]
    assert masks.any((1, 2)).all()
    assert not (masks & ~pictures.tissue).any()
    assert (change[masks].abs() > 0.05).double().mean() > 0.95
    assert ((change != 0) & ~masks).double().mean() < 0.05  # the blurred rim alone
    assert (change[~pictures.tissue] == 0).all()
    assert change.abs().max() <= 0.3 + 1e-6
    assert images.min() >= 0
    assert images.max() <= 1
    brighter = (change.sum((1, 2)) > 0).double().mean()
    assert 0.35 < brighter < 0.65
    area = masks.sum((1, 2)).double()
    assert 20 < area.mean() < math.pi * 25
    again = plant(pictures, radius=(3, 5), contrast=(0.2, 0.3), generator=_generator(1))
    assert torch.equal(again.images, images)


def test_a_lesion_by_hand():
    """One pixel of tissue is where the middle must be; the profile falls linearly across the outline."""
    images, tissue = torch.full((1, 1, 15, 15), 0.5), torch.zeros(1, 15, 15, dtype=torch.bool)
    tissue[0, 7, 7] = True
    out = plant(Pictures(images, tissue), radius=(4, 4), contrast=(0.2, 0.2), generator=_generator())
    assert out.masks.nonzero().tolist() == [[0, 7, 7]]
    tissue[:] = True
    out = plant(Pictures(images, tissue), radius=(4, 4), contrast=(0.2, 0.2), blur=2.0, generator=_generator(3))
    row, column = (out.masks[0].nonzero().double().mean(0)).round().long().tolist()
    assert min(row, column, 14 - row, 14 - column) >= 4
    profile = ((out.images - images)[0, 0, row, column : column + 6] / 0.2).abs()
    torch.testing.assert_close(profile, torch.tensor([1, 1, 1, 1, 0.5, 0]), atol=1e-5, rtol=0)
    assert out.masks[0].sum() == 45  # points with i^2 + j^2 < 16


def test_moved_pieces():
    pictures = healthy("test", 100, generator=_generator())
    images, masks = move(pictures, radius=4.5, generator=_generator(1))
    assert torch.equal(images[~masks[:, None]], pictures.images[~masks[:, None]])
    for b in range(10):
        (i, j), inside = masks[b].nonzero()[0].tolist(), masks[b].nonzero()
        values = images[b, 0][masks[b]]
        shifts = [
            (di, dj)
            for di in range(-31, 32)
            for dj in range(-31, 32)
            if 0 <= i + di < 32 and 0 <= j + dj < 32
            and torch.equal(
                pictures.images[b, 0][tuple((inside + torch.tensor([di, dj])).clamp(0, 31).T)], values
            )
        ]  # fmt: skip
        assert any(math.hypot(*shift) >= 9 for shift in shifts)


def test_errors():
    pictures = healthy("val", 2, generator=_generator())
    for options in ({"radius": (5, 3)}, {"contrast": (0, 0.1)}, {"blur": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            plant(pictures, **options)
    assert lesions.healthy("val", 2).images.shape == (2, 1, 32, 32)
