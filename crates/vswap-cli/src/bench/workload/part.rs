//! What one thread of the measured program does.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::super::contents::{Contents, PAGE_BYTES, PARTS, Random, WrongBytes};
use super::churn::Churn;
use super::forked::in_child;
use super::latency::Latencies;
use super::memory::Memory;
use super::programs::{self, Program, Ran};
use super::zipf::{Zipf, random_cycle};
use super::{Phase, WorkError};

/// The clock takes some 25 ns to read, twice for each access that is timed by itself. Those of one in
/// eight add 6 ns to the mean, and are enough for a p99.9.
const ACCESSES_PER_SAMPLE: usize = 8;

/// Random pages looked at for each that is to be read, at most: most of them are in memory then.
const LOOKS_PER_READ: usize = 64;

/// What all threads share.
pub struct Plan {
    /// What the pages hold.
    pub contents: Contents,
    /// In the order in which they run.
    pub phases: Vec<Phase>,
    /// Per thread and random phase.
    pub accesses: usize,
    /// Threads that run this plan.
    pub threads: usize,
    /// Where programs write.
    pub scratch: PathBuf,
    /// What a kernel is built of.
    pub kernel_source: Option<PathBuf>,
}

impl Plan {
    /// Accesses, or pages, of one thread that has so many pages.
    pub fn accesses_in(&self, phase: Phase, pages: usize) -> usize {
        match phase {
            Phase::Churn => self.accesses,
            phase if phase.is_random() => self.accesses,
            _ => pages,
        }
    }

    /// Pages and accesses of all phases and threads, and the unmeasured checks; of each program one.
    pub fn all_accesses(&self, pages: usize) -> usize {
        let (programs, patterns): (Vec<_>, Vec<_>) =
            self.phases.iter().copied().partition(|phase| phase.is_program());
        if patterns.is_empty() {
            return programs.len();
        }
        let accesses: usize = patterns.iter().map(|&phase| self.accesses_in(phase, pages)).sum();
        (accesses + self.unmeasured_accesses(pages)) * self.threads + programs.len()
    }

    /// Those that no phase counts: every page is checked once, and so is every block after it was
    /// filled.
    fn unmeasured_accesses(&self, pages: usize) -> usize {
        let churns = self.phases.contains(&Phase::Churn);
        pages + if churns { 2 * churned_bytes(pages) / PAGE_BYTES } else { 0 }
    }
}

/// The allocator holds more than it gave out, so blocks get less than pages did.
fn churned_bytes(pages: usize) -> usize {
    pages * PAGE_BYTES / 4 * 3
}

/// A phase that ran.
#[derive(Debug)]
pub struct Timed {
    /// Which one.
    pub phase: Phase,
    /// Wall time.
    pub time: Duration,
    /// How many accesses a program says that was.
    pub accesses: Option<usize>,
    /// Of one access in eight, in the random phases.
    pub latencies: Option<Latencies>,
}

impl Timed {
    /// Adds those of another thread.
    pub fn add_latencies(&mut self, other: &Self) {
        if let (Some(sum), Some(other)) = (&mut self.latencies, &other.latencies) {
            sum.add(other);
        }
    }
}

/// A thread's part of the memory, with what it last wrote to each page.
pub struct Part {
    memory: Memory,
    generations: Vec<u16>,
    thread: usize,
    /// Number of the first page in the whole memory.
    first: u64,
    /// Of the running phase.
    latencies: Option<Latencies>,
    /// Chooses pages that are not in memory, others each time.
    missing: Random,
    /// What the program of the running phase took.
    ran: Option<Ran>,
}

/// A phase with what it needs, made before its time starts.
pub enum Work {
    Fill,
    OrderedRead,
    RandomRead,
    RandomWrite,
    /// So many of ten accesses write.
    Zipf(Zipf, usize),
    Chase(Vec<u32>),
    ForkReread,
    Free,
    Churn(Churn),
    Program(Phase),
}

impl Part {
    /// The part of the thread of this number; all are equally large.
    pub fn new(memory: Memory, thread: usize) -> Self {
        let pages = memory.len();
        let (generations, first) = (vec![0; pages], (thread * pages) as u64);
        let missing = Random::new(0x5EED_0008 ^ first);
        Self { memory, generations, thread, first, latencies: None, missing, ran: None }
    }

