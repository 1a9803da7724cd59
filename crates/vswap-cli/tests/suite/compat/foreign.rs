//! Other allocators, other C libraries, other architectures, and programs with privileges.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Row, Scratch, shell};
use crate::support::{Job, Vswap, is_root};

const SMALL: &str = "24M";

/// The allocator's library, which Debian installs under this path.
fn allocator(name: &'static str, library: &str) {
    const WHAT: &str = "two threads, 20000 blocks of 16 bytes to 2 MiB, by LD_PRELOAD";
    let row = Row::own(name, WHAT);
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
    if !path.exists() {
        row.not_run(&format!("{library} is not installed"));
        return;
    }
    let path = path.to_str().expect("plain text");
    let job = Job::c("heap", &["128", "20000", "2"]).env("LD_PRELOAD", path);
    row.measure(&job, &Vswap::ram("32M"));
}

#[test]
fn jemalloc() {
    allocator("jemalloc", "libjemalloc.so.2");
}

#[test]
fn tcmalloc() {
    allocator("tcmalloc", "libtcmalloc_minimal.so.4");
}

#[test]
fn mimalloc() {
    allocator("mimalloc", "libmimalloc.so.2");
}

const GO: &str = r#"
package main

// #include <stdlib.h>
import "C"
import "fmt"

func main() {
	const n = 1200000
	rows := make(map[int]string)
	for i := 0; i < n; i++ {
		rows[i] = fmt.Sprint("row number ", i)
	}
	sum := make(chan int)
	for part := 0; part < 2; part++ {
		go func(part int) {
			s := 0
			for i := part; i < n; i += 2 {
				if rows[i] != fmt.Sprint("row number ", i) {
					panic("wrong row")
				}
				s = (s*31 + len(rows[i])) % 1000003
			}
			sum <- s
		}(part)
	}
	fmt.Println(len(rows), <-sum + <-sum, C.abs(-1))
}
"#;

#[test]
fn go_with_cgo() {
    let Some(row) = Row::of("Go with cgo", "a map of strings, verified", &["go", "version"]) else {
        return;
    };
    let directory = Scratch::directory();
    let source = directory.0.join("main.go");
    std::fs::write(&source, GO).expect("a file for the program");
    let program = directory.0.join("program");
    build("go", &["build", "-o"], &[&program, &source]);
    row.measure(&Job::new(&program, &[]), &Vswap::ram("40M").swap("1G"));
}

