//! What the program and its parent see is what they would see without vswap.

use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{child_of, command, eventually, finish, send, vswap, vswap_sh, wait};

#[test]
fn exit_codes_are_the_programs_own() {
    for code in [0, 1, 42, 126, 137, 255] {
        assert_eq!(finish(&mut vswap_sh(&format!("exit {code}"))).end(), code);
    }
}

#[test]
fn death_by_a_signal_is_the_programs_own() {
    for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, 40] {
        let output = finish(&mut vswap_sh(&format!("ulimit -c 0; kill -{signal} $$")));
        assert_eq!(output.end(), -signal, "{output:?}");
        assert!(!output.status.core_dumped(), "{output:?}");
        assert_eq!(output.stderr, "", "signal {signal}");
    }
}

#[test]
fn standard_streams_pass_through_untouched() {
    let input: Vec<u8> =
        (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = vswap(&["run", "--ram", "64M", "--", "sh", "-c", "cat; echo error >&2"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let copy = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let output = wait(child);
    writer.join().unwrap().unwrap();
    assert!(reader.join().unwrap().unwrap() == input, "stdout differs from stdin");
    assert_eq!((output.end(), output.stderr.as_str()), (0, "error\n"));
}

/// Runs a command with and without vswap, both prepared in the same way just before exec.
fn both(program: &str, args: &[&str], prepare: fn()) -> (String, String) {
    let run = |mut command: Command| {
        // SAFETY: the functions given make system calls only.
        unsafe {
            command.pre_exec(move || {
                prepare();
                Ok(())
            })
        };
        let output = finish(&mut command);
        assert_eq!((output.end(), output.stderr.as_str()), (0, ""), "{output:?}");
        output.stdout
    };
    let under = [&["run", "--ram", "64M", "--", program][..], args].concat();
    (run(command(program, args)), run(vswap(&under)))
}

#[test]
fn no_descriptor_of_vswap_gets_into_the_program() {
    let (plain, under) = both("ls", &["/proc/self/fd"], || ());
    assert_eq!(plain, under);

    // Nor does one get lost, and a closed stream stays closed.
    let (plain, under) = both("ls", &["/proc/self/fd"], || {
        // SAFETY: plain integers.
        unsafe {
            libc::dup2(1, 9);
            libc::close(0);
        }
    });
    assert!(plain.contains('9'), "{plain}");
    assert_eq!(plain, under);
}

#[test]
fn signal_mask_and_dispositions_come_in_as_they_were() {
    let args = ["-E", "^Sig(Blk|Ign):|^NoNewPrivs:", "/proc/self/status"];
    let (plain, under) = both("grep", &args, || ());
    assert_eq!(plain, under);

    let (plain, under) = both("grep", &args, || {
        // SAFETY: the set is filled before it is used; dispositions without handlers.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        }
    });
    // SIGHUP, SIGPIPE and SIGCHLD, beside what the environment may ignore.
    let ignored = plain.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x1_1001, 0x1_1001);
    assert!(plain.contains("SigBlk:\t0000000000000200"), "{plain}");
    assert_eq!(plain, under);
}

#[test]
fn arguments_and_environment_come_in_as_they_were() {
    let (plain, under) = both("cat", &["/proc/self/cmdline", "/dev/null"], || ());
    assert_eq!(plain, under);

    let variables = |text: &str| -> Vec<String> {
        let ours =
            |line: &&str| !line.starts_with("VSWAP_RUN=") && !line.starts_with("LD_PRELOAD=");
        text.lines().filter(ours).map(str::to_owned).collect()
    };
    let (plain, under) = both("env", &[], || ());
    assert_eq!(variables(&plain), variables(&under));
}

#[test]
fn what_the_user_preloads_comes_first() {
    let mut command = vswap_sh("printf %s \"$LD_PRELOAD\"");
    let output = finish(command.env("LD_PRELOAD", "libm.so.6 /x/libvswap-0123456789abcdef.so"));
    let (first, second) = output.stdout.split_once(':').expect("two objects");
    assert_eq!(first, "libm.so.6");
    assert!(Path::new(second).is_file(), "{second}");
}

#[test]
fn signals_sent_to_vswap_reach_the_program() {
    for (name, signal) in [("TERM", 15), ("INT", 2), ("HUP", 1), ("USR1", 10), ("WINCH", 28)] {
        let script = format!("trap 'exit 7' {name}; echo ready; while :; do sleep 0.01; done");
        let mut child = vswap_sh(&script).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        send(child.id() as i32, signal);
        assert_eq!(wait(child).end(), 7, "SIG{name}");
    }
}

#[test]
fn a_signal_that_the_program_sends_to_its_group_is_not_sent_back() {
    let script = "trap 'echo caught' TERM; kill -TERM 0; sleep 0.2; exit 5";
    let output = finish(&mut vswap_sh(script));
    assert_eq!((output.end(), output.stdout.as_str()), (5, "caught\n"), "{output:?}");
}

/// Stops come by job control, so the group must not be an orphaned one: its parent, this test, is in
/// the same session.
#[test]
fn vswap_stops_and_goes_on_with_the_program() {
    let mut child =
        vswap_sh("echo ready; read line; exit 3").stdin(Stdio::piped()).spawn().unwrap();
    let vswap = child.id() as i32;
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let program = child_of(child.id());
    for signal in [libc::SIGTSTP, libc::SIGTTIN] {
        // Once to the group, as the terminal does it, once to vswap alone.
        for target in [-vswap, vswap] {
            send(target, signal);
            let stopped = eventually("vswap to stop", || state_change(vswap, libc::WUNTRACED));
            assert!(libc::WIFSTOPPED(stopped), "{stopped:x}");
            assert_eq!(libc::WSTOPSIG(stopped), signal);
            assert_eq!(state_of(program), "T");
            send(target, libc::SIGCONT);
            let resumed = eventually("vswap to go on", || state_change(vswap, libc::WCONTINUED));
            assert!(libc::WIFCONTINUED(resumed), "{resumed:x}");
            // Asleep in their waits, both of them: only then the next signal finds them as this did.
            for pid in [program, child.id()] {
                eventually("it to go on", || (state_of(pid) == "S").then_some(()));
            }
        }
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(wait(child).end(), 3);
}

fn state_change(pid: i32, options: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is an int of ours.
    let changed = unsafe { libc::waitpid(pid, &raw mut status, options | libc::WNOHANG) };
    (changed == pid).then_some(status)
}

fn state_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, rest) = stat.rsplit_once(") ").unwrap_or_default();
    rest.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_stream_that_the_program_closes_is_closed() {
    let mut child = vswap_sh("exec >/dev/null; exec sleep 60").spawn().unwrap();
    let started = Instant::now();
    let mut rest = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "vswap held the pipe open");
    send(child.id() as i32, libc::SIGTERM);
    assert_eq!(wait(child).end(), -libc::SIGTERM);
}

#[test]
fn children_that_outlive_the_program_do_not_keep_vswap() {
    let started = Instant::now();
    let output = finish(&mut vswap_sh("sleep 15 >/dev/null 2>&1 & exit 4"));
    assert_eq!(output.end(), 4);
    assert!(started.elapsed() < Duration::from_secs(10));
}
