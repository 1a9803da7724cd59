//! `vswap doctor`: what this machine allows, one line per thing.

use std::fs;
use std::io::{self, Write as _};
use std::process::ExitCode;

use rustix::io::Errno;
use vswap_pager::config::Engine;

use crate::cgroup;
use crate::preload;
use crate::refusal::reason;
use crate::size::Size;
use crate::uffd::{FEATURES, Probe};

/// The page size that the engine is built for.
const PAGE_SIZE: usize = 4096;

/// What a check found.
enum Finding {
    /// It is there.
    Fine(String),
    /// It is not there, what to do about it, and whether `vswap run` can do without.
    Missing { remedy: String, fatal: bool },
}

use Finding::Fine;

fn missing(remedy: impl Into<String>) -> Finding {
    Finding::Missing { remedy: remedy.into(), fatal: false }
}

/// Prints all findings.
pub fn run() -> anyhow::Result<ExitCode> {
    let probe = Probe::new();
    let mut findings = userfaultfd(&probe);
    findings.extend(surroundings());
    let works = !findings.iter().any(|(_, f)| matches!(f, Finding::Missing { fatal: true, .. }));
    match print(&findings, works) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

fn print(findings: &[(String, Finding)], works: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (name, finding) in findings {
        match finding {
            Fine(text) => writeln!(out, "ok       {name}: {text}")?,
            Finding::Missing { remedy, .. } => writeln!(out, "missing  {name}: {remedy}")?,
        }
    }
    let verdict = if works { "can" } else { "cannot" };
    writeln!(out, "vswap run {verdict} work here")
}

fn userfaultfd(probe: &Probe) -> Vec<(String, Finding)> {
    let way = |result: Result<(), Errno>, remedy: &str| match result {
        Ok(()) => Fine("allowed".to_owned()),
        Err(error) => missing(format!("{}; {remedy}", reason(error))),
    };
    let mut findings = vec![
        (
            "/dev/userfaultfd".to_owned(),
            way(
                probe.device,
                "as root, run 'setfacl -m u:USER:rw /dev/userfaultfd'; in a container, pass the device",
            ),
        ),
        (
            "userfaultfd system call".to_owned(),
            way(
                probe.call,
                "not needed with the device; else 'sysctl vm.unprivileged_userfaultfd=1' as root, and a seccomp profile that allows it",
            ),
        ),
        (
            "userfaultfd for user mode only".to_owned(),
            way(
                probe.user_mode_only,
                "not needed with one of the others; else allow the system call in the seccomp profile",
            ),
        ),
    ];
    findings.push((
        "engine handoff".to_owned(),
        match probe.check(Engine::Handoff) {
            Ok(()) => Fine("works, for any program".to_owned()),
            Err(error) => Finding::Missing { remedy: error.to_string(), fatal: true },
        },
    ));
    findings.push((
        "engine inline".to_owned(),
        match probe.check(Engine::Inline) {
            Ok(()) => Fine("works".to_owned()),
            Err(error) => missing(error.to_string()),
        },
    ));
    for feature in FEATURES {
        let finding = match probe.features & feature.bit {
            0 => Finding::Missing { remedy: feature.without.to_owned(), fatal: feature.required },
            _ => Fine("offered".to_owned()),
        };
        findings.push((format!("UFFD_FEATURE_{}", feature.name), finding));
    }
    let fork = if probe.fork_events {
        Fine("allowed".to_owned())
    } else {
        missing("needs CAP_SYS_PTRACE; without it a fork first brings its memory back")
    };
    findings.push(("UFFD_FEATURE_EVENT_FORK".to_owned(), fork));
    findings
}

fn surroundings() -> Vec<(String, Finding)> {
    let findings = [
        ("io_uring", io_uring()),
        ("memory cgroup limit", cgroup_limit()),
        ("kernel swap", kernel_swap()),
        ("seccomp", seccomp()),
        ("page size", page_size()),
        ("C library", c_library()),
        ("ptrace", Fine("not needed".to_owned())),
        ("shared object", shared_object()),
    ];
    findings.into_iter().map(|(name, finding)| (name.to_owned(), finding)).collect()
}

fn io_uring() -> Finding {
    let mut params = [0u8; 120];
    // SAFETY: the buffer has the size of `io_uring_params`, and all-zero ones ask for defaults.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd == -1 {
        let error = io::Error::last_os_error();
        return missing(format!(
            "{}; the swap file is read and written without it (sysctl kernel.io_uring_disabled=0, or the seccomp profile, allows it)",
            reason(error)
        ));
    }
    // SAFETY: a descriptor that the call has just made.
    unsafe { libc::close(fd as libc::c_int) };
    Fine("allowed".to_owned())
}

fn cgroup_limit() -> Finding {
    match cgroup::tightest_cgroup() {
        Some(limit) => Fine(format!("{} allows {}", limit.source, Size(limit.bytes))),
        None => Fine("none below the machine's memory".to_owned()),
    }
}

fn kernel_swap() -> Finding {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    match devices.as_slice() {
        [] => Fine("none, and none is needed".to_owned()),
        _ => Fine(format!("{}; the kernel may swap vswap's pool there", devices.join(" "))),
    }
}

fn seccomp() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    match mode.map(str::trim) {
        Some("0") => Fine("no filter".to_owned()),
        Some(_) => Fine("a filter is in force; what it forbids is missing above".to_owned()),
        None => Fine("this kernel has none".to_owned()),
    }
}

fn page_size() -> Finding {
    match rustix::param::page_size() {
        PAGE_SIZE => Fine(PAGE_SIZE.to_string()),
        other => Finding::Missing {
            remedy: format!("this kernel has pages of {other} bytes; use one with {PAGE_SIZE}"),
            fatal: true,
        },
    }
}

fn c_library() -> Finding {
    // SAFETY: the function has no arguments and gives a string that lives for ever.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    Fine(format!("glibc {}", version.to_string_lossy()))
}

fn shared_object() -> Finding {
    match preload::object() {
        Ok(path) => Fine(path.display().to_string()),
        Err(error) => Finding::Missing { remedy: format!("{error:#}"), fatal: true },
    }
}
