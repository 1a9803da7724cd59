//! Places of writes that were given up. The device may still write there, so nobody else gets one before
//! it has answered.

use core::ops::Range;

use vswap_core::device::space::{Block, Placed};

use crate::io::{BATCH_MAX, IoError, Request};
use crate::lock::SpinLock;

/// Places that are remembered; those beyond are lost to this process.
const PLACES: usize = 512;

/// The requests of a batch that were not answered, as bytes of the device.
#[derive(Debug)]
pub struct Silence {
    requests: [Range<u64>; BATCH_MAX],
    count: usize,
}

impl Silence {
    /// None.
    pub const fn new() -> Self {
        Self { requests: [const { 0..0 }; BATCH_MAX], count: 0 }
    }

    /// Notes those of a batch.
    pub fn note(&mut self, batch: &[Request<'_, '_>]) {
        let silent = batch.iter().filter(|one| one.result() == Err(IoError::TimedOut));
        for (place, request) in self.requests[self.count..].iter_mut().zip(silent) {
            *place = request.range();
            self.count += 1;
        }
    }

    /// Whether this byte is part of one.
    pub fn covers(&self, offset: u64) -> bool {
        self.requests[..self.count].iter().any(|request| request.contains(&offset))
    }
}

/// An object's place; none if it has no blocks.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: u32,
    blocks: u8,
}

const NOWHERE: Place = Place { first: 0, blocks: 0 };

/// The places of one device.
#[derive(Debug)]
pub struct Unanswered(SpinLock<[Place; PLACES]>);

impl Unanswered {
    /// None.
    pub const fn new() -> Self {
        Self(SpinLock::new([NOWHERE; PLACES]))
    }

    /// Remembers one, if there is room.
    pub fn add(&self, place: &Placed) {
        let mut places = self.0.lock();
        if let Some(free) = places.iter_mut().find(|place| place.blocks == 0) {
            *free = Place { first: place.block.raw(), blocks: place.blocks };
        }
    }

    /// Forgets those of some blocks, and says what they were.
    pub fn take(&self, blocks: &Range<u32>, mut say: impl FnMut(Block, u8)) {
        for place in &mut *self.0.lock() {
            if place.blocks > 0
                && blocks.contains(&place.first)
                && let Some(block) = Block::new(place.first)
            {
                say(block, place.blocks);
                *place = NOWHERE;
            }
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        *self.0.lock() = [NOWHERE; PLACES];
    }

    /// In the child of a fork, which no device answers.
    pub fn reset_after_fork(&self) {
        self.0.reset_after_fork();
        self.clear();
    }
}
