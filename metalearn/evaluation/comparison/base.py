"""What a classifier may know of the classes that a network was trained on: those of split train."""

import numpy as np
import torch

from metalearn.classifiers import Classifier
from metalearn.classifiers.protocol import UsesBaseClasses
from metalearn.evaluation.comparison.setting import Network, Setting
from metalearn.evaluation.features import FeatureEpisodes


def knowing_base(classifier: Classifier, setting: Setting, network: Network) -> Classifier:
    """`classifier`, told of the base classes where it asks for them and the data set has them.

    Their features are those of the images in as many episodes of split train as the comparison is
    tested on; they pass through `network` once for all methods.
    """
    if not isinstance(classifier, UsesBaseClasses):
        return classifier
    if len(setting.dataset.sizes["train"]) < setting.plan.config["episodes"]["ways"]:
        return classifier
    episodes = setting.plan.config["evaluation"]["episodes"]
    source = setting.features(network, setting.shots[0], "train", episodes).source
    assert isinstance(source, FeatureEpisodes)
    classes, examples = np.nonzero(source.row >= 0)
    rows = torch.from_numpy(source.row[classes, examples])
    return classifier.with_base(source.features[rows], torch.from_numpy(classes))
