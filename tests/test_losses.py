"""`gather` in two gloo processes against one process on the joined batch; alignment and uniformity against loops."""

import math

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslref.losses import alignment, byol_loss, gather, info_nce, tiled_logsumexp, uniformity
from sslref.papers.simclr import nt_xent


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def _batch():
    return torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _loss(model, views):
    z1, z2 = model(torch.cat([views[0], views[1]])).chunk(2)
    return nt_xent(gather(z1), gather(z2), temperature=0.2)


def _worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.set_num_threads(1)
    n = 8 // world
    model = DistributedDataParallel(_model())
    loss = _loss(model, _batch()[:, rank * n : (rank + 1) * n])
    loss.backward()
    x = torch.full((2, 3), float(rank), requires_grad=True)
    everything = gather(x)
    (everything * (rank + 1)).sum().backward()
    found = {
        "loss": loss.item(),
        "grads": [p.grad for p in model.parameters()],
        "order": everything[:, 0].tolist(),
        "own": x.grad.tolist(),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_worker, args=(2, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_one_process_gets_its_rows_back():
    x = torch.randn(3, 2)
    assert gather(x) is x


def test_loss_and_gradients_of_one_process(two_processes):
    model = _model()
    loss = _loss(model, _batch())
    loss.backward()
    for result in two_processes:
        assert result["loss"] == pytest.approx(loss.item(), abs=1e-12)
        for got, parameter in zip(result["grads"], model.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-12)


def test_rows_come_in_the_order_of_ranks_and_gradients_are_summed(two_processes):
    for result in two_processes:
        assert result["order"] == [0, 0, 1, 1]
        assert result["own"] == [[3.0] * 3] * 2  # 1 from the first process and 2 from the second


# ------------------------------------------------------------------------------------ alignment and uniformity


def rows(n=5, dim=3, seed=0):
    return torch.randn(2, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


@pytest.mark.parity("losses.alignment", against="float64 loops", tolerance=1e-12)
@pytest.mark.parity("losses.uniformity", against="float64 loops", tolerance=1e-12)
def test_alignment_and_uniformity_equal_loops():
    z1, z2 = rows()
    unit = [[z / z.norm() for z in side] for side in (z1, z2)]
    apart = [float((a - b).square().sum()) for a, b in zip(*unit, strict=True)]
    assert alignment(z1, z2).item() == pytest.approx(sum(apart) / 5, abs=1e-12)
    pairs = [(a, b) for i, a in enumerate(unit[0]) for b in unit[0][:i]]
    mean = sum(math.exp(-2 * float((a - b).square().sum())) for a, b in pairs) / len(pairs)
    assert uniformity(z1).item() == pytest.approx(math.log(mean), abs=1e-12)


def test_alignment_and_uniformity_of_known_vectors():
    eye = torch.eye(3, dtype=torch.float64)
    assert alignment(eye, 4 * eye).item() == 0
    assert alignment(eye, -eye).item() == pytest.approx(4)
    assert uniformity(torch.ones(4, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(eye).item() == pytest.approx(-4)  # all squared distances are 2
    assert uniformity(eye, t=0.5).item() == pytest.approx(-1)


def test_alignment_and_uniformity_refuse():
    with pytest.raises(ValueError, match="z1, z2"):
        alignment(torch.randn(3, 2), torch.randn(2, 2))
    with pytest.raises(ValueError, match="z1, z2"):
        alignment(torch.randn(0, 2), torch.randn(0, 2))
    with pytest.raises(ValueError, match="z: expected"):
        uniformity(torch.randn(1, 2))


# -------------------------------------------------------------------------------------------------------- InfoNCE


def _random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parity("losses.info_nce", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_against_loops(temperature):
    q, k, queue = _random((5, 4), (5, 4), (7, 4))
    total = 0.0
    for i in range(5):

        def cosine(a, b):
            return (a @ b / (a.norm() * b.norm())).item()

        own = math.exp(cosine(q[i], k[i]) / temperature)
        others = sum(math.exp(cosine(q[i], n) / temperature) for n in queue)
        total -= math.log(own / (own + others))
    assert info_nce(q, k, queue, temperature=temperature).item() == pytest.approx(total / 5, abs=1e-12)


@pytest.mark.parity("losses.info_nce", against="closed form", tolerance=1e-6)
@pytest.mark.parametrize("negatives", [1, 6])
def test_info_nce_of_equal_vectors(negatives):
    one = torch.ones(3, 4)
    assert info_nce(one, 2 * one, torch.ones(negatives, 4)).item() == pytest.approx(math.log(1 + negatives), rel=1e-6)


def test_info_nce_has_gradient_in_the_query_only_and_full_precision_under_autocast():
    q, k, queue = (x.requires_grad_() for x in _random((3, 4), (3, 4), (6, 4)))
    info_nce(q, k, queue).backward()
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert queue.grad is None
    assert torch.autograd.gradcheck(lambda a: info_nce(a, k, queue), (q,))
    low = [x.detach().float() for x in (q, k, queue)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(*low, temperature=0.01), info_nce(*low, temperature=0.01))
        torch.testing.assert_close(info_nce(*low).double(), info_nce(q, k, queue).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((0, 4), (0, 4), (3, 4)), 0.2, "q, k"),
        (((2, 4), (3, 4), (3, 4)), 0.2, "q, k"),
        (((2, 4), (2, 4), (3, 5)), 0.2, "queue"),
        (((2, 4), (2, 4), (3, 4)), 0.0, "temperature"),
    ],
)
def test_info_nce_refuses_bad_input(shapes, temperature, message):
    with pytest.raises(ValueError, match=message):
        info_nce(*_random(*shapes), temperature=temperature)


# ------------------------------------------------------------------------------------------ logsumexp in bands, BYOL


@pytest.mark.parity("losses.tiled_logsumexp", against="torch.logsumexp of the whole matrix", tolerance=1e-12)
@pytest.mark.parametrize("tile", [1, 3, 7, 100])
@pytest.mark.parametrize("skipping", [False, True])
def test_tiled_logsumexp_has_the_value_and_gradient_of_the_whole_matrix(tile, skipping):
    q, k = (x.requires_grad_() for x in _random((7, 4), (5, 4)))
    skip = torch.tensor([0, 4, 2, 1, 3, 0, 0]) if skipping else None
    whole = q @ k.T
    if skipping:
        whole = whole.masked_fill(torch.nn.functional.one_hot(skip, 5).bool(), -torch.inf)
    expected = whole.logsumexp(1)
    weight = torch.arange(1.0, 8.0, dtype=torch.float64)
    found = tiled_logsumexp(q, k, skip=skip, tile=tile)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (q, k)),
        torch.autograd.grad((expected * weight).sum(), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: tiled_logsumexp(a, b, skip=skip, tile=tile), (q, k))


def test_tiled_logsumexp_holds_one_band_and_stays_finite():
    q, k = (x.float().requires_grad_() for x in _random((64, 8), (64, 8)))
    sizes = []

    def packed(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(packed, lambda x: x):
        out = tiled_logsumexp(1000 * q, k, tile=4)
    assert max(sizes) <= 64 * 8  # nothing of the size of the matrix is kept for the backward pass
    assert out.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiled_logsumexp(1000 * q, k, tile=4), out)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (2, 4)), {}, "q, k"),
        (((2, 3), (0, 3)), {}, "q, k"),
        (((2, 3), (2, 3)), {"tile": 0}, "tile"),
        (((2, 3), (2, 3)), {"skip": torch.zeros(3, dtype=torch.int64)}, "skip"),
        (((2, 3), (1, 3)), {"skip": torch.zeros(2, dtype=torch.int64)}, "skip"),
    ],
)
def test_tiled_logsumexp_refuses_bad_input(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        tiled_logsumexp(*_random(*shapes), **options)


@pytest.mark.parity("losses.byol_loss", against="float64 loops", tolerance=1e-12)
def test_byol_loss_against_loops_and_its_stopped_gradient():
    p, t = (x.requires_grad_() for x in _random((5, 4), (5, 4)))
    distances = [((a / a.norm() - b / b.norm()) ** 2).sum().item() for a, b in zip(p, t, strict=True)]
    loss = byol_loss(p, t)
    assert loss.item() == pytest.approx(sum(distances) / 5, abs=1e-12)
    loss.backward()
    assert t.grad is None
    assert p.grad.abs().sum() > 0
    assert byol_loss(p, 3 * p).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(p, -p).item() == pytest.approx(4, abs=1e-12)
    with pytest.raises(ValueError, match="p, t"):
        byol_loss(p, t[:4])
