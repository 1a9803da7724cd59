//! A directory for what whole programs write: a socket, sources, objects.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{Change, Context as _, Journal, KernelError, Undo};

/// A directory of the bench's own, removed with all that is in it when dropped.
pub struct Scratch<'j> {
    path: PathBuf,
    _directory: Change<'j>,
}

impl<'j> Scratch<'j> {
    /// Makes one below `dir`.
    ///
    /// # Errors
    /// [`KernelError`] if this user may not, or the disk is full.
    pub fn make(journal: &'j Journal, dir: &Path) -> Result<Self, KernelError> {
        let path = dir.join(format!("vswap-bench-{}.scratch", std::process::id()));
        let directory = journal.record(Undo::Directory(path.clone()))?;
        std::fs::DirBuilder::new().mode(0o700).create(&path).context("making", &path)?;
        Ok(Self { path, _directory: directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
