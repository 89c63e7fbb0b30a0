"""Networks to attack and defend, and the checkpoints that others published of them."""

from wasserstein_adv.models.torch_checkpoint import read_torch_checkpoint
from wasserstein_adv.models.wong_kolter import WongKolterCNN, load_wong_kolter

__all__ = ["WongKolterCNN", "load_wong_kolter", "read_torch_checkpoint"]
