"""Optical flow: warping, error, colours. Flow is (B, 2, H, W) in pixels, channel 0 to the right, channel 1 down."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_flow(name: str, flow: Tensor) -> None:
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"{name}: expected shape (B, 2, H, W), got {tuple(flow.shape)}")
    if not flow.is_floating_point():
        raise TypeError(f"{name}: expected floating point, got {flow.dtype}")


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision holds no pixel coordinates beyond 256."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """The image read at p + flow(p), bilinear between pixel centres, with border values outside.

    With forward flow f (`I2(p + f(p)) = I1(p)`), `warp(I2, f)` is I1 wherever nothing is hidden.

    Args:
        image: (B, C, H, W), floating point.
        flow: (B, 2, H, W), pixels.

    Returns:
        (B, C, H, W), of the image's dtype; differentiable in both.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers.
    """
    _check_flow("flow", flow)
    if image.ndim != 4 or (len(image), *image.shape[2:]) != (len(flow), *flow.shape[2:]):
        expected = f"({len(flow)}, C, {flow.shape[2]}, {flow.shape[3]})"
        raise ValueError(f"image: expected shape {expected} to go with flow, got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise TypeError(f"image: expected floating point, got {image.dtype}")
    height, width = image.shape[2:]
    flow = _at_least_float32(flow)
    flow = flow.to(torch.promote_types(flow.dtype, image.dtype))
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype)
    # align_corners=True: -1 and 1 are the centres of the first and last pixel; a side of one pixel has both at 0
    grid = torch.stack(
        [2 * (x + flow[:, 0]) / max(width - 1, 1) - 1, 2 * (y + flow[:, 1]) / max(height - 1, 1) - 1], dim=-1
    )
    with torch.autocast(flow.device.type, enabled=False):
        warped = F.grid_sample(image.to(grid.dtype), grid, padding_mode="border", align_corners=True)
    return warped.to(image.dtype)


def end_point_error(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The mean Euclidean distance between two flows, in pixels, over the (masked) pixels of the whole batch.

    Args:
        pred: (B, 2, H, W).
        target: (B, 2, H, W); may be nan where the mask is False.
        mask: (B, H, W) bool, True = counts.

    Returns:
        A scalar; nan if the mask is empty, since asking would make the host wait for the device.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers, or a mask that is not bool.
    """
    _check_flow("pred", pred)
    _check_flow("target", target)
    if pred.shape != target.shape:
        raise ValueError(f"target: expected shape {tuple(pred.shape)}, got {tuple(target.shape)}")
    difference = _at_least_float32(pred) - target
    if mask is None:
        return torch.linalg.vector_norm(difference, dim=1).mean()
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool, got {mask.dtype}")
    if mask.shape != pred[:, 0].shape:
        raise ValueError(f"mask: expected shape {tuple(pred[:, 0].shape)}, got {tuple(mask.shape)}")
    # before the norm, not after it: a nan that is masked afterwards still spoils the gradient
    difference = difference.where(mask[:, None], 0)
    return torch.linalg.vector_norm(difference, dim=1).sum() / mask.sum()


def flow_to_color(flow: Tensor, *, max_norm: float | None = None) -> Tensor:
    """Flow as colours: the hue is the direction, the saturation the length; no motion is white, (1, 0) is red.

    Args:
        flow: (B, 2, H, W).
        max_norm: the length, in pixels, of full saturation; the largest length of each picture if None.

    Returns:
        (B, 3, H, W) RGB in [0, 1]: hue = atan2(f_y, f_x) / 2 pi, saturation = length / max_norm clipped at 1, value 1.

    Raises:
        ValueError: another shape, or max_norm <= 0.
        TypeError: integers.
    """
    _check_flow("flow", flow)
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm: expected > 0, got {max_norm}")
    flow = _at_least_float32(flow)
    length = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    if max_norm is None:  # a picture without motion has largest length 0 and stays white
        max_norm = length.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(length.dtype).tiny)
    saturation = (length / max_norm).clamp(max=1)
    sixths = torch.atan2(flow[:, 1:], flow[:, :1]) * (3 / math.pi)
    # each channel is a trapezoid over the circle of hues, centred on its own colour: 0, 2 and 4 sixths
    centre = torch.arange(0, 6, 2, device=flow.device, dtype=flow.dtype).view(1, 3, 1, 1)
    away = ((sixths - centre + 3) % 6 - 3).abs()
    return 1 - saturation * (1 - (2 - away).clamp(0, 1))


