//! What it costs to seal an object for a swap device, and to open it.
//!
//!     cargo bench -p vswap-core --bench sealing

#![allow(missing_docs, reason = "a program")]

use std::hint::black_box;
use std::time::Instant;

use vswap_core::SwapEntry;
use vswap_core::device::object::{self, Binding, KEY, Nonce, Protection, Sealer};
use vswap_core::device::space::Block;

const ROUNDS: usize = 31;
const OBJECTS: usize = 256;
const BLOCK_SIZE: usize = 512;

/// Median over rounds of the nanoseconds per object, of a batch of them.
fn median(mut each: impl FnMut(usize)) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..OBJECTS).for_each(&mut each);
            start.elapsed().as_nanos() as f64 / OBJECTS as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn binding(index: usize, nonce: Nonce) -> Binding {
    Binding {
        entry: SwapEntry::from_raw(index as u32 + 1).expect("few entries"),
        device: 0,
        block: Block::new(index as u32).expect("few blocks"),
        generation: nonce.generation(),
    }
}

/// Sealing and opening objects of one length. They lie apart, as they do in the pool and in a
/// batch of writes, and together do not fit the cache of the first level.
fn seal_and_open(sealer: &Sealer, length: usize) -> (f64, f64) {
    let objects: Vec<u8> = (0..OBJECTS * length).map(|n| ((n * 31) >> 3) as u8).collect();
    let size = usize::from(object::blocks(length, BLOCK_SIZE)) * BLOCK_SIZE;
    let mut device = vec![0; OBJECTS * size];
    let mut out = vec![0; length];
    let mut nonce = Nonce { process: 1, counter: 0 };
    let seal = median(|index| {
        let bytes = black_box(&objects[index * length..][..length]);
        nonce.counter += 1;
        sealer.seal(binding(index, nonce), nonce, bytes, &mut device[index * size..][..size]);
    });
    let last = nonce.counter - OBJECTS as u64 + 1;
    let open = median(|index| {
        let nonce = Nonce { counter: last + index as u64, ..nonce };
        let blocks = black_box(&device[index * size..][..size]);
        sealer.open(binding(index, nonce), blocks, &mut out).expect("what was sealed");
    });
    assert_eq!(out, objects[(OBJECTS - 1) * length..]);
    (seal, open)
}

fn main() {
    println!("ns per object{:>14}{:>10}{:>10}", "length", "seal", "open");
    for protection in [Protection::Encrypted, Protection::Checked] {
        let sealer = Sealer::new(&[0x3c; KEY], protection);
        for length in [1024, 2048, 4096] {
            let (seal, open) = seal_and_open(&sealer, length);
            println!("{:<13}{length:>14}{seal:>10.0}{open:>10.0}", format!("{protection:?}"));
        }
    }
    println!("a sealer has {} bytes", size_of::<Sealer>());
}
