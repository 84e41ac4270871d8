//! The service manager, if one has started this process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use undermount::host::manager::Manager;
use undermount::host::unit::{Unit, take_descriptors};

/// Tells the service manager, where one waits for it, that the service does its work now, and
/// with which words; gives it back for the end.
pub fn ready(status: &str) -> Option<Manager> {
    manager().inspect(|manager| manager.ready(status))
}

/// The unit `name` of the service manager that has started this process.
pub fn unit(name: String) -> Option<Unit> {
    Some(Unit::new(name, manager()?))
}

/// What the service manager has kept for this process (sd_listen_fds(3)). To be called once,
/// before anything is opened.
pub fn descriptors() -> BTreeMap<String, OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let ours = number("LISTEN_PID") == usize::try_from(std::process::id()).ok();
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    take_descriptors(count, &std::env::var("LISTEN_FDNAMES").unwrap_or_default())
}

fn manager() -> Option<Manager> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    match Manager::at(&name) {
        Ok(manager) => Some(manager),
        Err(error) => {
            tracing::warn!(?name, %error, "NOTIFY_SOCKET is no address");
            None
        }
    }
}
