//! Device I/O: pages and runs of pages between swap devices and memory of the engine's own.
//!
//! | | |
//! |---|---|
//! | [`Device`], [`Geometry`], [`Health`] | an open swap device, the alignment it wants, how it fares |
//! | [`DirectBuffers`], [`Buffer`] | aligned memory; up to 256 KiB in one piece |
//! | [`Batch`], [`Request`] | transfers that go to the kernel together; each has a result of its own |
//! | [`DeviceIo`] | what an engine does with them |
//! | [`PlainIo`] | pread and pwrite. Works everywhere. **Cannot time out** |
//! | [`RingIo`] | io_uring, for one thread of the pager |
//! | [`ThreadIo`] | the better of the two that this process may use |
//!
//! # Who uses which
//!
//! A ring belongs to the thread that made it (SINGLE_ISSUER), and the descriptors that it is given
//! are looked up in that thread's table. The pager's threads have a [`ThreadIo`] each, which makes its
//! ring at the first transfer. All others use [`PlainIo`]: threads of the *program* load pages too, with
//! descriptors of the program's, and get neither a ring nor the kernel's worker threads for it in
//! their own process.
//!
//! Where io_uring is refused (EPERM, EACCES, ENOSYS, ENOMEM, EMFILE, whatever it says), the plain
//! engine is taken. It is not even tried under a seccomp filter: most answer EPERM anyway, and one
//! that kills would end the pager, and the program with it.
//!
//! # Deadlines
//!
//! A request belongs to the kernel until its completion is seen, whatever the engine would like. So
//! buffers are *moved* into a request. If the device does not answer in time, the ring keeps the
//! buffer in quarantine, the request ends as [`IoError::TimedOut`], and the device is marked
//! [suspect](Health::is_suspect). The late completion frees the buffer, and
//! [`settle`](DeviceIo::settle) reports it. Until then a *write* may still reach the device: its
//! place must not be given to anybody else. A dropped ring leaves its quarantine taken for good.
//!
//! A plain system call cannot be given up: under [`PlainIo`] a dead device holds its thread for as
//! long as the kernel does.
//!
//! # Measured
//!
//! `cargo bench -p vswap-pager --bench device_io`, ext4 on a virtio disk, O_DIRECT, 2 vCPUs shared
//! with other work, Linux 6.18. Medians of 4000 pages, 300 batches, 5 files of 512 MiB:
//!
//! | | plain | ring | |
//! |---|---|---|---|
//! | one page, p50 | 89.5 us | 91.3 us | bare pread 88.0 us |
//! | 64 pages at random places | 5735 us | 832 us | 6.9 times as fast |
//! | sequential write, 256 KiB at a time | 1502 MiB/s | 1496 MiB/s | `dd bs=1M` 1574 MiB/s |
//! | the same, 2 at once | 1954 MiB/s | 2008 MiB/s | |
//! | the same, 4 at once | 1983 MiB/s | 1861 MiB/s | |
//!
//! So write-out should have two runs under way. The disk's speed varies by two from run to run; the
//! ratios to `dd` of one, two and four runs at once were 1.14, 1.46 and 1.39 in another, and 0.70
//! and 1.69 for one and four (plain: 0.88 and 1.05) under the load of builds.
//!
//! # fork
//!
//! A fork happens while no operation is under way (the gate is closed), abandoned requests apart.
//! Rings are mapped with MADV_DONTFORK and buffers with MADV_WIPEONFORK: the child has neither
//! rings nor contents. It calls [`DirectBuffers::reset_after_fork`] and
//! [`ThreadIo::reset_after_fork`], and makes a ring of its own when it needs one.

mod batch;
mod buffer;
mod device;
#[cfg(any(test, feature = "fault-injection"))]
pub mod faulty;
mod plain;
mod ring;
#[cfg(test)]
mod tests;
mod thread;

pub use self::batch::{BATCH_MAX, Batch, Direction, IoError, Request};
pub use self::buffer::{Buffer, DirectBuffers, RUN_BYTES_MAX, RUN_PAGES_MAX};
pub use self::device::{Device, Geometry, Health};
pub use self::plain::PlainIo;
pub use self::ring::RingIo;
pub use self::thread::{Choice, ThreadIo};

use crate::sys::Errno;

/// The answer to a request that had been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// [`Device::id`].
    pub device: u32,
    /// Place on the device.
    pub offset: u64,
    /// Bytes of the request.
    pub len: u32,
    /// Which way the data went.
    pub direction: Direction,
    /// What became of it, now that it is over.
    pub result: Result<(), IoError>,
}

/// An engine, as one thread uses it.
pub trait DeviceIo<'p> {
    /// The buffers that its requests are made of.
    fn buffers(&self) -> &'p DirectBuffers;

    /// Carries out all requests and gives each its result. They may overlap, and happen in any
    /// order. Interrupted and partial transfers are continued; one that stays partial is
    /// [`IoError::Short`].
    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'p>]);

    /// Whether a request comes back although the device does not answer.
    fn can_time_out(&self) -> bool;

    /// Reports the requests that were given up and have been answered since, once each. Returns how
    /// many are still open. Does not wait.
    fn settle(&mut self, report: &mut dyn FnMut(Late)) -> usize;

    /// Several reads, at any places.
    fn read_many(&mut self, requests: &mut [Request<'_, 'p>]) {
        self.transfer(Direction::Read, requests);
    }

    /// Several writes, one run each.
    fn write_many(&mut self, requests: &mut [Request<'_, 'p>]) {
        self.transfer(Direction::Write, requests);
    }

    /// Reads one object. The device's alignment holds for `offset` and length, not for the address:
    /// the data comes by way of a buffer.
    ///
    /// # Errors
    /// Why `out` was not filled; ENOMEM if no buffer is free. `out` is untouched then.
    fn read(&mut self, device: &Device<'_>, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let buffer = self.buffers().take(out.len()).ok_or(IoError::Failed(Errno::ENOMEM))?;
        let mut request = [Request::new(device, offset, buffer)];
        self.read_many(&mut request);
        out.copy_from_slice(request[0].bytes()?);
        Ok(())
    }
}
