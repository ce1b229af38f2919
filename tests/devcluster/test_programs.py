"""Where programs come from: the order, the versions, the key, one builder at a time."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vknode.devcluster.programs import cache, download
from vknode.devcluster.programs.catalog import (
    CONTAINERD,
    CONTROL_PLANE,
    Origin,
    Program,
    ProgramsMissing,
    catalog,
    etcd_version,
    go_architecture,
    kubernetes_version,
)
from vknode.devcluster.programs.gobuild import Estimate, build_flags, go_on_path
from vknode.devcluster.programs.progress import Progress, spell
from vknode.devcluster.programs.provide import build_folder, provide_from, require
from vknode.devcluster.programs.search import Findings, fits, search, version_of

APISERVER = catalog()["kube-apiserver"]
KUBECTL = catalog()["kubectl"]


def program(folder: Path, name: str, version: str = "") -> Path:
    """A fake program that tells its version."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Kubernetes {version or kubernetes_version()}'\n")
    path.chmod(0o755)
    return path


def look(tmp_path: Path, *, assets: bool = True, row: Program = APISERVER) -> Findings:
    environment = {"PATH": str(tmp_path / "path")}
    if assets:
        environment["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    return search(
        [row],
        environment=environment,
        cache_folders=[tmp_path / "cache"],
        interpreter_folder=tmp_path / "venv",
        cni_folders=[tmp_path / "cni"],
        system_folders=[tmp_path / "sbin"],
    )


def test_the_order_is_assets_then_path_then_cache(tmp_path: Path) -> None:
    name = APISERVER.name
    assert look(tmp_path).found == {}
    cached = program(tmp_path / "cache", name)
    assert look(tmp_path).found == {name: cached}
    on_path = program(tmp_path / "path", name)
    assert look(tmp_path).found == {name: on_path}
    asset = program(tmp_path / "assets", name)
    assert look(tmp_path).found == {name: asset}
    assert look(tmp_path, assets=False).found == {name: on_path}


def test_another_version_is_passed_by_and_said(tmp_path: Path) -> None:
    cached = program(tmp_path / "cache", APISERVER.name)
    program(tmp_path / "path", APISERVER.name, "v1.29.0")
    program(tmp_path / "assets", APISERVER.name, "v1.37.1")
    findings = look(tmp_path)
    assert findings.found == {APISERVER.name: cached}
    assert len(findings.skipped) == 2
    assert "KUBEBUILDER_ASSETS" in findings.skipped[0] and "v1.37.1" in findings.skipped[0]
    assert kubernetes_version() in findings.skipped[1]


def test_a_program_that_cannot_say_its_version_is_passed_by(tmp_path: Path) -> None:
    broken = program(tmp_path / "path", APISERVER.name)
    broken.write_text("#!/bin/sh\nexit 3\n")
    assert version_of(broken) is None
    findings = look(tmp_path)
    assert findings.found == {} and "unknown version" in findings.skipped[0]


def test_kubectl_comes_from_the_python_environment_before_path(tmp_path: Path) -> None:
    program(tmp_path / "path", "kubectl")
    wheel = program(tmp_path / "venv", "kubectl")
    assert look(tmp_path, row=KUBECTL).found == {"kubectl": wheel}


@pytest.mark.parametrize(
    ("version", "good"),
    [("v1.37.1", True), ("v1.36.9", True), ("v1.38.0", True), ("v1.35.4", False), (None, False)],
)
def test_kubectl_may_be_one_minor_version_off(version: str | None, good: bool) -> None:
    assert fits(KUBECTL, version) is good


def test_cni_plugins_are_looked_for_in_their_own_folders(tmp_path: Path) -> None:
    row = catalog()["bridge"]
    program(tmp_path / "path", "bridge")  # iproute2's `bridge` is another program
    assert look(tmp_path, row=row).found == {}
    plugin = program(tmp_path / "cni", "bridge")
    assert look(tmp_path, row=row).found == {"bridge": plugin}


def test_the_catalog_is_whole() -> None:
    rows = catalog()
    assert set(CONTROL_PLANE + CONTAINERD) <= set(rows)
    built = [row.name for row in rows.values() if row.origin is Origin.GO]
    assert built[0] == "etcd", "built first: the quickest, so that a broken toolchain shows at once"
    for row in rows.values():
        if row.origin is Origin.GO:
            tools = (row.module / "go.mod").read_text()
            assert row.package in tools, "every program built is a tool of its pinned module"
            assert row.version is not None
    assert kubernetes_version() in " ".join(build_flags())


