import pytest
import torch

from sslref.nn import ConvMap, ConvNet


def test_a_view_of_48_pixels_has_36_places():
    net = ConvMap()
    assert net.features(torch.rand(2, 3, 48, 48)).shape == (2, 192, 6, 6)
    assert net.features(torch.rand(2, 3, 64, 64)).shape == (2, 192, 8, 8)
    assert net(torch.rand(2, 3, 48, 48)).shape == (2, 192)
    assert ConvMap(widths=(4, 8), strides=(1, 3)).features(torch.rand(2, 3, 12, 12)).shape == (2, 8, 4, 4)


def test_weights_and_output_are_those_of_a_convnet():
    torch.manual_seed(0)
    plain = ConvNet()
    torch.manual_seed(0)
    same = ConvMap(strides=(2, 2, 2, 2))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain.features(x), same.features(x))
    same.load_state_dict(ConvMap().state_dict())


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2, 0)])
def test_strides_that_do_not_fit(strides):
    with pytest.raises(ValueError, match="strides: expected 4 numbers >= 1"):
        ConvMap(strides=strides)
