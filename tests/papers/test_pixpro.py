"""PixPro: assignment, propagation and losses against loops, closed forms and hand-computed cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sslref.nn import geometry
from sslref.papers import pixpro
from sslref.papers.pixpro import (
    PixelPropagation,
    consistency_loss,
    pix_contrast_loss,
    pixel_centers,
    pixel_propagation,
    pixpro_loss,
    positive_mask,
)

UNIT = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=draw(seed))


def boxes(batch=3, seed=0):
    """Random boxes in a picture of 100 x 80, some of them mirrored."""
    low, size, flip = (torch.rand(batch, 2, dtype=torch.float64, generator=draw(seed + k)) for k in (0, 100, 200))
    low, size = low * torch.tensor([50, 40]), 15 + size * torch.tensor([35, 25])
    x1, y1 = low.unbind(1)
    x2, y2 = (low + size).unbind(1)
    x1, x2 = torch.where(flip[:, 0] < 0.5, x1, x2), torch.where(flip[:, 0] < 0.5, x2, x1)
    return torch.stack([x1, y1, x2, y2], 1)


# ------------------------------------------------------------------------------------------------------ assignment


def test_centers_are_the_shared_ones():
    assert pixpro.pixel_centers is geometry.pixel_centers


def test_centers_by_hand():
    centers = pixel_centers(torch.tensor([[10.0, 20, 50, 40], [50, 20, 10, 40]]), 2, 4)
    assert centers.shape == (2, 2, 4, 2)
    for row in range(2):
        assert centers[0, row, :, 0].tolist() == [15, 25, 35, 45]
        assert centers[1, row, :, 0].tolist() == [45, 35, 25, 15]
    assert centers[:, :, 1, 1].tolist() == [[25, 35], [25, 35]]


@pytest.mark.parity("pixpro.positive_mask", against="float64 loops", tolerance=0.0)
@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.4])
def test_mask_equals_the_rule_of_the_paper(threshold):
    q, k, height, width = boxes(seed=1), boxes(seed=2), 3, 5
    mask = positive_mask(q, k, height, width, threshold=threshold)
    assert mask.shape == (3, 15, 15)
    assert mask.dtype == torch.bool
    assert mask.any()
    for b in range(3):
        sides = [((v[2] - v[0]) / width, (v[3] - v[1]) / height) for v in (q[b].tolist(), k[b].tolist())]
        diagonal = max(math.hypot(*side) for side in sides)
        for i in range(15):
            for j in range(15):
                place = []
                for v, (w, h), cell in zip((q[b], k[b]), sides, (i, j), strict=True):
                    place.append((v[0] + (cell % width + 0.5) * w, v[1] + (cell // width + 0.5) * h))
                expected = math.dist(*place) < threshold * diagonal
                assert mask[b, i, j] == expected


def test_identical_views():
    assert torch.equal(positive_mask(UNIT, UNIT, 4, 4)[0], torch.eye(16, dtype=torch.bool))
    wider = positive_mask(UNIT, UNIT, 4, 4, threshold=0.75)
    assert wider.sum() == 16 + 48
    assert wider[0, 5].nonzero().flatten().tolist() == [1, 4, 5, 6, 9]


def test_comparison_is_strict():
    # cells of 3 x 4, diagonal 5: at 5 / 5 the threshold 1 excludes, at 4 / 5 it includes
    a = torch.tensor([[0.0, 0, 3, 4]])
    for shift, expected in (((3, 4), False), ((0, 4), True)):
        b = a + torch.tensor([*shift, *shift])
        assert positive_mask(a, b, 1, 1, threshold=1.0).item() is expected


def test_the_longer_diagonal_counts():
    small, large = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 20, 20]])
    # distance of the centres 12.7; 0.7 times the diagonals is 2.0 and 19.8
    assert positive_mask(small, large, 1, 1).item()
    assert positive_mask(large, small, 1, 1).item()


def test_mask_of_the_other_direction_is_the_transpose():
    a, b = boxes(seed=1), boxes(seed=2)
    mask = positive_mask(a, b, 6, 6)
    assert torch.equal(positive_mask(b, a, 6, 6), mask.mT)
    assert not torch.equal(mask, mask.mT)


def test_mask_does_not_depend_on_the_unit():
    a, b = boxes(seed=1), boxes(seed=2)
    assert torch.equal(positive_mask(2 * a, 2 * b, 6, 6), positive_mask(a, b, 6, 6))


def test_disjoint_views():
    far = UNIT + 5
    mask = positive_mask(UNIT, far, 3, 3)
    assert not mask.any()
    x = normal(1, 4, 3, 3).requires_grad_()
    for loss in (consistency_loss(x, x, mask), pixpro_loss(x, x, x, x, UNIT, far), pix_contrast_loss(x, x, mask)):
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_a_mirrored_view_with_a_mirrored_box_changes_nothing():
    a, b = boxes(seed=1), boxes(seed=2)
    mirrored = b[:, [2, 1, 0, 3]]
    x, y = normal(3, 4, 6, 6), normal(3, 4, 6, 6, seed=1)
    expected, flipped = positive_mask(a, b, 6, 6), positive_mask(a, mirrored, 6, 6)
    assert torch.equal(flipped.unflatten(2, (6, 6)).flip(3).flatten(2), expected)
    torch.testing.assert_close(
        pixpro_loss(x, y, x, y, a, b),
        consistency_loss(x, y.flip(3), flipped) + consistency_loss(x.flip(3), y, flipped.mT),
    )
    torch.testing.assert_close(pix_contrast_loss(x, y.flip(3), flipped), pix_contrast_loss(x, y, expected))
    assert not torch.isclose(pix_contrast_loss(x, y.flip(3), expected), pix_contrast_loss(x, y, expected))


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_mask_moves_with_the_views(seed, height, width):
    a, b = boxes(seed=seed), boxes(seed=seed + 7)
    shift = torch.tensor([16.0, -8, 16, -8], dtype=torch.float64)
    mask, moved = positive_mask(a, b, height, width), positive_mask(a + shift, b + shift, height, width)
    assert (mask != moved).double().mean() < 0.02  # but for a rounding at the threshold
    assert positive_mask(a, a, height, width).diagonal(dim1=1, dim2=2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_of_any_type(dtype):
    whole = torch.tensor([[0, 0, 4, 4]])
    assert torch.equal(positive_mask(whole, whole, 4, 4), positive_mask(whole.to(dtype), whole.to(dtype), 4, 4))


def test_mask_refuses():
    with pytest.raises(ValueError, match="boxes_k: expected the shape of boxes_q"):
        positive_mask(UNIT, UNIT.expand(2, 4), 2, 2)
    with pytest.raises(ValueError, match="boxes: expected"):
        positive_mask(UNIT[:, :3], UNIT[:, :3], 2, 2)
    with pytest.raises(ValueError, match="height"):
        positive_mask(UNIT, UNIT, 0, 2)
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            positive_mask(UNIT, UNIT, 2, 2, threshold=threshold)


# ----------------------------------------------------------------------------------------------------- PixContrast


def contrast_loop(x1, x2, mask, temperature):
    terms = []
    a, b = x1.flatten(2), x2.flatten(2)
    for n in range(len(a)):
        for i in range(a.shape[2]):
            e = [
                math.exp(F.cosine_similarity(a[n, :, i], b[n, :, j], dim=0).item() / temperature)
                for j in range(b.shape[2])
            ]
            hits = [e[j] for j in range(b.shape[2]) if mask[n, i, j]]
            if hits:
                terms.append(-math.log(sum(hits) / sum(e)))
    return sum(terms) / len(terms)


@pytest.mark.parity("pixpro.pix_contrast_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_contrast_equals_the_sum_of_the_paper(temperature):
    x1, x2 = normal(3, 5, 4, 4), normal(3, 5, 4, 4, seed=1)
    mask = positive_mask(boxes(seed=1), boxes(seed=2), 4, 4)
    assert mask.any(2).any()
    assert not mask.any(2).all()
    got = pix_contrast_loss(x1, x2, mask, temperature=temperature)
    assert got.item() == pytest.approx(contrast_loop(x1, x2, mask, temperature), abs=1e-12)


def test_contrast_closed_forms():
    same = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    one = torch.eye(4, dtype=torch.bool)[None]
    assert pix_contrast_loss(same, same, one).item() == pytest.approx(math.log(4), abs=1e-12)
    assert pix_contrast_loss(same, same, ~one).item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert pix_contrast_loss(same, same, one | ~one).item() == pytest.approx(0, abs=1e-12)
    apart = torch.eye(4, dtype=torch.float64).view(1, 4, 2, 2)  # every cell its own direction
    expected = math.log(math.exp(1 / 0.3) + 3) - 1 / 0.3
    assert pix_contrast_loss(apart, apart, one).item() == pytest.approx(expected, abs=1e-12)


def test_contrast_reaches_the_first_view_only():
    x1, x2 = normal(2, 5, 3, 3).requires_grad_(), normal(2, 5, 3, 3, seed=1).requires_grad_()
    mask = torch.eye(9, dtype=torch.bool).repeat(2, 1, 1)
    mask[0, 4] = False
    pix_contrast_loss(x1, x2, mask).backward()
    assert x2.grad is None
    assert x1.grad[0, :, 1, 1].abs().max() == 0
    assert x1.grad[1, :, 1, 1].abs().max() > 0
    assert torch.autograd.gradcheck(lambda x: pix_contrast_loss(x, x2.detach(), mask), (x1,))


def test_contrast_stays_finite_at_a_low_temperature():
    x = normal(1, 5, 3, 3, dtype=torch.float32).requires_grad_()
    loss = pix_contrast_loss(x, -x, torch.eye(9, dtype=torch.bool)[None], temperature=1e-4)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_contrast_refuses_a_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        pix_contrast_loss(normal(1, 2, 1, 1), normal(1, 2, 1, 1), torch.ones(1, 1, 1) > 0, temperature=temperature)


@pytest.mark.parametrize("loss", [pix_contrast_loss, consistency_loss])
def test_losses_refuse_shapes(loss):
    x, mask = normal(2, 3, 2, 2), torch.ones(2, 4, 4) > 0
    for a, b in ((x, x[:1]), (x, x[:, :2]), (x.flatten(2), x.flatten(2)), (x[:0], x[:0])):
        with pytest.raises(ValueError, match=r"expected one shape \(B, D, H, W\)"):
            loss(a, b, mask)
    for wrong in (mask[:1], mask[:, :3], mask[:, :, :3]):
        with pytest.raises(ValueError, match=r"mask: expected shape \(2, 4, 4\)"):
            loss(x, x, wrong)
    with pytest.raises(TypeError, match="mask: expected torch.bool"):
        loss(x, x, mask.float())


# ----------------------------------------------------------------------------------------------------- propagation


@pytest.mark.parity("pixpro.pixel_propagation", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 10.0])
def test_propagation_equals_the_sum_of_the_paper(gamma):
    x, values = normal(2, 4, 2, 3), normal(2, 5, 2, 3, seed=1)
    out = pixel_propagation(x, values, gamma=gamma)
    assert out.shape == (2, 5, 2, 3)
    a, g = x.flatten(2), F.normalize(values, dim=1).flatten(2)
    for n in range(2):
        for i in range(6):
            y = torch.zeros(5, dtype=torch.float64)
            for j in range(6):
                s = max(F.cosine_similarity(a[n, :, i], a[n, :, j], dim=0).item(), 0.0)
                y += (s + 1e-6 if gamma < 1 else s) ** gamma * g[n, :, j]
            torch.testing.assert_close(out.flatten(2)[n, :, i], y, rtol=0, atol=1e-12)


@pytest.mark.differs(
    "pixpro",
    paper="sums g(x_j) as it is",
    official="scales g(x_j) to length 1 before the sum, and adds 1e-6 to the similarity where gamma < 1",
    here="the official code's",
)
def test_lengths_do_not_count():
    x, values = normal(2, 4, 3, 3), normal(2, 5, 3, 3, seed=1)
    scale = 0.1 + torch.rand(2, 1, 3, 3, dtype=torch.float64, generator=draw())
    torch.testing.assert_close(pixel_propagation(scale * x, values / scale), pixel_propagation(x, values))
    assert (pixel_propagation(x, values, gamma=0.5) - pixel_propagation(x, values, gamma=1.0)).abs().max() > 0.1
    opposite = torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert pixel_propagation(opposite, opposite, gamma=0.5)[0, 0, 0, 0].item() == pytest.approx(
        (1 + 1e-6) ** 0.5 - 1e-3, abs=1e-12
    )


def test_propagation_of_special_maps():
    uniform = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    torch.testing.assert_close(pixel_propagation(uniform, uniform), 12 * uniform / 5)
    orthogonal = torch.eye(6, dtype=torch.float64).view(1, 6, 2, 3)
    assert torch.equal(pixel_propagation(orthogonal, 7 * orthogonal), orthogonal)
    opposite = torch.tensor([[2.0, -1.0], [0.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 2)
    torch.testing.assert_close(pixel_propagation(opposite, opposite), F.normalize(opposite, dim=1))


def test_limits_of_gamma():
    x = normal(2, 6, 3, 3)
    unit = F.normalize(x, dim=1)
    torch.testing.assert_close(pixel_propagation(x, x, gamma=1e4), unit, rtol=0, atol=1e-9)
    total = unit.sum((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(pixel_propagation(x, x, gamma=1e-6), total, rtol=0, atol=1e-3)


def test_propagation_commutes_with_a_permutation():
    x, values = normal(2, 4, 3, 3), normal(2, 5, 3, 3, seed=1)
    order = torch.randperm(9, generator=draw())

    def shuffle(t):
        return t.flatten(2)[:, :, order].unflatten(2, (3, 3))

    torch.testing.assert_close(pixel_propagation(shuffle(x), shuffle(values)), shuffle(pixel_propagation(x, values)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_gradient_of_propagation(gamma):
    x, values = normal(1, 3, 2, 2).requires_grad_(), normal(1, 2, 2, 2, seed=1).requires_grad_()
    pixel_propagation(x, values, gamma=gamma).sum().backward()
    assert x.grad.isfinite().all()
    assert values.grad.isfinite().all()
    if gamma >= 1:  # below, the power of 1e-6 is too steep for finite differences
        assert torch.autograd.gradcheck(lambda a, b: pixel_propagation(a, b, gamma=gamma), (x, values))


def test_propagation_refuses():
    x = normal(2, 3, 2, 2)
    for values in (x[:1], normal(2, 3, 2, 3), x[0]):
        with pytest.raises(ValueError, match="x, values: expected"):
            pixel_propagation(x, values)
    for gamma in (0.0, -2.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gamma"):
            pixel_propagation(x, x, gamma=gamma)


def test_module():
    torch.manual_seed(0)
    x = normal(2, 4, 3, 3)
    module = PixelPropagation(4, gamma=3.0).double()
    assert [tuple(p.shape) for p in module.parameters()] == [(4, 4, 1, 1), (4,)]
    torch.testing.assert_close(module(x), pixel_propagation(x, module.g(x), gamma=3.0))
    torch.testing.assert_close(PixelPropagation(4, layers=0)(x), pixel_propagation(x, x))
    kinds = [type(part).__name__ for part in PixelPropagation(4, layers=2).g]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    with pytest.raises(ValueError, match="layers"):
        PixelPropagation(4, layers=-1)


# ----------------------------------------------------------------------------------------------------- consistency


def consistency_loop(pred, target, mask):
    total = 0.0
    p, t = pred.flatten(2), target.flatten(2)
    for n in range(len(p)):
        pairs = [(i, j) for i in range(p.shape[2]) for j in range(p.shape[2]) if mask[n, i, j]]
        cosines = [F.cosine_similarity(p[n, :, i], t[n, :, j], dim=0).item() for i, j in pairs]
        total -= sum(cosines) / (len(pairs) + 1e-6)
    return total / len(p)


@pytest.mark.parity("pixpro.consistency_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parity("pixpro.pixpro_loss", against="float64 loops", tolerance=1e-12)
def test_consistency_equals_the_sum_of_the_paper():
    a, b = boxes(seed=1), boxes(seed=2)
    b[2] += 500  # a picture without positives
    maps = [normal(3, 5, 3, 4, seed=s) for s in range(4)]
    mask = positive_mask(a, b, 3, 4, threshold=1.0)
    one, two = consistency_loop(maps[0], maps[1], mask), consistency_loop(maps[2], maps[3], mask.mT)
    assert one != pytest.approx(two)
    assert consistency_loss(maps[0], maps[1], mask).item() == pytest.approx(one, abs=1e-12)
    assert pixpro_loss(*maps, a, b, threshold=1.0).item() == pytest.approx(one + two, abs=1e-12)
    assert pixpro_loss(*maps, a, b) != pixpro_loss(*maps, a, b, threshold=1.0)


def test_perfect_agreement():
    x = normal(2, 5, 3, 3)
    mask = torch.eye(9, dtype=torch.bool).repeat(2, 1, 1)
    assert consistency_loss(3 * x, x, mask).item() == pytest.approx(-1, abs=1e-6)
    assert consistency_loss(-x, x, mask).item() == pytest.approx(1, abs=1e-6)


def test_a_picture_without_positives_counts():
    x = normal(4, 5, 2, 2)
    mask = torch.eye(4, dtype=torch.bool).repeat(4, 1, 1)
    mask[1:] = False
    assert consistency_loss(x, x, mask).item() == pytest.approx(-1 / 4, abs=1e-6)


def test_pictures_weigh_alike():
    # one pair with cosine 1 in the first picture, four with cosine -1 in the second
    x = normal(2, 5, 2, 2)
    mask = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    mask[0, 1:] = False
    assert consistency_loss(x, torch.stack([x[0], -x[1]]), mask).item() == pytest.approx(0, abs=1e-6)


def test_gradient_reaches_the_prediction_only():
    pred, target = normal(2, 5, 2, 2).requires_grad_(), normal(2, 5, 2, 2, seed=1).requires_grad_()
    mask = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    consistency_loss(pred, target, mask).backward()
    assert target.grad is None
    assert pred.grad.abs().max() > 0
    assert torch.autograd.gradcheck(lambda p: consistency_loss(p, target.detach(), mask), (pred,))


@pytest.mark.differs(
    "pixpro",
    paper="minus the two cosines",
    official="twice that (the loss of the training script is multiplied by 2)",
    here="the paper's",
)
def test_range_of_the_loss():
    x = normal(2, 5, 4, 4)
    same = UNIT.expand(2, 4)
    assert pixpro_loss(x, x, x, x, same, same).item() == pytest.approx(-2, abs=1e-6)
    assert pixpro_loss(x, -x, x, -x, same, same).item() == pytest.approx(2, abs=1e-6)


def test_full_precision_under_autocast():
    x, y = normal(2, 16, 4, 4, dtype=torch.float32), normal(2, 16, 4, 4, seed=1, dtype=torch.float32)
    mask = positive_mask(boxes(2, seed=1).float(), boxes(2, seed=2).float(), 4, 4)

    def everything(x, y):
        return pix_contrast_loss(x, y, mask), consistency_loss(x, y, mask), pixel_propagation(x, y)

    expected = everything(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, value in zip(everything(x, y), expected, strict=True):
            assert torch.equal(got, value)
    for half, value in zip(everything(x.bfloat16(), y.bfloat16()), expected, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, value, rtol=0.05, atol=0.05)
