"""PixPro: assignment, propagation and losses against loops, closed forms and hand-computed cases."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sslref import claims
from sslref.data import DataError
from sslref.data.worlds.scenes import Views
from sslref.evaluate import cell_labels, likeness
from sslref.evaluate.scenes import scene_test
from sslref.losses import byol_loss
from sslref.nn import ConvMap, geometry, rising_update
from sslref.nn.seeded import seeded
from sslref.papers import pixpro
from sslref.papers.pixpro import (
    PixelPropagation,
    PixPro,
    consistency_loss,
    pix_contrast_loss,
    pixel_centers,
    pixel_propagation,
    pixpro_loss,
    positive_mask,
)
from sslref.train import fit

SIZES = {"scenes": 48, "labelled": 32, "test": 24}
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


# ----------------------------------------------------------------------------------------------------- the network


class Cells(nn.Module):
    """An encoder whose map is the picture itself, averaged to 4 x 4 cells."""

    out_dim = 3

    def features(self, images):
        return F.adaptive_avg_pool2d(images, 4)


def network(**options):
    torch.manual_seed(0)
    return PixPro(Cells(), hidden_dim=6, out_dim=5, **options)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("predictor", ["propagation", "g", "mlp", "none"])
def test_branches(predictor, pooled):
    model, images = network(predictor=predictor, pooled=pooled), torch.rand(4, 3, 8, 8)
    out = model(images)
    side = 1 if pooled else 4
    assert [tuple(part.shape) for part in out] == [(4, 5, side, side)] * 3
    assert not out.target.requires_grad
    torch.testing.assert_close(out.x, out.target)  # the copy starts as the network
    if predictor == "none":
        assert out.y is out.x
    if predictor == "propagation":
        torch.testing.assert_close(out.y, pixel_propagation(out.x, model.predictor.g(out.x)))
        torch.testing.assert_close(
            network(gamma=5.0, pooled=pooled)(images).y, pixel_propagation(out.x, model.predictor.g(out.x), gamma=5.0)
        )
    if pooled:
        torch.testing.assert_close(out.x, model.online.projector(Cells().features(images).mean((2, 3), keepdim=True)))


def test_arms_start_alike():
    assert torch.equal(network().predictor.g[0].weight, network(predictor="g").predictor[0].weight)
    with pytest.raises(ValueError, match="predictor: expected one of propagation, g, mlp, none, got 'conv'"):
        network(predictor="conv")


def test_the_copy_follows():
    model = network()
    old = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.online.parameters():
            p += 1
    for step, momentum in ((0, 0.99), (5, 0.995), (10, 1.0)):
        before = [p.clone() for p in model.teacher.parameters()]
        rising_update(model.teacher, model.online, step, 10)
        for a, b, p in zip(before, model.teacher.parameters(), model.online.parameters(), strict=True):
            torch.testing.assert_close(b, momentum * a + (1 - momentum) * p)
    assert all(not torch.equal(a, b) for a, b in zip(old, model.teacher.parameters(), strict=True))


# --------------------------------------------------------------------------------------------------------- training


def some_views():
    a, b = boxes(4, seed=1), boxes(4, seed=2)
    first, second = torch.rand(2, 4, 3, 8, 8, generator=draw())
    return first, a.float(), second, b.float()


def test_agree_is_the_loss_of_both_directions():
    model, views = network(), some_views()
    x, y, t = (part.chunk(2) for part in model(torch.cat(views[::2])))
    mask = positive_mask(views[1], views[3], 4, 4)
    values = pixpro.agree(model, views)
    torch.testing.assert_close(values["loss"], pixpro_loss(y[0], t[1], y[1], t[0], views[1], views[3]))
    torch.testing.assert_close(
        torch.stack([values["cells alike"], values["pictures alike"]]), torch.stack(likeness(t[0]))
    )
    contrast = network(predictor="none")
    forth, back = pix_contrast_loss(x[0], t[1], mask), pix_contrast_loss(x[1], t[0], mask.mT)
    torch.testing.assert_close(pixpro.agree(contrast, views, loss="contrast")["loss"], (forth + back) / 2)
    same = torch.eye(16, dtype=torch.bool).expand(4, 16, 16)
    expected = (pix_contrast_loss(x[0], t[1], same) + pix_contrast_loss(x[1], t[0], same)) / 2
    torch.testing.assert_close(pixpro.agree(contrast, views, loss="contrast", located=False)["loss"], expected)


def test_agree_on_one_pooled_cell_is_byol():
    model, views = network(predictor="mlp", pooled=True), some_views()
    _, y, t = (part.flatten(1).chunk(2) for part in model(torch.cat(views[::2])))
    expected = (byol_loss(y[0], t[1]) + byol_loss(y[1], t[0])) / 2 - 2
    values = pixpro.agree(model, views, located=False)
    torch.testing.assert_close(values["loss"], expected, rtol=0, atol=1e-5)
    assert set(values) == {"loss"}


def test_task_draws_each_picture_once():
    def views(images, generator):
        return Views(images, torch.rand(len(images), 4, generator=generator))

    job = pixpro.task(
        network(),
        lambda index: index.float().view(-1, 1, 1, 1),
        20,
        batch_size=20,
        views=views,
        optimizer=None,
        warmup=0.1,
    )
    first, a, second, b = job.batch(draw())
    assert first.flatten().sort().values.tolist() == list(range(20))
    assert torch.equal(first, second)
    assert not torch.equal(a, b)
    assert torch.equal(job.batch(draw())[1], a)
    for size in (1, 21):
        with pytest.raises(ValueError, match="batch_size: expected 2 to 20"):
            pixpro.task(None, None, 20, batch_size=size, views=views, optimizer=None, warmup=0.1)


def test_boxed_views_show_what_their_boxes_say():
    line = (torch.arange(60) + 0.5) / 60
    coordinates = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.zeros(60, 60)]).expand(40, 3, 60, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixpro, "color_distort", lambda x, **_: x)
        patch.setattr(pixpro, "random_blur", lambda x, **_: x)
        view, box = pixpro.boxed_view(coordinates, draw(), size=24)
    assert view.shape == (40, 3, 24, 24)
    assert 10 < (box[:, 0] > box[:, 2]).sum() < 30
    expected = pixel_centers(box, 24, 24).movedim(3, 1) / 60
    assert (view[:, :2] - expected).abs().max() < 0.02  # the border repeats itself
    view, again = (pixpro.boxed_view(coordinates, draw(1), size=24) for _ in range(2))
    assert torch.equal(view.images, again.images)


def one_step(recipe):
    assert math.isfinite(fit(recipe.task, steps=1).last())
    return recipe


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sslref.evaluate.scenes.scene_test", functools.partial(scene_test, **SIZES)
    )  # drawing 3,000 takes seconds
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (40, 50), (60 * i, 90, 20)).save(tmp_path / name / f"{i}.png")
    recipe = one_step(pixpro.recipe(batch_size=4))
    assert (recipe.steps, recipe.batch_size) == (200, 4)
    assert "48 pictures (the scene world)" in recipe.about
    assert "4 pictures" in one_step(pixpro.recipe(tmp_path, batch_size=2, size="miniature")).about
    recipe = pixpro.recipe(tmp_path, batch_size=2)
    assert recipe.steps == 200
    assert "ResNet-18" in recipe.about
    assert recipe.task.optimizer(recipe.task.model).param_groups[0]["lr"] == pytest.approx(0.1 * 2 / 256)
    with pytest.raises(ValueError, match="size: expected"):
        pixpro.recipe(size="huge")
    with pytest.raises(DataError, match="one subfolder a class"):
        pixpro.recipe(tmp_path / "cat")


# ------------------------------------------------------------------------------------------------------- experiment


def test_arms_are_paired():
    spent = {"seed": 0, "steps": 1, "batch_size": 8, **SIZES}
    kept = {arm: pixpro.pretrain(arm, **spent) for arm in pixpro.ARMS}
    assert len({id(k.data) for k in kept.values()}) == 1
    assert not any(k.model.training for k in kept.values())
    start = seeded(0, lambda: pixpro.PixPro(ConvMap(), **pixpro.SIZES)).encoder.state_dict()
    for name, value in kept["random weights"].model.encoder.state_dict().items():
        assert "running" in name or "tracked" in name or torch.equal(value, start[name])
    seen = {arm: k.model.encoder.state_dict()["layers.0.1.running_mean"] for arm, k in kept.items()}
    for arm in set(kept) - {"random weights", "PixPro"}:
        assert torch.equal(seen[arm], seen["PixPro"])  # the first batch norm sees the same views
    assert pixpro.pretrain("PixPro", **spent) is kept["PixPro"]
    with pytest.raises(ValueError, match="arm: expected one of random weights, BYOL.*'pixels'"):
        pixpro.pretrain("pixels")


class Eye(nn.Module):
    """Sees the class of a cell (`knows`), or nothing but noise."""

    def __init__(self, scenes, knows):
        super().__init__()
        self.scenes, self.knows = scenes, knows
        self.encoder, self.online = self, nn.Module()
        self.online.projector = nn.Identity()

    def features(self, images):
        for part in (self.scenes.labelled, self.scenes.test):
            if images is part.images and self.knows:
                return F.one_hot(cell_labels(part.classes, 8, 8), 13).permute(0, 3, 1, 2).double()
        for view in self.scenes.views:
            if images is view.images and self.knows:
                x, y = pixel_centers(view.boxes.double(), 6, 6).unbind(3)
                parts = [f(k * v) for v in (x, y) for k in (1.5, 3.0) for f in (torch.cos, torch.sin)]
                return torch.stack(parts, 1)
        side = images.shape[-1] // 8
        return normal(len(images), 13, side, side, seed=len(images) + side)


def test_measures_of_known_representations():
    data = scene_test(0, **SIZES)
    seeing, blind = (pixpro.measure(Eye(data, knows), data) for knows in (True, False))
    assert seeing["miou"] == pytest.approx(100)
    assert seeing["figure_ground"] == pytest.approx(100)
    assert seeing["match"] > 98
    assert seeing["same_thing"] > 80
    assert blind["miou"] < 20
    assert blind["pictures_alike"] == pytest.approx(0, abs=0.05)
    assert "miou" not in pixpro.measure(Eye(data, True), data, probe=False)


def test_grid_and_start():
    good, bad = (
        pixpro.run_grid(arm, seed=5, device="cpu", views=64) for arm in ("boxes with flips", "flips forgotten")
    )
    assert good["agreement"] == 1
    assert bad["agreement"] < 0.6
    plain, smooth = (pixpro.run_start(arm, seed=0, device="cpu", **SIZES) for arm in ("plain", "propagated"))
    for values in (plain, smooth):
        assert values["region_share"] == pytest.approx(100 * values["region_spread"] / values["picture_spread"])
    assert smooth["region_spread"] < plain["region_spread"]


def test_claims_name_what_runs_return(tmp_path):
    record = claims.run("pixpro", "smoke", seeds=1, cache=tmp_path)
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    by_id = {c.id: c for c in pixpro.CLAIMS}
    for e in record.claims:
        metrics = record.metrics[by_id[e.id].experiment]
        assert all(e.metric in metrics[arm] for arm in e.arms)
        assert set(e.arms) <= set(pixpro.EXPERIMENTS[by_id[e.id].experiment].arms)
    assert record["grid"].verdict == "exact"
