"""Published runs on the Hugging Face hub, or what HF_ENDPOINT names."""

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from metalearn.errors import UsageError, reason_of


def check_name(repository: str) -> None:
    """Raise UsageError for what is no `user/name`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(f"hub={repository} must be <user>/<name>")


def _check_answers(endpoint: str) -> None:
    """Raise UsageError where nothing answers: the hub's own client would ask for half a minute."""
    request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "metalearn"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return
    except urllib.error.HTTPError as error:  # an answer
        error.close()
    except (OSError, ValueError) as error:
        reason = reason_of(getattr(error, "reason", None) or error)
        raise UsageError(
            f"{endpoint} does not answer ({reason}); use a folder here, and the hub from where "
            "there is network"
        ) from None


def upload(folder: Path, repository: str, private: bool) -> str:
    """Send every file of `folder` as one commit; its address. Raises UsageError in one line where
    the hub cannot be reached or refuses."""
    from huggingface_hub import HfApi, constants

    _check_answers(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="metalearn")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A run of metalearn"
        )
    except Exception as error:  # of the network, of the hub, of its token
        raise UsageError(
            f"{api.endpoint} did not take {repository} ({reason_of(error)}); set HF_TOKEN where it "
            "asks for one, or publish to a folder and upload it from where there is network"
        ) from None
    return str(made.commit_url)


def fetcher(repository: str, revision: str) -> Callable[[str, Path, str | None], None]:
    """Writes a file of `repository` to a path. It raises UsageError in one line where the hub
    cannot be reached or has no such file."""

    def fetch(name: str, target: Path, sha256: str | None) -> None:
        from huggingface_hub import constants, hf_hub_download

        cache = target.parent / ".hub"
        endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        if sha256 is None:  # the first
            _check_answers(endpoint)
        given = {"revision": revision or None, "cache_dir": cache, "endpoint": endpoint}
        try:
            found = hf_hub_download(repository, name, **given, library_name="metalearn")
            shutil.copyfile(found, target)
        except Exception as error:
            told = f"{name} of {repository} ({reason_of(error)})"
            raise UsageError(
                f"{endpoint} does not give {told}; check the name and the "
                "network, or pull from a folder"
            ) from None
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    return fetch
