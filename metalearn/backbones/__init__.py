"""Networks that the algorithms adapt. Any other `nn.Module` serves as well."""

from metalearn.backbones.conv4 import Conv4
from metalearn.backbones.mlp import MLP

__all__ = ["MLP", "Conv4"]
