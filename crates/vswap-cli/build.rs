//! Builds the preload object and hands it to the compiler for embedding.
//!
//! The object is a `no_std` shared library that must never unwind, so it cannot be an ordinary
//! dependency: it is built by a cargo of its own, always as a release, in a target directory of its
//! own. (In the outer one it would wait for a lock that the outer cargo holds until this script
//! ends.)

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings of the outer build that must not reach the inner one: flags for std programs
/// (coverage, sanitizers, `--cfg loom`), wrappers that compile nothing (clippy), and anything
/// that moves the inner build into a directory which the outer cargo has locked.
const NOT_INHERITED: &[&str] = &[
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET",
];

fn main() {
    let workspace = workspace_root();
    for part in ["vswap-core", "vswap-pager", "vswap-preload"] {
        println!("cargo:rerun-if-changed={}", workspace.join("crates").join(part).display());
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(file).display());
    }
    let object = build_object(&workspace);
    let content = std::fs::read(&object)
        .unwrap_or_else(|e| panic!("cannot read the preload object {}: {e}", object.display()));
    println!("cargo:rustc-env=VSWAP_PRELOAD_OBJECT={}", object.display());
    println!("cargo:rustc-env=VSWAP_PRELOAD_HASH={:016x}", fnv1a(&content));
}

fn build_object(workspace: &Path) -> PathBuf {
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let directory =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("preload");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // The lock file was settled by the outer cargo; its jobserver is inherited by the environment.
    cargo
        .args(["build", "--release", "--locked", "-p", "vswap-preload", "--target", &target])
        .arg("--target-dir")
        .arg(&directory)
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .env("CARGO_BUILD_BUILD_DIR", &directory)
        .current_dir(workspace);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_RELEASE_") {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap_or_else(|e| panic!("cannot run {cargo:?}: {e}"));
    assert!(status.success(), "building the preload object failed: {cargo:?}");
    directory.join(target).join("release/libvswap_preload.so")
}

fn workspace_root() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    manifest.ancestors().nth(2).expect("the crate is in crates/ of the workspace").to_owned()
}

/// Tells one version of the object from another in the file name; nothing trusts it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
