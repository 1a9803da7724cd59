//! The faulty engine does what it says, over both engines and thousands of seeds.

extern crate std;

use std::vec::Vec;

use super::super::faulty::{Fault, FaultyIo};
use super::*;
use crate::sys::task;

const PAGES: u64 = 16;
const RUN: usize = 2 * PAGE;

/// Writes eight runs over zeros, with a fault of the fourth; results and what the device has then.
fn write_with(fault: Fault, io: ThreadIo<'static>, place: &Place) -> (Vec<bool>, Vec<u8>) {
    place.file.set_len(LEN).unwrap();
    let (pool, device) = (io.buffers(), place.device());
    let mut io = FaultyIo::new(io);
    let mut batch = Batch::new();
    for run in 0..PAGES / 2 {
        let mut buffer = pool.take(RUN).unwrap();
        buffer.fill(0);
        batch.push(&device, run * RUN as u64, buffer).unwrap();
    }
    io.write_many(&mut batch);
    batch.result().unwrap();
    for request in batch.iter_mut() {
        let bytes = pattern(request.offset(), RUN);
        request.buffer_mut().unwrap().copy_from_slice(&bytes);
    }
    let mut io = io.at(Direction::Write, 8 + 3, fault);
    io.write_many(&mut batch);
    assert_eq!(io.injected(), 1);
    let whole = batch.iter().map(|request| request.result().is_ok()).collect();
    drop(batch);
    (whole, seen(place, 0, PAGES as usize * PAGE))
}

fn each(test: impl Fn(&dyn Fn(Fault) -> (Vec<bool>, Vec<u8>))) {
    for choice in [Choice::Plain, Choice::Best] {
        let place = &Place::all()[0];
        test(&|fault| write_with(fault, ThreadIo::new(buffers(), choice, TIMEOUT_NS), place));
    }
}

/// Which of the eight runs are as written.
fn intact(bytes: &[u8]) -> Vec<bool> {
    let runs = bytes.chunks(RUN).enumerate();
    runs.map(|(run, bytes)| bytes == pattern((run * RUN) as u64, RUN)).collect()
}

const ALL: [bool; 8] = [true; 8];
const BUT_FOURTH: [bool; 8] = [true, true, true, false, true, true, true, true];

#[test]
fn faults_that_are_reported() {
    each(|write| {
        for error in [Errno::EIO, Errno::ENOSPC] {
            let (whole, bytes) = write(Fault::Error(error));
            assert_eq!((whole, intact(&bytes)), (BUT_FOURTH.to_vec(), BUT_FOURTH.to_vec()));
        }
        let (whole, bytes) = write(Fault::Short);
        assert_eq!((whole, intact(&bytes)), (BUT_FOURTH.to_vec(), BUT_FOURTH.to_vec()));
        let fourth = &bytes[3 * RUN..4 * RUN];
        assert!(fourth[..PAGE] == pattern(3 * RUN as u64, PAGE));
        assert!(fourth[PAGE..].iter().all(|&byte| byte == 0));
        let (whole, bytes) = write(Fault::Torn);
        let three = [true, true, true, false, false, false, false, false];
        assert_eq!((whole, intact(&bytes)), (three.to_vec(), three.to_vec()));
        assert!(bytes[4 * RUN..].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn faults_that_nobody_reports() {
    each(|write| {
        let (whole, bytes) = write(Fault::BitFlip);
        assert_eq!((whole, intact(&bytes)), (ALL.to_vec(), BUT_FOURTH.to_vec()));
        let expected = pattern(0, bytes.len());
        let pairs = bytes.iter().zip(&expected);
        let wrong: u32 = pairs.map(|(left, right)| (left ^ right).count_ones()).sum();
        assert_eq!(wrong, 1);
        let (whole, bytes) = write(Fault::Lost);
        assert_eq!((whole, intact(&bytes)), (ALL.to_vec(), BUT_FOURTH.to_vec()));
        assert!(bytes[3 * RUN..4 * RUN].iter().all(|&byte| byte == 0));
        let (whole, bytes) = write(Fault::Misdirected);
        assert_eq!(whole, ALL);
        assert!(bytes[2 * RUN..3 * RUN] == pattern(3 * RUN as u64, RUN));
        let began = task::now_ns();
        let (whole, bytes) = write(Fault::Delay(20_000));
        assert_eq!((whole, intact(&bytes)), (ALL.to_vec(), ALL.to_vec()));
        assert!(task::now_ns() - began >= 20_000_000);
    });
}

const ANY: &[Fault] = &[
    Fault::Error(Errno::EIO),
    Fault::Error(Errno::ENOSPC),
    Fault::Short,
    Fault::Torn,
    Fault::Delay(1),
];

/// Reads and writes at random; a page whose last write succeeded reads as written, whatever failed
/// around it, and the same seed gives the same faults.
fn random_run(io: ThreadIo<'static>, place: &Place, seed: u64) -> Vec<Result<(), IoError>> {
    let (pool, device) = (io.buffers(), place.device());
    let mut io = FaultyIo::new(io).at_random(seed, 100, ANY);
    let mut results = Vec::new();
    let mut known = [None; PAGES as usize];
    for round in 0..6 {
        let mut batch = Batch::new();
        for page in 0..PAGES {
            let mut buffer = pool.take(PAGE).unwrap();
            buffer.fill((seed as u8) ^ (round * 31 + page as u8));
            batch.push(&device, page * 4096, buffer).unwrap();
        }
        if round % 2 == 0 {
            io.write_many(&mut batch);
            for (page, request) in batch.iter().enumerate() {
                known[page] = request.bytes().ok().map(|bytes| bytes[0]);
            }
        } else {
            io.read_many(&mut batch);
            for (request, known) in batch.iter().zip(known) {
                if let (Ok(bytes), Some(known)) = (request.bytes(), known) {
                    assert!(bytes.iter().all(|&byte| byte == known), "seed {seed}");
                }
            }
        }
        results.extend(batch.iter().map(Request::result));
    }
    results
}

#[test]
fn a_reported_fault_never_harms_its_neighbours() {
    for choice in [Choice::Plain, Choice::Best] {
        // tmpfs or the page cache: thousands of runs are to be had there.
        let place = &Place::all()[1];
        let io = || ThreadIo::new(buffers(), choice, TIMEOUT_NS);
        let pool = io();
        for seed in 0..2000 {
            let first = random_run(ThreadIo::new(pool.buffers(), choice, TIMEOUT_NS), place, seed);
            if seed % 100 == 0 {
                assert_eq!(first, random_run(io(), place, seed), "seed {seed}");
                assert!(first.iter().any(Result::is_err));
            }
        }
        assert_eq!(pool.buffers().taken(), 0);
    }
}
