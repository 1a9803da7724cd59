//! Whole programs that hold much in memory, as anybody uses them: the measured program starts them and
//! checks what they say.

mod compile;
mod redis;

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::contents::{Contents, Random};
use super::latency::Latencies;
use super::{Phase, WorkError};

/// Of each line that is sorted, with its end.
const LINE: usize = 64;
/// What GNU sort keeps for a line besides its bytes, as measured with coreutils 9.1 and two threads.
const SORT_BYTES_PER_LINE: usize = 64;
/// A key, a value, and their places in a dictionary, as measured with CPython 3.11.
const PYTHON_BYTES_PER_ITEM: usize = 215;
/// A row with its place in the index, as measured with SQLite 3.40.
const SQLITE_BYTES_PER_ROW: usize = 200;

/// Builds a dictionary of strings, looks all of them up in another order, and deletes half.
const PYTHON: &str = "
import sys
n = int(sys.argv[1])
items = {'key-%d' % i: 'value-%d-%s' % (i * 7919, 'x' * (i % 64)) for i in range(n)}
found = 0
for i in range(n):
    j = i * 104729 % n
    found += items['key-%d' % j].startswith('value-%d-' % (j * 7919))
for i in range(0, n, 2):
    del items['key-%d' % i]
print(found + len(items))
";

/// Fills a table, indexes it, looks rows up through the index, and deletes half.
const SQLITE: &str = "
CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT);
WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c WHERE i + 1 < ROWS)
INSERT INTO t SELECT i, i * 7919 % 1000003, printf('value-%060d', i * 104729) FROM c;
CREATE INDEX by_k ON t(k);
SELECT count(*) FROM t WHERE id IN
(SELECT (a.id * 31) % ROWS FROM t AS a INDEXED BY by_k WHERE a.k >= 0);
DELETE FROM t WHERE id % 2 = 0;
SELECT count(*) FROM t;
";

/// What a program is given.
pub struct Program<'a> {
    /// Which one.
    pub phase: Phase,
    /// About what it is to take of memory.
    pub bytes: usize,
    /// That it may have, or its clients.
    pub threads: usize,
    /// Requests to it, if it is a server.
    pub accesses: usize,
    /// What its values hold.
    pub contents: &'a Contents,
    /// A directory for what it writes.
    pub scratch: &'a Path,
    /// An unpacked kernel, to be built.
    pub kernel_source: Option<&'a Path>,
}

/// What a program took.
#[derive(Debug)]
pub struct Ran {
    /// Wall time, without what was prepared for it.
    pub time: Duration,
    /// Requests, or one.
    pub accesses: usize,
    /// Of its requests.
    pub latencies: Option<Latencies>,
}

/// The programs that a phase runs, by the names of their packages' executables; none for a pattern.
pub fn needs(phase: Phase) -> &'static [&'static str] {
    match phase {
        Phase::Sort => &["sort"],
        Phase::Python => &["python3"],
        Phase::Sqlite => &["sqlite3"],
        Phase::Redis => &["redis-server"],
        Phase::Compile => &["make", "cc"],
        Phase::KernelBuild => &["make", "gcc", "flex", "bison"],
        _ => &[],
    }
}

/// Runs a phase's program.
///
/// # Errors
/// It cannot be run, fails, or says something wrong.
pub fn run(program: &Program<'_>) -> Result<Ran, WorkError> {
    let Program { phase, bytes, threads, .. } = *program;
    let result = match phase {
        Phase::Redis => redis::run(program),
        Phase::Compile => compile::project(program),
        Phase::KernelBuild => compile::kernel(program),
        Phase::Python => timed(|| python(bytes / PYTHON_BYTES_PER_ITEM)),
        Phase::Sqlite => timed(|| sqlite(bytes / SQLITE_BYTES_PER_ROW)),
        _ => timed(|| sort(bytes / (LINE + SORT_BYTES_PER_LINE), threads)),
    };
    result.map_err(|error| WorkError::Program(phase.title(), error))
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Ran> {
    let start = Instant::now();
    work()?;
    Ok(Ran { time: start.elapsed(), accesses: 1, latencies: None })
}

fn python(items: usize) -> io::Result<()> {
    let mut command = Command::new("python3");
    command.args(["-S", "-c", PYTHON, &items.to_string()]);
    expect(command, &format!("{}\n", items + items / 2))
}

fn sqlite(rows: usize) -> io::Result<()> {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-init", "/dev/null", ":memory:"]);
    command.arg(SQLITE.replace("ROWS", &rows.to_string()));
    // 31 has to have no divisor in common with the rows, or some are looked up more than once.
    let found = if rows.is_multiple_of(31) { rows / 31 } else { rows };
    expect(command, &format!("{found}\n{}\n", rows / 2))
}

fn expect(mut command: Command, expected: &str) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(io::Error::other(format!("it ended with {}", output.status)));
    }
    if said != expected {
        return Err(io::Error::other(format!("it said {said:?}, not {expected:?}")));
    }
    Ok(())
}

