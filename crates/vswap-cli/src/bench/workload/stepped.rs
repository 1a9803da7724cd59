//! The measured program, one step at a time.
//!
//! It does what it reads from its standard input, a word a line, says what that took, and waits for
//! the next. So the bench can look at a run between two steps. At the end of the input it checks
//! every byte.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use super::super::contents::{Contents, PAGE_BYTES};
use super::memory::Memory;
use super::part::{Part, Plan};
use super::{Args, Latencies, Phase, print};

/// Longest word on the input.
const WORD_MAX: usize = 32;

const READ_MISSING: &str = "read-missing";

/// What the program is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A phase by itself.
    Phase(Phase),
    /// Reads of random pages that are not in memory, each timed.
    ReadMissing,
}

impl Step {
    /// The word for it.
    pub fn word(self) -> String {
        match self {
            Self::Phase(phase) => phase.argument(),
            Self::ReadMissing => READ_MISSING.into(),
        }
    }

    fn of_word(word: &str) -> anyhow::Result<Self> {
        if word == READ_MISSING {
            return Ok(Self::ReadMissing);
        }
        match Phase::from_str(word, false) {
            Ok(phase) => Ok(Self::Phase(phase)),
            Err(error) => bail!("{word:?} is no step: {error}"),
        }
    }
}

/// What a step took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// All of it.
    pub ns: u64,
    /// Pages or accesses.
    pub accesses: u64,
    /// Of single accesses, where some are timed.
    pub latencies: Option<Latencies>,
}

impl Done {
    /// Mean time of a page or access.
    pub fn ns_per_access(&self) -> f64 {
        self.ns as f64 / self.accesses.max(1) as f64
    }
}

/// Takes steps until there are no more, then checks every byte.
///
/// # Errors
/// Memory that cannot be had, a page that held the wrong bytes, or a word that is no step.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let pages = args.bytes / PAGE_BYTES;
    let plan = Plan {
        contents: Contents::new(args.contents),
        phases: Vec::new(),
        accesses: args.accesses.unwrap_or(pages),
        threads: 1,
        scratch: args.scratch.clone(),
        kernel_source: args.kernel_source.clone(),
    };
    let memory = Memory::map(pages).with_context(|| format!("mapping {} bytes", args.bytes))?;
    let mut part = Part::new(memory, 0);
    // What a step leaves behind stays until the next, so that somebody can look at it.
    let mut _left = None;
    while let Some(step) = next_step()? {
        let timed = match step {
            Step::Phase(phase) => {
                let (timed, left) = part.step(&plan, phase)?;
                _left = Some(left);
                timed
            }
            Step::ReadMissing => part.read_missing(&plan)?,
        };
        let accesses =
            timed.accesses.unwrap_or_else(|| plan.accesses_in(timed.phase, pages)) as u64;
        let ns = timed.time.as_nanos() as u64;
        print(&Done { ns, accesses, latencies: timed.latencies })?;
    }
    Ok(part.check_all(&plan)?)
}

/// Read to the stack, which no engine swaps out.
fn next_step() -> anyhow::Result<Option<Step>> {
    let stdin = std::io::stdin();
    let mut word = [0; WORD_MAX];
    for len in 0..WORD_MAX {
        let byte = &mut word[len..=len];
        if rustix::io::read(stdin.as_fd(), &mut *byte)? == 0 {
            return Ok(None);
        }
        if byte == b"\n" {
            return Step::of_word(str::from_utf8(&word[..len])?).map(Some);
        }
    }
    bail!("a step of more than {WORD_MAX} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_understood_by_its_word() {
        let steps = Phase::all().map(Step::Phase).chain([Step::ReadMissing]);
        for step in steps {
            assert_eq!(Step::of_word(&step.word()).unwrap(), step);
            assert!(step.word().len() < WORD_MAX);
        }
        Step::of_word("sleep").unwrap_err();
    }
}
