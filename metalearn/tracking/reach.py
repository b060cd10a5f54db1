"""Checks of a W&B server before wandb starts, which would prompt for a key or retry."""

import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse


def missing_key(base_url: str) -> str | None:
    """The reason where no API key for this server is configured, else None; wandb would prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    host = urlparse(base_url).hostname or base_url
    places = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        try:
            if place and netrc.netrc(str(place)).authenticators(host):
                return None
        except (OSError, netrc.NetrcParseError):
            continue
    return f"no API key for {host}: set WANDB_API_KEY or run `wandb login`"


def unreachable(base_url: str, timeout: float) -> str | None:
    """The reason where the server does not answer within `timeout` seconds, else None.

    wandb itself would retry for minutes, so one query is sent here first. A refusal for want of
    a key counts as an answer, a server error (5xx) does not.
    """
    request = urllib.request.Request(
        base_url.rstrip("/") + "/graphql",
        data=b'{"query": "query Viewer { viewer { id } }"}',
        headers={"Content-Type": "application/json", "User-Agent": "metalearn"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None if error.code < 500 else f"{base_url} answers {error.code}"
    except Exception as error:  # also the ValueError of a malformed address
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"{base_url} does not answer: {one_line(reason)}"


def one_line(error: object) -> str:
    """The message of an error, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
