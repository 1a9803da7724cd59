//! One swap device as a backing of the virtual swap space.
//!
//! An object is sealed into whole blocks of the device, at the place that the core's
//! [`Space`] gives it. Whoever stores or loads does the input and output itself
//! ([`transfer`](super::transfer)): threads of the program load too, with the program's descriptors.

mod batch;
mod compaction;
mod refusal;
mod unanswered;

use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use linux_raw_sys::general::{O_DIRECT, O_RDWR};
use vswap_core::device::object;
use vswap_core::device::space::{Block, DeviceLocal, Fill, Full, Placed, Side as Fork, Space};
use vswap_core::page::{PAGE_SHIFT, PAGE_SIZE};
use vswap_core::platform::Platform;
use vswap_core::{
    Backing, BackingError, BackingId, Form, Handle, Medium, Outgoing, Room, SwapEntry,
    WRITE_BACK_BATCH,
};

use self::refusal::NOT_REFUSED;
pub use self::refusal::Refusal;
use self::unanswered::{Silence, Unanswered};
use crate::arena::Arena;
use crate::context::NoMemory;
use crate::engine::{Side, engine};
use crate::io::{self, Buffer, Device, Direction, Health, IoError, Late, Request};
use crate::lock::{self, Closed, SpinLock};
use crate::pager;
use crate::run_devices::{Description, DiscardBy};
use crate::swap::SWAP_DEVICES;
#[cfg(doc)]
use crate::swap::devices::SwapDevices;
use crate::swap::fetched::FETCHED;
use crate::swap::generations::Generations;
use crate::swap::leases::Leases;
use crate::swap::read_ahead::{Read, ReadAhead};
use crate::swap::sealing::{Address, SEALING};
use crate::sys::fd::{self, Fd};
use crate::sys::{Errno, file};
use crate::text::Line;

/// Objects that are stored with one call, at most.
const BATCH_MAX: usize = WRITE_BACK_BATCH;

const NO_FD: i32 = -1;

type Slots = Space<Arena, &'static Leases>;

/// What there is of a device while it is on.
#[derive(Debug)]
struct Attached {
    slots: Slots,
    alignment: io::Geometry,
    discard: DiscardBy,
    /// Before this byte of the device nothing is ours.
    start: u64,
}

impl Attached {
    fn block_bytes(&self) -> usize {
        1 << self.slots.geometry().block_shift()
    }

    fn offset(&self, block: Block) -> u64 {
        u64::from(block.raw()) << self.slots.geometry().block_shift()
    }

    fn blocks_of(&self, length: usize) -> u8 {
        object::blocks(length, self.block_bytes())
    }
}

/// A swap device, as this process uses it.
#[derive(Debug)]
pub struct SwapDevice {
    number: u8,
    leases: Leases,
    /// Not freed when the device goes, since a thread may still look at it.
    attached: AtomicPtr<Attached>,
    /// The number's earlier device, whose memory the next one gets.
    retired: AtomicPtr<Attached>,
    local: SpinLock<Option<DeviceLocal>>,
    generations: Generations,
    read_ahead: ReadAhead,
    health: Health,
    refused: AtomicU32,
    serial: AtomicU32,
    draining: AtomicBool,
    backing: AtomicU8,
    pager_fd: AtomicI32,
    program_fd: AtomicI32,
    /// Who reads without holding an object that is here.
    holders: AtomicU32,
    unanswered: Unanswered,
}

/// A device that is not closed while this exists.
#[derive(Debug)]
pub struct InUse<'a> {
    device: &'a SwapDevice,
    attached: &'static Attached,
}

