//! A small Debian as a real container image: `debootstrap --variant=minbase` and a second layer
//! that deletes, replaces and adds files, made into an OCI layout with `umoci`.
//!
//! It takes a minute, so it is made once per target directory; test binaries that want it at
//! the same time wait for each other.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::process::{program, run};
use crate::requirement::Need;
use crate::tree::Tree;

/// What [`debian`] needs from the machine.
pub const NEEDS: &[Need] = &[Need::Root, Need::Program("debootstrap"), Need::Program("umoci")];

/// The version of what is made here: a change makes the image anew.
const VERSION: u32 = 1;
/// The name of the image in its layout.
pub const NAME: &str = "debian";
/// Package mirrors may be slow.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often a mirror is tried that fails, and the time in between.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(20);

/// The image and what another tool makes of it.
pub struct Debian {
    directory: PathBuf,
}

impl Debian {
    /// The OCI layout; the image in it is called [`NAME`].
    pub fn layout(&self) -> PathBuf {
        self.directory.join("layout")
    }

    /// The root file system as `umoci unpack` writes it.
    pub fn unpacked(&self) -> PathBuf {
        self.directory.join("unpacked/rootfs")
    }

    /// The tree of [`Self::unpacked`].
    pub fn tree(&self) -> Tree {
        Tree::read(&self.unpacked()).expect("what umoci wrote can be read")
    }
}

/// The image, made if this target directory has none; or why it cannot be made here.
///
/// # Errors
/// Where the machine has no package mirror, or the mirror does not answer.
pub fn debian() -> Result<Debian, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = test.ancestors().nth(3).expect("cargo puts tests below the target directory");
    let home = target.join("undermount-tests");
    fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let lock = File::create(home.join("debian.lock")).map_err(|error| error.to_string())?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string())?;
    let directory = home.join(format!("debian-{VERSION}"));
    if !directory.exists() {
        let scratch = tempfile::tempdir_in(&home).map_err(|error| error.to_string())?;
        make(scratch.path())?;
        fs::rename(scratch.keep(), &directory).map_err(|error| error.to_string())?;
    }
    Ok(Debian { directory })
}

fn make(directory: &Path) -> Result<(), String> {
    let at =
        |name: &str| directory.join(name).into_os_string().into_string().expect("a plain path");
    let image = format!("{}:{NAME}", at("layout"));
    let rootfs = directory.join("bundle/rootfs");
    command("umoci", &["init", "--layout", &at("layout")])?;
    command("umoci", &["new", "--image", &image])?;
    command("umoci", &["unpack", "--image", &image, &at("bundle")])?;
    bootstrap(&rootfs)?;
    first_layer(&rootfs).map_err(|error| format!("first layer: {error}"))?;
    command("umoci", &["repack", "--refresh-bundle", "--image", &image, &at("bundle")])?;
    second_layer(&rootfs).map_err(|error| format!("second layer: {error}"))?;
    command("umoci", &["repack", "--refresh-bundle", "--image", &image, &at("bundle")])?;
    command("umoci", &["gc", "--layout", &at("layout")])?;
    fs::remove_dir_all(directory.join("bundle")).map_err(|error| error.to_string())?;
    command("umoci", &["unpack", "--image", &image, &at("unpacked")])
}

fn bootstrap(rootfs: &Path) -> Result<(), String> {
    let (mirror, suite) = mirror().ok_or("apt has no package mirror to bootstrap from")?;
    let words = ["--variant=minbase", &suite, rootfs.to_str().expect("a plain path"), &mirror];
    for _ in 1..ATTEMPTS {
        if command("debootstrap", &words).is_ok() {
            return Ok(());
        }
        empty(rootfs).map_err(|error| format!("{}: {error}", rootfs.display()))?;
        thread::sleep(PAUSE);
    }
    command("debootstrap", &words)
}

