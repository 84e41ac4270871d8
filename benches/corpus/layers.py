"""From the upper directory of an overlay to a layer of an OCI image (image-spec, layer.md).

Entries are sorted, parents first; times are no later than `EPOCH`; hard links stay links, devices
0:0 become whiteouts and opaque directories get their marker. The same directory makes the same
layer, byte for byte.
"""

import hashlib
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Iterator

EPOCH = 1747699200

KINDS = {
    stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Hashed:
    """A stream that hashes what is written through it."""

    def __init__(self, out):
        self.out, self.hash = out, hashlib.sha256()

    def write(self, data):
        """Writes all of `data`."""
        self.hash.update(data)
        return self.out.write(data)


def entries(upper: Path, inner: str = "") -> Iterator[tuple[str, Path | None]]:
    """Names in the archive with what they stand for; `None` for whiteouts and markers."""
    directory = upper / inner
    try:
        if inner and os.getxattr(directory, "trusted.overlay.opaque", follow_symlinks=False) == b"y":
            yield f"{inner}/.wh..wh..opq", None
    except OSError:
        pass
    for name in sorted(os.listdir(directory)):
        path, member = directory / name, os.path.join(inner, name)
        status = path.lstat()
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            yield os.path.join(inner, f".wh.{name}"), None
            continue
        if not stat.S_ISSOCK(status.st_mode):
            yield member, path
        if stat.S_ISDIR(status.st_mode):
            yield from entries(upper, member)


def member(name: str, path: Path | None, links: dict) -> tarfile.TarInfo:
    """The header of an entry; `links` knows the first name of each file that has several."""
    info = tarfile.TarInfo(name)
    if path is None:
        info.mode, info.mtime = 0, EPOCH
        return info
    status = path.lstat()
    info.mode, info.uid, info.gid = status.st_mode & 0o7777, status.st_uid, status.st_gid
    info.mtime = min(int(status.st_mtime), EPOCH)
    for attribute in os.listxattr(path, follow_symlinks=False):
        if attribute.startswith(("user.", "security.")) and attribute != "security.selinux":
            value = os.getxattr(path, attribute, follow_symlinks=False)
            info.pax_headers[f"SCHILY.xattr.{attribute}"] = value.decode("utf-8", "surrogateescape")
    kind, inode = stat.S_IFMT(status.st_mode), (status.st_dev, status.st_ino)
    if kind != stat.S_IFREG:
        info.type = KINDS[kind]
        if kind == stat.S_IFLNK:
            info.linkname = os.readlink(path)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif inode in links:
        info.type, info.linkname = tarfile.LNKTYPE, links[inode]
    else:
        info.size = status.st_size
        if status.st_nlink > 1:
            links[inode] = name
    return info


def pack(upper: Path, blobs: Path) -> dict:
    """Writes the layer into `blobs`, gzip -6; its descriptor, with the digest of the archive."""
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f".partial-{os.getpid()}-{upper.parent.name}"
    links: dict = {}
    with open(partial, "wb") as out:
        gzip = subprocess.Popen(["gzip", "-6", "-n"], stdin=subprocess.PIPE, stdout=out)
        stream = Hashed(gzip.stdin)
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name, path in entries(upper):
                info = member(name, path, links)
                if info.isreg() and path is not None:
                    with open(path, "rb") as content:
                        archive.addfile(info, content)
                else:
                    archive.addfile(info)
        gzip.stdin.close()
        if gzip.wait():
            raise SystemExit("gzip failed")
    with open(partial, "rb") as blob:
        digest = hashlib.file_digest(blob, "sha256").hexdigest()
    size = partial.stat().st_size
    partial.rename(blobs / digest)
    return {"digest": f"sha256:{digest}", "size": size, "diff_id": f"sha256:{stream.hash.hexdigest()}"}


def put_json(value: dict, blobs: Path) -> dict:
    """Writes a manifest or config into `blobs`; digest and size."""
    data = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
