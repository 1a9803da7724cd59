//! At a terminal: ^C reaches the program once, and not again through vswap.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{eventually, send};

fn open_terminal() -> (File, OwnedFd) {
    let (mut outer, mut inner) = (-1, -1);
    // SAFETY: two ints of ours are written; the rest asks for defaults.
    unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(
            libc::openpty(&raw mut outer, &raw mut inner, null, null.cast(), null.cast()),
            0
        );
        for fd in [outer, inner] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (File::from_raw_fd(outer), OwnedFd::from_raw_fd(inner))
    }
}

#[test]
fn an_interrupt_from_the_terminal_arrives_once() {
    let (mut outer, inner) = open_terminal();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done";
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswap"));
    command.args(["run", "--ram", "64M", "--", "sh", "-c", script]);
    command.stdin(Stdio::from(inner.try_clone().unwrap()));
    command.stdout(Stdio::from(inner.try_clone().unwrap())).stderr(Stdio::from(inner));
    // SAFETY: system calls only; standard input is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        })
    };
    let mut child = command.spawn().unwrap();
    // It holds the terminal open in this process.
    drop(command);
    let (lines, received) = std::sync::mpsc::channel();
    let mut terminal = outer.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(read @ 1..) = terminal.read(&mut buffer) {
            let _ = lines.send(String::from_utf8_lossy(&buffer[..read]).into_owned());
        }
    });
    let mut shown = String::new();
    let mut show = || {
        shown.extend(received.try_iter());
        shown.clone()
    };
    eventually("the program", || show().contains("ready").then_some(()));
    for expected in 1..=3 {
        outer.write_all(b"\x03").unwrap();
        eventually("the interrupt", || {
            (show().matches("caught").count() >= expected).then_some(())
        });
        // Long enough for a second one to show.
        std::thread::sleep(Duration::from_millis(200));
        let shown = show();
        assert_eq!(shown.matches("caught").count(), expected, "{shown}");
    }
    send(child.id() as i32, libc::SIGTERM);
    let status = eventually("the end", || child.try_wait().unwrap());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
    reader.join().unwrap();
}
