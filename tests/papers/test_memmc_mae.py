"""MemMC-MAE: both attentions, the score and the network against loops, the facts of the paper, errors, gradients."""

import inspect
import itertools
import math

import pytest
import torch
from torch import nn

from sslref.data.worlds import lesions
from sslref.nn import mae
from sslref.papers import memmc_mae
from sslref.papers.memmc_mae import (
    MemMCMAE,
    MemoryAttention,
    MultiLevelCrossAttention,
    anomaly_map,
    anomaly_score,
    memory_attention,
    memory_mass,
    ms_ssim,
    reconstruct,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _normal(*shape, seed=0):
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def _images(*shape, seed=0):
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64)


def _filled(module, seed=0):
    """The module in float64 with every parameter drawn anew: no zero bias, no unit scale."""
    generator = _generator(seed)
    for p in module.double().parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


# -------------------------------------------------------------------------------------------------- memory attention


def _attend(q, keys, values):
    """One query (d,) over lists of keys and values: weights and output."""
    logits = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in keys]
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    weights = [w / sum(weights) for w in weights]
    return weights, [sum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(len(values[0]))]


def _loops(q, k, v, mem_k, mem_v):
    out, mass = torch.zeros_like(q), torch.zeros_like(q[..., 0])
    for b, h, n in itertools.product(*map(range, q.shape[:3])):
        keys, values = k[b, h].tolist() + mem_k[h].tolist(), v[b, h].tolist() + mem_v[h].tolist()
        weights, mixed = _attend(q[b, h, n].tolist(), keys, values)
        out[b, h, n], mass[b, h, n] = torch.tensor(mixed, dtype=q.dtype), sum(weights[k.shape[2] :])
    return out, mass


@pytest.mark.parity("memmc_mae.memory_attention", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("slots", [0, 1, 3])
def test_memory_attention_by_loops(slots):
    q, k, v = (_normal(2, 3, 4, 5, seed=s) for s in range(3))
    mem_k, mem_v = (_normal(3, slots, 5, seed=s) for s in (3, 4))
    out, mass = _loops(q, k, v, mem_k, mem_v)
    torch.testing.assert_close(memory_attention(q, k, v, mem_k, mem_v), out, atol=1e-12, rtol=0)
    torch.testing.assert_close(memory_mass(q, k, mem_k), mass, atol=1e-12, rtol=0)


def test_memory_attention_by_hand():
    """Zero queries attend evenly: five tokens and six empty slots give the sum of the values over eleven."""
    v, slots = _normal(2, 2, 5, 3), torch.zeros(2, 6, 3, dtype=torch.float64)
    out = memory_attention(torch.zeros_like(v), v, v, slots, slots)
    torch.testing.assert_close(out, (v.sum(2, keepdim=True) / 11).expand_as(v))
    torch.testing.assert_close(memory_mass(torch.zeros_like(v), v, slots), torch.full((2, 2, 5), 6 / 11).double())
    plain = nn.functional.scaled_dot_product_attention(v, v, v)
    torch.testing.assert_close(memory_attention(v, v, v, slots[:, :0], slots[:, :0]), plain)


def test_memory_is_one_set_of_slots_for_all():
    """Slots have no order and no sample of their own, and send no queries."""
    q, k, v = (_normal(3, 2, 4, 5, seed=s) for s in range(3))
    mem_k, mem_v = _normal(2, 6, 5, seed=3), _normal(2, 6, 5, seed=4)
    out, order = memory_attention(q, k, v, mem_k, mem_v), torch.randperm(6, generator=_generator())
    torch.testing.assert_close(memory_attention(q, k, v, mem_k[:, order], mem_v[:, order]), out)
    for b in range(3):
        alone = memory_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], mem_k, mem_v)
        torch.testing.assert_close(alone, out[b : b + 1])
    assert out.shape == q.shape
    one = memory_attention(q[:, :, :1].expand_as(q), k, v, mem_k, mem_v)
    torch.testing.assert_close(one[:, :, 0], out[:, :, 0])


