//! The command line: what is typed, checked as far as that needs no look at the machine.

mod swap_place;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand, ValueEnum};
use vswap_core::device::object::Protection;
use vswap_core::device::set::DEVICES_MAX;
use vswap_core::device::space::EXTENT_BYTES_SHIFT;
use vswap_core::group::shared::SharedLimits;
use vswap_pager::config::{CodecChoice, Engine};

pub use self::swap_place::SwapPlace;
use self::swap_place::parse_tier;
use crate::control::check_name;
use crate::refusal::Refusal;
use crate::size::{Size, SizeError};

/// Least budget that a program can live in: its own code and libraries aside, the engine needs room
/// for a staging area, its page tables and a first part of the pool.
pub const MIN_RAM: u64 = 16 << 20;

/// Run programs in less memory than they need.
#[derive(Debug, Parser)]
#[command(name = "vswap", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program and its children with a limit on their RAM
    Run(RunArgs),
    /// Show the runs of this user, or one of them in full
    Status(StatusArgs),
    /// Evict memory of a run now
    Reclaim(ReclaimArgs),
    /// Bring back all that is swapped out, for a debugger, and keep it in RAM
    #[command(name = "swapin", after_help = SWAPIN_EXAMPLES)]
    SwapIn(MembersArgs),
    /// Take 'vswap swapin' back
    #[command(name = "swapout")]
    SwapOut(MembersArgs),
    /// Give a run one more swap device
    #[command(name = "swapon")]
    SwapOn(SwapOnArgs),
    /// Take a swap device from a run, or all
    #[command(name = "swapoff")]
    SwapOff(SwapOffArgs),
    /// Put the pages into a core dump that were swapped out when it was written
    #[command(name = "core-fix")]
    CoreFix(CoreFixArgs),
    /// Say what this machine allows, and what to do about what is missing
    Doctor,
    /// Compare vswap with the kernel's own swap on this machine
    Bench(crate::bench::Args),
}

const RUN_EXAMPLES: &str = "\
Examples:
  vswap run --ram 2G -- python3 train.py
  vswap run --ram 64M --swap /var/tmp --stats stats.json -- sort big.txt
  vswap run --ram 512M --swap /mnt/disk/swap:20G --codec zstd:3 -v -- make -j4
  vswap run --ram 4G -- sh -c 'vswap run --group index --ram 1G --swap-max 8G -- indexer & serve'

SIZE is a number with K, M, G or T (powers of 1024), as in 512M, 1.5G or 2GiB.

Exit status: that of PROG, also when it dies by a signal. 2 for wrong usage, 125 if vswap itself
failed, 126 if PROG cannot be run, 127 if it is not found, 137 if vswap had to end it.";

#[derive(Clone, Debug, clap::Args)]
#[command(
    override_usage = "vswap run [OPTIONS] [--] PROG [ARGS]...",
    after_help = RUN_EXAMPLES,
    args_override_self = true
)]
pub struct RunArgs {
    /// RAM for PROG and its children: anonymous memory, compressed memory and vswap's own. 'auto' is
    /// the tightest memory cgroup limit, or physical memory, less what others hold and a reserve
    /// for the kernel's needs
    #[arg(long, value_name = "SIZE|auto", default_value = "auto", value_parser = parse_ram)]
    pub ram: Ram,

