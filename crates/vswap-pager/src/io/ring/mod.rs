//! The io_uring engine: a batch is one system call, and a device that does not answer does not hold
//! the thread.

mod queue;

use self::queue::{Completion, Queue, Submission};
use super::batch::{BATCH_MAX, IoError};
use super::buffer::{Buffer, DirectBuffers};
use super::device::Geometry;
use super::{DeviceIo, Direction, Late, Request};
use crate::sys::io_uring::Opcode;
use crate::sys::{Errno, task};

/// Requests that the kernel can have at a time, abandoned ones included.
const SLOTS: usize = 2 * BATCH_MAX;

/// How often a request is submitted again that the kernel could not take up.
const RETRIES_MAX: u8 = 16;

/// A request that the kernel has.
#[derive(Debug)]
struct InFlight<'p> {
    buffer: Buffer<'p>,
    fd: i32,
    device: u32,
    geometry: Geometry,
    direction: Direction,
    offset: u64,
    done: u32,
    retries: u8,
}

/// What is to be done with a request after a completion.
enum Step {
    Over(Result<(), IoError>),
    Continue,
}

impl InFlight<'_> {
    fn step(&mut self, result: Result<u32, Errno>) -> Step {
        match result {
            Ok(bytes) => {
                self.done += bytes;
                let left = self.buffer.len() - self.done as usize;
                let block = self.geometry.block as usize;
                if left == 0 {
                    Step::Over(Ok(()))
                } else if bytes == 0
                    || (self.geometry.direct && !(self.done as usize).is_multiple_of(block))
                {
                    Step::Over(Err(IoError::Short(self.done)))
                } else {
                    Step::Continue
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Step::Continue
            }
            Err(error) => Step::Over(Err(error.into())),
        }
    }

    fn submission(&self, slot: usize) -> Submission {
        Submission {
            opcode: match self.direction {
                Direction::Read => Opcode::Read,
                Direction::Write => Opcode::Write,
            },
            fd: self.fd,
            offset: self.offset + u64::from(self.done),
            // SAFETY: fewer bytes are done than the buffer has.
            address: unsafe { self.buffer.address().add(self.done as usize) },
            len: self.buffer.len() as u32 - self.done,
            token: slot as u64,
        }
    }

    fn late(&self, result: Result<(), IoError>) -> Late {
        Late {
            device: self.device,
            offset: self.offset,
            len: self.buffer.len() as u32,
            direction: self.direction,
            result,
        }
    }
}

