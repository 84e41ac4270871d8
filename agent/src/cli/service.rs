//! The service manager, if one has started this process.

use undermount::host::manager::Manager;

/// Tells the service manager, where one waits for it, that the service does its work now, and
/// with which words; gives it back for the end.
pub fn ready(status: &str) -> Option<Manager> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    match Manager::at(&name) {
        Ok(manager) => {
            manager.ready(status);
            Some(manager)
        }
        Err(error) => {
            tracing::warn!(?name, %error, "NOTIFY_SOCKET is no address");
            None
        }
    }
}