    /// Also swap to PATH: a file or block device that mkswap has formatted, or, if PATH is a directory
    /// or the name of a new file, a file there that nobody else ever sees. SIZE limits that; the default is
    /// what the file system has free, less a tenth. May be repeated: high priorities (N up to 32767)
    /// first, equal ones in turns; without N each is below those before it. Devices of one priority form a
    /// tier, which NAME names: a device of a tier that is there already needs no N. Cold data moves to
    /// slower tiers when a tier is nearly full, and what is used again comes back
    #[arg(
        long,
        value_name = "PATH[:SIZE][,prio=N][,tier=NAME]",
        value_parser = clap::value_parser!(OsString),
        action = clap::ArgAction::Append
    )]
    pub swap: Vec<OsString>,

    /// The tiers that PROG and its children may use, of those that --swap and 'vswap swapon' name; all
    /// that the run around this one may, by default. Nothing is written to other devices
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = parse_tier)]
    pub tiers: Option<Vec<String>>,

    /// Do not encrypt what goes to swap devices; it still carries a check
    #[arg(long)]
    pub no_encrypt: bool,

    /// Name of the group that PROG and its children are: of a run inside another run, which is a group of
    /// that run and within its limits, or of the run itself. The default is its --name or process ID
    #[arg(long, value_name = "NAME", value_parser = parse_group)]
    pub group: Option<String>,

    /// The most that the group may have on swap devices, in units of 4M; 0 keeps it off them
    #[arg(long, value_name = "SIZE", value_parser = parse_swap_max)]
    pub swap_max: Option<u64>,

    /// The most RAM that compressed pages of the group may take; 0 keeps all of it out of the pool
    #[arg(long, value_name = "SIZE", value_parser = parse_max)]
    pub zswap_max: Option<u64>,

    /// Write nothing of the group to swap devices: what the pool does not take stays in memory
    #[arg(long)]
    pub no_writeback: bool,

    /// Write what has been in the pool for so long, and was not used, to a swap device, however much
    /// room the pool has
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub writeback_after: Option<u32>,

    /// Compressor: lz4, zstd, zstd:LEVEL with LEVEL from -7 to 19, or none
    #[arg(long, value_name = "CODEC", default_value = "lz4", value_parser = parse_codec)]
    pub codec: CodecChoice,

    /// Compressor for what has been in the pool for long, used while the program leaves the CPU alone:
    /// zstd:LEVEL, say. What it cannot make smaller stays
    #[arg(long, value_name = "CODEC", value_parser = parse_cold_codec)]
    pub cold_codec: Option<CodecChoice>,

    /// Who resolves page faults: a pager process (handoff), for any program, or the faulting thread
    /// (inline), faster, for programs that can do with system calls failing on swapped-out buffers
    #[arg(long, value_name = "ENGINE", default_value = "handoff", hide_possible_values = true)]
    pub engine: EngineArg,

    /// Name of the run, for 'vswap status' and 'vswap reclaim'; without, it is known by the process
    /// ID of vswap
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,

    /// Write counters as JSON when PROG ends
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Keep FILE up to date, once a second, with the time lost to lack of memory, in the format of
    /// /proc/pressure/memory, and the fill of the pool
    #[arg(long, value_name = "FILE")]
    pub pressure: Option<PathBuf>,

    /// Print what was decided, and a summary at the end, on stderr
    #[arg(short, long)]
    pub verbose: bool,

    /// Whether a page that came back for a read keeps its compressed copy: 'vswap bench --swap-cache' compares
    #[arg(long, value_enum, default_value = "on", hide = true)]
    pub swap_cache: KeptCopies,

    /// Evict random pages after every mapping call
    #[arg(long, value_name = "SEED", hide = true)]
    pub chaos: Option<u64>,

    /// Program to run, with its arguments
    #[arg(value_name = "PROG [ARGS]", required = true, trailing_var_arg = true, num_args = 1..)]
    pub command: Vec<OsString>,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  vswap status
  vswap status nightly
  vswap status 4711 --json

Without a RUN: a line for each run of this user. With one: its swap devices as in /proc/swaps, then
its virtual swap space, pool, budget, processes and counters. --json has the key names of 'vswap run
--stats'.

Exit status: 0, 1 if the run ended meanwhile or does not answer, 2 if there is no such run.";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Name of a run, process ID of its 'vswap run', or of a program in it that has a pager
    #[arg(value_name = "RUN")]
    pub run: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const RECLAIM_EXAMPLES: &str = "\
Examples:
  vswap reclaim nightly 512M
  vswap reclaim 4711 1G
  vswap reclaim nightly 200M --group index

Pages of its processes are evicted, in proportion to what each has in RAM, whatever the budget. They
go to the pool (so less RAM is freed than SIZE) or to a swap device, and come back when they are
used. ^C ends it; what is done stays done.

