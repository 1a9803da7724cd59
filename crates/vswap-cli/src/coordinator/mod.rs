//! `vswap run`: starts the program, holds its process tree together, and ends as it ends.
//!
//! One thread waits for everything: signals, members, the clock. Everything that can be refused is
//! refused before the program starts.

mod groups;
mod members;
mod nested;
mod program;
mod run_memory;
mod signals;
mod swap;
mod swap_area;
mod swap_file;
mod totals;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vswap_core::group::shared::{GroupIndex, SharedLimits};
use vswap_pager::config::Config;
use vswap_pager::run_page::RunPage;

pub use self::members::{MemberId, MemberView, Members};
pub use self::program::Outcome;
pub use self::totals::Totals;

use self::members::News;
use self::program::{Program, Supervisor};
use self::signals::Signals;
use self::swap::Devices;
use crate::args::{KeptCopies, Ram, RunArgs};
use crate::cgroup::{self, Limit};
use crate::control::{self, About, Control, PublishError, Subject};
use crate::inherited::Inherited;
use crate::pressure::PressureFile;
use crate::refusal::{ENDED, Refusal, say};
use crate::size::Size;
use crate::stats::{Account, Report, StatsFile, SwapSpace};
use crate::uffd::Probe;
use crate::{elf, preload};

/// How often sums over several members are sampled, and the pressure file is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long the exit of vswap may wait for pagers whose programs ended.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs the program of the command line to its end.
pub fn run(args: &RunArgs, mut inherited: Inherited) -> anyhow::Result<ExitCode> {
    if let Some(done) = nested::run(args, &mut inherited) {
        return done;
    }
    let path = elf::find(&args.command[0])?;
    elf::check(&path)?;
    Probe::new().check(args.engine.into())?;
    let (ram, limit) = budget(args)?;
    let (memfd, page) = run_memory::create()?;
    let limits = SharedLimits { memory_max: Some(ram), ..args.limits() };
    page.groups.set_limits(GroupIndex::ROOT, limits);
    let devices = Devices::open(&args.swap_places()?, args.tiers()?, args.protection(), page)?;
    let stats = args.stats.as_deref().map(StatsFile::create).transpose()?;
    let pressure = args.pressure.as_deref().map(PressureFile::create).transpose()?;
    let object = preload::object()?;
    let control = control_socket(args)?;
    if args.verbose {
        explain(ram, limit.as_ref(), &devices);
    }

    let members = Members::listen(page, memfd, devices, args.group_name())?;
    let config = Config {
        ram,
        engine: args.engine.into(),
        codec: args.codec,
        cold_codec: args.cold_codec,
        writeback_after: args.writeback_after,
        swap_cache: args.swap_cache == KeptCopies::On,
        chaos: args.chaos,
        group: 0,
        socket: members.socket_name(),
    };

    let signals = Signals::block()?;
    let started = Instant::now();
    let program = Program::start(&path, &args.command, &object, &config, &inherited)?;
    inherited.release();
    let about = About {
        name: args.name.clone(),
        words: args.command.clone(),
        started,
        program: program.pid.as_raw_nonzero().get() as u32,
        config,
    };
    let supervisor = Supervisor { program, signals };
    let mut run =
        Run { about, supervisor, members, control, pressure, page, ended_by_vswap: false };
    let outcome = run.watch();
    let wall = started.elapsed();
    // Clients see a run until its program ends; what comes now is its account.
    run.control = None;
    let news = run.members.settle(SETTLE);
    run.tell(news);

    let totals = run.members.totals();
    let swap = SwapSpace::of(page, GroupIndex::ROOT);
    let account = Account::of(&run.about, swap, &totals, run.members.joined()).at_end(wall);
    let exit_code = exit_code(outcome, run.ended_by_vswap);
    let report = Report { exit_code, outcome, account };
    if let Some(stats) = stats {
        stats.write(&report);
    }
    if args.verbose {
        report.summarize();
    }
    match outcome {
        Outcome::Killed(signal) if !run.ended_by_vswap => signals::die_like(signal),
        _ => Ok(ExitCode::from(exit_code)),
    }
}

