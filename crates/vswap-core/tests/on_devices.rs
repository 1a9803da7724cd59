//! What pages on a swap device cost in RAM, and how long swapoff looks for them.
//!
//! The devices keep no payload. `VSWAP_TEST_LONG=1` looks for pages among 32 GiB instead of 1.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use common::{noise, page_of};
use vswap_core::device::object;
use vswap_core::device::space::{
    Block, DeviceLocal, Extent, ExtentSource, Geometry, Placed, Space,
};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    Backing, BackingError, BackingId, BackingState, CodecKind, Cursor, Form, GroupId, Handle,
    Limits, Medium, Outgoing, PAGE_SIZE, Page, Room, SwapEntry, Target, VirtualSwap, Worker,
};

/// The client's own word for a page, and two bits of its write's number for each block of it.
const PAGE_TABLE_WORD: f64 = 4.0;
const GENERATION_BITS: f64 = 2.0;

/// Pages that are in the pool before they are written back.
const CHUNK: usize = 4096;

/// Hands out all extents of a device.
#[derive(Debug, Default)]
struct All(AtomicU64);

impl ExtentSource for All {
    fn lease(&self) -> Option<Extent> {
        Some(Extent(self.0.fetch_add(1, Relaxed) as u32))
    }

    fn give_back(&self, _extent: Extent) {}
}

/// A device with slots for objects, and nothing in them but one page, which all have.
struct Simulated {
    slots: Space<MmapPlatform, All>,
    local: Mutex<DeviceLocal>,
    page: Vec<u8>,
}

impl Simulated {
    fn new(block_shift: u32, page: Vec<u8>) -> &'static Self {
        let geometry = Geometry::new(block_shift, 1 << 30).expect("sizes");
        let slots = Space::new(MmapPlatform, All::default(), geometry);
        let local = Mutex::new(slots.local());
        Box::leak(Box::new(Self { slots, local, page }))
    }

    fn blocks(&self, length: usize) -> u8 {
        object::blocks(length, 1 << self.slots.geometry().block_shift())
    }
}

impl Backing for Simulated {
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
        let sizes: Vec<u8> = objects.iter().map(|one| self.blocks(one.bytes.len())).collect();
        let mut placed = vec![Placed::default(); sizes.len()];
        let mut local = self.local.lock().expect("nobody failed");
        self.slots.take_run(&mut local, &sizes, &mut placed).map_err(|_| BackingError::Full)?;
        for place in placed {
            handles[place.object as usize] = Handle::new(place.block.raw()).expect("30 bits");
        }
        Ok(())
    }

    fn load(&self, _: SwapEntry, _: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        out.copy_from_slice(&self.page);
        Ok(())
    }

    fn free(&self, handle: Handle, length: usize) {
        self.slots.free(Block::new(handle.raw()).expect("a block"), self.blocks(length));
    }

    fn room(&self) -> Room {
        let used = u64::from(self.slots.used_blocks()) << self.slots.geometry().block_shift();
        Room { capacity: u64::MAX, used, metadata: self.slots.metadata() as u64 }
    }
}

/// Writes everything in the pool back, from `from` on.
fn write_back(space: &VirtualSwap<MmapPlatform>, worker: &mut Worker, id: BackingId, from: Cursor) {
    let mut buffer = vec![0; 64 * PAGE_SIZE];
    let mut from = Some(from);
    while let Some(cursor) = from {
        let all = cursor..Cursor::END;
        let done = space.write_back(worker, id, all, &mut buffer, |_| true).expect("known");
        assert_eq!(done.refused, None);
        from = done.next;
    }
}

/// Stores a page many times on a device, and every hundred thousandth on another.
fn fill(
    space: &VirtualSwap<MmapPlatform>,
    worker: &mut Worker,
    (page, count): (&Page, usize),
    [many, few]: [BackingId; 2],
) -> Vec<SwapEntry> {
    let mut entries = Vec::with_capacity(count);
    for number in 1..=count {
        let entry = space.swap_out(worker, GroupId::ROOT, page).expect("room");
        entries.push(entry);
        if number.is_multiple_of(100_000) {
            space.transfer(worker, entry, Target::Backing(few)).expect("room");
        }
        if number.is_multiple_of(CHUNK) || number == count {
            let first = entries[(number - 1) / CHUNK * CHUNK];
            write_back(space, worker, many, Cursor::at(first));
        }
    }
    entries
}

