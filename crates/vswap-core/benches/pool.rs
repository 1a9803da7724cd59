//! What the pool wastes, and what it costs, on pages of real programs.
//!
//!     cargo bench -p vswap-core --bench pool
//!
//! Times are the thread's CPU time, medians of batches of [`BATCH`] operations where possible, so
//! that neighbours on the machine count as little as can be. `copy` is what a store does besides: the same bytes, copied to the
//! same places by nothing but `memcpy`.

#![allow(missing_docs, reason = "a program")]

mod corpus;

use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};

use vswap_core::codec::{Codec, CodecKind, Scratch};
use vswap_core::platform::MmapPlatform;
use vswap_core::pool::{Pool, PoolLocal, Stored};
use vswap_core::same_filled::repeated_word;
use vswap_core::{PAGE_SIZE, Page};

const ROUNDS: usize = 5;
const BATCH: usize = 256;
const CHURNS: usize = 5;
const KEPT: f64 = 0.9;
const GOAL: f64 = 0.91;
const CORPUS_LEN: usize = 32 << 20;

type Objects = Vec<Box<[u8]>>;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % limit
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds of this thread for each of `n` operations.
fn time_each(n: usize, work: impl FnOnce()) -> f64 {
    let start = thread_time();
    work();
    (thread_time() - start) * 1e9 / n as f64
}

fn thread_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the value that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn compress(pages: &[Page], kind: CodecKind) -> Objects {
    let mut codec = Scratch::new(kind, &MmapPlatform).expect("address space");
    let mut out = [0; PAGE_SIZE];
    let mut objects = Objects::new();
    for page in pages.iter().filter(|page| repeated_word(page).is_none()) {
        let object = codec.compress(page, &mut out).map_or(&page.0[..], |len| &out[..len]);
        objects.push(object.into());
    }
    Random(3).shuffle(&mut objects);
    objects
}

struct Fill {
    pool: Pool<MmapPlatform>,
    local: PoolLocal,
    live: Vec<Stored>,
}

impl Fill {
    fn new(objects: &Objects) -> Self {
        let pool = Pool::new(MmapPlatform);
        let mut local = pool.local();
        let live = objects.iter().map(|object| pool.store(&mut local, object).unwrap()).collect();
        Self { pool, local, live }
    }

    fn density(&self) -> f64 {
        self.pool.payload() as f64 / self.pool.memory() as f64
    }

    /// Replaces random objects by random others; nanoseconds for a free and for a store.
    fn churn(&mut self, objects: &Objects, count: usize, random: &mut Random) -> (f64, f64) {
        let (mut freeing, mut storing) = (Vec::new(), Vec::new());
        for _ in 0..count / BATCH {
            let gone: Vec<Stored> =
                (0..BATCH).map(|_| self.live.swap_remove(random.below(self.live.len()))).collect();
            let new = some_objects(objects, random);
            freeing.push(time_each(BATCH, || {
                for stored in gone {
                    self.pool.free(stored);
                }
            }));
            storing.push(time_each(BATCH, || {
                for object in new {
                    self.live.push(self.pool.store(&mut self.local, object).unwrap());
                }
            }));
        }
        (median(freeing), median(storing))
    }

    /// Churns and compacts whenever the density falls below [`KEPT`]; returns the lowest density
    /// after that, and how many bytes were moved for each byte stored.
    fn churn_compacting(&mut self, objects: &Objects, random: &mut Random) -> (f64, f64) {
        let (mut lowest, mut moved) = (f64::INFINITY, 0.0);
        for _ in 0..CHURNS * objects.len() / BATCH {
            self.churn(objects, BATCH, random);
            if self.density() < KEPT {
                moved += self.compact();
            }
            lowest = lowest.min(self.density());
        }
        (lowest, moved / CHURNS as f64)
    }

