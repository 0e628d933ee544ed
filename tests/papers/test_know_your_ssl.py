"""Five families: every loss against loops, closed forms and hand-computed cases; the learners and their guards."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslref import claims, losses
from sslref import nn as blocks
from sslref.data import DataError
from sslref.nn import ConvNet, mae
from sslref.papers import know_your_ssl as kys
from sslref.papers.know_your_ssl import (
    barlow_twins_loss,
    byol_loss,
    dino_loss,
    info_nce,
    masked_patch_loss,
    sinkhorn,
    spread,
    swav_loss,
    update_center,
    vicreg_loss,
)
from sslref.train import fit

ZERO = torch.zeros((), dtype=torch.float64)


def rows(n=6, dim=4, seed=0, dtype=torch.float64, count=2):
    return torch.randn(count, n, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind()


def test_shared_names_are_the_shared_ones():
    assert kys.info_nce is losses.info_nce
    assert kys.byol_loss is losses.byol_loss
    assert kys.KeyQueue is blocks.KeyQueue
    assert kys.ema_update is blocks.ema_update


# ----------------------------------------------------------------------------------------------- clustering


def sinkhorn_loop(scores, epsilon, iterations):
    """Prototypes to mass 1/K, then samples to mass 1/B, as main_swav.py scales, entry by entry."""
    b, k = scores.shape
    q = [[math.exp(scores[i, j].item() / epsilon) for j in range(k)] for i in range(b)]
    total = sum(map(sum, q))
    q = [[v / total for v in row] for row in q]
    for _ in range(iterations):
        for j in range(k):
            mass = sum(q[i][j] for i in range(b))
            for i in range(b):
                q[i][j] /= mass * k
        for i in range(b):
            mass = sum(q[i])
            q[i] = [v / (mass * b) for v in q[i]]
    return torch.tensor(q, dtype=torch.float64) * b


@pytest.mark.parity("know_your_ssl.sinkhorn", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (1.0, 7)])
def test_sinkhorn_scales_as_the_official_code(epsilon, iterations):
    scores = rows(7, 3, count=1)[0].tanh()
    got = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(got, sinkhorn_loop(scores, epsilon, iterations), rtol=0, atol=1e-12)
    assert torch.equal(sinkhorn(scores), sinkhorn(scores, epsilon=0.05, iterations=3))


@pytest.mark.parity("know_your_ssl.sinkhorn", against="closed form", tolerance=1e-9)
def test_sinkhorn_in_the_limit():
    scores = rows(8, 4, count=1)[0]
    q = sinkhorn(scores, epsilon=0.5, iterations=500)
    torch.testing.assert_close(q.sum(1), torch.ones(8).double())
    torch.testing.assert_close(q.sum(0), torch.full((4,), 2.0).double(), rtol=0, atol=1e-9)
    shifted = scores + torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(shifted, epsilon=0.5, iterations=500), q, rtol=0, atol=1e-9)
    torch.testing.assert_close(sinkhorn(scores + 7, epsilon=0.5), sinkhorn(scores, epsilon=0.5))


def test_sinkhorn_by_hand():
    # all like prototype 0, sample 0 likes it most: after the first scaling it still does, and the rest are pushed on
    scores = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    first = torch.tensor([[3 / 5, 2 / 5], [1 / 3, 2 / 3]])  # columns (3, 1) and (1, 1) to mass 1, then rows to 1
    torch.testing.assert_close(sinkhorn(scores, epsilon=1.0, iterations=1), first)


@pytest.mark.differs(
    "know_your_ssl",
    paper="scale exp(scores / epsilon) (SwAV, Eq. 3-5)",
    official="SwAV's code takes the exponential in float32, which overflows for scores above 4.4",
    here="the same scaling in logarithms, finite for any scores",
)
def test_large_scores_stay_finite():
    scores = (40 * torch.randn(16, 6, generator=torch.Generator().manual_seed(0)).sign()).float()
    assert torch.exp(scores / 0.05).isinf().any()
    q = sinkhorn(scores)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(16))


def test_sinkhorn_has_no_gradient_and_full_precision():
    scores = rows(5, 3, dtype=torch.float32, count=1)[0].requires_grad_()
    assert not sinkhorn(scores).requires_grad
    assert sinkhorn(scores.bfloat16()).dtype == torch.float32
    assert sinkhorn(scores.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3,), {}, "scores: expected shape"),
        ((2, 3, 4), {}, "scores"),
        ((0, 4), {}, "scores"),
        ((4, 0), {}, "scores"),
        ((4, 3), {"epsilon": 0.0}, "epsilon"),
        ((4, 3), {"epsilon": math.nan}, "epsilon"),
        ((4, 3), {"iterations": 0}, "iterations"),
    ],
)
def test_sinkhorn_refuses(shape, options, words):
    with pytest.raises(ValueError, match=words):
        sinkhorn(torch.zeros(shape), **options)


@pytest.mark.parity("know_your_ssl.swav_loss", against="float64 loops", tolerance=1e-12)
def test_swav_swaps_the_codes():
    s1, s2 = (s.tanh() for s in rows(6, 4))
    q1, q2 = (sinkhorn_loop(s, 0.1, 2) for s in (s1, s2))
    total = 0.0
    for i in range(6):
        for q, s in ((q1, s2), (q2, s1)):
            norm = sum(math.exp(s[i, k].item() / 0.2) for k in range(4))
            total -= sum(q[i, k].item() * math.log(math.exp(s[i, k].item() / 0.2) / norm) for k in range(4)) / 12
    got = swav_loss(s1, s2, temperature=0.2, epsilon=0.1, iterations=2)
    assert got.item() == pytest.approx(total, abs=1e-12)
    assert swav_loss(s2, s1, temperature=0.2, epsilon=0.1, iterations=2).item() == pytest.approx(total, abs=1e-12)
    assert swav_loss(s1, s1).item() != pytest.approx(swav_loss(s1, s2).item())


def test_swav_learns_through_the_prediction_alone():
    s1, s2 = (s.tanh().requires_grad_() for s in rows(6, 4))
    swav_loss(s1, s2).backward()
    q1, q2 = sinkhorn(s1), sinkhorn(s2)
    # the gradient of a cross-entropy with a constant target: (softmax - target) / (temperature * B * 2)
    for s, q in ((s1, q2), (s2, q1)):
        torch.testing.assert_close(s.grad, ((s.detach() / 0.1).softmax(1) - q) / (0.1 * 6 * 2))


# ---------------------------------------------------------------------------------------------- contrastive


@pytest.mark.parity("know_your_ssl.info_nce", against="closed form", tolerance=1e-6)
def test_info_nce_of_equal_vectors():
    ones = torch.ones(3, 5)
    for count in (1, 7):
        assert info_nce(ones, ones, torch.ones(count, 5)).item() == pytest.approx(math.log(1 + count), abs=1e-6)


def test_ring():
    queue = kys.KeyQueue(5, 2, generator=torch.Generator().manual_seed(0))
    queue.push(torch.ones(3, 2))
    queue.push(-torch.ones(4, 2))
    assert queue.pointer.item() == 2
    assert (queue.keys[[3, 4, 0, 1]] < 0).all()
    assert (queue.keys[2] > 0).all()


def test_momentum_of_one_and_zero():
    student, teacher = (
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    )
    student(torch.randn(8, 2))
    before = teacher[0].weight.clone()
    kys.ema_update(teacher, student, momentum=1.0)
    assert torch.equal(teacher[0].weight, before)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    kys.ema_update(teacher, student, momentum=0.0)
    assert torch.equal(teacher[0].weight, student[0].weight)


# ---------------------------------------------------------------------------------------------- distillation


def test_byol_ends():
    p = rows(5, 3, count=1)[0].requires_grad_()
    t = p.detach().clone().requires_grad_()
    assert byol_loss(p, 3 * t).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(p, -t).item() == pytest.approx(4, abs=1e-12)
    byol_loss(p, t.roll(1, 0)).backward()
    assert t.grad is None


@pytest.mark.parity("know_your_ssl.dino_loss", against="float64 loops", tolerance=1e-12)
def test_dino():
    student, teacher = rows(5, 3)
    center = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    total = 0.0
    for i in range(5):
        t = [math.exp((teacher[i, k] - center[k]).item() / 0.5) for k in range(3)]
        s = [math.exp(student[i, k].item() / 0.7) for k in range(3)]
        total -= sum(t[k] / sum(t) * math.log(s[k] / sum(s)) for k in range(3)) / 5
    got = dino_loss(student, teacher, center, student_temp=0.7, teacher_temp=0.5)
    assert got.item() == pytest.approx(total, abs=1e-12)
    moved = dino_loss(student, teacher + 3, center + 3, student_temp=0.7, teacher_temp=0.5)
    assert moved.item() == pytest.approx(total, abs=1e-12)
    expected = dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
    assert torch.equal(dino_loss(student, teacher, center), expected)


@pytest.mark.parity("know_your_ssl.dino_loss", against="closed form", tolerance=1e-6)
@pytest.mark.parametrize("k", [2, 9])
def test_dino_of_nothing_known(k):
    zero = torch.zeros(4, k)
    assert dino_loss(zero, zero, torch.zeros(k)).item() == pytest.approx(math.log(k), abs=1e-6)


def test_dino_teaches_the_student_alone():
    student, teacher = (x.requires_grad_() for x in rows(5, 3))
    center = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    dino_loss(student, teacher, center).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert center.grad is None
    assert not update_center(center, teacher).requires_grad


@pytest.mark.parity("know_your_ssl.update_center", against="float64 loops", tolerance=1e-12)
def test_center():
    center, teacher = torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 4.0], [2.0, 0.0], [4.0, 2.0]])
    torch.testing.assert_close(update_center(center, teacher), torch.tensor([1.1, 2.0]))
    torch.testing.assert_close(update_center(center, teacher, momentum=0.5), torch.tensor([1.5, 2.0]))
    assert center.tolist() == [1, 2]
    assert torch.equal(update_center(center, teacher, momentum=1.0), center)


@pytest.mark.parametrize(
    ("student", "teacher", "center", "options", "words"),
    [
        ((3, 4), (3, 5), (4,), {}, "student, teacher: expected one shape"),
        ((0, 4), (0, 4), (4,), {}, "student, teacher"),
        ((3, 4), (3, 4), (3,), {}, "center"),
        ((3, 4), (3, 4), (1, 4), {}, "center"),
        ((3, 4), (3, 4), (4,), {"student_temp": 0.0}, "student_temp"),
        ((3, 4), (3, 4), (4,), {"teacher_temp": -1.0}, "teacher_temp"),
    ],
)
def test_dino_refuses(student, teacher, center, options, words):
    with pytest.raises(ValueError, match=words):
        dino_loss(torch.zeros(student), torch.zeros(teacher), torch.zeros(center), **options)


def test_center_refuses():
    with pytest.raises(ValueError, match="momentum"):
        update_center(torch.zeros(2), torch.zeros(3, 2), momentum=1.1)
    with pytest.raises(ValueError, match="center"):
        update_center(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="teacher"):
        update_center(torch.zeros(2), torch.zeros(0, 2))


# ---------------------------------------------------------------------------------------- information maximisation


@pytest.mark.parity("know_your_ssl.barlow_twins_loss", against="float64 loops", tolerance=1e-12)
def test_barlow_twins():
    z1, z2 = rows(7, 3)
    z1, z2 = 2 * z1 + 1, 0.5 * z2 - 3

    def standard(z, d):
        values = z[:, d].tolist()
        mean = sum(values) / 7
        variance = sum((v - mean) ** 2 for v in values) / 7
        return [(v - mean) / math.sqrt(variance + 1e-5) for v in values]

    total = 0.0
    for i in range(3):
        for j in range(3):
            c = sum(a * b for a, b in zip(standard(z1, i), standard(z2, j), strict=True)) / 7
            total += (c - 1) ** 2 if i == j else 0.3 * c**2
    assert barlow_twins_loss(z1, z2, off_diag_weight=0.3).item() == pytest.approx(total, abs=1e-12)
    assert torch.equal(barlow_twins_loss(z1, z2), barlow_twins_loss(z1, z2, off_diag_weight=0.0051))


@pytest.mark.parity("know_your_ssl.barlow_twins_loss", against="closed form", tolerance=1e-3)
def test_barlow_twins_of_three_copies():
    z = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3)
    assert barlow_twins_loss(z, z, off_diag_weight=1.0).item() == pytest.approx(6, abs=1e-3)


@pytest.mark.parity("know_your_ssl.vicreg_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.differs(
    "know_your_ssl",
    paper="VICReg's Eq. 5 and 6 sum the squared distance over features and add the variance terms of both views",
    official="the mean over batch and features, and half of the two variance terms",
    here="the official code's, to which the published weights belong",
)
def test_vicreg():
    z1, z2 = rows(6, 3)
    z1 = 0.7 * z1

    def column(z, d):
        values = z[:, d].tolist()
        return [v - sum(values) / 6 for v in values]

    agree = sum((z1[i, d] - z2[i, d]).item() ** 2 for i in range(6) for d in range(3)) / 18
    vary = redundant = 0.0
    for z in (z1, z2):
        for i in range(3):
            variance = sum(v * v for v in column(z, i)) / 5
            vary += max(0.0, 1 - math.sqrt(variance + 1e-4)) / 3 / 2
            for j in range(3):
                if i != j:
                    c = sum(a * b for a, b in zip(column(z, i), column(z, j), strict=True)) / 5
                    redundant += c**2 / 3
    assert vary > 0.01
    expected = 2 * agree + 3 * vary + 5 * redundant
    assert vicreg_loss(z1, z2, invariance=2, variance=3, covariance=5).item() == pytest.approx(expected, abs=1e-12)
    assert vicreg_loss(z1, z2).item() == pytest.approx(25 * agree + 25 * vary + redundant, abs=1e-11)


@pytest.mark.parity("know_your_ssl.vicreg_loss", against="closed form", tolerance=1e-6)
def test_vicreg_of_one_point_and_of_wide_features():
    point = torch.full((5, 3), 0.3)
    assert vicreg_loss(point, point).item() == pytest.approx(24.75, abs=1e-5)
    wide = 10 * rows(50, 3, count=1)[0]
    covariance = torch.cov(wide.T)
    rest = 2 * (covariance.square().sum() - covariance.diagonal().square().sum()) / 3
    torch.testing.assert_close(vicreg_loss(wide, wide), rest)


PAIRS = [lambda a, b: barlow_twins_loss(a, b), lambda a, b: vicreg_loss(a, b), lambda a, b: swav_loss(a, b)]


@pytest.mark.parametrize("function", PAIRS)
def test_gradients_reach_both_views(function):
    a, b = (x.tanh().requires_grad_() for x in rows(6, 3))
    if function is not PAIRS[2]:
        assert torch.autograd.gradcheck(function, (a, b))
    function(a, b).backward()
    assert min(a.grad.abs().sum(), b.grad.abs().sum()) > 1e-3


@pytest.mark.parametrize("function", PAIRS)
@pytest.mark.parametrize(("a", "b"), [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((3, 4, 1), (3, 4, 1)), ((0, 4), (0, 4))])
def test_pairs_that_do_not_fit(function, a, b):
    with pytest.raises(ValueError, match="expected one shape"):
        function(torch.randn(a), torch.randn(b))


@pytest.mark.parametrize("function", PAIRS[:2])
def test_one_sample_has_no_variance(function):
    with pytest.raises(ValueError, match="B >= 2"):
        function(torch.randn(1, 4), torch.randn(1, 4))


def test_temperature_must_be_positive():
    for temperature in (0.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            swav_loss(*rows(), temperature=temperature)


@pytest.mark.parametrize("function", [*PAIRS, lambda a, b: dino_loss(a, b, torch.zeros(8))])
def test_autocast_changes_nothing(function):
    a, b = (x.tanh() for x in rows(16, 8, dtype=torch.float32))
    value = function(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(function(a, b), value, rtol=1e-6, atol=1e-6)
    half = function(a.bfloat16(), b.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=0.05, atol=0.05)


# ------------------------------------------------------------------------------------------------ generative


@pytest.mark.parity("know_your_ssl.masked_patch_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("normalize", [True, False])
def test_masked_patches(normalize):
    pred, target = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    errors = []
    for b, n in mask.nonzero().tolist():
        t = target[b, n].tolist()
        if normalize:
            mean = sum(t) / 5
            variance = sum((v - mean) ** 2 for v in t) / 4
            t = [(v - mean) / math.sqrt(variance + 1e-6) for v in t]
        errors.append(sum((p - v) ** 2 for p, v in zip(pred[b, n].tolist(), t, strict=True)) / 5)
    got = masked_patch_loss(pred, target, mask, normalize=normalize)
    assert got.item() == pytest.approx(sum(errors) / 3, abs=1e-12)
    if normalize:
        assert torch.equal(masked_patch_loss(pred, target, mask), got)
    else:
        assert torch.equal(got, mae.masked_patch_loss(pred, target, mask))


def test_visible_patches_teach_nothing():
    pred = torch.randn(2, 4, 6, requires_grad=True)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    masked_patch_loss(pred, torch.randn(2, 4, 6), mask).backward()
    assert torch.equal(pred.grad.abs().sum(2) > 0, mask)


@pytest.mark.parametrize(
    ("pred", "target", "mask", "words"),
    [
        ((2, 4, 6), (2, 4, 5), torch.ones(2, 4, dtype=torch.bool), "pred, target"),
        ((2, 4, 6), (2, 4), torch.ones(2, 4, dtype=torch.bool), "target"),
        ((2, 4, 6), (2, 4, 6), torch.ones(2, 3, dtype=torch.bool), "mask"),
        ((2, 4, 6), (2, 4, 6), torch.ones(2, 4), "mask"),
        ((2, 4, 6), (2, 4, 6), torch.zeros(2, 4, dtype=torch.bool), "hidden"),
        ((0, 4, 6), (0, 4, 6), torch.zeros(0, 4, dtype=torch.bool), "not empty"),
        ((2, 4, 1), (2, 4, 1), torch.ones(2, 4, dtype=torch.bool), "P >= 2"),
    ],
)
def test_patches_that_do_not_fit(pred, target, mask, words):
    with pytest.raises(ValueError, match=words):
        masked_patch_loss(torch.zeros(pred), torch.zeros(target), mask)


# -------------------------------------------------------------------------------------------------- learners


def views(batch=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, batch, 1, 28, 28, generator=generator)
    return kys.Views(first, second, torch.rand(batch, 16, generator=generator))


def embedded(model, *pictures):
    """z of the views, from a copy, as training sees them."""
    return copy.deepcopy(model.student).train()(torch.cat(pictures)).chunk(len(pictures))


@pytest.mark.parametrize("arm", [a for a in kys.ARMS if a not in kys.UNTRAINED])
def test_every_learner_learns_what_it_should(arm):
    model = kys.build(arm).train()
    loss = model(views())
    loss.backward()
    assert loss.isfinite()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert "student" in learned
    assert "teacher" not in learned
    own = {"clustering": "prototypes", "no Sinkhorn": "prototypes", "distillation": "predict", "generative": "decoder"}
    assert learned == {"student", own[arm]} if arm in own else learned == {"student"}


def test_losses_of_the_families():
    v = views()
    model = kys.build("information")
    torch.testing.assert_close(model(v), vicreg_loss(*embedded(model, v.first, v.second)))
    model = kys.build("no variance")
    torch.testing.assert_close(model(v), vicreg_loss(*embedded(model, v.first, v.second), variance=0.0))
    model = kys.build("no covariance")
    torch.testing.assert_close(model(v), vicreg_loss(*embedded(model, v.first, v.second), covariance=0.0))

    model = kys.build("clustering")
    unit = F.normalize(model.prototypes.weight, dim=1)
    scores = [F.normalize(z, dim=1) @ unit.T for z in embedded(model, v.first, v.second)]
    torch.testing.assert_close(model(v), swav_loss(*scores))
    model.guard = False
    q1, q2 = ((s / 0.05).softmax(1) for s in scores)
    expected = -(q1 * (scores[1] / 0.1).log_softmax(1) + q2 * (scores[0] / 0.1).log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(model(v), expected)

    model = kys.build("distillation")
    z = torch.cat(embedded(model, v.first, v.second))
    t1, t2 = model.teacher(torch.cat([v.first, v.second])).chunk(2)
    p1, p2 = copy.deepcopy(model.predict)(z).chunk(2)
    torch.testing.assert_close(model(v), (byol_loss(p1, t2) + byol_loss(p2, t1)) / 2)
    model = kys.build("no predictor")
    z1, z2 = embedded(model, v.first, v.second)
    torch.testing.assert_close(model(v), 2 - 2 * F.cosine_similarity(z1, z2).mean())


def test_the_key_enters_the_queue_after_the_loss():
    v, model = views(), kys.build("contrastive")
    before = model.queue.keys.clone()
    (q,), k = embedded(model, v.first), model.teacher(v.second)
    torch.testing.assert_close(model(v), info_nce(q, k, before))
    torch.testing.assert_close(model.queue.keys[:6], F.normalize(k, dim=1))
    assert torch.equal(model.queue.keys[6:], before[6:])
    model = kys.build("no negatives")
    (q,), k = embedded(model, v.first), model.teacher(v.second)
    pull = (1 - F.cosine_similarity(q, k)).mean() / 0.2
    torch.testing.assert_close(model(v), pull)
    assert model.queue.pointer.item() == 0


def test_the_generative_loss_never_sees_what_it_has_to_paint():
    v, model = views(), kys.build("generative").eval()
    patches = mae.patchify(v.first, 7)
    mask = mae.random_masking(patches, 0.75, noise=v.noise).mask
    assert mask.sum(1).tolist() == [12] * 6
    other = torch.where(mask[..., None], torch.rand(patches.shape), patches)
    seen = []
    model.student[0].layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    one = model(v)
    two = model(v._replace(first=mae.unpatchify(other, 7)))
    assert torch.equal(seen[0], seen[1])  # the same picture with holes
    assert (mae.patchify(seen[0], 7)[mask] == 0.5).all()
    assert one != two  # but another answer


def test_arms_of_one_seed_start_from_one_backbone():
    first = kys.build("clustering", seed=3).student[0].state_dict()
    for arm in kys.ARMS:
        for name, value in kys.build(arm, seed=3).student[0].state_dict().items():
            assert torch.equal(value, first[name])
    other = kys.build("clustering", seed=4).student[0].state_dict()
    assert not torch.equal(other["layers.0.0.weight"], first["layers.0.0.weight"])
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    kys.build("contrastive", seed=5)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError, match="arm: expected one of clustering.*'colours'"):
        kys.build("colours")


def test_teachers_follow():
    model = kys.build("contrastive")
    before = model.teacher[0].layers[0][0].weight.clone()
    with torch.no_grad():
        model.student[0].layers[0][0].weight.add_(1)
    model.follow(0.75)
    torch.testing.assert_close(model.teacher[0].layers[0][0].weight, before + 0.25)
    kys.build("information").follow(0.5)  # nobody to move


def test_cost_counts_multiply_adds():
    # multiply-adds of one digit: four convolutions, the two layers of the projector
    convolutions = 14**2 * 9 * 24 + 7**2 * 9 * 24 * 48 + 4**2 * 9 * 48 * 96 + 2**2 * 9 * 96 * 64
    projector = 64 * 128 + 128 * 64
    once = 2 * (convolutions + projector)  # two operations each
    no_input_gradient = 2 * 14**2 * 9 * 24  # pixels have none
    forward_backward = 3 * once - no_input_gradient
    assert kys.cost("information") == pytest.approx(2 * forward_backward / 1e9, rel=0.01)
    assert kys.cost("contrastive") == pytest.approx((forward_backward + once) / 1e9, rel=0.03)
    assert kys.cost("generative") < kys.cost("contrastive") < kys.cost("clustering") < kys.cost("distillation")
    assert (
        kys.steps("no negatives", 100.0) == kys.steps("contrastive", 100.0) == round(100 / 32 / kys.cost("contrastive"))
    )
    assert kys.steps("pixels", 100.0) == 0


# ----------------------------------------------------------------------------------------- training and recipes


def test_task_draws_each_picture_once_and_two_views():
    job = kys.task(
        nn.Identity(),
        lambda index: index.float().view(-1, 1, 1, 1),
        20,
        batch_size=20,
        view=lambda x, generator: x + 100 * (torch.arange(len(x)) >= 20).view(-1, 1, 1, 1),
        patches=4,
    )
    drawn = job.batch(torch.Generator().manual_seed(0))
    assert drawn.first.flatten().sort().values.tolist() == list(range(20))
    assert torch.equal(drawn.second, drawn.first + 100)
    assert drawn.noise.shape == (20, 4)
    assert torch.equal(job.batch(torch.Generator().manual_seed(0)).first, drawn.first)
    for size in (1, 21):
        with pytest.raises(ValueError, match="batch_size: expected 2 to 20"):
            kys.task(None, None, 20, batch_size=size, view=None)


def test_crops():
    x = torch.rand(5, 1, 28, 28)
    a, b, c = (kys.crop(x, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a.shape == x.shape
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.testing.assert_close(kys.crop(x, scale=(1.0, 1.0))[0].mean(), x[0].mean(), rtol=0.2, atol=0)


def one_step(recipe):
    assert math.isfinite(fit(recipe.task, steps=1).last())
    return recipe


def test_recipe_of_the_miniature():
    recipe = one_step(kys.recipe(batch_size=8))
    assert (recipe.steps, recipe.batch_size) == (300, 8)
    assert "contrastive" in recipe.about
    assert "4,000 pictures" in recipe.about


@pytest.mark.parametrize("family", list(kys.FAMILIES))
def test_recipe_on_a_folder_of_images(tmp_path, family):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (40, 50), (60 * i, 90, 20)).save(tmp_path / name / f"{i}.png")
    assert "4 pictures" in one_step(kys.recipe(tmp_path, batch_size=4, size="miniature", family=family)).about


def test_recipe_on_cifar10(cifar10):
    recipe = kys.recipe(cifar10, batch_size=4, family="generative")
    assert recipe.steps == 200 * 40 // 4
    assert "ResNet-18" in recipe.about
    batch = recipe.task.batch(torch.Generator().manual_seed(0))
    assert batch.first.shape == batch.second.shape == (4, 3, 32, 32)
    assert batch.noise.shape == (4, 64)
    assert sum(p.numel() for p in recipe.task.model.student.parameters()) == 11_168_832


def test_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="size: expected"):
        kys.recipe(size="huge")
    with pytest.raises(ValueError, match="family: expected one of clustering"):
        kys.recipe(family="rotation")
    with pytest.raises(DataError, match="one subfolder a class"):
        kys.recipe(tmp_path)


# ------------------------------------------------------------------------------------------------- experiment


@pytest.mark.parity("know_your_ssl.spread", against="closed form", tolerance=1e-12)
def test_spread_by_hand():
    assert spread(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.tensor([[1.0, 0], [-2.0, 0]])) == 1
    assert spread(torch.tensor([[3.0, 0], [0, 0.1]]).double()) == pytest.approx(0.5, abs=1e-12)
    z = rows(9, 4, count=1)[0]
    unit = F.normalize(z, dim=1)
    pairs = sum((unit[i] - unit[j]).square().sum() for i in range(9) for j in range(9)) / (2 * 81)
    assert spread(z) == pytest.approx(pairs.item(), abs=1e-12)
    with pytest.raises(ValueError, match="z: expected shape"):
        spread(torch.zeros(0, 3))


def test_embeddings_leave_the_model_as_it_was():
    model = kys.build("information").eval()
    state = copy.deepcopy(model.state_dict())
    z = kys.embeddings(model, views(40).first)
    assert z.shape == (40, 64)
    assert not z.requires_grad
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_measures_of_known_representations():
    y, test_y = torch.arange(300) % 10, torch.arange(200) % 10
    told = [F.one_hot(labels, 10).double() for labels in (y, test_y)]
    noise = [torch.randn(n, 10, generator=torch.Generator().manual_seed(n)) for n in (300, 200)]
    best = kys.measure(told[0], y, told[1], test_y)
    worst = kys.measure(noise[0], y, noise[1], test_y, torch.ones(200, 4))
    assert best["probe"] == best["knn"] == 100
    assert best["spread"] == pytest.approx(0.9)  # ten equal classes on ten axes: the mean has length 1 / sqrt(10)
    assert best["rank"] == best["rank_h"] == pytest.approx(9)
    assert worst["probe"] < 25
    assert worst["spread"] == pytest.approx(0, abs=1e-6)
    assert worst["rank"] == 0 < 8 < worst["rank_h"]


def test_pretraining_keeps_what_was_seen_on_the_way():
    spent = {"seed": 0, "gigaflops": 1.0, "batch_size": 8}
    trained = kys.pretrain("information", **spent)
    assert set(trained.z) <= set(kys.SHARES)
    assert {0.0, 1.0} <= set(trained.z)
    digits = kys._digits("cpu")[1].images[::4]
    assert torch.equal(trained.z[1.0], kys.embeddings(trained.model, digits))
    assert not torch.equal(trained.z[0.0], trained.z[1.0])
    assert not trained.model.training
    assert kys.pretrain("information", **spent) is trained
    still = kys.pretrain("random weights", **spent)
    assert still.history is None
    assert torch.equal(still.z[0.0], trained.z[0.0])
    assert ConvNet(in_chans=1, widths=(24, 48, 96, 64)).out_dim == still.z[0.0].shape[1]


def test_claims_name_what_runs_return(tmp_path):
    record = claims.run("know_your_ssl", "smoke", seeds=1, cache=tmp_path)
    assert {e.metric for e in record.claims} <= set(record.metrics["families"]["clustering"])
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    for e in record.claims:
        assert set(e.arms) <= set(kys.ARMS)
        assert e.higher_is_better
