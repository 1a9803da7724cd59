//! The measured program: it fills memory of its own, reads and writes it in four patterns, and
//! checks what it reads. It knows nothing of vswap, cgroups or swap, and is run unchanged under
//! every peer.
//!
//! It has to run under inline faults too, where a system call on a swapped-out buffer fails. So
//! between `mmap` and the end no system call is handed a pointer into the buffer, the barrier
//! that the threads sleep on lies on the main thread's stack, and the result is written from there.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::contents::{
    Contents, PAGE_BYTES, PARTS, Page, Random, WrongBytes, check_stamp, rewrite,
};

/// One access pattern, measured by itself.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The first touch of every page, in order, writing all of it.
    Fill,
    /// Every byte of every page is read, in order.
    OrderedRead,
    /// One word of a random page is read.
    RandomRead,
    /// A random page is read and written in eight places.
    RandomWrite,
}

impl Phase {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Fill, Self::OrderedRead, Self::RandomRead, Self::RandomWrite];

    /// Name on the command line.
    pub fn argument(self) -> String {
        self.title().replace(' ', "-")
    }

    /// Name for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::OrderedRead => "ordered read",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
        }
    }
}

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
    /// Phases to run; the fill always runs first.
    #[arg(long, value_delimiter = ',', default_values_t = Phase::ALL, value_enum)]
    phases: Vec<Phase>,
}

/// What one phase took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The pattern.
    pub phase: Phase,
    /// Wall time divided by the pages or accesses of all threads.
    pub ns: f64,
}

/// What a run of the workload prints, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// The phases in the order in which they ran.
    pub phases: Vec<PhaseTime>,
}

/// Runs the workload and prints its [`Output`].
///
/// # Errors
/// Memory that cannot be had, or a page that held the wrong bytes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "at least one thread is needed");
    let pages_per_thread = args.bytes / PAGE_BYTES / args.threads;
    ensure!(pages_per_thread > 0, "fewer than one page per thread");
    let pages = map_pages(pages_per_thread * args.threads)?;
    let plan = Plan {
        contents: Contents::new(),
        phases: Phase::ALL
            .into_iter()
            .filter(|phase| *phase == Phase::Fill || args.phases.contains(phase))
            .collect(),
        accesses: args.accesses.unwrap_or(pages.len()) / args.threads,
    };
    let barrier = Barrier::new(args.threads);
    let times = std::thread::scope(|scope| {
        let parts = pages.chunks_exact_mut(pages_per_thread).enumerate();
        let workers: Vec<_> = parts
            .map(|(thread, pages)| Part::new(pages, thread * pages_per_thread))
            .map(|part| scope.spawn(|| part.work(&plan, &barrier)))
            .collect();
        let mut results = workers.into_iter().map(|worker| worker.join().expect("no panics"));
        // All threads pass the same barriers, so the first one's times are everybody's.
        let times = results.next().expect("there is a thread")?;
        results.try_for_each(|other| other.map(drop))?;
        Ok::<_, WrongBytes>(times)
    })?;
    let units = |phase| match phase {
        Phase::Fill | Phase::OrderedRead => pages_per_thread * args.threads,
        Phase::RandomRead | Phase::RandomWrite => plan.accesses * args.threads,
    };
    let phases = times
        .into_iter()
        .map(|(phase, time)| PhaseTime { phase, ns: time.as_nanos() as f64 / units(phase) as f64 })
        .collect();
    print(&Output { phases })
}

/// Anonymous memory as libc's `mmap` gives it, huge pages and all, for the rest of the process's
/// life.
fn map_pages(count: usize) -> anyhow::Result<&'static mut [Page]> {
    let bytes = count * PAGE_BYTES;
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("mapping {bytes} bytes"));
    }
    // SAFETY: the mapping is `count` pages long, aligned to a page, reads as zeros, which are
    // valid words, is never unmapped, and this is the only reference to it.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast::<Page>(), count) })
}

/// Prints from a buffer on the stack, which no engine swaps out.
fn print(output: &Output) -> anyhow::Result<()> {
    let mut line = [0u8; 1024];
    let mut rest = &mut line[..];
    serde_json::to_writer(&mut rest, output)?;
    rest.write_all(b"\n")?;
    let unused = rest.len();
    let mut text = &line[..line.len() - unused];
    let stdout = std::io::stdout();
    while !text.is_empty() {
        let written = rustix::io::write(stdout.as_fd(), text)?;
        text = &text[written..];
    }
    Ok(())
}

