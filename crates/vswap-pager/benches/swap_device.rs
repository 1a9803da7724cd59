//! What a swap device makes of the disk below it: writeback against plain writes of 1 MiB, and the
//! load of an object against a plain read of a page.
//!
//!     cargo bench -p vswap-pager --bench swap_device [-- [--no-encrypt] [DIRECTORY]]
//!
//! # Measured
//!
//! ext4 on a virtio disk, O_DIRECT, 2 vCPUs shared with other work, idle-class scheduling, Linux 6.18. Medians
//! of nine rounds of 128 MiB and 4000 loads, encrypted / only checked:
//!
//! | pages | written, part of plain | CPU time a page | loaded, part of plain |
//! |---|---|---|---|
//! | raw | 0.29 / 0.44 | 3.9 / 2.8 us | 1.04 / 1.04 |
//! | lz4, all of a size | 0.21 / 0.34 | 1.8 / 1.3 us | 1.06 / 1.03 |
//! | lz4, of all sizes | 0.22 / 0.34 | 2.2 / 1.7 us | 1.04 / 1.03 |
//!
//! So a load costs what a plain read does, and writeback falls short of 0.8. One thread copies, seals,
//! writes and commits, one after the other: a raw page takes 4.6 KiB on the device, which the disk
//! writes in 2.5 us, and 3.9 us of CPU time before and after. Sealing and writing have to overlap, and more
//! than one thread has to seal. Both rates suffer from the other load, a thread that sleeps more
//! often the more.
//!
//! Before objects went out in one batch: 0.21 and 0.18 (raw), 0.06 and 0.10 (of all sizes).
//!
//! Writes a file of 640 MiB there (default: the temporary directory). All take turns, so that they
//! meet the same disk, and what counts is the ratio.

#![allow(missing_docs, reason = "a program")]

use core::ops::Range;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use vswap_core::device::object::{KEY, Protection};
use vswap_core::device::space;
use vswap_core::group::shared::GroupIndex;
use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::{CodecKind, Cursor, GroupId, SwapEntry, Worker};
use vswap_pager::arena::Arena;
use vswap_pager::engine::engine;
use vswap_pager::io::{DirectBuffers, Geometry, RUN_BYTES_MAX};
use vswap_pager::run_devices::{Description, DiscardBy};
use vswap_pager::run_page::RunPage;
use vswap_pager::swap::sealing::SEALING;
use vswap_pager::swap::{SWAP_DEVICES, SwapDevice};
use vswap_pager::sys::fd;

/// Bytes of the device, behind which there is room in the file for plain writes.
const LEN: usize = 512 << 20;
/// Bytes of a round.
const ROUND: usize = 128 << 20;
const END: usize = LEN + ROUND;
/// Pages that wait in the pool to be written back.
const CHUNK: usize = 8192;
const ROUNDS: usize = 9;
const LOADS: usize = 4000;
const BATCH: usize = 64 * PAGE_SIZE;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        self.0 >> 16
    }
}

/// Microseconds of CPU time that this thread had.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
    let ns = stat.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    ns.expect("nanoseconds") / 1e3
}

/// A page of which so many bytes do not compress.
fn page(noise: usize) -> Page {
    let mut random = Random(noise as u64);
    let mut page = Page::ZERO;
    for byte in &mut page.0[..noise] {
        *byte = random.next() as u8;
    }
    page
}

/// The disk, as a program writes and reads it that has nothing else to do.
struct Plain {
    file: File,
    buffer: &'static mut [u8],
    random: Random,
}

impl Plain {
    const WRITE: usize = 1 << 20;

    fn new(file: File) -> Self {
        let buffers = DirectBuffers::reserve(&Arena, 4).expect("memory");
        let buffers = buffers.leak(&Arena).expect("memory");
        // Four groups lie behind each other, and are this program's for good.
        let mut groups = [(); 4].map(|()| buffers.take(RUN_BYTES_MAX).expect("a buffer"));
        let start = groups[0].as_mut_ptr();
        std::mem::forget(groups);
        // SAFETY: the memory of all four is contiguous, and their owners were forgotten.
        let buffer = unsafe { std::slice::from_raw_parts_mut(start, Self::WRITE) };
        let mut random = Random(3);
        for byte in &mut *buffer {
            *byte = random.next() as u8;
        }
        Self { file, buffer, random: Random(5) }
    }

    /// MiB/s.
    fn write(&self, places: Range<usize>) -> f64 {
        let time = seconds(|| {
            for place in places.clone().step_by(Self::WRITE) {
                let written = fd::pwrite(self.file.as_raw_fd(), self.buffer, place as u64);
                assert_eq!(written, Ok(Self::WRITE));
            }
        });
        (places.len() >> 20) as f64 / time
    }

    /// Microseconds of one read of a page anywhere.
    fn read(&mut self) -> f64 {
        let place = self.random.next() as usize % (LEN / PAGE_SIZE) * PAGE_SIZE;
        let Self { file, buffer, .. } = self;
        let out = &mut buffer[..PAGE_SIZE];
        1e6 * seconds(|| assert!(fd::pread(file.as_raw_fd(), out, place as u64).is_ok()))
    }
}

/// Pages of one kind, on the device.
struct Swapped {
    entries: Vec<SwapEntry>,
    /// MiB/s of what the device got.
    rate: f64,
    /// Microseconds of CPU time for each.
    cpu: f64,
}

