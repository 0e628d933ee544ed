"""EVA: against loops in float64, closed forms, and the cases that one can do by hand."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sslref import masked
from sslref.data import embedded
from sslref.nn import masks, seeded
from sslref.nn.mae import patchify, unpatchify
from sslref.papers import eva
from sslref.papers.eva import EVA, QVBiasAttention, feature_loss, mask_tokens, scale_gradient
from sslref.train import fit


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=_generator(seed), dtype=dtype)


def _mask(*shape, seed=0):
    mask = torch.rand(shape, generator=_generator(seed)) < 0.5
    mask[0, 0] = True
    return mask


# ------------------------------------------------------------------------------------------------------------ loss


@pytest.mark.parity("eva.feature_loss", against="float64 loops", tolerance=1e-12)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_loss_by_loops(batch, places, width, seed):
    pred, target = _normal(batch, places, width, seed=seed), _normal(batch, places, width, seed=seed + 1)
    mask, cosines = _mask(batch, places, seed=seed), []
    for b in range(batch):
        for n in range(places):
            if mask[b, n]:
                p, t = pred[b, n].tolist(), target[b, n].tolist()
                cosines.append(sum(x * y for x, y in zip(p, t, strict=True)) / math.hypot(*p) / math.hypot(*t))
    # over the hidden tokens of the whole batch: pictures that hide more count for more
    assert feature_loss(pred, target, mask).item() == pytest.approx(-sum(cosines) / len(cosines), abs=1e-12)


def test_loss_by_hand():
    pred = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    every = torch.ones(1, 3, dtype=torch.bool)
    assert feature_loss(pred, target, every).item() == pytest.approx(-0.5690, abs=5e-5)
    assert feature_loss(pred, target, torch.tensor([[False, False, True]])).item() == pytest.approx(-0.7071, abs=5e-5)


def test_loss_is_a_cosine():
    pred, target, mask = _normal(2, 5, 4), _normal(2, 5, 4, seed=1), _mask(2, 5)
    assert feature_loss(target, target, mask).item() == pytest.approx(-1)
    assert feature_loss(-target, target, mask).item() == pytest.approx(1)
    torch.testing.assert_close(feature_loss(7 * pred, 0.1 * target, mask), feature_loss(pred, target, mask))
    assert feature_loss(0 * pred, target, mask) == 0


def test_gradient_only_at_hidden_places_across_the_prediction_and_never_into_the_target():
    pred, target, mask = _normal(2, 5, 4).requires_grad_(), _normal(2, 5, 4, seed=1).requires_grad_(), _mask(2, 5)
    feature_loss(pred, target, mask).backward()
    assert target.grad is None
    assert torch.equal(pred.grad.abs().sum(-1) > 0, mask)
    assert (pred.grad * pred).sum(-1).abs().max() < 1e-15  # no length is learned
    zero = torch.zeros(1, 1, 3, requires_grad=True)
    feature_loss(zero, torch.ones(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)).backward()
    assert zero.grad.isfinite().all()


def test_loss_in_half_precision():
    pred, target, mask = _normal(4, 9, 64), _normal(4, 9, 64, seed=1), _mask(4, 9)
    for dtype in (torch.bfloat16, torch.float16):
        low = pred.to(dtype), target.to(dtype)
        exact = feature_loss(low[0].double(), low[1].double(), mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = feature_loss(*low, mask)
        assert out.dtype == torch.float32
        assert out.item() == pytest.approx(exact.item(), abs=1e-6)


def test_loss_errors():
    x, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="target: expected the shape of pred"):
        feature_loss(x, x[:1], mask)
    with pytest.raises(ValueError, match="tokens, mask: expected shapes"):
        feature_loss(x, x, mask[:, :2])
    with pytest.raises(ValueError, match="tokens, mask: expected shapes"):
        feature_loss(x, x, mask.float())
    with pytest.raises(ValueError, match="mask: expected at least one hidden token"):
        feature_loss(x, x, ~mask)


# ----------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parity("eva.mask_tokens", against="float64 loops", tolerance=0.0)
def test_mask_tokens_by_loops():
    tokens, token, mask = _normal(2, 5, 3), _normal(3, seed=1), _mask(2, 5)
    before, out = tokens.clone(), mask_tokens(tokens, mask, token)
    for b, n in itertools.product(range(2), range(5)):
        assert torch.equal(out[b, n], token if mask[b, n] else tokens[b, n])
    assert torch.equal(tokens, before)
    assert mask_tokens(tokens.bfloat16(), mask, token).dtype == torch.bfloat16
    for bad in (mask[:1], mask[:, :4], mask[..., None], mask.long()):
        with pytest.raises(ValueError, match="tokens, mask: expected shapes"):
            mask_tokens(tokens, bad, token)


@pytest.mark.parity("eva.scale_gradient", against="closed form", tolerance=1e-12)
def test_scale_gradient():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = _normal(50, dtype=dtype).mul(1e3).requires_grad_()
        for alpha in (0.0, 0.1, 1.0):
            assert torch.equal(scale_gradient(x, alpha), x)
    x, weight = _normal(7).requires_grad_(), _normal(7, seed=1)
    (grad,) = torch.autograd.grad((scale_gradient(x) * weight).sum(), x)
    torch.testing.assert_close(grad, 0.1 * weight, rtol=1e-12, atol=0)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha: expected a number in"):
            scale_gradient(x, alpha)


def test_block_mask_is_the_shared_one():
    assert eva.block_mask is masks.block_mask


@pytest.mark.differs(
    "eva",
    paper="40 % of the patches are hidden",
    official="105 of 256 patches are wanted, which is 41 %",
    here="int(0.4 * 256) = 102, unless num_masked says 105",
)
def test_how_many_are_hidden():
    count = eva.block_mask(300, (16, 16), generator=_generator()).sum(1)
    assert count.max() == 102
    count = eva.block_mask(300, (16, 16), num_masked=105, generator=_generator()).sum(1)
    assert count.max() == 105
    assert count.double().mean() == pytest.approx(104.5, abs=1.5)


def _attention(dim=6, heads=2):
    layer = seeded(0, lambda: QVBiasAttention(dim, num_heads=heads)).double()
    nn.init.normal_(layer.q_bias, generator=_generator(1))
    nn.init.normal_(layer.v_bias, generator=_generator(2))
    return layer


@pytest.mark.parity("eva.QVBiasAttention", against="float64 loops", tolerance=1e-12)
def test_attention_by_loops():
    layer, x = _attention(), _normal(2, 4, 6)
    out = layer(x)
    wq, wk, wv = layer.qkv.weight.unflatten(0, (3, 6))
    for b in range(2):
        q = [wq @ x[b, n] + layer.q_bias for n in range(4)]
        k = [wk @ x[b, n] for n in range(4)]
        v = [wv @ x[b, n] + layer.v_bias for n in range(4)]
        for n in range(4):
            heads = []
            for part in (slice(0, 3), slice(3, 6)):
                weights = [math.exp((q[n][part] @ k[m][part]).item() / math.sqrt(3)) for m in range(4)]
                heads.append(sum(w * v[m][part] for m, w in enumerate(weights)) / sum(weights))
            torch.testing.assert_close(out[b, n], layer.proj(torch.cat(heads)), rtol=0, atol=1e-12)


def test_a_key_bias_would_change_nothing():
    layer, x, bias = _attention(), _normal(2, 4, 6), _normal(6, seed=5)
    qkv = F.linear(x, layer.qkv.weight, torch.cat((layer.q_bias, bias, layer.v_bias)))
    q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    shifted = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(shifted, layer(x), rtol=0, atol=1e-10)


def test_attention_parameters_and_precision():
    layer = QVBiasAttention(8, num_heads=2)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "q_bias": (8,), "v_bias": (8,), "qkv.weight": (24, 8), "proj.weight": (8, 8), "proj.bias": (8,),
    }  # fmt: skip
    x = 40 * _normal(2, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        qkv = F.linear(x, layer.qkv.weight, torch.cat((layer.q_bias, 0 * layer.q_bias, layer.v_bias)))
        q, k, v = qkv.double().unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer(x), layer.proj(mixed.bfloat16()), rtol=0.02, atol=0.02)
    low = layer.bfloat16()
    assert low(x.bfloat16()).dtype == torch.bfloat16
    for heads in (3, 0):
        with pytest.raises(ValueError, match="num_heads: expected a divisor of the width 8"):
            QVBiasAttention(8, num_heads=heads)


# --------------------------------------------------------------------------------------------------------- student


def _student(**options):
    sizes = {"image_size": 16, "embed_dim": 12, "num_heads": 2, "target_dim": 5} | options
    return seeded(0, lambda: EVA(**sizes)).double()


def _pictures(batch=2, side=16, seed=0):
    return torch.rand(batch, 3, side, side, generator=_generator(seed), dtype=torch.float64)


def test_what_is_hidden_changes_no_prediction():
    model, images, mask = _student(), _pictures(), _mask(2, 16)
    patches = patchify(images, 4)
    other = unpatchify(torch.where(mask[..., None], 1 - patches, patches), 4)
    out = model(images, mask)
    assert out.shape == (2, 16, 5)
    torch.testing.assert_close(out, model(other, mask))
    assert not torch.allclose(out, model(unpatchify(torch.where(mask[..., None], patches, 1 - patches), 4), mask))
    torch.testing.assert_close(model(images), model(images, torch.zeros_like(mask)))
    assert not torch.allclose(model(images), out)


@pytest.mark.parity("eva.EVA", against="the steps written out", tolerance=1e-12)
def test_forward_written_out():
    model, images, mask = _student(depth=2), _pictures(), _mask(2, 16)
    weight, bias = model.patch_embed.weight, model.patch_embed.bias
    x = torch.empty(2, 17, 12, dtype=torch.float64)
    for b in range(2):
        x[b, 0] = model.class_token + model.positions[0]
        for n in range(16):
            r, c = 4 * (n // 4), 4 * (n % 4)
            token = (weight * images[b, :, r : r + 4, c : c + 4]).sum((1, 2, 3)) + bias
            x[b, 1 + n] = (model.mask_token if mask[b, n] else token) + model.positions[1 + n]
    for block in model.blocks:
        assert isinstance(block.attention, QVBiasAttention)
        x = x + block.attention(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    tokens = model.norm(x)[:, 1:]
    torch.testing.assert_close(model.encode(images, mask), tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(images, mask), model.head(tokens), rtol=0, atol=1e-12)


def test_first_weights():
    model = _student(embed_dim=128, num_heads=4, depth=3)
    for layer, block in enumerate(model.blocks, 1):
        for last, width in (
            (block.attention.proj, 128),
            (block.mlp[-1], 512),
        ):  # PyTorch: uniform up to 1 / sqrt(width)
            largest = last.weight.abs().max().item()
            assert largest == pytest.approx(1 / math.sqrt(width * 2 * layer), rel=0.01)
    alike = [_student(target_dim=dim).state_dict() for dim in (5, 9)]
    assert all(torch.equal(alike[0][name], alike[1][name]) for name in alike[0] if not name.startswith("head"))


def test_the_first_layer_can_be_slowed():
    grads = []
    for alpha in (1.0, 0.1, 0.0):
        model = _student(patch_gradient=alpha)
        model(_pictures(), _mask(2, 16)).square().sum().backward()
        grads.append((model.patch_embed.weight.grad, model.mask_token.grad))
    torch.testing.assert_close(grads[1][0], 0.1 * grads[0][0])
    torch.testing.assert_close(grads[1][1], grads[0][1])
    assert (grads[2][0] == 0).all()


def test_student_defaults_errors_and_autocast():
    model = EVA()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.rand(1, 3, 32, 32), torch.rand(1, 64) < 0.4)
    assert out.isfinite().all()
    for images in (torch.rand(1, 3, 16, 16), torch.rand(1, 1, 32, 32), torch.rand(3, 32, 32)):
        with pytest.raises(ValueError, match="images: expected shape"):
            model(images)
    with pytest.raises(ValueError, match="mask: expected shapes"):
        model(torch.rand(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="image_size: expected a multiple"):
        EVA(image_size=30)
    with pytest.raises(ValueError, match="num_heads"):
        EVA(num_heads=5)


# --------------------------------------------------------------------------------------------------------- teacher


def test_words_of_the_emoji_that_are_learned_from():
    data = masked.drawings(0)
    known, rows = eva.words_of(data)
    emoji = embedded.emoji("all")
    index = {code: i for i, code in enumerate(emoji.codes)}
    learned = sorted(index[code] for code in data.codes[0])
    assert len(rows) == len(learned) == 1400
    count = {}
    for row, i in zip(rows.tolist(), learned, strict=True):
        words = set(re.findall("[a-z]+", " ".join([emoji.names[i], *emoji.tags[i]]).lower()))
        assert {known[n - 1] for n in row if n} == words & set(known)
        for word in words:
            count[word] = count.get(word, 0) + 1
    assert set(known) == {word for word, times in count.items() if times >= 2}
    # row i are the words of pictures i and 1400 + i
    grinning = learned.index(index["1F600"]) if "1F600" in data.codes[0] else 0
    assert torch.equal(data.pool[grinning], emoji.images()[learned[grinning]])
    twin = embedded.emoji("all", vendor="twitter").images()[learned[grinning]]
    assert torch.equal(data.pool[1400 + grinning], twin)


@pytest.mark.parity("eva.image_text_loss", against="float64 loops", tolerance=1e-12)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_image_text_loss_by_loops(batch, width, seed):
    images, texts = _normal(batch, width, seed=seed), _normal(batch, width, seed=seed + 1)
    names = torch.randint(3, (batch,), generator=_generator(seed))
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (images, texts))
    total = 0.0
    for i in range(batch):
        others = [j for j in range(batch) if j == i or names[j] != names[i]]
        for rows, columns in ((a, b), (b, a)):
            scores = {j: (rows[i] @ columns[j]).item() / 0.2 for j in others}
            total += math.log(sum(math.exp(s) for s in scores.values())) - scores[i]
    loss = eva.image_text_loss(images, texts, names, temperature=0.2)
    assert loss.item() == pytest.approx(total / (2 * batch), abs=1e-12)


def test_image_text_loss_closed_forms():
    eye, names = torch.eye(4).double(), torch.arange(4)
    expected = math.log(1 + 3 * math.exp(-1 / 0.5))
    assert eva.image_text_loss(3 * eye, 2 * eye, names, temperature=0.5).item() == pytest.approx(expected)
    # two drawings of each of two emoji: one rival instead of three
    pairs = eva.image_text_loss(eye, eye, torch.tensor([0, 1, 0, 1]), temperature=0.5)
    assert pairs.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / 0.5)))
    assert eva.image_text_loss(eye, eye, torch.zeros(4, dtype=torch.int64)) == 0
    learned = torch.tensor(0.5, requires_grad=True)
    eva.image_text_loss(eye, eye, names, temperature=learned).backward()
    assert learned.grad > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = _normal(8, 16, dtype=torch.float32)
        out = eva.image_text_loss(x, x.flip(0), torch.arange(8))
    torch.testing.assert_close(out, eva.image_text_loss(x, x.flip(0), torch.arange(8)))


def test_image_text_loss_errors():
    x, names = torch.ones(3, 4), torch.arange(3)
    for bad in ((x[0], x[0], names), (x, x[:2], names), (x, x, names[:2])):
        with pytest.raises(ValueError, match="images, texts, names: expected"):
            eva.image_text_loss(*bad)
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        eva.image_text_loss(x, x, names, temperature=0.0)


def test_the_teacher():
    model = seeded(0, lambda: eva.ImageText(9)).eval()
    images, words = torch.rand(2, 3, 32, 32, generator=_generator()), torch.tensor([[1, 4, 0], [0, 0, 0]])
    tokens = model.tokens(images)
    maps = model.net.features(images)
    assert tokens.min() < 0  # before the last ReLU
    torch.testing.assert_close(tokens.relu(), maps.flatten(2).mT)
    z, t = model(images, words)
    torch.testing.assert_close(z, model.image_head(maps.mean((2, 3))))
    mean = (model.words.weight[1] + model.words.weight[4]) / 2  # 0 is no word
    torch.testing.assert_close(t[0], model.text_head(mean))
    torch.testing.assert_close(t[1], model.text_head(torch.zeros(64)))


def test_a_step_of_the_teacher_pairs_pictures_with_their_words():
    words = torch.arange(1, 31)[:, None]
    pool = (words.float() / 100).repeat(2, 1)[..., None, None].expand(60, 3, 32, 32)  # the grey level tells the emoji
    model = seeded(0, lambda: eva.ImageText(30))
    task = eva.image_text_task(model, pool, words, batch_size=16)
    images, said, names = task.batch(_generator())
    torch.testing.assert_close(images[:, 0, 0, 0], said[:, 0].float() / 100)
    assert torch.equal(names + 1, said[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(task.batch(_generator()), (images, said, names), strict=True))
    out = eva.image_text_loss(*model(images, said), names, temperature=0.1)
    torch.testing.assert_close(task.loss(model, (images, said, names)), out)


def test_standardized_channels():
    pictures = _pictures(7, 32)
    target = eva.standardized(lambda images: patchify(images, 4) * torch.arange(1, 49) + 5, pictures)
    std, mean = torch.std_mean(target(pictures), dim=(0, 1))
    torch.testing.assert_close(mean, torch.zeros(48).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(std, torch.ones(48).double())
    assert target(_pictures(2, 32, seed=9)).shape == (2, 64, 48)


@pytest.mark.parity("eva.mean_per_place", against="float64 loops", tolerance=1e-12)
def test_the_mean_direction_is_the_best_constant_guess():
    pictures, target = _pictures(9), lambda images: patchify(images, 4) - 0.5
    best, truth = eva.mean_per_place(target, pictures), target(pictures)
    for n in (0, 7, 15):
        expected = sum(row / row.norm() for row in truth[:, n]) / 9
        torch.testing.assert_close(best[n], expected, rtol=0, atol=1e-12)
    every = torch.ones(9, 16, dtype=torch.bool)
    least = feature_loss(best.expand_as(truth), truth, every)
    assert least < feature_loss(truth.mean(0).expand_as(truth), truth, every)
    # the mean cosine of the best constant is the length of the mean direction
    assert -least.item() == pytest.approx(best.norm(dim=1).mean().item(), abs=1e-12)


# --------------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("hidden", [True, False])
def test_a_step_of_the_student(hidden):
    model, images = _student(target_dim=48), _pictures(6)
    bank = eva.mask_bank(4, 0) if hidden else None
    target = lambda images: patchify(images, 4)  # noqa: E731
    task = eva.eva_task(model, lambda count, generator: images[:count], target, bank, batch_size=6, lr=1e-3)
    drawn, features, mask = task.batch(_generator())
    assert torch.equal(features, patchify(drawn, 4))
    assert not features.requires_grad
    if hidden:
        assert all((bank == row).all(1).any() for row in mask)
        assert len({tuple(row.tolist()) for row in mask}) > 1
        assert (mask.sum(1) <= 6).all()
    else:
        assert mask.all()
    expected = feature_loss(model(drawn, mask if hidden else None), features, mask)
    torch.testing.assert_close(task.loss(model, (drawn, features, mask)), expected)
    again = task.batch(_generator())
    assert all(torch.equal(a, b) for a, b in zip(again, (drawn, features, mask), strict=True))


def test_mask_bank():
    bank = eva.mask_bank(8, 3, count=50, ratio=0.25)
    expected = eva.block_mask(50, (8, 8), num_masked=16, min_block=4, generator=_generator(3))
    assert torch.equal(bank, expected)


@pytest.fixture
def few(monkeypatch):
    """A split of 60 emoji, and teachers of two steps."""
    full, words_of = masked.drawings(0), eva.words_of
    small = full._replace(
        pool=torch.cat((full.pool[:60], full.pool[1400:1460])), train=full.train[:90],
        train_labels=full.train_labels[:90], noto=full.noto[:40], twemoji=full.twemoji[:40], labels=full.labels[:40],
    )  # fmt: skip
    cached = eva.teacher, eva.targets
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(eva, "drawings", lambda seed, device="cpu": small)
    monkeypatch.setattr(eva, "words_of", lambda data: (words_of(full)[0], words_of(full)[1][:60]))
    yield small
    for function in cached:
        function.cache_clear()


def test_run_returns_what_the_claims_name(few):
    budget = {"seed": 0, "device": "cpu", "steps": 1, "teacher_steps": 2, "batch_size": 4}
    found = {arm: eva.run_student(arm, **budget) for arm in eva.EXPERIMENTS["students"].arms}
    for claim in eva.CLAIMS:
        for arm in (claim.method, claim.baseline, *claim.ablations):
            assert math.isfinite(found[arm][claim.metric])
    assert found["mean per place"]["cosine"] == found["teacher"]["guess"] == found["no mask"]["guess"]
    assert found["untrained"]["guess"] != found["teacher"]["guess"]
    assert -1 <= found["teacher"]["whole"] <= 1


def test_arms_share_all_but_their_target(few):
    runs = {
        a: eva.pretrain(a, seed=0, steps=1, teacher_steps=2, batch_size=4) for a in ("pixels", "teacher", "no mask")
    }
    first = eva.student(0, 1).state_dict()
    for model, target, history in runs.values():
        assert not model.training
        assert math.isfinite(history.last("loss"))
        for name, start in first.items():
            if not name.startswith("head"):  # one step of AdamW moves nothing by more than its rate
                torch.testing.assert_close(model.state_dict()[name], start, atol=2.1e-3, rtol=0)
        assert target(few.noto[:2]).shape == (2, 64, model.head.out_features)
    x = few.noto[:3]
    assert torch.equal(runs["teacher"][1](x), runs["no mask"][1](x))
    plain, trained = eva.teacher(0, "cpu", steps=0), eva.teacher(0, "cpu", steps=2)
    assert not any(p.requires_grad for p in trained.parameters())
    assert not trained.training
    fresh = seeded(0, lambda: eva.ImageText(len(eva.words_of(few)[0])))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fresh.parameters(), strict=True))
    assert not torch.equal(plain.net.layers[0][1].running_var, fresh.net.layers[0][1].running_var)
    assert not torch.equal(trained.image_head.weight, fresh.image_head.weight)


def test_training_lowers_the_loss():
    data, model = masked.drawings(0), eva.student(0, 48)
    target = eva.standardized(lambda images: patchify(images, 4), data.pool[:200])
    task = eva.eva_task(model, data.sample, target, eva.mask_bank(8, 0), batch_size=16, lr=2e-3)
    history = fit(task, steps=20, seed=0, log_every=10)
    first, last = history.values["loss"]
    assert last < first - 0.03


def test_recipe(few, monkeypatch):
    monkeypatch.setattr(eva, "targets", lambda *which: lambda images: patchify(images, 4))
    recipe = eva.recipe(None, size="miniature", batch_size=4)
    assert recipe.steps == 150
    images, features, mask = recipe.task.batch(_generator())
    assert images.shape == (4, 3, 32, 32)
    assert features.shape == (4, 64, 48)
    assert mask.shape == (4, 64)
    assert math.isfinite(recipe.task.loss(recipe.task.model, (images, features, mask)).item())
    with pytest.raises(ValueError, match='size: expected "paper" or "miniature"'):
        eva.recipe(size="large")


def test_the_paper_recipe_takes_an_exported_teacher(picture_folder):
    with pytest.raises(embedded.DataError, match=r"teacher\.pt2: expected the teacher, an exported program"):
        eva.recipe(picture_folder, batch_size=2)
    pool = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(2)).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(pool, (torch.rand(2, 3, 224, 224),), dynamic_shapes=(batch,))
    file = picture_folder / "teacher.pt2"
    torch.export.save(program, file)
    pictures = torch.rand(3, 3, 224, 224)
    torch.testing.assert_close(eva._exported(file, "cpu")(pictures), pool(pictures))
    with pytest.raises(ValueError, match=r"teacher: expected features \(B, 196, D\)"):
        eva.recipe(picture_folder, batch_size=2)


def test_the_paper_recipe(picture_folder, monkeypatch):
    monkeypatch.setattr(eva, "_exported", lambda file, device: lambda images: F.avg_pool2d(images, 16).flatten(2).mT)
    recipe = eva.recipe(picture_folder, batch_size=2)
    model = recipe.task.model
    assert recipe.steps == 150 * 6 // 2
    assert (model.num_patches, len(model.blocks), model.head.out_features, model.patch_gradient) == (196, 12, 3, 0.1)
    group = recipe.task.optimizer(nn.Linear(1, 1)).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3 * 2 / 4096, (0.9, 0.95), 0.05)
    assert recipe.task.schedule(6, 450) == pytest.approx(1.0, abs=0.01)  # 2 of 150 epochs of warm-up
    images, features, mask = recipe.task.batch(_generator())
    assert features.shape == (2, 196, 3)
    assert mask.sum(1).max() <= 78


def test_claims_are_of_both_kinds():
    assert {claim.kind for claim in eva.CLAIMS} == {"mechanism", "gain"}
