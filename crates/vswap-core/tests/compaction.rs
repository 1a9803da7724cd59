//! Compaction of a device from its entries: each object is read and written once at most, whatever
//! programs do meanwhile.

mod common;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::thread;

use common::{Random, noise, page_of};
use vswap_core::device::object;
use vswap_core::device::space::{
    Block, DeviceLocal, Extent, ExtentSource, Fill, Fragmentation, Geometry, Placed, Space,
};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    Backing, BackingError, BackingId, CodecKind, Cursor, Form, GroupId, Handle, Limits, Medium,
    Outgoing, PAGE_SIZE, Page, Relocated, Relocation, Room, SwapEntry, Target, VirtualSwap, Worker,
};

/// Extents that come back are handed out again.
#[derive(Debug, Default)]
struct Source {
    returned: Mutex<Vec<Extent>>,
    next: AtomicU32,
    end: u32,
}

impl ExtentSource for Source {
    fn lease(&self) -> Option<Extent> {
        let returned = self.returned.lock().expect("nobody failed").pop();
        let fresh = || self.next.fetch_add(1, Relaxed);
        returned.or_else(|| Some(Extent(fresh())).filter(|extent| extent.0 < self.end))
    }

    fn give_back(&self, extent: Extent) {
        self.returned.lock().expect("nobody failed").push(extent);
    }
}

/// A device in memory that counts.
struct Device {
    slots: Space<MmapPlatform, Source>,
    local: Mutex<DeviceLocal>,
    objects: Mutex<HashMap<u32, (SwapEntry, Vec<u8>)>>,
    loads: AtomicUsize,
    moves: AtomicUsize,
    fails: AtomicBool,
}

impl Device {
    fn new(mib: u32) -> &'static Self {
        let geometry = Geometry::new(9, mib << 11).expect("sizes");
        let source = Source { end: geometry.extents(), ..Source::default() };
        let slots = Space::new(MmapPlatform, source, geometry);
        let local = Mutex::new(slots.local());
        Box::leak(Box::new(Self {
            slots,
            local,
            objects: Mutex::default(),
            loads: 0.into(),
            moves: 0.into(),
            fails: false.into(),
        }))
    }

    fn put(
        &self,
        fill: Fill,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        let blocks = |one: &Outgoing<'_>| object::blocks(one.bytes.len(), 512);
        let sizes: Vec<u8> = objects.iter().map(blocks).collect();
        let mut placed = vec![Placed::default(); sizes.len()];
        let mut local = self.local.lock().expect("nobody failed");
        let taken = self.slots.take_run_by(&mut local, fill, &sizes, &mut placed);
        taken.map_err(|_| BackingError::Full)?;
        let mut kept = self.objects.lock().expect("nobody failed");
        for place in placed {
            let object = &objects[place.object as usize];
            let before = kept.insert(place.block.raw(), (object.entry, object.bytes.to_vec()));
            assert!(before.is_none(), "two objects have one place");
            handles[place.object as usize] = Handle::new(place.block.raw()).expect("30 bits");
        }
        Ok(())
    }

    fn begin(&self) -> Fragmentation {
        self.slots.begin_compaction(&mut self.local.lock().expect("nobody failed"))
    }

    fn density(&self) -> u32 {
        let mut local = self.local.lock().expect("nobody failed");
        self.slots.retire(std::mem::replace(&mut *local, self.slots.local()));
        self.slots.occupancy().density()
    }
}

impl Backing for Device {
    fn medium(&self) -> Medium {
        Medium::Device
    }

    fn form(&self) -> Form {
        Form::Objects
    }

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        let mut handle = [Handle::default()];
        self.put(Fill::Fresh, &[object], &mut handle)?;
        Ok(handle[0])
    }

    fn store_many(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        self.put(Fill::Fresh, objects, handles)
    }

    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        self.loads.fetch_add(1, Relaxed);
        let objects = self.objects.lock().expect("nobody failed");
        match objects.get(&handle.raw()) {
            Some((owner, bytes)) if *owner == entry && bytes.len() == out.len() => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(BackingError::Io(84)),
        }
    }

    fn free(&self, handle: Handle, length: usize) {
        let object = self.objects.lock().expect("nobody failed").remove(&handle.raw());
        assert_eq!(object.expect("freed once").1.len(), length);
        let block = Block::new(handle.raw()).expect("a block");
        self.slots.free(block, object::blocks(length, 512));
    }

    fn room(&self) -> Room {
        let used = u64::from(self.slots.used_blocks()) << 9;
        Room { capacity: u64::MAX, used, metadata: self.slots.metadata() as u64 }
    }
}

impl Relocation for Device {
    fn is_leaving(&self, handle: Handle) -> bool {
        self.slots.is_leaving(Block::new(handle.raw()).expect("a block"))
    }

    fn store_elsewhere(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        if self.fails.load(Relaxed) {
            return Err(BackingError::Full);
        }
        self.moves.fetch_add(objects.len(), Relaxed);
        self.put(Fill::Holes, objects, handles)
    }
}

type Swap = VirtualSwap<MmapPlatform>;

/// A page of a number, of one of several sizes on the device.
fn page(number: u64) -> Page {
    if number.is_multiple_of(3) { noise(number) } else { page_of(number) }
}

fn store(space: &Swap, worker: &mut Worker, id: BackingId, number: u64) -> SwapEntry {
    let entry = space.swap_out(worker, GroupId::ROOT, &page(number)).expect("room");
    space.transfer(worker, entry, Target::Backing(id)).expect("room");
    entry
}

