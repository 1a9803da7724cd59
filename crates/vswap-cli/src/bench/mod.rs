//! `vswap bench`: vswap beside the kernel's own swap, on the same machine, with the same RAM.
//!
//! A workload of our own ([`workload`]) that knows nothing of its peers runs unchanged without a
//! limit, on the kernel's swap under a memory cgroup, and under `vswap run`. Each limited row gets
//! the same RAM all told ([`mod@calibrate`]). The rounds go through all rows in turn, so that a machine
//! that becomes slower does so for everybody. What the kernel rows change on the machine is put
//! back however the bench ends ([`kernel::guard`]).

mod calibrate;
mod contents;
mod figures;
mod floor;
mod html;
mod instead;
mod kernel;
mod moved;
mod plan;
mod report;
mod rows;
mod scaling;
mod session;
mod tree_cpu;
mod tree_memory;
mod workload;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum as _};

use self::calibrate::{Calibration, calibrate};
use self::contents::Mix;
use self::figures::Part;
use self::floor::Floor;
use self::instead::Instead;
use self::kernel::cgroup::{Cpus, Hierarchy, Version};
use self::kernel::scratch::Scratch;
use self::kernel::{Journal, KernelError};
use self::plan::Planned;
use self::report::{Absence, Calibrated, Conditions, Report, Run};
use self::rows::{Bench, Row, Setting};
use self::workload::Phase;
use crate::refusal::{Refusal, reason};
use crate::size::Size;

/// The most of a random phase, which is those of the default size.
const ACCESSES: u64 = 64 << 10;
/// The same where many of them read a disk.
const ACCESSES_ON_DISK: u64 = 16 << 10;

/// What to compare, and how often.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Memory that the workload touches
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    size: Size,
    /// RAM of each row, all told
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    ram: Size,
    /// Threads of the workload; several numbers give several tables
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2", value_parser = parse_count)]
    threads: Vec<usize>,
    /// Runs of each row, of which the median is shown; by default 5, or 3 with --scaling, or 1 with --quick
    #[arg(long, value_parser = parse_count)]
    rounds: Option<usize>,
    /// Phases of the workload to run, after the fill; by default all, or the first four with --quick
    #[arg(long, value_name = "PHASE,…", value_delimiter = ',', value_enum)]
    phases: Vec<Phase>,
    #[command(flatten)]
    instead: Instead,
    #[command(flatten)]
    figures: figures::Choice,
    /// Run each row under a quota of so many CPUs (cgroups of version 1; root)
    #[arg(long, value_name = "N")]
    cpus: Option<Cpus>,
    /// Rows to run, by default all but those of vswap on zram, and without the swap file alone with --quick
    #[arg(long, value_delimiter = ',', value_enum)]
    rows: Vec<Row>,
    /// Write the numbers of all rounds to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots to a file, as HTML that any browser opens from there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fewer phases and accesses, and the kernel's read-ahead only where it helps: for a first look
    #[arg(long)]
    quick: bool,
    /// What the workload's memory holds: objects of a heap, text, a mix of both with numbers, zero,
    /// same-filled and random pages, or random bits
    #[arg(long, value_enum, default_value_t = Mix::Heap, hide_possible_values = true, value_name = "heap|text|mixed|random")]
    contents: Mix,
    /// Give each limited row a swap file, for data that does not fit into the RAM compressed
    #[arg(long)]
    swap: bool,
    /// Directory for swap files
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    swap_dir: PathBuf,
    #[command(subcommand)]
    helper: Option<Helper>,
}

