//! Each thing that `vswap run` refuses: one line, what and what to do, and the right exit code.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use tempfile::TempDir;

use crate::support::{finish, is_root, skip, vswap};

/// Runs `vswap` with arguments that it refuses.
#[track_caller]
fn assert_refused(args: &[&str], code: i32, what: &str, remedy: &str) {
    let output = finish(&mut vswap(args));
    let line = output.line();
    assert_eq!(output.end(), code, "{args:?}: {line}");
    assert_eq!(output.stdout, "", "{args:?}");
    let rest = line.strip_prefix("vswap: ").unwrap_or_else(|| panic!("{args:?}: {line}"));
    let (said, advised) = rest.rsplit_once("; ").unwrap_or_else(|| panic!("{args:?}: {line}"));
    assert!(said.contains(what), "{args:?}: {said}");
    assert!(advised.contains(remedy), "{args:?}: {advised}");
}

fn file(directory: &TempDir, name: &str, content: &[u8], mode: u32) -> String {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn wrong_usage_ends_with_2() {
    let help = "try 'vswap run --help'";
    for (args, what, remedy) in [
        (&["run", "--ram", "0", "true"][..], "--ram: the size is 0", "at least 16M"),
        (&["run", "--ram", "5X", "true"], "--ram: unknown suffix 'X'", "use K, M, G or T"),
        (&["run", "--ram", "big", "true"], "--ram: 'big' is not a size", "2G"),
        (
            &["run", "--ram", "15M", "true"],
            "15M is less than a program can live in",
            "at least 16M",
        ),
        (&["run", "--ram", "99999999T", "true"], "--ram: '99999999T' is too large", "2G"),
        (&["run", "--ram"], "--ram needs a value", help),
        (&["run", "--codec", "rar", "true"], "--codec: unknown codec 'rar'", "lz4, zstd"),
        (&["run", "--codec", "zstd:99", "true"], "unknown codec 'zstd:99'", "-7 to 19"),
        (&["run", "--engine", "steam", "true"], "unknown value 'steam'", "use handoff or inline"),
        (&["run", "--swap", "/tmp:0", "true"], "--swap: the size is 0", ""),
        (&["run", "--swap", "/tmp:1Q", "true"], "--swap: unknown suffix 'Q'", "use K, M, G or T"),
        (&["run", "--chaos", "x", "true"], "--chaos: invalid digit", help),
        (&["run", "--fast", "true"], "unknown option '--fast'", help),
        (&["run"], "no program given", "vswap run --ram 1G -- PROG"),
        (&["run", "--ram", "1G", "--"], "no program given", "-- PROG"),
        (&["run", "--name", "a/b", "true"], "--name: a name cannot hold '/'", "--name nightly"),
        (&["run", "--name", "4711", "true"], "taken for a process ID", "--name nightly"),
        (&["status", "no-such-run"], "no run 'no-such-run'", ""),
        (&["status", "--jsno"], "unknown option '--jsno'", "try 'vswap status --help'"),
        (&["reclaim", "no-such-run", "1M"], "no run 'no-such-run'", ""),
        (&["reclaim", "some-run"], "no run or no size given", "vswap reclaim nightly 512M"),
        (&["reclaim", "some-run", "0"], "the size is 0", "at least 4K"),
        (&["reclaim", "some-run", "1X"], "unknown suffix 'X'", "use K, M, G or T"),
        (&["run", "--swap", "/tmp,prio=x", "true"], "'x' is no priority", "from -1 to 32767"),
        (&["run", "--cold-codec", "none", "true"], "makes nothing smaller", "zstd:LEVEL"),
        (&["swapon", "no-such-run", "/tmp"], "no run 'no-such-run'", ""),
        (&["swapoff", "no-such-run", "--all"], "no run 'no-such-run'", ""),
        (&["walk"], "unknown command 'walk'", "try 'vswap --help'"),
        (&["--fast"], "unknown option '--fast'", "try 'vswap --help'"),
        (&["doctor", "now"], "unknown option 'now'", "try 'vswap --help'"),
        (&[], "no command given", "try 'vswap --help'"),
    ] {
        assert_refused(args, 2, what, remedy);
    }
}

#[test]
fn files_of_options_are_tried_before_the_program_starts() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let marker = path("started");
    let existing = file(&directory, "existing", b"precious", 0o644);
    let large = file(&directory, "large", &vec![b'x'; 1 << 16], 0o644);
    for (option, value, what) in [
        ("--stats", path("no/such/file"), "no such file or directory"),
        ("--stats", path(""), "is a directory"),
        ("--pressure", path("no/such/file"), "no such file or directory"),
        ("--pressure", "/".to_owned(), "not a file name"),
        ("--swap", path("no/such/file"), "no such file or directory"),
        ("--swap", format!("{existing}/file"), "is not a directory"),
        ("--swap", existing.clone(), "8 bytes, which is too little"),
        ("--swap", large.clone(), "not a swap area"),
        ("--swap", "/dev/null".to_owned(), "neither a file nor a block device"),
        ("--swap", format!("{}:9000T", path("")), "free, less than"),
        ("--swap", "/proc".to_owned(), "cannot create a file in /proc"),
    ] {
        assert_refused(&["run", option, &value, "touch", &marker], 2, what, "name");
    }
    assert!(!Path::new(&marker).exists(), "the program was started");
    assert_eq!(fs::read(existing).unwrap(), b"precious");
    assert!(fs::read(large).unwrap().iter().all(|&byte| byte == b'x'));
}