    /// Runs the phases in step with the other threads, then checks every byte, unmeasured.
    ///
    /// A thread that found wrong bytes still takes part in the barriers, or the others would
    /// wait for it for ever.
    pub fn work(mut self, plan: &Plan, barrier: &Barrier) -> Result<Vec<Timed>, WorkError> {
        if plan.phases.iter().all(|phase| phase.is_program()) {
            // Nobody fills it, so nobody can check it.
            drop(std::mem::take(&mut self.memory));
        }
        let mut times = Vec::with_capacity(plan.phases.len());
        let mut result = Ok(());
        for &phase in &plan.phases {
            let prepared = result.and_then(|()| self.prepare(plan, phase));
            barrier.wait();
            let start = Instant::now();
            let done = prepared.and_then(|mut work| self.perform(plan, &mut work).map(|()| work));
            barrier.wait();
            times.push(self.timed(phase, start));
            result = done.and_then(|work| match work {
                Work::Churn(churn) => Ok(churn.check(&plan.contents)?),
                _ => Ok(()),
            });
        }
        result.and_then(|()| Ok(self.check_all(plan)?)).map(|()| times)
    }

    /// Runs one phase by itself; gives what it leaves behind, too.
    ///
    /// # Errors
    /// Wrong bytes, or no child or program could be had.
    pub fn step(&mut self, plan: &Plan, phase: Phase) -> Result<(Timed, Work), WorkError> {
        let mut work = self.prepare(plan, phase)?;
        let start = Instant::now();
        self.perform(plan, &mut work)?;
        Ok((self.timed(phase, start), work))
    }

    /// A program times itself.
    fn timed(&mut self, phase: Phase, start: Instant) -> Timed {
        match self.ran.take() {
            Some(Ran { time, accesses, latencies }) => {
                Timed { phase, time, accesses: Some(accesses), latencies }
            }
            None => {
                let (time, latencies) = (start.elapsed(), self.latencies.take());
                Timed { phase, time, accesses: None, latencies }
            }
        }
    }

    /// Reads as many random pages as a random phase does, of those alone that are not in memory.
    ///
    /// # Errors
    /// Wrong bytes.
    pub fn read_missing(&mut self, plan: &Plan) -> Result<Timed, WorkError> {
        let (mut latencies, mut time) = (Latencies::default(), Duration::ZERO);
        for _ in 0..plan.accesses * LOOKS_PER_READ {
            let page = self.missing.below(self.memory.len());
            if self.memory.is_resident(page) {
                continue;
            }
            let start = Instant::now();
            self.read(plan, page, 0)?;
            let elapsed = start.elapsed();
            time += elapsed;
            latencies.record(elapsed.as_nanos() as u64);
            if latencies.count() == plan.accesses as u64 {
                break;
            }
        }
        let accesses = Some(latencies.count() as usize);
        Ok(Timed { phase: Phase::RandomRead, time, accesses, latencies: Some(latencies) })
    }

    fn prepare(&mut self, plan: &Plan, phase: Phase) -> Result<Work, WorkError> {
        let pages = self.generations.len();
        Ok(match phase {
            Phase::Fill => Work::Fill,
            Phase::OrderedRead => Work::OrderedRead,
            Phase::RandomRead => Work::RandomRead,
            Phase::RandomWrite => Work::RandomWrite,
            Phase::ZipfRead => Work::Zipf(Zipf::new(pages), 0),
            Phase::Mix9010 => Work::Zipf(Zipf::new(pages), 1),
            Phase::PointerChase => Work::Chase(random_cycle(pages, &mut self.random(5))),
            Phase::ForkReread => Work::ForkReread,
            Phase::Free => {
                // Afterwards there is nothing left to check.
                self.check_all(plan)?;
                Work::Free
            }
            Phase::Churn => {
                self.check_all(plan)?;
                drop(std::mem::take(&mut self.memory));
                Work::Churn(Churn::new(&plan.contents, churned_bytes(pages), self.thread))
            }
            phase => {
                debug_assert!(phase.is_program());
                self.check_all(plan)?;
                drop(std::mem::take(&mut self.memory));
                Work::Program(phase)
            }
        })
    }

