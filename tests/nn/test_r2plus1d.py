import pytest
import torch

from sslref.nn.r2plus1d import R2Plus1D, SmallR2Plus1D, _conv2plus1d


def test_as_many_weights_as_a_full_convolution():
    for a, b in ((64, 64), (64, 128)):
        convolutions = [m for m in _conv2plus1d(a, b) if isinstance(m, torch.nn.Conv3d)]
        weights = sum(m.weight.numel() for m in convolutions)
        assert 0.99 < weights / (27 * a * b) <= 1
    assert _conv2plus1d(3, 64, kernel=7)[0].out_channels == 83  # as in the official code


def test_the_large_network_halves_time_and_space_where_the_paper_says():
    net = R2Plus1D(widths=(8, 8, 12, 16, 24)).eval()
    shapes = []
    for layer in net.layers:
        layer.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(out.shape[1:])))
    out = net(torch.rand(2, 8, 3, 32, 32))
    assert out.shape == (2, net.out_dim) == (2, 24)
    assert shapes[-5:] == [(8, 8, 16, 16), (8, 8, 16, 16), (12, 4, 8, 8), (16, 2, 4, 4), (24, 1, 2, 2)]
    assert 14.1e6 < sum(p.numel() for p in R2Plus1D().parameters()) < 14.6e6


def test_the_small_network():
    net = SmallR2Plus1D()
    video = torch.rand(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = net(video)
    assert out.shape == (4, net.out_dim) == (4, 64)
    assert sum(p.numel() for p in net.parameters()) < 110_000
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.double()(video.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.float()(video).isfinite().all()


def test_time_matters():
    """The networks tell a clip from the same clip played backwards."""
    video = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for net in (SmallR2Plus1D().eval(), R2Plus1D(widths=(8,) * 5).eval()):
        assert not torch.allclose(net(video), net(video.flip(1)))


def test_errors():
    with pytest.raises(ValueError, match=r"video: expected shape \(B, T, 3, 32, 32\)"):
        SmallR2Plus1D()(torch.rand(1, 8, 3, 64, 64))
    with pytest.raises(ValueError, match=r"video: expected shape \(B, T, 3, S, S\)"):
        R2Plus1D()(torch.rand(1, 3, 8, 32, 32))