@pytest.mark.parity("memmc_mae.MemoryAttention", against="float64 loops", tolerance=1e-12)
def test_memory_attention_module_by_loops():
    module, x = _filled(MemoryAttention(6, num_heads=2, num_memory=3)), _normal(2, 4, 6)
    qkv = x @ module.qkv.weight.T + module.qkv.bias  # rows q | k | v, then heads
    q, k, v = (torch.stack([part[..., 3 * h : 3 * h + 3] for h in range(2)], 1) for part in qkv.split(6, -1))
    out, mass = _loops(q, k, v, module.mem_k, module.mem_v)
    joined = torch.cat((out[:, 0], out[:, 1]), -1)
    expected = joined @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(module.mass(x), mass, atol=1e-12, rtol=0)
    shapes = {n: tuple(p.shape) for n, p in MemoryAttention(8).named_parameters()}
    assert shapes["mem_k"] == shapes["mem_v"] == (4, 16, 2)
    assert shapes["qkv.weight"] == (24, 8)


def test_memory_errors():
    q = torch.zeros(2, 3, 4, 5)
    good = torch.zeros(3, 6, 5)
    bad = ((good[:2], good[:2]), (good[..., :4], good[..., :4]), (good, good[:, :5]), (good[0], good[0]))
    for mem_k, mem_v in bad:
        with pytest.raises(ValueError, match=r"mem_k, mem_v: expected one shape \(3, M, 5\)"):
            memory_attention(q, q, q, mem_k, mem_v)
    with pytest.raises(ValueError, match="q, k, v"):
        memory_attention(q, q[:, :, :2], q, good, good)
    for heads in (0, 3):
        with pytest.raises(ValueError, match="num_heads"):
            MemoryAttention(8, num_heads=heads)
        with pytest.raises(ValueError, match="num_heads"):
            MultiLevelCrossAttention(8, num_heads=heads)
    with pytest.raises(ValueError, match="num_memory"):
        MemoryAttention(8, num_memory=-1)
    assert MemoryAttention(8, num_memory=0).mem_k.shape == (4, 0, 2)


# ------------------------------------------------------------------------------------------------------- multi-level


@pytest.mark.parity("memmc_mae.MultiLevelCrossAttention", against="float64 loops", tolerance=1e-12)
def test_multi_level_by_loops():
    module = _filled(MultiLevelCrossAttention(4, num_heads=2, num_levels=2))
    x, levels = _normal(2, 3, 4), [_normal(2, 5, 4, seed=1), _normal(2, 5, 4, seed=2)]

    def linear(layer, z):
        return z @ layer.weight.T + layer.bias

    expected = torch.zeros_like(x)
    for b, n in itertools.product(range(2), range(3)):
        q = linear(module.projq, x[b, n])
        for z, gate in zip(levels, module.gates, strict=True):
            k, v = linear(module.projk, z[b]), linear(module.projv, z[b])
            heads = [slice(0, 2), slice(2, 4)]
            mixed = sum((_attend(q[s].tolist(), k[:, s].tolist(), v[:, s].tolist())[1] for s in heads), [])
            read = linear(module.proj, torch.tensor(mixed, dtype=torch.float64))
            expected[b, n] += torch.sigmoid(linear(gate, torch.cat((x[b, n], read)))) * read
    torch.testing.assert_close(module(x, levels), expected, atol=1e-12, rtol=0)


def test_gates_open_and_close():
    module = _filled(MultiLevelCrossAttention(4, num_heads=2, num_levels=3))
    x, levels = _normal(2, 3, 4), [_normal(2, 5, 4, seed=s) for s in (1, 2, 3)]
    for gate, bias in zip(module.gates, (60.0, -60.0, 60.0), strict=True):
        gate.weight.data.zero_()
        gate.bias.data.fill_(bias)
    torch.testing.assert_close(module(x, levels), module.read(x, levels[0]) + module.read(x, levels[2]))
    gates = [gate for gate, _ in module.gated(x, levels)]
    assert [g.round().unique().tolist() for g in gates] == [[1], [0], [1]]
    for wrong in (levels[:2], [*levels, levels[0]]):
        with pytest.raises(ValueError, match="levels: expected 3"):
            module(x, wrong)
    with pytest.raises(ValueError, match="num_levels"):
        MultiLevelCrossAttention(4, num_levels=0)


