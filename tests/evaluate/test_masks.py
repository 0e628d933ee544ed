import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.evaluate import boundary_f, region_j


def masks(*shape, seed=0, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def blob(height=24, width=30, top=5, left=6, size=9):
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top : top + size, left : left + size] = True
    mask[:, top, left] = False  # no symmetry
    return mask


def boundary_loops(mask):
    height, width = mask.shape
    points = []
    for r in range(height):
        for c in range(width):
            for dr, dc in [(0, 1), (1, 0), (1, 1)]:
                inside = r + dr < height and c + dc < width
                if inside and mask[r, c] != mask[r + dr, c + dc]:
                    points.append((r, c))
                    break
    return points


def f_loops(pred, target, radius):
    a, b = boundary_loops(pred), boundary_loops(target)
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    precision = sum(any(math.dist(p, q) <= radius for q in b) for p in a) / len(a)
    recall = sum(any(math.dist(p, q) <= radius for q in a) for p in b) / len(b)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parity("evaluate.boundary_f", against="float64 loops over pixel pairs", tolerance=1e-15)
@pytest.mark.parametrize("tolerance", [0.008, 0.2, 1, 1.5, 2, math.sqrt(5), 3.0, 100])
def test_boundary_f_is_that_of_all_pairs(tolerance):
    pred = torch.cat([masks(3, 9, 12, share=0.03), masks(2, 9, 12, share=0.5, seed=1)])
    target = torch.cat([masks(3, 9, 12, share=0.04, seed=2), masks(2, 9, 12, share=0.9, seed=3)])
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.sqrt(9**2 + 12**2))
    expected = [f_loops(p, t, radius) for p, t in zip(pred, target, strict=True)]
    found = boundary_f(pred, target, tolerance=tolerance)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-15)


@given(seed=st.integers(0, 999), height=st.integers(1, 7), width=st.integers(1, 7), radius=st.sampled_from([1, 2, 2.5]))
def test_boundary_f_is_that_of_all_pairs_on_any_size(seed, height, width, radius):
    pred, target = masks(1, height, width, seed=seed, share=0.2), masks(1, height, width, seed=seed + 1, share=0.2)
    expected = f_loops(pred[0], target[0], radius)
    assert boundary_f(pred, target, tolerance=radius).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("height", "width", "radius"), [(32, 32, 1), (75, 100, 1), (76, 100, 2), (480, 854, 8)])
def test_the_radius_is_rounded_up(height, width, radius):
    # two corners of a picture, `gap` columns apart: matched while gap <= radius
    for gap, value in [(radius, 1.0), (radius + 1, 0.0)]:
        pred = torch.zeros(1, height, width, dtype=torch.bool)
        target = pred.clone()
        pred[:, :, : 3 + gap] = True
        target[:, :, :3] = True
        assert boundary_f(pred, target).item() == value


def test_a_mask_and_its_neighbour():
    mask = blob()
    assert boundary_f(mask, mask).item() == 1
    assert region_j(mask, mask).item() == 1
    moved = mask.roll(1, 2)
    assert boundary_f(mask, moved, tolerance=2).item() == 1
    assert boundary_f(mask, mask.roll(4, 2), tolerance=2).item() < 1
    assert region_j(mask, moved).item() < 1


def test_empty_and_full_masks():
    empty, full = torch.zeros(1, 6, 6, dtype=torch.bool), torch.ones(1, 6, 6, dtype=torch.bool)
    part = blob(6, 6, 1, 1, 3)
    pred, target = torch.cat([empty, empty, part, full, full]), torch.cat([empty, part, empty, full, empty])
    assert region_j(pred, target).tolist() == [1, 0, 0, 1, 0]
    # a full mask has no boundary: nothing inside the picture differs
    assert boundary_f(pred, target).tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parity("evaluate.region_j", against="float64 loops", tolerance=1e-15)
def test_region_j_counts_pixels():
    pred, target = masks(4, 3, 5), masks(4, 3, 5, seed=1)
    for p, t, value in zip(pred, target, region_j(pred, target), strict=True):
        points = list(zip(p.flatten().tolist(), t.flatten().tolist(), strict=True))
        expected = sum(a and b for a, b in points) / sum(a or b for a, b in points)
        assert value.item() == pytest.approx(expected, abs=1e-15)


@given(seed=st.integers(0, 999))
def test_both_measures_are_symmetric_and_f_grows_with_the_radius(seed):
    pred, target = masks(2, 8, 9, seed=seed, share=0.1), masks(2, 8, 9, seed=seed + 1, share=0.1)
    assert torch.equal(region_j(pred, target), region_j(target, pred))
    values = [boundary_f(pred, target, tolerance=r) for r in (1, 2, 3)]
    torch.testing.assert_close(values[0], boundary_f(target, pred, tolerance=1))
    assert (values[0] <= values[1] + 1e-12).all()
    assert (values[1] <= values[2] + 1e-12).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(boundary_f(pred, target, tolerance=2), values[1])


M = torch.zeros(1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize("function", [region_j, boundary_f])
@pytest.mark.parametrize(
    ("pred", "target", "words"),
    [
        (M, M[:, :3], r"target: expected the shape of pred, \(1, 4, 4\), got \(1, 3, 4\)"),
        (M[0], M[0], r"pred: expected shape \(B, H, W\)"),
        (M[:0], M[:0], "pred: expected shape"),
    ],
)
def test_bad_shapes_are_named(function, pred, target, words):
    with pytest.raises(ValueError, match=words):
        function(pred, target)
    with pytest.raises(TypeError, match="target: expected torch.bool"):
        function(M, M.float())


def test_bad_tolerance_is_named():
    with pytest.raises(ValueError, match="tolerance"):
        boundary_f(M, M, tolerance=0)
