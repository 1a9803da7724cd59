//! Deadlines: a device that does not answer, and one that answers late. An empty pipe is one.

extern crate std;

use std::fs::File;
use std::io::Write as _;
use std::vec::Vec;

use super::*;
use crate::sys::task;

const SOON_NS: u64 = 20_000_000;

/// A ring with a short deadline; `None` where there is no io_uring.
fn impatient() -> Option<RingIo<'static>> {
    RingIo::new(buffers(), SOON_NS).inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

fn device<'a>(file: &File, health: &'a Health) -> Device<'a> {
    let geometry = Geometry { direct: false, block: 512 };
    Device { fd: file.as_raw_fd(), id: 9, geometry, health }
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let file = |fd: std::os::fd::OwnedFd| File::from(fd);
    (file(reader.into()), file(writer.into()))
}

/// Settles until `open` requests are left.
fn settle_to(io: &mut RingIo<'_>, open: usize) -> Vec<Late> {
    let mut late = Vec::new();
    for _ in 0..1000 {
        if io.settle(&mut |answer| late.push(answer)) == open {
            return late;
        }
        task::sleep_us(10_000);
    }
    panic!("no answer arrived: {late:?}");
}

#[test]
fn a_device_that_does_not_answer_holds_nobody() {
    let Some(mut io) = impatient() else { return };
    assert!(io.can_time_out());
    let ((reader, mut writer), health) = (pipe(), Health::new());
    let device = device(&reader, &health);
    let began = task::now_ns();
    assert_eq!(io.read(&device, 4096, &mut [0; PAGE]), Err(IoError::TimedOut));
    assert!(task::now_ns() - began >= SOON_NS);
    assert!(health.is_suspect());
    assert_eq!(health.timeouts(), 1);

    // The kernel still has the buffer: nobody else gets its page, and others go on.
    assert_eq!(io.buffers().taken(), 1);
    let others: Vec<_> = (0..3).map(|_| io.buffers().take(RUN_BYTES_MAX).unwrap()).collect();
    assert!(io.buffers().take(RUN_BYTES_MAX).is_none());
    drop(others);
    for place in Place::all() {
        io.read(&place.device(), 0, &mut [0; PAGE]).unwrap();
    }
    assert_eq!(io.settle(&mut |late| panic!("{late:?}")), 1);

    writer.write_all(&pattern(0, PAGE)).unwrap();
    let late = settle_to(&mut io, 0);
    let expected =
        Late { device: 9, offset: 4096, len: 4096, direction: Direction::Read, result: Ok(()) };
    assert_eq!(late, [expected]);
    assert_eq!(io.buffers().taken(), 0);
    assert_eq!(io.settle(&mut |late| panic!("reported twice: {late:?}")), 0);
    health.clear();
    assert!(!health.is_suspect());
}

#[test]
fn what_answers_in_time_is_not_given_up_with_the_rest() {
    let Some(mut io) = impatient() else { return };
    let ((reader, writer), health) = (pipe(), Health::new());
    let dead = device(&reader, &health);
    let places = Place::all();
    let mut batch = Batch::new();
    let pool = io.buffers();
    let good = places[0].device();
    for device in [&good, &dead, &good] {
        batch.push(device, 0, pool.take(PAGE).unwrap()).unwrap();
    }
    io.read_many(&mut batch);
    let results: Vec<_> = batch.iter().map(Request::result).collect();
    assert_eq!(results, [Ok(()), Err(IoError::TimedOut), Ok(())]);
    assert!(batch[1].take_buffer().is_none());
    drop(batch);
    assert_eq!(pool.taken(), 1);
    // A pipe without writers ends.
    drop(writer);
    assert_eq!(settle_to(&mut io, 0)[0].result, Err(IoError::Short(0)));
    assert_eq!(pool.taken(), 0);
}

#[test]
fn a_ring_full_of_abandoned_requests_refuses_more() {
    let Some(mut io) = impatient() else { return };
    let ((reader, writer), health) = (pipe(), Health::new());
    let dead = device(&reader, &health);
    let pool = io.buffers();
    let place = &Place::all()[0];
    for _ in 0..2 {
        let mut requests: Vec<_> =
            (0..64).map(|_| Request::new(&dead, 0, pool.take(PAGE).unwrap())).collect();
        io.read_many(&mut requests);
        assert!(requests.iter().all(|one| one.result() == Err(IoError::TimedOut)));
    }
    let refused = io.read(&place.device(), 0, &mut [0; PAGE]);
    assert_eq!(refused, Err(IoError::Failed(Errno::EBUSY)));
    drop(writer);
    assert_eq!(settle_to(&mut io, 0).len(), 128);
    io.read(&place.device(), 0, &mut [0; PAGE]).unwrap();
}

#[test]
fn a_dropped_ring_keeps_what_the_kernel_has() {
    let Some(mut io) = impatient() else { return };
    let ((reader, _writer), health) = (pipe(), Health::new());
    let pool = io.buffers();
    assert!(io.read(&device(&reader, &health), 0, &mut [0; PAGE]).is_err());
    drop(io);
    assert_eq!(pool.taken(), 1);
}
