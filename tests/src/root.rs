//! Throw-away roots: a directory tree to install into and to run in, gone with the process.

use std::path::Path;
use std::process::Command;

use crate::process::program;
use crate::requirement::Need;

/// What [`in_root`] needs from the machine.
pub const NEEDS: &[Need] = &[Need::Root, Need::Program("unshare"), Need::Program("chroot")];

/// Makes an overlay on `$1` in memory as `$root`, with what a system has mounted.
const BEGIN: &str = "
    scratch=$(mktemp -d); lower=$1; in=$2
    mount -t tmpfs none $scratch
    mkdir $scratch/upper $scratch/work $scratch/root; root=$scratch/root
    mount -t overlay -o lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work none $root
    mkdir -p $root/in; mount --bind $in $root/in
    mount -t proc none $root/proc; mount --rbind /sys $root/sys; mount --rbind /dev $root/dev
    mount -t tmpfs none $root/run; mount -t tmpfs none $root/tmp
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 TMPDIR=/tmp
    ";

/// A command that runs a shell script, which ends at its first failure, with `$root`: an overlay
/// on the tree `lower`, in which `/in` is the directory `input`. Nothing of it is seen outside,
/// and nothing is left.
pub fn in_root(lower: &Path, input: &Path, script: &str) -> Command {
    let mut command = program("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"]);
    command.arg(BEGIN.to_owned() + script).arg("sh").arg(lower).arg(input);
    // The end of the script would remove its scratch directory if it could; the mount goes with
    // the namespace, the empty directory with this one.
    command.env("TMPDIR", input);
    command
}