Exit status: 0, 1 if less than SIZE could be evicted or the run ended, 2 if there is no such run.";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = RECLAIM_EXAMPLES)]
pub struct ReclaimArgs {
    /// Name of a run, process ID of its 'vswap run', or of a program in it that has a pager
    #[arg(value_name = "RUN")]
    pub run: String,

    /// How much to evict, as in 512M or 1.5G
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    pub size: Size,

    /// Only from the group of this name, as 'vswap status RUN' has it, and those below it
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
}

const SWAPIN_EXAMPLES: &str = "\
Examples:
  vswap swapin 4711 && gcore 4711 && vswap swapout 4711
  vswap swapin nightly

The kernel gives debuggers no page that is swapped out. All pages of the process, or of all processes of
the run, are brought back, and none is evicted any more but by 'vswap reclaim', whatever the budget; other
processes of the run give way. 'vswap swapout' ends that. Processes that they fork meanwhile keep to the
budget. ^C ends it, too.

Exit status: 0, 1 if the machine or its memory cgroup has too little or the run ended, 2 if there is no
such run.";

/// Processes of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct MembersArgs {
    /// Process ID of a program that has a pager, or for all of a run: its name, or the process ID of its
    /// 'vswap run'
    #[arg(value_name = "RUN|PID")]
    pub run: String,
}

const SWAPON_EXAMPLES: &str = "\
Examples:
  vswap swapon nightly /dev/vdb,prio=5
  vswap swapon 4711 /var/tmp:20G

PATH is what 'vswap run --swap' takes.

Exit status: 0, 1 if the run refuses it or ended, 2 if there is no such run.";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = SWAPON_EXAMPLES)]
pub struct SwapOnArgs {
    /// Name of a run, process ID of its 'vswap run', or of a program in it that has a pager
    #[arg(value_name = "RUN")]
    pub run: String,

    /// A swap area, a directory or the name of a new file
    #[arg(value_name = "PATH[:SIZE][,prio=N][,tier=NAME]", value_parser = clap::value_parser!(OsString))]
    pub device: OsString,
}

const SWAPOFF_EXAMPLES: &str = "\
Examples:
  vswap swapoff nightly /dev/vdb
  vswap swapoff 4711 --all

What is on the device moves to the pool or to other devices while the programs run. ^C ends it, and the
device stays in use; so it does if something fits nowhere else.

Exit status: 0, 1 if not all could be moved or the run ended, 2 if there is no such run.";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = SWAPOFF_EXAMPLES)]
pub struct SwapOffArgs {
    /// Name of a run, process ID of its 'vswap run', or of a program in it that has a pager
    #[arg(value_name = "RUN")]
    pub run: String,

    /// The device, as 'vswap status RUN' names it
    #[arg(value_name = "PATH", required_unless_present = "all", conflicts_with = "all")]
    pub device: Option<PathBuf>,

    /// All devices; and what resident pages have kept in the virtual swap space goes
    #[arg(long)]
    pub all: bool,
}

const CORE_FIX_EXAMPLES: &str = "\
Examples:
  vswap core-fix core

The kernel writes zeros for what was swapped out. When a program under 'vswap run' leaves a core, those
pages are kept in /var/tmp/vswap-core-UID until they are put into it.

Exit status: 0, 2 if it is no core or there are no pages for it, 125 if they cannot be put in.";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = CORE_FIX_EXAMPLES)]
pub struct CoreFixArgs {
    /// The core dump, which is changed
    #[arg(value_name = "CORE")]
    pub core: PathBuf,

    /// The file with the pages, if it was moved
    #[arg(long, value_name = "FILE")]
    pub pages: Option<PathBuf>,
}

/// The budget as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ram {
    /// As much as the machine or its cgroup gives.
    Auto,
    /// So much.
    Given(Size),
}

/// What becomes of the compressed copy of a page that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeptCopies {
    /// It is kept where that pays.
    On,
    /// It is freed.
    Off,
}

