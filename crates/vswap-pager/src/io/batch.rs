//! Requests that go to the kernel together, and what became of each.

use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut, Range};

use super::buffer::Buffer;
use super::device::Device;
use crate::sys::Errno;

/// Requests in a batch.
pub const BATCH_MAX: usize = 64;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device into the buffers.
    Read,
    /// From the buffers to the device.
    Write,
}

/// Why a request did not transfer all of its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The device ended, or took no more, after this many bytes.
    #[error("only {0} bytes were transferred")]
    Short(u32),
    /// The kernel's error number. What part was transferred before is not known.
    #[error(transparent)]
    Failed(#[from] Errno),
    /// No answer in time. A write may still reach the device: its place must not be used before
    /// [`settle`](super::DeviceIo::settle) has reported it.
    #[error("the device did not answer in time")]
    TimedOut,
    /// The batch was not run yet.
    #[error("not submitted")]
    NotSubmitted,
}

/// One transfer between a buffer and a place on a device.
#[derive(Debug)]
pub struct Request<'d, 'p> {
    device: &'d Device<'d>,
    offset: u64,
    /// Gone while the kernel has it, and for good if the request was given up.
    buffer: Option<Buffer<'p>>,
    bytes: u32,
    result: Result<(), IoError>,
}

impl<'d, 'p> Request<'d, 'p> {
    /// A request for all of `buffer`.
    ///
    /// # Panics
    /// If offset or length is not a multiple of the device's block.
    pub fn new(device: &'d Device<'d>, offset: u64, buffer: Buffer<'p>) -> Self {
        let block = device.geometry.block as usize;
        assert!(
            (offset as usize).is_multiple_of(block) && buffer.len().is_multiple_of(block),
            "I/O is in whole blocks"
        );
        let (bytes, result) = (buffer.len() as u32, Err(IoError::NotSubmitted));
        Self { device, offset, buffer: Some(buffer), bytes, result }
    }

    /// The device.
    pub fn device(&self) -> &'d Device<'d> {
        self.device
    }

    /// Place on the device, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes of the device that it is for.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.bytes)
    }

    /// What became of it.
    ///
    /// # Errors
    /// Why it is not whole.
    pub fn result(&self) -> Result<(), IoError> {
        self.result
    }

    /// The whole buffer, if all of it was transferred.
    ///
    /// # Errors
    /// Why it was not.
    pub fn bytes(&self) -> Result<&[u8], IoError> {
        self.result?;
        self.buffer.as_deref().ok_or(IoError::TimedOut)
    }

    /// Takes the buffer back. `None` if the request was given up: the kernel may still use it.
    pub fn take_buffer(&mut self) -> Option<Buffer<'p>> {
        self.buffer.take()
    }

    pub(super) fn buffer_mut(&mut self) -> Option<&mut Buffer<'p>> {
        self.buffer.as_mut()
    }

    pub(super) fn put_buffer(&mut self, buffer: Buffer<'p>) {
        self.buffer = Some(buffer);
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    pub(super) fn set_result(&mut self, result: Result<(), IoError>) {
        match result {
            Err(IoError::TimedOut) => self.device.health.note_timeout(),
            Err(IoError::Failed(_)) => self.device.health.note_error(),
            _ => {}
        }
        self.result = result;
    }

    /// Whether the request starts where `before` ends.
    pub(super) fn follows(&self, before: &Self) -> bool {
        self.device.fd == before.device.fd && before.offset + before.len() as u64 == self.offset
    }
}

/// Up to [`BATCH_MAX`] requests. They may name several devices, whose work then overlaps.
pub struct Batch<'d, 'p> {
    /// The first `count` hold a request. Not `Option`: a batch is made for each fault, and clearing
    /// three kilobytes would cost more than the request.
    requests: [MaybeUninit<Request<'d, 'p>>; BATCH_MAX],
    count: usize,
}

impl Default for Batch<'_, '_> {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Batch<'_, '_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'d, 'p> Batch<'d, 'p> {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { requests: [const { MaybeUninit::uninit() }; BATCH_MAX], count: 0 }
    }

    /// Adds a request for all of `buffer`.
    ///
    /// # Errors
    /// The buffer, if the batch is full.
    ///
    /// # Panics
    /// As [`Request::new`].
    pub fn push(
        &mut self,
        device: &'d Device<'d>,
        offset: u64,
        buffer: Buffer<'p>,
    ) -> Result<(), Buffer<'p>> {
        let Some(place) = self.requests.get_mut(self.count) else { return Err(buffer) };
        place.write(Request::new(device, offset, buffer));
        self.count += 1;
        Ok(())
    }

    /// Drops all requests; their buffers are free again.
    pub fn clear(&mut self) {
        for place in &mut self.requests[..core::mem::take(&mut self.count)] {
            // SAFETY: it held a request, and `count` does not include it any more.
            unsafe { place.assume_init_drop() };
        }
    }

    /// The first failure.
    ///
    /// # Errors
    /// That failure.
    pub fn result(&self) -> Result<(), IoError> {
        self.iter().try_for_each(Request::result)
    }
}

impl<'d, 'p> Deref for Batch<'d, 'p> {
    type Target = [Request<'d, 'p>];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the first `count` hold a request, and a MaybeUninit is laid out as what it holds.
        unsafe { core::slice::from_raw_parts(self.requests.as_ptr().cast(), self.count) }
    }
}

impl DerefMut for Batch<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as above; `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.requests.as_mut_ptr().cast(), self.count) }
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        self.clear();
    }
}
