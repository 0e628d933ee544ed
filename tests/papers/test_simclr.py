"""SimCLR: loss, head and LARS against loops, closed forms and hand-computed cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sslref import augment, claims
from sslref.data import DataError, emoji
from sslref.evaluate import accuracy, linear_probe
from sslref.nn import ConvNet
from sslref.papers import simclr
from sslref.papers.simclr import (
    LARS,
    SimCLR,
    contrastive_accuracy,
    nt_xent,
    nt_xent_tiled,
    parameter_groups,
    projection_head,
)
from sslref.train import fit


def rows(n=6, dim=4, seed=0, dtype=torch.float64):
    return torch.randn(2, n, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind()


def test_names_of_the_augmentations_are_shared():
    for name in ("random_crop_boxes", "color_distort", "gaussian_blur"):
        assert getattr(simclr, name) is getattr(augment, name)


# ----------------------------------------------------------------------------------------------------- loss


def loop(z1, z2, temperature):
    """Eq. 1 row by row; also the two halves of it."""
    z, n, losses = [*z1, *z2], len(z1), []
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        s = [math.exp(F.cosine_similarity(z[i], z[k], dim=0).item() / temperature) for k in range(2 * n)]
        losses.append(-math.log(s[partner] / (sum(s) - s[i])))
    return sum(losses) / (2 * n), sum(losses[:n]) / n, sum(losses[n:]) / n


@pytest.mark.parity("simclr.nt_xent", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [2, 6])
def test_loss_equals_the_sum_of_the_paper(n, temperature):
    z1, z2 = rows(n)
    assert nt_xent(z1, z2, temperature=temperature).item() == pytest.approx(loop(z1, z2, temperature)[0], abs=1e-12)


@pytest.mark.differs(
    "simclr",
    paper="the mean over all 2N rows",
    official="the mean over the first views plus the mean over the second, twice the paper's value",
    here="the paper's",
)
def test_official_value_is_twice_the_paper():
    z1, z2 = rows()
    mean, first, second = loop(z1, z2, 0.5)
    assert first + second == pytest.approx(2 * mean, abs=1e-12)
    assert nt_xent(z1, z2).item() == pytest.approx((first + second) / 2, abs=1e-12)


@pytest.mark.parity("simclr.nt_xent", against="closed form", tolerance=1e-6)
@pytest.mark.parametrize("temperature", [0.02, 0.5, 3.0])
@pytest.mark.parametrize("n", [2, 5])
def test_loss_of_equal_rows(n, temperature):
    z = torch.ones(n, 3)
    assert nt_xent(z, z, temperature=temperature).item() == pytest.approx(math.log(2 * n - 1), rel=1e-6)


@pytest.mark.parity("simclr.nt_xent", against="closed form", tolerance=1e-12)
def test_loss_of_orthogonal_pairs():
    z = torch.eye(4, dtype=torch.float64)
    assert nt_xent(z, z, temperature=0.5).item() == pytest.approx(math.log(math.e**2 + 6) - 2, abs=1e-12)
    assert nt_xent(z, z, temperature=0.5).item() == pytest.approx(0.5944, abs=5e-5)
    assert nt_xent(z, z).item() == nt_xent(z, z, temperature=0.5).item()  # the default


@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 10_000))
def test_loss_does_not_change(n, dim, seed):
    z1, z2 = rows(n, dim, seed)
    value = nt_xent(z1, z2)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    scale = torch.rand(2, n, 1, dtype=torch.float64, generator=generator) * 9 + 0.1
    for a, b in ((z2, z1), (z1[order], z2[order]), (z1 * scale[0], z2 * scale[1])):
        torch.testing.assert_close(nt_xent(a, b), value)


@pytest.mark.parity("simclr.nt_xent_tiled", against="simclr.nt_xent, value and gradient", tolerance=1e-12)
@pytest.mark.parametrize("tile", [1, 5, 512])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_tiled_loss_is_the_plain_one(tile, temperature):
    z1, z2 = (z.requires_grad_() for z in rows(6))
    plain, tiled = nt_xent(z1, z2, temperature=temperature), nt_xent_tiled(z1, z2, temperature=temperature, tile=tile)
    torch.testing.assert_close(tiled, plain, rtol=0, atol=1e-12)
    expected, found = (torch.autograd.grad(loss, (z1, z2)) for loss in (plain, tiled))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_tiled_loss_in_single_precision_and_bad_input():
    z1, z2 = rows(300, 16, dtype=torch.float32)
    exact = nt_xent(z1.double(), z2.double(), temperature=0.1).item()
    assert nt_xent_tiled(z1, z2, temperature=0.1, tile=64).item() == pytest.approx(exact, rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent_tiled(z1, z2, temperature=0.1, tile=64).item() == pytest.approx(exact, rel=1e-6)
    with pytest.raises(ValueError, match="temperature"):
        nt_xent_tiled(z1, z2, temperature=0.0)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        nt_xent_tiled(z1[:1], z2[:1])


def test_pairs_matter():
    z1, z2 = rows()
    assert not torch.isclose(nt_xent(z1, z2), nt_xent(z1, z2.roll(1, 0)))


def test_gradient():
    z1, z2 = (z.requires_grad_() for z in rows(4))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (z1, z2))
    nt_xent(z1, z2).backward()
    for z in (z1, z2):  # the length of a row changes nothing, so the gradient is orthogonal to the row; none is stopped
        torch.testing.assert_close((z.grad * z).sum(1), torch.zeros(4, dtype=torch.float64))
        assert z.grad.abs().sum(1).min() > 1e-3


def test_loss_is_computed_in_full_precision_under_autocast():
    z1, z2 = rows(64, 32, dtype=torch.float32)
    z2 = z1 + 0.1 * z2
    value = nt_xent(z1, z2, temperature=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(z1, z2, temperature=0.02), value)
        assert torch.equal(contrastive_accuracy(z1, z2), contrastive_accuracy(z1, z2))
    half = nt_xent(z1.bfloat16(), z2.bfloat16(), temperature=0.02)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=0.05, atol=0.01)
    assert nt_xent(z1.double(), z2.double()).dtype == torch.float64


def test_low_temperature_stays_finite():
    z1, z2 = (z.float().requires_grad_() for z in rows())
    loss = nt_xent(z1, z2, temperature=1e-4)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad.isfinite().all()


@pytest.mark.parity("simclr.contrastive_accuracy", against="float64 loops", tolerance=0.0)
def test_accuracy():
    z1, z2 = rows(9, 2)
    z2 = z1 + 0.3 * z2
    z, hits = torch.cat([z1, z2]), 0
    for i in range(18):
        cosines = [F.cosine_similarity(z[i], z[k], dim=0).item() if k != i else -2.0 for k in range(18)]
        hits += max(range(18), key=cosines.__getitem__) == (i + 9) % 18
    assert 0 < hits < 18
    assert contrastive_accuracy(z1, z2).item() == pytest.approx(hits / 18)
    assert contrastive_accuracy(z1, z1 * 3).item() == 1
    assert contrastive_accuracy(torch.eye(4), torch.eye(4).roll(1, 0)).item() == 0


@pytest.mark.parametrize("function", [nt_xent, contrastive_accuracy])
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((3, 4, 1), (3, 4, 1)), ((3,), (3,)), ((1, 4), (1, 4)), ((0, 4), (0, 4))],
)
def test_rows_that_do_not_fit(function, a, b):
    with pytest.raises(ValueError, match="z1, z2: expected"):
        function(torch.randn(a), torch.randn(b))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(*rows(), temperature=temperature)


# ----------------------------------------------------------------------------------------------------- head


def trained_statistics(head, dim):
    head.double()
    for _ in range(3):
        head(torch.randn(32, dim, dtype=torch.float64) * 2 + 1)
    return head.eval()


def is_affine(g, dim):
    a, b = rows(5, dim)
    return torch.allclose(g(a + b) + g(torch.zeros_like(a)), g(a) + g(b))


def test_heads():
    torch.manual_seed(0)
    x = torch.randn(5, 12)
    assert projection_head(12, mode="none")(x) is x
    assert projection_head(12)(x).shape == (5, 128)
    linear, nonlinear = (projection_head(12, mode=mode, out_dim=7) for mode in ("linear", "nonlinear"))
    assert linear(x).shape == nonlinear(x).shape == (5, 7)
    assert is_affine(trained_statistics(linear, 12), 12)
    assert not is_affine(trained_statistics(nonlinear, 12), 12)


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_layers_of_the_head(num_layers):
    head = projection_head(12, out_dim=7, num_layers=num_layers)
    kinds = [type(m).__name__ for m in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * (num_layers - 1) + ["Linear", "BatchNorm1d"]
    shapes = [tuple(m.weight.shape) for m in head if isinstance(m, nn.Linear)]
    assert shapes == [(12, 12)] * (num_layers - 1) + [(7, 12)]
    assert not head[-1].bias.requires_grad
    assert head[1].bias.requires_grad


def test_head_refuses():
    with pytest.raises(ValueError, match="mode.*'conv'"):
        projection_head(4, mode="conv")
    with pytest.raises(ValueError, match="num_layers"):
        projection_head(4, num_layers=1)


def test_model_returns_representation_and_projection():
    encoder = nn.Flatten()
    encoder.out_dim = 12
    x = torch.rand(4, 3, 2, 2)
    model = SimCLR(encoder, out_dim=5)
    assert model(x).h.shape == (4, 12)
    assert model(x).z.shape == (4, 5)
    plain = SimCLR(encoder, head="none")(x)
    assert plain.z is plain.h


# ----------------------------------------------------------------------------------------------------- LARS


@pytest.mark.parity("simclr.LARS", against="float64 loops", tolerance=1e-12)
def test_lars():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    excluded = nn.Parameter(torch.randn(4, dtype=torch.float64))
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [excluded], "layer_adaptation": False}]
    optimizer = LARS(groups, 0.5, momentum=0.9, eta=0.02)
    a, b = w.detach().clone().flatten().tolist(), excluded.detach().clone().tolist()
    va, vb = [0.0] * 6, [0.0] * 4
    for step in range(4):
        ga, gb = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
        w.grad, excluded.grad = ga, gb
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (step + 1)
        optimizer.step()
        d = [g + 0.1 * p for g, p in zip(ga.flatten().tolist(), a, strict=True)]
        trust = 0.02 * math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(x * x for x in d))
        lr = 0.5 / (step + 1)
        va = [0.9 * v + lr * trust * x for v, x in zip(va, d, strict=True)]
        vb = [0.9 * v + lr * x for v, x in zip(vb, gb.tolist(), strict=True)]
        a = [p - v for p, v in zip(a, va, strict=True)]
        b = [p - v for p, v in zip(b, vb, strict=True)]
    torch.testing.assert_close(w.flatten().tolist(), a, rtol=0, atol=1e-12)
    torch.testing.assert_close(excluded.tolist(), b, rtol=0, atol=1e-12)


def test_lars_takes_a_plain_step_where_a_norm_is_zero():
    w, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    w.grad, still.grad = torch.tensor([1.0, 2, 3]), torch.zeros(3)
    LARS([w, still], 0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([-0.1, -0.2, -0.3]))
    assert torch.equal(still.detach(), torch.ones(3))


def test_lars_without_adaptation_is_sgd_with_momentum():
    ours, theirs = (nn.Parameter(torch.arange(6.0).view(2, 3) + 1) for _ in range(2))
    lars = LARS([{"params": [ours], "layer_adaptation": False}], 0.1, weight_decay=0.01)
    sgd = torch.optim.SGD([theirs], 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for w, optimizer in ((ours, lars), (theirs, sgd)):
            optimizer.zero_grad()
            (w**2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_lars_state_and_closure():
    w = nn.Parameter(torch.ones(2))

    def closure():
        w.grad = torch.ones(2)
        return torch.tensor(3.0)

    optimizer = LARS([w], 0.1)
    assert optimizer.step(closure).item() == 3
    again = LARS([w], 0.1)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[w]["momentum_buffer"], optimizer.state[w]["momentum_buffer"])
    LARS([nn.Parameter(torch.ones(2))], 0.1).step()  # a parameter without a gradient stays


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "eta"])
def test_lars_refuses(name):
    with pytest.raises(ValueError, match=name):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1} | {name: -1.0})


def test_groups_leave_out_biases_and_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), projection_head(4, out_dim=2))
    decayed, plain = parameter_groups(model, weight_decay=0.1)
    assert [p.ndim for p in decayed["params"]] == [4, 2, 2]
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(plain["params"]) == 1 + 2 + 2 + 1  # the last shift of the head is not trained
    assert (decayed["weight_decay"], plain["weight_decay"], plain["layer_adaptation"]) == (0.1, 0.0, False)


# --------------------------------------------------------------------------------------------------- training


def test_contrast_is_the_loss_of_the_stacked_views():
    encoder = nn.Flatten()
    encoder.out_dim = 12
    model = SimCLR(encoder, out_dim=5)
    a, b = torch.rand(2, 6, 3, 2, 2)
    values = simclr.contrast(model, (a, b), temperature=0.2)
    z1, z2 = model(torch.cat([a, b])).z.chunk(2)
    torch.testing.assert_close(values["loss"], nt_xent(z1, z2, temperature=0.2))
    torch.testing.assert_close(values["accuracy"], contrastive_accuracy(z1, z2))
    assert values["alignment"].requires_grad is False


def test_task_draws_each_picture_once():
    job = simclr.task(
        nn.Identity(),
        lambda index: index.float().view(-1, 1, 1, 1),
        20,
        batch_size=20,
        temperature=0.5,
        views=lambda x, generator: (x, x),
        optimizer=None,
        warmup=0.1,
    )
    drawn, _ = job.batch(torch.Generator().manual_seed(0))
    assert drawn.flatten().sort().values.tolist() == list(range(20))
    again, _ = job.batch(torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    for size in (1, 21):
        with pytest.raises(ValueError, match="batch_size: expected 2 to 20"):
            simclr.task(None, None, 20, batch_size=size, temperature=0.5, views=None, optimizer=None, warmup=0.1)


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = simclr.seeded(5, lambda: nn.Linear(2, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, simclr.seeded(5, lambda: nn.Linear(2, 2)).weight)
    assert not torch.equal(first.weight, simclr.seeded(6, lambda: nn.Linear(2, 2)).weight)


def one_step(recipe):
    history = fit(recipe.task, steps=1)
    assert math.isfinite(history.last())
    return recipe


def test_recipe_of_the_miniature():
    recipe = one_step(simclr.recipe(batch_size=8))
    assert (recipe.steps, recipe.batch_size) == (300, 8)
    assert "1,400 pictures" in recipe.about


def test_recipe_of_the_paper_on_cifar10(cifar10):
    recipe = simclr.recipe(cifar10, batch_size=4)
    assert recipe.steps == 1000 * 40 // 4
    assert "ResNet-18" in recipe.about
    decayed, plain = recipe.task.optimizer(recipe.task.model).param_groups
    assert decayed["lr"] == plain["lr"] == 4 / 256
    assert (decayed["weight_decay"], plain["layer_adaptation"]) == (1e-4, False)
    a, b = recipe.task.batch(torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (4, 3, 32, 32)
    assert a.dtype == torch.float32
    assert sum(p.numel() for p in recipe.task.model.encoder.parameters()) == 11_168_832  # ResNet-18 with a 3x3 stem


def test_recipe_on_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (40, 50), (60 * i, 90, 20)).save(tmp_path / name / f"{i}.png")
    recipe = one_step(simclr.recipe(tmp_path, batch_size=4, size="miniature"))
    assert "4 pictures" in recipe.about


def test_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="size: expected"):
        simclr.recipe(size="huge")
    with pytest.raises(DataError, match="one subfolder a class"):
        simclr.recipe(tmp_path)
    with pytest.raises(ValueError, match="batch_size: expected 2 to 1400"):
        simclr.recipe(batch_size=1401)


# ------------------------------------------------------------------------------------------------- experiment


def test_world():
    lit = simclr.world(3)
    assert [len(part.images) for part in lit] == [1400, 511, 511, 511]
    for part in lit:
        assert part.lamps.min() >= 0.4
        assert part.lamps.max() <= 1
    torch.testing.assert_close(lit.test.images / lit.test.lamps[:, :, None, None], emoji("test").images())
    torch.testing.assert_close(
        lit.test.images / lit.test.lamps[:, :, None, None], lit.relit.images / lit.relit.lamps[:, :, None, None]
    )
    assert (lit.test.lamps - lit.relit.lamps).abs().mean() > 0.1
    assert torch.equal(simclr.world(3).train.images, lit.train.images)
    assert not torch.equal(simclr.world(4).train.lamps, lit.train.lamps)


class Eye(nn.Module):
    """Sees the drawing in the first eight features and the lamp in the last three, as strongly as `weight` says."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        lamp = x.amax((2, 3))
        drawing = F.adaptive_avg_pool2d((x / lamp[:, :, None, None]).mean(1), (2, 4)).flatten(1)
        h = torch.cat([drawing, self.weight * lamp], 1)
        return simclr.Output(h, drawing)


