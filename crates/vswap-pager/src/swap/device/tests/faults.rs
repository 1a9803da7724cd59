//! Thousands of runs with faults, each from its seed.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::vec;
use std::vec::Vec;

use super::machine::{Earlier, Harm, Machine, Seen, page_of};
use super::*;
use crate::io::RUN_BYTES_MAX;
use crate::io::faulty::Fault;

const STEPS: usize = 120;

const REPORTED: &[Fault] = &[
    Fault::Error(Errno::EIO),
    Fault::Error(Errno::ENOSPC),
    Fault::Short,
    Fault::Torn,
    Fault::Delay(20),
];

const SILENT: &[Fault] = &[Fault::BitFlip, Fault::Lost, Fault::Misdirected];

const ANY: &[Fault] = &[
    Fault::Error(Errno::EIO),
    Fault::Error(Errno::ENOSPC),
    Fault::Short,
    Fault::Torn,
    Fault::Delay(20),
    Fault::BitFlip,
    Fault::Lost,
    Fault::Misdirected,
];

/// Runs a test on a thread of its own, which must end in time.
fn in_time(test: impl FnOnce() + Send + 'static) {
    /// Some fifty times what it takes.
    const LIMIT: Duration = Duration::from_secs(600);
    let (send, ended) = mpsc::channel::<()>();
    let tester = thread::spawn(move || {
        test();
        drop(send);
    });
    let hangs = ended.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
    assert!(!hangs, "it hangs");
    tester.join().expect("the test did not fail");
}

/// A device of small blocks that fills up, and one of large blocks.
fn attach_both(run: &mut Run, direct: bool) -> [&'static SwapDevice; 2] {
    engine().space.set_pool_limit(256 << 10);
    let small = Geometry::new(9, 3000).expect("sizes");
    let large = Geometry::new(12, 4096).expect("sizes");
    [run.attach(0, small, direct), run.attach(1, large, direct)]
}

