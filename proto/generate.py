"""Generate the Python modules of every .proto file, or check that they are fresh.

    python proto/generate.py            # writes into vknode/
    python proto/generate.py --check    # exit code 1 and a list where they differ

The generated files are committed, so that nobody needs protoc to run vknode; the
check in `make lint` keeps them equal to what the pinned grpcio-tools makes.
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools

ROOT = Path(__file__).resolve().parent.parent
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

# Folder of .proto files -> the package folder that its modules belong to, as
# protoc sees it, and which of the files define a gRPC service.
FOLDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "proto/vknode/pool/v1": ("vknode/pool/v1", ("pool",)),
    "proto/cri": ("vknode/pool/runtimes/cri/wire", ("cri", "containerd_events")),
}


def generate(out: Path) -> list[Path]:
    """Write all modules below `out`; returns their paths relative to it."""
    bin_dir = Path(sys.executable).parent
    for disk, (package, services) in FOLDERS.items():
        for source in sorted((ROOT / disk).glob("*.proto")):
            arguments = [
                "-m",
                "grpc_tools.protoc",
                f"-I{package}={ROOT / disk}",
                f"-I{WELL_KNOWN}",
                f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
                f"--python_out={out}",
                f"--mypy_out=quiet:{out}",
            ]
            if source.stem in services:
                arguments += [
                    f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
                    f"--grpc_python_out={out}",
                    f"--mypy_grpc_out=quiet:{out}",
                ]
            code = subprocess.call([sys.executable, *arguments, f"{package}/{source.name}"])
            if code != 0:
                raise SystemExit(f"protoc failed on {source.relative_to(ROOT)}; run it by hand")
        if (out / package).is_dir():
            (out / package / "__init__.py").write_text(
                f'"""Generated from {disk} by proto/generate.py. Do not edit."""\n'
            )
    return sorted(p.relative_to(out) for p in out.rglob("*.py*") if p.suffix in {".py", ".pyi"})


def main() -> int:
    if "--check" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            for relative in generate(Path(scratch)):
                target = ROOT / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((Path(scratch) / relative).read_bytes())
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        stale = [
            str(relative)
            for relative in generate(Path(scratch))
            if not (ROOT / relative).exists()
            or not filecmp.cmp(Path(scratch) / relative, ROOT / relative, shallow=False)
        ]
    if stale:
        print("generated code is stale; run `make proto`:", *stale, sep="\n  ")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
