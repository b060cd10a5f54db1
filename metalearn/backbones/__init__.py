"""Networks that the algorithms adapt. Any other `nn.Module` serves as well."""

from metalearn.backbones.cifar_resnet import CifarResNet
from metalearn.backbones.conv4 import Conv4
from metalearn.backbones.ensemble import Ensemble
from metalearn.backbones.mlp import MLP
from metalearn.backbones.pretrained import timm_model, torchvision_model
from metalearn.backbones.resnet12 import ResNet12
from metalearn.backbones.text_encoder import TextEncoder
from metalearn.backbones.wide_resnet import WideResNet
from metalearn.backbones.word_vectors import WordVectors

__all__ = [
    "MLP",
    "CifarResNet",
    "Conv4",
    "Ensemble",
    "ResNet12",
    "TextEncoder",
    "WideResNet",
    "WordVectors",
    "timm_model",
    "torchvision_model",
]
