//! All swap devices of the run, as this process uses them.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use vswap_core::BackingState;
use vswap_core::device::header::{AreaKind, SwapArea};
use vswap_core::device::set::{Bar, DEVICES_MAX, DeviceId, DeviceSet, TierMask, Turn};
use vswap_core::device::space::Side as Fork;
use vswap_core::page::{PAGE_SIZE, Page};

use crate::arena::Arena;
use crate::engine::{Engine, Side, engine};
#[cfg(test)]
use crate::io::DeviceIo as _;
use crate::io::{Buffer, DirectBuffers, Direction, Late, Request};
use crate::lock::{self, Closed, SpinLock};
use crate::run_devices::{Description, RunDevice};
use crate::run_page::{Member, RunPage};
use crate::swap::device::{Refusal, SwapDevice};
use crate::swap::fetched::FETCHED;
use crate::swap::leases::Forking;
use crate::swap::transfer::Transfers;
use crate::sys::fd::{self, Fd};
use crate::sys::file::{self, Identity};

/// Groups of buffers for input and output, of 256 KiB each.
const BUFFER_GROUPS: usize = 6;

/// Blocks of one device in a row before the next of the same priority has its turn.
const TURN_BLOCKS: u32 = 512;

/// Looks for a free buffer before a transfer is refused.
const BUFFER_SPINS: u32 = 100_000;

/// Such looks between two times that all read-ahead is forgotten for want of a buffer.
const SPINS_PER_GIVING_WAY: u32 = 64;

/// Devices, their order, and the memory that they share.
#[derive(Debug)]
pub struct SwapDevices {
    devices: [SwapDevice; DEVICES_MAX],
    set: DeviceSet,
    turn: SpinLock<Turn>,
    buffers: SpinLock<Option<&'static DirectBuffers>>,
    transfers: Transfers,
    left: SpinLock<[Option<Left>; DEVICES_MAX]>,
    any_left: AtomicBool,
    keeps_slots: AtomicBool,
}

/// A descriptor of the program's, of a device that has gone.
#[derive(Clone, Copy, Debug)]
struct Left {
    fd: i32,
    identity: Identity,
}

/// The devices of this process.
pub static SWAP_DEVICES: SwapDevices = SwapDevices::new();

impl SwapDevices {
    #[expect(clippy::large_stack_arrays, reason = "the value of a static")]
    const fn new() -> Self {
        Self {
            devices: [
                SwapDevice::new(0),
                SwapDevice::new(1),
                SwapDevice::new(2),
                SwapDevice::new(3),
                SwapDevice::new(4),
                SwapDevice::new(5),
                SwapDevice::new(6),
                SwapDevice::new(7),
            ],
            set: DeviceSet::new(),
            turn: SpinLock::new(Turn::NONE),
            buffers: SpinLock::new(None),
            transfers: Transfers::new(),
            left: SpinLock::new([None; DEVICES_MAX]),
            any_left: AtomicBool::new(false),
            keeps_slots: AtomicBool::new(false),
        }
    }

    /// Leaves a descriptor for the program to close, whose table it is in. Without knowing what is open
    /// there, or with too many of them, it stays open.
    pub fn leave(&self, fd: i32, identity: Option<Identity>) {
        let mut left = self.left.lock();
        let free = left.iter_mut().find(|place| place.is_none());
        if let (true, Some(identity), Some(place)) = (fd >= 0, identity, free) {
            *place = Some(Left { fd, identity });
            self.any_left.store(true, Ordering::Release);
        }
    }

    /// Closes what was left, on a thread of the program; not if the program has put another file there.
    pub fn close_left(&self) {
        if !self.any_left.load(Ordering::Acquire) {
            return;
        }
        let mut left = self.left.lock();
        for Left { fd, identity } in left.iter_mut().filter_map(Option::take) {
            if file::identity(fd) == Some(identity) {
                drop(Fd::new(fd));
            }
        }
        self.any_left.store(false, Ordering::Release);
    }

    /// Those that are attached, with their numbers.
    pub fn all(&'static self) -> impl Iterator<Item = (usize, &'static SwapDevice)> {
        self.devices.iter().enumerate().filter(|(_, device)| device.is_attached())
    }

