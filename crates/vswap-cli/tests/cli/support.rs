//! Starts `vswap`, or a program without it, and never waits for either for ever.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longest that any run of these tests may take. They take milliseconds.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What a run left behind.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Exit code, or the negative number of the signal.
    pub fn end(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().expect("exited or killed"))
    }

    /// The only line on stderr.
    pub fn line(&self) -> &str {
        let mut lines = self.stderr.lines();
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            _ => panic!("not one line: {self:?}"),
        }
    }
}

/// `vswap` with these arguments, in a process group of its own.
pub fn vswap(args: &[&str]) -> Command {
    command(env!("CARGO_BIN_EXE_vswap"), args)
}

/// `vswap run` of a shell script.
pub fn vswap_sh(script: &str) -> Command {
    vswap(&["run", "--ram", "64M", "--", "sh", "-c", script])
}

/// A program without `vswap`.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    wait(command.spawn().expect("the command starts"))
}

/// Waits for a child and its output. The whole process group is killed at the time limit.
pub fn wait(child: Child) -> Output {
    let group = child.id() as i32;
    let (done, at_end) = channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = at_end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
        if late {
            send(-group, libc::SIGKILL);
        }
        late
    });
    let output = child.wait_with_output().expect("the child can be waited for");
    drop(done);
    assert!(!watchdog.join().expect("the watchdog ends"), "time limit: {output:?}");
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal to a process, or to a group if negative.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: plain integers.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "time limit: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The first child of a process.
pub fn child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    eventually("a child", || {
        std::fs::read_to_string(&path).ok()?.split_whitespace().next()?.parse().ok()
    })
}

/// Says that a test could not run here, and why.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
