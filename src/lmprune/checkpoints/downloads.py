"""The files of a model: beside each other in a folder, or in the hub's cache, where they are fetched to one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import get_session

from .sources import ADAPTER, Source, refuse_adapter

_HUB_SECONDS = 5  # a hub that does not answer by then counts as not there; transformers alone would retry for 20 s


@dataclass(frozen=True)
class Files:
    """names: of the files beside config.json. path_of: where one of them is; it is downloaded if need be.

    revision: of a hub id, the commit that all of them belong to.
    """

    names: frozenset[str]
    path_of: Callable[[str], Path]
    revision: str | None = None


def files_of(found: Source, *, reachable: bool) -> Files:
    """reachable: whether the hub is; if not, only what was downloaded before can be used.

    Raises: UserError for an adapter, OSError for a hub id that is not there.
    """
    if not found.on_hub:
        return _beside(Path(found.place))
    files = _on_hub(found) if reachable else _cached(found)
    if ADAPTER in files.names:
        refuse_adapter(files.path_of(ADAPTER), found)
    return files


def hub_is_reachable() -> bool:
    """Ask once."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # the HTTP library's own hierarchy: no name, refused, timed out, proxy
        return False
    return True


def _beside(folder: Path, revision: str | None = None) -> Files:
    return Files(frozenset(path.name for path in folder.iterdir()), folder.joinpath, revision)


def _on_hub(found: Source) -> Files:
    info = HfApi().model_info(found.place, revision=found.revision)
    names = frozenset(file.rfilename for file in info.siblings or [] if "/" not in file.rfilename)
    return Files(names, lambda name: Path(hf_hub_download(found.place, name, revision=info.sha)), info.sha)


def _cached(found: Source) -> Files:
    config = try_to_load_from_cache(found.place, "config.json", revision=found.revision)
    if not isinstance(config, str):
        raise FileNotFoundError("not downloaded before")
    return _beside(Path(config).parent, Path(config).parent.name)
