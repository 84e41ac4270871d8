//! Which error number a failure becomes: the one place that chooses (errno(3)).

use fuser::Errno;

use crate::view::ViewError;

/// The error number that a caller gets for `error`.
pub(super) fn of(error: &ViewError) -> Errno {
    match error {
        ViewError::Stale(_) => Errno::ESTALE,
        ViewError::NotDirectory(_) => Errno::ENOTDIR,
        ViewError::IsDirectory(_) => Errno::EISDIR,
        ViewError::Invalid(_) => Errno::EINVAL,
        ViewError::Index { .. } | ViewError::Fill(_) => Errno::EIO,
    }
}

/// Whether the number means that something is wrong here, rather than with the request.
pub(super) fn is_fault(errno: Errno) -> bool {
    errno.code() == libc::EIO
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::NodeId;

    #[test]
    fn only_damage_and_lost_sources_are_faults() {
        let node = NodeId(7);
        let own = [
            ViewError::Stale(node),
            ViewError::NotDirectory(node),
            ViewError::IsDirectory(node),
            ViewError::Invalid(node),
        ];
        assert!(own.iter().all(|error| !is_fault(of(error))));
        assert!(is_fault(of(&ViewError::Fill(crate::fill::FillError::Interrupted))));
    }
}