/// Sorts in memory, from a pipe, so that no page cache takes part.
fn sort(lines: usize, threads: usize) -> io::Result<()> {
    let mut buffer = String::new();
    let _ = write!(buffer, "--buffer-size={}b", lines * 2 * LINE);
    let parallel = format!("--parallel={threads}");
    let mut sorting = Killed(
        Command::new("sort")
            .args([&buffer, &parallel])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let pipe = sorting.0.stdin.take();
    let sum = write_lines(pipe.ok_or(io::ErrorKind::BrokenPipe)?, lines)?;
    let output = sorting.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    check_sorted(output, lines, sum)?;
    let status = sorting.0.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
}

/// Returns the sum of the lines' first words, which sorting does not change.
fn write_lines(mut pipe: impl Write, lines: usize) -> io::Result<u64> {
    let (mut random, mut sum) = (Random::new(0x5EED_0008), 0u64);
    // On the stack: inline faults are not for buffers of system calls.
    let mut block = [0u8; 64 * LINE];
    let mut written = 0;
    while written < lines {
        let count = (lines - written).min(block.len() / LINE);
        for line in block.chunks_mut(LINE).take(count) {
            let word = random.next();
            sum = sum.wrapping_add(word);
            let mut rest = &mut line[..];
            writeln!(rest, "{word:016x} {:>46}", word % 1000)?;
        }
        pipe.write_all(&block[..count * LINE])?;
        written += count;
    }
    Ok(sum)
}

fn check_sorted(output: impl Read, lines: usize, sum: u64) -> io::Result<()> {
    let (mut before, mut found_sum, mut count) = (String::new(), 0u64, 0);
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line < before {
            return Err(io::Error::other(format!("{line:?} comes after {before:?}")));
        }
        let word = line.get(..16).and_then(|word| u64::from_str_radix(word, 16).ok());
        found_sum = found_sum.wrapping_add(word.unwrap_or_default());
        count += 1;
        before = line;
    }
    if (count, found_sum) == (lines, sum) {
        return Ok(());
    }
    Err(io::Error::other(format!("{count} lines came back of {lines}, or others")))
}

/// Killed when dropped before its end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // After its end that is an error, and nothing else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::contents::Mix;
    use super::*;

    #[test]
    fn programs_say_what_they_should() {
        let scratch = std::env::temp_dir().join(format!("vswap-bench-{}", std::process::id()));
        std::fs::create_dir(&scratch).unwrap();
        let contents = Contents::new(Mix::Heap);
        for phase in Phase::PROGRAMS {
            let (bytes, threads, accesses) = (1 << 20, 2, 100);
            let (contents, scratch, kernel_source) = (&contents, scratch.as_path(), None);
            let program =
                Program { phase, bytes, threads, accesses, contents, scratch, kernel_source };
            match run(&program) {
                Err(WorkError::Program(name, error)) if error.kind() == io::ErrorKind::NotFound => {
                    eprintln!("skipped: no {name}");
                }
                result => {
                    let ran = result.unwrap();
                    assert_eq!(ran.latencies.is_some(), phase == Phase::Redis);
                    assert_eq!(ran.accesses, if phase == Phase::Redis { accesses } else { 1 });
                }
            }
        }
        std::fs::remove_dir_all(&scratch).unwrap();
    }

    #[test]
    fn wrong_answers_are_noticed() {
        let mut command = Command::new("echo");
        command.arg("3");
        expect(command, "4\n").unwrap_err();
        let mut text = Vec::new();
        let sum = write_lines(&mut text, 1000).unwrap();
        assert_eq!(text.len(), 1000 * LINE);
        check_sorted(&text[..], 1000, sum).unwrap_err();
        let mut lines: Vec<_> = text.chunks(LINE).collect();
        lines.sort_unstable();
        check_sorted(&lines.concat()[..], 1000, sum).unwrap();
        check_sorted(&lines[1..].concat()[..], 999, sum).unwrap_err();
    }
}