    /// Moves victims until the density is [`GOAL`]; returns the share of payload that was moved.
    fn compact(&mut self) -> f64 {
        let (mut moved, payload) = (0, self.pool.payload());
        while self.density() < GOAL {
            let before = self.pool.memory();
            self.pool.choose_victims(before - (payload as f64 / GOAL) as usize);
            for stored in &mut self.live {
                if self.pool.is_victim(stored.location) {
                    // SAFETY: the object is alive until it is freed below.
                    let bytes = unsafe { self.pool.bytes(*stored) };
                    moved += bytes.len();
                    let new = self.pool.store(&mut self.local, bytes).unwrap();
                    self.pool.free(std::mem::replace(stored, new));
                }
            }
            self.pool.release_victims();
            if self.pool.memory() >= before {
                break;
            }
        }
        moved as f64 / payload as f64
    }
}

fn print_waste(name: &str, objects: &Objects) {
    let mut random = Random(11);
    let mut fill = Fill::new(objects);
    let n = objects.len() as f64;
    let mean = fill.pool.payload() as f64 / n;
    let (filled, overhead) = (fill.density(), fill.pool.metadata() as f64 / n);
    fill.churn(objects, CHURNS * objects.len(), &mut random);
    let churned = fill.density();
    let (lowest, moved) = fill.churn_compacting(objects, &mut random);
    // The program shrinks.
    random.shuffle(&mut fill.live);
    for stored in fill.live.split_off(objects.len() * 6 / 10) {
        fill.pool.free(stored);
    }
    let shrunk = fill.density();
    let moved_at_once = fill.compact();
    println!(
        "{name:<12} {:>7} {mean:>6.0}  {filled:>6.3} {churned:>8.3} {lowest:>7.3} {moved:>6.2}  \
         {shrunk:>8.3} {:>10.3} {moved_at_once:>6.2}  {overhead:>6.2}",
        objects.len(),
        fill.density(),
    );
    fill.pool.check().unwrap();
    fill.pool.retire(fill.local);
}

fn print_times(objects: &Objects) {
    let mut rows: [Vec<f64>; 7] = Default::default();
    for round in 0..ROUNDS {
        let mut random = Random(round as u64 + 1);
        let mut fill = Fill::new(objects);
        let (free, store) = fill.churn(objects, 4 * objects.len(), &mut random);
        rows[0].push(store);
        rows[1].push(copy_cost(&fill, objects, &mut random));
        rows[2].push(free);
        random.shuffle(&mut fill.live);
        rows[3].push(time_each(fill.live.len(), || {
            for stored in &fill.live {
                black_box(fill.pool.len(*stored));
            }
        }));
        rows[4].push(time_each(fill.live.len(), || {
            fill.live.drain(..).for_each(|stored| fill.pool.free(stored));
        }));
        rows[5].push(time_each(objects.len(), || {
            for object in objects {
                fill.live.push(fill.pool.store(&mut fill.local, object).unwrap());
            }
        }));
        rows[6].push(exchange(&fill.pool, objects));
        fill.pool.retire(fill.local);
    }
    let names = [
        "store into holes",
        "  of which copy",
        "free, random order",
        "len, random order",
        "free until nothing is left (gives memory back)",
        "store into new pages (page faults included)",
        "2 threads: store, and free what the other stored",
    ];
    for (name, times) in names.into_iter().zip(rows) {
        println!("{name:<50} {:>8.1} ns", median(times));
    }
}

/// What it takes to copy random objects to where random others are.
fn copy_cost(fill: &Fill, objects: &Objects, random: &mut Random) -> f64 {
    let batches = (0..4 * objects.len() / BATCH).map(|_| {
        let places = (0..BATCH).map(|_| fill.live[random.below(fill.live.len())]);
        // SAFETY: the objects are alive.
        let places: Vec<&[u8]> = places.map(|stored| unsafe { fill.pool.bytes(stored) }).collect();
        let new = some_objects(objects, random);
        time_each(BATCH, || {
            for (from, to) in new.into_iter().zip(places) {
                let (len, to) = (from.len().min(to.len()), to.as_ptr().cast_mut());
                // SAFETY: an object at least this long is there, and nobody looks at it any more.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), len) };
                // A store has atomic operations too, which wait for the copy before.
                fence(Ordering::SeqCst);
            }
        })
    });
    median(batches.collect())
}

