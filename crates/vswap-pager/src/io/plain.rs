//! The plain engine: one preadv or pwritev for each run of adjoining requests.

use super::batch::{BATCH_MAX, IoError};
use super::buffer::DirectBuffers;
use super::{DeviceIo, Direction, Late, Request};
use crate::sys::file::{IoVec, preadv, pwritev};
use crate::sys::{Errno, fd};

/// Reads and writes by system calls that come back when the device has answered, however long that
/// takes. It has no state, so any thread may have one.
#[derive(Clone, Copy, Debug)]
pub struct PlainIo<'p> {
    buffers: &'p DirectBuffers,
}

impl<'p> PlainIo<'p> {
    /// An engine.
    pub const fn new(buffers: &'p DirectBuffers) -> Self {
        Self { buffers }
    }
}

impl<'p> DeviceIo<'p> for PlainIo<'p> {
    fn buffers(&self) -> &'p DirectBuffers {
        self.buffers
    }

    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'p>]) {
        let adjoin = |before: &Request<'_, 'p>, next: &Request<'_, 'p>| next.follows(before);
        for run in requests.chunk_by_mut(adjoin) {
            for part in run.chunks_mut(BATCH_MAX) {
                // The kernel tells the bytes of the whole run, and an error hides what came before
                // it: where a run does not go through whole, each request is asked for by itself.
                if part.len() == 1 || !transfer_run(direction, part) {
                    for request in part {
                        let result = transfer_one(direction, request);
                        request.set_result(result);
                    }
                }
            }
        }
    }

    fn can_time_out(&self) -> bool {
        false
    }

    fn settle(&mut self, _report: &mut dyn FnMut(Late)) -> usize {
        0
    }
}

/// All requests with one call. Whether that did all of it.
fn transfer_run(direction: Direction, run: &mut [Request<'_, '_>]) -> bool {
    let (fd, offset) = (run[0].device().fd, run[0].offset());
    let mut vector = [IoVec { iov_base: core::ptr::null_mut(), iov_len: 0 }; BATCH_MAX];
    let mut total = 0;
    for (piece, request) in vector.iter_mut().zip(run.iter_mut()) {
        let Some(buffer) = request.buffer_mut() else { return false };
        *piece = IoVec { iov_base: buffer.address().cast(), iov_len: buffer.len() as _ };
        total += buffer.len();
    }
    let pieces = &vector[..run.len()];
    // SAFETY: the buffers belong to the requests, which are borrowed exclusively.
    let done = unsafe {
        match direction {
            Direction::Read => preadv(fd, pieces, offset),
            Direction::Write => pwritev(fd, pieces, offset),
        }
    };
    if done != Ok(total) {
        return false;
    }
    for request in run {
        request.set_result(Ok(()));
    }
    true
}

/// One request, until it is whole or gets no further.
fn transfer_one(direction: Direction, request: &mut Request<'_, '_>) -> Result<(), IoError> {
    let (device, offset) = (request.device(), request.offset());
    let Some(buffer) = request.buffer_mut() else { return Err(IoError::TimedOut) };
    let mut done = 0;
    while done < buffer.len() {
        let place = offset + done as u64;
        let moved = match direction {
            Direction::Read => fd::pread(device.fd, &mut buffer[done..], place),
            Direction::Write => fd::pwrite(device.fd, &buffer[done..], place),
        };
        match moved {
            Ok(bytes) => {
                done += bytes;
                if bytes == 0 || !device.can_continue_at(done) {
                    break;
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if done < buffer.len() { Err(IoError::Short(done as u32)) } else { Ok(()) }
}
