//! Podman: whether it works, which protocol it speaks, whether it looks into the layer store, and
//! whether something is there.

use std::path::Path;

use super::{Finding, Patient};
use crate::host::mounts;
use crate::host::podman::{Info, PodmanError};

const CHECK: &str = "podman";

pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    let mounted = mounts::is_mount_point(&patient.store);
    judge(patient.podman.info(), &patient.store, mounted)
}

fn judge(info: Result<Info, PodmanError>, store: &Path, mounted: bool) -> Vec<Finding> {
    let info = match info {
        Ok(info) => info,
        Err(PodmanError::Start { .. }) => {
            let advice = "install it, unless only `undermount mount` is used here";
            return vec![Finding::warning(CHECK, "is not installed", advice)];
        }
        Err(error) => {
            let advice = "if it complains of the layer store: `undermount setup podman --undo`, or \
                          start the agent";
            return vec![Finding::broken(CHECK, error.to_string(), advice)];
        }
    };
    vec![judge_version(&info), judge_store(&info, store, mounted)]
}

fn judge_version(info: &Info) -> Finding {
    let Info { version, driver, .. } = info;
    if driver != "overlay" {
        let advice = "only the driver `overlay` knows layer stores: change it in storage.conf";
        let found = format!("version {version} with the storage driver `{driver}`");
        return Finding::broken(CHECK, found, advice);
    }
    match info.generation() {
        1 => Finding::ok(CHECK, format!("version {version}: every layer can be lazy")),
        _ => Finding::ok(
            CHECK,
            format!("version {version}: images of `undermount prepare --annotate` can be lazy"),
        ),
    }
}

fn judge_store(info: &Info, store: &Path, mounted: bool) -> Finding {
    const CHECK: &str = "layer store";
    let named = info
        .layer_stores
        .iter()
        .any(|named| named.split(':').next().is_some_and(|path| Path::new(path) == store));
    let shown = store.display();
    match (named, mounted) {
        (true, true) => Finding::ok(CHECK, format!("{shown} is mounted and known to podman")),
        (true, false) => Finding::broken(
            CHECK,
            format!("podman looks into {shown}, where nothing is mounted"),
            "run `systemctl start undermount-agent`; until then podman pulls whole images",
        ),
        (false, _) => Finding::warning(
            CHECK,
            format!("podman does not look into {shown}"),
            "run `undermount setup podman`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn info(version: &str, driver: &str, stores: &[&str]) -> Info {
        Info {
            version: version.to_owned(),
            driver: driver.to_owned(),
            layer_stores: stores.iter().map(|store| (*store).to_owned()).collect(),
        }
    }

    fn states(info: Info, mounted: bool) -> Vec<State> {
        let findings = judge(Ok(info), Path::new("/store"), mounted);
        findings.iter().map(|finding| finding.state).collect()
    }

    #[test]
    fn a_store_must_be_known_and_mounted() {
        let stores = ["/other:ref", "/store:ref"];
        assert_eq!(states(info("4.3.1", "overlay", &stores), true), [State::Ok, State::Ok]);
        assert_eq!(states(info("4.3.1", "overlay", &stores), false), [State::Ok, State::Broken]);
        assert_eq!(states(info("5.4.0", "overlay", &[]), true), [State::Ok, State::Warning]);
        assert_eq!(states(info("4.3.1", "vfs", &[]), true)[0], State::Broken);
    }

    #[test]
    fn a_podman_that_refuses_is_quoted_and_a_missing_one_is_not_an_error() {
        let refused = PodmanError::Refused("can't stat additionallayerstore dir".to_owned());
        let finding = &judge(Err(refused), Path::new("/store"), false)[0];
        assert_eq!(finding.state, State::Broken);
        assert!(finding.found.contains("can't stat"), "{}", finding.found);
        let source = std::io::ErrorKind::NotFound.into();
        let missing = PodmanError::Start { program: "podman".into(), source };
        assert_eq!(judge(Err(missing), Path::new("/store"), false)[0].state, State::Warning);
    }
}
