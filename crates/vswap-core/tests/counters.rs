//! Every counter moves when its event happens: a counter that nothing moves is a lie.

mod common;

use std::sync::atomic::Ordering::Relaxed;

use common::backings::{RamBacking, TestDevice};
use common::{filled, noise, page_of};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    BackingState, CodecKind, Counter, Cursor, GroupId, GroupLimits, Limits, Page, Relocation,
    SwapEntry, Target, VirtualSwap, Worker,
};

type Space = VirtualSwap<MmapPlatform>;

fn out(space: &Space, worker: &mut Worker, page: &Page) -> SwapEntry {
    space.swap_out(worker, GroupId::ROOT, page).expect("room")
}

#[test]
fn every_counter_moves() {
    let space = VirtualSwap::new(MmapPlatform, Limits { slots: 2048 });
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let worker = &mut worker;
    let mut page = Page::ZERO;
    let moved = |counter: Counter, by: u64| {
        assert_eq!(space.usage().counter(counter), by, "{counter:?}");
    };

    let zero = out(&space, worker, &Page::ZERO);
    moved(Counter::SwpoutZero, 1);
    space.load(worker, zero, &mut page).expect("stored");
    moved(Counter::SwpinZero, 1);
    let same = out(&space, worker, &filled(7));
    moved(Counter::SameFilledOut, 1);
    space.load(worker, same, &mut page).expect("stored");
    moved(Counter::SameFilledIn, 1);

    let raw = out(&space, worker, &noise(1));
    moved(Counter::RejectCompressPoor, 1);
    moved(Counter::IncompressibleStored, 1);
    let compressed = out(&space, worker, &page_of(1));
    moved(Counter::Zswpout, 2);
    space.load(worker, compressed, &mut page).expect("stored");
    moved(Counter::Zswpin, 1);
    space.recompress(worker, Cursor::at(compressed), 1, CodecKind::Zstd(1)).expect("memory");
    moved(Counter::Recompressed, 1);

    let device = TestDevice::new(100);
    let device_id = space.add_backing(device).expect("room");
    space.transfer(worker, compressed, Target::Backing(device_id)).expect("room");
    moved(Counter::Transferred, 1);
    moved(Counter::WrittenBackPages, 1);
    moved(Counter::Pswpout, 1);
    space.load(worker, compressed, &mut page).expect("stored");
    moved(Counter::Pswpin, 1);
    let mut buffer = vec![0; 4096];
    let all = (device_id, device as &dyn Relocation);
    space.relocate(worker, all, Cursor::START, 1, &mut buffer).expect("known");
    moved(Counter::Relocated, 1);
    moved(Counter::RelocatedBytes, 4096);
    device.fail_loads.store(true, Relaxed);
    space.load(worker, compressed, &mut page).expect_err("the device fails");
    moved(Counter::ReadFail, 1);
    device.fail_loads.store(false, Relaxed);

    let ram = RamBacking::new(u64::MAX);
    let ram_id = space.add_backing(ram).expect("room");
    space.transfer(worker, compressed, Target::Backing(ram_id)).expect("room");
    moved(Counter::ExternalOut, 1);
    space.load(worker, compressed, &mut page).expect("stored");
    moved(Counter::ExternalIn, 1);
    ram.damage_one();
    space.load(worker, compressed, &mut page).expect_err("damaged");
    moved(Counter::DecompressFail, 1);

    ram.set_capacity(0);
    space.set_pool_limit(0);
    out(&space, worker, &page_of(2));
    moved(Counter::PoolLimitHit, 1);
    moved(Counter::BackingFull, 1);
    device.fail_stores.store(true, Relaxed);
    space.swap_out(worker, GroupId::ROOT, &page_of(2)).expect_err("no room");
    moved(Counter::WriteFail, 1);
    moved(Counter::StoreFull, 1);
    device.fail_stores.store(false, Relaxed);
    space.set_backing_state(device_id, BackingState::Active).expect("known");

    let limits = GroupLimits { zswap_max: 0, swap_max: 0, zswap_writeback: true };
    let group = space.create_group(GroupId::ROOT, limits).expect("room");
    space.swap_out(worker, group, &page_of(3)).expect_err("not allowed");
    moved(Counter::ZswapMax, 1);
    moved(Counter::SwapMax, 1);

    space.set_pool_limit(usize::MAX);
    let many: Vec<_> = (0..1000).map(|n| out(&space, worker, &page_of(n))).collect();
    for (n, &entry) in many.iter().enumerate() {
        if n % 3 > 0 {
            space.free(entry);
        }
    }
    space.idle(worker);
    space.compact(worker, usize::MAX);
    assert!(space.usage().counter(Counter::Compacted) > 0);

    assert!(space.usage().counter(Counter::SlotsAllocated) > 1000);
    while space.swap_out(worker, GroupId::ROOT, &Page::ZERO).is_ok() {}
    moved(Counter::AllocReject, 1);

    let usage = space.usage();
    for &counter in Counter::ALL {
        assert!(usage.counter(counter) > 0, "{} never moved", counter.name());
    }
    space.free(raw);
    space.check();
}
