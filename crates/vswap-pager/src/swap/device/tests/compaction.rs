//! A device that is half holes, on a file.

use std::vec;
use std::vec::Vec;

use vswap_core::page::Page;
use vswap_core::{CodecKind, Cursor, GroupId, Relocation, Target, Worker};

use super::machine::page_of;
use super::*;

const PAGES: u64 = 24_000;

fn density(device: &SwapDevice) -> u32 {
    device.attached().expect("it is attached").slots.occupancy().density()
}

/// Pages of all sizes on a device, of which every second one was freed.
fn half_full(worker: &mut Worker, device: &SwapDevice) -> Vec<(SwapEntry, u64)> {
    let mut buffer = vec![0; 64 * PAGE_SIZE];
    let mut entries = Vec::new();
    for number in 0..PAGES {
        let stored = engine().space.swap_out(worker, GroupId::ROOT, &page_of(number));
        entries.push((stored.expect("room"), number));
        if number % 500 == 499 {
            let first = Cursor::at(entries[entries.len() - 500].0);
            let mut from = Some(first);
            while let Some(cursor) = from {
                let range = cursor..Cursor::END;
                let id = device.backing();
                let done = engine().space.write_back(worker, id, range, &mut buffer, |_| true);
                from = done.expect("it is attached").next;
            }
        }
    }
    let (gone, left): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(_, n)| n / 8 % 2 == 0);
    for (entry, _) in gone {
        engine().space.free(entry);
    }
    left
}

fn verify(worker: &mut Worker, pages: &[(SwapEntry, u64)]) {
    for &(entry, number) in pages {
        let mut page = Page::ZERO;
        engine().space.load(worker, entry, &mut page).expect("it is there");
        assert!(page.0 == page_of(number).0, "page {number} is another");
    }
}

#[test]
fn half_of_a_file_becomes_dense_and_goes_back() {
    let mut run = Run::begin();
    engine().space.set_pool_limit(64 << 20);
    let device = run.attach(0, Geometry::new(9, 256 << 11).expect("sizes"), false);
    let mut worker = engine().space.worker(CodecKind::Lz4).expect("memory");
    let left = half_full(&mut worker, device);
    while device.discard() {}
    let leased = || run.page.devices.get(0).expect("a number").leased();
    let before = (density(device), leased());
    assert!((45..56).contains(&before.0), "{before:?}");
    let on_device =
        |(entry, _): &&(SwapEntry, u64)| engine().space.peek(*entry).is_in(device.backing());
    let count = left.iter().filter(on_device).count();
    // Read errors apart, each object is read and written once.
    let chosen = device.begin_compaction();
    let (mut buffer, mut from) = (vec![0; 64 * PAGE_SIZE], Some(Cursor::START));
    let (mut read, mut moved) = (0, 0);
    while let Some(cursor) = from {
        let moving = (device.backing(), device as &dyn Relocation);
        let done = engine().space.relocate(&mut worker, moving, cursor, 1000, &mut buffer);
        let done = done.expect("it is attached");
        assert_eq!(done.refused, None);
        (read, moved, from) = (read + done.read, moved + done.moved, done.next);
        while device.discard() {}
    }
    device.end_compaction();
    while device.discard() {}
    assert_eq!((read, moved), (chosen.objects as usize, chosen.objects as usize));
    assert!(moved > 0 && moved <= count, "{moved} of {count}");
    let after = (density(device), leased());
    assert!(after.0 >= 95, "{before:?} became {after:?}");
    // The last one is not full, and one is spare.
    assert!(after.1 < device.used() + (8 << 20), "{before:?} became {after:?}");
    // What went back was discarded: the file has no blocks there.
    let file = run.files[0].as_ref().expect("attached").metadata().expect("metadata");
    let held = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
    assert!(held <= after.1 + (1 << 20), "{held} bytes in the file, {after:?}");
    verify(&mut worker, &left);
    let target = Target::Backing(device.backing());
    assert!(engine().space.transfer(&mut worker, left[0].0, target).is_ok());
    for (entry, _) in left {
        engine().space.free(entry);
    }
    engine().space.retire(worker);
    run.detach(0, device);
}