/// What the bench starts itself as.
#[derive(Subcommand, Debug)]
enum Helper {
    /// The measured program
    #[command(hide = true)]
    Workload(workload::Args),
    /// The process that puts the machine back
    #[command(hide = true)]
    Guard,
    /// Enter cgroups, then become another program
    #[command(hide = true)]
    Enter {
        /// The groups' cgroup.procs
        #[arg(required = true)]
        procs: Vec<PathBuf>,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

impl Args {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(match (self.quick, self.instead.scaling) {
            (true, _) => 1,
            (false, true) => 3,
            (false, false) => 5,
        })
    }

    /// Of each random phase. A full bench would need an hour for one per page, and with much of the data
    /// on a disk a run would.
    fn accesses(&self) -> u64 {
        let pages = self.size.0 / contents::PAGE_BYTES as u64;
        let most = if self.swap { ACCESSES_ON_DISK } else { ACCESSES };
        (pages / if self.quick { 4 } else { 2 }).clamp(1, most)
    }

    /// That are asked for, installed or not.
    fn programs(&self) -> impl Iterator<Item = Phase> {
        let wanted =
            |phase: &Phase| *phase != Phase::KernelBuild || self.instead.kernel_build.is_some();
        Phase::PROGRAMS.into_iter().filter(wanted)
    }

    fn phases(&self) -> Vec<Phase> {
        if self.instead.programs {
            return self.programs().filter(|&phase| missing(phase).is_none()).collect();
        }
        match (self.phases.as_slice(), self.quick) {
            ([], true) => Phase::BASIC.to_vec(),
            ([], false) => Phase::PATTERNS.to_vec(),
            (phases, _) => Phase::in_order(phases),
        }
    }
}

/// The first that is not installed of what a phase needs; patterns are our own.
fn missing(phase: Phase) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_installed =
        |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    workload::needs(phase).iter().copied().find(|program| !is_installed(program))
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a number from 1 on; write for example 2".into()),
        Ok(count) => Ok(count),
    }
}

/// Runs the bench, or the part of it that the arguments ask for.
///
/// # Errors
/// The bench cannot start, or the machine could not be put back. Rows that fail are reported, and
/// make the exit code 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.helper {
        None => compare(&args),
        Some(Helper::Workload(args)) => workload::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Helper::Guard) => kernel::guard::run().map(|()| ExitCode::SUCCESS),
        Some(Helper::Enter { procs, command }) => enter(&procs, &command),
    }
}

fn enter(groups: &[PathBuf], command: &[OsString]) -> anyhow::Result<ExitCode> {
    for procs in groups {
        fs::write(procs, std::process::id().to_string())
            .with_context(|| format!("entering the cgroup of {}", procs.display()))?;
    }
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    Err(error).with_context(|| format!("running {}", command[0].display()))
}

fn compare(args: &Args) -> anyhow::Result<ExitCode> {
    if args.ram > args.size {
        let what = "--ram is more than --size, so nothing would be swapped";
        return Err(Refusal::usage(what, "give a --size above it").into());
    }
    if args.phases().is_empty() {
        let what = "none of the programs is installed";
        return Err(Refusal::usage(what, "install one, or leave out --programs").into());
    }
    let is_in_ram = args.figures.part().is_none_or(Part::is_in_ram);
    let needs_fit = !args.swap && !args.instead.scaling && is_in_ram;
    if needs_fit && !args.contents.fits(args.size.0, args.ram.0) {
        let what = format!(
            "--size {} of {} does not fit into --ram {} compressed",
            args.size,
            args.contents.argument(),
            args.ram
        );
        return Err(Refusal::usage(what, "give --swap, or less data").into());
    }
    // Before minutes of measuring, not after.
    let create = |option, path: &Option<PathBuf>| {
        path.as_deref().map(|path| create_file(option, path)).transpose()
    };
    let json = create("--json", &args.json)?;
    let html = create("--html", &args.html)?;
    let stop = Arc::new(AtomicUsize::new(0));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register_usize(signal, Arc::clone(&stop), signal as usize)?;
    }
    let program = std::env::current_exe()?;
    let journal = Journal::start(&program, &["bench", "guard"])?;
    let measured = measure(args, program, &journal, &stop);
    journal.finish()?;
    let Some(measured) = measured? else {
        let signal = stop.load(Ordering::Relaxed);
        eprintln!("vswap bench: stopped by signal {signal}; the machine is as it was");
        return Ok(ExitCode::from(128 + signal as u8));
    };
    print!("{}", measured.table);
    if let Some(mut json) = json {
        serde_json::to_writer_pretty(&mut json, &measured.json)?;
        json.write_all(b"\n")?;
    }
    if let (Some(mut file), Some(page)) = (html, measured.html) {
        file.write_all(page.as_bytes())?;
    }
    Ok(if measured.complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a bench puts out.
struct Measured {
    table: String,
    json: serde_json::Value,
    html: Option<String>,
    /// Nothing failed.
    complete: bool,
}

/// Everything that was measured, or `None` if a signal asked to stop.
fn measure(
    args: &Args,
    program: PathBuf,
    journal: &Journal,
    stop: &Arc<AtomicUsize>,
) -> anyhow::Result<Option<Measured>> {
    let scratch =
        args.instead.programs.then(|| Scratch::make(journal, &args.swap_dir)).transpose()?;
    let mut comparison = Comparison::new(args, program, journal, Arc::clone(stop));
    if let (Some(_), Some(reason)) = (args.cpus, &comparison.no_kernel) {
        return Err(Refusal::usage(format!("--cpus: {reason}"), "leave it out").into());
    }
    comparison.bench.scratch = scratch.as_ref().map(|scratch| scratch.path().to_owned());
    if let Some(part) = args.figures.part() {
        let conditions = comparison.conditions();
        let Some(figures) = part.measure(&comparison.bench, journal, conditions) else {
            return Ok(None);
        };
        let (table, json) = (figures.table(), serde_json::to_value(&figures)?);
        let complete = figures.is_complete();
        return Ok(Some(Measured { table, json, html: None, complete }));
    }
    if args.instead.scaling {
        let Some(scaling) = scaling::run(&comparison.bench, comparison.conditions(), &args.rows)
        else {
            return Ok(None);
        };
        let (table, json) = (scaling.table(), serde_json::to_value(&scaling)?);
        let complete = scaling.failed.is_empty();
        return Ok(Some(Measured { table, json, html: None, complete }));
    }
    let Some(report) = comparison.run() else { return Ok(None) };
    Ok(Some(Measured {
        table: report.table(),
        json: serde_json::to_value(&report)?,
        html: args.html.is_some().then(|| html::render(&report)),
        complete: report.failed.is_empty(),
    }))
}

fn create_file(option: &str, path: &Path) -> Result<File, Refusal> {
    File::create(path).map_err(|error| {
        let what = format!("{option}: cannot create {}: {}", path.display(), reason(error));
        Refusal::usage(what, "give a file that can be written")
    })
}

/// A bench under way.
struct Comparison<'a> {
    args: &'a Args,
    bench: Bench<'a>,
    /// Why there are no kernel rows.
    no_kernel: Option<String>,
    runs: Vec<Run>,
    calibrations: Vec<Calibrated>,
    skipped: Vec<Absence>,
    failed: Vec<Absence>,
}