    /// The device of a number, attached or not.
    pub fn get(&'static self, number: usize) -> Option<&'static SwapDevice> {
        self.devices.get(number)
    }

    /// Whether there is one that takes objects, now or when it has room again.
    pub fn any(&'static self) -> bool {
        self.all().any(|(_, device)| !device.is_draining())
    }

    /// Whether pages that were only read keep their slots: up to half of all devices is in use, as for the
    /// kernel (`vm_swap_full`).
    pub fn keeps_slots(&self) -> bool {
        self.keeps_slots.load(Ordering::Relaxed)
    }

    /// Looks how full the devices are, and whether one that was full has got room by what others have given
    /// back.
    pub fn look_at_use(&'static self, engine: &Engine, run: &RunPage, member: &Member) {
        let keeps = self.any() && !run.swap_is_half_full(member);
        self.keeps_slots.store(keeps, Ordering::Relaxed);
        if self.refusal() == Some(Refusal::Full) && run.may_lease(member) {
            for (number, device) in self.all() {
                let has_room = run.devices.get(number).is_some_and(|it| it.leased() < it.limit());
                if let (true, Some(id)) = (has_room, DeviceId::new(number as u8)) {
                    self.set.unbar(&Arena, id, Bar::Full);
                    device.forget_refusal();
                }
            }
            self.next(engine, 0);
        }
    }

    /// Whether there is one that takes objects now, as far as is known.
    pub fn take_objects(&'static self) -> bool {
        self.any() && self.refusal().is_none()
    }

    /// Closes a device for objects, or opens it again.
    pub fn set_draining(
        &'static self,
        engine: &Engine,
        number: usize,
        device: &SwapDevice,
        draining: bool,
    ) {
        device.set_draining(draining);
        let state = if draining { BackingState::Draining } else { BackingState::Active };
        // It is there: it is attached.
        let _ = engine.space.set_backing_state(device.backing(), state);
        if let Some(id) = DeviceId::new(number as u8) {
            if draining {
                self.set.bar(&Arena, id, Bar::Draining);
            } else {
                self.set.unbar(&Arena, id, Bar::Draining);
            }
        }
        self.next(engine, 0);
    }

    /// Bytes that this process uses on all of them.
    pub fn used(&'static self) -> u64 {
        self.all().map(|(_, device)| device.used()).sum()
    }

    /// Why none takes anything; `None` if one does.
    pub fn refusal(&'static self) -> Option<Refusal> {
        let others = self.all().filter(|(_, device)| !device.is_draining());
        let mut refusals = others.map(|(_, device)| device.refusal());
        let first = refusals.next()??;
        refusals.all(|refusal| refusal.is_some()).then_some(first)
    }

    /// Bytes of the memory that transfers go through.
    pub fn memory(&'static self) -> usize {
        self.buffers().map_or(0, DirectBuffers::memory)
    }

    /// The memory for transfers; `None` before the first device.
    pub fn buffers(&self) -> Option<&'static DirectBuffers> {
        *self.buffers.lock()
    }

