"""Push an export to the Hub, in one commit.

Promised: a push that fails leaves the folder as it is, and the error says how to go on. A new
repository is private if requested; otherwise its visibility is the Hub's default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.errors import ExportError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def push(
    folder: Path, name: str, *, is_private: bool | None = None, endpoint: str | None = None
) -> str:
    """Upload a folder to a model repository, which is created if missing.

    Args:
        folder: Folder of the export.
        name: `NAME` or `OWNER/NAME`.
        is_private: Whether a new repository is private; None is the owner's default on the Hub.
        endpoint: Address of the Hub; None is that of `HF_ENDPOINT`.

    Returns:
        Address of the repository.

    Raises:
        UsageError: The name is not valid, or nobody is logged in.
        ExportError: The Hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    require_login()
    try:
        api = HfApi(endpoint=endpoint)
        repository = api.create_repo(name, private=is_private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Operating point by backtrack",
        )
    except HFValidationError as error:
        raise UsageError(f"--push {name!r}: {error}") from error
    except Exception as error:  # its transport's error types depend on its version
        raise ExportError(
            f"{folder} could not be pushed to {name}: {_first_line(error)} The folder "
            f"is unchanged; try again with `hf upload {name} {folder}`."
        ) from error
    return str(repository)


def require_login() -> None:
    """Refuse to go on if nobody is logged in; called before anything is written.

    Raises:
        UsageError: There is no token.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UsageError(
            "nobody is logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN."
        )


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
    return f"{line}."