    fn perform(&mut self, plan: &Plan, work: &mut Work) -> Result<(), WorkError> {
        let pages = self.memory.len();
        match work {
            Work::Fill => self.fill(plan),
            Work::OrderedRead => self.check_all(plan)?,
            Work::RandomRead => self.access(plan, 1, |part, random| {
                part.read(plan, random.below(pages), random.below(PARTS)).map(drop)
            })?,
            Work::RandomWrite => {
                self.access(plan, 2, |part, random| part.write(plan, random.below(pages)))?;
            }
            Work::Zipf(zipf, writes) => self.access(plan, 3, |part, random| {
                let page = zipf.next(random);
                if random.below(10) < *writes {
                    part.write(plan, page)
                } else {
                    part.read(plan, page, random.below(PARTS)).map(drop)
                }
            })?,
            Work::Chase(next) => {
                let mut page = 0;
                self.access(plan, 4, |part, _| {
                    let word = part.read(plan, page, 0)?;
                    // Nothing is added, but neither the compiler nor the CPU can know that before
                    // the word is there.
                    page = next[page] as usize + (black_box(word) ^ word) as usize;
                    Ok(())
                })?;
            }
            Work::ForkReread => in_child(|| self.check_all(plan))?,
            Work::Free => drop(std::mem::take(&mut self.memory)),
            Work::Churn(churn) => churn.replace(&plan.contents, plan.accesses)?,
            // The other threads wait; it has its own, if any.
            Work::Program(phase) if self.thread == 0 => {
                self.ran = Some(programs::run(&Program {
                    phase: *phase,
                    bytes: self.generations.len() * PAGE_BYTES * plan.threads,
                    threads: plan.threads,
                    accesses: plan.accesses * plan.threads,
                    contents: &plan.contents,
                    scratch: &plan.scratch,
                    kernel_source: plan.kernel_source.as_deref(),
                })?);
            }
            Work::Program(_) => {}
        }
        Ok(())
    }

    /// The same numbers in every run, others in each thread and for each purpose.
    fn random(&self, purpose: u64) -> Random {
        Random::new(self.first ^ (0x5EED_0000 + purpose))
    }

    fn access(
        &mut self,
        plan: &Plan,
        purpose: u64,
        mut access: impl FnMut(&mut Self, &mut Random) -> Result<(), WrongBytes>,
    ) -> Result<(), WrongBytes> {
        let mut random = self.random(purpose);
        let mut latencies = Latencies::default();
        for index in 0..plan.accesses {
            if index.is_multiple_of(ACCESSES_PER_SAMPLE) {
                let start = Instant::now();
                access(self, &mut random)?;
                latencies.record(start.elapsed().as_nanos() as u64);
            } else {
                access(self, &mut random)?;
            }
        }
        self.latencies = Some(latencies);
        Ok(())
    }

    fn fill(&mut self, plan: &Plan) {
        for (page, number) in self.memory.iter_mut().zip(self.first..) {
            plan.contents.fill(page, number);
        }
    }

    fn read(&self, plan: &Plan, page: usize, part: usize) -> Result<u64, WrongBytes> {
        let number = self.first + page as u64;
        let generation = self.generations[page];
        plan.contents.check_stamp(&self.memory[page], number, generation, part)
    }

    fn write(&mut self, plan: &Plan, page: usize) -> Result<(), WrongBytes> {
        let number = self.first + page as u64;
        let generation = &mut self.generations[page];
        *generation = plan.contents.rewrite(&mut self.memory[page], number, *generation)?;
        Ok(())
    }