# ----------------------------------------------------------------------------------------------------------- MS-SSIM


def _ssim_at(x, y, i, j, window, sigma, c1, c2):
    """SSIM and contrast-structure of the windows whose upper left pixel is (i, j), by loops."""
    half, total, sums = window // 2, 0.0, [0.0] * 5
    for a, b in itertools.product(range(window), repeat=2):
        w = math.exp(-((a - half) ** 2 + (b - half) ** 2) / (2 * sigma**2))
        p, q = x[i + a][j + b], y[i + a][j + b]
        total += w
        sums = [s + w * t for s, t in zip(sums, (p, q, p * p, q * q, p * q), strict=True)]
    mx, my, xx, yy, xy = (s / total for s in sums)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure, structure


def _ms_ssim(x, y, scales, window, sigma, data_range):
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    weights, out = [w / sum(WEIGHTS[:scales]) for w in WEIGHTS[:scales]], 1.0
    for scale, weight in enumerate(weights):
        height, width = len(x) - window + 1, len(x[0]) - window + 1
        found = [_ssim_at(x, y, i, j, window, sigma, c1, c2) for i, j in itertools.product(range(height), range(width))]
        mean = sum(f[scale < scales - 1] for f in found) / len(found)
        out *= max(mean, 0.0) ** weight
        x, y = (
            [
                [(z[2 * i][2 * j] + z[2 * i][2 * j + 1] + z[2 * i + 1][2 * j] + z[2 * i + 1][2 * j + 1]) / 4
                 for j in range(len(z[0]) // 2)]
                for i in range(len(z) // 2)
            ]
            for z in (x, y)
        )  # fmt: skip
    return out


@pytest.mark.parity("memmc_mae.ms_ssim", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize(("scales", "window", "data_range"), [(1, 5, 1.0), (2, 5, 1.0), (3, 3, 2.0)])
def test_ms_ssim_by_loops(scales, window, data_range):
    x = _images(2, 2, 12, 13)
    y = 0.7 * x + 0.3 * _images(2, 2, 12, 13, seed=1)
    out = ms_ssim(x, y, scales=scales, window=window, sigma=1.2, data_range=data_range)
    for b in range(2):
        channels = [_ms_ssim(x[b, c].tolist(), y[b, c].tolist(), scales, window, 1.2, data_range) for c in range(2)]
        assert out[b].item() == pytest.approx(sum(channels) / 2, abs=1e-12)
    torch.testing.assert_close(anomaly_score(x, y, scales=2, window=5), 1 - ms_ssim(x, y, scales=2, window=5))


@pytest.mark.parity("memmc_mae.anomaly_map", against="scikit-image's structural_similarity", tolerance=1e-10)
def test_ssim_is_scikit_images():
    from skimage.metrics import structural_similarity

    x = _images(2, 1, 24, 20)
    y = 0.6 * x + 0.4 * _images(2, 1, 24, 20, seed=1)
    maps, values = anomaly_map(x, y), ms_ssim(x, y, scales=1)
    for b in range(2):
        # its Gaussian window reaches to `truncate` = 3.5 sigma and is cut there: sigma 0.8 gives 7 pixels
        options = {"gaussian_weights": True, "sigma": 0.8, "use_sample_covariance": False, "data_range": 1.0}
        mean, full = structural_similarity(x[b, 0].numpy(), y[b, 0].numpy(), full=True, **options)
        ours = anomaly_map(x, y, sigma=0.8)[b]
        torch.testing.assert_close(1 - ours[3:-3, 3:-3], torch.from_numpy(full)[3:-3, 3:-3], atol=1e-10, rtol=0)
        assert ms_ssim(x, y, scales=1, sigma=0.8)[b].item() == pytest.approx(mean, abs=1e-10)
        assert values[b].item() == pytest.approx(1 - maps[b, 3:-3, 3:-3].mean().item(), abs=1e-12)


def test_ms_ssim_of_a_shifted_mean():
    """Constant 0.4 and 0.5: structure is 1 at every scale, SSIM (0.4 + 1e-4) / (0.41 + 1e-4)."""
    x, y = torch.full((1, 1, 32, 32), 0.4).double(), torch.full((1, 1, 32, 32), 0.5).double()
    last = (2 * 0.2 + 1e-4) / (0.16 + 0.25 + 1e-4)
    assert last == pytest.approx(0.9756, abs=1e-4)
    assert ms_ssim(x, y, scales=1).item() == pytest.approx(last)
    assert ms_ssim(x, y).item() == pytest.approx(last ** (0.3001 / 0.6305)) == pytest.approx(0.9883, abs=1e-4)


def test_ms_ssim_is_a_similarity():
    x, y = _images(3, 2, 40, 36), _images(3, 2, 40, 36, seed=1)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3).double())
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(y, x))
    for other in (y, 1 - x, torch.zeros_like(x)):
        value = ms_ssim(x, other)
        assert value.isfinite().all()
        assert (value >= 0).all()
        assert (value <= 1).all()
    assert (ms_ssim(x, 1 - x) == 0).all()  # negative structure is clipped, and a power of it would be nan
    torch.testing.assert_close(ms_ssim(5 * x, 5 * y, data_range=5.0), ms_ssim(x, y))
    low = ms_ssim(x.bfloat16(), y.bfloat16())
    assert low.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ms_ssim(x.float(), y.float()), ms_ssim(x, y).float(), atol=1e-5, rtol=0)