/// [`Engine`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    Handoff,
    Inline,
}

impl From<EngineArg> for Engine {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Handoff => Self::Handoff,
            EngineArg::Inline => Self::Inline,
        }
    }
}

impl RunArgs {
    /// The swap devices.
    pub fn swap_places(&self) -> Result<Vec<SwapPlace>, Refusal> {
        self.swap.iter().map(|text| SwapPlace::parse(text)).collect()
    }

    /// The tiers that may be used.
    pub fn tiers(&self) -> Result<Option<&[String]>, Refusal> {
        let tiers = self.tiers.as_deref();
        if tiers.is_some_and(|tiers| tiers.len() > DEVICES_MAX) {
            let what = format!("--tiers: more than {DEVICES_MAX} of them");
            return Err(Refusal::usage(
                what,
                "name each once; there are no more devices than that",
            ));
        }
        Ok(tiers)
    }

    /// What the group is called.
    pub fn group_name(&self) -> String {
        let name = self.group.as_ref().or(self.name.as_ref());
        name.cloned().unwrap_or_else(|| std::process::id().to_string())
    }

    /// The limits that were given; those of RAM only if not 'auto'.
    pub fn limits(&self) -> SharedLimits {
        SharedLimits {
            memory_max: match self.ram {
                Ram::Auto => None,
                Ram::Given(size) => Some(size.0),
            },
            zswap_max: self.zswap_max,
            swap_max: self.swap_max,
            zswap_writeback: !self.no_writeback,
        }
    }

    /// What is done to what goes there.
    pub fn protection(&self) -> Protection {
        if self.no_encrypt { Protection::Checked } else { Protection::Encrypted }
    }
}

/// As swapon(8) has it.
fn refuse_size(option: &str, error: &SizeError) -> Refusal {
    let text = error.to_string();
    let (what, remedy) = text.split_once("; ").unwrap_or((&text, "try 'vswap run --help'"));
    Refusal::usage(format!("{option}: {what}"), remedy)
}

fn parse_ram(text: &str) -> Result<Ram, String> {
    if text == "auto" {
        return Ok(Ram::Auto);
    }
    let size: Size = text.parse().map_err(|e: SizeError| e.to_string())?;
    if size.0 < MIN_RAM {
        let least = Size(MIN_RAM);
        return Err(format!("{size} is less than a program can live in; give at least {least}"));
    }
    Ok(Ram::Given(size))
}

fn parse_size(text: &str) -> Result<Size, String> {
    text.parse().map_err(|error: SizeError| match error {
        SizeError::Zero => "the size is 0; give at least 4K".to_owned(),
        error => error.to_string(),
    })
}

/// A limit, which 0 is too.
fn parse_max(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Size(bytes)) => Ok(bytes),
        Err(SizeError::Zero) => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_swap_max(text: &str) -> Result<u64, String> {
    const UNIT: u64 = 1 << EXTENT_BYTES_SHIFT;
    match parse_max(text)? {
        bytes if (1..UNIT).contains(&bytes) => {
            let unit = Size(UNIT);
            Err(format!("{text} is less than the unit of swap space; give at least {unit}, or 0"))
        }
        bytes => Ok(bytes),
    }
}

fn parse_group(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| error.replace("--name", "--group"))
}

fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

fn parse_cold_codec(text: &str) -> Result<CodecChoice, String> {
    match parse_codec(text)? {
        CodecChoice::None => Err("'none' makes nothing smaller; use zstd:LEVEL".to_owned()),
        codec => Ok(codec),
    }
}

fn parse_codec(text: &str) -> Result<CodecChoice, String> {
    CodecChoice::parse(text).ok_or_else(|| {
        format!("unknown codec '{text}'; use lz4, zstd, zstd:LEVEL (-7 to 19) or none")
    })
}

/// Reads the command line. Help and version come back as an error too, as clap has it.
pub fn parse() -> Result<Args, clap::Error> {
    Args::try_parse()
}

