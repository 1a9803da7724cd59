//! One list of tests for both engines, at each place; then what only one of them has.

extern crate std;

mod faults;
mod fork;
mod places;
mod ring;

use std::boxed::Box;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::vec::Vec;
use std::{eprintln, vec};

use self::places::{LEN, Place};
use super::*;
use crate::arena::Arena;
use crate::sys::Errno;

const PAGE: usize = 4096;
const TIMEOUT_NS: u64 = 60_000_000_000;

fn buffers() -> &'static DirectBuffers {
    Box::leak(Box::new(DirectBuffers::reserve(&Arena, 4).unwrap()))
}

/// Runs a test with both engines at all places.
fn everywhere(test: impl Fn(&mut ThreadIo<'static>, &Place)) {
    for choice in [Choice::Plain, Choice::Ring] {
        for place in Place::all() {
            let mut io = ThreadIo::new(buffers(), choice, TIMEOUT_NS);
            if !io.start() && choice == Choice::Ring {
                eprintln!("skipped: no io_uring here");
                return;
            }
            eprintln!("{choice:?}, {}", place.name);
            test(&mut io, &place);
            assert_eq!(io.buffers().taken(), 0, "all buffers are back");
        }
    }
}

/// Bytes that differ from place to place.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
    (0..len as u64).map(|at| word(offset + at).to_ne_bytes()[(at % 8) as usize]).collect()
}

fn filled(pool: &DirectBuffers, offset: u64, len: usize) -> Buffer<'_> {
    let mut buffer = pool.take(len).unwrap();
    buffer.copy_from_slice(&pattern(offset, len));
    buffer
}

/// The file's contents, as the test's own eyes see them.
fn seen(place: &Place, offset: u64, len: usize) -> Vec<u8> {
    let path = std::format!("/proc/self/fd/{}", place.file.as_raw_fd());
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    everywhere(|io, place| {
        let (pool, device) = (io.buffers(), place.device());
        // Adjoining runs, a gap, and a run of a single block.
        let block = place.geometry.block as usize;
        let runs = [(0, 4 * PAGE), (4 * PAGE, PAGE), (5 * PAGE, RUN_BYTES_MAX), (1 << 20, block)];
        let mut batch = Batch::new();
        for (offset, len) in runs {
            batch.push(&device, offset as u64, filled(pool, offset as u64, len)).unwrap();
        }
        io.write_many(&mut batch);
        batch.result().unwrap();
        batch.clear();
        for (offset, len) in runs {
            assert!(seen(place, offset as u64, len) == pattern(offset as u64, len));
        }
        for page in (0..64).rev() {
            batch.push(&device, page * 4096, pool.take(PAGE).unwrap()).unwrap();
        }
        io.read_many(&mut batch);
        for request in batch.iter() {
            assert!(request.bytes().unwrap() == pattern(request.offset(), PAGE));
        }
    });
}

#[test]
fn one_object_is_read_to_any_address() {
    everywhere(|io, place| {
        let (device, block) = (place.device(), place.geometry.block as usize);
        let mut request = [Request::new(&device, 8192, filled(io.buffers(), 8192, PAGE))];
        io.write_many(&mut request);
        drop(request);
        let mut out = vec![0; block + 1];
        let offset = 8192 + PAGE - block;
        io.read(&device, offset as u64, &mut out[1..]).unwrap();
        assert!(out[1..] == pattern(8192, PAGE)[PAGE - block..]);
    });
}

#[test]
fn each_request_has_its_own_result() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let health = Health::new();
    everywhere(|io, place| {
        let (pool, good) = (io.buffers(), place.device());
        let geometry = Geometry { direct: false, block: 512 };
        let closed = Device { fd: -1, id: 1, geometry, health: &health };
        let full = Device { fd: full.as_raw_fd(), id: 2, geometry, health: &health };
        let errors = health.errors();
        let mut batch = Batch::new();
        for (page, device) in [&good, &closed, &good, &full, &good].into_iter().enumerate() {
            let offset = (page * PAGE) as u64;
            batch.push(device, offset, filled(pool, offset, PAGE)).unwrap();
        }
        io.write_many(&mut batch);
        let results: Vec<_> = batch.iter().map(Request::result).collect();
        let failed = |errno: Errno| Err(IoError::Failed(errno));
        assert_eq!(results, [Ok(()), failed(Errno::EBADF), Ok(()), failed(Errno::ENOSPC), Ok(())]);
        assert_eq!(batch.result(), failed(Errno::EBADF));
        assert_eq!(health.errors() - errors, 2);
        assert_eq!(good.health.errors(), 0);
        assert!(seen(place, 4 * 4096, PAGE) == pattern(4 * 4096, PAGE));
    });
}

#[test]
fn the_end_of_the_device_is_a_short_transfer() {
    everywhere(|io, place| {
        let (pool, device) = (io.buffers(), place.device());
        let mut batch = Batch::new();
        for offset in [LEN - 8192, LEN - 4096, LEN] {
            batch.push(&device, offset, pool.take(2 * PAGE).unwrap()).unwrap();
        }
        // Adjoining, so that the plain engine's one call meets the end in its middle.
        batch.push(&device, LEN + 8192, pool.take(PAGE).unwrap()).unwrap();
        io.read_many(&mut batch);
        let results: Vec<_> = batch.iter().map(Request::result).collect();
        let short = |bytes| Err(IoError::Short(bytes));
        assert_eq!(results, [Ok(()), short(4096), short(0), short(0)]);
    });
}

#[test]
fn more_requests_than_a_batch_go_in_pieces() {
    everywhere(|io, place| {
        let (pool, device) = (io.buffers(), place.device());
        let mut requests: Vec<_> = (0..200)
            .map(|page| Request::new(&device, page * 4096, filled(pool, page * 4096, PAGE)))
            .collect();
        io.write_many(&mut requests);
        assert!(requests.iter().all(|request| request.result().is_ok()));
        assert!(seen(place, 0, 200 * PAGE) == pattern(0, 200 * PAGE));
    });
}

#[test]
fn without_a_buffer_a_read_says_so() {
    everywhere(|io, place| {
        let held: Vec<_> = (0..4).map(|_| io.buffers().take(RUN_BYTES_MAX).unwrap()).collect();
        let result = io.read(&place.device(), 0, &mut [0; PAGE]);
        assert_eq!(result, Err(IoError::Failed(Errno::ENOMEM)));
        drop(held);
    });
}

#[test]
#[should_panic(expected = "whole blocks")]
fn part_of_a_block_is_no_request() {
    let health = Health::new();
    let geometry = Geometry { direct: true, block: 4096 };
    let device = Device { fd: -1, id: 0, geometry, health: &health };
    Request::new(&device, 512, buffers().take(PAGE).unwrap());
}