    /// A buffer for one transfer, which is short: if all are taken the caller waits for one. What was
    /// read ahead gives way.
    pub fn buffer(&self, len: usize) -> Option<Buffer<'static>> {
        let buffers = self.buffers()?;
        (0..BUFFER_SPINS).find_map(|spins| {
            let buffer = buffers.take(len);
            if buffer.is_none() {
                if spins.is_multiple_of(SPINS_PER_GIVING_WAY) {
                    self.devices.iter().for_each(SwapDevice::forget_read_ahead);
                }
                lock::relax(spins);
            }
            buffer
        })
    }

    /// A buffer, if one is free now or what was read ahead gives it.
    pub fn buffer_now(&self, len: usize) -> Option<Buffer<'static>> {
        let buffers = self.buffers()?;
        buffers.take(len).or_else(|| {
            self.devices.iter().for_each(SwapDevice::forget_read_ahead);
            buffers.take(len)
        })
    }

    /// Takes in what devices have answered since the calling thread gave it up.
    pub fn settle(&self) {
        if self.transfers.is_any_unanswered() {
            let _passage = engine().gate.pass();
            self.transfers.settle(&mut |late| self.note_late(late));
        }
    }

    /// What was written late will not be written again: the places are free.
    fn note_late(&self, late: Late) {
        if late.direction == Direction::Write {
            self.devices.iter().for_each(|device| device.note_late_write(late));
        }
    }

    /// Carries out all requests, and gives each its result.
    pub fn transfer(&self, direction: Direction, requests: &mut [Request<'_, 'static>]) {
        let Some(buffers) = self.buffers() else { return };
        #[cfg(not(test))]
        self.transfers.transfer(buffers, direction, requests, &mut |late| self.note_late(late));
        #[cfg(test)]
        crate::swap::device::tests::FaultyThreadIo::new(buffers).transfer(direction, requests);
    }

    fn make_buffers(&self) -> bool {
        let mut buffers = self.buffers.lock();
        if buffers.is_none() {
            *buffers =
                DirectBuffers::reserve(&Arena, BUFFER_GROUPS).and_then(|new| new.leak(&Arena));
        }
        buffers.is_some()
    }

    /// Takes a device of the run into use, with the pager's descriptor of it. The child of a fork has
    /// those of its parent already, and gets the descriptor. With the gate closed, the memory of the number's
    /// earlier device is used again. `false` without memory, or if the
    /// device is not what the run says.
    pub fn attach(
        &'static self,
        engine: &Engine,
        number: usize,
        fd: i32,
        gate: Option<&Closed<'_>>,
    ) -> bool {
        let described = engine.run_page().and_then(|run| {
            let device = run.devices.get(number)?;
            Some((device.description()?, device.serial()))
        });
        let (Some((description, serial)), Some(device)) = (described, self.devices.get(number))
        else {
            return false;
        };
        if device.is_attached() && device.serial() != serial {
            // Its parent's, which has gone since; a child that had something there would hold it.
            self.set_draining(engine, number, device, true);
            if engine.space.remove_backing(device.backing()).is_err() {
                return false;
            }
            device.detach();
        }
        device.fd(Side::Pager).store(fd, Ordering::Relaxed);
        if device.is_attached() {
            return true;
        }
        let attached =
            self.make_buffers() && self.attach_new(device, (description, serial), fd, gate);
        if let (true, Some(id)) = (attached, DeviceId::new(number as u8)) {
            self.set.insert(&Arena, id, description.priority);
            self.next(engine, 0);
        }
        attached
    }

    fn attach_new(
        &'static self,
        device: &'static SwapDevice,
        (description, serial): (Description, u32),
        fd: i32,
        gate: Option<&Closed<'_>>,
    ) -> bool {
        if !description.has_header {
            return device.attach(description, serial, core::iter::empty(), gate).is_ok();
        }
        let Some(mut first) = self.buffer(PAGE_SIZE) else { return false };
        if fd::pread(fd, &mut first, 0) != Ok(PAGE_SIZE) {
            return false;
        }
        let Ok(page) = <&[u8; PAGE_SIZE]>::try_from(&*first).map(|bytes| Page(*bytes)) else {
            return false;
        };
        // The coordinator has checked what it is. Only the list of bad pages is of interest here.
        let parsed = SwapArea::parse(&page, u64::MAX, AreaKind::BlockDevice);
        let Ok(area) = parsed else { return false };
        let header = core::iter::once(0..1);
        let bad = area.bad_pages().map(|page| Range { start: page, end: page + 1 });
        device.attach(description, serial, header.chain(bad), gate).is_ok()
    }

    /// The device that the next `blocks` blocks go to. Objects that are stored singly follow.
    pub fn next(&'static self, engine: &Engine, blocks: u32) -> Option<&'static SwapDevice> {
        let mut turn = self.turn.lock();
        let before = turn.device();
        let id = self.set.choose(&Arena, &mut turn, TierMask::ALL, blocks, TURN_BLOCKS)?;
        drop(turn);
        let device = self.get(usize::from(id.raw()))?;
        if before != Some(id) {
            engine.space.prefer_backings(&[device.backing()]);
        }
        Some(device)
    }

    /// The device of a slower tier that takes objects next, and its number; `None` if there is none.
    pub fn next_below(&'static self, number: usize) -> Option<(usize, &'static SwapDevice)> {
        let tier = self.set.tier(&Arena, DeviceId::new(number as u8)?)?;
        let below = self.set.below(&Arena, tier);
        // The device that is chosen has had its turn, so those of a tier are chosen in turns.
        let id = self.set.choose(&Arena, &mut Turn::default(), below, 1, TURN_BLOCKS)?;
        let number = usize::from(id.raw());
        Some((number, self.get(number)?))
    }

    /// What the run says of a device that is attached.
    pub fn described<'a>(&self, run: &'a RunPage, number: usize) -> Option<&'a RunDevice> {
        let device = self.devices.get(number).filter(|device| device.is_attached())?;
        run.devices.get(number).filter(|described| described.serial() == device.serial())
    }

    /// Passes a device over while it takes nothing.
    pub fn note_refusal(&'static self, number: u8, refusal: Option<Refusal>) {
        let Some(id) = DeviceId::new(number) else { return };
        match refusal {
            None => self.set.unbar(&Arena, id, Bar::Full),
            Some(Refusal::Full | Refusal::NoSpace) => self.set.bar(&Arena, id, Bar::Full),
            Some(Refusal::Failed(_)) => self.set.bar(&Arena, id, Bar::Failed),
        };
        self.next(engine(), 0);
    }

    /// Before a fork. The child may hold all that this process holds, until it has said so.
    pub fn before_fork(&'static self) -> Forking {
        Forking::begin()
    }

    /// In the parent, with no operation under way: what is on the devices is the child's too.
    pub fn share_with_child(&'static self) {
        self.all().for_each(|(_, device)| device.seal_after_fork(Fork::Parent));
    }

    /// In the parent, when the child has joined the run or is gone.
    pub fn after_fork(&'static self, forking: Forking) {
        forking.end(self.devices.iter().map(SwapDevice::leases));
    }

    /// In the child, before anything else: no lock is held, no transfer under way.
    pub fn reset_after_fork(&'static self) {
        Forking::reset_after_fork();
        self.turn.reset_after_fork();
        self.buffers.reset_after_fork();
        self.left.reset_after_fork();
        self.transfers.reset_after_fork();
        FETCHED.reset_after_fork();
        if let Some(buffers) = self.buffers() {
            buffers.reset_after_fork();
        }
        self.devices.iter().for_each(SwapDevice::reset_after_fork);
    }

    /// In the child, when it has joined the run: holds what it has inherited. `false` if the run has
    /// not given it a device that it needs.
    pub fn inherit(&'static self) -> bool {
        let lacks = |device: &SwapDevice| {
            device.used() > 0 && device.fd(Side::Pager).load(Ordering::Relaxed) < 0
        };
        let complete = !self.all().any(|(_, device)| lacks(device));
        if complete {
            self.all().for_each(|(_, device)| device.seal_after_fork(Fork::Child));
        }
        complete
    }
}