#[derive(Debug)]
enum Slot<'p> {
    Free,
    /// A request of the batch under way, and its place in it.
    Busy(InFlight<'p>, usize),
    /// Given up; the kernel still has the buffer.
    Abandoned(InFlight<'p>),
    /// Given up, answered since, and not reported yet.
    Answered(Late),
}

/// io_uring, for one thread.
#[derive(Debug)]
pub struct RingIo<'p> {
    buffers: &'p DirectBuffers,
    timeout_ns: u64,
    slots: [Slot<'p>; SLOTS],
    /// Slots that are [`Slot::Busy`].
    busy: u32,
    queue: Queue,
}

impl<'p> RingIo<'p> {
    /// Makes a ring for the calling thread. A device may take `timeout_ns` over a batch.
    ///
    /// # Errors
    /// Why the kernel refuses; ENOSYS if its io_uring lacks what the engine needs.
    pub fn new(buffers: &'p DirectBuffers, timeout_ns: u64) -> Result<Self, Errno> {
        let queue = Queue::new(SLOTS as u32)?;
        Ok(Self { buffers, timeout_ns, slots: [const { Slot::Free }; SLOTS], busy: 0, queue })
    }

    /// Moves requests from `requests[from..]` to free slots; the first that found none.
    fn start(
        &mut self,
        direction: Direction,
        requests: &mut [Request<'_, 'p>],
        from: usize,
    ) -> usize {
        let mut free = (0..SLOTS).filter(|&slot| matches!(self.slots[slot], Slot::Free));
        let mut taken = [0; BATCH_MAX];
        let mut count = 0;
        for place in &mut taken {
            let Some(slot) = free.next() else { break };
            *place = slot;
            count += 1;
        }
        let mut next = from;
        for &slot in &taken[..count] {
            let Some(request) = requests.get_mut(next) else { break };
            next += 1;
            let Some(buffer) = request.take_buffer() else {
                request.set_result(Err(IoError::TimedOut));
                continue;
            };
            let device = request.device();
            let in_flight = InFlight {
                buffer,
                fd: device.fd,
                device: device.id,
                geometry: device.geometry,
                direction,
                offset: request.offset(),
                done: 0,
                retries: 0,
            };
            self.queue.push(&in_flight.submission(slot));
            self.slots[slot] = Slot::Busy(in_flight, next - 1);
            self.busy += 1;
        }
        next
    }

    /// Takes one completion in. `requests` is the batch under way, empty if there is none.
    fn complete(&mut self, completion: Completion, requests: &mut [Request<'_, 'p>]) {
        let number = completion.token as usize;
        let slot = core::mem::replace(&mut self.slots[number], Slot::Free);
        self.slots[number] = match slot {
            Slot::Busy(mut in_flight, index) => match in_flight.step(completion.result) {
                Step::Continue => {
                    self.queue.push(&in_flight.submission(number));
                    Slot::Busy(in_flight, index)
                }
                Step::Over(result) => {
                    self.finish(in_flight, &mut requests[index], result);
                    Slot::Free
                }
            },
            Slot::Abandoned(mut in_flight) => {
                let result = match in_flight.step(completion.result) {
                    Step::Over(result) => result,
                    // Nobody waits for the rest.
                    Step::Continue => Err(IoError::Short(in_flight.done)),
                };
                Slot::Answered(in_flight.late(result))
            }
            slot @ (Slot::Free | Slot::Answered(_)) => {
                debug_assert!(false, "a completion for nothing");
                slot
            }
        };
    }

    /// How long a device may take over a batch from now on.
    pub(super) fn set_timeout(&mut self, timeout_ns: u64) {
        self.timeout_ns = timeout_ns;
    }

    fn finish(
        &mut self,
        in_flight: InFlight<'p>,
        request: &mut Request<'_, 'p>,
        result: Result<(), IoError>,
    ) {
        self.busy -= 1;
        request.put_buffer(in_flight.buffer);
        request.set_result(result);
    }

    fn reap(&mut self, requests: &mut [Request<'_, 'p>]) {
        while let Some(completion) = self.queue.pop() {
            self.complete(completion, requests);
        }
    }

    /// Ends what the kernel never got: its buffers are free, and nothing will be written.
    fn withdraw(&mut self, requests: &mut [Request<'_, 'p>], error: Errno) {
        while let Some(token) = self.queue.take_back() {
            let slot = core::mem::replace(&mut self.slots[token as usize], Slot::Free);
            if let Slot::Busy(in_flight, index) = slot {
                self.finish(in_flight, &mut requests[index], Err(error.into()));
            }
        }
    }

    /// Gives up what is not answered.
    fn abandon(&mut self, requests: &mut [Request<'_, 'p>]) {
        for slot in &mut self.slots {
            *slot = match core::mem::replace(slot, Slot::Free) {
                Slot::Busy(in_flight, index) => {
                    requests[index].set_result(Err(IoError::TimedOut));
                    Slot::Abandoned(in_flight)
                }
                other => other,
            };
        }
        self.busy = 0;
    }

    /// Submits and waits until all that is in flight is answered; whether it was, in time.
    fn wait(&mut self, requests: &mut [Request<'_, 'p>], deadline: u64) -> bool {
        while self.busy > 0 {
            let left = deadline.saturating_sub(task::now_ns());
            // SAFETY: the buffers of all submissions lie in slots, which keep them until their
            // completions are seen.
            let entered = unsafe { self.queue.enter(self.busy, left) };
            // Before the clock is believed: this thread may have been stopped meanwhile.
            self.reap(requests);
            match entered {
                Ok(()) | Err(Errno::ETIME | Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) if left > 0 => task::yield_now(),
                Err(error) => {
                    self.withdraw(requests, error);
                    self.abandon(requests);
                    return false;
                }
            }
            if left == 0 && self.busy > 0 {
                self.withdraw(requests, Errno::EBUSY);
                self.abandon(requests);
                return false;
            }
        }
        true
    }
}

impl<'p> DeviceIo<'p> for RingIo<'p> {
    fn buffers(&self) -> &'p DirectBuffers {
        self.buffers
    }

    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'p>]) {
        let deadline = task::now_ns() + self.timeout_ns;
        let mut next = 0;
        while next < requests.len() {
            let first = next;
            next = self.start(direction, requests, first);
            // No slot is free: the kernel has as many abandoned requests as there are slots.
            if next == first || !self.wait(requests, deadline) {
                break;
            }
        }
        for request in &mut requests[next..] {
            request.set_result(Err(Errno::EBUSY.into()));
        }
    }

    fn can_time_out(&self) -> bool {
        true
    }

    fn settle(&mut self, report: &mut dyn FnMut(Late)) -> usize {
        // Completions may wait for the thread to ask for them. An error changes nothing: they are
        // found the next time.
        // SAFETY: as in `wait`.
        let _ = unsafe { self.queue.enter(0, 0) };
        self.reap(&mut []);
        let mut open = 0;
        for slot in &mut self.slots {
            match slot {
                Slot::Answered(late) => {
                    report(*late);
                    *slot = Slot::Free;
                }
                Slot::Abandoned(_) => open += 1,
                Slot::Free | Slot::Busy(..) => {}
            }
        }
        open
    }
}

impl Drop for RingIo<'_> {
    /// Closing a ring does not stop a device: what it may still write to stays taken.
    fn drop(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Abandoned(in_flight) | Slot::Busy(in_flight, _) =
                core::mem::replace(slot, Slot::Free)
            {
                core::mem::forget(in_flight.buffer);
            }
        }
    }
}
