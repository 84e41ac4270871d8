//! The undercloud's own registry: what `push_destination: true` stands for.

use std::time::Duration;

/// The port that the undercloud's registry has always had.
pub(super) const PORT: u16 = 8787;
/// How long the name service may take.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);

/// The undercloud's registry as host and port: the name that this host has on the control
/// plane, else this host. (`LocalContainerRegistry` in the environment comes before both.)
pub async fn registry() -> String {
    let host = match control_plane_name().await {
        Some(name) => name,
        None => {
            tracing::warn!(
                "this host has no name on the control plane (<name>.ctlplane in /etc/hosts) and \
                 LocalContainerRegistry is not set: `push_destination: true` means localhost"
            );
            "localhost".to_owned()
        }
    };
    format!("{host}:{PORT}")
}

/// What the name service calls `<this host>.ctlplane`.
async fn control_plane_name() -> Option<String> {
    let system = nix::sys::utsname::uname().ok()?;
    let short = system.nodename().to_str()?.split('.').next()?;
    let lookup = tokio::process::Command::new("getent")
        .args(["hosts", &format!("{short}.ctlplane")])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LOOKUP_DEADLINE, lookup).await.ok()?.ok()?;
    name_of(&String::from_utf8_lossy(&output.stdout))
}

/// The name in a line of the hosts file: its second word.
fn name_of(line: &str) -> Option<String> {
    line.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_and_not_the_address_is_taken() {
        let line = "192.0.2.1   undercloud.ctlplane.localdomain undercloud.ctlplane\n";
        assert_eq!(name_of(line).as_deref(), Some("undercloud.ctlplane.localdomain"));
        assert_eq!(name_of(""), None);
    }
}
