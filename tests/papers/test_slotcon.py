"""SlotCon: grouping, alignment and the two losses against loops, closed forms and hand-computed cases."""

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
from sslref.evaluate import scenes
from sslref.evaluate.scenes import scene_test
from sslref.nn import ConvMap, pixel_centers, rising_update
from sslref.nn.seeded import seeded
from sslref.papers import slotcon
from sslref.papers.slotcon import (
    Predictor,
    SlotCon,
    grouping_loss,
    inverse_augmentation,
    overlap_boxes,
    perplexity,
    semantic_grouping,
    slot_contrastive_loss,
    slot_presence,
    update_center,
)
from sslref.train import fit

SIZES = {"scenes": 48, "labelled": 32, "test": 24}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=draw(seed))


def scores(batch=3, k=5, h=2, w=3, seed=0):
    return normal(batch, k, h, w, seed=seed).tanh()


# -------------------------------------------------------------------------------------------------------- grouping


@pytest.mark.parity("slotcon.semantic_grouping", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_grouping_equals_the_sums_of_the_paper(temperature):
    x, prototypes = normal(2, 4, 2, 3), normal(3, 4, seed=1)
    found = semantic_grouping(x, prototypes, temperature=temperature)
    assert found.slots.shape == (2, 3, 4)
    assert found.scores.shape == (2, 3, 2, 3)
    for b in range(2):
        total, weight = torch.zeros(3, 4, dtype=torch.float64), [0.0] * 3
        for i in range(6):
            cell = x[b, :, i // 3, i % 3]
            cosines = [F.cosine_similarity(cell, p, dim=0).item() for p in prototypes]
            e = [math.exp(c / temperature) for c in cosines]
            for k in range(3):
                assert found.scores[b, k, i // 3, i % 3].item() == pytest.approx(cosines[k], abs=1e-12)
                share = e[k] / sum(e) + 1e-6
                total[k] += share * cell
                weight[k] += share
        expected = total / torch.tensor(weight, dtype=torch.float64)[:, None]
        torch.testing.assert_close(found.slots[b], expected, rtol=0, atol=1e-12)


def test_a_constant_map():
    x = normal(1, 4, 1, 1).expand(2, 4, 3, 3)
    slots, _ = semantic_grouping(x, normal(5, 4, seed=1))
    torch.testing.assert_close(slots, x[:, :, 0, 0][:, None].expand(2, 5, 4))


def test_slots_take_cells_as_they_are_and_scores_their_direction():
    x, prototypes = normal(2, 4, 3, 3), normal(5, 4, seed=1)
    plain, double = semantic_grouping(x, prototypes), semantic_grouping(2 * x, prototypes)
    torch.testing.assert_close(double.slots, 2 * plain.slots)
    torch.testing.assert_close(double.scores, plain.scores)
    for part, same in zip(semantic_grouping(x, 7 * prototypes), plain, strict=True):
        torch.testing.assert_close(part, same)


def test_order_of_cells_and_prototypes():
    x, prototypes = normal(2, 4, 3, 3), normal(5, 4, seed=1)
    order = torch.randperm(9, generator=draw())
    plain = semantic_grouping(x, prototypes)
    shuffled = semantic_grouping(x.flatten(2)[:, :, order].view_as(x), prototypes)
    torch.testing.assert_close(shuffled.slots, plain.slots)
    order = torch.randperm(5, generator=draw())
    for part, old in zip(semantic_grouping(x, prototypes[order]), plain, strict=True):
        torch.testing.assert_close(part, old[:, order])


def test_a_prototype_that_gets_nothing_holds_the_mean():
    x = torch.tensor([[1.0, 2], [0.0, 0]], dtype=torch.float64).view(1, 2, 1, 2)
    prototypes = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    slots, _ = semantic_grouping(x, prototypes, temperature=1e-3)  # eps is all that the second one gets
    torch.testing.assert_close(slots[0], torch.tensor([[1.5, 0], [1.5, 0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 0], [0, 3]], dtype=torch.float64).view(1, 2, 1, 2)  # cells (1, 0), (0, 3)
    slots, _ = semantic_grouping(x, torch.eye(2).double(), temperature=0.1)
    a = math.exp(10) / (math.exp(10) + 1) + 1e-6
    b = 1 / (math.exp(10) + 1) + 1e-6
    torch.testing.assert_close(slots[0, 0], torch.tensor([a, 3 * b], dtype=torch.float64) / (a + b))


def test_grouping_reaches_cells_and_prototypes():
    x, prototypes = normal(1, 3, 2, 2).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, p: tuple(semantic_grouping(a, p, temperature=0.5)), (x, prototypes))


def test_grouping_refuses():
    x, prototypes = normal(2, 4, 3, 3), normal(5, 4)
    for a, b in ((x, prototypes[:, :3]), (x[0], prototypes), (x, prototypes[0]), (x[:0], prototypes)):
        with pytest.raises(ValueError, match="x, prototypes: expected"):
            semantic_grouping(a, b)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            semantic_grouping(x, prototypes, temperature=temperature)


# ------------------------------------------------------------------------------------------------------- alignment


@pytest.mark.parity("slotcon.inverse_augmentation", against="float64 loops", tolerance=1e-12)
def test_inverse_equals_bilinear_sampling():
    x, flips = normal(3, 2, 4, 5), torch.tensor([False, True, False])
    low, high = (
        0.4 * torch.rand(3, 2, generator=draw()).double(),
        0.6 + 0.4 * torch.rand(3, 2, generator=draw(1)).double(),
    )
    out = inverse_augmentation(x, torch.cat([low, high], 1), flips)
    assert out.shape == x.shape
    for b in range(3):
        for i in range(4):
            for j in range(5):
                target = 4 - j if flips[b] else j  # cut first, then mirrored
                places = []
                for axis, (n, size) in enumerate(((target, 5), (i, 4))):
                    a, e = low[b, axis].item(), high[b, axis].item()
                    places.append(min(max(a * size + (n + 0.5) * (e - a) - 0.5, 0), size - 1))
                (u, v), value = places, 0.0
                for row in (math.floor(v), math.ceil(v)):
                    for column in {math.floor(u), math.ceil(u)}:
                        weight = max(0, 1 - abs(row - v)) * max(0, 1 - abs(column - u))
                        value += weight * x[b, 0, row, column].item() / (2 if math.floor(v) == math.ceil(v) else 1)
                assert out[b, 0, i, j].item() == pytest.approx(value, abs=1e-12)


def test_the_whole_box():
    x, whole = normal(2, 3, 4, 5), torch.tensor([[0.0, 0, 1, 1]]).double().expand(2, 4)
    out = inverse_augmentation(x, whole, torch.tensor([False, True]))
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(out[1], x[1].flip(2), rtol=0, atol=1e-12)


def test_a_ramp_by_hand():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 1, 8, 8)
    box = torch.tensor([[0.25, 0, 0.75, 1]], dtype=torch.float64)
    expected = 1.75 + 0.5 * torch.arange(8, dtype=torch.float64)
    out = inverse_augmentation(ramp, box, torch.tensor([False]))
    torch.testing.assert_close(out, expected.expand(1, 1, 8, 8))
    torch.testing.assert_close(
        inverse_augmentation(ramp, box, torch.tensor([True])), expected.flip(0).expand(1, 1, 8, 8)
    )


def test_cut_first_then_mirror():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 1, 8, 8)
    box, flag = torch.tensor([[0.0, 0, 0.5, 1]], dtype=torch.float64), torch.tensor([True])
    out = inverse_augmentation(ramp, box, flag)
    assert out[0, 0, 0, 0] > out[0, 0, 0, 7]
    assert out.max() < 4  # the left half of the view as it is


@pytest.mark.parity("slotcon.overlap_boxes", against="float64 loops", tolerance=1e-12)
def test_overlap_by_loops():
    low, side = (
        0.4 * torch.rand(2, 20, 2, generator=draw()).double(),
        0.55 + 0.05 * torch.rand(2, 20, 2, generator=draw(1)),
    )
    boxes = torch.cat([low, low + side], 2)
    mirrored = torch.rand(2, 20, 1, generator=draw(2)) < 0.5
    stored = torch.where(mirrored, boxes[:, :, [2, 1, 0, 3]], boxes)
    for own in (0, 1):
        where, flips = overlap_boxes(stored[own], stored[1 - own])
        assert torch.equal(flips, mirrored[own, :, 0])
        for b in range(20):
            (x1, y1, x2, y2), other = boxes[own, b].tolist(), boxes[1 - own, b].tolist()
            left, right = max(x1, other[0]), min(x2, other[2])
            top, bottom = max(y1, other[1]), min(y2, other[3])
            u1, u2 = (left - x1) / (x2 - x1), (right - x1) / (x2 - x1)
            if flips[b]:
                u1, u2 = 1 - u2, 1 - u1
            expected = [u1, (top - y1) / (y2 - y1), u2, (bottom - y1) / (y2 - y1)]
            assert where[b].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parity("slotcon.run_align", against="closed form: coordinates", tolerance=1e-6)
def test_a_scene_of_coordinates_lines_up():
    results = {a: slotcon.run_align(a, seed=5, device="cpu", views=64) for a in slotcon.EXPERIMENTS["align"].arms}
    assert results["true inverse"]["agreement"] == 1
    assert 0.3 < results["flips forgotten"]["agreement"] < 0.7
    assert results["mirrored before the cut"]["agreement"] < 0.7


def test_alignment_refuses():
    x, boxes, flips = normal(2, 3, 4, 4), torch.rand(2, 4), torch.zeros(2, dtype=torch.bool)
    for args in ((x[0], boxes, flips), (x, boxes[:1], flips), (x, boxes, flips[:1]), (x, boxes[:, :3], flips)):
        with pytest.raises(ValueError, match="x, boxes, flips: expected"):
            inverse_augmentation(*args)
    with pytest.raises(TypeError, match="flips: expected torch.bool"):
        inverse_augmentation(x, boxes, flips.float())
    with pytest.raises(ValueError, match="boxes, other: expected one shape"):
        overlap_boxes(boxes, boxes[:1])


# --------------------------------------------------------------------------------------------------- grouping loss


@pytest.mark.parity("slotcon.grouping_loss", against="float64 loops", tolerance=1e-12)
def test_grouping_loss_equals_the_sum_of_the_paper():
    student, teacher, center = scores(), scores(seed=1), 0.1 * normal(5)
    total = 0.0
    for b in range(3):
        for i in range(6):
            s, t = (m[b, :, i // 3, i % 3].tolist() for m in (student, teacher))
            e = [math.exp((v - c) / 0.05) for v, c in zip(t, center.tolist(), strict=True)]
            q = [math.exp(v / 0.2) for v in s]
            total -= sum(a / sum(e) * math.log(p / sum(q)) for a, p in zip(e, q, strict=True))
    loss = grouping_loss(student, teacher, center, student_temp=0.2, teacher_temp=0.05)
    assert loss.item() == pytest.approx(total / 18, abs=1e-12)
    default = grouping_loss(student, teacher, center)
    torch.testing.assert_close(default, grouping_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.07))


def test_grouping_loss_closed_forms():
    flat = torch.zeros(2, 7, 3, 3, dtype=torch.float64)
    assert grouping_loss(flat, flat, torch.zeros(7)).item() == pytest.approx(math.log(7), abs=1e-12)
    student, teacher, center = scores(), scores(seed=1), normal(5)
    moved = grouping_loss(student, teacher + 3, center + 3)
    torch.testing.assert_close(moved, grouping_loss(student, teacher, center))
    per_prototype = normal(5)[:, None, None]
    shifted = grouping_loss(student, teacher + per_prototype, center + per_prototype[:, 0, 0])
    torch.testing.assert_close(shifted, grouping_loss(student, teacher, center))
    # two prototypes, scores a and -a with one certain teacher: ln(1 + e^(-2a / 0.1))
    one = torch.tensor([0.1, -0.1], dtype=torch.float64).view(1, 2, 1, 1)
    loss = grouping_loss(one, 100 * one, torch.zeros(2))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-12)


def test_grouping_loss_reaches_the_student_only():
    student, teacher = scores().requires_grad_(), scores(seed=1).requires_grad_()
    center = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    grouping_loss(student, teacher, center).backward()
    assert teacher.grad is None
    assert center.grad is None
    assert student.grad.abs().max() > 0
    assert torch.autograd.gradcheck(lambda s: grouping_loss(s, teacher.detach(), center.detach()), (student,))


@pytest.mark.parity("slotcon.update_center", against="float64 loops", tolerance=1e-12)
def test_center():
    center, teacher = normal(5), scores().requires_grad_()
    mean = torch.tensor([sum(teacher[b, k].sum().item() for b in range(3)) / 18 for k in range(5)], dtype=torch.float64)
    torch.testing.assert_close(update_center(center, teacher, momentum=0.0), mean)
    assert torch.equal(update_center(center, teacher, momentum=1.0), center)
    moved = update_center(center, teacher)
    torch.testing.assert_close(moved, 0.9 * center + 0.1 * mean)
    assert not moved.requires_grad


def test_grouping_loss_refuses():
    s, center = scores(), torch.zeros(5)
    for a, b in ((s, s[:1]), (s[0], s[0]), (s[:0], s[:0]), (s, s[:, :4])):
        with pytest.raises(ValueError, match=r"student_scores, teacher_scores: expected one shape"):
            grouping_loss(a, b, center)
    for wrong in (center[:4], center[None], torch.zeros(())):
        with pytest.raises(ValueError, match="center: expected shape"):
            grouping_loss(s, s, wrong)
        with pytest.raises(ValueError, match="center: expected shape"):
            update_center(wrong, s)
    for name in ("student_temp", "teacher_temp"):
        with pytest.raises(ValueError, match=name):
            grouping_loss(s, s, center, **{name: 0.0})
    with pytest.raises(ValueError, match="momentum"):
        update_center(center, s, momentum=1.5)
    with pytest.raises(ValueError, match="teacher_scores: expected"):
        update_center(center, s[0])


# -------------------------------------------------------------------------------------------------- group contrast


@pytest.mark.parity("slotcon.slot_presence", against="loops", tolerance=0.0)
def test_presence():
    s = scores(batch=4, k=6, h=2, w=2)
    found = slot_presence(s)
    assert found.dtype == torch.bool
    for b in range(4):
        winners = {max(range(6), key=lambda k, p=p: s[b, k, p // 2, p % 2].item()) for p in range(4)}  # noqa: B023
        assert found[b].tolist() == [k in winners for k in range(6)]
    assert slot_presence(torch.zeros(1, 3, 2, 2)).tolist() == [[True, False, False]]
    tied = torch.tensor([0.0, 2, 1, 2]).view(1, 4, 1, 1)
    assert slot_presence(tied).tolist() == [[False, True, False, False]]
    for wrong in (s[0], s[:0]):
        with pytest.raises(ValueError, match="scores: expected shape"):
            slot_presence(wrong)


def contrast_loop(q, k, common, present, tau):
    keys = [k[b, j] for b in range(len(k)) for j in range(k.shape[1]) if present[b, j]]
    terms = []
    for b in range(len(q)):
        for j in range(q.shape[1]):
            if common[b, j]:
                e = [math.exp(F.cosine_similarity(q[b, j], key, dim=0).item() / tau) for key in keys]
                own = math.exp(F.cosine_similarity(q[b, j], k[b, j], dim=0).item() / tau)
                terms.append(-math.log(own / sum(e)))
    return 2 * tau * sum(terms) / len(terms)


@pytest.mark.parity("slotcon.slot_contrastive_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("tau", [0.2, 0.5])
@pytest.mark.parametrize("predicted", [False, True])
def test_contrast_equals_the_sum_of_the_paper(tau, predicted):
    student, teacher, s, t = normal(3, 5, 4), normal(3, 5, 4, seed=1), scores(), scores(h=3, seed=1)
    common, present = slot_presence(s) & slot_presence(t), slot_presence(t)
    assert common.sum() < present.sum() < present.numel()
    assert not (slot_presence(s) <= present).all()  # the student has slots that the teacher has not
    predictor = (lambda rows: rows.flip(1) ** 3) if predicted else None
    q = student.flip(2) ** 3 if predicted else student
    loss = slot_contrastive_loss(student, teacher, s, t, temperature=tau, predictor=predictor)
    assert loss.item() == pytest.approx(contrast_loop(q, teacher, common, present, tau), abs=1e-12)


def test_contrast_by_hand():
    slots = torch.eye(2, dtype=torch.float64)[None]
    both = torch.eye(2, dtype=torch.float64).view(1, 2, 1, 2)  # each of the two cells has its own prototype
    loss = slot_contrastive_loss(slots, slots, both, both)
    assert loss.item() == pytest.approx(0.4 * math.log(1 + math.exp(-5)), abs=1e-12)
    assert loss.item() == pytest.approx(0.00269, abs=5e-6)
    alike = torch.ones(1, 2, 3, dtype=torch.float64)
    assert slot_contrastive_loss(alike, alike, both, both).item() == pytest.approx(0.4 * math.log(2), abs=1e-12)
    batch = [part.expand(3, *part.shape[1:]) for part in (alike, alike, both, both)]
    assert slot_contrastive_loss(*batch).item() == pytest.approx(0.4 * math.log(6), abs=1e-12)


def test_gradient_reaches_what_is_there():
    student, teacher = normal(3, 5, 4).requires_grad_(), normal(3, 5, 4, seed=1).requires_grad_()
    s, t = scores(), scores(seed=1)
    slot_contrastive_loss(student, teacher, s, t).backward()
    common = slot_presence(s) & slot_presence(t)
    assert teacher.grad is None
    assert torch.equal(student.grad.abs().amax(2) > 0, common)
    assert torch.autograd.gradcheck(lambda q: slot_contrastive_loss(q, teacher.detach(), s, t), (student,))


@pytest.mark.differs(
    "slotcon",
    paper="the mean over the slots of both views, without a word on none",
    official="not a number where no picture of the batch has a common slot",
    here="0, with a gradient of 0",
)
@pytest.mark.parametrize("predictor", [None, nn.BatchNorm1d(4, dtype=torch.float64)])
def test_no_common_slot(predictor):
    student = normal(2, 3, 4).requires_grad_()
    s = torch.eye(3, dtype=torch.float64)[[0, 0]].view(2, 3, 1, 1)
    loss = slot_contrastive_loss(student, student.detach(), s, s.roll(1, 1), predictor=predictor)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_predictor_sees_the_queries_that_are_left():
    seen = []
    s, t = scores(), scores(seed=1)
    student = normal(3, 5, 4)
    slot_contrastive_loss(student, normal(3, 5, 4, seed=1), s, t, predictor=lambda rows: seen.append(rows) or rows)
    assert torch.equal(seen[0], student[slot_presence(s) & slot_presence(t)])


def test_contrast_refuses():
    slots, s = normal(2, 5, 4), scores(2)
    for args in (
        (slots, slots[:1], s, s),
        (slots, slots[:, :, :3], s, s),
        (slots[0], slots[0], s, s),
        (slots, slots, s[:1], s),
        (slots, slots, s, s[:, :4]),
    ):
        with pytest.raises(ValueError, match=r"slots, scores: expected|scores: expected"):
            slot_contrastive_loss(*args)
    for temperature in (0.0, -0.2, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            slot_contrastive_loss(slots, slots, s, s, temperature=temperature)


@given(st.integers(0, 1000))
def test_perplexity(seed):
    s = scores(batch=4, k=6, seed=seed)
    counts = s.argmax(1).flatten().bincount(minlength=6).double()
    p = counts[counts > 0] / counts.sum()
    assert perplexity(s).item() == pytest.approx(math.exp(-(p * p.log()).sum().item()), rel=1e-5)
    assert perplexity(torch.zeros(2, 6, 3, 3)).item() == 1


def test_full_precision_under_autocast():
    x, p = normal(2, 16, 3, 3, dtype=torch.float32), normal(5, 16, seed=1, dtype=torch.float32)

    def everything(x, p):
        slots, s = semantic_grouping(x, p)
        return slots, s, grouping_loss(s, s.flip(0), s[0, :, 0, 0]), slot_contrastive_loss(slots, slots.flip(0), s, s)

    expected = everything(x, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, value in zip(everything(x, p), expected, strict=True):
            assert torch.equal(got, value)
    for part in everything(x.bfloat16(), p.bfloat16()):
        assert part.dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- the network


class Cells(nn.Module):
    """An encoder whose map is the picture itself, averaged to 4 x 4 cells."""

    out_dim = 3

    def features(self, images):
        return F.adaptive_avg_pool2d(images, 4)


def network(prototypes=6, **options):
    torch.manual_seed(0)
    return SlotCon(Cells(), prototypes=prototypes, hidden_dim=8, out_dim=5, **options).double()


def pictures(batch=4):
    return torch.rand(2, batch, 3, 8, 8, generator=draw(), dtype=torch.float64)


@pytest.mark.parity("slotcon.Predictor", against="batch norm of the filtered rows", tolerance=1e-12)
def test_counted_rows_are_the_filtered_rows():
    torch.manual_seed(0)
    predictor = Predictor(4, 6, layers=3).double()
    x, counts = normal(3, 5, 4).requires_grad_(), torch.rand(3, 5, generator=draw()) < 0.5
    out = predictor(x, counts)
    rows = x[counts]
    torch.testing.assert_close(predictor(rows), out[counts], rtol=0, atol=1e-12)
    for layer, norm in zip(predictor.layers, predictor.norms, strict=False):
        same = nn.BatchNorm1d(6).double()
        same.load_state_dict(norm.state_dict(), strict=False)
        rows = F.gelu(same(layer(rows)))
    expected = predictor.layers[-1](rows)
    torch.testing.assert_close(out[counts], expected, rtol=0, atol=1e-12)
    weight = normal(*expected.shape)
    grads = [torch.autograd.grad((rows * weight).sum(), x, retain_graph=True)[0] for rows in (out[counts], expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    assert predictor(x, torch.zeros_like(counts)).isfinite().all()
    assert (predictor(x)[counts] - out[counts]).abs().max() > 1e-3  # all rows are another batch


@pytest.mark.parametrize("prototypes", [6, 40])
def test_forward_is_the_public_functions(prototypes):
    """With more prototypes than cells, cutting off what is absent changes no loss."""
    model, (first, second) = network(prototypes), pictures()
    out = model(first, second)
    assert out.keys.shape == (8, min(prototypes, 16), 5)
    s, t = out.student, out.teacher
    assert not t.slots.requires_grad
    torch.testing.assert_close(s.slots, t.slots)  # the copy starts as the network
    for i, half in ((0, slice(0, 4)), (1, slice(4, 8))):
        other = slice(4, 8) if i == 0 else slice(0, 4)
        expected = slot_contrastive_loss(
            s.slots[half], t.slots[other], s.scores[half], t.scores[other], predictor=model.predictor
        )
        got = slotcon.slot_nce(*(part[half] for part in out[2:]))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        assert got > 0


def views():
    first, second = pictures()
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.7, 0.1, 0.0, 0.8]], dtype=torch.float64)
    return first, boxes[[0, 1, 0, 1]], second, boxes[[1, 1, 0, 0]]


def test_learn_is_the_sum_of_both_losses_and_pairings():
    model, (first, a, second, b) = network(), views()
    model.center.copy_(0.2 * normal(6))
    center, out = model.center.clone(), model(first, second)
    values = slotcon.learn(model, views(), weights=(0.3, 0.9))
    (s1, s2), (t1, t2) = (
        (
            inverse_augmentation(g.scores[:4], *overlap_boxes(a, b)),
            inverse_augmentation(g.scores[4:], *overlap_boxes(b, a)),
        )
        for g in (out.student, out.teacher)
    )
    grouping = grouping_loss(s1, t2, center) + grouping_loss(s2, t1, center)
    contrast = sum(slotcon.slot_nce(*(part[half] for part in out[2:])) for half in (slice(0, 4), slice(4, 8)))
    torch.testing.assert_close(values["loss"], 0.3 * grouping + 0.9 * contrast)
    torch.testing.assert_close(values["grouping"], grouping)
    torch.testing.assert_close(values["contrast"], contrast)
    torch.testing.assert_close(model.center, update_center(center, out.teacher.scores))
    torch.testing.assert_close(values["slots in both views"], out.common.sum(1).float().mean())
    moved = model.center.clone()
    slotcon.learn(model, views(), centring=False)
    assert torch.equal(model.center, moved)


def test_every_part_learns_but_the_copy():
    model = network()
    slotcon.learn(model, views())["loss"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("teacher"), name
        if not name.startswith("teacher"):
            assert p.grad.abs().max() > 0 or name.endswith("bias"), name  # a bias before a norm has no effect


def test_the_copy_follows():
    model = network()
    with torch.no_grad():
        for p in model.online.parameters():
            p += 1
    for step, momentum in ((0, 0.99), (5, 0.995), (10, 1.0)):
        before = [p.clone() for p in model.teacher.parameters()]
        rising_update(model.teacher, model.online, step, 10)
        for a, b, p in zip(before, model.teacher.parameters(), model.online.parameters(), strict=True):
            torch.testing.assert_close(b, momentum * a + (1 - momentum) * p)


# --------------------------------------------------------------------------------------------------------- training


def test_task_draws_each_picture_once():
    def views(images, generator):
        return images, torch.rand(len(images), 4, generator=generator)

    options = {"views": views, "optimizer": None, "warmup": 0.1}
    read = lambda index: index.float().view(-1, 1, 1, 1)  # noqa: E731
    job = slotcon.task(network(), read, 20, batch_size=20, **options)
    first, a = job.batch(draw())
    assert first.flatten().sort().values.tolist() == list(range(20))
    assert torch.equal(job.batch(draw())[1], a)
    for size in (1, 21):
        with pytest.raises(ValueError, match="batch_size: expected 2 to 20"):
            slotcon.task(None, read, 20, batch_size=size, **options)


def test_overlapping_views_show_what_their_boxes_say(monkeypatch):
    monkeypatch.setattr(slotcon, "color_distort", lambda x, **_: x)
    blurred = []
    monkeypatch.setattr(slotcon, "random_blur", lambda x, p, **_: blurred.append(p) or x)
    line = (torch.arange(60) + 0.5) / 120  # below 1/2, so that nothing is solarised
    coordinates = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.zeros(60, 60)]).expand(200, 3, 60, 60)
    drawn = slotcon.overlapping_views(coordinates, draw(), size=24)
    assert blurred == [1.0, 0.1]
    for view, box in (drawn[:2], drawn[2:]):
        assert view.shape == (200, 3, 24, 24)
        assert 60 < (box[:, 0] > box[:, 2]).sum() < 140
        expected = pixel_centers(box, 24, 24).movedim(3, 1) / 120
        assert (view[:, :2] - expected).abs().max() < 0.02  # the border repeats itself
    low, high = zip(*((b.view(-1, 2, 2).amin(1), b.view(-1, 2, 2).amax(1)) for b in drawn[1::2]), strict=True)
    shared = (torch.minimum(*high) - torch.maximum(*low)).clamp(min=0).prod(1)
    assert (shared >= 36).all()
    assert not torch.equal(drawn[1], drawn[3])
    again = slotcon.overlapping_views(coordinates, draw(), size=24)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    bright = slotcon.overlapping_views(torch.full((200, 3, 30, 30), 0.9), draw(), size=8)
    assert (bright[0] > 0.8).all()
    assert 20 < (bright[2] < 0.5).all((1, 2, 3)).sum() < 60  # a fifth is solarised


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
    recipe = one_step(slotcon.recipe(batch_size=4))
    assert (recipe.steps, recipe.batch_size) == (200, 4)
    assert "48 pictures (the scene world)" in recipe.about
    assert "4 pictures" in one_step(slotcon.recipe(tmp_path, batch_size=2, size="miniature")).about
    recipe = slotcon.recipe(tmp_path, batch_size=2)
    assert recipe.steps == 1600
    assert "ResNet-18" in recipe.about
    assert recipe.task.model.online.prototypes.shape == (256, 256)
    assert recipe.task.optimizer(recipe.task.model).param_groups[0]["lr"] == pytest.approx(0.1 * 2 / 256)
    with pytest.raises(ValueError, match="size: expected"):
        slotcon.recipe(size="huge")
    with pytest.raises(DataError, match="one subfolder a class"):
        slotcon.recipe(tmp_path / "cat")


# ------------------------------------------------------------------------------------------------------- experiment


def test_arms_are_paired():
    spent = {"seed": 0, "steps": 5, "batch_size": 4, **SIZES}
    kept = {arm: slotcon.pretrain(arm, keep=(5,), **spent) for arm in slotcon.ARMS}
    assert len({id(k.data) for k in kept.values()}) == 1
    assert not any(k.model.training for k in kept.values())
    start = seeded(0, lambda: SlotCon(ConvMap(), **slotcon.SIZES)).encoder.state_dict()
    backbone = seeded(0, ConvMap).state_dict()  # the one of densecl and pixpro
    for name, value in kept["random weights"].model.encoder.state_dict().items():
        assert torch.equal(start[name], backbone[name])
        assert "running" in name or "tracked" in name or torch.equal(value, start[name])
    ends = {arm: k.model.online.prototypes for arm, k in kept.items()}
    assert torch.equal(kept["both"].kept[5].prototypes, ends["both"])
    assert not torch.equal(ends["grouping only"], ends["both"])
    assert not torch.equal(ends["grouping only"], ends["no centring"])
    # AdamW does not see a factor on the loss
    torch.testing.assert_close(ends["half of grouping"], ends["grouping only"], rtol=0, atol=2e-3)
    assert slotcon.pretrain("both", **spent) is kept["both"]
    with pytest.raises(ValueError, match="arm: expected one of random weights, grouping only.*'pixels'"):
        slotcon.pretrain("pixels")


def test_claims_name_what_runs_return(tmp_path, monkeypatch):
    segmented = scenes._segmented  # a strong penalty is found in fewer steps
    monkeypatch.setattr(scenes, "_segmented", lambda maps, data, l2: segmented(maps, data, 1.0))
    record = claims.run("slotcon", "smoke", seeds=1, cache=tmp_path)
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    by_id = {c.id: c for c in slotcon.CLAIMS}
    for e in record.claims:
        metrics = record.metrics[by_id[e.id].experiment]
        assert all(e.metric in metrics[arm] for arm in e.arms)
    assert record["align"].verdict == "exact"
    assert {"unsupervised", "nmi"} <= record.metrics["scenes"]["random weights"].keys()
