"""STS: self-supervised video representation learning by uncovering spatio-temporal statistics.

J. Wang, J. Jiao, L. Bao, S. He, W. Liu, Y.-H. Liu, T-PAMI 2021, arXiv 2008.13426 (extends CVPR 2019, arXiv
1904.03597); official code: laura-wang/video_repres_sts.

Ask a 3-D network about a clip in plain numbers: in which region of the frame is the largest motion, and which way does
it go; where does colour change most over time, where least, and what colour is it there? Three fixed patterns cut the
frame into numbered regions, so that the answer is a small integer. Motion is read from motion boundaries, the spatial
derivatives of the optical flow: a moving camera adds the same flow everywhere, and a derivative does not see it. The
network regresses 14 motion numbers and 13 appearance numbers with a squared error.

    three patterns                            region_masks
    motion boundaries                         motion_boundary
    dominant orientation (8 bins)             orientation_histogram
    14 motion labels                          motion_labels (a batch), motion_statistics (one clip)
    colour diversity (IoU of histograms)      color_overlap
    dominant colour (8 octants)               dominant_color
    13 appearance labels                      appearance_labels (a batch), appearance_statistics (one clip)
    loss                                      sts_loss
    network with two heads                    STS on R2Plus1D (the paper's) or SmallR2Plus1D (the miniature's)
    what `sslref train sts` trains            recipe
    the claims in miniature                   pretrain, run_transfer, run_pan

All labels count from 1. They are computed in float64 (colours: with integers), whatever the dtype of the clip.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.claims import Claim, Experiment
from sslref.data import folders
from sslref.data.worlds.moving import CHUNK, Clips, MovingWorld
from sslref.evaluate import accuracy, linear_probe, standardize
from sslref.nn import seeded
from sslref.nn.r2plus1d import R2Plus1D, SmallR2Plus1D
from sslref.optical import tv_l1
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="sts",
    title="Self-supervised Video Representation Learning by Uncovering Spatio-temporal Statistics",
    authors=("Jiangliu Wang", "Jianbo Jiao", "Linchao Bao", "Shengfeng He", "Wei Liu", "Yun-hui Liu"),
    venue="IEEE Transactions on Pattern Analysis and Machine Intelligence",
    year=2021,
    arxiv="2008.13426",
    code="https://github.com/laura-wang/video_repres_sts",
    part="motion",
    data=("moving world", "emoji", "photographs", "clips"),
    idea="Teach a video network to say where a clip moves most, which way, and where its colours change.",
    minutes=35,
    needs=("optical flow", "linear probe"),
)

PATTERNS = (1, 2, 3)
NUM_MOTION, NUM_APPEARANCE = 14, 13
MOTION_NAMES = tuple(f"{c}_{what}_{p}" for p in PATTERNS for c in "uv" for what in ("region", "direction")) + (
    "u_frame",
    "v_frame",
)
APPEARANCE_NAMES = tuple(
    f"{which}_{what}_{p}" for p in PATTERNS for which in ("diverse", "consistent") for what in ("region", "color")
) + ("color",)

# -------------------------------------------------------------------------------------------------- three patterns


def region_masks(pattern: int, size: int) -> Tensor:
    """The regions of a pattern, in the order in which the labels number them.

    1: a 4×4 grid, row by row. 2: a centre square with sides of a quarter, then the three square rings of width size/8
    around it. 3: each quadrant (upper left, upper right, lower left, lower right) halved along the diagonal that runs
    to the middle of the frame; first the half below the diagonal for the upper left and the lower right one, first
    the half above it for the other two. Both halves own the pixels of the diagonal.

    Returns:
        (K, size, size) bool, K = 16, 4, 8 for pattern 1, 2, 3.

    Raises:
        ValueError: another pattern, size not a positive multiple of 8.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern: expected 1, 2 or 3, got {pattern}")
    if size < 8 or size % 8:
        raise ValueError(f"size: expected a positive multiple of 8, got {size}")
    step = torch.arange(size)
    row, column = step[:, None], step[None, :]
    if pattern == 1:
        owner = 4 * (row // (size // 4)) + column // (size // 4)
        return owner == torch.arange(16)[:, None, None]
    if pattern == 2:
        to_border = torch.minimum(step, step.flip(0)) // (size // 8)  # 0 in the outermost ring, 3 in the centre
        owner = 3 - torch.minimum(to_border[:, None], to_border[None, :])
        return owner == torch.arange(4)[:, None, None]
    half = size // 2
    r, c = row % half, column % half
    main, anti = (r >= c, r <= c), (r + c <= half - 1, r + c >= half - 1)
    return torch.stack(
        [
            triangle & ((row >= half) == bool(down)) & ((column >= half) == bool(right))
            for down, right, triangles in ((0, 0, main), (0, 1, anti), (1, 0, anti), (1, 1, main))
            for triangle in triangles
        ]
    )


@functools.cache
def _regions(pattern: int, size: int, device: torch.device) -> Tensor:
    """(K, size * size) bool, on the device."""
    return region_masks(pattern, size).flatten(1).to(device)


@functools.cache
def _owners(pattern: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Every pair of a region and a pixel in it, as two tensors (P,), and the number of regions."""
    masks = region_masks(pattern, size).flatten(1)
    owner, pixel = masks.nonzero().to(device).unbind(1)
    return owner, pixel, len(masks)


# --------------------------------------------------------------------------------------------------- motion labels


def _boundary(flow: Tensor) -> Tensor:
    """(..., 2, H, W) -> (..., 2, 2, H, W) float64: [component u/v, derivative d_x/d_y]."""
    flow = flow.double()
    f = F.pad(flow.flatten(0, -4), (1, 1, 1, 1), mode="replicate").unflatten(0, flow.shape[:-3])
    # differences first: they cancel a constant exactly, whatever is added up afterwards
    x = f[..., :, :-2] - f[..., :, 2:]
    y = f[..., :-2, :] - f[..., 2:, :]
    x = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    y = y[..., :, :-2] + y[..., :, 1:-1] + y[..., :, 2:]
    return torch.stack([x, y], dim=-3)


def _check_flow(flow: Tensor, shape: str, *, square: bool = True) -> None:
    got = tuple(flow.shape)
    if flow.ndim != shape.count(",") + 1 or flow.shape[-3] != 2 or 0 in got:
        raise ValueError(f"flow: expected shape {shape}, not empty, got {got}")
    if square and got[-1] != got[-2]:
        raise ValueError(f"flow: expected square frames, shape {shape}, got {got}")
    if flow.is_complex():
        raise TypeError(f"flow: expected real numbers, got {flow.dtype}")


def motion_boundary(flow: Tensor) -> Tensor:
    """Spatial derivatives of the flow of one clip, each frame and each component for itself.

    A true convolution with the kernel [-1 0 1] on three rows (d_y: its transpose) and symmetric borders, so the
    result is *minus* the derivative: d_x(r, c) = sum over j = -1, 0, 1 of f(r + j, c - 1) - f(r + j, c + 1).
    Flow that is the same everywhere gives exactly 0.

    Args:
        flow: (T, 2, H, W) in pixels, u to the right and v down.

    Returns:
        (T, 2, 2, H, W): [frame, component u/v, derivative d_x/d_y], of the flow's dtype (integers give float64).

    Raises:
        ValueError: another shape.
    """
    _check_flow(flow, "(T, 2, H, W)", square=False)
    return _boundary(flow).to(flow.dtype if flow.is_floating_point() else torch.float64)


def _shares(angle: Tensor, num_bins: int) -> Tensor:
    """(..., *) degrees -> (..., *, num_bins): how much each bin gets; the two nearest bins share linearly."""
    a = angle[..., None] / (360 / num_bins)
    bins = torch.arange(num_bins, device=angle.device, dtype=angle.dtype)
    around = (a - bins + num_bins / 2) % num_bins - num_bins / 2  # in [-num_bins / 2, num_bins / 2)
    return (1 - around.abs()).clamp(min=0)


def orientation_histogram(magnitude: Tensor, angle: Tensor, *, num_bins: int = 8) -> Tensor:
    """Histogram of angles weighted by magnitude; bin k is centred on k * 360 / num_bins degrees.

    An angle between two centres is shared between their bins in proportion to its nearness (as in HOG).

    Args:
        magnitude: weights, any shape.
        angle: degrees, the same shape, taken modulo 360.

    Returns:
        (num_bins,), of the magnitude's dtype; its sum is that of the magnitudes.

    Raises:
        ValueError: shapes differ, num_bins < 2.
    """
    if magnitude.shape != angle.shape:
        raise ValueError(f"angle: expected the shape of magnitude, {tuple(magnitude.shape)}, got {tuple(angle.shape)}")
    if num_bins < 2:
        raise ValueError(f"num_bins: expected at least 2, got {num_bins}")
    histogram = magnitude.double().flatten() @ _shares(angle.double().flatten() % 360, num_bins)
    return histogram.to(magnitude.dtype if magnitude.is_floating_point() else torch.float64)


def motion_maps(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude and angle (degrees in [0, 360]) of the motion boundaries summed over the frames.

    Args:
        flow: (..., T, 2, H, W).

    Returns:
        Two tensors (..., 2, H, W) float64, for u and for v.
    """
    return _polar(_boundary(flow).sum(-5))


def _polar(boundary: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2, 2, H, W) -> magnitude and angle in degrees of each component, (..., 2, H, W)."""
    d_x, d_y = boundary.unbind(-3)
    return torch.hypot(d_x, d_y), torch.rad2deg(torch.atan2(d_y, d_x)) % 360


def motion_labels(flow: Tensor) -> Tensor:
    """The 14 motion labels of each clip of a batch; `MOTION_NAMES` lists them.

    For patterns 1, 2, 3: u_region, u_direction, v_region, v_direction; then u_frame, v_frame. The region has the
    largest sum (pattern 2: the largest mean) of boundary magnitudes, the direction is the fullest of 8 bins in it,
    the frame is that of the largest total magnitude. Ties go to the lower number. Without any motion pattern 1 gives
    0 and 0, all others 1.

    Args:
        flow: (B, T, 2, S, S) in pixels, S a multiple of 8.

    Returns:
        (B, 14) int64.

    Raises:
        ValueError: another shape, frames that are not square, S not a multiple of 8.
    """
    _check_flow(flow, "(B, T, 2, S, S)")
    boundary = _boundary(flow)
    magnitude, angle = (x.flatten(-2) for x in _polar(boundary.sum(1)))  # (B, 2, S * S)
    shares = magnitude[..., None] * _shares(angle, 8)

    labels = []
    for pattern in PATTERNS:
        inside = _regions(pattern, flow.shape[-1], flow.device).double()
        total = magnitude @ inside.T  # (B, 2, K)
        region = (total / inside.sum(1) if pattern == 2 else total).argmax(-1)
        direction = (shares * inside[region][..., None]).sum(-2).argmax(-1)  # (B, 2)
        moving = (total.amax(-1) > 0) if pattern == 1 else 1
        labels += [(region + 1) * moving, (direction + 1) * moving]
    frame = torch.hypot(*boundary.unbind(-3)).sum((-1, -2)).argmax(1) + 1  # (B, 2)
    patterns = torch.stack(labels, dim=-1).unflatten(-1, (3, 2)).transpose(1, 2)  # [pattern, component, what]
    return torch.cat([patterns.flatten(1), frame], dim=1)


def motion_statistics(flow: Tensor) -> Tensor:
    """The 14 motion labels of one clip, see `motion_labels`.

    Args:
        flow: (T, 2, S, S) in pixels.

    Returns:
        (14,) int64.

    Raises:
        ValueError: another shape, frames that are not square, S not a multiple of 8.
    """
    _check_flow(flow, "(T, 2, S, S)")
    return motion_labels(flow[None])[0]


def largest_flow_block(flow: Tensor) -> Tensor:
    """The block (1..16) of pattern 1 with the longest arrows of the flow itself, summed over the frames.

    Not in the paper: it is what motion boundaries are compared with.

    Args:
        flow: (B, T, 2, S, S) in pixels, S a multiple of 8.

    Returns:
        (B,) int64; ties go to the lower number.

    Raises:
        ValueError: as `motion_labels`.
    """
    _check_flow(flow, "(B, T, 2, S, S)")
    length = torch.hypot(*flow.double().sum(1).unbind(1)).flatten(1)
    return (length @ _regions(1, flow.shape[-1], flow.device).double().T).argmax(1) + 1


# ----------------------------------------------------------------------------------------------- appearance labels


COLOR_MODES = ("octant", "exact")


def _dominant(video: Tensor, masks: Tensor, mode: str) -> Tensor:
    """Dominant colour of each region: video (B, T, 3, P) uint8, masks (K, P) bool -> (B, K) int64 in 1..8."""
    if mode == "octant":
        red, green, blue = (video >> 7).unbind(2)
        octant = 2 * red + green + 4 * (1 - blue)
        counts = torch.stack([(octant == k).sum(1) for k in range(8)], dim=1)  # (B, 8, P)
        return (counts.double() @ masks.double().T).argmax(1) + 1
    red, green, blue = video.int().unbind(2)
    code = blue * 65536 + green * 256 + red
    code = torch.stack([_most_frequent(code[:, :, mask].flatten(1)) for mask in masks], dim=1)
    return (2 * (code >> 7 & 1) + (code >> 15 & 1) + 4 * (1 - (code >> 23))).long() + 1


def _most_frequent(x: Tensor) -> Tensor:
    """The most frequent value of each row (B, N) of integers, ties to the lowest."""
    x = x.sort(1).values
    place = torch.arange(x.shape[1], device=x.device)
    starts = F.pad(x[:, 1:] != x[:, :-1], (1, 0), value=True)
    run = place - torch.where(starts, place, 0).cummax(1).values  # equal values before this one
    return x.gather(1, run.argmax(1, keepdim=True))[:, 0]


def _check_mode(name: str, mode: str) -> None:
    if mode not in COLOR_MODES:
        raise ValueError(f'{name}: expected "octant" or "exact", got {mode!r}')


def dominant_color(pixels: Tensor, *, mode: str = "octant") -> int:
    """The octant of the RGB cube, split at 127/128, that dominates: 1 + 2 R + G, plus 4 where blue is low.

    Args:
        pixels: (N, 3) uint8, RGB.
        mode: "octant" takes the octant of most pixels (the paper), "exact" the octant of the most frequent exact
            colour (the official code). Ties: the lower octant; the lower code B * 65536 + G * 256 + R.

    Returns:
        1 to 8.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, no pixel, unknown mode.
    """
    _check_mode("mode", mode)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels: expected torch.uint8, got {pixels.dtype}")
    if pixels.ndim != 2 or pixels.shape[1] != 3 or len(pixels) == 0:
        raise ValueError(f"pixels: expected shape (N, 3), not empty, got {tuple(pixels.shape)}")
    whole = torch.ones(1, len(pixels), dtype=torch.bool, device=pixels.device)
    return int(_dominant(pixels.T[None, None], whole, mode))


def color_overlap(video: Tensor, pattern: int) -> Tensor:
    """How little the colours of each region change over time: IoU of its histograms, 1 where they stay the same.

    IoU = sum over bins of the smallest count / of the largest count over the frames, with 256 bins a channel;
    the mean over the three channels.

    Args:
        video: (B, T, 3, S, S) uint8.

    Returns:
        (B, K) float64, K regions.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, unknown pattern, S not a multiple of 8.
    """
    _check_video(video, "(B, T, 3, S, S)")
    owner, pixel, regions = _owners(pattern, video.shape[-1], video.device)
    slot = video.flatten(3)[..., pixel] + 256 * owner  # (B, T, 3, P): which bin of which region each pixel fills
    counts = slot.new_zeros(*slot.shape[:3], 256 * regions, dtype=torch.int32)
    counts = counts.scatter_add_(3, slot, torch.ones_like(slot, dtype=torch.int32)).unflatten(3, (-1, 256))
    return (counts.amin(1).sum(-1).double() / counts.amax(1).sum(-1)).mean(1)


def _check_video(video: Tensor, shape: str, name: str = "video") -> None:
    if video.dtype != torch.uint8:
        raise TypeError(f"{name}: expected torch.uint8, got {video.dtype}")
    got = tuple(video.shape)
    if video.ndim != shape.count(",") + 1 or got[-3] != 3 or got[-1] != got[-2] or 0 in got:
        raise ValueError(f"{name}: expected shape {shape}, not empty, got {got}")


def appearance_labels(video: Tensor, *, color_mode: str = "octant") -> Tensor:
    """The 13 appearance labels of each clip of a batch; `APPEARANCE_NAMES` lists them.

    For patterns 1, 2, 3: the region of the smallest colour overlap (most diverse), its dominant colour, the region of
    the largest (most consistent), its dominant colour; then the dominant colour of the whole clip. Ties go to the
    lower number.

    Args:
        video: (B, T, 3, S, S) uint8, RGB, S a multiple of 8.
        color_mode: see `dominant_color`.

    Returns:
        (B, 13) int64.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, S not a multiple of 8, unknown color_mode.
    """
    _check_mode("color_mode", color_mode)
    _check_video(video, "(B, T, 3, S, S)")
    flat = video.flatten(3)
    masks = [_regions(p, video.shape[-1], video.device) for p in PATTERNS]
    masks.append(torch.ones_like(masks[0][:1]))  # the whole frame
    *colors, whole = _dominant(flat, torch.cat(masks), color_mode).split([len(m) for m in masks], dim=1)
    labels = []
    for pattern, color in zip(PATTERNS, colors, strict=True):
        overlap = color_overlap(video, pattern)
        for region in (overlap.argmin(1, keepdim=True), overlap.argmax(1, keepdim=True)):
            labels += [region + 1, color.gather(1, region)]
    return torch.cat([*labels, whole], dim=1)


def appearance_statistics(clip: Tensor, *, color_mode: str = "octant") -> Tensor:
    """The 13 appearance labels of one clip, see `appearance_labels`.

    Args:
        clip: (T, 3, S, S) uint8, RGB.
        color_mode: see `dominant_color`.

    Returns:
        (13,) int64.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, S not a multiple of 8, unknown color_mode.
    """
    _check_video(clip, "(T, 3, S, S)", name="clip")
    return appearance_labels(clip[None], color_mode=color_mode)[0]


# ------------------------------------------------------------------------------------------------------------ loss


def sts_loss(
    motion_pred: Tensor,
    motion_target: Tensor,
    appearance_pred: Tensor,
    appearance_target: Tensor,
    *,
    motion_weight: float = 1.0,
    appearance_weight: float = 0.1,
) -> Tensor:
    """motion_weight * MSE(motion) + appearance_weight * MSE(appearance), means over batch and labels.

    The labels are regressed as they are, without any normalisation.

    Args:
        motion_pred, motion_target: (B, 14). appearance_pred, appearance_target: (B, 13). Targets are cast to the
            dtype of the predictions.

    Raises:
        ValueError: shapes.
    """
    tensors = {"motion": (motion_pred, motion_target), "appearance": (appearance_pred, appearance_target)}
    for (name, pair), width in zip(tensors.items(), (NUM_MOTION, NUM_APPEARANCE), strict=True):
        for kind, x in zip(("pred", "target"), pair, strict=True):
            if tuple(x.shape) != (len(motion_pred), width) or len(x) == 0:
                raise ValueError(f"{name}_{kind}: expected shape (B, {width}), B > 0, got {tuple(x.shape)}")
    motion, appearance = (F.mse_loss(pred, target.to(pred.dtype)) for pred, target in tensors.values())
    return motion_weight * motion + appearance_weight * appearance


# --------------------------------------------------------------------------------------------------------- network


class Output(NamedTuple):
    features: Tensor  # (B, encoder.out_dim), what a probe reads
    motion: Tensor  # (B, 14)
    appearance: Tensor  # (B, 13)


class STS(nn.Module):
    """An encoder of video with one linear layer for each kind of label."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.motion = nn.Linear(encoder.out_dim, NUM_MOTION)
        self.appearance = nn.Linear(encoder.out_dim, NUM_APPEARANCE)

    def forward(self, video: Tensor) -> Output:
        h = self.encoder(video)
        return Output(h, self.motion(h), self.appearance(h))


# --------------------------------------------------------------------------------------------------------- training


class Labelled(NamedTuple):
    video: Tensor  # (B, T, 3, S, S) uint8
    motion: Tensor  # (B, 14) int64
    appearance: Tensor  # (B, 13) int64


def label(video: Tensor, flow: Tensor) -> Labelled:
    """Clips (B, T, 3, S, S) in [0, 1] with the labels of their flow (B, T - 1, 2, S, S) and of their colours."""
    video = (255 * video).round().byte()
    return Labelled(video, motion_labels(flow), appearance_labels(video))


def estimate_flow(video: Tensor, **options) -> Tensor:
    """TV-L1 flow, the paper's choice, between neighbouring frames: (B, T, 3, H, W) in [0, 1] -> (B, T - 1, 2, H, W).

    Options and errors are those of `sslref.optical.tv_l1`.
    """
    red, green, blue = video.unbind(2)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(2)
    flow = tv_l1(grey[:, :-1].flatten(0, 1), grey[:, 1:].flatten(0, 1), **options)
    return flow.unflatten(0, (len(video), -1))


def task(
    model: STS,
    draw: Callable[[torch.Generator], Labelled],
    *,
    motion_weight: float = 1.0,
    appearance_weight: float = 0.1,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[int, int], float],
) -> Task:
    """What `fit` trains: `draw` gives the clips of a batch with their labels."""

    def batch(generator: torch.Generator) -> tuple[Tensor, ...]:
        video, motion, appearance = draw(generator)
        return video.float() / 255, motion, appearance

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        video, motion, appearance = batch
        out = model(video)
        arguments = out.motion, motion, out.appearance, appearance
        return {
            "loss": sts_loss(*arguments, motion_weight=motion_weight, appearance_weight=appearance_weight),
            "motion": sts_loss(*arguments, appearance_weight=0).detach(),
            "appearance": sts_loss(*arguments, motion_weight=0, appearance_weight=1).detach(),
        }

    return Task(model, batch, loss, optimizer, schedule)


def _official_sgd(model: nn.Module) -> torch.optim.SGD:
    """Biases, those of BatchNorm too, learn at twice the rate; everything decays."""
    groups = {False: {"params": []}, True: {"params": [], "lr": 1e-3}}
    for name, parameter in model.named_parameters():
        groups[name.endswith("bias")]["params"].append(parameter)
    return torch.optim.SGD(groups.values(), lr=5e-4, momentum=0.9, weight_decay=5e-3)


def crop_and_mirror(video: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random square of each clip, mirrored with probability 1/2: (B, T, C, H, W) -> (B, T, C, size, size).

    Raises:
        ValueError: another shape, or frames smaller than size.
    """
    if video.ndim != 5 or min(video.shape[-2:]) < size:
        raise ValueError(f"video: expected shape (B, T, C, H, W) with H, W >= {size}, got {tuple(video.shape)}")
    height, width = video.shape[-2:]
    draws = {"size": (len(video), 1), "generator": generator, "device": video.device}
    step = torch.arange(size, device=video.device)
    rows = torch.randint(height - size + 1, **draws) + step
    columns = torch.randint(width - size + 1, **draws) + step
    columns = torch.where(torch.rand(**draws) < 0.5, columns.flip(1), columns)
    clip = torch.arange(len(video), device=video.device)[:, None, None]
    return video.permute(0, 3, 4, 1, 2)[clip, rows[:, :, None], columns[:, None, :]].permute(0, 3, 4, 1, 2)


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train sts` trains.

    Args:
        source: a folder of videos, see `sslref.data.folders.video_folder`. Each batch is cropped and mirrored, then its
            flow is estimated by TV-L1 on the device, then it is labelled, so no flow need be prepared. None: the moving
            world, whose flow is exact.
        batch_size: in place of 30 (paper) or 32 (miniature).
        size: "paper" is the recipe of the official code: R(2+1)D, 16 frames, 112×112 of 128×128 pixels, SGD, 18 epochs
            of one clip a video (without a source: as many steps as the 9,537 training videos of UCF101 make).
            "miniature" is this chapter's: 8 frames of 32×32. By default "paper" where there is a source.

    Raises:
        ValueError: unknown size, fewer than two clips a batch. DataError: source is not what is expected.
    """
    if batch_size is not None and batch_size < 2:
        raise ValueError(f"batch_size: expected at least 2, for BatchNorm, got {batch_size}")
    size = recipe_size(size, source)
    paper = size == "paper"
    frames, side, full = (16, 112, 128) if paper else (8, 32, 36)
    batch_size, count, name = batch_size or (30 if paper else 32), 9537, "moving world"
    if source is not None:
        videos = folders.video_folder(source, frames=frames, size=full)
        count, name = len(videos), Path(source).name

        def draw(generator: torch.Generator) -> Labelled:
            video = crop_and_mirror(videos.sample(batch_size, generator)[0], side, generator)
            return label(video, estimate_flow(video))

    elif paper:
        world = MovingWorld(frames=frames, size=side, diameter=(42, 63), photo_side=240)

        def draw(generator: torch.Generator) -> Labelled:
            clips = world.sample(batch_size, generator)
            return label(clips.video, clips.exact_flow())

    else:
        draw = _rows_of(world_clips("train", 2000, 0, device)[0], batch_size)
    if paper:
        model, steps = seeded(0, lambda: STS(R2Plus1D())), 18 * math.ceil(count / batch_size)
        options = {"optimizer": _official_sgd, "schedule": lambda step, steps: 0.1 ** (3 * step // steps)}
    else:
        model, steps, options = seeded(0, lambda: STS(SmallR2Plus1D())), 300, MINIATURE
    about = f"STS, {size} recipe: {type(model.encoder).__name__}, clips of {frames} frames of {side}×{side}, {name}"
    return Recipe(task(model, draw, **options), steps, batch_size, about)


# ----------------------------------------------------------------------- the claim in miniature: the moving world

MINIATURE = {
    "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3),
    "schedule": warmup_cosine(0.3),
}
# Weights of the two parts of the loss. "random" is never trained.
ARMS = {
    "random": (0.0, 0.0),
    "appearance": (0.0, 0.1),
    "motion": (1.0, 0.0),
    "both": (1.0, 0.1),
}


@functools.lru_cache(maxsize=2)
def world_clips(split: str, count: int, seed: int, device: str = "cpu") -> tuple[Labelled, dict[str, Tensor]]:
    """Clips of the moving world with their labels, and what else is known of them.

    That is: "direction", "block" and "category", for probes; "emoji", by which they are split. The block is the one of
    4×4 that holds most of the emoji. Emoji and backgrounds of the split "test" are never seen in "train".
    """
    generator = torch.Generator(device).manual_seed(2 * seed + (split == "test"))
    world, parts, known = MovingWorld(split=split), [], []
    for start in range(0, count, CHUNK):
        clips = world.sample(min(CHUNK, count - start), generator)
        parts.append(label(clips.video, clips.exact_flow()))
        known.append({name: clips.meta[name][:, 0] for name in ("direction", "category", "emoji")})
        known[-1]["block"] = emoji_block(clips) - 1
    return Labelled(*map(torch.cat, zip(*parts, strict=True))), {k: torch.cat([d[k] for d in known]) for k in known[0]}


def emoji_block(clips: Clips) -> Tensor:
    """The block (1..16) of pattern 1 that holds most of the objects, over all frames: (B,)."""
    size = clips.parts.shape[-1]
    covered = (clips.parts > 0).double().sum(1).flatten(1)
    return (covered @ _regions(1, size, covered.device).double().T).argmax(1) + 1


def _rows_of(clips: Labelled, batch_size: int) -> Callable[[torch.Generator], Labelled]:
    def draw(generator: torch.Generator) -> Labelled:
        rows = torch.randint(len(clips.video), (batch_size,), generator=generator, device=generator.device)
        return Labelled(*(x[rows] for x in clips))

    return draw


def pretrain(
    arm: str, *, seed: int, steps: int, clips: int, device: str = "cpu", progress: bool | Callable = False
) -> tuple[STS, History]:
    """Train an arm on the moving world. Same seed: same clips, same initialisation, same batches in every arm.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    data, _ = world_clips("train", clips, seed, device)
    model = seeded(seed, lambda: STS(SmallR2Plus1D())).to(device)
    for head, target in ((model.motion, data.motion), (model.appearance, data.appearance)):
        head.bias.data.copy_(target.double().mean(0))  # so that no step is spent on finding the mean
    if arm == "random":
        with torch.no_grad():  # statistics for BatchNorm, as training would leave them
            for x in data.video[:1024].split(32):
                model.train()(x.float() / 255)
        return model.eval(), History()
    weights = dict(zip(("motion_weight", "appearance_weight"), ARMS[arm], strict=True))
    job = task(model, _rows_of(data, 32), **weights, **MINIATURE)
    history = fit(job, steps=steps, seed=seed, device=device, progress=progress)
    return job.model.eval(), history


@torch.no_grad()
def predict(model: STS, video: Tensor) -> Output:
    """Features and predicted labels of clips (B, T, 3, 32, 32) uint8."""
    return Output(*map(torch.cat, zip(*(model(x.float() / 255) for x in video.split(128)), strict=True)))


def run_transfer(arm: str, *, seed: int, device: str, steps: int, clips: int, test: int) -> dict[str, float]:
    """Pre-train, then linear probes on clips of unseen emoji: half of these to fit the probe, half to test it."""
    model, _ = pretrain(arm, seed=seed, steps=steps, clips=clips, device=device)
    held_out, known = world_clips("test", test, seed, device)
    out = predict(model, held_out.video)
    emoji = known["emoji"]
    order = torch.randperm(int(emoji.max()) + 1, generator=torch.Generator().manual_seed(seed)).to(device)
    fit_on = order[emoji] < len(order) // 2
    x, x_test = standardize(out.features[fit_on], out.features[~fit_on])
    scores = {}
    for name in ("direction", "block", "category"):
        y = known[name]
        scores[name] = 100 * accuracy(linear_probe(x, y[fit_on], x_test, C=0.05), y[~fit_on])
    for name, said, truth, weight in zip(("motion_r2", "appearance_r2"), out[1:], held_out[1:], ARMS[arm], strict=True):
        if weight:
            error, spread = (said - truth).double().square().mean(0), truth.double().var(0, correction=0)
            scores[name] = (1 - error / spread).mean().item()
    return scores


def run_pan(arm: str, *, seed: int, device: str, clips: int) -> dict[str, float]:
    """Labels of the same clips with the flow of the panning camera, and without it.

    Returns:
        `changed`, the share of clips of which any label changes; `found` and `found_without_pan`, the per cent of
        clips whose label is the block of the emoji (for boundaries: that of u in pattern 1).
    """
    world = MovingWorld(split="test").sample(clips, torch.Generator(device).manual_seed(seed))
    # in float64 a sum of two float32 is exact, so taking the pan out leaves no rounding behind
    flow = world.exact_flow().double()
    still = flow + world.meta["camera"].double()[:, None, :, None, None]
    block = emoji_block(world)

    def labels(flow: Tensor) -> Tensor:
        return largest_flow_block(flow)[:, None] if arm == "raw flow" else motion_labels(flow)

    panned, without = (torch.cat([labels(x) for x in f.split(CHUNK)]) for f in (flow, still))
    return {
        "changed": (panned != without).any(1).double().mean().item(),
        "found": 100 * (panned[:, 0] == block).double().mean().item(),
        "found_without_pan": 100 * (without[:, 0] == block).double().mean().item(),
    }


EXPERIMENTS = {
    "pan": Experiment(
        run_pan,
        ("raw flow", "motion boundary"),
        {
            "smoke": {"seeds": 2, "clips": 32},
            "ci": {"seeds": 3, "clips": 200},
            "ledger": {"seeds": 10, "clips": 1000},
            "gpu": {"seeds": 32, "clips": 4000},
        },
    ),
    "transfer": Experiment(
        run_transfer,
        tuple(ARMS),
        {
            "smoke": {"seeds": 2, "steps": 2, "clips": 64, "test": 160},
            "ci": {"seeds": 1, "steps": 100, "clips": 800, "test": 600},
            "ledger": {"seeds": 10, "steps": 300, "clips": 2000, "test": 2000},
            "gpu": {"seeds": 32, "steps": 3000, "clips": 20000, "test": 8000},
        },
    ),
}

_PROBE = {"experiment": "transfer", "higher_is_better": True, "unit": "points"}
CLAIMS = (
    Claim(
        id="pan",
        statement="A panning camera changes none of the 14 motion labels, but often the block of the largest raw flow.",
        experiment="pan",
        metric="changed",
        higher_is_better=False,
        baseline="raw flow",
        method="motion boundary",
        exact=True,
    ),
    Claim(
        id="found",
        statement="Under a panning camera the largest motion boundary lies in the block of the moving thing more often "
        "than the largest raw flow does.",
        experiment="pan",
        metric="found",
        higher_is_better=True,
        unit="points",
        baseline="raw flow",
        method="motion boundary",
        kind="gain",
    ),
    Claim(
        id="direction",
        statement="Motion statistics teach in which direction a thing travels; appearance statistics do not.",
        metric="direction",
        baseline="appearance",
        method="motion",
        **_PROBE,
    ),
    Claim(
        id="direction_random",
        statement="Motion statistics teach the direction of travel better than random weights know it.",
        metric="direction",
        baseline="random",
        method="motion",
        **_PROBE,
    ),
    Claim(
        id="block",
        statement="Motion statistics teach where the moving thing is, better than appearance statistics do.",
        metric="block",
        baseline="appearance",
        method="motion",
        ablations=("random",),
        **_PROBE,
    ),
    Claim(
        id="both",
        statement="Motion and appearance statistics together teach the direction of travel better than motion alone.",
        metric="direction",
        baseline="motion",
        method="both",
        kind="gain",
        **_PROBE,
    ),
    Claim(
        id="category",
        statement="Motion statistics teach what the moving thing is, better than random weights know it.",
        metric="category",
        baseline="random",
        method="motion",
        ablations=("appearance", "both"),
        kind="gain",
        **_PROBE,
    ),
)