impl InUse<'_> {
    /// For requests.
    pub fn device(&self) -> Device<'_> {
        self.device.device(self.attached)
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.attached.block_bytes()
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.device.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SwapDevice {
    /// The device of this number, not attached yet.
    pub const fn new(number: u8) -> Self {
        Self {
            number,
            leases: Leases::new(number as usize),
            attached: AtomicPtr::new(ptr::null_mut()),
            retired: AtomicPtr::new(ptr::null_mut()),
            local: SpinLock::new(None),
            generations: Generations::new(),
            read_ahead: ReadAhead::new(),
            health: Health::new(),
            refused: AtomicU32::new(NOT_REFUSED),
            serial: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            backing: AtomicU8::new(0),
            pager_fd: AtomicI32::new(NO_FD),
            program_fd: AtomicI32::new(NO_FD),
            holders: AtomicU32::new(0),
            unanswered: Unanswered::new(),
        }
    }

    /// Keeps it from being closed; `None` if it is not there.
    pub fn hold(&self) -> Option<InUse<'_>> {
        // Counted first: `detach` takes it away and looks at the count then.
        self.holders.fetch_add(1, Ordering::SeqCst);
        let Some(attached) = self.attached() else {
            self.holders.fetch_sub(1, Ordering::SeqCst);
            return None;
        };
        Some(InUse { device: self, attached })
    }

    /// Whether somebody reads without holding an object that is here.
    pub fn is_held(&self) -> bool {
        self.holders.load(Ordering::SeqCst) > 0
    }

    /// What was read ahead.
    pub fn read_ahead(&self) -> &ReadAhead {
        &self.read_ahead
    }

    /// Where an object lies, unless it was read ahead already.
    pub fn wants(&self, handle: Handle, length: usize) -> Option<(u32, u8)> {
        let (first, blocks) = (handle.raw(), self.attached()?.blocks_of(length));
        (!self.read_ahead.holds(first, blocks)).then_some((first, blocks))
    }

    fn attached(&self) -> Option<&'static Attached> {
        // SAFETY: what was published is freed when it was taken back and everybody has let go of it: see
        // `memory`.
        unsafe { self.attached.load(Ordering::SeqCst).as_ref() }
    }

    /// Whether it is there.
    pub fn is_attached(&self) -> bool {
        !self.attached.load(Ordering::SeqCst).is_null()
    }

    /// Which of the run's devices with this number it is.
    pub fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }

    /// Whether it is being emptied, to go.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Says whether it is being emptied.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// The backing that it is to the swap space.
    pub fn backing(&self) -> BackingId {
        BackingId::from_raw(self.backing.load(Ordering::Relaxed))
    }

    /// Makes it a backing, with its first blocks and other `bad` ones unused.
    ///
    /// # Errors
    /// Without memory, or room for one more backing.
    pub fn attach(
        &'static self,
        device: Description,
        serial: u32,
        bad: impl Iterator<Item = Range<u32>>,
        gate: Option<&Closed<'_>>,
    ) -> Result<(), NoMemory> {
        let mut slots = Space::new(Arena, &self.leases, device.geometry);
        for pages in bad {
            let shift = PAGE_SHIFT - device.geometry.block_shift();
            let block = |page: u32| Block::new(page << shift).ok_or(NoMemory);
            let blocks = block(pages.start)?..block(pages.end)?;
            slots.mark_bad(blocks).map_err(|_| NoMemory)?;
        }
        slots.set_discard(device.discard != DiscardBy::Nothing);
        let local = slots.local();
        let alignment =
            io::Geometry { direct: device.direct, block: 1 << device.geometry.block_shift() };
        let attached = self.memory(gate).ok_or(NoMemory)?.as_ptr();
        // SAFETY: the memory is nobody's, large enough and aligned to a page.
        unsafe {
            attached.write(Attached {
                slots,
                alignment,
                discard: device.discard,
                start: if device.has_header { PAGE_SIZE as u64 } else { 0 },
            });
        }
        *self.local.lock() = Some(local);
        self.refused.store(NOT_REFUSED, Ordering::Relaxed);
        self.draining.store(false, Ordering::Relaxed);
        self.serial.store(serial, Ordering::Relaxed);
        self.health.clear();
        self.attached.store(attached, Ordering::Release);
        let Ok(backing) = engine().space.add_backing(self) else {
            self.detach();
            // The reclaimer may have found it, without passing the gate.
            self.retired.store(ptr::null_mut(), Ordering::SeqCst);
            return Err(NoMemory);
        };
        self.backing.store(backing.raw(), Ordering::Relaxed);
        Ok(())
    }

    /// Memory for what there is of a device: with the gate closed that of the number's earlier one.
    fn memory(&self, gate: Option<&Closed<'_>>) -> Option<NonNull<Attached>> {
        let earlier = gate.and_then(|_| NonNull::new(self.retired.load(Ordering::SeqCst)));
        let Some(earlier) = earlier.filter(|_| !self.is_held()) else {
            return Some(Arena.reserve(size_of::<Attached>(), PAGE_SIZE)?.cast());
        };
        self.retired.store(ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: the reclaimer has taken it back, which is the one thread that looks at it without passing the
        // gate or holding it. Others that found it passed the gate, which is closed, or held it, and nobody does.
        unsafe { earlier.as_ptr().drop_in_place() };
        Some(earlier)
    }

    /// Forgets the device, which holds nothing and is no backing any more. On a thread of the pager, which
    /// closes it; the program's descriptor is [left](SwapDevices::leave) to the program.
    pub fn detach(&self) {
        if let (Some(attached), Some(local)) = (self.attached(), self.local.lock().take()) {
            attached.slots.retire(local);
            // What waits to be discarded would not go back.
            attached.slots.set_discard(false);
            attached.slots.trim();
        }
        self.retired.store(self.attached.swap(ptr::null_mut(), Ordering::SeqCst), Ordering::SeqCst);
        let mut spins = 0;
        while self.is_held() {
            lock::relax(spins);
            spins += 1;
        }
        self.forget_read_ahead();
        self.unanswered.clear();
        let theirs = self.program_fd.swap(NO_FD, Ordering::AcqRel);
        let ours = self.pager_fd.swap(NO_FD, Ordering::AcqRel);
        if ours >= 0 && engine().side() == Side::Pager {
            let ours = Fd::new(ours);
            SWAP_DEVICES.leave(theirs, file::identity(ours.raw()));
        }
    }

    /// The open file, as one side has it; -1 if that has none.
    pub fn fd(&self, side: Side) -> &AtomicI32 {
        match side {
            Side::Pager => &self.pager_fd,
            Side::Program => &self.program_fd,
        }
    }

    /// Why the last store was refused, if it was.
    pub fn refusal(&self) -> Option<Refusal> {
        Refusal::from_word(self.refused.load(Ordering::Relaxed))
    }

    /// The device is to be tried again.
    pub fn forget_refusal(&self) {
        self.refused.store(NOT_REFUSED, Ordering::Relaxed);
    }

    /// Read before it is written: several reclaim at once, and it hardly ever changes.
    fn set_refusal(&self, refusal: Option<Refusal>) {
        let word = refusal.map_or(NOT_REFUSED, Refusal::to_word);
        if self.refused.load(Ordering::Relaxed) != word {
            self.refused.store(word, Ordering::Relaxed);
            SWAP_DEVICES.note_refusal(self.number, refusal);
        }
    }

    fn device(&self, attached: &Attached) -> Device<'_> {
        Device {
            fd: self.descriptor(attached),
            id: self.id(),
            geometry: attached.alignment,
            health: &self.health,
        }
    }

    /// The open file, as the calling thread's process has it: threads of the program load pages too,
    /// when they fault inline and when memory is excluded from paging.
    fn descriptor(&self, attached: &Attached) -> i32 {
        let engine = engine();
        let side = engine.side();
        let fd = self.fd(side).load(Ordering::Acquire);
        if fd >= 0 || side == Side::Pager {
            return fd;
        }
        // The device came while the program ran.
        let (pager, theirs) =
            (engine.pager.load(Ordering::Relaxed), self.pager_fd.load(Ordering::Relaxed));
        let mut path = Line::<48>::format(format_args!("/proc/{pager}/fd/{theirs}"));
        let direct = if attached.alignment.direct { O_DIRECT } else { 0 };
        let Ok(opened) = fd::open(path.as_c_str(), O_RDWR | direct) else { return NO_FD };
        let Ok(kept) = pager::keep(opened.raw()) else { return NO_FD };
        let first =
            self.program_fd.compare_exchange(NO_FD, kept, Ordering::AcqRel, Ordering::Acquire);
        first.map_or_else(
            |other| {
                drop(Fd::new(kept));
                other
            },
            |_| kept,
        )
    }

    fn address(&self, block: Block) -> Address {
        Address { device: self.number, block }
    }

    fn write(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
        fill: Fill,
    ) -> Result<(), Refusal> {
        let attached = self.attached().ok_or(Refusal::Full)?;
        let (mut sizes, mut placed) = ([0; BATCH_MAX], [Placed::default(); BATCH_MAX]);
        let (sizes, placed) = (&mut sizes[..objects.len()], &mut placed[..objects.len()]);
        for (size, object) in sizes.iter_mut().zip(objects) {
            *size = attached.blocks_of(object.bytes.len());
        }
        self.take_run(attached, fill, sizes, placed)?;
        let mut silence = Silence::new();
        if let Err(refusal) = self.write_batch(attached, placed, objects, &mut silence) {
            for place in placed.iter() {
                if silence.covers(attached.offset(place.block)) {
                    self.unanswered.add(place);
                } else {
                    attached.slots.free(place.block, place.blocks);
                }
            }
            return Err(refusal);
        }
        for place in placed.iter() {
            handles[place.object as usize] = handle_of(place.block);
        }
        Ok(())
    }

    /// Takes the places of a batch. The lock is held for no longer: others store while it is written.
    fn take_run(
        &self,
        attached: &Attached,
        fill: Fill,
        sizes: &[u8],
        placed: &mut [Placed],
    ) -> Result<(), Refusal> {
        let mut local = self.local.lock();
        let local = local.as_mut().ok_or(Refusal::Full)?;
        attached.slots.take_run_by(local, fill, sizes, placed).map_err(|Full| Refusal::Full)
    }

    /// A write that was given up is over: its places are free.
    pub fn note_late_write(&self, late: Late) {
        let Some(attached) = self.attached().filter(|_| late.device == self.id()) else { return };
        let shift = attached.slots.geometry().block_shift();
        let first = (late.offset >> shift) as u32;
        let blocks = first..first + (late.len >> shift);
        self.unanswered.take(&blocks, |block, blocks| attached.slots.free(block, blocks));
    }

    /// What its requests are known by: late answers are not those of the number's next device.
    fn id(&self) -> u32 {
        self.serial() << u8::BITS | u32::from(self.number)
    }

    fn seal(&self, object: &Outgoing<'_>, place: &Placed, out: &mut [u8]) -> Result<(), Refusal> {
        let at = self.address(place.block);
        let number = SEALING.seal(object.entry, at, object.bytes, out).ok_or(Refusal::Full)?;
        let noted = self.generations.set(place.block, place.blocks, number);
        if noted { Ok(()) } else { Err(Refusal::Full) }
    }

    /// Reads an object, and what lies behind it while accesses are in order.
    fn read(
        &self,
        attached: &Attached,
        entry: SwapEntry,
        block: Block,
        out: &mut [u8],
    ) -> Result<(), IoError> {
        let blocks = attached.blocks_of(out.len());
        let block_bytes = attached.block_bytes();
        let end = attached.slots.geometry().blocks();
        let window = self.read_ahead.window(block.raw(), blocks, block_bytes);
        let bytes = window.bytes.min((end - block.raw()) as usize * block_bytes);
        let since = self.read_ahead.moment();
        let object = usize::from(blocks) * block_bytes;
        let buffer = match self.transfer_in(attached, block, bytes) {
            // What lies behind may be bad, or not written.
            Err(_) if bytes > object => self.transfer_in(attached, block, object)?,
            result => result?,
        };
        self.open(entry, block, blocks, &buffer[..object], out)?;
        if buffer.len() > object {
            self.read_ahead.keep(block.raw(), blocks, block_bytes, Read { buffer, since, window });
        }
        Ok(())
    }

    fn transfer_in(
        &self,
        attached: &Attached,
        block: Block,
        len: usize,
    ) -> Result<Buffer<'static>, IoError> {
        let no_memory = IoError::Failed(Errno::ENOMEM);
        let buffer = SWAP_DEVICES.buffer(len).ok_or(no_memory)?;
        let device = self.device(attached);
        let mut request = [Request::new(&device, attached.offset(block), buffer)];
        SWAP_DEVICES.transfer(Direction::Read, &mut request);
        request[0].result()?;
        request[0].take_buffer().ok_or(IoError::TimedOut)
    }

    fn open(
        &self,
        entry: SwapEntry,
        block: Block,
        blocks: u8,
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), IoError> {
        let generation = self.generations.get(block, blocks);
        // As the kernel has it: EILSEQ is what a device says whose own check failed.
        let damaged = |_| IoError::Failed(Errno::EILSEQ);
        SEALING.open(entry, self.address(block), generation, sealed, out).map_err(damaged)
    }

    /// Gives freed clusters back to the file or device, a few at a time; whether there are more.
    pub fn discard(&self) -> bool {
        let Some(attached) = self.attached() else { return false };
        let Some(discard) = attached.slots.next_discard() else { return false };
        let blocks = discard.blocks();
        let (start, len) = (blocks.start as usize, blocks.len());
        let fd = self.fd(Side::Pager).load(Ordering::Relaxed);
        let [start, len] = [start, len].map(|n| (n * attached.block_bytes()) as u64);
        // The cluster of the header has other blocks too.
        let ours = start.max(attached.start);
        let (start, len) = (ours, start + len - ours);
        let done = match attached.discard {
            DiscardBy::PunchHole => file::punch_hole(fd, start, len),
            DiscardBy::Ioctl => file::discard(fd, start, len),
            DiscardBy::Nothing => Err(Errno::EINVAL),
        };
        attached.slots.discarded(discard);
        if done.is_err() {
            attached.slots.set_discard(false);
        }
        done.is_ok()
    }

    /// In both processes of a fork, while no operation is under way.
    pub fn seal_after_fork(&self, side: Fork) {
        let Some(attached) = self.attached() else { return };
        if side == Fork::Child {
            self.leases.hold_inherited(attached.slots.extents());
        }
        attached.slots.seal(side);
    }

    /// Gives the memory back that holds what was read ahead.
    pub fn forget_read_ahead(&self) {
        self.read_ahead.give_up();
    }

    /// Frees the locks in the child of a fork.
    pub fn reset_after_fork(&self) {
        // A number of the parent's pager. In the child's it may be any file of the program's, to which nothing
        // must be written if the run does not give the device to the child.
        self.pager_fd.store(NO_FD, Ordering::Relaxed);
        self.local.reset_after_fork();
        self.unanswered.reset_after_fork();
        self.read_ahead.reset_after_fork();
    }

    /// The leases, for the end of a fork.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Bytes in use by this process.
    pub fn used(&self) -> u64 {
        self.hold().map_or(0, |InUse { attached, .. }| {
            u64::from(attached.slots.used_blocks()) << attached.slots.geometry().block_shift()
        })
    }
}