/// The socket that clients find this run by. It is a convenience, and where none can be made the run
/// goes on without.
fn control_socket(args: &RunArgs) -> Result<Option<Control>, Refusal> {
    let name = args.name.as_deref();
    match control::publish(name) {
        Ok(published) => Ok(Some(Control::new(published))),
        Err(PublishError::NameTaken) => {
            let name = name.unwrap_or_default();
            let what = format!("--name: a run named '{name}' is there already");
            Err(Refusal::usage(what, "choose another name; 'vswap status' lists them"))
        }
        Err(PublishError::Unavailable(error)) => {
            if args.verbose {
                say(format_args!("no control socket, so 'vswap status' cannot see it ({error:#})"));
            }
            Ok(None)
        }
    }
}

/// The budget, and the limit that it follows from if it was not given.
fn budget(args: &RunArgs) -> Result<(u64, Option<Limit>), Refusal> {
    if let Ram::Given(size) = args.ram {
        return Ok((size.0, None));
    }
    let limit = cgroup::tightest().ok_or_else(|| {
        Refusal::usage("cannot find out how much memory there is", "give --ram, or mount /proc")
    })?;
    limit.check()?;
    Ok((limit.budget(), Some(limit)))
}

fn explain(ram: u64, limit: Option<&Limit>, devices: &Devices) {
    match limit {
        Some(limit) => say(limit.explain()),
        None => say(format_args!("ram {}, as given", Size(ram))),
    }
    devices.iter().flat_map(swap::explain).for_each(say);
}

/// What a shell makes of an outcome.
fn exit_code(outcome: Outcome, ended_by_vswap: bool) -> u8 {
    match outcome {
        Outcome::Exited(code) => code,
        Outcome::Killed(_) if ended_by_vswap => ENDED,
        Outcome::Killed(signal) => 128 + signal as u8,
    }
}

/// A program with its coordinator, while it runs.
struct Run {
    about: About,
    supervisor: Supervisor,
    members: Members,
    control: Option<Control>,
    pressure: Option<PressureFile>,
    page: &'static RunPage,
    ended_by_vswap: bool,
}

impl Run {
    /// Serves signals and members until the program ends.
    fn watch(&mut self) -> Outcome {
        loop {
            let (signals, members) = self.wait();
            if signals && let Some(outcome) = self.supervisor.take_signals() {
                return outcome;
            }
            let news = self.members.serve(&members);
            self.tell(news);
            if let Some(control) = &mut self.control {
                let (about, page, members) = (&self.about, self.page, &mut self.members);
                control.serve(&mut Subject { about, page, members });
            }
            if self.members.live() > 1 {
                // Only for the peaks, which nobody else would see.
                self.members.sample();
            }
            if let Some(pressure) = &mut self.pressure {
                pressure.update(self.page, &self.members.totals());
            }
        }
    }

    /// Waits; says whether signals arrived, and which of the members' descriptors are ready.
    fn wait(&self) -> (bool, Vec<bool>) {
        let ticks = self.pressure.is_some() || self.members.live() > 1;
        let patience = self.control.as_ref().and_then(Control::patience);
        let patience = patience.into_iter().chain(ticks.then_some(TICK)).min();
        let timeout = patience.map(|patience| Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(&self.supervisor.signals.fd, PollFlags::IN)];
        fds.extend(
            self.members.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        let own = fds.len();
        fds.extend(self.control.iter().flat_map(Control::descriptors));
        // An error leaves nothing ready, and the next round asks again.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut ready = fds[..own].iter().map(|fd| !fd.revents().is_empty());
        (ready.next() == Some(true), ready.collect())
    }

    fn tell(&mut self, news: Vec<News>) {
        for item in news {
            match item {
                News::Line(line) => say(line),
                News::Ended(pid, line) => {
                    self.ended_by_vswap |= pid == self.supervisor.program.pid;
                    say(line);
                }
            }
        }
    }
}