fn verify(space: &Swap, worker: &mut Worker, entry: SwapEntry, number: u64) {
    let mut out = Page::ZERO;
    space.load(worker, entry, &mut out).expect("it is there");
    assert!(out.0 == page(number).0, "page {number} is another");
}

/// One pass; gives the sum of what its batches did.
fn pass(
    space: &Swap,
    worker: &mut Worker,
    (id, device): (BackingId, &'static Device),
) -> Relocated {
    let mut buffer = vec![0; 64 * PAGE_SIZE];
    let mut sum = Relocated { next: None, read: 0, moved: 0, bytes: 0, raced: 0, refused: None };
    let mut from = Some(Cursor::START);
    while let Some(cursor) = from {
        let done =
            space.relocate(worker, (id, device), cursor, 1000, &mut buffer).expect("it is there");
        sum.read += done.read;
        sum.moved += done.moved;
        sum.bytes += done.bytes;
        sum.raced += done.raced;
        sum.refused = sum.refused.or(done.refused);
        from = done.next;
    }
    sum
}

/// A device with every second page freed, and those that are left.
fn half_full(
    space: &Swap,
    worker: &mut Worker,
    (id, _): (BackingId, &'static Device),
    pages: u64,
) -> Vec<(SwapEntry, u64)> {
    let stored: Vec<_> =
        (0..pages).map(|number| (store(space, worker, id, number), number)).collect();
    let (gone, left): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(_, n)| n / 3 % 2 == 0);
    for (entry, _) in gone {
        space.free(entry);
    }
    left
}

fn new_space(mib: u32) -> (&'static Swap, BackingId, &'static Device) {
    let space: &'static Swap = Box::leak(Box::new(VirtualSwap::new(MmapPlatform, Limits::NONE)));
    let device = Device::new(mib);
    (space, space.add_backing(device).expect("room"), device)
}

#[test]
fn half_of_a_device_becomes_dense() {
    let (space, id, device) = new_space(64);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let left = half_full(space, &mut worker, (id, device), 18_000);
    let before = device.density();
    assert!(before < 55, "{before} %");
    let chosen = device.begin();
    device.loads.store(0, Relaxed);
    let done = pass(space, &mut worker, (id, device));
    device.slots.end_compaction();
    assert_eq!((done.raced, done.refused), (0, None));
    assert_eq!((done.read, done.moved), (chosen.objects as usize, chosen.objects as usize));
    assert_eq!(device.loads.load(Relaxed), done.read, "one read for each");
    assert_eq!(device.moves.load(Relaxed), done.moved, "one write for each");
    assert!(done.moved <= left.len());
    assert!(device.density() >= 95, "{before} % became {}", device.density());
    for (entry, number) in left {
        verify(space, &mut worker, entry, number);
    }
    space.retire(worker);
    space.check();
}

/// Charges stay what they were, and a limit that is reached stops nothing.
#[test]
fn what_is_moved_is_charged_once() {
    let (space, id, device) = new_space(32);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let left = half_full(space, &mut worker, (id, device), 6000);
    let used = device.room().used;
    device.begin();
    device.fails.store(true, Relaxed);
    let refused = pass(space, &mut worker, (id, device));
    assert_eq!((refused.moved, refused.refused), (0, Some(BackingError::Full)));
    device.fails.store(false, Relaxed);
    let done = pass(space, &mut worker, (id, device));
    assert!(done.moved > 0 && done.refused.is_none(), "{done:?}");
    assert_eq!(device.room().used, used);
    space.check();
    for (entry, _) in left {
        space.free(entry);
    }
    space.retire(worker);
    let usage = space.usage();
    assert_eq!((usage.device, usage.device_objects, usage.live_slots), (0, 0, 0));
    space.check();
}

/// Two threads read, free and store, and verify all of it, while a third compacts.
#[test]
fn programs_find_their_pages_while_they_move() {
    let (space, id, device) = new_space(128);
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=2_u64 {
            let ended = &ended;
            scope.spawn(move || {
                run_program(space, (id, device), seed);
                ended.fetch_add(1, Relaxed);
            });
        }
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        let mut moved = 0;
        while ended.load(Relaxed) < 2 {
            device.begin();
            moved += pass(space, &mut worker, (id, device)).moved;
            device.slots.end_compaction();
            thread::yield_now();
        }
        space.retire(worker);
        assert!(moved > 100, "only {moved} objects moved");
    });
    let usage = space.usage();
    assert_eq!((usage.device, usage.live_slots), (0, 0));
    space.check();
}

fn run_program(space: &Swap, (id, device): (BackingId, &'static Device), seed: u64) {
    let mut random = Random::new(seed);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let mut left = half_full(space, &mut worker, (id, device), 4000);
    let mut number = seed << 32;
    for _ in 0..6000 {
        let at = random.below(left.len());
        let (entry, page) = left[at];
        verify(space, &mut worker, entry, page);
        if random.below(2) == 0 {
            space.free(entry);
            number += 1;
            left[at] = (store(space, &mut worker, id, number), number);
        }
        if random.below(200) == 0 && left.len() > 500 {
            for (entry, _) in left.drain(..100) {
                space.free(entry);
            }
        }
    }
    for (entry, page) in left {
        verify(space, &mut worker, entry, page);
        space.free(entry);
    }
    space.retire(worker);
}
