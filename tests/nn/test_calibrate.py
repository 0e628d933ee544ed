import pytest
import torch
from torch import nn

from sslref.nn import ConvMap, calibrate_batchnorm


@pytest.mark.parity("nn.calibrate_batchnorm", against="closed form", tolerance=1e-6)
def test_statistics_are_the_mean_over_batches():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    batches = torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    calibrate_batchnorm(net, batches)
    torch.testing.assert_close(net[0].running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(net[0].running_var, batches.var(1).mean(0))


def test_weights_modes_and_momentum_stay():
    net = ConvMap(widths=(4, 8), strides=(2, 1))
    net.layers[0].eval()
    before = {n: p.clone() for n, p in net.named_parameters()}
    calibrate_batchnorm(net, [torch.rand(4, 3, 8, 8)])
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    assert [m.training for m in net.layers] == [False, True]
    assert net.layers[0][1].momentum == 0.1
    assert net.layers[1][1].num_batches_tracked == 1


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        calibrate_batchnorm(nn.BatchNorm1d(2), [])
