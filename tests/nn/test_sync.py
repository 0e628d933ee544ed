import copy

import torch
from torch import nn

from sslref.nn.sync import SyncedBatchNorm2d, sync_batchnorm


def test_one_process_changes_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(5, 3, 6, 6)
    plain(x)
    synced = sync_batchnorm(copy.deepcopy(plain))
    for _ in range(3):
        assert torch.equal(plain(x), synced(x))
    assert torch.equal(plain.eval()(x), synced.eval()(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(synced.state_dict()[name], value)


def test_every_layer_is_found_and_stays_itself():
    norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": nn.Sequential(norm), "b": norm, "c": nn.BatchNorm1d(2), "d": nn.GroupNorm(1, 2)})
    assert sync_batchnorm(model) is model
    assert model["b"] is norm
    assert [type(m).__name__ for m in (norm, model["c"], model["d"])] == [
        "SyncedBatchNorm2d",
        "SyncedBatchNorm1d",
        "GroupNorm",
    ]
    assert isinstance(copy.deepcopy(norm), SyncedBatchNorm2d)
    assert sync_batchnorm(nn.BatchNorm3d(3))(torch.randn(2, 3, 2, 2, 2)).shape == (2, 3, 2, 2, 2)
