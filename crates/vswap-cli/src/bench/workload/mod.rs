//! The measured program: it fills memory of its own, accesses it in several patterns ([`Phase`]),
//! and checks what it reads. It knows nothing of vswap, cgroups or swap, and is run unchanged under
//! every peer.
//!
//! It has to run under inline faults too, where a system call on a swapped-out buffer fails. So
//! between `mmap` and the end no system call is handed a pointer into the memory or the heap, the
//! barrier that the threads sleep on lies on the main thread's stack, and the result is written
//! from there.

mod churn;
mod forked;
mod latency;
mod memory;
mod part;
mod phase;
mod programs;
pub mod stepped;
mod zipf;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Barrier;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub use self::forked::FORKS;
pub use self::latency::Latencies;
pub use self::memory::Memory;
use self::part::{Part, Plan, Timed};
pub use self::phase::Phase;
pub use self::programs::needs;
use super::contents::{Contents, Mix, PAGE_BYTES, WrongBytes};

/// Options of the workload. Sizes are plain bytes: only the bench calls it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Bytes to touch.
    #[arg(long)]
    bytes: usize,
    /// Threads, each with its own part of the memory.
    #[arg(long)]
    threads: usize,
    /// Accesses of each random phase, all threads together; by default as many as there are pages.
    #[arg(long)]
    accesses: Option<usize>,
    /// What the memory holds.
    #[arg(long, value_enum, default_value_t = Mix::Heap)]
    contents: Mix,
    /// Phases to run; the fill always runs first.
    #[arg(long, value_delimiter = ',', default_values_t = Phase::BASIC, value_enum)]
    phases: Vec<Phase>,
    /// Do one thing after the other as asked for on standard input, with one thread.
    #[arg(long)]
    stepped: bool,
    /// A directory for what whole programs write.
    #[arg(long, default_value = "/var/tmp")]
    scratch: PathBuf,
    /// An unpacked kernel.
    #[arg(long)]
    kernel_source: Option<PathBuf>,
}

/// What one phase took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The pattern.
    pub phase: Phase,
    /// Wall time divided by the pages or accesses of all threads.
    pub ns: f64,
    /// Of some of its accesses, if it is a random one.
    pub latencies: Option<Latencies>,
}

/// What a run of the workload prints, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// The phases in the order in which they ran.
    pub phases: Vec<PhaseTime>,
    /// Pages and accesses of all of them, and those of the checks that are not timed.
    pub accesses: u64,
}

/// Why the workload failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Memory did not hold what was written to it.
    #[error(transparent)]
    Wrong(#[from] WrongBytes),
    /// No child could be had.
    #[error("forking: {0}")]
    Fork(#[source] std::io::Error),
    /// A child did not end well.
    #[error("a forked child found wrong bytes or died (wait status {0:#x})")]
    Child(i32),
    /// A whole program failed.
    #[error("{0}: {1}")]
    Program(&'static str, #[source] std::io::Error),
}

/// Runs the workload and prints its [`Output`].
///
/// # Errors
/// Memory that cannot be had, or a page that held the wrong bytes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.stepped {
        return stepped::run(args);
    }
    ensure!(args.threads > 0, "at least one thread is needed");
    let pages = args.bytes / PAGE_BYTES / args.threads;
    ensure!(pages > 0, "fewer than one page per thread");
    let plan = Plan {
        contents: Contents::new(args.contents),
        phases: Phase::in_order(&args.phases),
        accesses: args.accesses.map_or(pages, |accesses| accesses / args.threads),
        threads: args.threads,
        scratch: args.scratch.clone(),
        kernel_source: args.kernel_source.clone(),
    };
    let parts: Vec<_> = (0..args.threads)
        .map(|thread| Ok(Part::new(Memory::map(pages)?, thread)))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("mapping {} bytes", args.bytes))?;
    let barrier = Barrier::new(args.threads);
    let times = std::thread::scope(|scope| {
        let workers: Vec<_> =
            parts.into_iter().map(|part| scope.spawn(|| part.work(&plan, &barrier))).collect();
        let mut results = workers.into_iter().map(|worker| worker.join().expect("no panics"));
        // All threads pass the same barriers, so the first one's times are everybody's.
        let mut times = results.next().expect("there is a thread")?;
        for other in results {
            for (sum, other) in times.iter_mut().zip(other?) {
                sum.add_latencies(&other);
            }
        }
        Ok::<_, WorkError>(times)
    })?;
    let phases = times
        .into_iter()
        .map(|Timed { phase, time, accesses, latencies }| {
            let accesses =
                accesses.unwrap_or_else(|| plan.accesses_in(phase, pages) * args.threads);
            PhaseTime { phase, ns: time.as_nanos() as f64 / accesses as f64, latencies }
        })
        .collect();
    let accesses = plan.all_accesses(pages) as u64;
    print(&Output { phases, accesses })
}

/// Prints from a buffer on the stack, which no engine swaps out.
fn print(output: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(output)?;
    line.push(b'\n');
    let stdout = std::io::stdout();
    for part in line.chunks(1024) {
        let mut buffer = [0u8; 1024];
        buffer[..part.len()].copy_from_slice(part);
        let mut text = &buffer[..part.len()];
        while !text.is_empty() {
            let written = rustix::io::write(stdout.as_fd(), text)?;
            text = &text[written..];
        }
    }
    Ok(())
}
