"""NuTime: against loops in float64, the paper's limits, and hand-computed cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sslref.papers import nutime
from sslref.papers.nutime import (
    BYOL,
    NumericallyMultiscaledEmbedding,
    NuTime,
    WindowEmbedding,
    numerical_scales,
    random_resized_crop,
    scale_weights,
    window_statistics,
)
from sslref.train import fit

SCALES = numerical_scales().double()


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _nme_by_loops(x, weight, bias, scales, eps=1e-6):
    """The formula of section 3.2, one number at a time in Python floats."""
    dim = weight.shape[1]
    raw = [1 / (abs(math.log(abs(x) / k + eps)) + eps) for k in scales]
    out = [0.0] * dim
    for a, w, b, k in zip(raw, weight.tolist(), bias.tolist(), scales, strict=True):
        branch = [x * w[d] + k * b[d] for d in range(dim)]
        mean = sum(branch) / dim
        var = sum((v - mean) ** 2 for v in branch) / dim
        for d in range(dim):
            out[d] += a / sum(raw) * (branch[d] - mean) / math.sqrt(var + 1e-5)
    return out


# ------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parity("nutime.numerical_scales", against="closed form", tolerance=1e-6)
def test_scales():
    torch.testing.assert_close(numerical_scales(5), torch.tensor([0.01, 0.1, 1, 10, 100]))
    torch.testing.assert_close(numerical_scales(4), torch.tensor([0.01, 0.1, 1, 10]))
    torch.testing.assert_close(numerical_scales(3, 2.0), torch.tensor([0.5, 1, 2]))
    assert numerical_scales(1).tolist() == [1]
    assert len(numerical_scales()) == 9
    for bad in ({"num_scales": 0}, {"base": 1.0}, {"base": 0.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            numerical_scales(**bad)


@pytest.mark.parity("nutime.scale_weights", against="float64 loops", tolerance=1e-12)
@given(st.floats(-1e6, 1e6).filter(lambda v: abs(v) > 1e-8))
def test_weights_by_hand(x):
    raw = [1 / (abs(math.log(abs(x) / k + 1e-6)) + 1e-6) for k in SCALES.tolist()]
    expected = torch.tensor([a / sum(raw) for a in raw], dtype=torch.float64)
    weights = scale_weights(torch.tensor(x, dtype=torch.float64), SCALES)
    torch.testing.assert_close(weights, expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(weights, scale_weights(torch.tensor(-x, dtype=torch.float64), SCALES))


def test_weights_at_and_between_scales():
    at_one = scale_weights(torch.tensor(1.0), numerical_scales())
    assert at_one[4] > 0.99
    assert scale_weights(torch.tensor(0.02), numerical_scales()).argmax() == 2
    middle = scale_weights(torch.tensor(10**0.5, dtype=torch.float64), SCALES)
    assert middle[4].item() == pytest.approx(middle[5].item(), rel=1e-5)
    assert middle.argsort()[-2:].sort().values.tolist() == [4, 5]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_weights_sum_to_one_for_every_number(x):
    weights = scale_weights(torch.tensor(x), numerical_scales())
    assert torch.isfinite(weights).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)


def test_weights_refuse_bad_scales():
    for bad in (torch.tensor([1.0, 0.0]), torch.tensor([-1.0]), torch.ones(2, 2), torch.ones(0)):
        with pytest.raises(ValueError, match="scales"):
            scale_weights(torch.ones(3), bad)


# ---------------------------------------------------------------------------------------------------- embedding


@pytest.mark.parity("nutime.NumericallyMultiscaledEmbedding", against="float64 loops", tolerance=1e-9)
def test_embedding_by_loops():
    torch.manual_seed(0)
    nme = NumericallyMultiscaledEmbedding(6, num_scales=5).double()
    x = torch.tensor([[0.0, 1e-7, -0.3], [2.0, -450.0, 1e9]], dtype=torch.float64)
    scales = nme.scales.tolist()
    expected = [[_nme_by_loops(v, nme.weight, nme.bias, scales) for v in row] for row in x.tolist()]
    torch.testing.assert_close(nme(x), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)


def test_embedding_parameters():
    nme = NumericallyMultiscaledEmbedding(64, num_scales=9)
    assert nme.weight.shape == nme.bias.shape == (9, 64)
    assert "scales" in dict(nme.named_buffers())
    for p in nme.parameters():
        assert -1 <= p.min() < -0.9
        assert 0.9 < p.max() <= 1


def test_embedding_is_bounded():
    nme = NumericallyMultiscaledEmbedding(16)
    x = torch.tensor([0.0, 1e-15, -1e-15, 1e15, -1e15])
    out = nme(x)
    assert torch.isfinite(out).all()
    assert out.abs().max() < 10


def test_large_numbers_keep_their_sign_only():
    nme = NumericallyMultiscaledEmbedding(16).double()
    limit = (scale_weights(torch.tensor(1e12).double(), SCALES)[:, None] * F.layer_norm(nme.weight, (16,))).sum(0)
    torch.testing.assert_close(nme(torch.tensor(1e12).double()), limit, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(nme(torch.tensor(-1e12).double()), -limit, atol=1e-4, rtol=1e-3)


def test_half_precision_and_autocast():
    nme = NumericallyMultiscaledEmbedding(8)
    x = torch.tensor([0.5, -3.0, 2e4])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(nme(x).float(), nme(x), atol=2e-2, rtol=2e-2)
        assert torch.isfinite(nme(x.bfloat16())).all()


# ------------------------------------------------------------------------------------------------------ windows


@pytest.mark.parity("nutime.window_statistics", against="float64 loops", tolerance=1e-12)
def test_statistics_by_loops():
    x = torch.randn(2, 3, 12, generator=_generator(), dtype=torch.float64) * 5 + 2
    stats = window_statistics(x, 4)
    for b in range(2):
        for c in range(3):
            for n in range(3):
                w = x[b, c, 4 * n : 4 * n + 4].tolist()
                mean = sum(w) / 4
                std = math.sqrt(sum((v - mean) ** 2 for v in w) / 3)
                assert stats.mean[b, c, n].item() == pytest.approx(mean, abs=1e-12)
                assert stats.std[b, c, n].item() == pytest.approx(std, abs=1e-12)
                expected = [(v - mean) / (std + 1e-8) for v in w]
                assert stats.shape[b, c, n].tolist() == pytest.approx(expected, abs=1e-12)


def test_shape_ignores_unit_and_level():
    x = torch.randn(4, 1, 32, generator=_generator(), dtype=torch.float64)
    one, other = window_statistics(x, 8), window_statistics(37 * x - 5, 8)
    torch.testing.assert_close(one.shape, other.shape, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(37 * one.std, other.std)
    torch.testing.assert_close(37 * one.mean - 5, other.mean)


def test_constant_windows():
    stats = window_statistics(torch.full((1, 1, 8), 3.0, requires_grad=True), 4)
    assert stats.shape.eq(0).all()
    assert stats.std.eq(0).all()
    assert stats.mean.eq(3).all()
    assert not stats.mean.requires_grad
    assert not stats.std.requires_grad


def test_gradient_of_the_shape_touches_one_value():
    x = torch.randn(1, 1, 16, generator=_generator()).requires_grad_()
    window_statistics(x, 8).shape[0, 0, 1, 3].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 11]]


def test_statistics_refuse_bad_input():
    for x, window in (
        (torch.ones(2, 8), 4),
        (torch.ones(1, 1, 8), 1),
        (torch.ones(1, 1, 9), 4),
        (torch.ones(1, 1, 0), 4),
    ):
        with pytest.raises(ValueError, match="expected"):
            window_statistics(x, window)


@pytest.mark.parity("nutime.WindowEmbedding", against="float64 loops", tolerance=1e-9)
def test_window_embedding_by_loops():
    torch.manual_seed(0)
    embed = WindowEmbedding(window_size=4, embed_dim=6, scalar_dim=3, num_channels=2, num_scales=3).double()
    x = torch.randn(2, 2, 8, generator=_generator(), dtype=torch.float64)
    out = embed(x)
    assert out.shape == (2, 2, 6)
    for b in range(2):
        for n in range(2):
            channels = []
            for c in range(2):
                w = x[b, c, 4 * n : 4 * n + 4]
                shape = embed.shape_norm(embed.shape_proj((w - w.mean()) / (w.std() + 1e-8)))
                both = torch.cat([shape, embed.scalar(w.mean()), embed.scalar(w.std())])
                channels.append(embed.fuse_norm(embed.fuse(both)))
            expected = embed.channel_norm(embed.channel(torch.cat(channels)))
            torch.testing.assert_close(out[b, n], expected, atol=1e-9, rtol=1e-9)


def test_window_embedding_modules():
    one = WindowEmbedding()
    assert (one.shape_proj.in_features, one.shape_proj.out_features) == (16, 128)
    assert (one.fuse.in_features, one.fuse.out_features) == (160, 128)
    assert one.scalar.weight.shape == (9, 16)
    assert not hasattr(one, "channel")
    many = WindowEmbedding(num_channels=3)
    assert many.channel.in_features == 3 * 128
    assert many(torch.randn(2, 3, 32)).shape == (2, 2, 128)
    for bad in (torch.ones(2, 2, 32), torch.ones(2, 3, 30), torch.ones(3, 32)):
        with pytest.raises(ValueError, match="expected"):
            many(bad)


def test_a_token_sees_its_own_window_only():
    embed = WindowEmbedding(window_size=4, embed_dim=8, num_channels=2)
    x = torch.randn(1, 2, 16, generator=_generator())
    y = x.clone()
    y[..., 8:12] += 1
    same = (embed(x) == embed(y)).all(-1)[0]
    assert same.tolist() == [True, True, False, True]


# --------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parity("nutime.random_resized_crop", against="torch.nn.functional.interpolate", tolerance=1e-12)
def test_crop_is_interpolation_of_some_stretch():
    x = torch.randn(6, 2, 20, generator=_generator(), dtype=torch.float64)
    out = random_resized_crop(x, 13, scale=(0.3, 0.9), generator=_generator(1))
    for sample, crop in zip(x, out, strict=True):
        candidates = [
            F.interpolate(sample[None, :, s : s + length], 13, mode="linear", align_corners=False)[0]
            for length in range(6, 19)
            for s in range(20 - length + 1)
        ]
        assert min((c - crop).abs().max() for c in candidates) < 1e-12


def test_crop_lengths_and_starts_are_uniform():
    ramp = torch.arange(10.0).expand(20000, 1, 10)
    out = random_resized_crop(ramp, 2, scale=(0.5, 0.5), generator=_generator())
    starts = (out.mean(-1)[:, 0] - 2).round().long()  # five values from s: their middle is s + 2
    counts = starts.bincount(minlength=6)
    assert counts.shape == (6,)
    assert (counts / 20000 - 1 / 6).abs().max() < 0.02
    whole = random_resized_crop(ramp[:3], 10, scale=(1, 1), generator=_generator())
    torch.testing.assert_close(whole, ramp[:3])


def test_crop_draws():
    x = torch.randn(4, 2, 32, generator=_generator())
    one, two = (random_resized_crop(x, 16, generator=_generator(3)) for _ in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert not torch.equal(one, random_resized_crop(x, 16, generator=_generator(4)))
    same = random_resized_crop(x[:, :1].expand(-1, 2, -1), 16, generator=_generator())
    torch.testing.assert_close(same[:, 0], same[:, 1])
    assert random_resized_crop(torch.ones(1, 1, 3), 5, scale=(0.1, 0.1)).eq(1).all()


def test_crop_refuses_bad_input():
    x = torch.ones(2, 1, 8)
    for arguments in (
        {"x": x[0], "size": 4},
        {"x": x, "size": 0},
        {"x": x, "size": 4, "scale": (0, 1)},
        {"x": x, "size": 4, "scale": (0.9, 0.8)},
        {"x": x, "size": 4, "scale": (0.5, 1.1)},
    ):
        with pytest.raises(ValueError, match="expected"):
            random_resized_crop(**arguments)


# ----------------------------------------------------------------------------------------- encoder, pre-training


def test_positions_by_loops():
    table = nutime.sincos_1d(5, 6)
    for p in range(5):
        for i in range(3):
            assert table[p, 2 * i].item() == pytest.approx(math.sin(p / 10000 ** (2 * i / 6)), abs=1e-6)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(p / 10000 ** (2 * i / 6)), abs=1e-6)


def test_byol_trains_the_student_only():
    torch.manual_seed(0)
    encoder = NuTime(WindowEmbedding(window_size=4, embed_dim=8, scalar_dim=4), embed_dim=8, depth=1, num_heads=2)
    model = BYOL(encoder, dim=8, hidden=16)
    x = torch.randn(6, 1, 16, generator=_generator())
    loss = model(x, x + 0.1)
    loss.backward()
    assert 0 <= loss <= 4
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    torch.testing.assert_close(model(x, x + 0.1), model(x + 0.1, x), atol=1e-5, rtol=1e-5)  # both directions


def test_teacher_slows_down():
    torch.manual_seed(0)
    encoder = NuTime(WindowEmbedding(window_size=4, embed_dim=8), embed_dim=8, depth=1, num_heads=2)
    model = BYOL(encoder, dim=8, hidden=16, momentum=0.9)
    moved = []
    for step in (0, 50, 100):
        student, teacher = (m.state_dict()["1.0.weight"].clone() for m in (model.student, model.teacher.module))
        with torch.no_grad():
            model.student[1][0].weight.add_(1)
        model.update(step, 100)
        gap = model.student[1][0].weight - teacher
        moved.append(((model.teacher.module[1][0].weight - teacher) / gap).mean().item())
        assert student.shape == teacher.shape
    assert moved == pytest.approx([0.1, 0.05, 0.0], abs=1e-4)


def test_arms_differ_in_tokens_only():
    x = torch.randn(3, 1, nutime.STEPS, generator=_generator())
    for arm in nutime.EXPERIMENTS["transfer"].arms[:-1]:
        assert nutime.embedding(arm)(x).shape == (3, nutime.STEPS // nutime.WINDOW, nutime.DIM)
    instance, raw = nutime.embedding("instance"), nutime.embedding("raw")
    torch.testing.assert_close(instance(x), instance(1000 * x + 5), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(raw(x), raw(1000 * x + 5), atol=1e-2)


def test_decades():
    x, y = nutime.decades(5000, _generator())
    assert y.bincount().min() > 500
    assert ((x.abs() >= 10.0 ** (y - 4)) & (x.abs() < 10.0 ** (y - 3))).float().mean() > 0.999
    assert 0.45 < (x > 0).double().mean() < 0.55


def test_a_probe_reads_decades_from_an_untrained_embedding():
    score = {arm: nutime.run_decades(arm, seed=0, device="cpu", count=1500)["decade"] for arm in ("raw", "nine scales")}
    assert score["nine scales"] >= 85
    assert score["raw"] < 30


def test_recipe():
    recipe = nutime.recipe(None, size="miniature", batch_size=8)
    history = fit(recipe.task, steps=3)
    assert math.isfinite(history.last())
    assert recipe.batch_size == 8
    with pytest.raises(ValueError, match="size"):
        nutime.recipe(size="large")


def test_recipe_reads_a_folder(tmp_path):
    for part, rows in (("TRAIN", 6), ("TEST", 4)):
        (tmp_path / "Toy").mkdir(exist_ok=True)
        lines = ["\t".join([str(i % 2), *(f"{v:.3f}" for v in torch.randn(40).tolist())]) for i in range(rows)]
        (tmp_path / "Toy" / f"Toy_{part}.tsv").write_text("\n".join(lines) + "\n")
    recipe = nutime.recipe(tmp_path, size="miniature", batch_size=4)
    views = recipe.task.batch(_generator())
    assert views[0].shape == (4, 1, 64)
    assert "6 series" in recipe.about
