//! The user's end of a control socket: finds a run and asks it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::Value;

use super::place::{self, Entry};
use super::protocol::{Reply, Request};
use crate::refusal::{Refusal, reason};

/// How long a run that was named may say nothing.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long one may that is only looked at among others.
pub const HASTE: Duration = Duration::from_secs(2);

/// How often somebody who waits for a line looks whether to go on waiting.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug)]
pub enum Silence {
    /// The run has ended.
    Ended,
    /// Its coordinator does nothing: it may be stopped.
    Late,
    /// It may not be asked, or not for this.
    Refused(Refusal),
}

impl Silence {
    /// The refusal for the user.
    pub fn of(self, run: &Entry) -> Refusal {
        let run = run.label();
        match self {
            Self::Ended => {
                let remedy = "'vswap run --stats FILE' keeps the account of one that ends";
                Refusal::incomplete(format!("{run} has ended"), remedy)
            }
            Self::Late => {
                let remedy = "it may be stopped (^Z): continue it, or try again";
                Refusal::incomplete(format!("{run} does not answer"), remedy)
            }
            Self::Refused(refusal) => refusal,
        }
    }
}

impl Entry {
    /// How the run is called.
    pub fn label(&self) -> String {
        match (&self.group, &self.name) {
            (Some(group), _) => format!("run {group} (in {})", called(self)),
            (None, Some(name)) => format!("run {name} (pid {})", self.pid),
            (None, None) => format!("run {}", self.pid),
        }
    }
}

/// A request that a run is working on.
pub struct Conversation {
    socket: UnixStream,
    received: Vec<u8>,
}

impl Conversation {
    /// Asks a run.
    pub fn begin(run: &Entry, request: &Request) -> Result<Self, Silence> {
        let mut socket = UnixStream::from(run.connect().map_err(|error| match error {
            Errno::CONNREFUSED | Errno::NOENT => Silence::Ended,
            error => {
                let what = format!("cannot connect to {}: {}", run.label(), reason(error));
                Silence::Refused(Refusal::incomplete(what, "become its user, or root"))
            }
        })?);
        let ready = socket
            .set_read_timeout(Some(LOOK_UP))
            .and_then(|()| socket.set_write_timeout(Some(HASTE)))
            .and_then(|()| socket.write_all(&request.to_line()));
        match ready {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Silence::Late),
            // A run that refuses a client says so and closes, perhaps before it has heard anything.
            _ => Ok(Self { socket, received: Vec::new() }),
        }
    }

    /// The next line; `looking_up` runs while there is none.
    pub fn next(
        &mut self,
        patience: Duration,
        mut looking_up: impl FnMut(&Self),
    ) -> Result<Reply, Silence> {
        let started = Instant::now();
        let mut part = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return understand(&line);
            }
            looking_up(self);
            match self.socket.read(&mut part) {
                Ok(0) => return Err(Silence::Ended),
                Ok(length) => self.received.extend(&part[..length]),
                Err(error) if is_patient(error.kind()) && started.elapsed() < patience => {}
                Err(error) if is_patient(error.kind()) => return Err(Silence::Late),
                Err(_) => return Err(Silence::Ended),
            }
        }
    }

    /// Takes the request back. The run still says its last line.
    pub fn interrupt(&self) {
        // A run that is gone needs no telling.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn is_patient(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn understand(line: &[u8]) -> Result<Reply, Silence> {
    match serde_json::from_slice(line) {
        Ok(Reply::Refused { what, remedy }) => {
            Err(Silence::Refused(Refusal::incomplete(what, remedy)))
        }
        Ok(reply) => Ok(reply),
        Err(_) => Err(misunderstood()),
    }
}

/// For an answer that does not go with the question.
pub fn misunderstood() -> Silence {
    let remedy = "use the vswap command that it was started with";
    Silence::Refused(Refusal::incomplete("the run's answer makes no sense", remedy))
}

/// How a run is, as JSON.
pub fn status_of(run: &Entry, patience: Duration) -> Result<Value, Silence> {
    let request = Request::Status { group: run.group.clone() };
    match Conversation::begin(run, &request)?.next(patience, |_| ())? {
        Reply::Status(status) => Ok(status),
        _ => Err(misunderstood()),
    }
}

/// The run of this name, or with this process.
pub fn find(argument: &str) -> Result<Entry, Refusal> {
    let runs = place::runs();
    let all: Vec<String> = runs.iter().map(called).collect();
    let is_meant =
        |run: &Entry| run.name.as_deref() == Some(argument) || argument.parse() == Ok(run.pid);
    let (mut found, others): (Vec<Entry>, Vec<Entry>) = runs.into_iter().partition(is_meant);
    if found.is_empty() {
        found = others.into_iter().filter_map(|run| holding(run, argument)).collect();
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(called).collect();
        let what = format!("'{argument}' is in several runs");
        return Err(Refusal::usage(what, format!("name one of {}", names.join(", "))));
    }
    found.pop().ok_or_else(|| {
        let remedy = if all.is_empty() {
            "there are none; 'vswap run' starts one".to_owned()
        } else {
            format!("there are: {}", all.join(", "))
        };
        Refusal::usage(format!("no run '{argument}'"), remedy)
    })
}

/// What a run is called on the command line.
fn called(run: &Entry) -> String {
    run.name.clone().unwrap_or_else(|| run.pid.to_string())
}

/// The run, if one in it has the name or process ID, or a process of it has that.
fn holding(mut run: Entry, argument: &str) -> Option<Entry> {
    let status = status_of(&run, HASTE).ok()?;
    let pid = argument.parse::<u32>().ok();
    let is_pid = |found: &Value| pid.is_some() && found.as_u64() == pid.map(u64::from);
    let mut groups = status["groups"].as_array().into_iter().flatten().skip(1);
    if groups.any(|group| group["name"] == argument || is_pid(&group["pid"])) {
        run.group = Some(argument.to_owned());
        return Some(run);
    }
    let members = status["members"].as_array().into_iter().flatten();
    let mut all = members.map(|member| &member["pid"]).chain([&status["program_pid"]]);
    all.any(is_pid).then_some(run)
}

/// The outermost run of this name, which swap devices are given to and taken from.
pub fn find_outermost(argument: &str) -> Result<Entry, Refusal> {
    let run = find(argument)?;
    if run.group.is_none() {
        return Ok(run);
    }
    let what = format!("{} is inside another, whose swap devices it uses", run.label());
    Err(Refusal::usage(what, format!("name that: {}", called(&run))))
}