/// What clap found wrong, in one line.
pub fn refusal(error: &clap::Error) -> Refusal {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let command = std::env::args_os().nth(1).unwrap_or_default();
    let help = match command.to_str() {
        Some("run") => "try 'vswap run --help'",
        Some("status") => "try 'vswap status --help'",
        Some("reclaim") => "try 'vswap reclaim --help'",
        _ => "try 'vswap --help'",
    };
    let option = context(ContextKind::InvalidArg);
    let flag = option.split(' ').next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::ValueValidation => {
            let text =
                std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let (what, remedy) = text.split_once("; ").unwrap_or((&text, help));
            Refusal::usage(format!("{flag}: {what}"), remedy)
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            Refusal::usage(format!("{flag} needs a value"), help)
        }
        ErrorKind::InvalidValue => {
            let valid = context(ContextKind::ValidValue).replace(", ", " or ");
            Refusal::usage(format!("{flag}: unknown value '{value}'"), format!("use {valid}"))
        }
        ErrorKind::UnknownArgument => Refusal::usage(format!("unknown option '{option}'"), help),
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand);
            Refusal::usage(format!("unknown command '{name}'"), help)
        }
        ErrorKind::MissingRequiredArgument if command == "reclaim" => Refusal::usage(
            "no run or no size given",
            "name both, as in 'vswap reclaim nightly 512M'",
        ),
        ErrorKind::MissingRequiredArgument if command == "bench" => {
            Refusal::usage("--kernel-build is one of the programs", "give --programs too")
        }
        ErrorKind::MissingRequiredArgument => Refusal::usage(
            "no program given",
            "name one after the options, as in 'vswap run --ram 1G -- PROG'",
        ),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Refusal::usage("no command given", help)
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Refusal::usage(line.strip_prefix("error: ").unwrap_or(line), help)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_args(swap: &str) -> RunArgs {
        let args = Args::try_parse_from(["vswap", "run", "--swap", swap, "--", "true"]).unwrap();
        match args.command {
            Command::Run(args) => args,
            _ => unreachable!("the command line says run"),
        }
    }

    #[test]
    fn a_swap_place_has_a_path_and_perhaps_a_size_a_priority_and_a_tier() {
        for (text, path, size, priority, tier) in [
            ("/var/tmp", "/var/tmp", None, None, None),
            ("/var/tmp:10G", "/var/tmp", Some(Size(10 << 30)), None, None),
            ("/a:b/c", "/a:b/c", None, None, None),
            ("/a:b:4M", "/a:b", Some(Size(4 << 20)), None, None),
            ("/dev/vdb,prio=32767", "/dev/vdb", None, Some(32767), None),
            ("/a,b:4M,prio=-1", "/a,b", Some(Size(4 << 20)), Some(-1), None),
            ("/dev/vdb,tier=fast", "/dev/vdb", None, None, Some("fast")),
            ("/a:4M,tier=s-1,prio=3", "/a", Some(Size(4 << 20)), Some(3), Some("s-1")),
            ("/a:4M,prio=3,tier=x", "/a", Some(Size(4 << 20)), Some(3), Some("x")),
            ("/a,tier,prio=3", "/a,tier", None, Some(3), None),
        ] {
            let tier = tier.map(str::to_owned);
            let place = SwapPlace { path: path.into(), size, priority, tier };
            assert_eq!(run_args(text).swap_places().unwrap(), [place], "{text}");
        }
        for text in [
            "/a:0",
            "/a:5X",
            "/a:",
            ":5G",
            "/a,prio=",
            "/a,prio=-2",
            "/a,prio=32768",
            "/a,tier=",
            "/a,tier=a/b",
        ] {
            assert!(run_args(text).swap_places().is_err(), "{text}");
        }
    }

    #[test]
    fn options_of_the_program_are_its_own() {
        let args = Args::try_parse_from(["vswap", "run", "ls", "--ram", "1", "-v"]).unwrap();
        let Command::Run(args) = args.command else { panic!("not run") };
        assert_eq!((args.command.len(), args.ram, args.verbose), (4, Ram::Auto, false));
    }

    #[test]
    fn clap_agrees_with_itself() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
