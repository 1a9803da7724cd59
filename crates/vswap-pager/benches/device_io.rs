//! What the two engines cost on a real file, past the page cache.
//!
//!     cargo bench -p vswap-pager --bench device_io [-- DIRECTORY]
//!
//! Writes a file of 512 MiB there (default: the temporary directory), and `dd` one more.

#![allow(missing_docs, reason = "a program")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use vswap_pager::arena::Arena;
use vswap_pager::io::{
    Batch, Choice, Device, DeviceIo as _, DirectBuffers, Geometry, Health, RUN_BYTES_MAX, ThreadIo,
};
use vswap_pager::sys::fd;

const LEN: u64 = 512 << 20;
const PAGE: usize = 4096;
const READS: usize = 4000;
const BATCHES: usize = 300;
/// Runs that are written together.
const DEPTHS: [u64; 3] = [1, 2, 4];
const WRITES: usize = 5;
const TIMEOUT_NS: u64 = 60_000_000_000;

struct Random(u64);

impl Random {
    /// The place of a page anywhere in the file.
    fn place(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % (LEN / PAGE as u64) * PAGE as u64
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn microseconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / 1000.0
}

/// p50 of one page: a bare pread, then each engine. The three take turns, so that they meet the
/// same disk.
fn single_reads(device: &Device<'_>, engines: &mut [(&str, ThreadIo<'_>)]) {
    let mut random = Random(1);
    let pool = engines[0].1.buffers();
    let mut bare = pool.take(PAGE).expect("buffers");
    let mut page = [0; PAGE];
    let mut times = vec![Vec::new(); engines.len() + 1];
    for _ in 0..READS {
        let place = random.place();
        times[0].push(microseconds(|| assert!(fd::pread(device.fd, &mut bare, place).is_ok())));
        for (times, (_, io)) in times[1..].iter_mut().zip(&mut *engines) {
            let place = random.place();
            times.push(microseconds(|| io.read(device, place, &mut page).expect("a page")));
        }
    }
    let names = ["bare pread"].into_iter().chain(engines.iter().map(|(name, _)| *name));
    for (name, times) in names.zip(times) {
        println!("one page, {name:10}: p50 {:7.1} us", median(times));
    }
}

fn batches(device: &Device<'_>, engines: &mut [(&str, ThreadIo<'_>)]) {
    let mut random = Random(2);
    let mut times = vec![Vec::new(); engines.len()];
    for _ in 0..BATCHES {
        for (times, (_, io)) in times.iter_mut().zip(&mut *engines) {
            let mut batch = Batch::new();
            while let Ok(()) =
                batch.push(device, random.place(), io.buffers().take(PAGE).expect("buffers"))
            {
            }
            times.push(microseconds(|| io.read_many(&mut batch)));
            batch.result().expect("pages");
        }
    }
    for ((name, _), times) in engines.iter().zip(times) {
        let us = median(times);
        println!("64 random pages, {name:6}: {us:8.0} us, {:6.1} us each", us / 64.0);
    }
}

/// MiB/s of the whole file, written in runs of 256 KiB, `depth` at a time.
fn sequential(device: &Device<'_>, io: &mut ThreadIo<'_>, depth: u64) -> f64 {
    let us = microseconds(|| {
        let mut place = 0;
        while place < LEN {
            let mut batch = Batch::new();
            for _ in 0..depth {
                let buffer = io.buffers().take(RUN_BYTES_MAX).expect("buffers");
                batch.push(device, place, buffer).expect("room");
                place += RUN_BYTES_MAX as u64;
            }
            io.write_many(&mut batch);
            batch.result().expect("written");
        }
    });
    (LEN >> 20) as f64 / (us / 1e6)
}

fn dd(path: &Path) -> f64 {
    let count = format!("count={}", LEN >> 20);
    let target = format!("of={}", path.display());
    let us = microseconds(|| {
        let status = Command::new("dd")
            .args(["if=/dev/zero", &target, "bs=1M", &count, "oflag=direct", "conv=notrunc"])
            .args(["status=none"])
            .status();
        assert!(status.expect("dd").success());
    });
    (LEN >> 20) as f64 / (us / 1e6)
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() {
    let directory = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = Temporary(directory.join(format!("vswap-device-io-{}", std::process::id())));
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path.0)
        .expect("a new file");
    let fd = file.as_raw_fd();
    let health = Health::new();
    let geometry = Geometry::prefer_direct(fd).expect("an open file");
    println!("{} {geometry:?}", path.0.display());
    let device = Device { fd, id: 0, geometry, health: &health };
    let pool = DirectBuffers::reserve(&Arena, 8).expect("memory");
    let engine = |choice| ThreadIo::new(&pool, choice, TIMEOUT_NS);
    let mut engines = [("plain", engine(Choice::Plain)), ("ring", engine(Choice::Ring))];

    // The file gets its blocks: all later rounds overwrite.
    dd(&path.0);
    let mut rates = vec![Vec::new(); 1 + 3 * 2];
    for _ in 0..WRITES {
        rates[0].push(dd(&path.0));
        for (index, (_, io)) in engines.iter_mut().enumerate() {
            for (nth, depth) in DEPTHS.into_iter().enumerate() {
                rates[1 + 3 * index + nth].push(sequential(&device, io, depth));
            }
        }
    }
    let rows = |name| DEPTHS.map(|depth| format!("{name}, {depth} at once"));
    let own = engines.iter().flat_map(|(name, _)| rows(*name));
    let names = ["dd bs=1M".to_owned()].into_iter().chain(own);
    for (name, rates) in names.zip(rates) {
        println!("sequential write, {name:16}: {:6.0} MiB/s", median(rates));
    }
    single_reads(&device, &mut engines);
    batches(&device, &mut engines);
}
