"""MEC: coding length, series and loss against loops, closed forms and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sslref import claims
from sslref.data import DataError
from sslref.evaluate import accuracy, linear_probe
from sslref.losses import byol_loss
from sslref.papers import mec
from sslref.papers.mec import (
    coding_constants,
    coding_length,
    exact_loss,
    lamda_schedule,
    log_det,
    mec_loss,
    predictor,
    projector,
    taylor_log_det,
)
from sslref.train import fit, sgd


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def four(m=5, d=7, seed=0, dtype=torch.float64):
    return rows(4, m, d, seed=seed, dtype=dtype).unbind()


# ---------------------------------------------------------------------------------------------- coding length


@pytest.mark.parity("mec.coding_constants", against="the paper's numbers", tolerance=0.0)
def test_constants_of_the_paper():
    assert coding_constants(1024, 2048) == (1536.0, 1 / 32)
    assert coding_constants(6, 4, eps_sq=1.0) == (5.0, 4 / 6)


@pytest.mark.differs(
    "mec",
    paper="lambda = d / (m eps^2)",
    official="the flag eps = 64 is the square already: lambda = d / (m eps)",
    here="the argument is called eps_sq, and is the square",
)
def test_eps_is_squared_already():
    assert coding_constants(10, 30, eps_sq=6.0)[1] == 30 / (10 * 6.0)
    assert coding_constants(1024, 2048)[1] != 2048 / (1024 * 64.0**2)


def code_length(z, eps_sq):
    """Row by row and pivot by pivot: Gaussian elimination of I + lambda Z Z^T."""
    m, d = z.shape
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.tolist()]
    lamda = d / (m * eps_sq)
    a = [[(i == j) + lamda * sum(x * y for x, y in zip(u, v, strict=True)) for j, v in enumerate(unit)]
         for i, u in enumerate(unit)]  # fmt: skip
    total = 0.0
    for i in range(m):
        total += math.log(a[i][i])
        for j in range(i + 1, m):
            share = a[j][i] / a[i][i]
            a[j] = [x - share * y for x, y in zip(a[j], a[i], strict=True)]
    return (m + d) / 2 * total


@pytest.mark.parity("mec.coding_length", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("shape", [(3, 5), (5, 5), (7, 2), (1, 4)])
@pytest.mark.parametrize("eps_sq", [0.5, 64.0])
def test_length_by_elimination(shape, eps_sq):
    z = rows(*shape)
    assert coding_length(z, eps_sq=eps_sq).item() == pytest.approx(code_length(z, eps_sq), rel=1e-12)


@pytest.mark.parity("mec.coding_length", against="closed form", tolerance=1e-12)
def test_lengths_by_hand():
    assert coding_length(torch.eye(4).double(), eps_sq=1.0).item() == pytest.approx(16 * math.log(2), rel=1e-12)
    same = rows(1, 4).expand(6, 4)
    assert coding_length(same, eps_sq=1.0).item() == pytest.approx(5 * math.log(5), rel=1e-12)
    assert coding_length(same).item() == pytest.approx(5 * math.log(1 + 4 / 64), rel=1e-12)  # the default, 64


@given(st.integers(2, 8), st.integers(2, 6), st.integers(0, 10_000), st.floats(0.1, 100))
def test_length_does_not_see_rotation_and_scale_and_collapse_is_shortest(m, d, seed, eps_sq):
    z = rows(m, d, seed=seed)
    value = coding_length(z, eps_sq=eps_sq)
    turn = torch.linalg.qr(rows(d, d, seed=seed + 1)).Q
    scale = 0.1 + 9 * torch.rand(m, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(coding_length(scale * z @ turn, eps_sq=eps_sq), value)
    signs = torch.where(rows(m, 1, seed=seed) > 0, 1.0, -1.0)
    torch.testing.assert_close(coding_length(signs * z, eps_sq=eps_sq), value)  # a direction has no sign
    collapsed = coding_length(z[:1].expand(m, d), eps_sq=eps_sq)
    mu, lamda = coding_constants(m, d, eps_sq=eps_sq)
    evenly = mu * min(m, d) * math.log1p(lamda * m / min(m, d))
    assert collapsed.item() - 1e-9 <= value.item() <= evenly + 1e-9


def test_gradient_of_the_length():
    z = rows(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: coding_length(x, eps_sq=0.5), z)


# ----------------------------------------------------------------------------------------------------- series


@pytest.mark.parity("mec.taylor_log_det", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("order", range(1, 10))
def test_series_by_powers(order):
    c = 0.4 * rows(5, 5)
    power, expected = np.eye(5), 0.0
    for k in range(1, order + 1):
        power = power @ c.numpy()
        expected += (-1) ** (k + 1) / k * np.trace(power)
    assert taylor_log_det(c, order=order).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parity("mec.taylor_log_det", against="closed form", tolerance=1e-12)
def test_series_by_hand():
    c = torch.diag(torch.tensor([0.5, 0.2], dtype=torch.float64))
    assert taylor_log_det(c, order=1).item() == pytest.approx(0.7, abs=1e-12)
    assert taylor_log_det(c, order=2).item() == pytest.approx(0.555, abs=1e-12)
    assert taylor_log_det(c, order=4).item() == pytest.approx(0.7 - 0.145 + 0.133 / 3 - 0.0641 / 4, abs=1e-12)
    assert taylor_log_det(c).item() == pytest.approx(0.58331, abs=5e-6)  # the default is 4
    assert taylor_log_det(c, order=60).item() == pytest.approx(math.log(1.8), abs=1e-12)
    assert log_det(c).item() == pytest.approx(math.log(1.8), abs=1e-12)


def psd(radius, n=6):
    z = rows(n, n)
    c = z @ z.T
    return radius * c / torch.linalg.eigvalsh(c)[-1]


def test_it_converges_inside_the_radius_and_diverges_outside():
    for radius, grows in ((0.8, False), (2.0, True)):
        c = psd(radius)
        errors = [(taylor_log_det(c, order=n) - log_det(c)).abs().item() for n in range(1, 41)]
        if grows:
            assert errors[-1] > 1e6 * errors[9] > 1e6
        else:
            assert all(b < a for a, b in zip(errors, errors[1:], strict=False))
            assert errors[-1] < 1e-4


def test_even_orders_have_their_maximum_at_the_radius_of_convergence():
    for order in range(1, 8):
        slope = []
        for x in (0.5, 1.0, 1.5):
            c = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
            (g,) = torch.autograd.grad(taylor_log_det(c, order=order), c)
            assert g.item() == pytest.approx((1 - (-x) ** order) / (1 + x), abs=1e-12)
            slope.append(g.item())
        assert slope[1] == pytest.approx(0 if order % 2 == 0 else 1)
        assert (slope[2] < 0) == (order % 2 == 0)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0), (1, 2, 2)])
def test_series_refuses_what_is_not_square(shape):
    with pytest.raises(ValueError, match=r"c: expected shape \(n, n\)"):
        taylor_log_det(torch.zeros(shape))


def test_order_is_checked():
    for order in (0, -1):
        with pytest.raises(ValueError, match="order: expected at least 1"):
            taylor_log_det(torch.eye(2), order=order)
        with pytest.raises(ValueError, match="order: expected at least 1"):
            mec_loss(*four(), lamda=0.1, order=order)
    for order in (2.0, True, None):
        with pytest.raises(TypeError, match="order: expected an integer"):
            mec_loss(*four(), lamda=0.1, order=order)


@pytest.mark.parametrize(("args", "name"), [((0, 4), "batch_size"), ((4, 0), "dim")])
def test_sizes_are_checked(args, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1"):
        coding_constants(*args)


@pytest.mark.parametrize("eps_sq", [0.0, -1.0, math.nan])
def test_eps_must_be_positive(eps_sq):
    with pytest.raises(ValueError, match="eps_sq: expected a positive number"):
        coding_constants(4, 4, eps_sq=eps_sq)
    with pytest.raises(ValueError, match="eps_sq"):
        coding_length(torch.eye(3), eps_sq=eps_sq)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 3, 4)])
def test_length_refuses(shape):
    with pytest.raises(ValueError, match="z: expected shape"):
        coding_length(torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------- loss


def loop(z1, z2, t1, t2, lamda, order):
    """The formula of the card: every entry of every power."""
    m = len(z1)

    def unit(x):
        return [[a / math.sqrt(sum(b * b for b in row)) for a in row] for row in x.tolist()]

    total = 0.0
    for t, z in ((unit(t1), unit(z2)), (unit(t2), unit(z1))):
        c = [[lamda * sum(a * b for a, b in zip(u, v, strict=True)) for v in z] for u in t]
        power = c
        for k in range(1, order + 1):
            total += (-1) ** (k + 1) / k * sum(power[i][i] for i in range(m))
            power = [[sum(power[i][r] * c[r][j] for r in range(m)) for j in range(m)] for i in range(m)]
    return -total / (2 * m * lamda)


@pytest.mark.parity("mec.mec_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", ["auto", "batch", "feature"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1)])
def test_loss_by_loops(order, side, shape):
    x = four(*shape)
    got = mec_loss(*x, lamda=0.7, order=order, side=side)
    assert got.item() == pytest.approx(loop(*x, 0.7, order), rel=1e-12)


@pytest.mark.parity("mec.mec_loss", against="losses.byol_loss", tolerance=1e-12)
def test_order_one_is_the_cosine_whatever_lambda_is():
    z1, z2, t1, t2 = four()
    cosines = (F.cosine_similarity(t1, z2).mean() + F.cosine_similarity(t2, z1).mean()) / 2
    for lamda in (1e-3, 1 / 32, 5.0):
        torch.testing.assert_close(mec_loss(z1, z2, t1, t2, lamda=lamda, order=1), -cosines)
    byol = (byol_loss(z2, t1) + byol_loss(z1, t2)) / 2
    torch.testing.assert_close(2 + 2 * mec_loss(z1, z2, t1, t2, lamda=0.1, order=1), byol)


@pytest.mark.parametrize("side", ["batch", "feature"])
def test_order_two_adds_the_squares_of_all_similarities(side):
    """Of pictures on one side, of features on the other: the diagonal, and a contrastive or decorrelating rest."""
    z, lamda = F.normalize(rows(5, 3), dim=1), 0.3
    s = z @ z.T if side == "batch" else z.T @ z
    squares = s.diagonal().square().sum() + (s - s.diag().diag()).square().sum()
    expected = -1 + lamda / 2 * squares / 5
    torch.testing.assert_close(mec_loss(z, z, z, z, lamda=lamda, order=2, side=side), expected)


def test_loss_of_a_collapsed_and_of_an_orthogonal_batch():
    m, lamda = 6, 0.25
    same, apart = torch.ones(m, 8).double(), torch.eye(m, 8).double()
    for order in (1, 2, 3, 4):
        for z, x, count in ((same, lamda * m, 1), (apart, lamda, m)):
            series = sum((-1) ** (k + 1) * x**k / k for k in range(1, order + 1))
            got = mec_loss(z, z, z, z, lamda=lamda, order=order)
            assert got.item() == pytest.approx(-count * series / (m * lamda), rel=1e-12)
    got = exact_loss(same, same, same, same, lamda=lamda)
    assert got.item() == pytest.approx(-math.log1p(lamda * m) / (m * lamda), rel=1e-12)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10_000), st.integers(1, 6))
def test_loss_does_not_change(m, d, seed, order):
    z1, z2, t1, t2 = four(m, d, seed)
    value = mec_loss(z1, z2, t1, t2, lamda=0.5, order=order, side="batch")
    generator = torch.Generator().manual_seed(seed)
    p = torch.randperm(m, generator=generator)
    scale = 0.1 + torch.rand(4, m, 1, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(rows(d, d, seed=seed)).Q
    for x, side in (
        ((z1, z2, t1, t2), "feature"),
        ((z1, z2, t1, t2), "auto"),
        ((z2, z1, t2, t1), "batch"),
        ((z1[p], z2[p], t1[p], t2[p]), "batch"),
        ([a @ turn * s for a, s in zip((z1, z2, t1, t2), scale, strict=True)], "feature"),
    ):
        torch.testing.assert_close(mec_loss(*x, lamda=0.5, order=order, side=side), value)


def test_auto_takes_the_smaller_matrix(monkeypatch):
    seen = []
    monkeypatch.setattr(mec, "taylor_log_det", lambda c, order: seen.append(len(c)) or c.trace())
    for m, d in ((3, 5), (5, 3), (4, 4)):
        mec_loss(*four(m, d), lamda=0.1)
    assert seen == [3, 3, 3, 3, 4, 4]


def test_pairs_and_views_matter():
    z1, z2, t1, t2 = four()
    value = mec_loss(z1, z2, t1, t2, lamda=0.5)
    assert not torch.isclose(mec_loss(z1.roll(1, 0), z2, t1, t2, lamda=0.5), value)
    assert not torch.isclose(mec_loss(z2, z1, t1, t2, lamda=0.5), value)


@pytest.mark.parametrize("side", ["batch", "feature"])
def test_gradient(side):
    z1, z2, t1, t2 = (x.requires_grad_() for x in four(4, 3))
    for loss in (lambda a, b: mec_loss(a, b, t1, t2, lamda=0.3, side=side),
                 lambda a, b: exact_loss(a, b, t1, t2, lamda=0.3, side=side)):  # fmt: skip
        assert torch.autograd.gradcheck(loss, (z1, z2))
    mec_loss(z1, z2, t1, t2, lamda=0.3, side=side).backward()
    assert t1.grad is None
    assert t2.grad is None
    for z in (z1, z2):  # the length of a row changes nothing
        torch.testing.assert_close((z.grad * z).sum(1), torch.zeros(4, dtype=torch.float64))
        assert z.grad.abs().sum(1).min() > 1e-4


@pytest.mark.differs(
    "mec",
    paper="minus mu log det (Eq. 3), the length of the code",
    official="the sum of both directions over 2 m lambda, so that order 1 is the mean cosine for every lambda",
    here="the official code's",
)
def test_loss_is_the_length_of_the_code_in_other_units():
    z = rows(6, 4)
    mu, lamda = coding_constants(6, 4, eps_sq=2.0)
    length = coding_length(z, eps_sq=2.0)
    torch.testing.assert_close(exact_loss(z, z, z, z, lamda=lamda), -length / (mu * 6 * lamda))


@pytest.mark.differs(
    "mec",
    paper="the series of a matrix of pictures, (m, m)",
    official="the same, with one product of matrices for every order after the first",
    here="the smaller side, and powers up to half the order: order 4 takes one product beside C",
)
@pytest.mark.parametrize(("order", "products"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)])
def test_products_of_an_order(order, products):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        taylor_log_det(rows(10, 10), order=order)
    assert counter.get_total_flops() == products * 2 * 10**3


@pytest.mark.parity("mec.exact_loss", against="the series of order 200", tolerance=1e-10)
def test_exact_loss_is_the_limit_of_the_series():
    x = four(5, 7)
    torch.testing.assert_close(exact_loss(*x, lamda=0.15), mec_loss(*x, lamda=0.15, order=200), rtol=0, atol=1e-10)


def test_loss_is_computed_in_full_precision_under_autocast():
    x = four(48, 32, dtype=torch.float32)
    c = x[0].T @ x[0] / 50
    functions = (
        lambda: mec_loss(*x, lamda=1 / 12),
        lambda: exact_loss(*x, lamda=1 / 12),
        lambda: coding_length(x[0]),
        lambda: taylor_log_det(c),
    )
    for function in functions:
        value = function()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(), value)
    half = [a.bfloat16() for a in x]
    assert mec_loss(*half, lamda=1 / 12).dtype == torch.float32
    torch.testing.assert_close(mec_loss(*half, lamda=1 / 12), mec_loss(*x, lamda=1 / 12), rtol=0.05, atol=0.01)
    assert coding_length(half[0]).dtype == taylor_log_det(half[0][:32]).dtype == torch.float32
    assert mec_loss(*four(), lamda=0.1).dtype == torch.float64


def test_rows_of_zeros_code_at_no_cost():
    z = torch.cat([torch.eye(3, 8), torch.zeros(2, 8)]).requires_grad_()
    loss = mec_loss(z, z, z, z, lamda=0.1, order=1)
    assert loss.item() == pytest.approx(-3 / 5)
    loss.backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("function", [mec_loss, exact_loss])
def test_loss_refuses(function):
    z = torch.randn(3, 4)
    for bad in (torch.randn(3, 5), torch.randn(2, 4), torch.randn(3)):
        for k in range(4):
            x = [z, z, z, z]
            x[k] = bad
            with pytest.raises(ValueError, match="z1, z2, t1, t2: expected one shape"):
                function(*x, lamda=0.1)
    for empty in (torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(3), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError, match="z1, z2, t1, t2: expected one shape"):
            function(*[empty] * 4, lamda=0.1)
    for lamda in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="lamda: expected a positive number"):
            function(*[z] * 4, lamda=lamda)
    with pytest.raises(ValueError, match="side: expected one of auto, batch, feature, got 'rows'"):
        function(*[z] * 4, lamda=0.1, side="rows")


def test_lambda_may_be_a_tensor():
    x = four()
    torch.testing.assert_close(mec_loss(*x, lamda=torch.tensor(0.3).double()), mec_loss(*x, lamda=0.3))


# --------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parity("mec.lamda_schedule", against="NumPy's linspace", tolerance=1e-12)
@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("factor", [1.0, 8.0, 0.5])
def test_schedule(warmup_steps, factor):
    lamda = 1 / 32
    line = np.linspace(factor / lamda, 1 / lamda, warmup_steps).tolist() + [1 / lamda] * 3
    got = [
        1 / lamda_schedule(s, warmup_steps=warmup_steps, lamda=lamda, factor=factor) for s in range(warmup_steps + 3)
    ]
    assert got == pytest.approx(line, rel=1e-12)


def test_schedule_by_hand():
    assert lamda_schedule(0, warmup_steps=10, lamda=1 / 32) == 1 / 256
    assert lamda_schedule(9, warmup_steps=10, lamda=1 / 32) == 1 / 32
    assert lamda_schedule(10**9, warmup_steps=10, lamda=1 / 32) == 1 / 32
    given = {"warmup_steps": 10, "lamda": 1.0, "step": 0}
    for name, bad in (("step", -1), ("warmup_steps", -1), ("lamda", 0.0), ("lamda", -1.0), ("factor", 0.0)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            lamda_schedule(**given | {name: bad})


# --------------------------------------------------------------------------------------------------- networks


def kinds(module):
    return [type(m).__name__ for m in module]


def test_projector():
    p = projector(6, hidden=5, out_dim=4)
    assert kinds(p) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [tuple(m.weight.shape) for m in p if isinstance(m, nn.Linear)] == [(5, 6), (5, 5), (4, 5)]
    assert p[-1].weight is None
    assert p[-2].bias is None
    plain = projector(6, hidden=5, out_dim=4, layers=2, norm=False)
    assert kinds(plain) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert plain[-1].bias is not None
    with pytest.raises(ValueError, match="layers: expected at least 2"):
        projector(6, hidden=5, out_dim=4, layers=1)


def test_predictor():
    p = predictor(6, hidden=3)
    assert kinds(p) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [tuple(m.weight.shape) for m in p if isinstance(m, nn.Linear)] == [(3, 6), (6, 3)]


class Eye(nn.Flatten):
    out_dim = 12


def toy(crutches=True):
    torch.manual_seed(0)
    return mec.MEC(Eye(), hidden=6, out_dim=4, bottleneck=3, crutches=crutches)


def views(n=8, seed=0):
    return torch.rand(2, n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).unbind()


@pytest.mark.differs(
    "mec",
    paper="says nothing",
    official="one pass for each view, so that batch norm treats the views apart",
    here="one pass for both views",
)
def test_batch_norm_sees_both_views():
    model = toy()
    first, second = views()
    out = model(first, second / 4)
    apart = model.predictor(model.online(first))
    assert not torch.allclose(out.z1, apart)


def test_student_predicts_and_teacher_does_not():
    model = toy()
    out = model(*views())
    both = torch.cat(views())
    expected = model.online(both)
    torch.testing.assert_close(torch.cat([out.t1, out.t2]), expected.detach())  # the teacher starts as a copy
    torch.testing.assert_close(torch.cat([out.z1, out.z2]), model.predictor(expected))
    assert out.z1.requires_grad
    assert not out.t1.requires_grad
    bare = toy(crutches=False)
    out = bare(*views())
    assert out.t1.data_ptr() == out.z1.data_ptr()
    assert bare.teacher is None
    assert not isinstance(bare.online[1][-1], nn.BatchNorm1d)


def test_loss_of_a_batch():
    model = toy()
    model.lamda.fill_(0.2)
    z1, z2, t1, t2, _ = model(*views())
    got = mec.code_batch(model, views(), order=4, eps_sq=2.0)
    torch.testing.assert_close(got["loss"], mec_loss(z1, z2, t1, t2, lamda=0.2))
    torch.testing.assert_close(got["agreement"], F.cosine_similarity(t1, t2).mean())
    torch.testing.assert_close(got["length"], coding_length(t1, eps_sq=2.0) / 8)
    t = F.normalize(t1, dim=1)
    torch.testing.assert_close(got["radius"], 0.2 * torch.linalg.matrix_norm(t, 2) ** 2)
    c = 0.2 * t @ t.T
    torch.testing.assert_close(got["error"], (taylor_log_det(c) / log_det(c) - 1).abs(), rtol=1e-3, atol=1e-5)
    exact = mec.code_batch(model, views(), order=None)
    assert set(exact) == {"loss", "agreement"}
    torch.testing.assert_close(exact["loss"], exact_loss(z1, z2, t1, t2, lamda=0.2))


def options(**more):
    given = {"batch_size": 4, "lamda": 0.5, "lamda_warmup": 3, "views": lambda x, generator: (x, x)}
    return given | {"optimizer": lambda m: sgd(m, 0.1, weight_decay=0)} | more


def test_task_draws_each_picture_once_and_moves_lambda_and_teacher():
    model = toy()
    images = torch.rand(4, 3, 2, 2)
    job = mec.task(model, images.__getitem__, 4, momentum=0.5, **options())
    drawn, _ = job.batch(torch.Generator().manual_seed(0))
    assert sorted(drawn.flatten(1).sum(1).tolist()) == sorted(images.flatten(1).sum(1).tolist())
    assert model.lamda.item() == pytest.approx(0.5 / 8)
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.online.parameters():
            p.add_(1)
    job.after_step(model, 0, 10)
    assert model.lamda.item() == pytest.approx(1 / np.linspace(16, 2, 3)[1])
    for p, old in zip(model.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.5)
    job.after_step(model, 10, 10)  # the momentum has become 1
    torch.testing.assert_close(list(model.teacher.parameters())[0], before[0] + 0.5)
    assert model.lamda.item() == 0.5
    for size in (1, 5):
        with pytest.raises(ValueError, match="batch_size: expected 2 to 4"):
            mec.task(model, None, 4, **options(batch_size=size))


def test_a_step_moves_student_and_predictor_alone():
    model = toy()
    job = mec.task(model, torch.rand(8, 3, 2, 2).__getitem__, 8, momentum=1.0, **options(batch_size=8))
    job.schedule = lambda step, steps: 1.0
    before = {k: v.clone() for k, v in model.named_parameters()}
    history = fit(job, steps=1)
    assert math.isfinite(history.last())
    for name, p in model.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == (not name.startswith("teacher")), name


def one_step(recipe):
    assert math.isfinite(fit(recipe.task, steps=1).last())
    return recipe


def test_recipe_of_the_miniature():
    recipe = one_step(mec.recipe(batch_size=8))
    assert (recipe.steps, recipe.batch_size) == (300, 8)
    assert "1,400 pictures" in recipe.about
    target = coding_constants(8, 64, eps_sq=mec.EPS_SQ)[1]
    assert recipe.task.model.lamda.item() == pytest.approx(lamda_schedule(1, warmup_steps=60, lamda=target))


def test_recipe_of_the_paper_on_cifar10(cifar10):
    recipe = mec.recipe(cifar10, batch_size=4)
    assert recipe.steps == 400 * 10
    assert "ResNet-18" in recipe.about
    (group,) = recipe.task.optimizer(recipe.task.model).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5 * 4 / 256, 0.9, 1e-5)
    assert recipe.task.model.lamda.item() == 1 / 256
    a, b = recipe.task.batch(torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (4, 3, 32, 32)


def test_recipe_on_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (40, 50), (60 * i, 90, 20)).save(tmp_path / name / f"{i}.png")
    assert "4 pictures" in one_step(mec.recipe(tmp_path, batch_size=4, size="miniature")).about


def test_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="size: expected"):
        mec.recipe(size="huge")
    with pytest.raises(DataError, match="one subfolder a class"):
        mec.recipe(tmp_path)
    with pytest.raises(ValueError, match="batch_size: expected 2 to 1400"):
        mec.recipe(batch_size=1401)


# ------------------------------------------------------------------------------------------------- experiment


class Known(nn.Module):
    """An "encoder" whose features are the coarse drawing, and a "projector" that keeps so many of its numbers."""

    def __init__(self, kept):
        super().__init__()
        encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        head = nn.Linear(12, 12, bias=False)
        with torch.no_grad():
            head.weight.copy_(torch.diag((torch.arange(12) < kept).float()))
        self.online = nn.Sequential(encoder, head)


def test_measures_of_known_representations():
    pictures = mec.world()
    assert [len(x) for x in pictures] == [1400, 511, 511, 1400, 511]
    one, all_ = (mec.measure(Known(kept), pictures) for kept in (1, 12))
    assert one["rank"] == pytest.approx(1)
    assert one["radius"] == pytest.approx(12 / mec.EPS_SQ)  # lambda m = d / eps^2
    mu, lamda = coding_constants(511, 12, eps_sq=mec.EPS_SQ)
    assert one["length"] == pytest.approx(mu * math.log1p(lamda * 511) / 511)
    assert all_["rank"] > 2
    assert all_["length"] > one["length"]
    assert all_["radius"] < one["radius"]
    assert one["probe"] == all_["probe"]  # h is what it was
    h = Known(1).online[0]
    from sslref.evaluate import standardize

    train, test, other = standardize(*(h(x) for x in pictures[:3]))
    expected = accuracy(linear_probe(train, pictures.train_labels, test, C=0.01), pictures.labels)
    assert one["probe"] == pytest.approx(100 * expected)
    cosines = F.cosine_similarity(test[:, None], other[None], dim=2)
    found = sum(int(row.argmax()) == i for i, row in enumerate(cosines))
    assert one["twins"] == pytest.approx(100 * found / 511)


def test_arms_are_paired():
    kept = {arm: mec.pretrain(arm, seed=0, steps=1, batch_size=8) for arm in mec.ARMS}
    assert not any(k.model.training for k in kept.values())
    start = kept["random weights"].model.online
    fresh = mec.seeded(0, lambda: mec.MEC(mec.ConvNet(widths=mec.WIDTHS), **mec.SIZES, crutches=False)).online
    for a, b in zip(start.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    seen = [k.model.online.state_dict()["0.layers.0.1.running_mean"] for k in kept.values() if k.history]
    assert all(torch.equal(s, seen[0]) for s in seen)  # the same views reach every arm
    assert kept["order 4"] is mec.pretrain("order 4", seed=0, steps=1, batch_size=8)
    with pytest.raises(ValueError, match="arm: expected one of random weights, order 1.*'order 9'"):
        mec.pretrain("order 9")


def test_claims_name_what_runs_return(tmp_path):
    record = claims.run("mec", "smoke", seeds=1, cache=tmp_path)
    assert {e.metric for e in record.claims} <= set(record.metrics["orders"]["order 1"])
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    for e in record.claims:
        assert set(e.arms) <= set(mec.ARMS)