#[test]
fn a_program_that_is_not_there_ends_with_127() {
    assert_refused(&["run", "no-such-program"], 127, "no-such-program: not found", "PATH");
    assert_refused(&["run", "/no/such/program"], 127, "not found", "check the path");
    let directory = tempfile::tempdir().unwrap();
    let script = file(&directory, "script", b"#!/no/such/interpreter\n", 0o755);
    assert_refused(&["run", &script], 127, "/no/such/interpreter: not found", "check the path");
}

#[test]
fn a_program_that_cannot_be_run_ends_with_126() {
    let directory = tempfile::tempdir().unwrap();
    let own = fs::read("/proc/self/exe").unwrap();
    let plain = file(&directory, "plain", b"echo", 0o644);
    assert_refused(&["run", &plain], 126, "is not executable", "chmod +x");
    let directory_path = directory.path().to_str().unwrap();
    assert_refused(&["run", directory_path], 126, "is a directory", "name a program");

    let mut narrow = own[..64].to_vec();
    narrow[4] = 1;
    let mut foreign = own[..64].to_vec();
    foreign[18..20].copy_from_slice(&0x1234u16.to_le_bytes());
    let mut fixed = own[..64].to_vec();
    fixed[56..58].fill(0);
    for (name, content, what, remedy) in [
        ("narrow", &narrow[..], "is a 32-bit or foreign program", "can page 64-bit"),
        ("foreign", &foreign, "is a 32-bit or foreign program", "can page 64-bit"),
        ("static", &fixed, "is a static program", "dynamically linked"),
        ("cut", &own[..40], "is not a complete ELF program", "check the file"),
    ] {
        let path = file(&directory, name, content, 0o755);
        assert_refused(&["run", &path], 126, what, remedy);
        // A script is as good as its interpreter.
        let script = file(&directory, "script", format!("#!{path} -x\n").as_bytes(), 0o755);
        assert_refused(&["run", &script], 126, &format!("{path} {what}"), remedy);
    }

    let endless = directory.path().join("endless");
    let text = format!("#!{}\n", endless.display());
    let endless = file(&directory, "endless", text.as_bytes(), 0o755);
    assert_refused(&["run", &endless], 126, "too many interpreters", "#! line");
}

#[test]
fn a_program_that_gains_privileges_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let own = fs::read("/proc/self/exe").unwrap();
    if !is_root() {
        return skip("a_program_that_gains_privileges_is_refused", "only root can make one");
    }
    for (mode, user, group, what) in
        [(0o4755, 65534, 0, "is setuid"), (0o2755, 0, 65534, "is setgid")]
    {
        let path = file(&directory, what, &own[..4096], 0o755);
        chown(&path, Some(user), Some(group)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_refused(&["run", &path], 126, what, "on a copy without the extra rights");
    }
}

/// An unprivileged user without a way to userfaultfd can still use the engine that needs none of
/// its privileges.
#[test]
fn without_permission_only_inline_works() {
    const NOBODY: u32 = 65534;
    let test = "without_permission_only_inline_works";
    let allowed = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    let device = fs::metadata("/dev/userfaultfd").map_or(0, |found| found.permissions().mode());
    if !is_root() || allowed.trim() != "0" || device & 0o006 != 0 {
        return skip(test, "it takes root, and a machine that forbids userfaultfd to others");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // By another process: a copy that this one has open for writing, or a fork of it, cannot start.
    let copy = directory.path().join("vswap").to_str().unwrap().to_owned();
    finish(&mut crate::support::command("cp", &[env!("CARGO_BIN_EXE_vswap"), &copy]));
    let run = |engine: &str| {
        let args = ["run", "--engine", engine, "--ram", "64M", "echo", "ran"];
        let mut command = crate::support::command(&copy, &args);
        finish(command.uid(NOBODY).gid(NOBODY).current_dir("/"))
    };
    let refused = run("handoff");
    assert_eq!(refused.end(), 126, "{refused:?}");
    assert!(refused.line().starts_with("vswap: no permission to use userfaultfd; "), "{refused:?}");
    let inline = run("inline");
    assert_eq!((inline.end(), inline.stdout.as_str()), (0, "ran\n"), "{inline:?}");
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, expected) in [
        (&["--help"][..], "Usage: vswap <COMMAND>"),
        (&["run", "--help"], "Usage: vswap run [OPTIONS] [--] PROG [ARGS]..."),
        (&["run", "--help"], "vswap run --ram 2G -- python3 train.py"),
        (&["status", "--help"], "vswap status nightly"),
        (&["reclaim", "--help"], "vswap reclaim nightly 512M"),
        (&["--version"], "vswap "),
    ] {
        let output = finish(&mut vswap(args));
        assert_eq!((output.end(), output.stderr.as_str()), (0, ""), "{args:?}");
        assert!(output.stdout.contains(expected), "{args:?}: {}", output.stdout);
        assert!(!output.stdout.contains("chaos"), "an option for tests is shown");
    }
}

/// `doctor` and `run` have to agree on whether `run` can work.
#[test]
fn the_doctor_is_right() {
    let doctor = finish(&mut vswap(&["doctor"]));
    let run = finish(&mut vswap(&["run", "--ram", "64M", "true"]));
    assert_eq!(doctor.end() == 0, run.end() == 0, "{doctor:?} {run:?}");
    for line in doctor.stdout.lines().rev().skip(1) {
        assert!(line.starts_with("ok       ") || line.starts_with("missing  "), "{line}");
        assert!(line.contains(": "), "{line}");
    }
    for thing in ["/dev/userfaultfd", "MOVE", "WP_ASYNC", "io_uring", "cgroup", "seccomp"] {
        assert!(doctor.stdout.contains(thing), "{thing} is missing: {}", doctor.stdout);
    }
}
