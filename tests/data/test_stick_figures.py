"""The figure world: figures are drawn as the docstring says, and the truth fits them."""

import math

import pytest
import torch

from sslref.data.worlds.figures import DIRECTIONS, JOINTS, LIMBS, FigureWorld


def sample(count=64, seed=0, **options):
    return FigureWorld(**options).sample(count, torch.Generator().manual_seed(seed))


def test_shapes_and_ranges():
    drawn = sample(500)
    assert len(drawn) == 500
    assert drawn.images.shape == (500, 3, 32, 32)
    assert drawn.images.dtype == torch.float32
    assert drawn.joints.shape == (500, len(JOINTS), 2)
    assert drawn.masks.shape == (500, 1, 32, 32)
    for x in (drawn.images, drawn.masks):
        assert 0 <= x.min() <= x.max() <= 1
    assert 0.09 < drawn.masks.mean() < 0.12
    some = drawn[torch.tensor([5, 2])]
    assert torch.equal(some.images[1], drawn.images[2])
    assert torch.equal(some.joints[0], drawn.joints[5])


def test_the_same_generator_gives_the_same_figures():
    assert torch.equal(sample().images, sample().images)
    assert not torch.equal(sample().images, sample(seed=1).images)


def test_poses_are_those_of_the_docstring():
    joints = sample(4000).joints
    assert joints[:, 0].abs().max() <= 0.3
    assert joints[:, 0].abs().max() > 0.29
    limbs = joints[:, 1:] - joints[:, :1]
    torch.testing.assert_close(limbs.norm(dim=2), torch.full((4000, 4), 0.55))
    rest = torch.tensor([[math.cos(a), math.sin(a)] for a in DIRECTIONS])
    turned = (limbs / 0.55 * rest).sum(2).clamp(-1, 1).arccos()
    assert 0.59 < turned.max() <= 0.6 + 1e-3
    assert torch.equal(limbs.mean(0).abs().argmax(1), torch.tensor([1, 0, 0, 1]))
    assert limbs[:, 0, 1].max() < 0  # the head is up
    assert limbs[:, 1, 0].max() < 0  # the left hand on the left


@pytest.mark.parity("figures.FigureWorld", against="loops over pixels", tolerance=1e-5)
def test_masks_are_capsules():
    world = FigureWorld(size=16)
    figures = world.sample(3, torch.Generator().manual_seed(3))
    for joints, mask in zip(figures.joints.tolist(), figures.masks[:, 0].tolist(), strict=True):
        for row in range(16):
            for column in range(16):
                x, y = (2 * column + 1) / 16 - 1, (2 * row + 1) / 16 - 1
                distances = []
                for a, b in LIMBS:
                    (ax, ay), (bx, by) = joints[a], joints[b]
                    t = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
                    t = min(max(t, 0), 1)
                    distances.append(math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
                covered = min(max((0.09 - min(distances)) * 8 + 0.5, 0), 1)
                assert mask[row][column] == pytest.approx(covered, abs=1e-5)


def test_colours_without_noise():
    drawn = sample(200, noise=0.0)
    ground = drawn.images[:, :, 0, 0]
    assert (drawn.masks[:, 0, 0, 0] == 0).all()
    expected = torch.where(drawn.masks == 0, ground[..., None, None], drawn.images)
    torch.testing.assert_close(drawn.images, expected)
    inside = (drawn.masks == 1).flatten(2).int().argmax(2)
    ink = drawn.images.flatten(2).gather(2, inside[:, :, None].expand(-1, 3, -1))[..., 0]
    turn = (ink - ground).remainder(1)
    assert turn.min() > 0.3 - 1e-5
    assert turn.max() < 0.7 + 1e-5


def test_noise():
    plain, noisy = sample(200, noise=0.0), sample(200)
    torch.testing.assert_close(plain.joints, noisy.joints)
    middle = (plain.images > 0.2) & (plain.images < 0.8)
    assert (noisy.images - plain.images)[middle].std().item() == pytest.approx(0.05, rel=0.03)


def test_refuses():
    for options, name in (
        ({"size": 4}, "size"), ({"noise": -1.0}, "noise"), ({"length": 0.8}, "length, radius, shift"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            FigureWorld(**options)
    with pytest.raises(ValueError, match="count"):
        sample(0)
    with pytest.raises(ValueError, match="joints"):
        FigureWorld().draw(torch.zeros(2, 4, 2))