/// All that was taken goes back: of the space, and of a device.
fn empty(space: &VirtualSwap<MmapPlatform>, worker: Worker, entries: &[SwapEntry]) {
    space.free_many(entries);
    space.retire(worker);
    let usage = space.usage();
    assert_eq!((usage.live_slots, usage.clusters, usage.pool_memory), (0, 0, 0));
    assert_eq!((usage.device, usage.metadata.descriptors, usage.metadata.headers), (0, 0, 0));
}

fn metadata_without_objects(device: &Simulated) -> usize {
    let fresh = device.slots.local();
    let used = std::mem::replace(&mut *device.local.lock().expect("nobody failed"), fresh);
    device.slots.retire(used);
    device.slots.trim();
    device.slots.metadata() - size_of::<Space<MmapPlatform, All>>()
}

/// Bytes in RAM for each page on a device: all that the allocators gave, and the client's word.
fn metadata_per_page(what: &str, block_shift: u32, page: &Page, codec: CodecKind) -> f64 {
    const PAGES: usize = 1 << 18;
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let device = Simulated::new(block_shift, page.0.to_vec());
    let id = space.add_backing(device).expect("room");
    let mut worker = space.worker(codec).expect("memory");
    let entries = fill(&space, &mut worker, (page, PAGES), [id, id]);
    let usage = space.usage();
    let parts = usage.metadata;
    let generations = f64::from(device.slots.occupancy().cluster_blocks) * GENERATION_BITS / 8.0;
    // What a page does not add to: counters, groups, and what a worker needs.
    let per_page = |bytes: usize| bytes as f64 / PAGES as f64;
    let own = [parts.descriptors, parts.headers, parts.side_tables, parts.pool];
    let (own, slots) = (own.map(per_page), per_page(parts.backings));
    let sum = own.iter().sum::<f64>() + slots + generations / PAGES as f64 + PAGE_TABLE_WORD;
    println!(
        "{what}: descriptor {:.2}, header {:.2}, side table {:.2}, pool {:.2}, slots {slots:.2}, \
         generations {:.2}, page-table word {PAGE_TABLE_WORD:.2}: {sum:.2} bytes",
        own[0],
        own[1],
        own[2],
        own[3],
        generations / PAGES as f64
    );
    assert_eq!(usage.live_slots, PAGES as u64);
    assert_eq!(usage.device, device.room().used);
    empty(&space, worker, &entries);
    assert_eq!(metadata_without_objects(device), 0, "a device that holds nothing takes memory");
    sum
}

#[test]
fn a_page_on_a_device_costs_at_most_14_bytes_in_ram() {
    let (third, raw) = (page_of(1), noise(1));
    assert!(metadata_per_page("lz4, 512", 9, &third, CodecKind::Lz4) <= 14.0);
    assert!(metadata_per_page("lz4, 4096", 12, &third, CodecKind::Lz4) <= 14.0);
    assert!(metadata_per_page("raw, 4096", 12, &raw, CodecKind::None) <= 14.0);
    // Nine blocks, each with a bit that says so and two of its write's number.
    assert!(metadata_per_page("raw, 512", 9, &raw, CodecKind::None) <= 16.0);
}

#[test]
fn swapoff_finds_few_pages_among_many() {
    let count = if std::env::var_os("VSWAP_TEST_LONG").is_some() { 32 << 18 } else { 1 << 18 };
    let page = noise(1);
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let devices = [12, 9].map(|shift| Simulated::new(shift, page.0.to_vec()));
    let ids = devices.map(|device| space.add_backing(device).expect("room"));
    let mut worker = space.worker(CodecKind::None).expect("memory");
    let entries = fill(&space, &mut worker, (&page, count), ids);
    let [_, few] = ids;
    space.set_backing_state(few, BackingState::Draining).expect("known");
    let began = Instant::now();
    let done = space.rehome(&mut worker, few, Cursor::START, usize::MAX).expect("known");
    let walk = began.elapsed();
    println!("swapoff moved {} of {count} pages in {walk:?}", done.moved);
    assert_eq!((done.moved, done.failed), (count / 100_000, 0));
    space.remove_backing(few).expect("it is empty");
    assert_eq!(devices[1].slots.used_blocks(), 0);
    empty(&space, worker, &entries);
}