def test_measures_of_known_representations(monkeypatch):
    # features as they come: what is standardised cannot be made strong or weak
    monkeypatch.setattr(simclr, "standardize", lambda train, *others: (train, *others))
    lit = simclr.world(0)
    blind, dazzled = (simclr.measure(Eye(weight), lit) for weight in (0.0, 1e4))
    assert blind["lamp_share"] == pytest.approx(0, abs=1e-6)
    assert blind["relit_cosine"] == pytest.approx(1)
    assert blind["lamp_r2"] < 0.1
    assert dazzled["lamp_share"] == pytest.approx(100, abs=5)  # two independent lamps: the whole variance
    assert dazzled["lamp_r2"] > 0.99
    assert dazzled["retrieval"] < 5 < blind["retrieval"]
    h = [Eye(1.0)(part.images).h for part in lit]
    seen = simclr.measure(Eye(1.0), lit)
    for name, part, features in (("probe", lit.test, h[1]), ("probe_other", lit.other, h[2])):
        expected = accuracy(linear_probe(h[0], lit.train.labels, features, C=0.01), part.labels)
        assert seen[name] == pytest.approx(100 * expected)
    assert simclr.measure(Eye(1e4), lit, readout="z") == pytest.approx(blind, abs=1e-3)


def test_arms_are_paired():
    spent = {"seed": 0, "steps": 1, "batch_size": 8}
    kept = {arm: simclr.pretrain(arm, **spent) for arm in simclr.ARMS}
    assert kept["read at z"] is kept["crops + colour"]  # one network, read in two places
    assert all(torch.equal(kept["crops"].world.train.lamps, other.world.train.lamps) for other in kept.values())
    assert not any(other.model.training for other in kept.values())
    start = simclr.seeded(0, lambda: SimCLR(ConvNet())).encoder.state_dict()
    for name, value in kept["random weights"].model.encoder.state_dict().items():
        assert torch.equal(value, start[name])
    # the first batch norm sees the views themselves: same crops in all arms that differ in the head alone
    seen = {arm: k.model.encoder.state_dict()["layers.0.1.running_mean"] for arm, k in kept.items()}
    assert torch.equal(seen["crops + colour"], seen["linear head"])
    assert torch.equal(seen["crops + colour"], seen["no head"])
    assert not torch.equal(seen["crops + colour"], seen["crops"])


def test_unknown_arm():
    with pytest.raises(ValueError, match="arm: expected one of random weights, crops.*'colours'"):
        simclr.pretrain("colours")


def test_claims_name_what_runs_return(tmp_path):
    record = claims.run("simclr", "smoke", seeds=1, cache=tmp_path)
    assert {e.metric for e in record.claims} <= set(record.metrics["lamps"]["crops"])
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    for e in record.claims:
        assert set(e.arms) <= set(simclr.ARMS)
