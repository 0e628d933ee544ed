import pytest
import torch

from sslref.nn import ConvNet, SmallResNet


def images(batch=2, channels=3, side=16, seed=0, **kwargs):
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.mark.parametrize("blocks", [(1,), (1, 1, 1), (2, 1, 3, 1)])
def test_resnet_stages_double_the_width_and_halve_the_map(blocks):
    net = SmallResNet(width=4, blocks=blocks)
    assert net.out_dim == 4 * 2 ** (len(blocks) - 1)
    side = 16 // 2 ** (len(blocks) - 1)
    assert net.features(images()).shape == (2, net.out_dim, side, side)
    assert [len(stage) for stage in net.stages] == list(blocks)


def test_resnet_stem_and_first_stage_keep_the_size():
    net = SmallResNet(width=4, blocks=(2, 1))
    strides = [m.stride for stage in net.stages for m in stage.modules() if isinstance(m, torch.nn.Conv2d)]
    assert net.stem[0].stride == (1, 1)
    # first stage: 4 convolutions; second: two of the body and the projection, of which the first and last stride
    assert strides == [(1, 1)] * 4 + [(2, 2), (1, 1), (2, 2)]


def test_resnet_block_adds_its_input():
    net = SmallResNet(width=4, blocks=(1,)).eval()
    last_norm = net.stages[0][0].body[-1]
    torch.nn.init.zeros_(last_norm.weight)  # the body now gives 0, so ReLU of the (non-negative) stem passes through
    assert torch.equal(net.features(images()), net.stem(images()))


@pytest.mark.parametrize("net", [SmallResNet(width=4), ConvNet(widths=(4, 8))])
def test_representation_is_the_mean_over_positions(net):
    net.eval()
    torch.testing.assert_close(net(images()), net.features(images()).flatten(2).mean(2))
    assert net(images()).shape == (2, net.out_dim)


def test_resnet_classifier_is_linear_on_the_representation():
    net = SmallResNet(width=4, num_classes=5).eval()
    expected = net.features(images()).mean((2, 3)) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images()), expected)


def test_convnet_has_one_stride_2_convolution_a_width():
    net = ConvNet()
    assert net.out_dim == 192
    assert net.features(images(side=32)).shape == (2, 192, 2, 2)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride) for c in convolutions] == [
        (3, 24, (2, 2)),
        (24, 48, (2, 2)),
        (48, 96, (2, 2)),
        (96, 192, (2, 2)),
    ]


@pytest.mark.parametrize("make", [lambda: SmallResNet(in_chans=1, width=4), lambda: ConvNet(in_chans=1, widths=(4, 8))])
def test_networks_train_in_float64_and_under_autocast(make):
    net = make().double()
    out = net(images(channels=1, dtype=torch.float64))
    assert out.dtype == torch.float64
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net = make().eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = net(images(channels=1))
    torch.testing.assert_close(half.float(), net(images(channels=1)), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SmallResNet(blocks=()), "blocks"),
        (lambda: SmallResNet(blocks=(1, 0)), "blocks"),
        (lambda: SmallResNet(width=0), "width"),
        (lambda: SmallResNet(in_chans=0), "in_chans"),
        (lambda: SmallResNet(num_classes=0), "num_classes"),
        (lambda: ConvNet(widths=()), "widths"),
        (lambda: ConvNet(in_chans=0), "in_chans"),
        (lambda: SmallResNet(width=4)(images(channels=1)), r"images: expected shape \(B, 3, H, W\), got \(2, 1, 16"),
        (lambda: ConvNet()(images()[0]), r"images: expected shape \(B, 3, H, W\), got \(3, 16"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
