//! Room on the disk: asked for before a body is read, and shared by the files that come at the same time.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// There is less room than a file needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {free} bytes free and {needed} more are needed: give the volume more room, or remove what is not needed there",
    path.display()
)]
pub struct NoRoom {
    /// The folder that is written to.
    pub path: PathBuf,
    /// What the files under way need, this one included.
    pub needed: u64,
    /// What the disk still has.
    pub free: u64,
}

/// The room under a folder, of which files under way have taken their shares in advance.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    promised: Mutex<u64>,
}

impl Space {
    /// The room under an existing folder.
    #[must_use]
    pub fn under(folder: &Path) -> Arc<Self> {
        Arc::new(Self { folder: folder.to_owned(), promised: Mutex::new(0) })
    }

    /// Takes a share of that many bytes.
    ///
    /// # Errors
    /// [`NoRoom`] where the disk has less than what is promised already and this.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Share, NoRoom> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = promised.saturating_add(bytes);
        let free = self.free();
        if needed > free {
            return Err(NoRoom { path: self.folder.clone(), needed, free });
        }
        *promised = needed;
        Ok(Share { space: Arc::clone(self), left: bytes })
    }

    /// What to say when the disk turned out to be full.
    #[must_use]
    pub fn exhausted(&self, needed: u64) -> NoRoom {
        NoRoom { path: self.folder.clone(), needed, free: self.free() }
    }

    /// A disk that tells no number is taken to have room: writing to it will show.
    fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// Room that one file has been promised and has not used yet. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    space: Arc<Space>,
    left: u64,
}

impl Share {
    /// What of it is not used yet.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// That many bytes are on the disk now, and no promise any more.
    pub fn used(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        let mut promised = self.space.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.used(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_file_was_promised_another_does_not_get() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::under(folder.path());
        let most = space.free() / 4 * 3;
        let mut first = space.reserve(most).unwrap();
        let refused = space.reserve(most).unwrap_err();
        assert_eq!(refused.needed, 2 * most);
        first.used(most);
        assert_eq!(first.left(), 0);
        // Nothing was really written, so the disk still has what is counted as used.
        drop(space.reserve(most).unwrap());
        drop(space.reserve(most).unwrap());
    }
}
