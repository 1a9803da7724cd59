//! A `vswap run` inside another: it is a group of that run, whose coordinator pages its programs too.
//!
//! The nested one keeps what its caller can see of it: it starts the program, forwards signals, ends as that ends,
//! and writes its own statistics. It speaks with the coordinator over the members' socket, in packets of JSON;
//! while the connection is open the group stays.

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
    sockopt,
};
use serde::{Deserialize, Serialize};
use vswap_core::group::shared::SharedLimits;
use vswap_pager::config::{Config, ENV_NAME};
use vswap_pager::wire::NESTED;

use super::program::{Program, Supervisor};
use super::signals::{self, Signals};
use super::swap::{Device, HandedOver};
use super::totals::Totals;
use super::{Outcome, SETTLE, exit_code};
use crate::args::{KeptCopies, RunArgs};
use crate::control::About;
use crate::inherited::Inherited;
use crate::refusal::{Refusal, say};
use crate::stats::{Account, Report, StatsFile, SwapSpace};
use crate::uffd::Probe;
use crate::{elf, preload};

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Characters of a command line that the coordinator is told.
const COMMAND_SHOWN: usize = 60;

/// Longest answer in bytes.
const ANSWER_MAX: usize = 16 << 10;

/// What a nested run asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// To be a group.
    Join(Join),
    /// To use one more swap device, whose descriptor is attached, in this group alone.
    Swap(HandedOver),
    /// To use only these tiers of the devices that it sees.
    Tiers(Vec<String>),
    /// That the program has started. There is no answer.
    Started(Started),
    /// What the processes of the group have counted, when those that ended have said so.
    Account,
}

/// A group to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// The token of the group that it is in.
    parent: u32,
    /// What the user calls it.
    pub name: String,
    memory_max: Option<u64>,
    zswap_max: Option<u64>,
    swap_max: Option<u64>,
    zswap_writeback: bool,
}

impl Join {
    /// The token of the group that it is in.
    pub fn parent(&self) -> u32 {
        self.parent
    }

    /// The limits.
    pub fn limits(&self) -> SharedLimits {
        SharedLimits {
            memory_max: self.memory_max,
            zswap_max: self.zswap_max,
            swap_max: self.swap_max,
            zswap_writeback: self.zswap_writeback,
        }
    }
}

/// A program that a nested run has started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    program: u32,
    /// As its environment has it.
    config: String,
    words: Vec<String>,
}

impl Started {
    fn new(about: &About) -> Self {
        // A packet has to hold them.
        let mut left = COMMAND_SHOWN;
        let words = about.words.iter().map_while(|word| {
            let word: String = word.to_string_lossy().chars().take(left).collect();
            left -= word.chars().count();
            (!word.is_empty()).then_some(word)
        });
        let words = words.collect();
        Self { program: about.program, config: about.config.to_string(), words }
    }

    /// What the coordinator is to know of it.
    pub fn about(self, name: String) -> Option<About> {
        let words = self.words.into_iter().map(OsString::from).collect();
        let (config, started) = (Config::parse(&self.config).ok()?, Instant::now());
        Some(About { name: Some(name), words, started, program: self.program, config })
    }
}

/// What the coordinator answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The token of the group.
    Joined(u32),
    /// The device is in use.
    Swapped,
    /// No others are used.
    Restricted,
    /// What was counted.
    Account { totals: Totals, pagers: u64, swap: SwapSpace },
    /// It cannot be done.
    Refused { what: String, remedy: String },
}

/// A message as a packet.
pub fn packet(message: &impl Serialize) -> Vec<u8> {
    let mut packet = vec![NESTED];
    serde_json::to_writer(&mut packet, message).expect("strings and numbers only");
    packet
}

/// The run around this one.
struct Outer {
    socket: OwnedFd,
    config: Config,
}

/// Runs the program as a group of the run around this process; `None` if there is none.
pub fn run(args: &RunArgs, inherited: &mut Inherited) -> Option<anyhow::Result<ExitCode>> {
    let outer = Outer::find(args.verbose)?;
    Some(outer.run(args, inherited))
}

impl Outer {
    fn find(verbose: bool) -> Option<Self> {
        let text = std::env::var(ENV_NAME).ok()?;
        // Of another version, it does not know what a nested run is.
        let found = Config::parse(&text).ok().and_then(|config| {
            let socket = reach(&config).ok()?;
            Some(Self { socket, config })
        });
        if found.is_none() && verbose {
            say("the run around this one cannot be reached, so this one is a run of its own");
        }
        found
    }

