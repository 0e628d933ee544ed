"""The stereo world: pairs are composed as the docstring says, and what both views see has the very same values."""

import pytest
import torch

from sslref.data import embedded
from sslref.data.worlds import stereo
from sslref.data.worlds.scenes import PHOTOGRAPHS
from sslref.data.worlds.stereo import StereoWorld, motorcycle, motorcycle_pairs


def _sample(count=200, seed=0, **options):
    return StereoWorld(**options).sample(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"layers": 3, "cue": True}, {"size": 24, "split": "train"}])
def test_shapes_and_ranges(options):
    pairs, size = _sample(**options), options.get("size", 16)
    assert pairs.left.shape == pairs.right.shape == (200, 3, size, size)
    assert pairs.disparity.shape == pairs.seen.shape == (200, size, size)
    assert min(pairs.left.min(), pairs.right.min()) >= 0
    assert max(pairs.left.max(), pairs.right.max()) <= 1
    assert pairs.disparity.unique().tolist() == [-4, 0, 4]
    assert all(len(d.unique()) <= options.get("layers", 2) for d in pairs.disparity)
    again = _sample(**options)
    assert all(torch.equal(a, b) for a, b in zip(pairs, again, strict=True))
    assert not torch.equal(pairs.left, _sample(seed=1, **options).left)


@pytest.mark.parity("stereo.StereoWorld", against="loops over pixels", tolerance=0.0)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_point_has_the_same_values_in_both_views(layers):
    pairs = _sample(30, layers=layers)
    for b in range(30):
        for y in range(16):
            for x in range(16):
                there = x - int(pairs.disparity[b, y, x])
                if pairs.seen[b, y, x]:
                    assert torch.equal(pairs.left[b, :, y, x], pairs.right[b, :, y, there])
                elif layers == 1:
                    assert not 0 <= there < 16  # nothing can hide a point


def test_what_is_near_hides_what_is_far():
    """From the left view alone: of two points that fall on one place of the right view, the nearer one is seen."""
    pairs = _sample(100, layers=3)
    hidden = 0
    for b in range(100):
        for y in range(16):
            nearest = {}
            for x in range(16):
                d = int(pairs.disparity[b, y, x])
                nearest[x - d] = max(d, nearest.get(x - d, -99))
            for x in range(16):
                d = int(pairs.disparity[b, y, x])
                if nearest[x - d] > d:
                    hidden += 1
                    assert not pairs.seen[b, y, x]
    assert hidden > 100


def test_the_near_layer_is_a_rectangle_and_the_far_one_fills():
    pairs = _sample(300, side=(5, 9))
    for d in pairs.disparity:
        near = d == d.max()
        assert len(d.unique()) == 2
        y, x = near.nonzero().T
        tall, wide = (int(v.max() - v.min()) + 1 for v in (y, x))
        assert tall * wide == near.sum()
        assert min(tall, wide) >= 5
        assert max(tall, wide) <= 9


def test_textures_are_windows_of_the_shrunk_photographs():
    photos = embedded.photographs(PHOTOGRAPHS)
    pairs = _sample(12, layers=1, cue=True, split="test")
    for b in range(3):
        k = {-4: 3, 0: 2, 4: 1}[int(pairs.disparity[b, 0, 0])]
        found = 0
        for photo in photos.values():
            small = torch.nn.functional.avg_pool2d(photo[..., int(0.6 * photo.shape[2]) :], k)
            corners = (small[:, : 1 - 16, : 1 - 16] == pairs.left[b, :, :1, :1]).all(0).nonzero()
            found += sum(torch.equal(small[:, y : y + 16, x : x + 16], pairs.left[b]) for y, x in corners.tolist())
        assert found >= 1


def test_without_the_cue_texture_tells_nothing():
    def roughness(cue, d):
        pairs = _sample(3000, layers=1, cue=cue)
        return pairs.left[pairs.disparity[:, 0, 0] == d].diff(dim=3).abs().mean().item()

    assert roughness(True, -4) > 1.15 * roughness(True, 4)
    assert roughness(False, -4) == pytest.approx(roughness(False, 4), rel=0.1)


def test_levels_photographs_and_places_are_uniform():
    d = _sample(6000, layers=1).disparity[:, 0, 0]
    for level in (-4, 0, 4):
        assert (d == level).double().mean().item() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 0}, "size"),
        ({"size": 40}, "size: expected at most 24 pixels"),
        ({"disparities": ()}, "disparities"),
        ({"disparities": (4, 0, -4)}, "disparities"),
        ({"layers": 0}, "layers"),
        ({"layers": 4}, "layers"),
        ({"side": (3, 17)}, "side"),
        ({"shrink": (1, 2)}, "shrink"),
        ({"shrink": (0, 1, 2)}, "shrink"),
        ({"split": "val"}, "split"),
    ],
)
def test_errors(options, name):
    with pytest.raises(ValueError, match=name):
        StereoWorld(**{"split": "test", **options})


