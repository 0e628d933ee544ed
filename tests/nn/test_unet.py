import pytest
import torch

from sslref.nn import UNet


def images(*shape, seed=0, **kwargs):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.mark.parametrize(("depth", "height", "width"), [(1, 6, 10), (2, 16, 12), (3, 8, 24)])
def test_output_has_the_size_of_the_input(depth, height, width):
    net = UNet(in_chans=2, out_chans=5, width=4, depth=depth)
    assert net(images(3, 2, height, width)).shape == (3, 5, height, width)


def test_a_picture_does_not_depend_on_its_batch():
    net = UNet(width=4)
    batch = images(3, 3, 16, 16)
    torch.testing.assert_close(net(batch)[1:2], net(batch[1:2]))


def test_output_has_no_activation():
    net = UNet(width=4)
    torch.nn.init.zeros_(net.out.weight)
    torch.nn.init.constant_(net.out.bias, -3.0)
    assert torch.equal(net(images(1, 3, 8, 8)), torch.full((1, 1, 8, 8), -3.0))


def test_skips_carry_detail_past_the_bottleneck():
    net = UNet(width=4).double()
    x = images(1, 3, 16, 16, dtype=torch.float64, seed=1)
    expected = net(x)
    with torch.no_grad():
        for up in net.up:  # nothing comes up from below any more
            up.weight.zero_()
            up.bias.zero_()
    cut = net(x)
    assert not torch.allclose(cut, expected)
    assert cut.std() > 0.01


def test_every_parameter_learns_and_autocast_agrees():
    net = UNet(width=4, depth=2)
    x = images(2, 3, 16, 16)
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    torch.testing.assert_close(half.float(), net(x), rtol=0.1, atol=0.05)
    assert UNet(width=6).double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNet(depth=0), "depth"),
        (lambda: UNet(out_chans=0), "out_chans"),
        (lambda: UNet()(images(1, 3, 16, 18)), r"multiples of 4, got \(1, 3, 16, 18\)"),
        (lambda: UNet(depth=3)(images(1, 3, 12, 16)), "multiples of 8"),
        (lambda: UNet()(images(1, 1, 16, 16)), r"images: expected shape \(B, 3, H, W\), got \(1, 1"),
        (lambda: UNet()(images(3, 16, 16)), "images"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
