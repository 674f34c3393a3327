"""Push what was written to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..errors import UserError


def check_login(repo_id: str) -> None:
    """Ask the hub who we are; call it before long work. Raises: UserError where it would not let us push."""
    with _explained(repo_id):
        HfApi().whoami()


def push(path: Path, repo_id: str, *, papers: Mapping[str, str | bytes] | None = None) -> str:
    """Upload a folder, or a file with `papers` (name -> content) beside it, to a model repository, made if need be.

    Returns: its address. Raises: UserError; what was uploaded before stays there, and `path` stays here.
    """
    api = HfApi()
    with _explained(repo_id):
        address = api.create_repo(repo_id, exist_ok=True)
        if path.is_dir():
            api.upload_folder(repo_id=repo_id, folder_path=path)
        else:
            api.upload_file(repo_id=repo_id, path_or_fileobj=path, path_in_repo=path.name)
            for name, content in (papers or {}).items():
                sent = content if isinstance(content, bytes) else content.encode()
                api.upload_file(repo_id=repo_id, path_or_fileobj=sent, path_in_repo=name)
    return str(address)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"can't push to {repo_id}: not logged in to the hub; run `hf auth login` first") from None
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not the name of a hub repository ({error}); expected owner/name") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"can't push to {repo_id}: {reason}; the files stay here, try again") from error
