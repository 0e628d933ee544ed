"""ExtreMA: masks, class attention, encoder and loss against loops, closed forms and hand-computed cases."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sslref.data import DataError
from sslref.nn.mae import patchify, sincos_2d
from sslref.papers import extrema
from sslref.papers.extrema import (
    ClassAttentionBlock,
    Extrema,
    ExtremaEncoder,
    ema_momentum,
    extrema_loss,
    sample_masks,
)
from sslref.train import fit


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=gen(seed))


def encoder(num_tokens=16, token_dim=5, **options):
    return extrema.seeded(0, lambda: ExtremaEncoder(num_tokens, token_dim, embed_dim=16, **options)).double()


# ----------------------------------------------------------------------------------------------------- masks


@pytest.mark.parity("extrema.sample_masks", against="the paper's numbers", tolerance=0.0)
def test_shapes_of_the_paper():
    masks = sample_masks(3, 196, generator=gen())
    assert masks.shape == (5, 3, 39)
    assert masks.dtype == torch.int64
    for b in range(3):
        assert len(set(masks[:, b].flatten().tolist())) == 195
    for ratio, count in ((0.75, 49), (0.8, 39), (0.9, 19)):
        assert sample_masks(1, 196, mask_ratio=ratio, num_masks=1).shape[2] == count
    assert sample_masks(1, 10, mask_ratio=0.9, num_masks=1).shape == (1, 1, 1)
    assert int(10 * (1 - 0.9)) == 0  # what the guard is for


@given(st.integers(1, 4), st.integers(1, 30), st.floats(0, 0.95), st.booleans(), st.integers(0, 1000))
def test_views_of_any_size(batch, num_tokens, ratio, disjoint, seed):
    count = int(num_tokens * (1 - ratio) + 1e-6)
    if count < 1:
        with pytest.raises(ValueError, match="mask_ratio"):
            sample_masks(batch, num_tokens, mask_ratio=ratio, num_masks=1)
        return
    views = num_tokens // count if disjoint else 3
    options = {"mask_ratio": ratio, "num_masks": views, "disjoint": disjoint}
    masks = sample_masks(batch, num_tokens, **options, generator=gen(seed))
    assert masks.shape == (views, batch, count)
    assert 0 <= masks.min() <= masks.max() < num_tokens
    for view, b in itertools.product(range(views), range(batch)):
        assert len(set(masks[view, b].tolist())) == count
    if disjoint:
        assert all(len(set(masks[:, b].flatten().tolist())) == views * count for b in range(batch))
    assert torch.equal(masks, sample_masks(batch, num_tokens, **options, generator=gen(seed)))


def test_disjoint_views_are_pieces_of_one_order():
    masks = sample_masks(7, 12, mask_ratio=0.75, num_masks=4, generator=gen(3))
    order = torch.rand(1, 7, 12, generator=gen(3)).argsort(2)[0]
    for i in range(4):
        assert torch.equal(masks[i], order[:, 3 * i : 3 * i + 3])


def test_every_picture_has_an_order_of_its_own_and_every_token_its_chance():
    masks = sample_masks(4000, 8, mask_ratio=0.75, num_masks=2, generator=gen())
    assert (masks[:, :1] != masks).any()
    share = F.one_hot(masks[1]).sum((0, 1)) / 4000
    torch.testing.assert_close(share, torch.full((8,), 0.25), atol=0.03, rtol=0)
    free = sample_masks(4000, 8, mask_ratio=0.75, num_masks=2, disjoint=False, generator=gen())
    met = (F.one_hot(free[0]).sum(1) * F.one_hot(free[1]).sum(1)).sum(1)
    assert met.double().mean().item() == pytest.approx(2 * 2 / 8, abs=0.04)  # independent draws meet by chance


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((0, 9), {}, "batch"),
        ((2, 0), {}, "num_tokens"),
        ((2, 9), {"num_masks": 0}, "num_masks"),
        ((2, 9), {"mask_ratio": 1.0}, "mask_ratio"),
        ((2, 9), {"mask_ratio": -0.1}, "mask_ratio"),
        ((2, 9), {"mask_ratio": math.nan}, "mask_ratio"),
        ((2, 4), {"mask_ratio": 0.8}, "mask_ratio"),
        ((2, 16), {"mask_ratio": 0.75, "num_masks": 5}, "num_masks: expected at most 4"),
    ],
)
def test_masks_refuse(arguments, options, name):
    with pytest.raises(ValueError, match=name):
        sample_masks(*arguments, **options)


def test_device_of_masks():
    assert sample_masks(2, 10, device="meta").device.type == "meta"
    assert sample_masks(2, 10, generator=gen(), device="cpu").device.type == "cpu"


@pytest.mark.parity("extrema.view_cost", against="closed form", tolerance=1e-12)
def test_cost_of_the_views():
    assert extrema.view_cost(196, mask_ratio=0.0) == (1, 1)
    five = extrema.view_cost(196, mask_ratio=0.8, num_masks=5)
    assert five.linear == pytest.approx(195 / 196)
    assert five.quadratic == pytest.approx(5 * 39**2 / 196**2)
    assert five.quadratic == pytest.approx(1 / 5, abs=0.003)
    assert extrema.token_passes(16, mask_ratio=0.75, num_masks=1) == 16 + 3 * 4
    for arms in (("r = 0", "r = 0.75, 4 views"), ("r = 0.5, 2 views", "r = 0.75, longer")):
        costs = []
        for ratio, views, length, _ in (extrema.ARMS[arm] for arm in arms):
            costs.append(length * extrema.token_passes(16, mask_ratio=ratio, num_masks=views))
        assert costs == pytest.approx([64, 64])


# ------------------------------------------------------------------------------------------- class attention


def class_block_by_hand(weights, tokens, cls, num_heads):
    """The block's formula for one picture, head by head and row by row."""

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name, x):
        return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[
            f"{name}.bias"
        ]

    u = [norm("norm1", x) for x in (cls, *tokens)]
    q, keys, values = linear("attn.q", u[0]), [linear("attn.k", x) for x in u], [linear("attn.v", x) for x in u]
    width, out = len(q) // num_heads, []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = [math.exp((q[part] @ k[part]).item() / math.sqrt(width)) for k in keys]
        out.append(sum(s / sum(scores) * v[part] for s, v in zip(scores, values, strict=True)))
    c = cls + weights["gamma_1"] * linear("attn.proj", torch.cat(out))
    x = linear("mlp.fc1", norm("norm2", c))
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))  # exact GELU
    return c + weights["gamma_2"] * linear("mlp.fc2", x)


