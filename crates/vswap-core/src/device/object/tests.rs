use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use proptest::{collection, sample};

use super::*;

const BLOCK_SIZES: [usize; 3] = [512, 1024, 4096];
const KEY_OF_RUN: [u8; KEY] = [0x3c; KEY];

fn sealers() -> [Sealer; 2] {
    [Protection::Encrypted, Protection::Checked].map(|kind| Sealer::new(&KEY_OF_RUN, kind))
}

fn binding() -> Binding {
    Binding {
        entry: SwapEntry::from_raw(0x1234_5678).unwrap(),
        device: 3,
        block: Block::new(0x0abc_def0).unwrap(),
        generation: nonce(7).generation(),
    }
}

fn nonce(counter: u64) -> Nonce {
    Nonce { process: 9, counter: 0x0102_0300 + counter }
}

fn object(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 256) as u8).collect()
}

fn sealed(sealer: &Sealer, nonce: Nonce, bytes: &[u8], block_size: usize) -> Vec<u8> {
    let mut out = vec![0xee; usize::from(blocks(bytes.len(), block_size)) * block_size];
    let binding = Binding { generation: nonce.generation(), ..binding() };
    sealer.seal(binding, nonce, bytes, &mut out);
    out
}

fn open(
    sealer: &Sealer,
    binding: Binding,
    sealed: &[u8],
    length: usize,
) -> Result<Vec<u8>, Damaged> {
    let mut out = vec![0x77; length];
    let opened = sealer.open(binding, sealed, &mut out);
    assert!(opened.is_ok() || out.iter().all(|&byte| byte == 0x77), "damage reached the program");
    opened.map(|()| out)
}

#[test]
fn every_length_comes_back_from_blocks_of_every_size() {
    for sealer in sealers() {
        for block_size in BLOCK_SIZES {
            for length in 1..=PAGE_SIZE {
                let bytes = object(length);
                let blocks = sealed(&sealer, nonce(7), &bytes, block_size);
                assert!(blocks[HEADER + length..].iter().all(|&byte| byte == 0));
                assert_eq!(open(&sealer, binding(), &blocks, length), Ok(bytes), "{sealer:?}");
            }
        }
    }
}

#[test]
fn objects_take_the_blocks_that_space_provides_for() {
    for block_size in BLOCK_SIZES {
        assert_eq!(blocks(1, block_size), 1);
        assert_eq!(blocks(block_size - HEADER, block_size), 1);
        assert_eq!(blocks(block_size - HEADER + 1, block_size), 2);
        let geometry = crate::device::space::Geometry::new(block_size.ilog2(), 1).unwrap();
        assert_eq!(blocks(PAGE_SIZE, block_size), geometry.object_blocks_max());
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for sealer in sealers() {
        for length in [1, 15, 16, 17, 100, 484, 1000, 2500, PAGE_SIZE] {
            let mut blocks = sealed(&sealer, nonce(7), &object(length), 512);
            for bit in 0..(HEADER + length) * 8 {
                blocks[bit / 8] ^= 1 << (bit % 8);
                let found = open(&sealer, binding(), &blocks, length);
                assert!(found.is_err(), "bit {bit} of {length} bytes, {sealer:?}");
                blocks[bit / 8] ^= 1 << (bit % 8);
            }
            open(&sealer, binding(), &blocks, length).unwrap();
        }
    }
}

#[test]
fn bits_behind_the_object_do_not_cost_it() {
    for sealer in sealers() {
        let mut blocks = sealed(&sealer, nonce(7), &object(100), 512);
        blocks[HEADER + 100..].fill(0xff);
        assert_eq!(open(&sealer, binding(), &blocks, 100), Ok(object(100)));
    }
}

#[test]
fn whatever_else_is_asked_for_is_refused() {
    let right = binding();
    let others = (0..30).flat_map(|bit| {
        let entry = SwapEntry::from_raw(right.entry.raw() ^ 1 << bit).unwrap();
        let block = Block::new(right.block.raw() ^ 1 << bit).unwrap();
        let device = right.device ^ 1 << (bit % 8);
        [Binding { entry, ..right }, Binding { block, ..right }, Binding { device, ..right }]
    });
    for sealer in sealers() {
        let blocks = sealed(&sealer, nonce(7), &object(1000), 512);
        for other in others.clone() {
            assert_eq!(open(&sealer, other, &blocks, 1000), Err(Damaged::Check), "{other:?}");
        }
        for length in (1..1000).chain(1001..=blocks.len() - HEADER) {
            assert_eq!(open(&sealer, right, &blocks, length), Err(Damaged::Check), "{length}");
        }
        let too_long = blocks.len() - HEADER + 1;
        assert_eq!(open(&sealer, right, &blocks, too_long), Err(Damaged::Length));
        for generation in (0..=u8::MAX).filter(|&other| other != right.generation) {
            let expected = Damaged::Generation { expected: generation, found: right.generation };
            let other = Binding { generation, ..right };
            assert_eq!(open(&sealer, other, &blocks, 1000), Err(expected));
        }
    }
}

#[test]
fn an_older_write_of_the_same_object_is_refused() {
    for sealer in sealers() {
        let bytes = object(1000);
        for age in 1..256 {
            let old =
                sealed(&sealer, Nonce { counter: nonce(7).counter - age, ..nonce(7) }, &bytes, 512);
            assert!(matches!(
                open(&sealer, binding(), &old, bytes.len()),
                Err(Damaged::Generation { .. })
            ));
        }
    }
}

#[test]
fn blocks_of_two_writes_are_refused() {
    for sealer in sealers() {
        let bytes = object(PAGE_SIZE);
        let new = sealed(&sealer, nonce(7), &bytes, 512);
        // 256 writes ago, so that only the check can tell.
        let before = Nonce { counter: nonce(7).counter - 256, ..nonce(7) };
        let old = sealed(&sealer, before, &object(PAGE_SIZE + 1)[1..], 512);
        let count = new.len() / 512;
        for kept in 1..(1_u32 << count) - 1 {
            let torn: Vec<u8> = (0..count)
                .flat_map(|n| {
                    let blocks = if kept >> n & 1 == 0 { &new } else { &old };
                    blocks[n * 512..][..512].to_vec()
                })
                .collect();
            assert_eq!(open(&sealer, binding(), &torn, PAGE_SIZE), Err(Damaged::Check), "{kept:b}");
        }
    }
}

#[test]
fn swapped_blocks_are_refused() {
    for sealer in sealers() {
        let blocks = sealed(&sealer, nonce(7), &object(PAGE_SIZE), 512);
        for (a, b) in (0..9).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let mut swapped = blocks.clone();
            let (low, high) = swapped.split_at_mut(a * 512);
            low[b * 512..][..512].swap_with_slice(&mut high[..512]);
            assert!(open(&sealer, binding(), &swapped, PAGE_SIZE).is_err(), "{a} and {b}");
        }
    }
}

