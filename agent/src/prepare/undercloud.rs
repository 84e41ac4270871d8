//! The undercloud's own registry: what `push_destination: true` stands for.

use std::time::Duration;

/// The port that the undercloud's registry has always had.
pub(super) const PORT: u16 = 8787;
/// The undercloud's bridge on the control plane.
const CONTROL_PLANE: &str = "br-ctlplane";
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

/// Where lists of images go that name no destination: the control plane's bridge, else this host.
pub fn control_plane_registry() -> String {
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let bridge = addresses
        .filter(|interface| interface.interface_name == CONTROL_PLANE)
        .find_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    match bridge {
        Some(address) => format!("{address}:{PORT}"),
        None => format!("localhost:{PORT}"),
    }
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