@pytest.mark.parity("extrema.ClassAttentionBlock", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_class_block_equals_its_formula(num_heads):
    block = ClassAttentionBlock(8, num_heads=num_heads, mlp_ratio=3.0, layer_scale=0.7).double()
    names = [
        f"{m}.{p}" for m in ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2") for p in ("weight", "bias")
    ]
    names += [f"mlp.{m}.{p}" for m in ("fc1", "fc2") for p in ("weight", "bias")]
    assert set(block.state_dict()) == {*names, "gamma_1", "gamma_2"}
    assert block.mlp.fc1.weight.shape == (24, 8)
    torch.testing.assert_close(block.gamma_2.detach(), torch.full((8,), 0.7, dtype=torch.float64), atol=1e-7, rtol=0)
    block.load_state_dict({name: rows(*w.shape, seed=i) for i, (name, w) in enumerate(block.state_dict().items())})
    tokens, cls = rows(3, 5, 8), rows(3, 1, 8, seed=1)
    out = block(tokens, cls)
    assert out.shape == (3, 1, 8)
    for b in range(3):
        expected = class_block_by_hand(block.state_dict(), tokens[b], cls[b, 0], num_heads)
        torch.testing.assert_close(out[b, 0], expected, rtol=0, atol=1e-12)
    weights = block.attn.weights(block.joined(tokens, cls))
    assert weights.shape == (3, num_heads, 6)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, num_heads, dtype=torch.float64))
    by_weights = (weights[..., None] * block.attn._heads(block.attn.v, block.joined(tokens, cls))).sum(2).flatten(1)
    torch.testing.assert_close(block.attn.proj(by_weights), block.attn(block.joined(tokens, cls))[:, 0])