/// Fills the pool and writes it back, until a round's bytes are on the device.
fn write_back(
    worker: &mut Worker,
    device: &SwapDevice,
    pages: &[Page],
    copies: &mut [u8],
) -> Swapped {
    let space = &engine().space;
    let (mut entries, mut time, mut cpu) = (Vec::new(), 0.0, 0.0);
    let before = device.used();
    while device.used() - before < ROUND as u64 {
        let chunk = pages.iter().cycle().take(CHUNK);
        let chunk = chunk.map(|page| space.swap_out(worker, GroupId::ROOT, page).expect("room"));
        let first = entries.len();
        entries.extend(chunk);
        let mut from = Some(Cursor::at(entries[first]));
        cpu -= cpu_us();
        time += seconds(|| {
            while let Some(cursor) = from {
                let all = cursor..Cursor::END;
                let done = space.write_back(worker, device.backing(), all, copies, |_| true);
                from = done.expect("it is attached").next;
            }
        });
        cpu += cpu_us();
    }
    let written = (device.used() - before) as f64 / (1 << 20) as f64;
    Swapped { rate: written / time, cpu: cpu / entries.len() as f64, entries }
}

/// Microseconds of the load of one object, after others that are elsewhere.
fn load(worker: &mut Worker, swapped: &Swapped, random: &mut Random) -> f64 {
    let entry = swapped.entries[random.next() as usize % swapped.entries.len()];
    let mut page = Page::ZERO;
    1e6 * seconds(|| {
        engine().space.load(worker, entry, &mut page).expect("it is there");
    })
}

/// Takes the file into use as the run's only device.
fn attach(file: &File, geometry: Geometry, protection: Protection) -> &'static SwapDevice {
    // SAFETY: all-zero bytes are a valid page.
    let run: Box<RunPage> = unsafe {
        Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<RunPage>()).cast())
    };
    let run: &'static RunPage = Box::leak(run);
    run.devices.protect([7; KEY], protection);
    let shift = geometry.block.trailing_zeros();
    run.devices.get(0).expect("a number").set(
        Description {
            priority: 0,
            geometry: space::Geometry::new(shift, (LEN >> shift) as u32).expect("sizes"),
            has_header: false,
            discard: DiscardBy::Nothing,
            direct: geometry.direct,
        },
        GroupIndex::ROOT,
    );
    engine().join_run(run, &run.members[0]);
    engine().pager.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: no device was attached yet, and nobody else seals.
    unsafe { SEALING.begin(&run.devices) };
    let fd = file.try_clone().expect("a descriptor").into_raw_fd();
    assert!(SWAP_DEVICES.attach(engine(), 0, fd, None));
    engine().space.set_pool_limit(usize::MAX);
    SWAP_DEVICES.get(0).expect("it was attached")
}

fn new_file(directory: &Path) -> (File, Geometry) {
    let path = directory.join(format!("vswap-swap-device-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path).expect("a new file");
    std::fs::remove_file(&path).expect("our file");
    let geometry = Geometry::prefer_direct(file.as_raw_fd()).expect("an open file");
    println!("{} {geometry:?}", directory.display());
    (file, geometry)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let plain_text = arguments.any(|argument| argument == "--no-encrypt");
    let protection = if plain_text { Protection::Checked } else { Protection::Encrypted };
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let (file, geometry) = new_file(&directory.map_or_else(std::env::temp_dir, PathBuf::from));
    let device = attach(&file, geometry, protection);
    let mut plain = Plain::new(file);
    // The file gets its blocks: all later rounds overwrite.
    plain.write(0..END);

    let mixed = (1..=16).map(|n| page(n * 200)).collect();
    let kinds = [
        ("raw", vec![page(PAGE_SIZE)], CodecKind::None),
        ("lz4, all of a size", vec![page(1400)], CodecKind::Lz4),
        ("lz4, of all sizes", mixed, CodecKind::Lz4),
    ];
    let mut copies = vec![0; BATCH];
    let mut random = Random(7);
    println!("{protection:?}");
    for (name, pages, codec) in kinds {
        let mut worker = engine().space.worker(codec).expect("memory");
        let (mut rates, mut ratios, mut cpu) = ([vec![], vec![]], vec![], vec![]);
        let mut times = [vec![], vec![]];
        for _ in 0..ROUNDS {
            let before = plain.write(LEN..END);
            let swapped = write_back(&mut worker, device, &pages, &mut copies);
            let bare = f64::midpoint(before, plain.write(LEN..END));
            rates[0].push(bare);
            rates[1].push(swapped.rate);
            ratios.push(swapped.rate / bare);
            cpu.push(swapped.cpu);
            for _ in 0..LOADS / ROUNDS {
                times[0].push(plain.read());
                times[1].push(load(&mut worker, &swapped, &mut random));
            }
            engine().space.free_many(&swapped.entries);
        }
        engine().space.retire(worker);
        let [bare, own] = rates.map(median);
        let (ratio, cpu) = (median(ratios), median(cpu));
        println!(
            "{name}: written {own:.0} MiB/s, plain {bare:.0} MiB/s, ratio {ratio:.2}, \
             {cpu:.2} us of CPU time a page"
        );
        let [bare, own] = times.map(median);
        let ratio = own / bare;
        println!("{name}: loaded in {own:.1} us, plain {bare:.1} us, ratio {ratio:.2}, p50");
    }
}
