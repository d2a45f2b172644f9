"""Push what was exported to the Hub, in one commit.

Promised: a push that fails leaves the folder as it is, and says how to go on. Nothing is made
public that the Hub would not make public by itself: a new repository is private where asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.errors import ExportError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def push(
    folder: Path, name: str, *, is_private: bool | None = None, endpoint: str | None = None
) -> str:
    """Upload a folder to a repository of models, which is made if it is not there.

    Args:
        folder: What was exported.
        name: `NAME` or `OWNER/NAME`.
        is_private: Of a new repository; none leaves it to the owner's setting on the Hub.
        endpoint: Address of the Hub; that of `HF_ENDPOINT` if not given.

    Returns:
        Address of the repository.

    Raises:
        UsageError: No such name can be, or nobody is logged in.
        ExportError: The Hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    require_login()
    try:
        api = HfApi(endpoint=endpoint)
        made = api.create_repo(name, private=is_private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Operating point by backtrack"
        )
    except HFValidationError as error:
        raise UsageError(f"--push {name!r}: {error}") from error
    except Exception as error:  # its transport's errors have a home that depends on its version
        raise ExportError(
            f"{folder} could not be pushed to {name}: {_first_line(error)} It stays as it "
            f"is; try again with `hf upload {name} {folder}`."
        ) from error
    return str(made)


def require_login() -> None:
    """Refuse to go on where nobody is logged in; asked before anything is written.

    Raises:
        UsageError: There is no token.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UsageError(
            "nobody is logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN."
        )


def _first_line(error: Exception) -> str:
    said = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
    return f"{said}."
