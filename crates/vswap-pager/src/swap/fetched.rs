//! What the window of a fault is made of, read with one batch.
//!
//! The pages of a window were mostly evicted together, so their objects lie side by side, or nearly so:
//! those that do are read with one request, and all requests of a window go to the device at once. What
//! came stays sealed, as it was read, until the loads take it or the window is filled. A write
//! forgets what it overwrites, as for [`read_ahead`](super::read_ahead). What did not come is left to
//! the loads, which read one object each: so an error costs the page that it belongs to, and no other.

use core::sync::atomic::{AtomicU32, Ordering};

use vswap_core::{BackingId, Handle};

use crate::context::WINDOW_MAX;
use crate::io::{Batch, Device, Direction, IoError};
use crate::lock::SpinLock;
use crate::swap::device::{InUse, SwapDevice};
use crate::swap::devices::SWAP_DEVICES;
use crate::swap::read_ahead::{Moment, Range};

/// Windows that are filled at a time; who comes beyond reads one object at a time.
const WINDOWS: usize = 4;

/// Bytes of one request, at most: several in flight are faster than a long one.
const REQUEST_MAX: usize = 128 << 10;

/// Bytes between two objects that are read with them: a request of its own would take longer.
const GAP_MAX: usize = 8 << 10;

/// What was read for one window: the number of the device, and its blocks.
type Parts = [Option<(u8, Range)>; WINDOW_MAX];

/// What was read for all windows that are being filled.
#[derive(Debug)]
pub struct FetchedParts {
    windows: [SpinLock<Parts>; WINDOWS],
    /// A bit for each that is in use.
    taken: AtomicU32,
}

/// That of this process.
pub static FETCHED: FetchedParts = FetchedParts::new();

impl FetchedParts {
    const fn new() -> Self {
        let windows = [const { SpinLock::new([const { None }; WINDOW_MAX]) }; WINDOWS];
        Self { windows, taken: AtomicU32::new(0) }
    }

    fn claim(&'static self) -> Option<Fetched> {
        (0..WINDOWS).find_map(|window| {
            let bit = 1 << window;
            let before = self.taken.fetch_or(bit, Ordering::AcqRel);
            // Not `then_some`: one made in vain would give the other's window up when dropped.
            (before & bit == 0).then(|| Fetched { window, silent: false })
        })
    }

    fn in_use(&self) -> impl Iterator<Item = &SpinLock<Parts>> {
        let taken = self.taken.load(Ordering::Acquire);
        self.windows.iter().enumerate().filter(move |(n, _)| taken >> n & 1 != 0).map(|(_, w)| w)
    }

    /// Gives an object's blocks to `take` if they are here. What it says of them is passed on.
    pub fn find<T>(
        &self,
        device: u8,
        first: u32,
        blocks: u8,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        for window in self.in_use() {
            let parts = window.lock();
            let mut of_device = parts.iter().flatten().filter(|(number, _)| *number == device);
            if let Some(sealed) = of_device.find_map(|(_, range)| range.object(first, blocks)) {
                return Some(take(sealed));
            }
        }
        None
    }

    /// Forgets what is about to be written, and was [noted](super::read_ahead::Writing::forget).
    pub fn forget(&self, device: u8, first: u32, blocks: u32) {
        for window in self.in_use() {
            for part in &mut *window.lock() {
                if part.as_ref().is_some_and(|(number, range)| {
                    *number == device && range.overlaps(first, blocks)
                }) {
                    *part = None;
                }
            }
        }
    }

    /// In the child of a fork, where the buffers are empty and all taken for free.
    pub fn reset_after_fork(&self) {
        for window in &self.windows {
            window.reset_after_fork();
            window.lock().iter_mut().for_each(|part| core::mem::forget(part.take()));
        }
        self.taken.store(0, Ordering::Relaxed);
    }
}

/// What was read for a window; forgotten when dropped.
#[derive(Debug)]
pub struct Fetched {
    window: usize,
    silent: bool,
}

impl Fetched {
    /// Whether a device did not answer in time.
    pub fn is_silent(&self) -> bool {
        self.silent
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        FETCHED.windows[self.window].lock().fill_with(|| None);
        FETCHED.taken.fetch_and(!(1 << self.window), Ordering::Release);
    }
}

/// An object that is wanted.
#[derive(Clone, Copy, Debug)]
struct Object {
    device: u8,
    first: u32,
    blocks: u8,
}

/// The objects that a window wants from devices.
#[derive(Debug)]
pub struct Wanted {
    objects: [Object; WINDOW_MAX],
    count: usize,
}

