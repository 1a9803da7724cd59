//! What a batch writes beside its objects: nothing of anybody's.

use std::os::unix::fs::FileExt as _;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::io::faulty::Fault;

fn entry(number: u32) -> SwapEntry {
    SwapEntry::from_raw(number).expect("an entry")
}

#[test]
fn a_gap_is_written_only_where_nobody_has_anything() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let attached = device.attached().expect("it is attached");
    let stored: Vec<Handle> = (1..=6)
        .map(|number| {
            let bytes = &[number as u8; 900];
            device.store(Outgoing { entry: entry(number), bytes }).expect("room")
        })
        .collect();
    // The second and the fifth go; new objects come to their places with one batch.
    let placed = [1, 4].map(|at| {
        device.free(stored[at], 900);
        Placed {
            object: at as u32,
            block: Block::new(stored[at].raw()).expect("a block"),
            blocks: 2,
        }
    });
    let objects: Vec<_> =
        (1..=6).map(|n| Outgoing { entry: entry(n), bytes: &[99; 900] }).collect();
    device.write_batch(attached, &placed, &objects, &mut Silence::new()).expect("it is written");
    for (number, handle) in (1..=6).zip(&stored) {
        let expected = if number == 2 || number == 5 { 99 } else { number as u8 };
        let mut out = vec![0; 900];
        device.load(entry(number), *handle, &mut out).expect("it is there");
        assert!(out == vec![expected; 900], "object {number}");
    }
    for (number, handle) in (1..=6).zip(stored) {
        if number != 2 && number != 5 {
            device.free(handle, 900);
        }
    }
    run.detach(0, device);
}

#[test]
fn objects_of_adjoining_clusters_go_out_as_adjoining_requests() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let page = [7; PAGE_SIZE];
    let objects: Vec<_> = (1..=64).map(|n| Outgoing { entry: entry(n), bytes: &page }).collect();
    let mut handles = vec![Handle::default(); objects.len()];
    let mut store = |device: &'static SwapDevice, nth| {
        set_faults(Some(|io: Faulty| io.at(Direction::Write, nth, Fault::Error(Errno::ENOSPC))));
        (device.store_many(&objects, &mut handles).is_ok(), end_faults())
    };
    // Of two requests the second can fail; there is no third that could.
    assert_eq!(store(device, 1), (false, 1));
    assert_eq!(device.used(), 0);
    run.detach(0, device);
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    assert_eq!(store(device, 2), (true, 0));
    // A cluster has 56 places of nine blocks and eight blocks more, which are zeros.
    let end = (u64::from(handles[55].raw()) + 9) * 512;
    let mut gap = [1; 8 * 512];
    run.files[0].as_ref().expect("attached").read_exact_at(&mut gap, end).expect("a file");
    assert_eq!((gap, u64::from(handles[56].raw()) * 512), ([0; 8 * 512], end + 8 * 512));
    for handle in handles {
        device.free(handle, PAGE_SIZE);
    }
    run.detach(0, device);
}

#[test]
fn a_write_without_an_answer_keeps_its_place_from_others_until_it_is_answered() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let object = Outgoing { entry: entry(1), bytes: &[7; 900] };
    set_faults(Some(|io: Faulty| io.at(Direction::Write, 0, Fault::NoAnswer)));
    assert_eq!(device.store(object), Err(BackingError::Io(Errno::ETIME.0)));
    end_faults();
    assert_eq!(device.refusal(), Some(Refusal::Failed(Errno::ETIME.0)));
    assert_eq!(device.used(), 1024, "its place is somebody's");
    let slots = &device.attached().expect("it is attached").slots;
    let mut blocks = (0..8192).filter_map(Block::new);
    let block = blocks.find(|&block| slots.is_used(block)).expect("its place");
    let late = |offset: u64| Late {
        device: device.id(),
        offset,
        len: 1024,
        direction: Direction::Write,
        result: Ok(()),
    };
    let offset = u64::from(block.raw()) * 512;
    // Another place, and another device that had the number.
    device.note_late_write(late(offset + 1024));
    device.note_late_write(Late { device: device.id() ^ 1 << 8, ..late(offset) });
    assert_eq!(device.used(), 1024);
    device.note_late_write(late(offset));
    assert_eq!(device.used(), 0);
    device.note_late_write(late(offset));
    run.detach(0, device);
}

#[test]
fn of_a_batch_only_what_was_not_answered_keeps_its_places() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let page = [7; PAGE_SIZE];
    // Two requests: see above.
    let objects: Vec<_> = (1..=64).map(|n| Outgoing { entry: entry(n), bytes: &page }).collect();
    let mut handles = vec![Handle::default(); objects.len()];
    set_faults(Some(|io: Faulty| io.at(Direction::Write, 1, Fault::NoAnswer)));
    assert!(device.store_many(&objects, &mut handles).is_err());
    end_faults();
    assert_eq!(device.used(), 8 * 9 * 512);
    let all = 8192 * 512;
    let late = Late {
        device: device.id(),
        offset: 0,
        len: all,
        direction: Direction::Write,
        result: Ok(()),
    };
    device.note_late_write(late);
    assert_eq!(device.used(), 0);
    run.detach(0, device);
}

#[test]
fn a_slow_write_holds_up_nobody_else() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let (begun, begin) = std::sync::mpsc::channel();
    let slow = std::thread::spawn(move || {
        set_faults(Some(|io: Faulty| io.at(Direction::Write, 0, Fault::Delay(2_000_000))));
        begun.send(()).expect("somebody waits");
        let handle = device.store(Outgoing { entry: entry(1), bytes: &[1; 900] });
        end_faults();
        handle.expect("room")
    });
    begin.recv().expect("it began");
    while device.used() == 0 {
        std::thread::yield_now();
    }
    let handle = device.store(Outgoing { entry: entry(2), bytes: &[2; 900] }).expect("room");
    assert!(!slow.is_finished(), "it waited for the slow one");
    for (number, handle) in [(2, handle), (1, slow.join().expect("it did not fail"))] {
        let mut out = vec![0; 900];
        device.load(entry(number), handle, &mut out).expect("it is there");
        assert!(out == vec![number as u8; 900]);
        device.free(handle, 900);
    }
    run.detach(0, device);
}