fn handle_of(block: Block) -> Handle {
    Handle::new(block.raw()).unwrap_or_default()
}

impl Backing for SwapDevice {
    fn medium(&self) -> Medium {
        Medium::Device
    }

    fn form(&self) -> Form {
        Form::Objects
    }

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        let mut handle = [Handle::default()];
        self.store_many(&[object], &mut handle)?;
        Ok(handle[0])
    }

    fn store_many(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        let stored = self.write(objects, handles, Fill::Fresh);
        self.set_refusal(stored.err());
        stored.map_err(Refusal::error)
    }

    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        let (Some(attached), Some(block)) = (self.attached(), Block::new(handle.raw())) else {
            return Err(BackingError::Io(Errno::ENODEV.0));
        };
        let blocks = attached.blocks_of(out.len());
        let mut open = |sealed: &[u8]| self.open(entry, block, blocks, sealed, out).is_ok();
        if FETCHED.find(self.number, block.raw(), blocks, &mut open) == Some(true)
            || self.read_ahead.find(block.raw(), blocks, &mut open) == Some(true)
        {
            return Ok(());
        }
        self.read(attached, entry, block, out).map_err(|error| match Refusal::of(error) {
            Refusal::Failed(number) => BackingError::Io(number),
            Refusal::Full | Refusal::NoSpace => BackingError::Io(Errno::EIO.0),
        })
    }

    fn free(&self, handle: Handle, length: usize) {
        if let (Some(attached), Some(block)) = (self.attached(), Block::new(handle.raw())) {
            attached.slots.free(block, attached.blocks_of(length));
        }
        if self.refusal() == Some(Refusal::Full) {
            self.set_refusal(None);
        }
    }

    fn room(&self) -> Room {
        let Some(in_use) = self.hold() else { return Room::default() };
        let attached = in_use.attached;
        let (geometry, used) = (attached.slots.geometry(), attached.slots.used_blocks());
        Room {
            capacity: u64::from(geometry.blocks()) << geometry.block_shift(),
            used: self.used(),
            metadata: (attached.slots.metadata() + Generations::memory(used)) as u64,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
