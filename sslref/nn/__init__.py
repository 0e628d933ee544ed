"""Blocks that two papers or more use. No paper is known here."""

from .ema import EMATeacher, ema_update
from .gcn import GCN, gcn_norm, undirected
from .queue import KeyQueue, MemoryQueue
from .resnet import ConvNet, SmallResNet
from .schedule import cosine_schedule
from .sync import sync_batchnorm
from .unet import UNet
from .vit import Block, ViT

__all__ = [
    "GCN",
    "Block",
    "ConvNet",
    "EMATeacher",
    "KeyQueue",
    "MemoryQueue",
    "SmallResNet",
    "UNet",
    "ViT",
    "cosine_schedule",
    "ema_update",
    "gcn_norm",
    "sync_batchnorm",
    "undirected",
]
