"""The description on an index: links of README.md lead into the repository that it comes from.

A build knows its repository by CONVATTN_REPOSITORY, the address of its web page, which the release
workflow sets. Without it README.md stands as it is, and no link to a repository is promised.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPERS = {
    "Attention Augmented Convolutional Networks": "https://arxiv.org/abs/1904.09925",
    "PatchConvNet": "https://arxiv.org/abs/2112.13692",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """``readme`` and ``urls``, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set both."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("CONVATTN_REPOSITORY", "").rstrip("/")
        version = re.search(
            r'^__version__ = "(.+)"', Path(self.root, "src/convattn/__init__.py").read_text(), re.M
        )
        assert version is not None
        tag = f"v{version[1]}"
        if repository:
            text = absolute(text, repository, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {**links(repository, tag), **PAPERS}


def absolute(text: str, repository: str, tag: str) -> str:
    """A page whose links to files of the repository work anywhere.

    Args:
        text: Markdown.
        repository: Address of the repository's web page.
        tag: Of the files that are meant.
    """

    def replaced(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({repository}/{kind}/{tag}/{path})"

    return LINK.sub(replaced, text)


def links(repository: str, tag: str) -> dict[str, str]:
    """What an index shows beside the description; nothing of a repository that is not known."""
    if not repository:
        return {}
    return {
        "Source": repository,
        "Issues": f"{repository}/issues",
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
    }