/// What all threads share.
struct Plan {
    contents: Contents,
    phases: Vec<Phase>,
    /// Per thread and random phase.
    accesses: usize,
}

/// A thread's part of the memory, with what it last wrote to each page.
struct Part<'a> {
    pages: &'a mut [Page],
    generations: Vec<u16>,
    /// Number of the first page in the whole memory.
    first: u64,
}

impl<'a> Part<'a> {
    fn new(pages: &'a mut [Page], first: usize) -> Self {
        Self { generations: vec![0; pages.len()], pages, first: first as u64 }
    }

    /// Runs the phases in step with the other threads, then checks every byte, unmeasured.
    ///
    /// A thread that found wrong bytes still takes part in the barriers, or the others would
    /// wait for it for ever.
    fn work(
        mut self,
        plan: &Plan,
        barrier: &Barrier,
    ) -> Result<Vec<(Phase, Duration)>, WrongBytes> {
        let mut times = Vec::with_capacity(plan.phases.len());
        let mut result = Ok(());
        for &phase in &plan.phases {
            barrier.wait();
            let start = Instant::now();
            if result.is_ok() {
                result = self.access(plan, phase);
            }
            barrier.wait();
            times.push((phase, start.elapsed()));
        }
        result.and_then(|()| self.check_all(plan)).map(|()| times)
    }

    fn access(&mut self, plan: &Plan, phase: Phase) -> Result<(), WrongBytes> {
        match phase {
            Phase::Fill => {
                for (page, number) in self.pages.iter_mut().zip(self.first..) {
                    plan.contents.fill(page, number);
                }
                Ok(())
            }
            Phase::OrderedRead => self.check_all(plan),
            Phase::RandomRead => {
                let mut random = Random::new(self.first ^ 0x5EED_0001);
                (0..plan.accesses).try_for_each(|_| {
                    let index = random.below(self.pages.len());
                    let (number, part) = (self.first + index as u64, random.below(PARTS));
                    check_stamp(&self.pages[index], number, self.generations[index], part)
                })
            }
            Phase::RandomWrite => {
                let mut random = Random::new(self.first ^ 0x5EED_0002);
                (0..plan.accesses).try_for_each(|_| {
                    let index = random.below(self.pages.len());
                    let generation = &mut self.generations[index];
                    let number = self.first + index as u64;
                    *generation = rewrite(&mut self.pages[index], number, *generation)?;
                    Ok(())
                })
            }
        }
    }

    fn check_all(&self, plan: &Plan) -> Result<(), WrongBytes> {
        let pages = self.pages.iter().zip(&self.generations).zip(self.first..);
        pages.into_iter().try_for_each(|((page, generation), number)| {
            plan.contents.check(page, number, *generation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { contents: Contents::new(), phases: Phase::ALL.to_vec(), accesses: 100 }
    }

    #[test]
    fn every_phase_runs_and_is_timed() {
        let mut pages = vec![[0; PAGE_BYTES / 8]; 32];
        let times = Part::new(&mut pages, 7).work(&plan(), &Barrier::new(1)).unwrap();
        assert_eq!(times.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), Phase::ALL);
    }

    #[test]
    fn a_lost_write_is_found_by_each_reading_phase() {
        for phase in [Phase::OrderedRead, Phase::RandomRead, Phase::RandomWrite] {
            let mut pages = vec![[0; PAGE_BYTES / 8]; 8];
            let mut part = Part::new(&mut pages, 0);
            part.access(&plan(), Phase::Fill).unwrap();
            let older = part.pages[3];
            part.access(&plan(), Phase::RandomWrite).unwrap();
            part.pages[3] = older;
            part.access(&plan(), phase).unwrap_err();
        }
    }

    #[test]
    fn a_thread_that_found_wrong_bytes_does_not_hang_the_others() {
        let (mut pages, mut others) = (vec![[0; PAGE_BYTES / 8]; 4], vec![[0; PAGE_BYTES / 8]; 4]);
        let barrier = Barrier::new(2);
        let bad_plan = Plan { phases: vec![Phase::OrderedRead, Phase::RandomRead], ..plan() };
        let good_plan = Plan { phases: vec![Phase::Fill, Phase::RandomRead], ..plan() };
        std::thread::scope(|scope| {
            let (bad, good) = (Part::new(&mut pages, 0), Part::new(&mut others, 4));
            let bad = scope.spawn(|| bad.work(&bad_plan, &barrier));
            good.work(&good_plan, &barrier).unwrap();
            bad.join().unwrap().unwrap_err();
        });
    }
}