def test_class_block_without_scale_is_the_identity_and_refuses():
    block = ClassAttentionBlock(8, num_heads=2, layer_scale=0.0)
    tokens, cls = torch.randn(2, 5, 8), torch.randn(2, 1, 8)
    assert torch.equal(block(tokens, cls), cls)
    with pytest.raises(ValueError, match="num_heads"):
        ClassAttentionBlock(8, num_heads=3)


# -------------------------------------------------------------------------------------------------- encoder


def test_order_of_tokens_does_not_matter():
    net, tokens, order = encoder(), rows(2, 16, 5), torch.randperm(16, generator=gen())
    straight, shuffled = net(tokens), net(tokens, order.expand(2, -1))
    torch.testing.assert_close(shuffled.cls, straight.cls)
    torch.testing.assert_close(shuffled.tokens, straight.tokens[:, order])
    torch.testing.assert_close(net(tokens, torch.arange(16).expand(2, -1)).cls, straight.cls)
    moved = net(tokens[:, order]).cls  # a picture whose patches change places is another picture
    assert not torch.allclose(moved, straight.cls)


def test_the_class_vector_does_not_touch_the_tokens():
    net, tokens = encoder(), rows(2, 16, 5)
    before = net(tokens)
    with torch.no_grad():
        net.cls_token.add_(rows(1, 1, 16))
    after = net(tokens)
    assert torch.equal(before.tokens, after.tokens)
    assert not torch.allclose(before.cls, after.cls)


def test_gradient_reaches_the_visible_tokens_alone():
    net, tokens = encoder(), rows(2, 16, 5).requires_grad_()
    visible = sample_masks(2, 16, mask_ratio=0.7, num_masks=3, generator=gen())
    encoded = net(tokens, visible)
    for view, b in itertools.product(range(3), range(2)):
        (gradient,) = torch.autograd.grad(
            encoded.cls[2 * view + b].square().sum() * 3 + encoded.cls[2 * view + b].sum(), tokens, retain_graph=True
        )
        seen = gradient.abs().sum(2) > 0
        expected = torch.zeros(2, 16, dtype=torch.bool)
        expected[b, visible[view, b]] = True
        assert torch.equal(seen, expected)


