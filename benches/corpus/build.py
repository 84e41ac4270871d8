#!/usr/bin/env python3
"""Builds real images from Debian 12 packages, as an OCI layout for the benches.

    benches/corpus/build.py DIRECTORY [IMAGE...]     all images of recipes.py, or some of them
    benches/corpus/build.py --start IMAGE            prints the program that a start of it runs

The layout is DIRECTORY/oci, an image in it `openstack-nova-api` and the like; finished steps are
kept in DIRECTORY/work, so that a run that was cut off goes on where it was. Takes root, overlayfs,
debootstrap, gzip and the package mirror that this host's apt is set to. nova-api takes 10 to 20
minutes and 3 GB. The packages are those of today: images of different days differ.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from layers import EPOCH, pack, put_json
from recipes import RECIPES

PREFIX = "openstack-"
OWN = ("debian",)
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MEDIA = "application/vnd.oci.image"

# Runs a step in namespaces of its own, on an overlay of the layers below it.
STEP = r"""
set -e
cd "$STEPS"; mkdir -p "$ID/upper" "$ID/work" "$ID/root"; M="$ID/root"
if [ -n "$LOWER" ]; then
  mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$ID/upper,workdir=$ID/work,index=off,redirect_dir=off,metacopy=off" "$M"
else mount --bind "$ID/upper" "$M"; fi
if [ "$KIND" = DEBOOTSTRAP ]; then
  debootstrap --variant=minbase --cache-dir="$CACHE" --include=ca-certificates bookworm "$M" "$MIRROR"
  rm -rf "$M"/dev/* "$M"/var/lib/apt/lists/* "$M"/var/cache/apt/* "$M"/run/* "$M"/tmp/* "$M"/etc/machine-id
  : > "$M/etc/resolv.conf"; : > "$M/etc/machine-id"; mkdir -p "$M/var/lib/apt/lists" "$M/var/cache/apt/archives"
  echo localhost > "$M/etc/hostname"; echo '127.0.0.1 localhost' > "$M/etc/hosts"
else
  mount -t proc proc "$M/proc"; mount --rbind /sys "$M/sys"; mount --rbind /dev "$M/dev"
  mount -t tmpfs tmpfs "$M/run"; mount -t tmpfs tmpfs "$M/tmp"; chmod 1777 "$M/tmp"; mkdir -p "$M/run/lock"
  mount --bind /etc/resolv.conf "$M/etc/resolv.conf"
  mount --bind "$CACHE" "$M/var/cache/apt"; mount --bind "$LISTS" "$M/var/lib/apt/lists"
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  if [ "$KIND" = INSTALL ]; then
    printf '#!/bin/sh\nexit 101\n' > "$M/usr/sbin/policy-rc.d"; chmod 755 "$M/usr/sbin/policy-rc.d"
    chroot "$M" sh -c "ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || apt-get update -q"
    chroot "$M" apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 \
      -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
      -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io $COMMAND
    rm -f "$M/usr/sbin/policy-rc.d"
  else chroot "$M" bash -ec "$COMMAND"; fi
  rm -rf "$M"/var/log/apt "$M"/var/log/dpkg.log "$M"/var/log/alternatives.log "$M"/var/log/bootstrap.log \
    "$M"/var/cache/debconf/*-old "$M"/var/lib/dpkg/*-old "$M"/var/cache/ldconfig/aux-cache "$M"/etc/*-
  [ ! -s "$M/etc/machine-id" ] || : > "$M/etc/machine-id"
fi
"""


def mirror() -> str:
    """The package mirror that this host's apt uses."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    for address in re.findall(r"https?://[^ \n]+", text):
        if address.rstrip("/").endswith("/debian"):
            return address
    raise SystemExit("this host's apt has no Debian mirror")


def chain(name: str) -> list[tuple[str, str]]:
    """All steps of an image from the lowest on, each with an id that stands for all up to it."""
    recipe = RECIPES[name]
    steps = chain(recipe.parent) if recipe.parent else []
    for step in recipe.steps:
        below = steps[-1][0] if steps else ""
        steps.append((hashlib.sha256((below + step).encode()).hexdigest()[:12], step))
    return steps


def run_step(work: Path, identity: str, step: str, below: list[str]):
    """Runs a step, unless it is done."""
    directory = work / "steps" / identity
    if (directory / "done").exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    word, _, rest = step.partition(" ")
    kind, command = (word, rest) if word in ("DEBOOTSTRAP", "INSTALL") else ("RUN", step)
    environment = {
        "PATH": os.environ["PATH"], "STEPS": str(work / "steps"), "ID": identity, "KIND": kind,
        "COMMAND": command, "LOWER": ":".join(f"{lower}/upper" for lower in reversed(below)),
        "CACHE": str(work / "apt"), "LISTS": str(work / "lists"), "MIRROR": mirror(),
        "SOURCE_DATE_EPOCH": str(EPOCH),
    }
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    with open(directory / "log", "wb") as log:
        ended = subprocess.run([*words, "bash", "-c", STEP], env=environment, stdout=log,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if ended.returncode:
        tail = (directory / "log").read_text(errors="replace")[-1500:]
        raise SystemExit(f"step {step[:60]!r} failed:\n{tail}")
    shutil.rmtree(directory / "work", ignore_errors=True)
    (directory / "done").touch()


def layer(work: Path, identity: str, blobs: Path) -> dict:
    """The layer of a step that is done, packed where it is not here."""
    known = work / "steps" / identity / "layer.json"
    if known.exists():
        packed = json.loads(known.read_text())
        if (blobs / packed["digest"].removeprefix("sha256:")).exists():
            return packed
    packed = pack(work / "steps" / identity / "upper", blobs)
    known.write_text(json.dumps(packed))
    return packed


def build(directory: Path, name: str):
    """Builds an image and puts it into the layout."""
    work, layout = directory / "work", directory / "oci"
    blobs = layout / "blobs/sha256"
    for inner in ("steps", "apt/archives/partial", "lists/partial"):
        (work / inner).mkdir(parents=True, exist_ok=True)
    below: list[str] = []
    for identity, step in chain(name):
        begin = time.monotonic()
        run_step(work, identity, step, below)
        below.append(identity)
        print(f"{name}: {step[:60]!r}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    layers = [layer(work, identity, blobs) for identity in below]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH))
    config = put_json({
        "architecture": "amd64", "os": "linux", "created": created,
        "config": {"Entrypoint": ["dumb-init", "--single-child", "--"], "Cmd": ["kolla_start"],
                   "User": RECIPES[name].user, "Env": [PATH, "LANG=C.UTF-8"]},
        "rootfs": {"type": "layers", "diff_ids": [packed["diff_id"] for packed in layers]},
        "history": [{"created": created, "created_by": f"/bin/sh -c {step[:200]}"}
                    for _, step in chain(name)],
    }, blobs)
    manifest = put_json({
        "schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": {"mediaType": f"{MEDIA}.config.v1+json", **config},
        "layers": [{"mediaType": f"{MEDIA}.layer.v1.tar+gzip", "digest": packed["digest"],
                    "size": packed["size"]} for packed in layers],
    }, blobs)
    enter(layout, name if name in OWN else PREFIX + name, manifest)
    size = sum(packed["size"] for packed in layers)
    print(f"{name}: {len(layers)} layers, {size / 2**20:.0f} MiB compressed", flush=True)


def enter(layout: Path, name: str, manifest: dict):
    """Names an image in the layout's index."""
    index, key = layout / "index.json", "org.opencontainers.image.ref.name"
    known = json.loads(index.read_text())["manifests"] if index.exists() else []
    others = [other for other in known if other["annotations"][key] != name]
    entry = {"mediaType": f"{MEDIA}.manifest.v1+json", **manifest, "annotations": {key: name},
             "platform": {"architecture": "amd64", "os": "linux"}}
    partial = layout / "index.json.partial"
    partial.write_text(json.dumps({"schemaVersion": 2, "manifests": [*others, entry]}, indent=1))
    partial.rename(index)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def main(words: list[str]):
    """Does what the command line says."""
    if words[:1] == ["--start"] and len(words) == 2 and words[1] in RECIPES:
        print(RECIPES[words[1]].start or "true")
        return
    unknown = [name for name in words[1:] if name not in RECIPES]
    if not words or words[0].startswith("-") or unknown:
        raise SystemExit(f"{__doc__}\nimages: {' '.join(RECIPES)}")
    for name in words[1:] or RECIPES:
        build(Path(words[0]).absolute(), name)


if __name__ == "__main__":
    main(sys.argv[1:])
