"""What `sslref.gpu` compares: every function of the contracts, on small inputs. A new paper adds rows to `CASES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Draw:
    """Inputs, drawn on the CPU: float64 in type, float32 numbers in value, so that all precisions get the same."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).double()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).double()

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(classes, shape, generator=self.generator)

    def bytes(self, *shape: int) -> Tensor:
        return self.labels(256, *shape).byte()

    def chance(self, p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < p

    def order(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) int64, a permutation in every row."""
        return torch.rand(rows, columns, generator=self.generator).argsort(1)

    def groups(self, rows: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
        """Points (rows, dim) around one corner a class, and their classes."""
        y = torch.arange(rows) % classes
        return self.normal(rows, dim) + 3 * torch.eye(dim, dtype=torch.float64)[y], y

    def graph(self, nodes: int = 30) -> Tensor:
        return self.labels(nodes, 2, 2 * nodes)


@dataclass(frozen=True)
class Case:
    """One function and how to try it.

    Args:
        name: "simclr.nt_xent": a function or class below `sslref` or `sslref.papers`.
        make: Draw -> positional arguments.
        options: keyword arguments.
        build: of a class, the keyword arguments of its constructor; the instance is then called.
        call: (function, *arguments, **options) -> output, where it is not simply called.
        float32, bf16: largest deviation, as a share of the largest value of an output; bf16 None: does not apply.
        law: of a random function, whose stream differs between devices: (output, *arguments) -> is that allowed? The
            function gets a generator of the device and must give the same output twice.
    """

    name: str
    make: Callable[[Draw], tuple]
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] | None = None
    call: Callable | None = None
    float32: float = 1e-5
    bf16: float | None = 0.02
    law: Callable[..., bool] | None = None


# Functions of the contracts that no tensor enters: they run on the host.
HOST_ONLY = (
    "nn.cosine_schedule",
    "nn.mae.sincos_2d",
    "nutime.numerical_scales",
    "sts.region_masks",
    "mec.coding_constants",
    "mec.lamda_schedule",
    "scatsimclr.scattering_channels",
    "scatsimclr.morlet_bank",
    "extrema.ema_momentum",
)


# -------------------------------------------------------------------------------- calls that take more than one line


def _ema(teacher: type, student: nn.Module, moved: nn.Module) -> list[Tensor]:
    teacher = teacher(student, momentum=0.9)
    teacher.update(moved)
    return list(teacher.parameters())


def _queue(queue: type, rows: Tensor) -> Tensor:
    queue = queue(5, rows.shape[1])
    for part in rows.split(3):
        queue.enqueue(part)
    return queue.items()


def _ring(queue: type, rows: Tensor) -> Tensor:
    queue = queue(5, rows.shape[1])
    for part in (rows[:3], rows[3:8]):  # fills every row
        queue.push(part)
    return queue.keys


def _followed(ema_update: Callable, teacher: nn.Module, student: nn.Module) -> list[Tensor]:
    ema_update(teacher, student, momentum=0.9)
    return list(teacher.parameters())


def _gcn(gcn: nn.Module, x: Tensor, edge_index: Tensor, *, sparse: bool) -> Tensor:
    from sslref.nn import gcn_norm

    return gcn(x, gcn_norm(edge_index, len(x), sparse=sparse, dtype=x.dtype))


def _head(projection_head: Callable, x: Tensor, **options) -> Tensor:
    return projection_head(x.shape[1], **options).to(x)(x)


def _lars(lars: type, weight: Tensor, *gradients: Tensor) -> Tensor:
    weight = weight.detach().clone()
    optimizer = lars([weight], lr=0.1, weight_decay=0.01)
    for gradient in gradients:
        weight.grad = gradient.detach()
        optimizer.step()
    return weight


def _probability(linear_probe: Callable, *args: Tensor, **options) -> Tensor:
    return linear_probe(*args, **options).softmax(1)


def _linear(d: Draw) -> nn.Module:
    layer = nn.Linear(5, 3).double()
    layer.load_state_dict({"weight": d.normal(3, 5), "bias": d.normal(3)})
    return layer


def _with_noise(random_masking: Callable, tokens: Tensor, noise: Tensor) -> tuple:
    return random_masking(tokens, 0.75, noise=noise)


def _noise(model: nn.Module, images: Tensor, noise: Tensor) -> tuple:
    return model(images, noise=noise)


def _boxes(d: Draw) -> Tensor:
    return 6 * d.uniform(3, 4) + torch.tensor([0, 0, 6, 6])


def _maps(d: Draw) -> tuple[Tensor, Tensor]:
    return d.normal(2, 6, 3, 4), d.normal(2, 6, 3, 4)


def _dense(d: Draw) -> tuple:
    return d.normal(2, 6, 3, 4), d.normal(2, 6, 4, 3), d.labels(12, 2, 12), d.normal(7, 6)


def _two_maps(d: Draw) -> tuple:
    pictures, places, features = ((d.normal(*s), d.normal(*s)) for s in ((2, 6), (2, 6, 3, 4), (2, 9, 3, 4)))
    return *pictures, *places, *features, d.normal(7, 6), d.normal(8, 6)


def _overlap(d: Draw) -> tuple[Tensor, Tensor]:
    return torch.cat([0.4 * d.uniform(2, 2), 0.6 + 0.4 * d.uniform(2, 2)], 1), torch.tensor([True, False])


def _slots(d: Draw) -> tuple:
    return d.normal(3, 5, 6), d.normal(3, 5, 6), d.normal(3, 5, 2, 3), d.normal(3, 5, 2, 3)


def _cells(d: Draw) -> tuple:
    (x, y), (test, truth) = d.groups(96, 6, 3), d.groups(48, 6, 3)
    train, test = (rows.view(-1, 4, 4, 6).movedim(-1, 1) for rows in (x, test))
    return train, y.view(-1, 4, 4), test, truth.view(-1, 4, 4)


def _graph_of(d: Draw) -> tuple[Tensor, Tensor, Tensor]:
    return d.normal(30, 6), d.labels(9, 30) + 1, d.graph()


def _nodes(d: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of five nodes, the cosines of twelve tokens, and the tokens."""
    tokens = F.normalize(d.normal(12, 6), dim=1)
    return F.one_hot(torch.arange(12) % 5).T.bool(), tokens @ tokens.T, tokens


def _regions(d: Draw) -> tuple[Tensor]:
    """Five regions at right angles on a grid, with little noise: no similarity is near a threshold."""
    return (torch.eye(6).double()[torch.arange(8)[:, None] // 3 + torch.arange(9) // 3] + 0.02 * d.normal(8, 9, 6),)


def _levels(pool: Callable, features: Tensor, **options) -> list[Tensor]:
    return [t for level in pool(features, **options) for t in (level.features, level.masks)]


def _distilled(d: Draw) -> tuple:
    corners = d.uniform(2, 4) / 2 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    return d.normal(2, 6, 4, 4), d.normal(2, 6, 5, 5), d.normal(6), corners, corners.flip(0)


# ------------------------------------------------------------------------------------------- laws of random functions


def _unit(out: Tensor) -> bool:
    return bool(((out >= 0) & (out <= 1)).all())


def _boxes_fit(boxes: Tensor, batch: int, height: int, width: int) -> bool:
    x1, y1, x2, y2 = boxes.T
    inside = (x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= width) & (y2 <= height)
    return boxes.shape == (batch, 4) and bool(inside.all())


def _standardized(bank: Tensor, count: int, size: int) -> bool:
    std, mean = torch.std_mean(bank, dim=(1, 2))
    return bank.shape == (count, size, size) and bool(((mean.abs() < 1e-4) & ((std - 1).abs() < 1e-4)).all())


def _all_from(out: Tensor, source: Tensor, *_: int) -> bool:
    return bool(torch.isin(out, source).all())


def _between(out: Tensor, x: Tensor, *_: int) -> bool:
    return bool(((out >= x.min() - 1e-6) & (out <= x.max() + 1e-6)).all())


def _a_quarter_stays(out, tokens: Tensor) -> bool:
    same = torch.equal(out.tokens, tokens.gather(1, out.ids_keep[..., None].expand_as(out.tokens)))
    return same and bool((out.mask.sum(1) == tokens.shape[1] * 3 // 4).all())


def _holds_mean(ends: tuple[float, float], values: Tensor) -> bool:
    return ends[0] < values.double().mean() < ends[1]


def _few_values(out: Tensor, x: Tensor) -> bool:
    return _between(out, x) and max(len(channel.unique()) for channel in out.flatten(0, 1)) <= 8


def _proper_pairs(out: tuple[Tensor, Tensor], x: Tensor) -> bool:
    (i, j), cosine = out
    expected = F.cosine_similarity(x[i].double(), x[j].double(), dim=1)
    return bool((i < j).all()) and torch.allclose(cosine.double(), expected, atol=0.02)


def _hides_blocks(mask: Tensor, batch: int, size: int) -> bool:
    coarse = mask[:, :, ::4, ::4]
    whole = torch.equal(mask, coarse.repeat_interleave(4, 2).repeat_interleave(4, 3))
    return mask.shape == (batch, 1, size, size) and whole and 0.75 < coarse.double().mean() < 0.85


def _disjoint(masks: Tensor, batch: int, num_tokens: int) -> bool:
    shown = F.one_hot(masks, num_tokens).sum((0, 2))
    return masks.shape[1] == batch and bool((shown.amax(1) == 1).all())


# ------------------------------------------------------------------------------------------------------- the table

NET = {"float32": 5e-4, "bf16": 0.05}  # many layers, each with its own rounding
GRAPH = {"in_dim": 8, "hidden": 6, "num_classes": 3, "dropout": 0.0}
FEW = torch.arange(30) % 3, torch.arange(30) < 6  # labels of three classes, and the nodes of which they may be read

CASES = (
    # ---- shared blocks
    Case("nn.ViT", lambda d: (d.uniform(2, 3, 16, 16), d.order(2, 16) < 5), build={"image_size": 16}, **NET),
    Case("nn.SmallResNet", lambda d: (d.uniform(8, 3, 16, 16),), build={"width": 8, "num_classes": 5}, **NET),
    Case("nn.ConvNet", lambda d: (d.uniform(8, 3, 32, 32),), build={"widths": (8, 16)}, **NET),
    Case("nn.UNet", lambda d: (d.uniform(2, 3, 16, 24),), build={"width": 8}, **NET),
    Case("nn.GCN", lambda d: (d.normal(30, 8), d.graph()), {"sparse": False}, build=GRAPH, call=_gcn),
    Case("nn.GCN", lambda d: (d.normal(30, 8), d.graph()), {"sparse": True}, build=GRAPH, call=_gcn),
    Case("nn.EMATeacher", lambda d: (_linear(d), _linear(d)), call=_ema),
    Case("nn.MemoryQueue", lambda d: (d.normal(8, 4),), call=_queue),
    Case("nn.KeyQueue", lambda d: (d.normal(8, 4),), call=_ring),
    Case("nn.ConvMap", lambda d: (d.uniform(8, 3, 48, 48),), build={"widths": (8, 16), "strides": (2, 1)}, **NET),
    Case("nn.pixel_centers", lambda d: (_boxes(d), 4, 5)),
    Case("nn.true_matches", lambda d: (_boxes(d), _boxes(d), 4, 5)),
    Case("augment.crop_and_resize", lambda d: (d.uniform(3, 3, 12, 12), _boxes(d), 9)),
    Case("augment.two_views", lambda d: (d.uniform(4, 3, 16, 16),), law=lambda out, x: _unit(out[0]) and _unit(out[1])),
    # ---- evaluation
    Case("evaluate.linear_probe", lambda d: (*d.groups(60, 6, 3), d.normal(20, 6)), call=_probability, float32=1e-4),
    Case("evaluate.knn_classify", lambda d: (*d.groups(60, 6, 3), d.normal(20, 6)), {"k": 5}),
    Case("evaluate.accuracy", lambda d: (d.normal(20, 4), d.labels(4, 20))),
    Case("evaluate.ridge_r2", lambda d: (d.normal(30, 5), d.normal(30, 2), d.normal(20, 5), d.normal(20, 2))),
    Case("evaluate.standardize", lambda d: (d.normal(30, 5), d.normal(20, 5))),
    Case("evaluate.bootstrap_interval", lambda d: (d.chance(0.7, 300),), law=_holds_mean),
    Case("evaluate.spectrum", lambda d: (d.normal(30, 5),), {"center": True}, bf16=1e-5),
    Case("evaluate.effective_rank", lambda d: (d.normal(30, 5),)),
    Case("evaluate.ari", lambda d: (d.labels(3, 50), d.labels(4, 50))),
    Case("evaluate.nmi", lambda d: (d.labels(3, 50), d.labels(4, 50))),
    Case("evaluate.hungarian_miou", lambda d: (d.labels(4, 2, 9, 9), d.labels(4, 2, 9, 9)), {"num_classes": 4}),
    Case("evaluate.foreground_ari", lambda d: (d.labels(4, 3, 9, 9), d.labels(3, 3, 9, 9))),
    Case("evaluate.region_j", lambda d: (d.chance(0.4, 3, 9, 9), d.chance(0.4, 3, 9, 9))),
    Case("evaluate.boundary_f", lambda d: (d.chance(0.05, 3, 20, 20), d.chance(0.05, 3, 20, 20)), {"tolerance": 2}),
    Case("evaluate.auroc", lambda d: (d.normal(5, 8), d.chance(0.5, 5, 8))),
    Case("evaluate.recall_at_k", lambda d: (d.normal(9, 7), d.labels(7, 9)), {"k": 2}),
    Case("evaluate.psnr", lambda d: (d.uniform(3, 2, 8, 8), d.uniform(3, 2, 8, 8))),
    Case("evaluate.ssim", lambda d: (d.uniform(3, 2, 16, 16), d.uniform(3, 2, 16, 16)), float32=1e-4),
    Case("evaluate.certified_accuracy", lambda d: (d.labels(2, 20), d.uniform(20), d.labels(2, 20), d.uniform(4))),
    Case("evaluate.cell_labels", lambda d: (d.labels(5, 2, 8, 8), 4, 4)),
    Case("evaluate.mean_iou", lambda d: (d.labels(4, 50), d.labels(4, 50))),
    Case("evaluate.nearest_cells", lambda d: (d.normal(2, 6, 3, 4), d.normal(2, 6, 4, 3)), bf16=None),
    Case("evaluate.match_accuracy", lambda d: (d.normal(3, 6, 4, 4), d.normal(3, 6, 4, 4), _boxes(d), _boxes(d))),
    Case("evaluate.segmentation_probe", _cells, {"l2": 0.1}, float32=1e-4),
    # ---- optical flow
    Case("optical.warp", lambda d: (d.uniform(2, 3, 8, 9), 2 * d.normal(2, 2, 8, 9))),
    Case("optical.end_point_error", lambda d: (d.normal(2, 2, 8, 9), d.normal(2, 2, 8, 9))),
    Case("optical.flow_to_color", lambda d: (d.normal(2, 2, 8, 9),)),
    # ---- the masked autoencoder
    Case("nn.mae.patchify", lambda d: (d.uniform(2, 3, 8, 12), 4), float32=0),
    Case("nn.mae.unpatchify", lambda d: (d.uniform(2, 4, 48), 4), float32=0),
    Case("nn.mae.random_masking", lambda d: (d.normal(2, 16, 5), d.uniform(2, 16)), call=_with_noise),
    Case("nn.mae.random_masking", lambda d: (d.normal(2, 16, 5),), law=_a_quarter_stays),
    Case("nn.mae.restore_tokens", lambda d: (d.normal(2, 4, 5), d.normal(5), d.order(2, 16))),
    Case("nn.mae.normalize_patches", lambda d: (d.normal(2, 4, 48),), bf16=1e-5),
    Case("nn.mae.masked_patch_loss", lambda d: (d.normal(2, 9, 12), d.normal(2, 9, 12), d.order(2, 9) < 6)),
    Case(
        "nn.mae.MaskedAutoencoder", lambda d: (d.uniform(2, 3, 32, 32), d.uniform(2, 64)), build={}, call=_noise, **NET
    ),
    # ---- simclr
    Case("simclr.nt_xent", lambda d: (d.normal(8, 16), d.normal(8, 16)), bf16=1e-5),
    Case("simclr.nt_xent_tiled", lambda d: (d.normal(8, 16), d.normal(8, 16)), {"tile": 5}, bf16=1e-5),
    Case("simclr.contrastive_accuracy", lambda d: (d.normal(8, 16), d.normal(8, 16))),
    Case("simclr.random_crop_boxes", lambda d: (500, 16, 24), law=_boxes_fit),
    Case("simclr.color_distort", lambda d: (d.uniform(4, 3, 8, 8),), {"strength": 0.0, "gray_p": 1.0}),
    Case("simclr.color_distort", lambda d: (d.uniform(64, 3, 8, 8),), law=lambda out, x: _unit(out)),
    Case("simclr.gaussian_blur", lambda d: (d.uniform(2, 3, 9, 9),), {"kernel_size": 5, "sigma": 1.2}),
    Case("simclr.projection_head", lambda d: (d.normal(16, 6),), {"mode": "linear", "out_dim": 4}, call=_head, **NET),
    Case("simclr.projection_head", lambda d: (d.normal(16, 6),), {"out_dim": 4}, call=_head, **NET),
    Case("simclr.LARS", lambda d: (d.normal(4, 5), d.normal(4, 5), d.normal(4, 5)), call=_lars),
    # ---- densecl
    Case("densecl.dense_correspondence", lambda d: (d.normal(2, 8, 3, 4), d.normal(2, 8, 4, 3)), bf16=None),
    Case("densecl.info_nce", lambda d: (d.normal(6, 8), d.normal(6, 8), d.normal(9, 8)), bf16=1e-5),
    Case("densecl.dense_info_nce", _dense, bf16=1e-5),
    Case("densecl.densecl_loss", _two_maps, bf16=1e-5),
    Case("densecl.DenseHead", lambda d: (d.normal(2, 6, 4, 4),), build={"in_dim": 6, "out_dim": 5, "grid": 2}, **NET),
    Case("densecl.KeyQueue", lambda d: (d.normal(8, 4),), call=_ring),
    # ---- know_your_ssl
    Case("know_your_ssl.sinkhorn", lambda d: (d.normal(8, 5).tanh(),), {"epsilon": 0.2}, bf16=1e-4),
    Case("know_your_ssl.swav_loss", lambda d: (d.normal(8, 5).tanh(), d.normal(8, 5).tanh()), bf16=1e-4),
    Case("know_your_ssl.info_nce", lambda d: (d.normal(8, 6), d.normal(8, 6), d.normal(9, 6)), bf16=1e-4),
    Case("know_your_ssl.KeyQueue", lambda d: (d.normal(6, 4),), call=_ring),
    Case("know_your_ssl.ema_update", lambda d: (_linear(d), _linear(d)), call=_followed),
    Case("know_your_ssl.byol_loss", lambda d: (d.normal(8, 6), d.normal(8, 6))),
    Case("know_your_ssl.dino_loss", lambda d: (d.normal(8, 6).tanh(), d.normal(8, 6).tanh(), d.normal(6)), bf16=1e-4),
    Case("know_your_ssl.update_center", lambda d: (d.normal(6), d.normal(8, 6)), bf16=1e-5),
    Case("know_your_ssl.barlow_twins_loss", lambda d: (d.normal(8, 6), d.normal(8, 6)), bf16=1e-4),
    Case("know_your_ssl.vicreg_loss", lambda d: (d.normal(8, 6), d.normal(8, 6)), bf16=1e-4),
    Case("know_your_ssl.masked_patch_loss", lambda d: (d.normal(2, 9, 12), d.normal(2, 9, 12), d.order(2, 9) < 6)),
    Case("know_your_ssl.spread", lambda d: (d.normal(8, 6),)),
    # ---- mec
    Case("mec.taylor_log_det", lambda d: (0.2 * d.normal(9, 9),), {"order": 4}, bf16=1e-5),
    Case("mec.coding_length", lambda d: (d.normal(8, 12),), {"eps_sq": 2.0}, bf16=1e-5),
    Case("mec.coding_length", lambda d: (d.normal(12, 8),), {"eps_sq": 2.0}, bf16=1e-5),
    Case("mec.mec_loss", lambda d: tuple(d.normal(4, 8, 12)), {"lamda": 0.2, "side": "batch"}, bf16=1e-5),
    Case("mec.mec_loss", lambda d: tuple(d.normal(4, 8, 12)), {"lamda": 0.2, "side": "feature"}, bf16=1e-5),
    Case("mec.exact_loss", lambda d: tuple(d.normal(4, 8, 12)), {"lamda": 0.2}, bf16=1e-5),
    # ---- colormae
    Case("colormae.color_filter", lambda d: (d.normal(2, 16, 16),), {"color": "blue"}),
    Case("colormae.color_filter", lambda d: (d.normal(2, 16, 16),), {"color": "purple"}),
    Case("colormae.noise_bank", lambda d: (8, 32), {"color": "green"}, law=_standardized),
    Case("colormae.sample_windows", lambda d: (d.normal(4, 20, 20), 6, 8), law=_all_from),
    Case("colormae.color_mask", lambda d: (d.normal(3, 8, 8),)),
    Case("colormae.radial_power", lambda d: (d.normal(5, 16, 16),), {"bins": 4}),
    # ---- sts
    Case("sts.motion_boundary", lambda d: (d.normal(3, 2, 16, 16),)),
    Case("sts.orientation_histogram", lambda d: (d.uniform(50), 720 * d.normal(50))),
    Case("sts.dominant_color", lambda d: (d.bytes(300, 3),), {"mode": "octant"}),
    Case("sts.dominant_color", lambda d: (d.bytes(300, 3) // 64 * 64,), {"mode": "exact"}),
    Case("sts.motion_statistics", lambda d: (d.normal(3, 2, 16, 16),)),
    Case("sts.appearance_statistics", lambda d: (d.bytes(3, 3, 16, 16),)),
    Case("sts.sts_loss", lambda d: (d.normal(4, 14), d.labels(8, 4, 14), d.normal(4, 13), d.labels(8, 4, 13))),
    # ---- nutime
    Case("nutime.scale_weights", lambda d: (d.normal(20), torch.logspace(-2, 2, 5)), float32=1e-4, bf16=1e-4),
    Case("nutime.NumericallyMultiscaledEmbedding", lambda d: (10 * d.normal(20),), build={"embed_dim": 8}, **NET),
    Case("nutime.window_statistics", lambda d: (d.normal(2, 3, 32), 8), bf16=1e-5),
    Case("nutime.WindowEmbedding", lambda d: (10 * d.normal(3, 2, 64),), build={"num_channels": 2}, **NET),
    Case("nutime.random_resized_crop", lambda d: (d.normal(4, 2, 30), 20), {"scale": (1.0, 1.0)}),
    Case("nutime.random_resized_crop", lambda d: (d.normal(4, 2, 30), 20), law=_between),
    # ---- selftask_gnn
    Case("selftask_gnn.pairwise_distance_labels", lambda d: (d.graph(), 30)),
    Case("selftask_gnn.distance_to_cluster_targets", lambda d: (d.graph(), 30, d.labels(30, 4))),
    Case("selftask_gnn.distance_to_labeled_targets", lambda d: (d.graph(), 30, *FEW)),
    Case("selftask_gnn.label_propagation", lambda d: (d.graph(), 30, *FEW)),
    Case("selftask_gnn.context_label_distribution", lambda d: (d.graph(), 30, d.labels(3, 30))),
    # under autocast the order of nearly equal similarities is another one
    Case("selftask_gnn.attribute_similarity_pairs", lambda d: (d.normal(20, 6),), {"num_random": 0}, bf16=None),
    Case("selftask_gnn.attribute_similarity_pairs", lambda d: (d.normal(20, 6),), law=_proper_pairs),
    Case("selftask_gnn.correct_labels", lambda d: (*d.groups(60, 6, 3), d.labels(60, 20))),
    # ---- pixpro
    Case("pixpro.pixel_centers", lambda d: (_boxes(d), 3, 4)),
    Case("pixpro.positive_mask", lambda d: (_boxes(d), _boxes(d), 5, 4)),
    Case("pixpro.pixel_propagation", lambda d: (d.normal(2, 6, 3, 4), d.normal(2, 5, 3, 4)), bf16=1e-5),
    Case("pixpro.pixel_propagation", lambda d: (d.normal(2, 6, 3, 4), d.normal(2, 5, 3, 4)), {"gamma": 0.5}, bf16=1e-5),
    Case("pixpro.consistency_loss", lambda d: (*_maps(d), d.chance(0.2, 2, 12, 12)), float32=1e-4, bf16=1e-4),
    Case("pixpro.pixpro_loss", lambda d: (*_maps(d), *_maps(d), _boxes(d)[:2], _boxes(d)[:2]), bf16=1e-5),
    Case("pixpro.pix_contrast_loss", lambda d: (*_maps(d), d.chance(0.2, 2, 12, 12)), bf16=1e-5),
    Case("evaluate.likeness", lambda d: (d.normal(3, 6, 3, 4),)),
    Case("evaluate.region_spread", lambda d: (d.normal(3, 6, 3, 4), d.labels(3, 3, 3, 4))),
    # ---- s2_uniseg
    Case("nn.connected_components", lambda d: (d.labels(40, 2, 30), 40), bf16=None),
    Case("evaluate.best_iou", lambda d: (d.chance(0.4, 5, 6, 7), d.chance(0.4, 3, 6, 7))),
    Case("evaluate.average_recall", lambda d: (d.uniform(20),), bf16=None),
    Case("evaluate.assignment_spread", lambda d: (d.uniform(20, 5).softmax(1),)),
    Case("s2_uniseg.grid_edges", lambda d: (3, 5)),
    Case("s2_uniseg.edge_similarity", lambda d: (d.normal(30, 6), d.graph()), bf16=1e-5),
    Case("s2_uniseg.pool_layer", _graph_of, {"threshold": 0.6}, bf16=1e-5),
    Case("s2_uniseg.affinity_similarity", lambda d: (*_nodes(d)[:2], d.labels(5, 2, 8)), bf16=1e-5),
    Case("s2_uniseg.supernode_features", _nodes, bf16=1e-5),
    Case("s2_uniseg.uniap", _regions, call=_levels, bf16=1e-5),
    Case(
        "s2_uniseg.uniap", _regions, {"spatial_weight": 0.4, "temperature": 0.07}, call=_levels, float32=1e-4, bf16=1e-5
    ),
    Case("s2_uniseg.greedy_merge", _regions, call=_levels, bf16=1e-5),
    Case("s2_uniseg.query_map", lambda d: (d.normal(3, 4, 6), d.normal(7, 6), d.normal(7, 5)), bf16=1e-5),
    Case("s2_uniseg.querysd_loss", _distilled, {"size": (3, 4)}, bf16=1e-5),
    # ---- slotcon
    Case("slotcon.semantic_grouping", lambda d: (d.normal(2, 6, 3, 4), d.normal(5, 6)), bf16=1e-5),
    Case("slotcon.overlap_boxes", lambda d: (_boxes(d), _boxes(d))),
    Case("slotcon.inverse_augmentation", lambda d: (d.normal(2, 5, 3, 4), *_overlap(d))),
    Case("slotcon.grouping_loss", lambda d: (*(m.tanh() for m in _maps(d)), d.normal(6).tanh()), bf16=1e-5),
    Case("slotcon.update_center", lambda d: (d.normal(6), d.normal(2, 6, 3, 4)), bf16=1e-5),
    Case("slotcon.slot_presence", lambda d: (d.normal(2, 6, 3, 4),)),
    Case("slotcon.slot_contrastive_loss", _slots, bf16=1e-5),
    # ---- randomized_quantization
    Case("randomized_quantization.bin_edges", lambda d: (d.normal(2, 3, 20), d.uniform(2, 3, 7))),
    Case("randomized_quantization.bin_index", lambda d: (d.uniform(2, 3, 20), d.uniform(2, 3, 9).sort(2).values)),
    Case("randomized_quantization.quantize", lambda d: (d.normal(2, 3, 20), d.uniform(2, 3, 7), d.uniform(2, 3, 8))),
    Case("randomized_quantization.randomized_quantization", lambda d: (d.normal(4, 3, 30),), law=_few_values),
    Case(
        "randomized_quantization.RandomizedQuantization",
        lambda d: (d.normal(4, 3, 30),),
        build={"num_bins": 1},
        bf16=None,
        call=lambda layer, x: layer.eval()(x),
        float32=1e-6,
    ),
    # ---- scatsimclr
    Case("scatsimclr.scattering2d", lambda d: (d.normal(2, 2, 16, 24),), {"J": 2, "L": 3}, float32=1e-4, bf16=1e-4),
    Case("scatsimclr.rotation_views", lambda d: (d.normal(3, 2, 6, 6),)),
    Case("scatsimclr.jigsaw_views", lambda d: (d.normal(3, 2, 6, 9), d.order(5, 9), d.labels(5, 3)), float32=0),
    Case("scatsimclr.ScatSimCLR", lambda d: (d.normal(8, 1, 16, 16),), build={"shape": (1, 16, 16), "width": 8}, **NET),
    Case(
        "scatsimclr.scatsimclr_loss",
        lambda d: (d.normal(8, 6), d.normal(8, 6), d.normal(12, 4), d.labels(4, 12)),
        bf16=1e-4,
    ),
    # ---- autolink
    Case("autolink.soft_keypoints", lambda d: (d.normal(2, 3, 8, 9),), bf16=1e-5),
    Case("autolink.edge_weights", lambda d: (d.normal(5, 5) / 512,), bf16=1e-5),
    Case("autolink.draw_edges", lambda d: (d.uniform(2, 4, 2), -d.uniform(2, 4, 2), 9), {"thickness": 0.1}, bf16=1e-5),
    Case("autolink.edge_map", lambda d: (d.uniform(2, 4, 2), d.uniform(4, 4), 9), {"thickness": 0.1}, bf16=1e-5),
    Case("autolink.block_mask", lambda d: (40, 32), {"blocks": 8}, law=_hides_blocks),
    Case("autolink.linked_edges", lambda d: (d.uniform(6, 6),), {"threshold": 0.5}),
    Case("autolink.pyramid_loss", lambda d: (d.uniform(2, 3, 16, 16), d.uniform(2, 3, 16, 16)), bf16=1e-5),
    # ---- extrema
    Case("extrema.sample_masks", lambda d: (3, 196), law=_disjoint),
    Case(
        "extrema.ClassAttentionBlock",
        lambda d: (d.normal(2, 5, 8), d.normal(2, 1, 8)),
        build={"dim": 8, "num_heads": 2},
        **NET,
    ),
    Case(
        "extrema.ExtremaEncoder",
        lambda d: (d.normal(3, 16, 4), d.order(6, 16)[:, :5].view(2, 3, 5)),
        build={"num_tokens": 16, "token_dim": 4, "embed_dim": 16},
        **NET,
    ),
    Case("extrema.extrema_loss", lambda d: (d.normal(8, 6), d.normal(4, 6)), {"num_masks": 2}),
)