fn detach_both(run: &mut Run, devices: [&'static SwapDevice; 2]) {
    engine().space.check();
    assert_eq!(engine().space.usage().live_slots, 0);
    for (number, device) in devices.into_iter().enumerate() {
        run.detach(number, device);
    }
    assert_eq!(SWAP_DEVICES.buffers().expect("buffers").taken(), 0, "a buffer was lost");
}

/// Runs every seed, and takes new devices for every tenth.
fn every_seed(
    seeds: core::ops::Range<u64>,
    harm: Harm,
    told: impl Fn(u64, Faulty) -> Faulty + Copy,
) -> Seen {
    let mut run = Run::begin();
    let mut sum = Seen::default();
    for first in seeds.clone().step_by(10) {
        let devices = attach_both(&mut run, first % 200 == 0);
        let earlier = Earlier::default();
        for seed in first..seeds.end.min(first + 10) {
            let mut machine = Machine::new(seed, devices, (harm, earlier.clone()), true);
            set_faults(Some(|io| told(seed, io)));
            machine.steps(STEPS);
            sum.add(machine.finish());
            revive(devices);
        }
        detach_both(&mut run, devices);
    }
    std::println!("{sum:?}");
    assert!(sum.injected > 0 && sum.written > 0 && sum.moved > 0 && sum.fetched > 0, "{sum:?}");
    assert!(sum.compacted > 0, "{sum:?}");
    sum
}

/// What failed is used again.
fn revive(devices: [&'static SwapDevice; 2]) {
    for device in devices {
        SWAP_DEVICES.set_draining(engine(), device.number.into(), device, false);
    }
}

#[test]
fn a_write_that_fails_leaves_objects_where_they_were() {
    in_time(|| {
        let told = |seed, io: Faulty| io.at_random(seed, 100, REPORTED).only(Direction::Write);
        let seen = every_seed(0..800, Harm::None, told);
        assert_eq!((seen.failed_loads, seen.missed), (0, 0), "{seen:?}");
    });
}

#[test]
fn a_read_that_fails_is_an_error_and_succeeds_when_tried_again() {
    in_time(|| {
        let told = |seed, io: Faulty| io.at_random(seed, 100, ANY).only(Direction::Read);
        let seen = every_seed(1000..1800, Harm::Passing, told);
        assert!(seen.failed_loads > 0 && seen.missed == 0, "{seen:?}");
    });
}

#[test]
fn a_write_that_went_wrong_unseen_is_found_at_the_load() {
    in_time(|| {
        let told = |seed, io: Faulty| io.at_random(seed, 150, SILENT).only(Direction::Write);
        let seen = every_seed(2000..2800, Harm::Lasting, told);
        assert!(seen.failed_loads > 0, "{seen:?}");
        // At most one in four goes unseen where an entry comes back to its place, which is rare.
        assert!(seen.missed * 100 < seen.failed_loads, "{seen:?}");
    });
}

#[test]
fn all_faults_together_never_give_a_wrong_byte() {
    in_time(|| {
        let seen = every_seed(3000..3800, Harm::Lasting, |seed, io| io.at_random(seed, 150, ANY));
        assert!(seen.failed_loads > 0, "{seen:?}");
    });
}

#[test]
fn the_nth_operation_fails() {
    in_time(|| {
        let mut run = Run::begin();
        let mut injected = 0;
        for (number, fault) in REPORTED.iter().enumerate() {
            for direction in [Direction::Write, Direction::Read] {
                let devices = attach_both(&mut run, false);
                for nth in 0..40 {
                    // Whatever fails, it is the same run.
                    let harm =
                        if direction == Direction::Read { Harm::Passing } else { Harm::None };
                    let earlier = Earlier::default();
                    let mut machine = Machine::new(number as u64, devices, (harm, earlier), true);
                    set_faults(Some(|io: Faulty| io.at(direction, nth, *fault)));
                    machine.steps(STEPS);
                    let seen = machine.finish();
                    assert!(seen.failed_loads <= 1, "{fault:?} {nth}: {seen:?}");
                    injected += seen.injected;
                    revive(devices);
                }
                detach_both(&mut run, devices);
            }
        }
        assert!(injected > 200, "only {injected} of 400 operations failed");
    });
}

#[test]
fn threads_that_share_devices_read_what_they_stored() {
    in_time(|| {
        let mut run = Run::begin();
        for seed in 0..60 {
            let devices = attach_both(&mut run, seed % 20 == 0);
            let threads = [4000 + seed, 5000 + seed].map(|seed| {
                thread::spawn(move || {
                    let own = (Harm::Passing, Earlier::default());
                    let mut machine = Machine::new(seed, devices, own, false);
                    set_faults(Some(|io: Faulty| {
                        io.at_random(seed, 50, ANY).only(Direction::Read)
                    }));
                    machine.steps(4 * STEPS);
                    machine.finish()
                })
            });
            let seen = threads.map(|thread| thread.join().expect("no thread failed"));
            assert_eq!(seen[0].missed + seen[1].missed, 0);
            detach_both(&mut run, devices);
        }
    });
}

/// Objects of all sizes that lie in order are read in order, on both devices at once: what is read
/// ahead for each size must not take the memory that transfers need.
#[test]
fn what_is_read_ahead_makes_room_for_transfers() {
    in_time(|| {
        let mut run = Run::begin();
        let geometry = Geometry::new(9, 60_000).expect("sizes");
        let devices = [0, 1].map(|number| run.attach(number, geometry, false));
        for (device, first) in devices.into_iter().zip([1, 1000]) {
            let sizes = (1..=9).map(|blocks| (blocks * 512 - 100).min(PAGE_SIZE));
            let mut objects = Vec::new();
            for length in sizes.cycle().take(9 * 40) {
                let entry = SwapEntry::from_raw(first + objects.len() as u32).expect("an entry");
                let bytes = &page_of(length as u64 * 8).0[..length];
                let handle = device.store(Outgoing { entry, bytes }).expect("room");
                objects.push((entry, handle, length));
            }
            for (entry, handle, length) in objects {
                let mut out = vec![0; length];
                device.load(entry, handle, &mut out).expect("it is there");
                assert!(out == page_of(length as u64 * 8).0[..length]);
                device.free(handle, length);
            }
        }
        assert!(SWAP_DEVICES.buffer(RUN_BYTES_MAX).is_some(), "a write finds no buffer");
        for (number, device) in devices.into_iter().enumerate() {
            run.detach(number, device);
        }
    });
}
