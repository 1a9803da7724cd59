//! Compiles the C programs of `tests/programs`, once per change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

static COMPILED: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);

/// Path of the compiled program of this name.
pub fn program(name: &str) -> PathBuf {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.entry(name.to_owned()).or_insert_with(|| compile(name)).clone()
}

fn compile(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    std::fs::create_dir_all(&target).expect("a directory for compiled programs");
    let source = sources.join(name).with_extension("c");
    let binary = target.join(name);
    if is_newer_than_sources(&binary, &sources) {
        return binary;
    }
    // Compiled aside and renamed: another test process may be running the old one.
    let fresh = target.join(format!("{name}.{}", std::process::id()));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .args([&fresh, &source])
        .output()
        .expect("a C compiler named cc");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&fresh, &binary).expect("the compiled program in its place");
    binary
}

fn is_newer_than_sources(binary: &Path, sources: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let newest = std::fs::read_dir(sources)
        .expect("tests/programs")
        .filter_map(|entry| modified(&entry.ok()?.path()))
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH);
    built > newest
}
