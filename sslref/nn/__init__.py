"""Blocks that two papers or more use. No paper is known here."""

from .calibrate import calibrate_batchnorm
from .components import connected_components
from .convmap import ConvMap
from .ema import EMATeacher, ema_update, rising_update
from .gcn import GCN, gcn_norm, undirected
from .geometry import pixel_centers, true_matches
from .mlp import mlp
from .queue import KeyQueue, MemoryQueue
from .resnet import ConvNet, SmallResNet
from .schedule import cosine_schedule
from .seeded import seeded
from .sync import sync_batchnorm
from .unet import UNet
from .vit import Block, ViT

__all__ = [
    "GCN",
    "Block",
    "ConvMap",
    "ConvNet",
    "EMATeacher",
    "KeyQueue",
    "MemoryQueue",
    "SmallResNet",
    "UNet",
    "ViT",
    "calibrate_batchnorm",
    "connected_components",
    "cosine_schedule",
    "ema_update",
    "gcn_norm",
    "mlp",
    "pixel_centers",
    "rising_update",
    "seeded",
    "sync_batchnorm",
    "true_matches",
    "undirected",
]
