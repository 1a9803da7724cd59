//! Parallel builds with make: a C project that is generated, and the kernel.
//!
//! What a compiler takes decides whether a build swaps. So one source in eight is so large that two
//! compilers that work on such take the memory that was asked for, and those come in pairs; the others
//! are small, as most are.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Program, Ran, expect};

/// Compilers at a time.
const JOBS: &str = "-j2";
/// Sources of the generated project, besides the one with `main`.
const SOURCES: usize = 112;
/// Pairs of large ones among them: one in so many.
const PAIR_IN: usize = 16;
/// Lines of a small source.
const FEW_LINES: usize = 60;
/// What cc1 takes without any source, and for a line of one, as measured with gcc 12.2 at -O0.
const COMPILER_BYTES: usize = 24 << 20;
const COMPILER_BYTES_PER_LINE: usize = 44 << 10;

/// The file by which a project is known to be whole, and the bytes that it was made for.
const WHOLE: &str = "made-for";

/// Builds the generated project and runs what came of it.
pub fn project(program: &Program<'_>) -> io::Result<Ran> {
    let directory = program.scratch.join("project");
    let made_for = program.bytes.to_string();
    if fs::read_to_string(directory.join(WHOLE)).ok().as_deref() != Some(made_for.as_str()) {
        generate(&directory, large_lines(program.bytes))?;
        fs::write(directory.join(WHOLE), made_for)?;
    }
    let objects = Objects::make(program.scratch)?;
    let mut make = Command::new("make");
    make.args(["-s", JOBS, "-C"]).arg(&directory);
    make.arg(format!("OUT={}", objects.0.display()));
    let start = Instant::now();
    expect(make, "")?;
    let time = start.elapsed();
    let built = Command::new(objects.0.join("program"));
    expect(built, &format!("{}\n", (0..SOURCES).sum::<usize>()))?;
    Ok(Ran { time, accesses: 1, latencies: None })
}

/// Builds an unpacked kernel's smallest configuration, beside its sources.
pub fn kernel(program: &Program<'_>) -> io::Result<Ran> {
    let source = program
        .kernel_source
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no kernel source was given"))?;
    let objects = Objects::make(program.scratch)?;
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.args(["-s", JOBS, "-C"]).arg(source);
        make.arg(format!("O={}", objects.0.display())).arg(target);
        // What it says of itself is no part of the bench's output.
        make.stdin(Stdio::null()).stdout(Stdio::null()).status()
    };
    let succeeded = |target| match make(target)? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("make {target} ended with {status}"))),
    };
    succeeded("tinyconfig")?;
    let start = Instant::now();
    succeeded("vmlinux")?;
    Ok(Ran { time: start.elapsed(), accesses: 1, latencies: None })
}

/// With so many lines two compilers take so many bytes.
fn large_lines(bytes: usize) -> usize {
    ((bytes / 2).saturating_sub(COMPILER_BYTES) / COMPILER_BYTES_PER_LINE).max(FEW_LINES)
}

fn generate(directory: &Path, large: usize) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut main = String::from("#include <stdio.h>\n");
    let mut calls = String::from("0");
    for number in 0..SOURCES {
        let lines = if number % PAIR_IN < 2 { large } else { FEW_LINES };
        fs::write(directory.join(format!("part{number}.c")), source(number, lines))?;
        let _ = writeln!(main, "int part{number}(int *p, int n);");
        let _ = write!(calls, " + part{number}(0, 0)");
    }
    let _ = writeln!(main, "int main(void) {{ printf(\"%d\\n\", {calls}); return 0; }}");
    fs::write(directory.join("main.c"), main)?;
    let parts: Vec<_> = (0..SOURCES).map(|number| format!("$(OUT)/part{number}.o")).collect();
    let makefile = format!(
        "$(OUT)/program: $(OUT)/main.o {}\n\tcc -o $@ $^\n\
         $(OUT)/%.o: %.c\n\tcc -pipe -O0 -c -o $@ $<\n",
        parts.join(" ")
    );
    fs::write(directory.join("Makefile"), makefile)
}

/// A function of branches that depend on each other, which gives its number when it is asked for nothing.
fn source(number: usize, lines: usize) -> String {
    let mut text =
        format!("int part{number}(int *p, int n) {{\nint s = {number};\nif (!p) return s;\n");
    for line in 0..lines {
        let (add, factor) = (line + 1, (line * 7 + number) % 1000 + 3);
        let _ = writeln!(
            text,
            "if (p[{line}] > s) {{ s += p[{add}] * {factor}; p[{line}] = s; }} else s ^= p[n + {line}];"
        );
    }
    text.push_str("return s;\n}\n");
    text
}

/// A directory for what a build makes, removed when dropped.
struct Objects(PathBuf);

impl Objects {
    fn make(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join(format!("objects-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // What is left is the bench's to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_large_sources_take_what_was_asked_for() {
        let taken = 2 * (COMPILER_BYTES + large_lines(512 << 20) * COMPILER_BYTES_PER_LINE);
        assert!((500 << 20..=512 << 20).contains(&taken), "{taken}");
        assert_eq!(large_lines(0), FEW_LINES);
    }

    #[test]
    fn large_sources_are_compiled_two_at_a_time() {
        let large: Vec<_> = (0..SOURCES).filter(|number| number % PAIR_IN < 2).collect();
        assert_eq!(large.len(), SOURCES / 8);
        assert!(large.chunks(2).all(|pair| pair[1] == pair[0] + 1));
        assert!(source(3, 100).lines().count() > 100);
    }
}