def test_matches_by_loops():
    pairs = _sample(40)
    place, exists = pairs.matches(4)
    attention = torch.nn.functional.one_hot(place.clamp(0, 15), 16).double()
    seen = 0
    for b in range(40):
        for n in range(16):
            window = (b, slice(4 * (n // 4), 4 * (n // 4) + 4), slice(4 * (n % 4), 4 * (n % 4) + 4))
            d = pairs.disparity[window]
            assert exists[b, n] == (len(d.unique()) == 1 and bool(pairs.seen[window].all()))
            if exists[b, n]:
                assert place[b, n] == n - int(d[0, 0]) // 4
                seen += place[b, n] != n
    everything = torch.ones_like(exists)
    assert pairs.match_accuracy(attention, everything) == 1
    moved = exists & (place != torch.arange(16))
    assert moved.sum() == seen
    attention[0] = attention[0].roll(1, -1)
    expected = 1 - moved[0].sum().item() / moved.sum().item()
    assert pairs.match_accuracy(attention, everything) == pytest.approx(expected)
    assert pairs.match_accuracy(attention, everything & (torch.arange(40) > 0)[:, None]) == 1
    odd = pairs._replace(disparity=torch.full((40, 16, 16), 2.0))
    assert not odd.matches(4)[1].any()


def test_count():
    with pytest.raises(ValueError, match="count"):
        _sample(0)


def test_the_real_pair():
    pytest.importorskip("skimage")
    left, right, disparity = motorcycle(4)
    assert left.shape == right.shape == (3, 125, 185)
    assert disparity.shape == (125, 185)
    known = disparity.isfinite()
    assert known.double().mean() > 0.9
    assert 1 < disparity[known].min() < disparity[known].max() < 16

    def miss(sign):
        to = (torch.arange(185) - sign * disparity.nan_to_num(0).round().long()).clamp(0, 184)
        return (right.gather(2, to.expand(3, -1, -1)) - left).abs().mean(0)[known].mean()

    assert miss(1) < 0.3 * min(miss(-1), miss(0))  # what the left view has at x is at x - d in the right one
    full = motorcycle(1)
    whole = full[2][:4, :4]
    assert disparity[0, 0].item() == pytest.approx(whole.nanmean().item() / 4, rel=1e-6)
    with pytest.raises(ValueError, match="shrink"):
        motorcycle(0)


def test_windows_of_the_real_pair():
    pytest.importorskip("skimage")
    pairs = motorcycle_pairs(300, torch.Generator().manual_seed(0))
    assert pairs.left.shape == pairs.right.shape == (300, 3, 16, 16)
    assert pairs.disparity.isfinite().all()
    assert sorted(set(pairs.disparity.mean((1, 2)).sub(0.01).div(4).round().mul(4).tolist())) == [-4, 0, 4]
    turned = motorcycle_pairs(50, torch.Generator().manual_seed(1), shifts=(3,))
    assert (turned.disparity.mean((1, 2)) - 3).abs().max() <= 0.5 + 1e-4
    left, right, disparity = motorcycle(4)
    for b in range(5):
        corner = (left == pairs.left[b, :, :1, :1]).all(0).nonzero().tolist()
        y, x = next((y, x) for y, x in corner if torch.equal(left[:, y : y + 16, x : x + 16], pairs.left[b]))
        offset = round((disparity[y, x] - pairs.disparity[b, 0, 0]).item())
        assert torch.equal(right[:, y : y + 16, x - offset : x - offset + 16], pairs.right[b])
        torch.testing.assert_close(disparity[y : y + 16, x : x + 16] - offset, pairs.disparity[b])
        there = torch.arange(16) - pairs.disparity[b]
        assert torch.equal(pairs.seen[b], (there >= 0) & (there <= 15))
    to = (torch.arange(16) - pairs.disparity.round().long()).clamp(0, 15)
    miss = (pairs.right.gather(3, to[:, None].expand(-1, 3, -1, -1)) - pairs.left).abs().mean(1)[pairs.seen].mean()
    assert miss < 0.5 * (pairs.right - pairs.left).abs().mean()
    with pytest.raises(ValueError, match="count"):
        motorcycle_pairs(0, torch.Generator())
    for size in (0, 200, 125):
        with pytest.raises(ValueError, match="size"):
            motorcycle_pairs(1, torch.Generator(), size=size)


def test_without_scikit_image(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage.data", None)
    stereo._motorcycle.cache_clear()
    with pytest.raises(embedded.DataError, match="scikit-image"):
        motorcycle()
    stereo._motorcycle.cache_clear()
