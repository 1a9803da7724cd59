//! The shared object that carries the engine into programs: where it lives on disk.
//!
//! It is embedded in this executable and written out once, under a name with its hash, to a
//! directory that only this user can write. Whoever could replace it would run code in the user's
//! programs, so the directory and the file are checked, by descriptor, before they are trusted.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{self, AtFlags, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::refusal::Refusal;

/// Overrides the embedded object, for those who work on it.
const OVERRIDE: &str = "VSWAP_PRELOAD";

/// What the names of all versions of the object begin with.
const PREFIX: &str = "libvswap-";

static OBJECT: &[u8] = include_bytes!(env!("VSWAP_PRELOAD_OBJECT"));

/// Path of the object, written out if need be.
pub fn object() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = std::path::absolute(path)?;
        if !path.is_file() {
            let what = format!("{OVERRIDE}={} is not a file", path.display());
            return Err(Refusal::usage(what, "build it, or unset the variable").into());
        }
        return Ok(path);
    }
    let mut failures = Vec::new();
    for candidate in candidates() {
        match install(&candidate) {
            Ok(path) => return Ok(path),
            Err(error) => failures.push(format!("{}: {error:#}", candidate.display())),
        }
    }
    let what = format!("no place for vswap's shared object ({})", failures.join(", "));
    Err(Refusal::cannot_run(what, "make one of these writable and not noexec").into())
}

/// The value of `LD_PRELOAD` with the object in it: behind what the user preloads, and in the place
/// of any other version of it.
pub fn ld_preload(object: &Path) -> OsString {
    let old = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    let is_ours = |entry: &[u8]| {
        entry.rsplit(|&byte| byte == b'/').next().is_some_and(|n| n.starts_with(PREFIX.as_bytes()))
    };
    let mut entries: Vec<&[u8]> = old
        .as_bytes()
        .split(|byte| b": ".contains(byte))
        .filter(|entry| !entry.is_empty() && !is_ours(entry))
        .collect();
    entries.push(object.as_os_str().as_bytes());
    OsString::from(std::ffi::OsStr::from_bytes(&entries.join(&b':')))
}

fn candidates() -> Vec<PathBuf> {
    let user = geteuid();
    let mut places = Vec::new();
    // Programs that root starts often change their user, and could not read a private directory.
    if !user.is_root() {
        places.extend(std::env::var_os("XDG_RUNTIME_DIR").map(|d| PathBuf::from(d).join("vswap")));
    }
    let name = format!("vswap-{}", user.as_raw());
    places.extend(["/tmp", "/var/tmp", "/dev/shm"].map(|place| Path::new(place).join(&name)));
    // The dynamic linker splits LD_PRELOAD at spaces and colons, and a relative path would depend
    // on where the program goes.
    places
        .retain(|p| p.is_absolute() && !p.as_os_str().as_bytes().iter().any(|b| b" :".contains(b)));
    places
}

fn install(directory: &Path) -> anyhow::Result<PathBuf> {
    let trusted = open_directory(directory)?;
    let name = format!("{PREFIX}{}.so", env!("VSWAP_PRELOAD_HASH"));
    if !is_installed(&trusted, &name)? {
        write_object(&trusted, &name)?;
    }
    Ok(directory.join(name))
}

/// Opens a directory that belongs to this user alone, and from which code may be mapped.
fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let parent = path.parent().context("no parent")?;
    let place = fs::stat(parent).context("cannot be reached")?;
    let place_mode = Mode::from_raw_mode(place.st_mode);
    let anyone_renames = place_mode.intersects(Mode::WOTH) && !place_mode.contains(Mode::SVTX);
    anyhow::ensure!(!anyone_renames, "its parent lets anyone replace it");
    match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context("cannot be created"),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::open(path, flags, Mode::empty()).context("cannot be opened")?;
    let found = fs::fstat(&directory)?;
    ensure_private(&found)?;
    let noexec = fs::fstatvfs(&directory)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
    anyhow::ensure!(!noexec, "is mounted noexec");
    Ok(directory)
}

fn ensure_private(found: &fs::Stat) -> anyhow::Result<()> {
    anyhow::ensure!(found.st_uid == geteuid().as_raw(), "belongs to another user");
    let mode = Mode::from_raw_mode(found.st_mode);
    anyhow::ensure!(!mode.intersects(Mode::WGRP | Mode::WOTH), "can be written by other users");
    Ok(())
}

/// Whether a whole object is there already. One that is not in order is replaced.
fn is_installed(directory: &OwnedFd, name: &str) -> anyhow::Result<bool> {
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context("cannot be searched"),
        Ok(found) => {
            let regular = fs::FileType::from_raw_mode(found.st_mode).is_file();
            let whole = found.st_size == OBJECT.len() as i64;
            Ok(regular && whole && ensure_private(&found).is_ok())
        }
    }
}

/// Writes the object under a name of its own and then renames it, so that nobody ever loads half.
fn write_object(directory: &OwnedFd, name: &str) -> anyhow::Result<()> {
    let unfinished = format!(".{name}.{}", std::process::id());
    let _ = fs::unlinkat(directory, &unfinished, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = fs::openat(directory, &unfinished, flags, Mode::from_raw_mode(0o755))
        .context("cannot be written")?;
    let written = std::fs::File::from(file).write_all(OBJECT);
    let renamed = written
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(fs::renameat(directory, &unfinished, directory, name)?));
    if renamed.is_err() {
        let _ = fs::unlinkat(directory, &unfinished, AtFlags::empty());
    }
    renamed.context("cannot be written")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_object_is_written_once_and_repaired() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("vswap");
        let path = install(&directory).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), OBJECT);
        let written = path.metadata().unwrap().modified().unwrap();
        assert_eq!(install(&directory).unwrap(), path);
        assert_eq!(path.metadata().unwrap().modified().unwrap(), written, "it was written again");

        std::fs::write(&path, "half").unwrap();
        install(&directory).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), OBJECT);
        set_mode(&path, 0o777);
        install(&directory).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o022, 0);
    }

    #[test]
    fn a_place_that_others_control_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let refused = |path: &Path| install(path).unwrap_err().to_string();

        let shared = place.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        set_mode(&shared, 0o777);
        assert_eq!(refused(&shared), "can be written by other users");
        assert_eq!(refused(&shared.join("x")), "its parent lets anyone replace it");

        let link = place.path().join("link");
        symlink(place.path(), &link).unwrap();
        assert_eq!(refused(&link), "cannot be opened");
    }
}
