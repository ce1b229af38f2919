"""The container images of the development cluster, made here: no registry is needed.

Debian's static busybox under the usual names, and a pause program of 300 bytes.
Written as one OCI image layout in a tar file (`imagelayout`).
The names with `docker.io/library` are what `image: busybox:1.36` in a Pod means.

Two images that differ (`web:v1`, `web:v2`) make a rolling update visible. The
`wget` applet is left out on purpose: in a static glibc build it crashes as it
looks for the host's name-service libraries; `fetch` is a script over `nc`.
"""

from __future__ import annotations

import hashlib
import platform
import struct
import subprocess
from pathlib import Path

from vknode.devcluster import imagelayout
from vknode.devcluster.imagelayout import Entry, Layout

PAUSE_IMAGE = "vknode.dev/pause:v1"
BUSYBOX_IMAGE = "docker.io/library/busybox:1.36"
WEB_IMAGES = ("vknode.dev/web:v1", "vknode.dev/web:v2")
IMAGE_NAMES = (
    PAUSE_IMAGE,
    BUSYBOX_IMAGE,
    "docker.io/library/busybox:1.37",
    "docker.io/library/busybox:latest",
    *WEB_IMAGES,
)

_FETCH = """#!/bin/sh
# fetch ADDRESS [PORT [PATH]]: the body of an HTTP answer on standard output
ask="GET ${3:-/} HTTP/1.0\\r\\nHost: $1\\r\\n\\r\\n"
answer=$(printf "$ask" | nc -w 5 "$1" "${2:-8080}") || exit 1
case "$answer" in 'HTTP/1.'?' 200 '*) ;; *) echo "$answer" | head -n 1 >&2; exit 1 ;; esac
echo "$answer" | sed '1,/^\\r*$/d'
"""
_CGI = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'; hostname\n"

# A pause process, assembled: ignore SIGCHLD (the kernel then reaps orphans of a shared
# process namespace), block SIGINT and SIGTERM, wait for one of them, exit 0. As process 1
# it would never see an unblocked SIGTERM: the kernel drops those without a handler.
_PAUSE_X86_64 = bytes.fromhex(
    "b80d000000"  # mov eax, 13            rt_sigaction(
    "bf11000000"  # mov edi, 17              SIGCHLD,
    "488d3547000000"  # lea rsi, [rip+0x47]  &ignore,
    "31d2"  # xor edx, edx                   NULL,
    "41ba08000000"  # mov r10d, 8            8)
    "0f05"  # syscall
    "b80e000000"  # mov eax, 14            rt_sigprocmask(
    "31ff"  # xor edi, edi                   SIG_BLOCK,
    "488d354f000000"  # lea rsi, [rip+0x4f]  &mask,
    "31d2"  # xor edx, edx                   NULL,
    "41ba08000000"  # mov r10d, 8            8)
    "0f05"  # syscall
    "b880000000"  # wait: mov eax, 128     rt_sigtimedwait(
    "488d3d39000000"  # lea rdi, [rip+0x39]  &mask,
    "31f6"  # xor esi, esi                   NULL,
    "31d2"  # xor edx, edx                   NULL,
    "41ba08000000"  # mov r10d, 8            8)
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "78e4"  # js wait                      interrupted: again
    "b8e7000000"  # mov eax, 231           exit_group(
    "31ff"  # xor edi, edi                   0)
    "0f05"  # syscall
    "0100000000000000"  # ignore: handler SIG_IGN, flags 0,
    "0000000000000000"
    "0000000000000000"  # restorer 0,
    "0000000000000000"  # mask 0
    "0240000000000000"  # mask: bits of signals 2 and 15
)


class ImagesUnavailable(Exception):
    """The images cannot be made from what is on this machine."""


def pause_elf() -> bytes:
    """The pause program as an ELF executable for x86-64: one segment, no libc."""
    base, head = 0x400000, 64 + 56
    size = head + len(_PAUSE_X86_64)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,
        base + head,  # entry
        64,  # program headers follow this header
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    # PT_LOAD, readable and executable.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + _PAUSE_X86_64


def is_static(program: Path) -> bool:
    """Whether an ELF program needs no interpreter, and so runs in an empty image."""
    raw = program.read_bytes()
    if raw[:4] != b"\x7fELF" or raw[4] != 2:
        return False
    offset, size, count = *struct.unpack_from("<Q", raw, 32), *struct.unpack_from("<HH", raw, 54)
    kinds = [struct.unpack_from("<I", raw, offset + size * i)[0] for i in range(count)]
    return 3 not in kinds  # PT_INTERP


def write_images(busybox: Path, folder: Path) -> Path:
    """Write all images into one tar file in `folder`, named by content, unless it is there.

    Raises ImagesUnavailable if busybox is not a static program."""
    if not is_static(busybox):
        raise ImagesUnavailable(
            f"{busybox} is not static, so it cannot run alone in an image: "
            "install the Debian package busybox-static"
        )
    program = busybox.read_bytes()
    digest = hashlib.sha256(program)
    for recipe in (__file__, imagelayout.__file__):
        digest.update(Path(recipe).read_bytes())
    target = folder / f"images-{digest.hexdigest()[:16]}.tar"
    if target.exists():
        return target
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    applets = [name for name in listed.stdout.split() if name not in ("busybox", "wget")]
    layout = Layout()
    base = layout.layer(busybox_entries(program, applets))
    if platform.machine() == "x86_64":
        pause = layout.layer([Entry("pause", pause_elf(), 0o755)])
        layout.image([pause], ["/pause"], [PAUSE_IMAGE])
    else:
        layout.image([base], ["/bin/sleep", "2147483647"], [PAUSE_IMAGE])
    layout.image([base], ["sh"], [name for name in IMAGE_NAMES if "/busybox:" in name])
    serve = ["/bin/httpd", "-f", "-v", "-p", "8080", "-h", "/www"]
    for name in WEB_IMAGES:
        version = name.rpartition(":")[2]
        page = layout.layer([Entry("www/index.html", f"hello from web {version}\n".encode())])
        layout.image([base, page], serve, [name])
    folder.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    layout.write(fresh)
    fresh.replace(target)
    return target


def busybox_entries(program: bytes, applets: list[str]) -> list[Entry]:
    """The files of a small system whose commands are busybox's `applets`."""
    folders = "bin dev etc home proc root run sys tmp usr usr/bin var var/run www www/cgi-bin"
    entries = [
        Entry(name, folder=True, mode=0o1777 if name == "tmp" else 0o755)
        for name in folders.split()
    ]
    entries.append(Entry("bin/busybox", program, 0o755))
    entries += [Entry(f"bin/{name}", link="busybox") for name in sorted(applets)]
    entries += [
        Entry("usr/bin/env", link="../../bin/busybox"),
        Entry("bin/fetch", _FETCH.encode(), 0o755),
        Entry("www/cgi-bin/hostname", _CGI.encode(), 0o755),
        Entry(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        ),
        Entry("etc/group", b"root:x:0:\nnobody:x:65534:\n"),
    ]
    return entries
