"""TIM with Tsallis's entropies, whose marginal does not press so hard for classes of equal size.

    min over w of  CE(support) - (H(mean over j of p_j) - mean over j of H(p_j))
    H(p) = (1 - sum over n of p_n^order) / (order - 1)

Veilleux, Boudiaf, Piantanida, Ben Ayed: Realistic Evaluation of Transductive Few-Shot Learning,
2021. The authors' code takes order 2 at one shot and 7 from five on.
"""

from metalearn.classifiers.tim import TIM


def AlphaTIM(  # a method of the field, named as the others are
    steps: int = 1000,
    rate: float = 1e-4,
    temperature: float = 15.0,
    cross_entropy: float = 1.0,
    conditional: float = 1.0,
    order: float = 2.0,
    ways: int | None = None,
) -> TIM:
    """`TIM` with the values of alpha-TIM."""
    return TIM(steps, rate, temperature, cross_entropy, conditional, order, ways=ways)