/// Random objects to store, in the cache as if they had been compressed just before.
fn some_objects<'a>(objects: &'a Objects, random: &mut Random) -> Vec<&'a [u8]> {
    let some: Vec<&[u8]> = (0..BATCH).map(|_| &*objects[random.below(objects.len())]).collect();
    black_box(some.iter().flat_map(|object| object.iter()).map(|&b| u64::from(b)).sum::<u64>());
    some
}

/// Two workers store; each frees in batches what the other one stored. Nanoseconds for each object.
fn exchange(pool: &Pool<MmapPlatform>, objects: &Objects) -> f64 {
    std::thread::scope(|scope| {
        let (to_a, at_a) = std::sync::mpsc::sync_channel::<Vec<Stored>>(4);
        let (to_b, at_b) = std::sync::mpsc::sync_channel::<Vec<Stored>>(4);
        let workers = [(to_a, at_b), (to_b, at_a)].map(|(to, at)| {
            scope.spawn(move || {
                let mut local = pool.local();
                let time = time_each(objects.len(), || {
                    for batch in objects.chunks(BATCH) {
                        let stored = batch.iter().map(|o| pool.store(&mut local, o).unwrap());
                        to.send(stored.collect()).unwrap();
                        for stored in at.recv().unwrap() {
                            pool.free(stored);
                        }
                    }
                });
                pool.retire(local);
                time
            })
        });
        workers.into_iter().map(|worker| worker.join().unwrap()).sum::<f64>() / 2.0
    })
}

fn print_same_filled(pages: &[Page]) {
    let mut same = vec![Page::ZERO; 64];
    for page in &mut same {
        page.fill(0x0101_0101);
    }
    let ordinary: Vec<&Page> = pages.iter().filter(|page| repeated_word(page).is_none()).collect();
    for (name, pages) in [("ordinary", ordinary), ("same-filled", same.iter().collect())] {
        let pages = &pages[..pages.len().min(1024)];
        let times = (0..ROUNDS).map(|_| {
            time_each(pages.len() * 16, || {
                for page in (0..16).flat_map(|_| pages) {
                    black_box(repeated_word(black_box(page)));
                }
            })
        });
        println!("repeated_word, {name:<35} {:>8.1} ns", median(times.collect()));
    }
}

fn main() {
    // `cargo test --benches` runs this too, with nothing to measure.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let corpora = corpus::from_system(CORPUS_LEN);
    let all: Vec<Page> = corpora.iter().flat_map(|corpus| corpus.pages.iter().cloned()).collect();
    println!(
        "payload / memory: filled; after every object was replaced {CHURNS} times; the lowest while \
         that goes on with compaction below {KEPT}, and bytes moved for each stored; after 40 % were \
         freed; compacted, and share moved; bookkeeping bytes for each object"
    );
    println!(
        "{:<12} {:>7} {:>6}  {:>6} {:>8} {:>7} {:>6}  {:>8} {:>10} {:>6}  {:>6}",
        "pages",
        "objects",
        "bytes",
        "filled",
        "churned",
        "kept",
        "moved",
        "shrunk",
        "compacted",
        "moved",
        "meta"
    );
    for corpus in &corpora {
        print_waste(&format!("{} lz4", corpus.name), &compress(&corpus.pages, CodecKind::Lz4));
    }
    let objects = compress(&all, CodecKind::Lz4);
    print_waste("all lz4", &objects);
    let many: Objects = (0..8).flat_map(|_| objects.iter().cloned()).collect();
    print_waste("all lz4 x 8", &many);
    print_waste("all zstd 1", &compress(&all, CodecKind::Zstd(1)));
    println!();
    print_times(&objects);
    print_same_filled(&all);
}
