//! Programs that people use, in less memory than they need.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::job::scratch;
use crate::support::{Job, Vswap, long, skipped};

/// A file that vanishes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(scratch(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a target directory with a plain name")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether a tool runs here; says so if not.
fn has(test: &str, tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        skipped(test, &format!("there is no {tool}"));
    }
    found
}

/// Lines in no order, of 600 to 1600 bytes: each begins with a random number and goes on with words,
/// the common ones more often, two fifths of them in phrases that come again. 1.5:1 with lz4, page by
/// page, as English prose is: perldiag.pod is 1.56:1, the GPL 1.53:1.
fn write_text(path: &Path, bytes: usize) {
    let mut out = BufWriter::new(File::create(path).expect("a file for the text"));
    let mut state = 1_u64;
    let mut draw = |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let words: Vec<String> = (0..2_000)
        .map(|_| (0..2 + draw(9)).map(|_| char::from(b'a' + draw(26) as u8)).collect())
        .collect();
    // The smallest of three draws: some words are far more common than others.
    let word = |draw: &mut dyn FnMut(u64) -> u64| {
        &words[draw(2_000).min(draw(2_000)).min(draw(2_000)) as usize][..]
    };
    let phrases: Vec<String> = (0..100)
        .map(|_| (0..2 + draw(4)).map(|_| word(&mut draw)).collect::<Vec<_>>().join(" "))
        .collect();
    let mut written = 0;
    while written < bytes {
        let mut line = format!("{:010}", draw(1 << 31));
        let mut left = 90_u64 + draw(120);
        while left > 0 {
            line.push(' ');
            if draw(5) < 2 {
                line += &phrases[draw(100).min(draw(100)) as usize];
                left = left.saturating_sub(3);
            } else {
                line += word(&mut draw);
                left -= 1;
            }
        }
        writeln!(out, "{line}").expect("space for the text");
        written += line.len() + 1;
    }
}

fn assert_equal_files(left: &Path, right: &Path) {
    let open = |path| BufReader::with_capacity(1 << 20, File::open(path).expect("an output"));
    let (mut left, mut right) = (open(left), open(right));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let n = left.read(&mut a).expect("the output");
        let same = right.read_exact(&mut b[..n]).is_ok() && a[..n] == b[..n];
        assert!(same, "outputs differ after byte {offset}");
        if n == 0 {
            assert_eq!(right.read(&mut b).expect("the output"), 0, "one output is longer");
            return;
        }
        offset += n;
    }
}

/// D 212 MiB (the text, and what sort keeps for each of its lines), r 1.5, B 64 MiB: the pool cannot
/// hold it, so most of it goes to the swap file.
///
/// To sort lines in no order is to read them at random, again and again, in three times the memory
/// that there is: 600 000 faults that read, each of which brings one page, under any swap. That grows
/// with the number of lines, so they are long, 1150 bytes: with lines of 44 bytes D is 495 MiB, and
/// after 2.8 million such faults and ten minutes on a busy machine there was no end in sight.
#[test]
fn sort_of_a_large_file_with_a_swap_file() {
    let (input, plain_output, paged_output) =
        (Scratch::new("text"), Scratch::new("plain"), Scratch::new("paged"));
    write_text(&input.0, 200 << 20);
    let sort = Job::new("sort", &["-S", "1G", "--parallel=2", input.path()]).limit(300);
    let plain = sort.clone().stdout_to(&plain_output.0).plain();
    assert!(plain.status.success(), "{}", plain.describe());
    let paged = sort.stdout_to(&paged_output.0).watched().under(&Vswap::ram("64M").swap("2G"));
    paged.assert_same(&plain);
    assert_equal_files(&plain_output.0, &paged_output.0);
    paged.report(&plain, "64M and a swap file");
    paged.stats().assert_swapped();
    paged.stats().assert_used_the_swap_file();
    let ratio = paged.stats().compression_ratio();
    assert!((1.3..1.7).contains(&ratio), "text does not compress {ratio:.2}:1");
    crate::budget::assert_within(&paged, 64 << 20);
}

const PYTHON_DICT: &str = r"
import hashlib, sys
n = int(sys.argv[1])
table = {'key-%08d' % i: 'value of number %d' % (i * 7919 % n) for i in range(n)}
digest = hashlib.sha256()
for i in range(0, n, 3):
    digest.update(table['key-%08d' % (i * 104729 % n)].encode())
