//! The kernel: FUSE, overlayfs, and what of FUSE is there by its version.

use std::fs::File;
use std::io;

use super::Finding;

/// The oldest kernel on which the suites run with its features masked (EL8).
const OLDEST: (u32, u32) = (4, 18);
/// Since then FUSE has passthrough and can be asked to send requests again.
const PASSTHROUGH: (u32, u32) = (6, 9);

pub(super) fn examine() -> Vec<Finding> {
    let release = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let device = File::options().read(true).write(true).open("/dev/fuse").map(drop);
    vec![version(&release), fuse(&device), overlay(&filesystems)]
}

fn version(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        let advice = "Undermount needs Linux 4.18 or later: upgrade the kernel";
        return Finding::broken(CHECK, format!("Linux {release}"), advice);
    }
    let found = if version >= PASSTHROUGH {
        format!("Linux {release}: FUSE can pass reads through and send requests again")
    } else {
        format!(
            "Linux {release}: `data_mode = \"passthrough\"` needs 6.9, and reads that are under \
             way when a worker dies fail"
        )
    };
    Finding::ok(CHECK, found)
}

fn fuse(device: &io::Result<()>) -> Finding {
    const CHECK: &str = "fuse";
    match device {
        Ok(()) => Finding::ok(CHECK, "/dev/fuse opens"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let advice = "run `modprobe fuse`; in a container, pass the device in";
            Finding::broken(CHECK, "/dev/fuse is missing", advice)
        }
        Err(error) => {
            let advice = "run as root; in a container, allow the device";
            Finding::broken(CHECK, format!("/dev/fuse does not open: {error}"), advice)
        }
    }
}

fn overlay(filesystems: &str) -> Finding {
    const CHECK: &str = "overlayfs";
    match filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        true => Finding::ok(CHECK, "the kernel has it"),
        false => Finding::warning(
            CHECK,
            "the kernel has not loaded it",
            "run `modprobe overlay`: podman mounts containers with it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_what_they_can() {
        for (release, state, words) in [
            ("4.18.0-553.el8", State::Ok, "needs 6.9"),
            ("5.14.0-427.el9.x86_64", State::Ok, "needs 6.9"),
            ("6.9.1", State::Ok, "pass reads through"),
            ("6.18.44-x", State::Ok, "pass reads through"),
            ("3.10.0", State::Broken, "Linux 3.10.0"),
        ] {
            let finding = version(release);
            assert!(finding.state == state && finding.found.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn a_missing_device_and_a_forbidden_one_get_different_advice() {
        let advice = |kind: io::ErrorKind| fuse(&Err(kind.into())).advice.unwrap();
        assert!(advice(io::ErrorKind::NotFound).contains("modprobe fuse"));
        assert!(advice(io::ErrorKind::PermissionDenied).contains("run as root"));
        assert_eq!(fuse(&Ok(())).state, State::Ok);
    }

    #[test]
    fn overlayfs_is_found_among_the_file_systems() {
        assert_eq!(overlay("nodev\tproc\nnodev\toverlay\n").state, State::Ok);
        assert_eq!(overlay("nodev\tproc\n").state, State::Warning);
    }
}
