//! The engine of one thread: io_uring where it may be used, the plain one elsewhere.

use super::buffer::DirectBuffers;
use super::{DeviceIo, Direction, Late, PlainIo, Request, RingIo};
use crate::sys::{Errno, io_uring};

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring if the kernel lets this process have it.
    #[default]
    Best,
    /// The plain one.
    Plain,
    /// io_uring; if it cannot be had, every request fails with the reason.
    Ring,
}

/// An engine that is made at the first request, by the thread that makes it.
#[derive(Debug)]
pub struct ThreadIo<'p> {
    buffers: &'p DirectBuffers,
    choice: Choice,
    timeout_ns: u64,
    engine: Engine<'p>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each thread, and the ring is the usual one")]
enum Engine<'p> {
    NotStarted,
    Plain(PlainIo<'p>),
    Ring(RingIo<'p>),
    Refused(Errno),
}

impl<'p> ThreadIo<'p> {
    /// An engine for one thread. `timeout_ns` is how long a device may take over a batch, if the
    /// engine [can time out](DeviceIo::can_time_out).
    pub const fn new(buffers: &'p DirectBuffers, choice: Choice, timeout_ns: u64) -> Self {
        Self { buffers, choice, timeout_ns, engine: Engine::NotStarted }
    }

    /// Makes the engine, unless it is made. The calling thread is the only one that may use it from
    /// now on. Whether it is io_uring.
    pub fn start(&mut self) -> bool {
        if let Engine::NotStarted = self.engine {
            self.engine = self.make();
        }
        matches!(self.engine, Engine::Ring(_))
    }

    fn make(&self) -> Engine<'p> {
        let plain = Engine::Plain(PlainIo::new(self.buffers));
        if self.choice == Choice::Plain
            || (self.choice == Choice::Best && io_uring::calls_are_filtered())
        {
            return plain;
        }
        match RingIo::new(self.buffers, self.timeout_ns) {
            Ok(ring) => Engine::Ring(ring),
            Err(error) if self.choice == Choice::Ring => Engine::Refused(error),
            Err(_) => plain,
        }
    }

    /// How long a device may take over a batch from now on, if the engine can time out.
    pub fn set_timeout(&mut self, timeout_ns: u64) {
        self.timeout_ns = timeout_ns;
        if let Engine::Ring(ring) = &mut self.engine {
            ring.set_timeout(timeout_ns);
        }
    }

    /// Forgets the engine in the child of a fork. The ring, its descriptor and its requests are the
    /// parent's; at the next request a new one is made.
    pub fn reset_after_fork(&mut self) {
        core::mem::forget(core::mem::replace(&mut self.engine, Engine::NotStarted));
    }
}

impl<'p> DeviceIo<'p> for ThreadIo<'p> {
    fn buffers(&self) -> &'p DirectBuffers {
        self.buffers
    }

    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'p>]) {
        self.start();
        match &mut self.engine {
            Engine::Plain(engine) => engine.transfer(direction, requests),
            Engine::Ring(engine) => engine.transfer(direction, requests),
            Engine::Refused(error) => {
                for request in requests {
                    request.set_result(Err((*error).into()));
                }
            }
            Engine::NotStarted => unreachable!("it was just started"),
        }
    }

    fn can_time_out(&self) -> bool {
        matches!(self.engine, Engine::Ring(_))
    }

    fn settle(&mut self, report: &mut dyn FnMut(Late)) -> usize {
        match &mut self.engine {
            Engine::Ring(engine) => engine.settle(report),
            _ => 0,
        }
    }
}
