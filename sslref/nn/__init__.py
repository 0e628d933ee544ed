"""Blocks that two papers or more use. No paper is known here."""

from .ema import EMATeacher
from .gcn import GCN, gcn_norm, undirected
from .queue import MemoryQueue
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
    "MemoryQueue",
    "SmallResNet",
    "UNet",
    "ViT",
    "cosine_schedule",
    "gcn_norm",
    "sync_batchnorm",
    "undirected",
]
