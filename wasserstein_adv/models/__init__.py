"""Networks to attack and defend, and the checkpoints that others published of them."""

from wasserstein_adv.models.carlini_wagner import CarliniWagnerCNN
from wasserstein_adv.models.registry import MODELS, load_torch, load_wong_kolter
from wasserstein_adv.models.resnet import ResNet18, ResNet50
from wasserstein_adv.models.torch_checkpoint import read_torch_checkpoint
from wasserstein_adv.models.torch_module import from_torch
from wasserstein_adv.models.wide_resnet import WideResNet
from wasserstein_adv.models.wong_kolter import WongKolterCNN

__all__ = [
    "MODELS",
    "CarliniWagnerCNN",
    "ResNet18",
    "ResNet50",
    "WideResNet",
    "WongKolterCNN",
    "from_torch",
    "load_torch",
    "load_wong_kolter",
    "read_torch_checkpoint",
]
