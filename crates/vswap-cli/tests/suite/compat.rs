//! Programs that people have, one row of docs/compatibility.md each.
//!
//! A row runs a program plain and under `vswap run`, in about a quarter of the memory that it
//! takes, and measures which of three things happens: it *works* (the same end, the same output,
//! and pages went out and came back), it *runs unmanaged* (the same, but nothing was paged, and a line
//! on stderr says why), or it is *refused* with a line that says so. Anything else, a wrong byte, a
//! program that hangs, one that is quietly not paged, fails the test. So does a row that does not
//! end as docs/compatibility.md says. `VSWAP_TEST_TABLE=1` writes what was measured there.
//!
//! A program that is not installed makes its row `not run`, loudly; `.ci/run` installs the small ones.

mod debuggers;
mod foreign;
mod programs;
mod servers;
mod special;
mod table;

use std::path::PathBuf;
use std::process::Command;

use crate::support::job::scratch;
use crate::support::stats::Stats;
use crate::support::{Job, Outcome, Vswap, skipped};
use table::{Cells, Fares};

/// A row, until it is measured.
struct Row {
    name: &'static str,
    version: String,
    /// What is run, for the table.
    what: &'static str,
}

impl Row {
    /// The row of this name, with the first line that `version` prints. `None`, after saying so, if
    /// there is no such program.
    fn of(name: &'static str, what: &'static str, version: &[&str]) -> Option<Self> {
        let output = Command::new(version[0]).args(&version[1..]).output();
        let row = |version| Self { name, version, what };
        match output {
            Ok(output) if output.status.success() => {
                let text = [output.stdout, output.stderr].concat();
                let line = String::from_utf8_lossy(&text).lines().next().map(version_in);
                Some(row(line.unwrap_or_default()))
            }
            _ => {
                row(String::new()).not_run(&format!("{} is not installed", version[0]));
                None
            }
        }
    }

    /// A row of one of our own programs.
    fn own(name: &'static str, what: &'static str) -> Self {
        Self { name, version: String::new(), what }
    }

    fn not_run(&self, why: &str) {
        skipped(self.name, why);
        table::record(self.name, &self.cells(0, "", Fares::NotRun(why.to_owned())));
    }

    /// Runs the job both ways and records how it fares.
    fn measure(&self, job: &Job, vswap: &Vswap) -> Outcome {
        let plain = job.plain();
        let paged = job.under(vswap);
        self.record(&plain, &vswap.budget(), &paged);
        paged
    }

    /// Records how a run fares beside a plain one.
    fn record(&self, plain: &Outcome, budget: &str, paged: &Outcome) {
        if let Some(why) = cannot(plain) {
            self.not_run(&why);
            return;
        }
        assert!(plain.status.success(), "plain run: {}", plain.describe());
        let fares = fares(plain, paged);
        if matches!(fares, Fares::Works) {
            paged.report(plain, budget);
        }
        table::record(self.name, &self.cells(plain.max_rss, budget, fares));
    }

    fn cells(&self, data: u64, budget: &str, fares: Fares) -> Cells {
        let data = if data == 0 { String::new() } else { format!("{} M", data >> 20) };
        Cells {
            version: self.version.clone(),
            what: self.what.to_owned(),
            data,
            budget: budget.to_owned(),
            fares,
        }
    }
}

/// From the first digit of the version on, without what packagers add.
fn version_in(line: &str) -> String {
    let words = line.split([' ', '=', '"']).map(|word| word.trim_start_matches('v'));
    let mut versions = words.filter(|word| {
        word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.')
    });
    versions.next().unwrap_or_default().trim_end_matches([',', ')']).to_owned()
}

/// Why a program says that this machine cannot run it.
fn cannot(plain: &Outcome) -> Option<String> {
    const CANNOT: i32 = 77;
    let text = String::from_utf8_lossy(&plain.stdout);
    let why = text.lines().find_map(|line| line.strip_prefix("cannot: "))?;
    (plain.status.code() == Some(CANNOT)).then(|| why.to_owned())
}

/// How a program fares; panics if it is in none of the ways that are allowed.
fn fares(plain: &Outcome, paged: &Outcome) -> Fares {
    const REFUSED: i32 = 126;
    /// What our own programs end with if a call that Linux would have made for them fails.
    const CALL_REFUSED: i32 = 78;
    let told = paged.stderr.lines().find_map(|line| line.strip_prefix("vswap: "));
    match (paged.status.code(), told) {
        (Some(REFUSED), Some(line)) => return Fares::Refused(without_paths(line)),
        (Some(CALL_REFUSED), _) => {
            let text = String::from_utf8_lossy(&paged.stdout);
            let line = text.lines().find_map(|line| line.strip_prefix("refused: "));
            let line = line.unwrap_or_else(|| panic!("no reason: {}", paged.describe()));
            return Fares::Refused(line.to_owned());
        }
        _ => {}
    }
    assert!(
        paged.status == plain.status && paged.stdout == plain.stdout,
        "differs from a plain run\n{}\nplain: {}",
        paged.describe(),
        plain.describe()
    );
    let came_back = |stats: &Stats| stats.counter("zswpin") + stats.counter("pswpin") > 0;
    let moved = |stats: &Stats| stats.counter("zswpout") > 0 && came_back(stats);
    if paged.stats.as_ref().is_some_and(moved) {
        return Fares::Works;
    }
    let line = told.unwrap_or_else(|| panic!("quietly not paged: {}", paged.describe()));
    Fares::Unmanaged(without_paths(line))
}

/// Without the directory of what is named first, and without the advice.
fn without_paths(line: &str) -> String {
    let (subject, rest) = line.split_once(' ').unwrap_or((line, ""));
    let name = subject.rsplit('/').next().unwrap_or(subject);
    let rest = rest.split(';').next().unwrap_or(rest);
    format!("{name} {rest}")
}

/// A file, link or directory that vanishes with the test.
struct Scratch(PathBuf);

impl Scratch {
    /// A directory.
    fn directory() -> Self {
        let scratch = Self(scratch("compat"));
        std::fs::create_dir_all(&scratch.0).expect("a scratch directory");
        scratch
    }

    /// A file with this text.
    fn file(extension: &str, text: &str) -> Self {
        let mut path = scratch("compat").into_os_string();
        path.push(format!(".{extension}"));
        let scratch = Self(path.into());
        std::fs::write(&scratch.0, text).expect("a scratch file");
        scratch
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a target directory with a plain name")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A link to a directory is a file here.
        let _ = if self.0.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            std::fs::remove_dir_all(&self.0)
        } else {
            std::fs::remove_file(&self.0)
        };
    }
}

/// A shell that runs a script with these as `$1` and so on.
fn shell(script: &str, arguments: &[&str]) -> Job {
    let mut line = vec!["-c", script, "sh"];
    line.extend(arguments);
    Job::new("sh", &line)
}