impl Wanted {
    /// None.
    pub const fn new() -> Self {
        let nothing = Object { device: 0, first: 0, blocks: 0 };
        Self { objects: [nothing; WINDOW_MAX], count: 0 }
    }

    /// Adds an object, unless it was read already.
    pub fn add(&mut self, backing: BackingId, handle: Handle, length: usize) {
        let device = SWAP_DEVICES.all().find(|(_, device)| device.backing() == backing);
        if let (Some((number, device)), Some(place)) = (device, self.objects.get_mut(self.count))
            && let Some((first, blocks)) = device.wants(handle, length)
        {
            *place = Object { device: number as u8, first, blocks };
            self.count += 1;
        }
    }

    /// Reads all of them, if there are several. What was read is found by the loads for as long as the
    /// answer lives.
    pub fn fetch(mut self) -> Option<Fetched> {
        let objects = &mut self.objects[..self.count];
        objects.sort_unstable_by_key(|object| (object.device, object.first));
        if objects.len() < 2 {
            return None;
        }
        let mut fetched = FETCHED.claim()?;
        let mut rest = &*objects;
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|object| object.device == first.device).count();
            let (of_device, others) = rest.split_at(same);
            rest = others;
            let device = SWAP_DEVICES.get(usize::from(first.device))?;
            if let Some(in_use) = device.hold() {
                fetched.read(device, &in_use, of_device);
            }
        }
        Some(fetched)
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self::new()
    }
}

impl Fetched {
    /// Reads objects of one device, which are in order.
    fn read(&mut self, swap_device: &SwapDevice, in_use: &InUse<'_>, mut objects: &[Object]) {
        let Some(number) = objects.first().map(|object| object.device) else { return };
        let device: Device<'_> = in_use.device();
        let block_bytes = in_use.block_bytes();
        let since = swap_device.read_ahead().moment();
        let mut batch = Batch::new();
        while !objects.is_empty() {
            let (count, first, blocks) = next_part(objects, block_bytes);
            objects = &objects[count..];
            let bytes = blocks as usize * block_bytes;
            let Some(buffer) = SWAP_DEVICES.buffer_now(bytes) else { break };
            let offset = u64::from(first) * block_bytes as u64;
            // A window has no more objects than a batch has requests.
            if batch.push(&device, offset, buffer).is_err() {
                break;
            }
        }
        SWAP_DEVICES.transfer(Direction::Read, &mut batch);
        let mut parts = FETCHED.windows[self.window].lock();
        for request in batch.iter_mut() {
            self.silent |= request.result() == Err(IoError::TimedOut);
            let (Ok(()), Some(buffer)) = (request.result(), request.take_buffer()) else {
                continue;
            };
            let first = (request.offset() / block_bytes as u64) as u32;
            let range = Range { first, block_bytes, buffer };
            keep(&mut parts, swap_device, since, (number, range));
        }
    }
}

/// Keeps what was read, if nothing of it was written meanwhile. A write that is noted from here on finds
/// it: the window is locked.
fn keep(parts: &mut Parts, device: &SwapDevice, since: Moment, (number, range): (u8, Range)) {
    let blocks = (range.buffer.len() / range.block_bytes) as u32;
    if !device.read_ahead().was_written(since, range.first, blocks)
        && let Some(free) = parts.iter_mut().find(|part| part.is_none())
    {
        *free = Some((number, range));
    }
}

/// The objects that are read with the first one: how many, from which block on, and how many blocks.
fn next_part(objects: &[Object], block_bytes: usize) -> (usize, u32, u32) {
    let gap_max = (GAP_MAX / block_bytes) as u32;
    let blocks_max = (REQUEST_MAX / block_bytes) as u32;
    let Some(first) = objects.first().map(|object| object.first) else { return (0, 0, 0) };
    let (mut count, mut end) = (0, first);
    for object in objects {
        let object_end = object.first + u32::from(object.blocks);
        let is_near = object.first.saturating_sub(end) <= gap_max;
        if count > 0 && !(is_near && object_end - first <= blocks_max) {
            break;
        }
        end = end.max(object_end);
        count += 1;
    }
    (count, first, end - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_with_one_request() {
        let object = |first| Object { device: 0, first, blocks: 9 };
        let objects = [100, 109, 134, 160, 420, 429].map(object);
        // Sixteen blocks of gap are read, seventeen are not; and a request has an end.
        assert_eq!(next_part(&objects, 512), (3, 100, 43));
        assert_eq!(next_part(&objects[3..], 512), (1, 160, 9));
        assert_eq!(next_part(&objects[4..], 512), (2, 420, 18));
        let many: [Object; 64] = core::array::from_fn(|n| object(9 * n as u32));
        assert_eq!(next_part(&many, 512), (28, 0, 252));
    }
}