def test_map_of_a_changed_block():
    """A block of 4 x 4 is seen within half a window of it, and nowhere else."""
    x = _images(1, 1, 24, 24)
    y = x.clone()
    y[..., 8:12, 10:14] += 0.3
    out = anomaly_map(x, y)
    assert out.shape == (1, 24, 24)
    near = torch.zeros(24, 24, dtype=torch.bool)
    near[5:15, 7:17] = True
    assert (out[0][near] > 1e-6).all()
    torch.testing.assert_close(out[0][~near], torch.zeros(24 * 24 - 100).double(), atol=1e-12, rtol=0)
    padded = nn.functional.pad(x, (3,) * 4, mode="reflect")
    assert padded[0, 0, 0, 3] == x[0, 0, 3, 0]
    two = torch.cat((y, x), 1)
    torch.testing.assert_close(anomaly_map(torch.cat((x, x), 1), two), out / 2)


def test_score_errors():
    x = torch.zeros(1, 1, 32, 32)
    for options in ({"scales": 0}, {"scales": 6}, {"window": 6}, {"window": 0}, {"sigma": 0.0}, {"data_range": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ms_ssim(x, x, **options)
    for other in (x[0], x[..., :31]):
        with pytest.raises(ValueError, match="x, y"):
            ms_ssim(x, other)
    ms_ssim(x[..., :28], x[..., :28])
    with pytest.raises(ValueError, match="28 pixels or more"):
        ms_ssim(x[..., :27], x[..., :27])
    with pytest.raises(ValueError, match="x, y"):
        anomaly_map(x, x[:, :, 1:])
    with pytest.raises(ValueError, match="images: expected sides above 3"):
        anomaly_map(x[..., :3], x[..., :3])


# ------------------------------------------------------------------------------------------------------- the network


def _model(**sizes):
    return _filled(MemMCMAE(**{"image_size": 8, "embed_dim": 8, "num_heads": 2, "num_memory": 3, **sizes}))


def test_the_contract():
    signature = {k: p.default for k, p in inspect.signature(MemMCMAE).parameters.items()}
    assert signature == {
        "image_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_memory": 16,
        "decoder_depth": 2, "mlp_ratio": 4.0, "multi_level": True,
    }  # fmt: skip
    assert memmc_mae.MemOutput._fields == ("loss", "recon", "mask")
    for sizes in ({"image_size": 10}, {"num_heads": 5}, {"num_memory": -1}):
        with pytest.raises(ValueError, match=next(iter(sizes))):
            MemMCMAE(**sizes)


@pytest.mark.parity("memmc_mae.MemMCMAE", against="its pieces, in loops over blocks and samples", tolerance=1e-10)
@pytest.mark.parametrize("multi_level", [True, False])
def test_network_step_by_step(multi_level):
    model = _model(multi_level=multi_level, in_chans=2, depth=3)
    images, noise = _images(3, 2, 8, 8), torch.rand(3, 4, generator=_generator())
    out = model(images, mask_ratio=0.5, noise=noise)
    assert len(model.norms) == (3 if multi_level else 1)
    total = 0.0
    for b in range(3):
        keep = noise[b].argsort().tolist()[:2]
        assert out.mask[b].tolist() == [n not in keep for n in range(4)]
        patches = mae.patchify(images[b : b + 1], 4)[0]
        x = torch.stack([model.patch_embed(patches[n]) + model.positions[n] for n in keep])[None]
        levels = []
        for block in model.blocks:
            x = x + block.attention(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            levels.append(x)
        levels = [norm(z) for norm, z in zip(model.norms, levels if multi_level else levels[-1:], strict=True)]
        y = torch.stack([
            (levels[-1][0, keep.index(n)] if n in keep else model.mask_token) + model.positions[n] for n in range(4)
        ])[None]  # fmt: skip
        for block in model.decoder:
            y = y + block.attention(block.norm1(y), levels)
            y = y + block.mlp(block.norm2(y))
        recon = mae.unpatchify(model.decoder_pred(model.decoder_norm(y)), 4)
        torch.testing.assert_close(out.recon[b : b + 1], recon, atol=1e-10, rtol=0)
        total += (recon - images[b]).square().mean().item() / 3  # all pixels, not the hidden ones alone
    assert out.loss.item() == pytest.approx(total, abs=1e-10)


def test_hidden_pixels_do_not_reach_the_reconstruction():
    model, images = _model(), _images(2, 1, 8, 8)
    noise = torch.rand(2, 4, generator=_generator())
    out = model(images, noise=noise)
    hidden = out.mask.view(2, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = model(torch.where(hidden, 1 - images, images), noise=noise)
    assert torch.equal(out.recon, other.recon)
    assert out.loss != other.loss
    assert not torch.allclose(out.recon, model(torch.where(hidden, images, 1 - images), noise=noise).recon)


def test_every_parameter_learns_and_autocast_runs():
    model = MemMCMAE(embed_dim=16, depth=2)
    images = torch.rand(4, 1, 32, 32, generator=_generator())
    model(images, generator=_generator()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(images, generator=_generator()).loss
    assert low.item() == pytest.approx(model(images, generator=_generator()).loss.item(), rel=0.03)
    again = model(images, generator=_generator())
    assert torch.equal(again.mask, model(images, generator=_generator()).mask)
    assert again.mask.sum(1).tolist() == [48] * 4
    assert not model(images, mask_ratio=0.0).mask.any()
    assert "positions" not in model.state_dict()


def test_network_errors():
    model = MemMCMAE()
    for shape in ((2, 1, 16, 16), (1, 32, 32), (2, 3, 32, 32)):
        with pytest.raises(ValueError, match="images"):
            model(torch.zeros(shape))
    images = torch.zeros(2, 1, 32, 32)
    for ratio in (1.0, -0.5):
        with pytest.raises(ValueError, match="mask_ratio"):
            model(images, mask_ratio=ratio)
    with pytest.raises(ValueError, match="noise"):
        model(images, noise=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="masks"):
        reconstruct(model, images, masks=0)


def test_the_mean_of_many_masks_errs_less():
    """The square is convex: the error of the mean is at most the mean of the errors."""
    model, images = _model(), _images(3, 1, 8, 8)
    generator = _generator(5)
    single = torch.stack([model(images, generator=generator).recon for _ in range(100)])
    mean = reconstruct(model, images, masks=100, generator=_generator(5))
    assert not mean.requires_grad
    torch.testing.assert_close(mean, single.detach().mean(0))
    assert (mean - images).square().mean() < (single - images).square().mean()


def test_inside():
    model, images = _model(depth=2), _images(3, 1, 8, 8)
    noise = torch.rand(3, 4, generator=_generator())
    look = model.inside(images, mask_ratio=0.5, noise=noise)
    assert [m.shape for m in look["mass"]] == [(3, 2, 2)] * 2
    assert [g.shape for g in look["gates"]] == [(2, 3, 4, 8)] * 2
    for values in (*look["mass"], *look["gates"]):
        assert ((values > 0) & (values < 1)).all()
    tokens = model.embed(images, mask_ratio=0.5, noise=noise).tokens
    first = model.blocks[0]
    torch.testing.assert_close(look["mass"][0], first.attention.mass(first.norm1(tokens)))
    assert _model(num_memory=0).inside(images)["mass"][0].eq(0).all()


# ---------------------------------------------------------------------------------------------------- the miniature


def test_arms_differ_in_their_cause_alone():
    models = {arm: memmc_mae.build(arm, 3) for arm in memmc_mae.ARMS}
    count = {arm: sum(p.numel() for p in m.parameters()) for arm, m in models.items()}
    assert count["autoencoder"] == count["MAE"] < count["memory"] < count["MemMC-MAE"]
    assert count["memory"] - count["MAE"] == 2 * 2 * 4 * 16 * 12
    for a, b in zip(models["autoencoder"].parameters(), models["MAE"].parameters(), strict=True):
        assert torch.equal(a, b)
    batches = []
    for arm in ("MAE", "MemMC-MAE"):
        task = mae_task_of(models[arm])
        batches.append(task.batch(_generator(5)))
        assert task.loss(models[arm], batches[-1]).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def mae_task_of(model):
    from sslref.masked import mae_task

    return mae_task(model, memmc_mae.brains, batch_size=4, lr=1e-3)


def test_lesions_are_hidden_or_shown():
    """A network that copies what it sees and paints 0.5 elsewhere: its errors on lesions are known."""
    test = memmc_mae.held_out(3, 12)

    class Copier(nn.Module):
        patch_size = 4

        def forward(self, images, *, noise):
            masking = mae.random_masking(mae.patchify(images, 4), 0.75, noise=noise)
            grey = (0.5 - memmc_mae.MEAN) / memmc_mae.STD
            patches = torch.where(masking.mask[..., None], grey, mae.patchify(images, 4))
            return memmc_mae.MemOutput(torch.zeros(()), mae.unpatchify(patches, 4), masking.mask)

    seen = memmc_mae.lesion_errors(Copier(), test, hide=False, seed=3)
    gone = memmc_mae.lesion_errors(Copier(), test, hide=True, seed=3)
    # at most 16 patches can be shown; a lesion of 12 pixels touches up to 16
    assert seen["error"] == pytest.approx(0, abs=1e-9)
    assert seen["painted over"] == 0
    inside = [test.lesion.masks[b] for b in range(12)]
    expected = [(test.lesion.images[b, 0][m] - 0.5).square().mean().item() for b, m in enumerate(inside)]
    assert gone["error"] == pytest.approx(sum(expected) / 12, rel=1e-5)
    before = [(test.before.images[b, 0][m] - 0.5).square().mean().item() for b, m in enumerate(inside)]
    assert gone["from healthy"] == pytest.approx(sum(before) / 12, rel=1e-5)
    assert gone["painted over"] == pytest.approx(100 * sum(h < e for h, e in zip(before, expected, strict=True)) / 12)


def test_held_out_pictures():
    test = memmc_mae.held_out(3, 6, contrast=(0.3, 0.3))
    assert torch.equal(test.lesion.masks, memmc_mae.held_out(3, 6).lesion.masks)  # the slider changes one thing
    assert (test.lesion.images - test.before.images).abs().max() <= 0.3 + 1e-6
    assert test.normal.shape == test.val.shape == (6, 1, 32, 32)
    assert memmc_mae.pixel_auc(test.lesion.masks.double(), test.lesion, test.before.tissue) == 100


def test_fundus():
    _, marks = memmc_mae.embedded.microaneurysms()
    model = memmc_mae.build("MAE", 0).requires_grad_(False)
    found = memmc_mae.look_at_fundus(model, 0.75, 0)
    assert found.map.shape == found.lesion.shape == (102, 102)
    assert found.scores.shape == found.labels.shape == (64,)
    for row, column in marks.tolist():
        assert found.lesion[row, column]
        assert found.lesion[row + 3, column]
        assert not found.lesion[row + 4, column]
    assert found.lesion.sum() == 58  # two discs of 29 pixels
    inside = [(i, j) for i in range(0, 71, 10) for j in range(0, 71, 10)]
    for label, (i, j) in zip(found.labels.tolist(), inside, strict=True):
        assert label == any(i <= r < i + 32 and j <= c < j + 32 for r, c in marks.tolist())
    windows = torch.stack([found.image[:, i : i + 32, j : j + 32] for i, j in inside])
    scores, maps = memmc_mae.detect(windows, model, 0.75, 0)
    torch.testing.assert_close(found.scores, scores)
    total, count = torch.zeros(102, 102), torch.zeros(102, 102)
    for m, (i, j) in zip(maps, inside, strict=True):
        total[i : i + 32, j : j + 32] += m
        count[i : i + 32, j : j + 32] += 1
    torch.testing.assert_close(found.map, total / count)


def test_runs_return_what_the_claims_name():
    budget = {"seed": 0, "device": "cpu", "steps": 2}
    metrics = {
        "detect": {a: memmc_mae.run_detect(a, **budget, count=6) for a in memmc_mae.EXPERIMENTS["detect"].arms},
        "hide": {a: memmc_mae.run_hide(a, **budget, count=6) for a in memmc_mae.EXPERIMENTS["hide"].arms},
        "fundus": {a: memmc_mae.run_fundus(a, **budget) for a in memmc_mae.EXPERIMENTS["fundus"].arms},
    }
    for claim in memmc_mae.CLAIMS:
        for arm in (claim.baseline, claim.method, *claim.ablations):
            assert math.isfinite(metrics[claim.experiment][arm][claim.metric])
    assert metrics["detect"]["MAE"]["mass"] == 0
    assert memmc_mae.run_hide("lesion hidden", **budget, count=6) == metrics["hide"]["lesion hidden"]


def test_training_lowers_the_loss():
    _, history = memmc_mae.pretrain("MemMC-MAE", seed=0, steps=15)
    assert history.last("loss") < 1 < history.values["loss"][0]


def test_recipes(picture_folder, monkeypatch):
    recipe = memmc_mae.recipe(None, size="miniature", batch_size=4)
    images, noise = recipe.task.batch(_generator())
    assert images.shape == (4, 1, 32, 32)
    assert noise.shape == (4, 64)
    with pytest.raises(ValueError, match='size: expected "paper" or "miniature"'):
        memmc_mae.recipe(size="large")
    built = {}
    monkeypatch.setattr(memmc_mae, "MemMCMAE", lambda **sizes: built.update(sizes) or MemMCMAE(embed_dim=8, depth=1))
    recipe = memmc_mae.recipe(picture_folder, batch_size=2)
    assert (built["image_size"], built["patch_size"], built["in_chans"], built["embed_dim"]) == (224, 16, 3, 384)
    assert recipe.steps == 400 * 6 // 2
    assert "6 images" in recipe.about
    group = recipe.task.optimizer(nn.Linear(1, 1)).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1.5e-4 * 2 / 256, 0.05)


def test_lesion_world_is_what_the_arms_get():
    images = memmc_mae.brains(300, _generator())
    assert torch.equal(images, lesions.healthy("train", 300, generator=_generator()).images)
    assert abs(memmc_mae.scaled(images).mean()) < 0.2
    assert memmc_mae.scaled(images).std() == pytest.approx(1, abs=0.1)