impl<'a> Comparison<'a> {
    fn new(args: &'a Args, program: PathBuf, journal: &'a Journal, stop: Arc<AtomicUsize>) -> Self {
        let (kernel, no_kernel) = match usable_hierarchy(journal, args.cpus) {
            Ok(hierarchy) => (Some((journal, hierarchy)), None),
            Err(reason) => (None, Some(reason)),
        };
        let bytes = args.size.0;
        let bench = Bench {
            kernel,
            program,
            bytes,
            ram: args.ram.0,
            contents: args.contents,
            swap_file: args.swap,
            phases: args.phases(),
            accesses: args.accesses(),
            swap_dir: args.swap_dir.clone(),
            scratch: None,
            kernel_source: args.instead.kernel_build.clone(),
            cpus: args.cpus,
            stop,
        };
        let (runs, calibrations, skipped, failed) = Default::default();
        Self { args, bench, no_kernel, runs, calibrations, skipped, failed }
    }

    /// Everything that was measured, or `None` if a signal asked to stop.
    fn run(mut self) -> Option<Report> {
        let args = self.args;
        let wanted = |row: &&Row| match args.rows.as_slice() {
            [] => {
                let is_left_out =
                    args.quick && row.is_slow() || args.instead.programs && **row == Row::Inline;
                !is_left_out && !row.is_on_zram()
            }
            rows => rows.contains(row),
        };
        let mut rows = Vec::new();
        for &row in Row::value_variants().iter().filter(wanted) {
            if self.calibrate(row) {
                rows.push(row);
            }
            if self.stopped() {
                return None;
            }
        }
        for round in 1..=self.args.rounds() {
            for &threads in &self.args.threads {
                for &row in &rows {
                    if !self.has_failed(row, None) {
                        self.measure(row, threads, round);
                    }
                    if self.stopped() {
                        return None;
                    }
                }
            }
        }
        let conditions = self.conditions();
        // The workload's pages have no part in whole programs.
        let floor = if args.instead.programs { None } else { Floor::measure(args.contents) };
        let Self { runs, calibrations, skipped, failed, .. } = self;
        let report = Report::new(conditions, &runs, &calibrations, skipped, failed);
        Some(report.with_floor(&runs, floor))
    }

    fn stopped(&self) -> bool {
        self.bench.is_stopped()
    }

