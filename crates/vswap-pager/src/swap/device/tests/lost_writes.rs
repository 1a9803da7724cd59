//! How many lost writes are found: all but those that [`Generations`] cannot tell from the last one.

use std::vec;

use super::*;
use crate::io::faulty::Fault;

/// Numbers of writes that two writes of an object of so many blocks can be apart and look alike.
fn period(blocks: u8) -> u64 {
    1 << (2 * u32::from(blocks.min(4)))
}

/// Whether the loss of a write is found that comes `apart` writes after an earlier one of the same
/// entry, to the same place, with the same length.
fn is_found(device: &'static SwapDevice, place: Placed, length: usize, apart: u64) -> bool {
    let attached = device.attached().expect("it is attached");
    let entry = SwapEntry::from_raw(7).expect("an entry");
    let write = |bytes: &[u8]| {
        device
            .write_batch(attached, &[place], &[Outgoing { entry, bytes }], &mut Silence::new())
            .expect("it is said to be");
    };
    write(&vec![1; length]);
    let mut scratch = vec![0; usize::from(place.blocks) * attached.block_bytes()];
    for _ in 1..apart {
        let at = device.address(place.block);
        SEALING.seal(entry, at, &[0; 1], &mut scratch).expect("a key");
    }
    set_faults(Some(|io: Faulty| io.at(Direction::Write, 0, Fault::Lost)));
    write(&vec![2; length]);
    assert_eq!(end_faults(), 1);
    let mut out = vec![0; length];
    let read = device.read(attached, entry, place.block, &mut out);
    if read.is_ok() {
        assert_eq!(out, vec![1; length]);
    }
    read.is_err()
}

#[test]
fn a_lost_write_is_found_unless_its_number_is_that_of_the_earlier_one() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    for length in [300, 900, 1400, 2000, 4096] {
        let blocks = device.attached().expect("it is attached").blocks_of(length);
        let block = Block::new(4000).expect("a block");
        let place = Placed { object: 0, block, blocks };
        for apart in 1..=2 * period(blocks) {
            let found = is_found(device, place, length, apart);
            assert_eq!(found, apart % period(blocks) != 0, "{blocks} blocks, {apart} apart");
        }
    }
    run.detach(0, device);
}

#[test]
fn a_lost_write_is_found_whatever_else_was_there() {
    let mut run = Run::begin();
    let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
    let attached = device.attached().expect("it is attached");
    let place = Placed { object: 0, block: Block::new(100).expect("a block"), blocks: 3 };
    let [one, other] = [7, 8].map(|number| SwapEntry::from_raw(number).expect("an entry"));
    for earlier in [None, Some((other, 1400)), Some((one, 1399))] {
        for _ in 0..256 {
            if let Some((entry, length)) = earlier {
                let object = Outgoing { entry, bytes: &vec![1; length] };
                device
                    .write_batch(attached, &[place], &[object], &mut Silence::new())
                    .expect("written");
            }
            set_faults(Some(|io: Faulty| io.at(Direction::Write, 0, Fault::Lost)));
            let object = Outgoing { entry: one, bytes: &[2; 1400] };
            device
                .write_batch(attached, &[place], &[object], &mut Silence::new())
                .expect("it is said to be");
            end_faults();
            let read = device.read(attached, one, place.block, &mut [0; 1400]);
            assert!(read.is_err(), "after {earlier:?}");
        }
    }
    run.detach(0, device);
}
