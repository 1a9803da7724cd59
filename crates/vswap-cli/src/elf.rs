//! Finds the program that is meant, and says before it starts if it cannot be paged.
//!
//! The engine gets into a program through the dynamic linker (`LD_PRELOAD`), so a program without
//! one, of another architecture, or one that gains privileges at exec (the linker then ignores
//! `LD_PRELOAD`) would run unpaged. For a script it is the interpreter that counts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::refusal::{Refusal, reason};

/// As many `#!` lines as the kernel follows.
const INTERPRETERS_MAX: u32 = 5;

/// Where `execvp` looks when there is no PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

const PT_INTERP: u32 = 3;
const ELFCLASS64: u8 = 2;

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (62, "x86-64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (183, "aarch64");

/// Finds `name` as a shell does.
pub fn find(name: &OsStr) -> Result<PathBuf, Refusal> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return check_executable(&path).map(|()| path);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(DEFAULT_PATH));
    let mut not_executable = None;
    for directory in std::env::split_paths(&path) {
        // An empty element of PATH is the current directory.
        let directory = if directory == Path::new("") { PathBuf::from(".") } else { directory };
        let candidate = directory.join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if candidate.is_file() => not_executable = not_executable.or(Some(error)),
            Err(_) => {}
        }
    }
    let name = name.display();
    Err(not_executable.unwrap_or_else(|| {
        Refusal::not_found(format!("{name}: not found"), "give its path, or a name that is in PATH")
    }))
}

fn check_executable(path: &Path) -> Result<(), Refusal> {
    let name = path.display();
    let metadata = path.metadata().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Refusal::not_found(format!("{name}: not found"), "check the path")
        }
        _ => Refusal::cannot_run(format!("{name}: {}", reason(e)), "check the path"),
    })?;
    if metadata.is_dir() {
        return Err(Refusal::cannot_run(format!("{name} is a directory"), "name a program"));
    }
    let rights = rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, path, rights, rustix::fs::AtFlags::EACCESS).map_err(
        |_| {
            Refusal::cannot_run(
                format!("{name} is not executable"),
                format!("run chmod +x {name}, or name another program"),
            )
        },
    )
}

/// Refuses a program that cannot be paged.
pub fn check(program: &Path) -> Result<(), Refusal> {
    let mut path = program.to_owned();
    for _ in 0..INTERPRETERS_MAX {
        let name = path.display().to_string();
        let Ok(mut file) = File::open(&path) else {
            // Executable but not readable: the kernel can run it, and only it knows what it is.
            return check_privileges(&path, &name);
        };
        let mut head = vec![0; 4096];
        let read = file.read(&mut head);
        let length = read
            .map_err(|e| Refusal::cannot_run(format!("{name}: {}", reason(e)), "check the file"))?;
        head.truncate(length);
        path = if head.starts_with(b"\x7fELF") {
            check_elf(&file, &head, &name)?;
            return check_privileges(&path, &name);
        } else if let Some(interpreter) = interpreter(&head) {
            check_executable(&interpreter)?;
            interpreter
        } else {
            // Neither: `execvp` hands it to the shell.
            PathBuf::from("/bin/sh")
        };
    }
    let name = program.display();
    Err(Refusal::cannot_run(format!("{name}: too many interpreters"), "check its #! line"))
}

/// The program of a `#!` line.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let path = line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(path.to_vec())))
}

/// Refuses what the dynamic linker of this machine does not load.
fn check_elf(file: &File, head: &[u8], name: &str) -> Result<(), Refusal> {
    let malformed =
        || Refusal::cannot_run(format!("{name} is not a complete ELF program"), "check the file");
    let little_endian = *head.get(5).ok_or_else(malformed)? == 1;
    let machine = u16_at(head, 18).ok_or_else(malformed)?;
    if head[4] != ELFCLASS64 || !little_endian || machine != MACHINE.0 {
        return Err(Refusal::cannot_run(
            format!("{name} is a 32-bit or foreign program"),
            format!("vswap can page 64-bit {} programs: use such a build of it", MACHINE.1),
        ));
    }
    let table = u64_at(head, 32).ok_or_else(malformed)?;
    let entry_size = u16_at(head, 54).ok_or_else(malformed)?;
    let entries = u16_at(head, 56).ok_or_else(malformed)?;
    for index in 0..u64::from(entries) {
        let mut kind = [0; 4];
        let at = table.checked_add(index * u64::from(entry_size)).ok_or_else(malformed)?;
        file.read_exact_at(&mut kind, at).map_err(|_| malformed())?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(());
        }
    }
    Err(Refusal::cannot_run(
        format!("{name} is a static program, which vswap cannot get into"),
        "use a dynamically linked build of it",
    ))
}

/// Refuses a program for which the dynamic linker would ignore `LD_PRELOAD`.
fn check_privileges(path: &Path, name: &str) -> Result<(), Refusal> {
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    // As the kernel has it: without the group's execute bit, setgid means something else.
    let changes_user = metadata.mode() & libc::S_ISUID != 0 && metadata.uid() != user.as_raw();
    let changes_group = metadata.mode() & libc::S_ISGID != 0
        && metadata.mode() & libc::S_IXGRP != 0
        && metadata.gid() != group.as_raw();
    let has_capabilities = !user.is_root()
        && rustix::fs::getxattr(path, "security.capability", &mut [0u8; 64][..]).is_ok();
    let how = match (changes_user, changes_group, has_capabilities) {
        (true, ..) => "is setuid",
        (_, true, _) => "is setgid",
        (.., true) => "has file capabilities",
        _ => return Ok(()),
    };
    Err(Refusal::cannot_run(
        format!("{name} {how}, and the system lets nothing be loaded into it"),
        "run vswap as that user, on a copy without the extra rights",
    ))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreter_lines_as_the_kernel_reads_them() {
        for (head, expected) in [
            (&b"#!/bin/sh\n"[..], Some("/bin/sh")),
            (b"#! \t/usr/bin/env python3\nx", Some("/usr/bin/env")),
            (b"#!/bin/sh", Some("/bin/sh")),
            (b"#!\n/bin/sh", None),
            (b"echo", None),
        ] {
            assert_eq!(interpreter(head), expected.map(PathBuf::from));
        }
    }

    #[test]
    fn a_truncated_program_is_refused() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cut");
        for length in [4, 5, 19, 40, 63, 64] {
            std::fs::write(&path, &own[..length]).unwrap();
            let error = check(&path).unwrap_err().to_string();
            assert!(error.contains("not a complete ELF program"), "{length}: {error}");
        }
        std::fs::write(&path, &own[..4096]).unwrap();
        check(&path).unwrap();
    }
}