    fn run(&self, args: &RunArgs, inherited: &mut Inherited) -> anyhow::Result<ExitCode> {
        refuse_what_is_of_the_whole(args)?;
        let path = elf::find(&args.command[0])?;
        elf::check(&path)?;
        Probe::new().check(args.engine.into())?;
        let devices = Device::open_all(&args.swap_places()?)?;
        let stats = args.stats.as_deref().map(StatsFile::create).transpose()?;
        let object = preload::object()?;
        let config = self.join(args, &devices)?;
        if args.verbose {
            say(format_args!("a group named {} of the run around it", args.group_name()));
            devices.iter().flat_map(super::swap::explain).for_each(say);
        }
        drop(devices);
        let signals = Signals::block()?;
        let started = Instant::now();
        let program = Program::start(&path, &args.command, &object, &config, inherited)?;
        inherited.release();
        let about = About {
            name: Some(args.group_name()),
            words: args.command.clone(),
            started,
            program: program.pid.as_raw_nonzero().get() as u32,
            config,
        };
        // Without it the program only has no name in the status.
        let _ = send(&self.socket, &packet(&Ask::Started(Started::new(&about))), None);
        let outcome = watch(&mut Supervisor { program, signals });
        let wall = started.elapsed();
        if stats.is_some() || args.verbose {
            self.report(&about, outcome, wall, stats, args.verbose);
        }
        match outcome {
            Outcome::Killed(signal) => signals::die_like(signal),
            Outcome::Exited(_) => Ok(ExitCode::from(exit_code(outcome, false))),
        }
    }

    /// Becomes a group; gives the settings of its programs.
    fn join(&self, args: &RunArgs, devices: &[Device]) -> anyhow::Result<Config> {
        let limits = args.limits();
        let join = Join {
            parent: self.config.group,
            name: args.group_name(),
            memory_max: limits.memory_max,
            zswap_max: limits.zswap_max,
            swap_max: limits.swap_max,
            zswap_writeback: limits.zswap_writeback,
        };
        let Answer::Joined(group) = self.ask(&Ask::Join(join), None, PATIENCE)? else {
            anyhow::bail!("the run around this one gave an answer that makes no sense");
        };
        for device in devices {
            self.ask(&Ask::Swap(device.hand_over()), Some(device.file()), PATIENCE)?;
        }
        if let Some(tiers) = args.tiers()? {
            self.ask(&Ask::Tiers(tiers.to_vec()), None, PATIENCE)?;
        }
        Ok(Config {
            ram: limits.memory_max.map_or(self.config.ram, |ram| ram.min(self.config.ram)),
            engine: args.engine.into(),
            codec: args.codec,
            cold_codec: args.cold_codec,
            writeback_after: args.writeback_after,
            swap_cache: args.swap_cache == KeptCopies::On,
            chaos: args.chaos,
            group,
            socket: self.config.socket,
        })
    }

    fn report(
        &self,
        about: &About,
        outcome: Outcome,
        wall: Duration,
        stats: Option<StatsFile>,
        verbose: bool,
    ) {
        let Ok(Answer::Account { totals, pagers, swap }) = self.ask(&Ask::Account, None, SETTLE)
        else {
            return say("the run around this one does not answer; the statistics are lost");
        };
        let account = Account::of(about, swap, &totals, pagers).at_end(wall);
        let report = Report { exit_code: exit_code(outcome, false), outcome, account };
        if let Some(stats) = stats {
            stats.write(&report);
        }
        if verbose {
            report.summarize();
        }
    }

    fn ask(
        &self,
        ask: &Ask,
        attached: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> anyhow::Result<Answer> {
        let lost = "the run around this one does not answer";
        send(&self.socket, &packet(ask), attached).context(lost)?;
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let answered = poll(&mut ready, Some(&super::members::timespec(patience)));
        anyhow::ensure!(answered.is_ok_and(|ready| ready > 0), lost);
        let answer = receive(&self.socket).context(lost)?;
        match serde_json::from_slice(answer.strip_prefix(&[NESTED]).context(lost)?)? {
            Answer::Refused { what, remedy } => Err(Refusal::usage(what, remedy).into()),
            answer => Ok(answer),
        }
    }
}

/// Options that only the outermost run can have.
fn refuse_what_is_of_the_whole(args: &RunArgs) -> Result<(), Refusal> {
    let option = match () {
        () if args.no_encrypt => "--no-encrypt",
        () if args.pressure.is_some() => "--pressure",
        () => return Ok(()),
    };
    let what = format!("{option}: this run is inside another, which has that for all");
    Err(Refusal::usage(what, "give it to the outermost 'vswap run'"))
}

/// Serves signals until the program ends.
fn watch(supervisor: &mut Supervisor) -> Outcome {
    loop {
        let mut ready = [PollFd::new(&supervisor.signals.fd, PollFlags::IN)];
        let _ = poll(&mut ready, None);
        if let Some(outcome) = supervisor.take_signals() {
            return outcome;
        }
    }
}

fn reach(config: &Config) -> anyhow::Result<OwnedFd> {
    anyhow::ensure!(!config.socket.as_str().is_empty(), "a run without a coordinator");
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(config.socket.as_str().as_bytes())?)?;
    // It takes members of its own user only.
    let peer = sockopt::socket_peercred(&socket)?;
    anyhow::ensure!(peer.uid == rustix::process::geteuid(), "another user's");
    Ok(socket)
}

fn send(
    socket: &OwnedFd,
    bytes: &[u8],
    attached: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let attached = attached.as_slice();
    if !attached.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(attached));
    }
    sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

fn receive(socket: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let mut bytes = vec![0; ANSWER_MAX];
    let mut control = RecvAncillaryBuffer::new(&mut []);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::empty())?.bytes;
    bytes.truncate(received);
    Ok(bytes)
}
