//! Windows that are read with one batch, as a fault has it.

use std::os::unix::fs::FileExt as _;
use std::vec;
use std::vec::Vec;

use super::machine::page_of;
use super::*;
use crate::io::faulty::Fault;
use crate::swap::fetched::{Fetched, Wanted};

fn entry(number: u32) -> SwapEntry {
    SwapEntry::from_raw(number).expect("an entry")
}

/// Sixteen pages that do not compress, side by side.
struct Stored {
    device: &'static SwapDevice,
    handles: Vec<Handle>,
}

impl Stored {
    const COUNT: u32 = 16;

    fn new(run: &mut Run) -> Self {
        let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
        let pages: Vec<_> = (0..Self::COUNT).map(|n| page_of(8 * u64::from(n))).collect();
        let objects: Vec<_> = pages
            .iter()
            .zip(1..)
            .map(|(page, n)| Outgoing { entry: entry(n), bytes: &page.0 })
            .collect();
        let mut handles = vec![Handle::default(); objects.len()];
        device.store_many(&objects, &mut handles).expect("room");
        Self { device, handles }
    }

    fn fetch(&self) -> Option<Fetched> {
        let mut wanted = Wanted::new();
        for handle in &self.handles {
            wanted.add(self.device.backing(), *handle, PAGE_SIZE);
        }
        wanted.fetch()
    }

    fn load(&self, at: usize) -> Result<(), BackingError> {
        let mut out = vec![0; PAGE_SIZE];
        let loaded = self.device.load(entry(at as u32 + 1), self.handles[at], &mut out);
        assert!(loaded.is_err() || out == page_of(8 * at as u64).0, "object {at} is wrong");
        loaded
    }

    fn end(self, mut run: Run) {
        for handle in self.handles {
            self.device.free(handle, PAGE_SIZE);
        }
        run.detach(0, self.device);
        assert_eq!(SWAP_DEVICES.buffers().expect("buffers").taken(), 0, "a buffer was lost");
    }
}

/// Read errors, from the n-th on: as many operations as there were hit the script.
fn broken_from(nth: u64) {
    let fault = Fault::Error(Errno::EIO);
    set_faults(Some(|io: Faulty| {
        (nth..nth + 4).fold(io, |io, nth| io.at(Direction::Read, nth, fault))
    }));
}

#[test]
fn a_window_is_read_with_as_few_requests_as_it_has_parts() {
    let mut run = Run::begin();
    let stored = Stored::new(&mut run);
    // All of it lies within 128 KiB. Behind the one request the device is broken.
    broken_from(1);
    let fetched = stored.fetch();
    for at in 0..stored.handles.len() {
        stored.load(at).expect("it was read");
    }
    assert_eq!(end_faults(), 0, "there was a second request");
    drop(fetched);
    // What was read is forgotten with the window.
    broken_from(0);
    assert_eq!(stored.load(3), Err(BackingError::Io(Errno::EIO.0)));
    end_faults();
    stored.end(run);
}

#[test]
fn a_batch_that_fails_leaves_each_object_to_itself() {
    let mut run = Run::begin();
    let stored = Stored::new(&mut run);
    set_faults(Some(|io: Faulty| io.at(Direction::Read, 0, Fault::Error(Errno::EIO))));
    let fetched = stored.fetch();
    assert!((0..stored.handles.len()).all(|at| stored.load(at).is_ok()));
    assert_eq!(end_faults(), 1);
    drop(fetched);
    // One damaged object is an error, its neighbours are there.
    let file = run.files[0].as_ref().expect("attached");
    let place = u64::from(stored.handles[5].raw()) * 512;
    file.write_all_at(&[7; 512], place + 1024).expect("a file");
    stored.device.forget_read_ahead();
    let fetched = stored.fetch();
    for at in 0..stored.handles.len() {
        let damaged = Err(BackingError::Io(Errno::EILSEQ.0));
        assert_eq!(stored.load(at), if at == 5 { damaged } else { Ok(()) });
    }
    drop(fetched);
    stored.end(run);
}

#[test]
fn a_write_is_seen_by_a_window_that_was_read_before() {
    let mut run = Run::begin();
    let mut stored = Stored::new(&mut run);
    let fetched = stored.fetch();
    stored.device.free(stored.handles[4], PAGE_SIZE);
    let handle =
        stored.device.store(Outgoing { entry: entry(99), bytes: &page_of(800).0 }).expect("room");
    let mut out = vec![0; PAGE_SIZE];
    stored.device.load(entry(99), handle, &mut out).expect("it was written");
    assert!(out == page_of(800).0);
    stored.device.free(handle, PAGE_SIZE);
    stored.handles.remove(4);
    drop(fetched);
    stored.end(run);
}

#[test]
fn a_window_whose_device_is_silent_says_so() {
    let mut run = Run::begin();
    let stored = Stored::new(&mut run);
    set_faults(Some(|io: Faulty| io.at(Direction::Read, 0, Fault::NoAnswer)));
    assert!(stored.fetch().expect("a window").is_silent());
    end_faults();
    assert!(!stored.fetch().expect("a window").is_silent());
    stored.end(run);
}

#[test]
fn windows_that_are_filled_at_once_do_not_meet() {
    let mut run = Run::begin();
    let stored = Stored::new(&mut run);
    let windows: Vec<_> = (0..6).map(|_| stored.fetch()).collect();
    // For more of them there is no room.
    assert_eq!(windows.iter().flatten().count(), 4);
    let [first, .., last] = &windows[..] else { unreachable!() };
    assert!(first.is_some() && last.is_none());
    for window in windows {
        broken_from(0);
        (0..stored.handles.len()).for_each(|at| stored.load(at).expect("it was read"));
        end_faults();
        drop(window);
        if SWAP_DEVICES.buffers().expect("buffers").taken() == 0 {
            break;
        }
    }
    assert!(stored.fetch().is_some());
    stored.end(run);
}

#[test]
fn one_object_is_no_window() {
    let mut run = Run::begin();
    let stored = Stored::new(&mut run);
    let mut wanted = Wanted::new();
    wanted.add(stored.device.backing(), stored.handles[0], PAGE_SIZE);
    assert!(wanted.fetch().is_none());
    stored.end(run);
}