#[test]
fn objects_of_another_run_are_refused() {
    for sealer in sealers() {
        let other = Sealer::new(&[0x3d; KEY], sealer.protection());
        let blocks = sealed(&other, nonce(7), &object(1000), 512);
        assert_eq!(open(&sealer, binding(), &blocks, 1000), Err(Damaged::Check));
    }
}

#[test]
fn the_same_bytes_never_look_the_same() {
    let [encrypted, _] = sealers();
    let bytes = object(1000);
    let first = sealed(&encrypted, nonce(7), &bytes, 512);
    let same =
        |other: &[u8]| first[HEADER..].iter().zip(&other[HEADER..]).filter(|(a, b)| a == b).count();
    let next = sealed(&encrypted, nonce(8), &bytes, 512);
    let forked = sealed(&encrypted, Nonce { process: 10, ..nonce(7) }, &bytes, 512);
    // 1000 random bytes have 4 in common with others, and the zeros behind them.
    let zeros = first.len() - HEADER - 1000;
    for other in [&bytes_behind_a_header(&bytes), &next, &forked] {
        assert!(same(other) < zeros + 40);
    }
}

fn bytes_behind_a_header(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend(bytes);
    out
}

#[test]
fn the_key_is_not_printed() {
    let printed = sealers().map(|sealer| std::format!("{sealer:?}"));
    assert_eq!(printed, ["Sealer(Encrypted)", "Sealer(Checked)"]);
}

#[test]
#[should_panic(expected = "the caller keeps the nonce's")]
fn a_generation_that_nobody_could_ask_for_panics() {
    let [sealer, _] = sealers();
    let binding = Binding { generation: nonce(7).generation() + 1, ..binding() };
    sealer.seal(binding, nonce(7), &[1], &mut [0; 512]);
}

proptest! {
    #[test]
    fn any_object_comes_back_and_any_damage_to_it_is_found(
        key in any::<[u8; KEY]>(),
        encrypted in any::<bool>(),
        block_shift in 9_u32..=12,
        bytes in collection::vec(any::<u8>(), 1..=PAGE_SIZE),
        (process, counter) in any::<(u32, u64)>(),
        (entry, device, block) in (1_u32..1 << 31, any::<u8>(), 0_u32..1 << 30),
        damage in collection::vec((any::<sample::Index>(), 1..=u8::MAX), 1..20),
    ) {
        let protection = if encrypted { Protection::Encrypted } else { Protection::Checked };
        let sealer = Sealer::new(&key, protection);
        let nonce = Nonce { process, counter };
        let binding = Binding {
            entry: SwapEntry::from_raw(entry).unwrap(),
            device,
            block: Block::new(block).unwrap(),
            generation: nonce.generation(),
        };
        let count = usize::from(blocks(bytes.len(), 1 << block_shift));
        let mut on_device = vec![0xee; count << block_shift];
        sealer.seal(binding, nonce, &bytes, &mut on_device);
        prop_assert_eq!(&open(&sealer, binding, &on_device, bytes.len()), &Ok(bytes.clone()));
        let intact = on_device.clone();
        for (place, mask) in damage {
            on_device[place.index(HEADER + bytes.len())] ^= mask;
        }
        let opened = open(&sealer, binding, &on_device, bytes.len());
        // Two places can be one, and undo each other.
        prop_assert_eq!(opened.is_ok(), on_device == intact);
    }
}
