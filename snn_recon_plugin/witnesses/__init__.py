"""Hidden weights: which witnesses the hidden neurons get.  So far each layer's own weights, rescaled."""

from .rescale import LayerGain, choose_gains
from .trials import scaled_values

__all__ = ["LayerGain", "choose_gains", "scaled_values"]
