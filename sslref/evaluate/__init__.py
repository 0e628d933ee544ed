"""The numbers by which every chapter compares. scikit-learn and SciPy are imported where they are used."""

from .certified import certified_accuracy
from .clusters import ari, foreground_ari, hungarian_miou, nmi
from .images import psnr, ssim
from .intervals import bootstrap_interval
from .masks import boundary_f, region_j
from .probe import accuracy, knn_classify, linear_probe, ridge_r2, standardize
from .ranking import auroc, recall_at_k
from .spectrum import effective_rank, spectrum

__all__ = [
    "accuracy",
    "ari",
    "auroc",
    "bootstrap_interval",
    "boundary_f",
    "certified_accuracy",
    "effective_rank",
    "foreground_ari",
    "hungarian_miou",
    "knn_classify",
    "linear_probe",
    "nmi",
    "psnr",
    "recall_at_k",
    "region_j",
    "ridge_r2",
    "spectrum",
    "ssim",
    "standardize",
]