    /// Checks every byte of what is left of the memory.
    ///
    /// # Errors
    /// The first wrong one.
    pub fn check_all(&self, plan: &Plan) -> Result<(), WrongBytes> {
        let pages = self.memory.iter().zip(&self.generations).zip(self.first..);
        pages.into_iter().try_for_each(|((page, generation), number)| {
            plan.contents.check(page, number, *generation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::contents::Mix;
    use super::*;

    fn plan() -> Plan {
        Plan {
            contents: Contents::new(Mix::Heap),
            phases: Phase::PATTERNS.to_vec(),
            accesses: 100,
            threads: 1,
            scratch: std::env::temp_dir(),
            kernel_source: None,
        }
    }

    fn part(pages: usize, thread: usize) -> Part {
        Part::new(Memory::map(pages).unwrap(), thread)
    }

    fn run(part: &mut Part, plan: &Plan, phase: Phase) -> Result<(), WorkError> {
        let mut work = part.prepare(plan, phase)?;
        part.perform(plan, &mut work)
    }

    #[test]
    fn every_phase_runs_and_is_timed() {
        let times = part(32, 7).work(&plan(), &Barrier::new(1)).unwrap();
        assert_eq!(times.iter().map(|timed| timed.phase).collect::<Vec<_>>(), Phase::PATTERNS);
        let sampled = times.iter().filter(|timed| timed.latencies.is_some());
        let random = Phase::PATTERNS.into_iter().filter(|phase| phase.is_random());
        assert!(sampled.map(|timed| timed.phase).eq(random));
    }

    #[test]
    fn only_pages_that_are_out_are_read_as_missing() {
        let mut part = part(16, 0);
        run(&mut part, &plan(), Phase::Fill).unwrap();
        let read = part.read_missing(&plan()).unwrap();
        assert_eq!(read.latencies.unwrap().count(), 0, "all are in memory");
        drop(std::mem::replace(&mut part.memory, Memory::map(16).unwrap()));
        part.read_missing(&plan()).unwrap_err();
    }

    #[test]
    fn programs_run_without_a_fill() {
        let plan = Plan { phases: vec![Phase::Sort], ..plan() };
        let times = part(64, 0).work(&plan, &Barrier::new(1)).unwrap();
        assert_eq!(times.len(), 1);
    }

    #[test]
    fn every_phase_runs_on_every_mix() {
        for mix in [Mix::Text, Mix::Mixed, Mix::Random] {
            let plan = Plan { contents: Contents::new(mix), ..plan() };
            part(64, 0).work(&plan, &Barrier::new(1)).unwrap();
        }
    }

    #[test]
    fn a_lost_write_is_found_by_each_phase_that_reads() {
        for phase in Phase::PATTERNS.into_iter().filter(|phase| *phase != Phase::Fill) {
            let mut part = part(8, 0);
            run(&mut part, &plan(), Phase::Fill).unwrap();
            let older = part.memory[3];
            run(&mut part, &plan(), Phase::RandomWrite).unwrap();
            part.memory[3] = older;
            run(&mut part, &plan(), phase).unwrap_err();
        }
    }

    #[test]
    fn a_pointer_chase_reads_every_page() {
        let mut part = part(50, 0);
        let plan = Plan { accesses: 50, ..plan() };
        run(&mut part, &plan, Phase::Fill).unwrap();
        for page in 0..50 {
            part.memory[page][0] ^= 1;
            run(&mut part, &plan, Phase::PointerChase).unwrap_err();
            part.memory[page][0] ^= 1;
        }
    }

    #[test]
    fn only_the_mix_writes_and_writes_one_time_in_ten() {
        for (phase, expected) in [(Phase::ZipfRead, 0..1), (Phase::Mix9010, 900..1100)] {
            let mut part = part(64, 0);
            let plan = Plan { accesses: 10_000, ..plan() };
            run(&mut part, &plan, Phase::Fill).unwrap();
            run(&mut part, &plan, phase).unwrap();
            let writes: u32 =
                part.generations.iter().map(|&generation| u32::from(generation)).sum();
            assert!(expected.contains(&writes), "{phase:?}: {writes}");
        }
    }

    #[test]
    fn a_thread_that_found_wrong_bytes_does_not_hang_the_others() {
        let barrier = Barrier::new(2);
        let bad_plan = Plan { phases: vec![Phase::OrderedRead, Phase::RandomRead], ..plan() };
        let good_plan = Plan { phases: vec![Phase::Fill, Phase::RandomRead], ..plan() };
        std::thread::scope(|scope| {
            let bad = scope.spawn(|| part(4, 0).work(&bad_plan, &barrier));
            part(4, 1).work(&good_plan, &barrier).unwrap();
            bad.join().unwrap().unwrap_err();
        });
    }
}