def test_the_key_changes_with_whatever_changes_the_build(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module m\n")
    (tmp_path / "go.sum").write_text("s\n")

    def key(go: str = "go1.26.8", flags: tuple[str, ...] = ("-a",)) -> str:
        return cache.content_key(go, flags, tmp_path)

    first = key()
    assert key() == first
    keys = {first, key(go="go1.26.9"), key(flags=("-a", "-b")), key(flags=("-ab",))}
    (tmp_path / "go.sum").write_text("t\n")
    keys.add(key())
    (tmp_path / "go.mod").write_text("module n\n")
    keys.add(key())
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "main.go").write_text("package main\n")
    keys.add(key())
    assert len(keys) == 7


def test_the_cache_follows_xdg(tmp_path: Path) -> None:
    home = {"HOME": "/home/x"}
    assert cache.cache_root(home) == Path("/home/x/.cache/vknode/programs")
    assert cache.cache_root({**home, "XDG_CACHE_HOME": "/c"}) == Path("/c/vknode/programs")
    # Relative paths are invalid by the specification.
    assert cache.cache_root({**home, "XDG_CACHE_HOME": "c"}) == cache.cache_root(home)


def test_one_process_fills_a_key_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from vknode.devcluster.programs import cache\n"
        "with cache.filling(pathlib.Path(sys.argv[1]), lambda: None):\n"
        "    print('has it', flush=True); sys.stdin.readline()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdin is not None
    waits: list[None] = []

    def waiting() -> None:
        if not waits:
            other.kill()  # a builder that dies must not block the next one
        waits.append(None)

    try:
        assert other.stdout.readline() == "has it\n"
        with cache.filling(tmp_path, waiting):
            assert waits
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()


def test_programs_package_needs_only_the_standard_library() -> None:
    # `make` starts it before pip has installed anything.
    root = Path(cache.__file__).resolve().parents[3]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import vknode.devcluster.programs.__main__\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('click', 'structlog', 'aiohttp')])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_programs_and_test_binaries_of_another_go_module_are_built_once(tmp_path: Path) -> None:
    found = go_on_path(os.environ)
    if found is None:
        pytest.skip(
            "needs Go 1.26 or newer on PATH (Debian has older ones): see go.dev/doc/install"
        )
    module = tmp_path / "module"
    (module / "inner").mkdir(parents=True)
    (module / "go.mod").write_text("module example.com/m\n\ngo 1.26.0\n")
    (module / "go.sum").write_text("")
    (module / "main.go").write_text('package main\n\nfunc main() { println("main") }\n')
    (module / "inner" / "inner.go").write_text("package inner\n\nconst Said = 7\n")
    (module / "inner" / "inner_test.go").write_text(
        'package inner\n\nimport "testing"\n\nfunc TestSaid(t *testing.T) { t.Log("said", Said) }\n'
    )
    asked = subprocess.run([found[0], "env", "GOCACHE"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GOCACHE": asked.stdout.strip(),  # the standard library is compiled there already
    }
    wanted = [
        Program("m", Origin.GO, "example.com/m", "v1", 1),
        Program("inner.test", Origin.GO, "example.com/m/inner", "v1", 1, test=True),
    ]
    told = io.StringIO()
    made = provide_from(module, wanted, environment=environment, progress=Progress(told))
    assert "built m v1" in told.getvalue() and "built inner.test v1" in told.getvalue()
    assert {one.parent for one in made.values()} == {build_folder(environment, module)}
    ran = subprocess.run([made["m"]], capture_output=True, text=True, check=True)
    assert ran.stderr == "main\n"
    tested = subprocess.run(
        [made["inner.test"], "-test.v"], capture_output=True, text=True, check=True
    )
    assert "said 7" in tested.stdout
    told.truncate(0)
    assert provide_from(module, wanted, environment=environment, progress=Progress(told)) == made
    assert told.getvalue() == ""


def test_a_go_module_that_does_not_compile_is_said_with_the_compilers_words(
    tmp_path: Path,
) -> None:
    if go_on_path(os.environ) is None:
        pytest.skip(
            "needs Go 1.26 or newer on PATH (Debian has older ones): see go.dev/doc/install"
        )
    (tmp_path / "go.mod").write_text("module example.com/m\n\ngo 1.26.0\n")
    (tmp_path / "go.sum").write_text("")
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    row = Program("m", Origin.GO, "example.com/m", "v1", 1)
    with pytest.raises(ProgramsMissing, match="undefined: nonsense"):
        provide_from(tmp_path, [row], environment=environment, progress=Progress(io.StringIO()))


def test_what_lacks_is_said_with_the_command(tmp_path: Path) -> None:
    empty = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    with pytest.raises(ProgramsMissing, match=r"python -m vknode\.devcluster\.programs") as problem:
        require(["etcd", "kube-apiserver"], empty)
    assert "etcd, kube-apiserver" in str(problem.value)


def test_time_left_follows_the_pace_seen() -> None:
    rows = [Program("a", Origin.GO, "a", "v1", 100), Program("b", Origin.GO, "b", "v1", 300)]
    estimate = Estimate(rows, cpus=2)
    assert estimate.left(0) == 400  # nothing seen yet: the table
    assert Estimate(rows, cpus=4).left(0) == 200
    estimate.at("a", 50, 100)
    assert estimate.fraction() == pytest.approx(0.45 * 100 / 400)
    estimate.finished("a")
    # A quarter took 10 s: the rest takes 30, whatever the table says.
    assert estimate.left(10) == pytest.approx(30)
    estimate.finished("b")
    assert estimate.left(40) == 0
    assert spell(estimate.left(40)) == "0 s" and spell(200) == "3 min 20 s"


def test_progress_without_a_terminal_is_plain_lines() -> None:
    out = io.StringIO()
    progress = Progress(out, plain_every=1000)
    for percent in range(5):
        progress.update(f"{percent} %")
    progress.say("done")
    assert out.getvalue() == "0 %\ndone\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A download site on loopback that serves a folder."""
    root = tmp_path / "site"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]  # as socketserver calls it

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root
    server.shutdown()
    thread.join()
    server.server_close()