fn build(compiler: &str, options: &[&str], files: &[&Path]) {
    let output = Command::new(compiler).args(options).args(files).output().expect("it was found");
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One of our C programs, by another compiler or with other options.
fn compile(directory: &Scratch, compiler: &str, options: &[&str], name: &str) -> PathBuf {
    let program = directory.0.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    let options = [&["-std=gnu11", "-O2", "-pthread"], options, &["-o"]].concat();
    build(compiler, &options, &[&program, &source.with_extension("c")]);
    program
}

fn musl(name: &'static str, what: &'static str, program: &str, arguments: &[&str], seconds: u64) {
    let Some(mut row) = Row::of(name, what, &["musl-gcc", "--version"]) else { return };
    // That of the compiler around it says nothing.
    row.version = String::new();
    let directory = Scratch::directory();
    let program = compile(&directory, "musl-gcc", &[], program);
    row.measure(&Job::new(&program, arguments).limit(seconds), &Vswap::ram(SMALL));
}

#[test]
fn musl_program() {
    let what = "every change of mappings, with evicted pages";
    musl("musl program", what, "remap", &["80"], 120);
}

#[test]
fn musl_program_that_forks() {
    let what = "fork, vfork, posix_spawn, popen, threads that fork";
    musl("musl program that forks", what, "forks", &["48"], 120);
}

fn alone(name: &'static str, what: &'static str, program: &Path) {
    let row = Row::own(name, what);
    row.measure(&Job::new(program, &["64"]), &Vswap::ram(SMALL));
}

fn inside(name: &'static str, what: &'static str, program: &Path) {
    let row = Row::own(name, what);
    let program = program.to_str().expect("a target directory with a plain name");
    // Twice: the second time nothing is said.
    let job = shell("\"$1\" 64; \"$1\" 64", &[program]);
    let paged = row.measure(&job, &Vswap::ram(SMALL));
    assert_eq!(paged.stderr.lines().count(), 1, "one line, and no noise: {}", paged.describe());
}

#[test]
fn static_programs() {
    const WHAT: &str = "64 MiB written and verified";
    let directory = Scratch::directory();
    let program = compile(&directory, "cc", &["-static"], "fill");
    alone("static program", WHAT, &program);
    inside("static program in a tree", "the same, by a shell", &program);
}

/// A 32-bit program that needs nothing but its dynamic linker, so that no 32-bit libc has to be
/// there for the compiler: it touches 64 MiB and says so.
const PROGRAM_32: &str = r#"
static long call(long number, long a, long b, long c) {
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}
static char data[64 << 20];
void _start(void) {
	long sum = 0;
	for (unsigned i = 0; i < sizeof data; i += 4096) data[i] = (char)(i >> 12);
	for (unsigned i = 0; i < sizeof data; i += 4096) sum += data[i] == (char)(i >> 12);
	if (sum == sizeof data / 4096) call(4, 1, (long)"ok\n", 3);
	call(1, 0, 0, 0);
}
"#;

#[test]
fn programs_of_32_bits() {
    const WHAT: &str = "64 MiB written and verified";
    let directory = Scratch::directory();
    let source = directory.0.join("program.c");
    std::fs::write(&source, PROGRAM_32).expect("a file for the program");
    let program = directory.0.join("program");
    let linker = Path::new("/lib/ld-linux.so.2");
    if !linker.exists() {
        for name in ["32-bit program", "32-bit program in a tree"] {
            Row::own(name, WHAT).not_run("libc6-i386 is not installed");
        }
        return;
    }
    // Position-independent, so that it gets a dynamic linker without a library to link.
    let options =
        ["-m32", "-pie", "-fPIE", "-nostdlib", "-Wl,--dynamic-linker=/lib/ld-linux.so.2", "-o"];
    build("cc", &options, &[&program, &source]);
    if Command::new(&program).output().is_err() {
        for name in ["32-bit program", "32-bit program in a tree"] {
            Row::own(name, WHAT).not_run("the kernel runs no 32-bit programs");
        }
        return;
    }
    alone("32-bit program", WHAT, &program);
    inside("32-bit program in a tree", "the same, by a shell", &program);
}

/// Root makes the program set-uid to itself, and runs it as nobody; for nobody, /dev/userfaultfd is
/// one of its own, in a mount namespace that nobody else sees.
#[test]
fn set_uid_programs() {
    const NAMES: [&str; 2] = ["set-uid program", "set-uid program in a tree"];
    const WHAT: &str = "64 MiB written and verified, as nobody";
    if !is_root() {
        for name in NAMES {
            Row::own(name, WHAT).not_run("it needs root");
        }
        return;
    }
    // A directory that nobody may enter, wherever the target directory is.
    let directory =
        Scratch(std::env::temp_dir().join(format!("vswap-setuid.{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).expect("a directory");
    let program = compile(&directory, "cc", &[], "fill");
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    set_mode(&directory.0, 0o755);
    set_mode(&program, 0o4755);
    let vswap = directory.0.join("vswap");
    std::fs::copy(env!("CARGO_BIN_EXE_vswap"), &vswap).expect("a copy of vswap");
    for (name, script) in [(NAMES[0], ""), (NAMES[1], "sh -c '\"$0\" 64; \"$0\" 64'")] {
        let row = Row::own(name, WHAT);
        let run = |before: &str| {
            let script = format!(
                "mknod -m 666 \"$1/uffd.$$\" c 10 257 && mount --bind \"$1/uffd.$$\" /dev/userfaultfd &&
                 cd / && exec setpriv --reuid 65534 --regid 65534 --clear-groups {before} {script} \"$1/fill\" 64"
            );
            let line = ["-m", "sh", "-c", &script, "sh", directory.path()];
            Job::new("unshare", &line).plain()
        };
        let plain = run("");
        let paged = run(&format!("\"$1/vswap\" run --ram {SMALL} --"));
        row.record(&plain, SMALL, &paged);
    }
}