@pytest.mark.parity("extrema.ExtremaEncoder", against="one view of one picture at a time", tolerance=1e-12)
def test_views_are_mask_major():
    net, tokens = encoder(class_depth=1), rows(3, 16, 5)
    visible = sample_masks(3, 16, mask_ratio=0.75, num_masks=4, generator=gen())
    encoded = net(tokens, visible)
    assert encoded.cls.shape == (12, 16)
    assert encoded.tokens.shape == (12, 4, 16)
    attention = net.attention(tokens, visible)
    assert attention.shape == (12, 4, 5)
    for view, b in itertools.product(range(4), range(3)):
        x = (net.embed(tokens[b]) + net.positions)[visible[view, b]][None]  # position first, then the choice
        x = net.blocks(x)
        c = net.class_blocks[0](x, net.cls_token)
        torch.testing.assert_close(encoded.cls[3 * view + b], net.norm(c)[0, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(encoded.tokens[3 * view + b], net.norm(x)[0], rtol=0, atol=1e-12)
        one = net.attention(tokens[b : b + 1], visible[view, b][None])
        torch.testing.assert_close(attention[3 * view + b], one[0])
    same = net(tokens, visible[0])
    torch.testing.assert_close(same.cls, encoded.cls[:3])


def test_positions_are_fixed():
    net = encoder()
    torch.testing.assert_close(net.positions, sincos_2d(16, (4, 4)).float().double())
    assert "positions" not in net.state_dict()
    line = encoder(6).positions
    for n, i in itertools.product(range(6), range(8)):
        angle = n * 10000 ** (-i / 8)
        assert line[n, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert line[n, 8 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_encoder_refuses():
    net, tokens = encoder(), rows(2, 16, 5)
    for bad in (tokens[:, :15], tokens[..., :4], tokens[0]):
        with pytest.raises(ValueError, match=r"tokens: expected shape \(B, 16, 5\)"):
            net(bad)
    for shape in ((3, 4), (2, 3, 4), (4,), (2, 0)):
        with pytest.raises(ValueError, match="visible: expected shape"):
            net(tokens, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"visible.*torch.bool"):
        net(tokens, torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_heads"):
        ExtremaEncoder(16, 5, embed_dim=16, num_heads=3)


def test_encoder_under_autocast():
    net, tokens = encoder().float(), rows(2, 16, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(tokens, sample_masks(2, 16, generator=gen()))
    exact = net(tokens, sample_masks(2, 16, generator=gen()))
    assert rough.cls.isfinite().all()
    torch.testing.assert_close(rough.cls.float(), exact.cls, atol=0.1, rtol=0.1)


# ----------------------------------------------------------------------------------------------------- loss


@pytest.mark.parity("extrema.extrema_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("views", [1, 3])
def test_loss_equals_the_sum_of_the_paper(views):
    q, k = rows(views * 4, 6), rows(4, 6, seed=1)
    total = 0.0
    for i, b in itertools.product(range(views), range(4)):
        a, t = q[4 * i + b], k[b]
        total += (a / a.norm() - t / t.norm()).square().sum().item() / 4 / views
    assert extrema_loss(q, k, num_masks=views).item() == pytest.approx(total, abs=1e-12)
    assert extrema_loss(2 * q, k / 3, num_masks=views).item() == pytest.approx(total, abs=1e-12)


def test_loss_of_known_pairs():
    k = torch.tensor([[1.0, 0], [0, 2]])
    assert extrema_loss(k.repeat(3, 1), k, num_masks=3).item() == pytest.approx(0, abs=1e-6)
    assert extrema_loss(k.flip(1), k, num_masks=1).item() == pytest.approx(2)
    assert extrema_loss(-k, k, num_masks=1).item() == pytest.approx(4)
    # mask-major: interleaved rows meet the wrong pictures
    assert extrema_loss(k.repeat_interleave(2, 0), k, num_masks=2).item() == pytest.approx(1)


def test_the_teacher_gets_no_gradient():
    q, k = rows(4, 3).requires_grad_(), rows(2, 3, seed=1).requires_grad_()
    extrema_loss(q, k, num_masks=2).backward()
    assert k.grad is None
    assert q.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda q: extrema_loss(q, k, num_masks=2), rows(4, 3).requires_grad_())


@pytest.mark.parametrize(
    ("q", "k", "views", "name"),
    [((6, 4), (3, 4), 3, "q, k"), ((6, 4), (3, 5), 2, "q, k"), ((0, 4), (0, 4), 1, "q, k"), ((6,), (3,), 2, "q, k"),
     ((6, 4), (3, 4), 0, "num_masks")],
)  # fmt: skip
def test_loss_refuses(q, k, views, name):
    with pytest.raises(ValueError, match=name):
        extrema_loss(torch.randn(q), torch.randn(k), num_masks=views)


@pytest.mark.parity("extrema.ema_momentum", against="closed form", tolerance=1e-12)
def test_momentum():
    assert [ema_momentum(s, 100) for s in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0], abs=1e-12)
    for s in range(0, 101, 7):
        expected = 1 - 0.5 * (1 + math.cos(math.pi * s / 100)) * (1 - 0.9)
        assert ema_momentum(s, 100, base=0.9) == pytest.approx(expected, abs=1e-12)
    for step in (-1, 101):
        with pytest.raises(ValueError, match="step"):
            ema_momentum(step, 100)


# ---------------------------------------------------------------------------------------------------- model


def test_heads():
    kinds = [type(m).__name__ for m in extrema.head(4, 6, 3, num_layers=3)]
    assert kinds == ["Linear", "LayerNorm", "GELU", "Linear", "LayerNorm", "GELU", "Linear"]
    assert extrema.head(4, 6, 3, num_layers=2, norm="batch")(torch.randn(5, 4)).shape == (5, 3)
    assert isinstance(extrema.head(4, 6, 3, num_layers=2, norm="batch")[1], torch.nn.BatchNorm1d)
    with pytest.raises(ValueError, match="norm"):
        extrema.head(4, 6, 3, num_layers=2, norm="none")


def small(norm="layer", **options):
    return extrema.seeded(
        0, lambda: Extrema(ExtremaEncoder(16, 4, embed_dim=8), hidden=8, out_dim=6, norm=norm, **options)
    )


def test_model():
    model, tokens = small(), torch.randn(3, 16, 4)
    visible = sample_masks(3, 16, mask_ratio=0.75, num_masks=4)
    q, k = model(tokens, visible)
    assert q.shape == (12, 6)
    assert k.shape == (3, 6)
    assert q.requires_grad
    assert not k.requires_grad
    torch.testing.assert_close(k, model.student.head[0](model.student.encoder(tokens).cls))  # it starts as a copy
    values = extrema.predict_whole(model, (tokens, visible.transpose(0, 1)))
    torch.testing.assert_close(values["loss"], extrema_loss(q, k, num_masks=4))
    unit = F.normalize(k, dim=1)
    assert values["spread"].item() == pytest.approx(
        (unit - unit.mean(0)).square().sum(1).mean().sqrt().item(), rel=1e-5
    )


def test_followed_are_encoder_and_projector():
    model = small(momentum=0.5)
    before = {n: w.clone() for n, w in model.teacher.module.named_parameters()}
    with torch.no_grad():
        for w in model.student.parameters():
            w.add_(1)
    model.follow(0, 10)
    momentum = ema_momentum(1, 10, base=0.5)
    for name, w in model.teacher.module.named_parameters():
        torch.testing.assert_close(w, before[name] + 1 - momentum)
    assert len(before) == sum(
        w.requires_grad for w in (*model.student.encoder.parameters(), *model.student.head[0].parameters())
    )


@pytest.mark.differs(
    "extrema",
    paper="the teacher is a moving average of the student",
    official="moved at the start of a step, before its forward pass",
    here="moved after a step with the next step's momentum: the same teachers at every forward pass",
)
def test_moving_after_the_step_gives_the_same_teachers():
    weights = rows(6)  # of the student at the start of each step
    official, seen = weights[0], []
    for s in range(5):
        m = ema_momentum(s, 5)
        official = m * official + (1 - m) * weights[s]
        seen.append(official)
    here = weights[0]
    for s in range(5):
        torch.testing.assert_close(here, seen[s])
        m = ema_momentum(s + 1, 5)
        here = m * here + (1 - m) * weights[s + 1]
    torch.testing.assert_close(here, seen[-1])


@pytest.mark.differs(
    "extrema",
    paper="LayerNorm in projector and predictor",
    official="LayerNorm in projector and predictor",
    here='LayerNorm by default; the miniature asks for norm="batch", without which it collapses',
)
def test_norm_of_the_heads_is_a_choice():
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in small().modules())
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in small("batch").student.modules()) == 3


# ------------------------------------------------------------------------------------- the exact variance


@pytest.mark.parity("extrema.moments", against="all orders of six tokens", tolerance=1e-10)
def test_moments_are_those_of_all_orders():
    subsets = torch.combinations(torch.arange(6), 2)
    gradients = rows(15, 4)
    place = {tuple(s): i for i, s in enumerate(subsets.tolist())}
    found = extrema.moments(gradients, subsets)
    for views in (1, 2, 3):
        means = []
        for order in itertools.permutations(range(6)):
            chosen = [place[tuple(sorted(order[2 * i : 2 * i + 2]))] for i in range(views)]
            means.append(gradients[chosen].mean(0))
        expected = torch.stack(means).var(0, correction=0).sum().item()
        assert found.of_mean(views, disjoint=True) == pytest.approx(expected, abs=1e-10)
    pairs = torch.stack([(gradients[a] + gradients[b]) / 2 for a in range(15) for b in range(15)])
    expected = pairs.var(0, correction=0).sum().item()
    assert found.of_mean(2, disjoint=False) == pytest.approx(expected, abs=1e-10)


def test_sums_over_tokens_have_no_variance_where_views_cover_all():
    subsets = torch.combinations(torch.arange(6), 2)
    gradients = rows(6, 4)[subsets].sum(1)
    found = extrema.moments(gradients, subsets)
    assert found.of_mean(3, disjoint=True) == pytest.approx(0, abs=1e-12)
    assert found.of_mean(3, disjoint=False) > 0.1


@pytest.mark.parity("extrema.view_gradients", against="backward of one view at a time", tolerance=1e-10)
def test_gradients_of_all_views():
    model, tokens = small().double(), rows(1, 16, 4)
    subsets = torch.combinations(torch.arange(16), 4)[::300]
    gradients = extrema.view_gradients(model, tokens, subsets)
    for row, visible in zip(gradients, subsets, strict=True):
        model.zero_grad()
        q, k = model(tokens, visible[None])
        extrema_loss(q, k, num_masks=1).backward()
        expected = torch.cat([w.grad.flatten() for w in model.student.parameters()])
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------- training and claims


def test_digits():
    data, again, other = extrema.digits(3), extrema.digits(3), extrema.digits(4)
    assert [len(part.labels) for part in data] == [1200, 597]
    assert torch.equal(data.train.tokens, again.train.tokens)
    assert not torch.equal(data.train.labels, other.train.labels)
    assert data.test.tokens.shape == (597, 16, 4)
    torch.testing.assert_close(data.train.tokens.mean((0, 1)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.train.tokens.std((0, 1)), torch.ones(4), atol=1e-3, rtol=0)
    one = patchify(data.test.images, 2)
    scale = (one[:5] - one[5:10]) / (data.test.tokens[:5] - data.test.tokens[5:10])
    assert scale.nan_to_num(0).flatten(0, 1).amax(0).isfinite().all()


def test_arms_are_paired():
    kept = {arm: extrema.pretrain(arm, steps=1, batch_size=8) for arm in extrema.ARMS}
    assert not any(other.model.training for other in kept.values())
    start = kept["random weights"].model.student.encoder.embed.weight
    for arm, other in kept.items():
        assert torch.equal(kept["r = 0"].digits.train.tokens, other.digits.train.tokens)
        assert (other.history is None) == (arm == "random weights")
    again = extrema.seeded(0, lambda: ExtremaEncoder(16, 4, **extrema.NET)).embed.weight
    assert torch.equal(start, again)
    # in step 0 the learning rate is 1: the warm-up of so short a run has no step
    assert not torch.equal(kept["r = 0.75"].model.student.encoder.embed.weight, start)
    assert kept["r = 0.75, longer"].history.steps[-1] == 2
    scores = extrema.measure(kept["r = 0"].model, kept["r = 0"].digits)
    assert set(scores) == {"probe", "token_probe", "found", "spread"}
    assert 0 < scores["probe"] < 100
    with pytest.raises(ValueError, match=r"arm: expected one of random weights.*'none'"):
        extrema.pretrain("none")


def one_step(recipe):
    assert math.isfinite(fit(recipe.task, steps=1).last())
    return recipe


def test_recipes(cifar10, tmp_path):
    recipe = one_step(extrema.recipe(batch_size=8))
    assert (recipe.steps, recipe.batch_size) == (350, 8)
    assert "1,200 digits" in recipe.about
    recipe = extrema.recipe(cifar10, batch_size=4)
    assert recipe.steps == 200 * 40 // 4
    tokens, visible = recipe.task.batch(gen())
    assert tokens.shape == (4, 64, 48)
    assert visible.shape == (4, 5, 12)
    matrices, others = recipe.task.optimizer(recipe.task.model).param_groups
    assert matrices["lr"] == pytest.approx(1.5e-4 * 4 / 256)
    assert (matrices["betas"], matrices["weight_decay"], others["weight_decay"]) == ((0.9, 0.95), 0.1, 0.0)
    with pytest.raises(ValueError, match="size: expected"):
        extrema.recipe(size="huge")
    with pytest.raises(ValueError, match="source: expected a path"):
        extrema.recipe(size="paper")
    with pytest.raises(DataError, match="expected a folder with one subfolder"):
        extrema.recipe(tmp_path / "nothing")


def test_fit_leaves_the_teacher_where_the_schedule_says():
    recipe = extrema.recipe(batch_size=8)
    fit(recipe.task, steps=3)
    model = recipe.task.model
    assert all(not w.requires_grad and w.grad is None for w in model.teacher.parameters())
    student, teacher = model.student.encoder.embed.weight, model.teacher.module.encoder.embed.weight
    assert not torch.equal(student, teacher)