def publish(root: Path, content: bytes, checksum: str | None = None) -> None:
    base = root / "release" / kubernetes_version() / "bin" / "linux" / go_architecture()
    base.mkdir(parents=True, exist_ok=True)
    (base / "kube-apiserver").write_bytes(content)
    (base / "kube-apiserver.sha256").write_text(checksum or hashlib.sha256(content).hexdigest())
    (base / "kubectl.sha256").write_text("0" * 64)


def test_downloads_are_checked(site: tuple[str, Path], tmp_path: Path) -> None:
    url, root = site
    quiet = Progress(io.StringIO())
    folder = tmp_path / "cache"
    folder.mkdir()
    assert not download.reachable(url)
    publish(root, b"program", checksum="0" * 64)
    assert download.reachable(url)
    failures = download.download([APISERVER], folder, quiet, kubernetes_site=url)
    assert len(failures) == 1 and "SHA-256" in failures[0]
    assert list(folder.iterdir()) == [], "what fails its check is never placed"
    publish(root, b"program")
    assert download.download([APISERVER], folder, quiet, kubernetes_site=url) == []
    placed = folder / "kube-apiserver"
    assert placed.read_bytes() == b"program" and placed.stat().st_mode & 0o111


def test_etcd_is_taken_out_of_its_release_archive(site: tuple[str, Path], tmp_path: Path) -> None:
    url, root = site
    base = f"etcd-{etcd_version()}-linux-{go_architecture()}"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as packed:
        info = tarfile.TarInfo(f"{base}/etcd")
        info.size = 4
        packed.addfile(info, io.BytesIO(b"etcd"))
    release = root / etcd_version()
    release.mkdir()
    (release / f"{base}.tar.gz").write_bytes(raw.getvalue())
    digest = hashlib.sha256(raw.getvalue()).hexdigest()
    (release / "SHA256SUMS").write_text(f"{'1' * 64}  other.tar.gz\n{digest}  {base}.tar.gz\n")
    folder = tmp_path / "cache"
    folder.mkdir()
    quiet = Progress(io.StringIO())
    assert download.download([catalog()["etcd"]], folder, quiet, etcd_site=url) == []
    assert (folder / "etcd").read_bytes() == b"etcd"
