//! Runs one command, plain or under `vswap run`, with a time limit that nothing outlives.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::cgroup::Cgroup;
use super::stats::Stats;
use super::watch::Peak;

mod running;

pub use running::Running;

/// A path of its own under the target directory.
pub fn scratch(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}.{number}", std::process::id()))
}

/// The options of a `vswap run`.
#[derive(Clone, Debug)]
pub struct Vswap {
    ram: String,
    swap: Option<String>,
    options: Vec<String>,
}

impl Vswap {
    /// With this RAM budget (`64M`, `auto`) and no swap file.
    pub fn ram(size: &str) -> Self {
        Self { ram: size.to_owned(), swap: None, options: Vec::new() }
    }

    /// With a swap file of this size.
    pub fn swap(mut self, size: &str) -> Self {
        self.swap = Some(size.to_owned());
        self
    }

    /// In chaos mode: random pages are evicted after every mapping call.
    pub fn chaos(self, seed: u64) -> Self {
        self.option(["--chaos", &seed.to_string()])
    }

    /// With the inline engine.
    pub fn inline(self) -> Self {
        self.option(["--engine", "inline"])
    }

    /// With objects on swap devices as they are.
    pub fn no_encrypt(self) -> Self {
        self.option(["--no-encrypt"])
    }

    /// With one more swap device, as the option has it.
    pub fn device(self, text: &str) -> Self {
        self.option(["--swap", text])
    }

    /// With more words.
    pub fn option<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.options.extend(words.map(str::to_owned));
        self
    }

    /// The budget, for messages.
    pub fn budget(&self) -> String {
        match &self.swap {
            Some(size) => format!("{} and a swap file of {size}", self.ram),
            None => self.ram.clone(),
        }
    }

    /// The command line before the program.
    fn command(&self, stats: &Path) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![env!("CARGO_BIN_EXE_vswap").into(), "run".into()];
        line.extend(["--ram".into(), OsString::from(&self.ram)]);
        if let Some(size) = &self.swap {
            let mut file = scratch("swapfile").into_os_string();
            file.push(format!(":{size}"));
            line.extend(["--swap".into(), file]);
        }
        line.extend(self.options.iter().map(OsString::from));
        line.extend(["--stats".into(), stats.into(), "--".into()]);
        line
    }
}

/// What repeats it by hand, but for the statistics.
impl fmt::Display for Vswap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vswap run --ram {}", self.ram)?;
        if let Some(size) = &self.swap {
            write!(f, " --swap /var/tmp:{size}")?;
        }
        self.options.iter().try_for_each(|word| write!(f, " {word}"))?;
        f.write_str(" --")
    }
}

/// A command to run, more than once if need be.
#[derive(Clone, Debug)]
pub struct Job {
    line: Vec<OsString>,
    stdin: Option<Vec<u8>>,
    environment: Vec<(OsString, OsString)>,
    limit: Duration,
    cgroup: Option<PathBuf>,
    stdout: Option<PathBuf>,
    watched: bool,
    in_callers_share: bool,
}

impl Job {
    /// The program with its arguments, at most 120 seconds, with nothing on its standard input.
    pub fn new(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        let mut line = vec![program.as_ref().to_owned()];
        line.extend(arguments.iter().map(OsString::from));
        Self {
            line,
            stdin: None,
            environment: Vec::new(),
            limit: Duration::from_secs(120),
            cgroup: None,
            stdout: None,
            watched: false,
            in_callers_share: false,
        }
    }

    /// One of our C programs.
    pub fn c(name: &str, arguments: &[&str]) -> Self {
        Self::new(super::program(name), arguments)
    }

    /// With another time limit.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// With this on its standard input.
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.as_bytes().to_vec());
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// In a cgroup, `vswap run` included.
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.procs());
        self
    }

    /// With its standard output in a file, because it is large.
    pub fn stdout_to(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// With its resident memory sampled.
    pub fn watched(mut self) -> Self {
        self.watched = true;
        self
    }

    /// Within the share of the machine that the caller holds, instead of one of its own.
    pub fn in_callers_share(mut self) -> Self {
        self.in_callers_share = true;
        self
    }

    /// Runs it as it is.
    pub fn plain(&self) -> Outcome {
        self.start_plain().finish()
    }

    /// Runs it under `vswap run`.
    pub fn under(&self, vswap: &Vswap) -> Outcome {
        self.start_under(vswap).finish()
    }

    /// Starts it as it is.
    pub fn start_plain(&self) -> Running {
        Running::start(self, self.name(), &[], None)
    }

    /// Starts it under `vswap run`.
    pub fn start_under(&self, vswap: &Vswap) -> Running {
        let stats = scratch("stats.json");
        let line = vswap.command(&stats);
        Running::start(self, format!("{vswap} {}", self.name()), &line, Some(stats))
    }

    /// Runs it both ways, requires the same results, and prints D, r and B.
    pub fn compare(&self, vswap: &Vswap) -> Outcome {
        self.compare_with(&self.plain(), vswap)
    }

    /// As [`compare`](Self::compare), with a plain run that was made before.
    pub fn compare_with(&self, plain: &Outcome, vswap: &Vswap) -> Outcome {
        assert!(plain.status.success(), "plain run: {}", plain.describe());
        let paged = self.under(vswap);
        paged.assert_same(plain);
        paged.report(plain, &vswap.budget());
        paged
    }

    /// The command line, for messages.
    pub fn name(&self) -> String {
        let mut text = String::new();
        for word in &self.line {
            let _ = write!(text, "{} ", word.to_string_lossy());
        }
        text.chars().take(160).collect()
    }
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub name: String,
    /// As `wait` reports it.
    pub status: ExitStatus,
    /// Empty if it went to a file.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
    /// The largest resident set of any of its processes, in bytes.
    pub max_rss: u64,
    /// What the sampler saw, if the job was watched.
    pub peak: Option<Peak>,
    /// What `--stats` wrote: nothing in a plain run.
    pub stats: Option<Stats>,
}

impl Outcome {
    /// The statistics of a run under vswap.
    pub fn stats(&self) -> &Stats {
        self.stats.as_ref().unwrap_or_else(|| panic!("no statistics: {}", self.describe()))
    }

    /// Prints D, r and B of a paged run: the largest process of the plain run, what compression
    /// made of the pages, and the budget.
    pub fn report(&self, plain: &Self, budget: &str) {
        println!(
            "{}: D {} MiB, r {:.1}, B {budget}; plain {:.2?}, paged {:.2?}",
            self.name,
            plain.max_rss >> 20,
            self.stats().compression_ratio(),
            plain.elapsed,
            self.elapsed,
        );
    }

    /// Requires the same end and the same output, byte for byte.
    pub fn assert_same(&self, plain: &Self) {
        assert_eq!(
            self.status,
            plain.status,
            "not the plain run's end\n{}\nplain: {}",
            self.describe(),
            plain.describe()
        );
        if self.stdout != plain.stdout {
            let at = self.stdout.iter().zip(&plain.stdout).position(|(a, b)| a != b);
            panic!(
                "output differs from byte {at:?}\n{}\nplain: {}",
                self.describe(),
                plain.describe()
            );
        }
        assert_eq!(self.stderr, plain.stderr, "stderr differs: {}", self.name);
    }

    /// The end of its output, for messages.
    pub fn describe(&self) -> String {
        let tail = self.stdout.len().saturating_sub(1000);
        format!(
            "{}\n{} after {:.2?}\nstdout: {}\nstderr: {}",
            self.name,
            self.status,
            self.elapsed,
            String::from_utf8_lossy(&self.stdout[tail..]),
            self.stderr
        )
    }
}
