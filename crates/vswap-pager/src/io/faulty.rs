//! An engine that fails as it is told: for tests of what stands on top of [`DeviceIo`].
//!
//! Faults come from a script (the n-th read or write) or at random, from a seed: the same seed and
//! the same requests give the same faults. What the engine passes on is carried out by the engine
//! inside, so what reached the device and what did not is real.

use super::batch::IoError;
use super::buffer::DirectBuffers;
use super::{DeviceIo, Direction, Late, Request};
use crate::sys::{Errno, task};

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing is transferred. EIO, ENOSPC …
    Error(Errno),
    /// The first half of its blocks is transferred, and that is said.
    Short,
    /// One bit is wrong, on the device or in the buffer, and nobody says so.
    BitFlip,
    /// It is said to be done and is not: a write leaves what was there, a read gives zeros.
    Lost,
    /// It happens at the place before (behind, at the start), and nobody says so.
    Misdirected,
    /// The power goes off: the first half of its blocks is transferred, it and all behind it in the
    /// batch fail with EIO.
    Torn,
    /// It takes this many microseconds longer.
    Delay(u32),
    /// The device has not answered in time. What it does later is not seen.
    NoAnswer,
}

/// Faults that can be scripted.
const SCRIPT_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Scripted {
    direction: Direction,
    nth: u64,
    fault: Fault,
}

/// A [`DeviceIo`] with faults.
#[derive(Debug)]
pub struct FaultyIo<E> {
    inner: E,
    script: [Option<Scripted>; SCRIPT_MAX],
    random: &'static [Fault],
    of: Option<Direction>,
    per_thousand: u64,
    seed: u64,
    reads: u64,
    writes: u64,
    injected: u64,
}

impl<'p, E: DeviceIo<'p>> FaultyIo<E> {
    /// An engine that does as `inner` does, so far.
    pub const fn new(inner: E) -> Self {
        Self {
            inner,
            script: [None; SCRIPT_MAX],
            random: &[],
            of: None,
            per_thousand: 0,
            seed: 0,
            reads: 0,
            writes: 0,
            injected: 0,
        }
    }

    /// Adds a fault of the `nth` request of its direction, counted from 0.
    ///
    /// # Panics
    /// If the script is full.
    pub fn at(mut self, direction: Direction, nth: u64, fault: Fault) -> Self {
        let free = self.script.iter_mut().find(|place| place.is_none()).expect("a short script");
        *free = Some(Scripted { direction, nth, fault });
        self
    }

    /// Lets `per_thousand` of all requests have one of `faults`.
    pub fn at_random(mut self, seed: u64, per_thousand: u64, faults: &'static [Fault]) -> Self {
        (self.seed, self.per_thousand, self.random) = (seed, per_thousand, faults);
        self
    }

    /// Leaves requests of the other direction alone at random.
    pub fn only(mut self, direction: Direction) -> Self {
        self.of = Some(direction);
        self
    }

    /// Faults so far.
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// A number from the seed (splitmix64).
    fn next_random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.seed;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// The fault of the next request.
    fn draw(&mut self, direction: Direction) -> Option<Fault> {
        let count = match direction {
            Direction::Read => &mut self.reads,
            Direction::Write => &mut self.writes,
        };
        let nth = *count;
        *count += 1;
        let scripted = self.script.iter().flatten();
        let mut scripted = scripted.filter(|one| one.direction == direction && one.nth == nth);
        let fault = scripted.next().map(|one| one.fault).or_else(|| {
            let concerned = self.of.is_none_or(|of| of == direction) && !self.random.is_empty();
            let hit = concerned && self.next_random() % 1000 < self.per_thousand;
            hit.then(|| self.random[(self.next_random() % self.random.len() as u64) as usize])
        });
        self.injected += u64::from(fault.is_some());
        fault
    }

    fn inject(&mut self, fault: Fault, direction: Direction, request: &mut Request<'_, 'p>) {
        let block = request.device().geometry.block as usize;
        let half = request.len() / block / 2 * block;
        match fault {
            Fault::NoAnswer => request.set_result(Err(IoError::TimedOut)),
            Fault::Error(error) => request.set_result(Err(error.into())),
            Fault::Short => {
                let result = self.displaced(direction, request, half, request.offset());
                request.set_result(result.and(Err(IoError::Short(half as u32))));
            }
            Fault::Torn => {
                let result = self.displaced(direction, request, half, request.offset());
                request.set_result(result.and(Err(Errno::EIO.into())));
            }
            Fault::BitFlip => self.flipped(direction, request),
            Fault::Lost => {
                if let (Direction::Read, Some(buffer)) = (direction, request.buffer_mut()) {
                    buffer.fill(0);
                }
                request.set_result(Ok(()));
            }
            Fault::Misdirected => {
                let (offset, len) = (request.offset(), request.len());
                let wrong = offset.checked_sub(len as u64).unwrap_or(offset + len as u64);
                let result = self.displaced(direction, request, len, wrong);
                request.set_result(result);
            }
            Fault::Delay(microseconds) => {
                task::sleep_us(u64::from(microseconds));
                self.inner.transfer(direction, core::slice::from_mut(request));
            }
        }
    }

    /// Transfers the first `len` bytes of the request's buffer, at `offset`.
    fn displaced(
        &mut self,
        direction: Direction,
        request: &mut Request<'_, 'p>,
        len: usize,
        offset: u64,
    ) -> Result<(), IoError> {
        if len == 0 {
            return Ok(());
        }
        let device = request.device();
        let mut piece = self.inner.buffers().take(len).ok_or(IoError::Failed(Errno::ENOMEM))?;
        let buffer = request.buffer_mut().ok_or(IoError::TimedOut)?;
        piece.copy_from_slice(&buffer[..len]);
        let mut one = [Request::new(device, offset, piece)];
        self.inner.transfer(direction, &mut one);
        buffer[..len].copy_from_slice(one[0].bytes()?);
        Ok(())
    }

    fn flipped(&mut self, direction: Direction, request: &mut Request<'_, 'p>) {
        let bit = (self.next_random() % (request.len() as u64 * 8)) as usize;
        let flip = |request: &mut Request<'_, 'p>| {
            if let Some(buffer) = request.buffer_mut() {
                buffer[bit / 8] ^= 1 << (bit % 8);
            }
        };
        if direction == Direction::Write {
            flip(request);
        }
        self.inner.transfer(direction, core::slice::from_mut(request));
        flip(request);
    }
}

impl<'p, E: DeviceIo<'p>> DeviceIo<'p> for FaultyIo<E> {
    fn buffers(&self) -> &'p DirectBuffers {
        self.inner.buffers()
    }

    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'p>]) {
        let mut sound = 0;
        for index in 0..requests.len() {
            let Some(fault) = self.draw(direction) else { continue };
            self.inner.transfer(direction, &mut requests[sound..index]);
            self.inject(fault, direction, &mut requests[index]);
            sound = index + 1;
            if fault == Fault::Torn {
                for request in &mut requests[sound..] {
                    request.set_result(Err(Errno::EIO.into()));
                }
                return;
            }
        }
        self.inner.transfer(direction, &mut requests[sound..]);
    }

    fn can_time_out(&self) -> bool {
        self.inner.can_time_out()
    }

    fn settle(&mut self, report: &mut dyn FnMut(Late)) -> usize {
        self.inner.settle(report)
    }
}
