//! A job while it runs.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::super::processes;
use super::super::stats::Stats;
use super::super::watch::Watch;
use super::{Job, Outcome, scratch};

/// How long after its program's end a job may take to vanish and to close its output.
const AFTERMATH: Duration = Duration::from_secs(1);

/// A started job. Dropping it kills all that belongs to it.
#[derive(Debug)]
pub struct Running {
    name: String,
    mark: String,
    child: Child,
    stdout: Option<Arc<Collected>>,
    stderr: Arc<Collected>,
    started: Instant,
    limit: Duration,
    watch: Option<Watch>,
    stats: Option<PathBuf>,
    _machine: Option<RwLockReadGuard<'static, ()>>,
}

/// What was read from a pipe so far, and whether its end was reached.
#[derive(Debug, Default)]
struct Collected {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let shared = Arc::new(Self::default());
        let inner = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut chunk = vec![0; 1 << 16];
            loop {
                let n = pipe.read(&mut chunk).unwrap_or(0);
                let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.0.extend_from_slice(&chunk[..n]);
                state.1 = n == 0;
                inner.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        shared
    }

    /// Waits until the condition holds; gives what was collected, and whether it does.
    fn wait(&self, limit: Duration, mut holds: impl FnMut(&[u8], bool) -> bool) -> (Vec<u8>, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, timeout) = self
            .changed
            .wait_timeout_while(state, limit, |(text, ended)| !holds(text, *ended))
            .unwrap_or_else(PoisonError::into_inner);
        (state.0.clone(), !timeout.timed_out())
    }

    fn text(&self) -> String {
        let (bytes, _) = self.wait(Duration::ZERO, |_, _| true);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Running {
    pub(super) fn start(
        job: &Job,
        name: String,
        before: &[OsString],
        stats: Option<PathBuf>,
    ) -> Self {
        let machine = (!job.in_callers_share).then(super::super::share_machine);
        let mark = scratch("job").file_name().expect("a name").to_string_lossy().into_owned();
        let line: Vec<_> = before.iter().chain(&job.line).collect();
        let mut command = if let Some(procs) = &job.cgroup {
            // A shell moves itself into the cgroup and becomes the command.
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]);
            shell.arg(procs).args(&line);
            shell
        } else {
            let mut direct = Command::new(line[0]);
            direct.args(&line[1..]);
            direct
        };
        command.envs(job.environment.iter().map(|(name, value)| (name, value)));
        command.env(processes::MARK, &mark).env("LC_ALL", "C").process_group(0);
        command.stdin(if job.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stderr(Stdio::piped()).stdout(match &job.stdout {
            Some(path) => File::create(path).expect("a file for stdout").into(),
            None => Stdio::piped(),
        });
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", job.name()));
        let watch = job.watched.then(|| Watch::start(&mark));
        let stdout = child.stdout.take().map(Collected::from);
        let stderr = Collected::from(child.stderr.take().expect("piped"));
        if let (Some(text), Some(pipe)) = (&job.stdin, &mut child.stdin) {
            // Not all of it is wanted by every command.
            let _ = pipe.write_all(text);
        }
        Self {
            name,
            mark,
            stdout,
            stderr,
            child,
            started,
            limit: job.limit,
            watch,
            stats,
            _machine: machine,
        }
    }

    /// The mark of its processes.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The process that was started: the program, or `vswap run`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether that one still runs.
    pub fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let state = |stat: String| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with('Z'));
        stat.ok().and_then(state).unwrap_or(false)
    }

    /// Writes a line to its standard input. A job that has ended reads nothing: its outcome tells.
    pub fn send(&mut self, line: &str) {
        let pipe = self.child.stdin.as_mut().expect("a job with stdin(..)");
        // In one piece: what reads a part of it takes the rest for the next line.
        let _ = pipe.write_all(format!("{line}\n").as_bytes());
    }

    /// Waits until a whole line that starts so was written, and gives the rest of that line.
    pub fn wait_for(&self, prefix: &str) -> String {
        let found = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
        };
        let stdout = self.stdout.as_ref().expect("a job with piped stdout");
        let (text, _) = stdout.wait(self.time_left(), |text, end| end || found(text).is_some());
        found(&text).unwrap_or_else(|| self.give_up(&format!("no line {prefix:?} came")))
    }

    /// Whether nobody holds the other end of its standard output any more.
    pub fn stdout_ends_within(&self, limit: Duration) -> bool {
        let stdout = self.stdout.as_ref().expect("a job with piped stdout");
        stdout.wait(limit, |_, ended| ended).1
    }

    fn time_left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    fn give_up(&self, why: &str) -> ! {
        let state = processes::describe(&self.mark);
        processes::kill_job(&self.mark);
        panic!(
            "{}: {why} after {:.1?}\nstdout: {}\nstderr: {}\n{state}",
            self.name,
            self.started.elapsed(),
            self.stdout.as_ref().map(|pipe| pipe.text()).unwrap_or_default(),
            self.stderr.text(),
        );
    }

    /// Waits for the end of the job and of everything that belongs to it.
    pub fn finish(mut self) -> Outcome {
        self.child.stdin = None;
        let (status, max_rss) = loop {
            if let Some(ended) = reap(self.child.id()) {
                break ended;
            }
            if self.time_left().is_zero() {
                self.give_up("still running");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let elapsed = self.started.elapsed();
        let peak = self.watch.take().map(Watch::finish);
        if !processes::wait_until(AFTERMATH, || processes::of_job(&self.mark).is_empty()) {
            self.give_up("processes were left behind");
        }
        let mut read_out = |pipe: &Collected| {
            let (bytes, ended) = pipe.wait(AFTERMATH, |_, end| end);
            if ended { bytes } else { self.give_up("somebody holds its output open") }
        };
        let stderr = String::from_utf8_lossy(&read_out(&self.stderr)).into_owned();
        let stdout = self.stdout.as_deref().map(&mut read_out).unwrap_or_default();
        let stats = self.stats.as_ref().and_then(|path| {
            let text = std::fs::read_to_string(path).ok()?;
            let _ = std::fs::remove_file(path);
            Some(Stats::parse(&text))
        });
        let name = self.name.clone();
        Outcome { name, status, stdout, stderr, elapsed, max_rss, peak, stats }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        processes::kill_job(&self.mark);
    }
}

/// Reaps a child that has ended: its status, and its largest resident set in bytes.
fn reap(pid: u32) -> Option<(ExitStatus, u64)> {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right types. The child is ours and is reaped here
    // only: `Child::wait` is never called.
    let ended = unsafe { libc::wait4(pid as i32, &raw mut status, libc::WNOHANG, &raw mut usage) };
    (ended == pid as i32).then(|| (ExitStatus::from_raw(status), usage.ru_maxrss as u64 * 1024))
}