/// Where this machine's own packages come from: address and release.
fn mirror() -> Option<(String, String)> {
    let mut list = program("apt-get");
    list.args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]);
    let targets = run(&mut list, DEADLINE).success().stdout;
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let mirror = targets.lines().find_map(|line| line.strip_prefix(&format!("{suite} ")))?;
    Some((mirror.to_owned(), suite.to_owned()))
}

fn command(name: &str, arguments: &[&str]) -> Result<(), String> {
    let outcome = run(program(name).args(arguments), DEADLINE);
    if outcome.status.success() {
        return Ok(());
    }
    Err(format!("{} failed: {}{}", outcome.command, outcome.stdout, outcome.stderr))
}

/// What image builders drop from a fresh installation, and some files that few images have.
fn first_layer(rootfs: &Path) -> io::Result<()> {
    for directory in ["var/cache/apt/archives", "var/lib/apt/lists", "var/log"] {
        empty(&rootfs.join(directory))?;
    }
    let odd = rootfs.join("odd");
    fs::create_dir_all(odd.join("deep/er"))?;
    fs::write(odd.join("capable"), "#!/bin/sh\n")?;
    xattr::set(odd.join("capable"), "security.capability", CAPABILITY)?;
    fs::write(odd.join("attributed"), "x")?;
    xattr::set(odd.join("attributed"), "user.note", b"a\nb")?;
    fs::write(odd.join("one"), "linked")?;
    fs::hard_link(odd.join("one"), odd.join("deep/two"))?;
    fs::hard_link(odd.join("one"), odd.join("deep/er/three"))?;
    fs::write(odd.join("setuid"), "x")?;
    fs::set_permissions(odd.join("setuid"), fs::Permissions::from_mode(0o6755))?;
    fs::write(odd.join("large"), crate::archive::noise(1, 3 << 20))?;
    fs::write(odd.join("zeros"), vec![0; 5 << 20])?;
    nix::unistd::mkfifo(&odd.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640))?;
    let device = nix::sys::stat::makedev(7, 300);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::sys::stat::mknod(&odd.join("block"), nix::sys::stat::SFlag::S_IFBLK, mode, device)?;
    Ok(())
}

/// `cap_net_raw=ep`, as file systems store it (revision 2).
const CAPABILITY: &[u8] =
    b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// What an update does: files and directories go, change and come.
fn second_layer(rootfs: &Path) -> io::Result<()> {
    let at = |name: &str| rootfs.join(name);
    // Deleted: a file, a directory, one name of a hard link.
    fs::remove_file(at("etc/issue.net"))?;
    fs::remove_dir_all(at("usr/share/common-licenses"))?;
    fs::remove_file(at("odd/one"))?;
    // Replaced: content, type in both directions, the content of a whole directory, metadata.
    fs::write(at("etc/issue"), "an updated Debian\n")?;
    fs::remove_dir_all(at("odd/deep/er"))?;
    fs::write(at("odd/deep/er"), "now a file")?;
    fs::remove_file(at("odd/setuid"))?;
    fs::create_dir(at("odd/setuid"))?;
    fs::write(at("odd/setuid/inside"), "now a directory")?;
    empty(&at("etc/apt/apt.conf.d"))?;
    fs::write(at("etc/apt/apt.conf.d/99own"), "APT::Install-Recommends \"false\";\n")?;
    fs::set_permissions(at("odd/deep"), fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(at("odd/deep"), Some(1234), Some(5678))?;
    // Added.
    fs::create_dir_all(at("opt/service/bin"))?;
    fs::write(at("opt/service/bin/run"), "#!/bin/sh\necho service\n")?;
    fs::set_permissions(at("opt/service/bin/run"), fs::Permissions::from_mode(0o755))?;
    fs::write(at("opt/service/data"), crate::archive::noise(2, 2 << 20))?;
    symlink("bin/run", at("opt/service/start"))?;
    fs::hard_link(at("opt/service/data"), at("opt/service/data.again"))?;
    fs::write(at(&format!("opt/service/{}", "n".repeat(200))), "a long name")
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