for key in sorted(table, reverse=True)[:1000]:
    digest.update(key.encode())
del table['key-00000000']
print(len(table), digest.hexdigest())
";

/// D 298 MiB, r 4.0, B 112 MiB: all of it fits the pool, so there is no swap file. `python3` may
/// be a script that looks for the real one and becomes it: then it runs as well, with 300 000 strings
/// in 32 MiB.
#[test]
fn python_builds_a_large_dictionary_without_a_swap_file() {
    const TEST: &str = "python_builds_a_large_dictionary";
    if !has(TEST, "python3") {
        return;
    }
    let script = Scratch::new("dict.py");
    std::fs::write(&script.0, PYTHON_DICT).expect("a file for the script");
    let real = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("python3 runs");
    let real = String::from_utf8(real.stdout).expect("a path").trim().to_owned();
    let is_script = std::fs::read(which("python3")).is_ok_and(|text| text.starts_with(b"#!"));
    let mut runs = vec![(real, "1500000", 112)];
    if is_script {
        runs.push(("python3".to_owned(), "300000", 32));
    }
    for (interpreter, strings, budget) in runs {
        let job = Job::new(interpreter, &[script.path(), strings]).env("PYTHONHASHSEED", "1");
        let paged = job.limit(300).watched().compare(&Vswap::ram(&format!("{budget}M")));
        paged.stats().assert_swapped();
        crate::budget::assert_within(&paged, budget << 20);
    }
}

/// Where the shell would find a command.
fn which(command: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(command))
        .find(|candidate| candidate.is_file())
        .unwrap_or_default()
}

/// D 129 MiB, r 1.3, B 48 MiB and a swap file. The program requires that its mappings moved, swapped
/// out, and were not copied.
#[test]
fn an_array_grows_by_realloc() {
    let paged = Job::c("grow", &["128"]).compare(&Vswap::ram("48M").swap("1G"));
    paged.stats().assert_swapped();
}

const SQL: &str = "
CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, name TEXT, price INTEGER);
CREATE TABLE owner(id INTEGER PRIMARY KEY, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO owner SELECT i, printf('owner number %d of the table', i) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900000)
INSERT INTO item
SELECT i, i * 7919 % 20000 + 1, printf('item %d costs its owner something', i * 31), i % 977 FROM n;
CREATE INDEX item_owner ON item(owner, price);
SELECT count(*), sum(length(item.name) * price), sum(owner.id % 101 * price), max(owner.name)
FROM item JOIN owner ON owner.id = item.owner WHERE price > 100;
SELECT sum((total * 31 + id) % 1000003) FROM (
  SELECT owner.id AS id, sum(price) AS total FROM owner JOIN item ON item.owner = owner.id
  GROUP BY owner.name, owner.id ORDER BY total, owner.id);
";

/// D 69 MiB, r 2.5, B 24 MiB and a swap file.
#[test]
fn sqlite_joins_in_memory() {
    if !has("sqlite_joins_in_memory", "sqlite3") {
        return;
    }
    let paged = Job::new("sqlite3", &["-batch", ":memory:"])
        .stdin(SQL)
        .compare(&Vswap::ram("24M").swap("1G"));
    paged.stats().assert_swapped();
}

/// D 96 MiB, r about 13, B 24 MiB.
#[test]
fn threads_write_and_verify_at_random() {
    let paged = Job::c("threads", &["96", "4", "1"]).compare(&Vswap::ram("24M"));
    paged.stats().assert_swapped();
}

/// Several processes share one budget. D 113 MiB (the sort), r 2.3, B 48 MiB and a swap file.
#[test]
fn pipelines_of_a_shell() {
    let lines = if long() { 5_000_000 } else { 1_500_000 };
    let script = format!(
        "seq 1 {lines} | awk '{{ print $1 * 7919 % {lines}, $1 }}' | sort -S 1G -n \
         | awk '{{ s = (s * 31 + $1 + $2) % 1000003 }} END {{ print NR, s }}' | tee /dev/stderr | md5sum"
    );
    let paged = Job::new("sh", &["-c", &script]).compare(&Vswap::ram("48M").swap("1G"));
    paged.stats().assert_swapped();
}
