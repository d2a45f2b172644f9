"""A real PostgreSQL server for tests, with a temporary cluster and a free local port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: on PATH, or where Debian installs them."""
    executable = shutil.which("pg_ctl")
    folders = [Path(executable).resolve().parent] if executable else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of a running server. PostgreSQL refuses to run as root, which uses user `postgres`."""
    binaries = find_binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="backtrack-pg-"))
    is_root = os.geteuid() == 0
    user = pwd.getpwnam("postgres") if is_root else pwd.getpwuid(os.geteuid())
    os.chown(folder, user.pw_uid, user.pw_gid)
    port = free_port()

    def as_user(*command: str) -> None:
        subprocess.run(
            [str(binaries / command[0]), *command[1:]],
            check=True,
            capture_output=True,
            cwd=folder,
            user=user.pw_uid if is_root else None,
            group=user.pw_gid if is_root else None,
        )

    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        as_user("initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync")
        as_user("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        as_user("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
