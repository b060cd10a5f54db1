import pytest

from metalearn.data import ImageDataset
from tests.images import tiny_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))
