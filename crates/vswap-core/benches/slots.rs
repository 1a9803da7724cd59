//! What the virtual layer itself costs: finding a descriptor, allocating, counting and freeing.
//!
//!     cargo bench -p vswap-core --bench slots
//!
//! Fails if finding a descriptor that is in the cache takes more than 5 ns.

#![allow(missing_docs, reason = "a program")]

use std::hint::black_box;
use std::time::Instant;

use vswap_core::codec::{Codec, Scratch};
use vswap_core::descriptor::Kind;
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    CodecKind, GroupId, Keep, Limits, PAGE_SIZE, Page, SwapEntry, VirtualSwap, Worker,
};

const ROUNDS: usize = 15;
const HOT: usize = 2048;
const MANY: usize = 1 << 20;
const LOOKUP_MAX_NS: f64 = 5.0;

type Space = VirtualSwap<MmapPlatform>;

/// Median over rounds of the nanoseconds that each of `n` operations takes.
fn median(n: usize, mut round: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / n as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn filled(word: u64) -> Page {
    let mut page = Page::ZERO;
    page.fill(word);
    page
}

fn lookup(space: &Space, worker: &mut Worker) -> f64 {
    let page = filled(7);
    let entries: Vec<SwapEntry> =
        (0..HOT).map(|_| space.swap_out(worker, GroupId::ROOT, &page).expect("room")).collect();
    let ns = median(HOT * 64, || {
        for _ in 0..64 {
            for &entry in black_box(&entries) {
                assert!(space.peek(entry).kind() == Kind::SameFilled);
            }
        }
    });
    space.free_many(&entries);
    ns
}

/// Allocating a slot in the swap cache, and freeing it by taking it out again.
fn alloc_and_free(space: &Space, worker: &mut Worker) -> (f64, f64) {
    let mut entries = Vec::with_capacity(MANY);
    let (mut alloc, mut free) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..MANY {
            entries.push(space.alloc_run(worker, GroupId::ROOT, 1).expect("room"));
        }
        alloc.push(start.elapsed().as_nanos() as f64 / MANY as f64);
        let start = Instant::now();
        for entry in entries.drain(..) {
            space.cache_remove(entry).expect("cached");
        }
        free.push(start.elapsed().as_nanos() as f64 / MANY as f64);
    }
    alloc.sort_by(f64::total_cmp);
    free.sort_by(f64::total_cmp);
    (alloc[2], free[2])
}

fn count(space: &Space, worker: &mut Worker) -> f64 {
    let entry = space.swap_out(worker, GroupId::ROOT, &filled(7)).expect("room");
    let ns = median(100_000, || {
        for _ in 0..100_000 {
            space.dup(black_box(entry)).expect("live");
            space.free(black_box(entry));
        }
    });
    space.free(entry);
    ns
}

/// A page of text-like bytes, which lz4 brings to about a third.
fn compressible() -> Page {
    let mut page = Page::ZERO;
    let mut state = 1u32;
    for chunk in page.0.chunks_exact_mut(16) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        chunk[..8].copy_from_slice(&(u64::from(state >> 28) * 0x0101_0203_0408_1121).to_ne_bytes());
        chunk[8..10].copy_from_slice(&(state as u16).to_ne_bytes());
    }
    page
}

/// A whole swap-out, its load and its free.
fn whole(space: &Space, worker: &mut Worker, page: &Page) -> [f64; 3] {
    let mut out = Page::ZERO;
    let mut entries = Vec::with_capacity(HOT);
    let (mut stores, mut frees) = (Vec::new(), Vec::new());
    let mut load = 0.0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..HOT {
            entries.push(space.swap_out(worker, GroupId::ROOT, page).expect("room"));
        }
        stores.push(start.elapsed().as_nanos() as f64 / HOT as f64);
        load = median(HOT, || {
            for &entry in &entries {
                space.load(worker, entry, &mut out).expect("stored");
            }
        });
        let start = Instant::now();
        space.free_many(&entries);
        frees.push(start.elapsed().as_nanos() as f64 / HOT as f64);
        entries.clear();
    }
    stores.sort_by(f64::total_cmp);
    frees.sort_by(f64::total_cmp);
    [stores[ROUNDS / 2], load, frees[ROUNDS / 2]]
}

/// The codec alone: what of a swap-out and a load is not ours.
fn codec(page: &Page) -> [f64; 2] {
    let mut scratch = Scratch::new(CodecKind::Lz4, &MmapPlatform).expect("memory");
    let (mut out, mut back) = ([0; PAGE_SIZE], Page::ZERO);
    let mut length = 0;
    let compress = median(HOT, || {
        for _ in 0..HOT {
            length = scratch.compress(black_box(page), &mut out).expect("it compresses");
        }
    });
    let decompress = median(HOT, || {
        for _ in 0..HOT {
            scratch.decompress(black_box(&out[..length]), &mut back).expect("intact");
        }
    });
    scratch.release(&MmapPlatform);
    [compress, decompress]
}

/// Runs of 512, all of whose pages are zero: the cost per page of the run operations.
fn runs(space: &Space, worker: &mut Worker) -> f64 {
    const N: usize = 512;
    let pages = [&Page::ZERO; N];
    let mut out = vec![Page::ZERO; N];
    median(N, || {
        let first = space.alloc_run(worker, GroupId::ROOT, N).expect("room");
        space.dup_run(first, N).expect("live");
        space.store_run(worker, first, &pages).expect("room");
        space.load_run(worker, first, &mut out, Keep::Page, |_, loaded| {
            loaded.expect("stored");
        });
        space.free_run(first, N);
        for index in 0..N {
            space.cache_remove(first.nth(index)).expect("cached");
        }
    })
}

fn main() {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let found = lookup(&space, &mut worker);
    println!("find a descriptor, hot          {found:8.2} ns");
    let (alloc, free) = alloc_and_free(&space, &mut worker);
    println!("allocate a slot                 {alloc:8.2} ns");
    println!("free a slot                     {free:8.2} ns");
    println!("count one more and one less     {:8.2} ns", count(&space, &mut worker));
    for (what, page) in [("same-filled", filled(7)), ("lz4", compressible())] {
        let [store, load, free] = whole(&space, &mut worker, &page);
        println!("{what:11} page: swap out      {store:8.2} ns");
        println!("{what:11} page: load          {load:8.2} ns");
        println!("{what:11} page: free, batched {free:8.2} ns");
    }
    let [compress, decompress] = codec(&compressible());
    println!("of which lz4 takes              {compress:8.2} ns and {decompress:.2} ns");
    println!("run of 512 zero pages, per page {:8.2} ns", runs(&space, &mut worker));
    space.retire(worker);
    assert!(found <= LOOKUP_MAX_NS, "finding a descriptor took {found:.2} ns");
}