def tv_l1(
    first: Tensor,
    second: Tensor,
    *,
    attachment: float = 15.0,
    tightness: float = 0.3,
    warps: int = 5,
    iterations: int = 10,
) -> Tensor:
    """Estimate the forward flow between two pictures: total variation with an L1 data term (Zach, Pock, Bischof 2007).

    From coarse to fine, as long as the short side has 16 pixels. At each size the second picture is warped and
    linearised `warps` times; in between, `iterations` steps alternate between explaining the difference and smoothing
    the flow (the dual of total variation). A pair takes a few thousand small operations, so pass many pairs at once.

    Args:
        first, second: (B, 1, H, W) grey pictures with values in [0, 1].
        attachment: weight of the pictures against the smoothness of the flow, as in scikit-image.
        tightness: of the coupling between the two steps.

    Returns:
        (B, 2, H, W) pixels, float32 or the wider dtype of the pictures.

    Raises:
        ValueError: shapes that do not fit, numbers out of range.
        TypeError: integers.
    """
    if first.ndim != 4 or first.shape[1] != 1 or first.shape != second.shape:
        raise ValueError(
            f"first, second: expected one shape (B, 1, H, W), got {tuple(first.shape)}, {tuple(second.shape)}"
        )
    for name, value in (
        ("attachment", attachment),
        ("tightness", tightness),
        ("warps", warps),
        ("iterations", iterations),
    ):
        if not value > 0:
            raise ValueError(f"{name}: expected > 0, got {value}")
    if not (first.is_floating_point() and second.is_floating_point()):
        raise TypeError(f"first, second: expected floating point, got {first.dtype}, {second.dtype}")
    first, second = _at_least_float32(first), _at_least_float32(second)
    longest = attachment * tightness
    levels = 1 + max(0, math.floor(math.log2(min(first.shape[2:]) / 16)))
    flow = first.new_zeros(len(first), 2, 1, 1)
    for level in reversed(range(levels)):
        height, width = (round(side / 2**level) for side in first.shape[2:])
        a, b = (_resize(x, height, width) for x in (first, second))
        wider, higher = width / flow.shape[3], height / flow.shape[2]
        flow = _resize(flow, height, width)
        flow = torch.stack([wider * flow[:, 0], higher * flow[:, 1]], dim=1)
        p = F.pad(b, (1, 1, 1, 1), mode="replicate")
        slope = torch.cat([p[..., 1:-1, 2:] - p[..., 1:-1, :-2], p[..., 2:, 1:-1] - p[..., :-2, 1:-1]], dim=1) / 2
        dual = torch.zeros_like(flow)[:, :, None].expand(-1, -1, 2, -1, -1)
        for _ in range(warps):
            there = warp(torch.cat([b, slope], dim=1), flow)
            gradient = there[:, 1:]
            square = gradient.square().sum(1, keepdim=True).clamp_min(1e-12)
            rest = there[:, :1] - a - (gradient * flow).sum(1, keepdim=True)
            for _ in range(iterations):
                wrong = rest + (gradient * flow).sum(1, keepdim=True)
                flow = flow - (wrong / square).clamp(-longest, longest) * gradient
                flow = flow + tightness * _divergence(dual)
                rise = _gradient(flow) * (0.25 / tightness)
                dual = (dual + rise) / (1 + torch.linalg.vector_norm(rise, dim=2, keepdim=True))
    return flow


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", antialias=height < x.shape[2])


def _gradient(f: Tensor) -> Tensor:
    """Forward differences (B, C, 2, H, W), 0 at the end."""
    return torch.stack([F.pad(f.diff(dim=3), (0, 1)), F.pad(f.diff(dim=2), (0, 0, 0, 1))], dim=2)


def _divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of `_gradient`: (B, C, 2, H, W) -> (B, C, H, W)."""
    x, y = p[:, :, 0, :, :-1], p[:, :, 1, :-1]
    return F.pad(x, (0, 1)) - F.pad(x, (1, 0)) + F.pad(y, (0, 0, 0, 1)) - F.pad(y, (0, 0, 1, 0))
