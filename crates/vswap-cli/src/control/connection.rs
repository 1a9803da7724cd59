//! One client of a run, on a nonblocking socket: a request comes in, lines go out.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, read};
use rustix::net::{SendFlags, send};

use super::protocol::{REQUEST_MAX, Reply};

/// How long a client may take to write its request, or to read what it was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its request is not complete.
    Asking,
    /// Its operation is under way.
    Waiting,
    /// Its last line is on its way.
    Leaving,
}

/// What a client wants from the run.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    None,
    /// This, a line without its newline.
    Request(Vec<u8>),
    /// Its operation taken back.
    Interrupt,
}

/// A client.
pub struct Connection {
    socket: OwnedFd,
    stage: Stage,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Since when it is waited for.
    since: Instant,
    /// It has closed its writing half.
    ended: bool,
    broken: bool,
}

impl Connection {
    /// A client that has just come.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            stage: Stage::Asking,
            input: Vec::new(),
            output: Vec::new(),
            since: Instant::now(),
            ended: false,
            broken: false,
        }
    }

    /// The socket, to be waited for.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What to wait for. The end of both halves is always reported.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.stage != Stage::Leaving && !self.ended);
        flags.set(PollFlags::OUT, !self.output.is_empty());
        flags
    }

    /// Whether the client is served, or not worth more patience.
    pub fn is_over(&self) -> bool {
        let waited_for = self.stage == Stage::Asking || !self.output.is_empty();
        self.broken
            || (self.stage == Stage::Leaving && self.output.is_empty())
            || (waited_for && self.since.elapsed() > PATIENCE)
    }

    /// Reads and writes what can be without waiting.
    pub fn serve(&mut self) -> Event {
        self.flush();
        match self.stage {
            Stage::Asking => self.read_request(),
            Stage::Waiting => self.watch(),
            Stage::Leaving => Event::None,
        }
    }

    /// Notes that an operation was begun for the client.
    pub fn wait(&mut self) {
        self.stage = Stage::Waiting;
        self.since = Instant::now();
    }

    /// Says how far its operation is, if it has read what it was told before.
    pub fn tell(&mut self, progress: &Reply) {
        if self.output.is_empty() {
            self.queue(progress);
        }
    }

    /// Says the last line.
    pub fn finish(&mut self, reply: &Reply) {
        self.stage = Stage::Leaving;
        self.queue(reply);
    }

    fn queue(&mut self, reply: &Reply) {
        self.output.extend(reply.to_line());
        self.since = Instant::now();
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(sent) => {
                    self.output.drain(..sent);
                    self.since = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    fn read_request(&mut self) -> Event {
        let mut part = [0; REQUEST_MAX];
        // One read: whatever follows the request is of no interest, and a client that writes without
        // end has no more of our time than one that does not.
        let Some(length) = self.read(&mut part) else { return Event::None };
        self.input.extend(&part[..length]);
        if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            self.input.truncate(end);
            return Event::Request(std::mem::take(&mut self.input));
        }
        if self.input.len() >= REQUEST_MAX {
            self.finish(&Reply::refused("the request is too long", "use the vswap command"));
        } else if self.ended {
            self.broken = true;
        }
        Event::None
    }

    /// While its operation is under way a client has nothing to say but that it shall end.
    fn watch(&mut self) -> Event {
        let said = self.read(&mut [0; 64]).unwrap_or(0);
        if said > 0 || self.ended || self.broken { Event::Interrupt } else { Event::None }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Option<usize> {
        match read(&self.socket, bytes) {
            Ok(0) => {
                self.ended = true;
                Some(0)
            }
            Ok(length) => Some(length),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }
}
