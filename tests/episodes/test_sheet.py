"""Contact sheets show the images of the episode, each at its place."""

import numpy as np

from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.sheet import GAP, LINE, MARGIN, TILE, class_sheet, episode_sheet


def test_an_episode(tiny) -> None:
    source = FewShotEpisodes(tiny, 3, 2, 3)
    page = np.asarray(episode_sheet(source, "test", 5))
    ids = source.draw("test", 5)
    step, top = max(TILE + GAP, 7 * LINE), MARGIN + 3 * LINE
    for c in range(3):
        examples = np.concatenate([ids.support[c], ids.query[c]])
        for row, image in enumerate(tiny.images("test", ids.classes[c], examples)):
            y = top + row * (TILE + GAP) + (2 * GAP if row >= 2 else 0)
            x = MARGIN + c * step
            shown = page[y : y + TILE, x : x + TILE]
            want = image[0].repeat(TILE // 4, 0).repeat(TILE // 4, 1)
            assert (shown == want[..., None]).all()


def test_the_classes_of_a_split(tiny) -> None:
    page = np.asarray(class_sheet(tiny, "train", classes=4, each=6))
    left, top = MARGIN + 10 * LINE, MARGIN + 2 * LINE
    want = tiny.images("train", np.array(3), np.array(5))[0].repeat(14, 0).repeat(14, 1)
    y, x = top + 3 * (TILE + GAP), left + 5 * (TILE + GAP)
    assert (page[y : y + TILE, x : x + TILE] == want[..., None]).all()