    /// Finds the row's limit; false if the row cannot be run.
    fn calibrate(&mut self, row: Row) -> bool {
        if let (true, Some(reason)) = (row.is_kernel(), &self.no_kernel) {
            let reason = reason.clone();
            self.skip(row, reason);
            return false;
        }
        if row == Row::Plain {
            return true;
        }
        for only in plan::kinds(&self.bench.phases) {
            let phases = plan::phases(&self.bench.phases, only);
            match calibrate(&self.bench, row, &phases, self.args.ram.0) {
                Ok(calibration) => {
                    let phase = only.map_or(String::new(), |phase| format!(", {}", phase.title()));
                    let title = row.title() + &phase;
                    eprintln!("{title:<18} {}", describe(&calibration));
                    self.calibrations.push(Calibrated { row, only, calibration });
                }
                Err(error) => self.absent(row, only, &error),
            }
            if self.stopped() || !self.calibrations.iter().any(|other| other.row == row) {
                return false;
            }
        }
        true
    }

    fn measure(&mut self, row: Row, threads: usize, round: usize) {
        for Planned { page_cluster, phases, only } in
            plan::runs(row, self.args.quick, &self.bench.phases)
        {
            if self.has_failed(row, only) {
                continue;
            }
            let limit =
                self.calibrations.iter().find(|other| (other.row, other.only) == (row, only));
            let limit = limit.map_or(0, |found| found.calibration.limit);
            let setting = Setting { row, page_cluster, threads, phases, limit, sample_pss: false };
            match self.bench.run(&setting) {
                Ok(mut measurement) => {
                    measurement.phases.retain(|time| only.is_none_or(|only| time.phase == only));
                    let run = Run { row, page_cluster, threads, only, measurement };
                    eprintln!("round {round}/{}: {}", self.args.rounds(), run.summary());
                    self.runs.push(run);
                }
                Err(error) => self.absent(row, only, &error),
            }
            if self.stopped() {
                return;
            }
        }
    }

    /// Whether there is no point in another run of a row, or of its run for one phase.
    fn has_failed(&self, row: Row, only: Option<Phase>) -> bool {
        let same = |failed: &Absence| failed.row == row && [None, only].contains(&failed.phase);
        self.failed.iter().any(same)
    }

    fn absent(&mut self, row: Row, phase: Option<Phase>, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if self.stopped() {
            return;
        }
        if error.downcast_ref::<KernelError>().is_some_and(KernelError::is_unavailable) {
            self.skip(row, reason);
        } else {
            let absence = Absence { row, phase, reason };
            eprintln!("FAILED: {}: {}", absence.title(), absence.reason);
            self.failed.push(absence);
        }
    }

    fn skip(&mut self, row: Row, reason: String) {
        eprintln!("SKIPPED: {}: {reason}", row.title());
        self.skipped.push(Absence { row, phase: None, reason });
    }

    fn conditions(&self) -> Conditions {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor =
            processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Conditions {
            kernel: read("/proc/sys/kernel/osrelease").trim_end().into(),
            processor: processor.map_or(String::new(), |(_, name)| name.into()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").trim_end().into(),
            cgroup: self.bench.kernel.as_ref().map(|(_, hierarchy)| match hierarchy.version {
                Version::V1 => "v1",
                Version::V2 => "v2",
            }),
            bytes: self.args.size.0,
            contents: self.args.contents.describe(),
            swap_file: self.args.swap,
            ram: self.args.ram.0,
            cpus: self.args.cpus,
            missing_programs: self
                .args
                .programs()
                .filter(|_| self.args.instead.programs)
                .filter_map(|phase| Some((phase, missing(phase)?)))
                .collect(),
            rounds: self.args.rounds(),
            quick: self.args.quick,
        }
    }
}

/// Where memory cgroups can be made, tried by making one.
fn usable_hierarchy(journal: &Journal, cpus: Option<Cpus>) -> Result<Hierarchy, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root may configure swap and memory cgroups; try sudo".into());
    }
    let hierarchy = Hierarchy::find().map_err(|error| error.to_string())?;
    hierarchy.create(journal, cpus).map(drop).map_err(|error| error.to_string())?;
    Ok(hierarchy)
}

fn describe(calibration: &Calibration) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let pool = calibration.uncharged_pool;
    let pool = (pool > 0).then(|| format!(" + pool outside it {}", mib(pool)));
    let peak = calibration.peak.map(|peak| format!("; takes {}", mib(peak)));
    let pss = calibration.peak_pss.map(|pss| format!(", Pss_Anon {}", mib(pss)));
    let parts = [pool, peak, pss].into_iter().flatten();
    parts.fold(format!("limit {}", mib(calibration.limit)), |text, part| text + &part)
}
