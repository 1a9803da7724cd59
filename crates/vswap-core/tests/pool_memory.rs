//! What the pool holds: that it counts as the kernel does, keeps to its limit, gives memory back,
//! and shares its data pages across fork.

mod common;

use std::ptr::NonNull;
use std::sync::Mutex;

use common::Random;
use vswap_core::platform::MmapPlatform;
use vswap_core::pool::{Pool, PoolFull, PoolLocal, Stored};
use vswap_core::{PAGE_SIZE, Platform};

const MIB: usize = 1 << 20;

/// Knows what is reserved, so that a test can ask the kernel which pages of it are there.
#[derive(Debug, Default)]
struct Watched(Mutex<Vec<(usize, usize)>>);

impl Platform for Watched {
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        let ptr = MmapPlatform.reserve(len, align)?;
        self.0.lock().unwrap().push((ptr.as_ptr().addr(), len));
        Some(ptr)
    }

    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { MmapPlatform.discard(ptr, len) }
    }

    unsafe fn unreserve(&self, ptr: NonNull<u8>, len: usize) {
        self.0.lock().unwrap().retain(|&(start, _)| start != ptr.as_ptr().addr());
        // SAFETY: the caller's promise is the same.
        unsafe { MmapPlatform.unreserve(ptr, len) }
    }

    fn relax(&self, spins: u32) {
        MmapPlatform.relax(spins);
    }
}

impl Watched {
    /// Bytes of all reservations that are in memory, by the kernel's word.
    fn resident(&self) -> usize {
        let mut pages = 0;
        for &(start, len) in self.0.lock().unwrap().iter() {
            let mut present = vec![0u8; len / PAGE_SIZE];
            let start = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: the range is mapped, and the vector has a byte for each of its pages.
            let result = unsafe { libc::mincore(start, len, present.as_mut_ptr()) };
            assert_eq!(result, 0);
            pages += present.iter().filter(|&&byte| byte & 1 != 0).count();
        }
        pages * PAGE_SIZE
    }
}

fn store_some(
    pool: &Pool<&Watched>,
    local: &mut PoolLocal,
    random: &mut Random,
    count: usize,
) -> Result<Vec<Stored>, PoolFull> {
    let bytes = [0x5a; PAGE_SIZE];
    (0..count).map(|_| pool.store(local, &bytes[..200 + random.below(3000)])).collect()
}

/// The kernel's count is data, headers and the table of pieces; only the last two are ours to bound.
fn assert_counted(platform: &Watched, pool: &Pool<&Watched>) {
    let resident = platform.resident();
    let (memory, metadata) = (pool.memory(), pool.metadata());
    assert!(memory <= resident, "{memory} bytes counted, {resident} there");
    assert!(resident <= memory + metadata, "{resident} there, {memory} + {metadata} counted");
}

#[test]
fn memory_is_what_the_kernel_counts_and_goes_back() {
    let platform = Watched::default();
    {
        let pool = Pool::new(&platform);
        let (mut local, mut random) = (pool.local(), Random::new(1));
        assert_eq!((pool.memory(), platform.resident()), (0, 0), "nothing before the first store");
        let mut live = store_some(&pool, &mut local, &mut random, 30_000).unwrap();
        assert_counted(&platform, &pool);
        let full = pool.memory();
        for quarter in 1..=3 {
            for _ in 0..7_500 {
                pool.free(live.swap_remove(random.below(live.len())));
            }
            assert_counted(&platform, &pool);
            if quarter == 2 {
                pool.choose_victims(usize::MAX);
                pool.release_victims();
                assert_counted(&platform, &pool);
                assert!(pool.memory() < full, "pages without objects went back");
            }
        }
        live.drain(..).for_each(|stored| pool.free(stored));
        pool.settle_all(&mut local);
        assert_eq!(pool.memory(), 0);
        assert_counted(&platform, &pool);
        // It can be filled again, in the same places.
        let reserved = platform.0.lock().unwrap().len();
        store_some(&pool, &mut local, &mut random, 30_000).unwrap();
        assert_eq!(platform.0.lock().unwrap().len(), reserved);
        pool.check().unwrap();
        pool.retire(local);
    }
    assert!(platform.0.lock().unwrap().is_empty(), "address space went back");
}

#[test]
fn bookkeeping_takes_half_a_byte_for_an_object() {
    let platform = Watched::default();
    let pool = Pool::new(&platform);
    let (mut local, mut random) = (pool.local(), Random::new(2));
    let count = 200_000;
    for _ in 0..count {
        pool.store(&mut local, &[1; PAGE_SIZE][..1000 + random.below(600)]).unwrap();
    }
    let each = pool.metadata() as f64 / count as f64;
    println!("{each:.3} bytes of bookkeeping for an object of 1300");
    assert!(each <= 0.5);
    let density = pool.payload() as f64 / pool.memory() as f64;
    assert!(density >= 0.97, "payload / memory is {density}");
    pool.retire(local);
}

#[test]
fn the_limit_holds_and_what_is_free_under_it_can_be_used() {
    let platform = Watched::default();
    let pool = Pool::new(&platform);
    let (mut local, mut random) = (pool.local(), Random::new(3));
    pool.set_limit(4 * MIB);
    let mut live = Vec::new();
    let fill = |local: &mut PoolLocal, live: &mut Vec<Stored>, random: &mut Random| {
        while let Ok(mut stored) = store_some(&pool, local, random, 1) {
            live.append(&mut stored);
            assert!(pool.memory() <= 4 * MIB);
        }
    };
    fill(&mut local, &mut live, &mut random);
    assert_eq!(pool.memory(), 4 * MIB, "the last page was to be had");
    let density = pool.payload() as f64 / pool.memory() as f64;
    assert!(density > 0.9, "refused at {density}");

    // Holes are used at the limit, where no page is to be had for them.
    for _ in 0..10 {
        for _ in 0..live.len() / 4 {
            pool.free(live.swap_remove(random.below(live.len())));
        }
        let before = pool.payload();
        fill(&mut local, &mut live, &mut random);
        assert!(pool.payload() > before);
        assert_counted(&platform, &pool);
    }

    // A lower limit takes nothing away and lets nothing more in; a higher one does.
    let payload = pool.payload();
    pool.set_limit(MIB);
    assert_eq!(pool.store(&mut local, &[0; PAGE_SIZE]), Err(PoolFull));
    assert_eq!(pool.payload(), payload);
    pool.set_limit(5 * MIB);
    assert!(pool.store(&mut local, &[0; PAGE_SIZE]).is_ok());
    pool.check().unwrap();
    pool.retire(local);
}

#[test]
fn workers_share_the_limit_to_the_last_page() {
    let platform = Watched::default();
    let pool = Pool::new(&platform);
    pool.set_limit(8 * MIB);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let pool = &pool;
            scope.spawn(move || {
                let (mut local, mut random) = (pool.local(), Random::new(seed));
                while store_some(pool, &mut local, &mut random, 1).is_ok() {}
                pool.retire(local);
            });
        }
    });
    assert_eq!(pool.memory(), 8 * MIB);
    assert_counted(&platform, &pool);
    pool.check().unwrap();
}

/// Page faults of this process so far that needed no I/O.
fn faults() -> i64 {
    // SAFETY: zeros are a valid value, and the call overwrites it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage.ru_minflt
    }
}

#[test]
fn frees_after_fork_copy_no_data() {
    let platform = Watched::default();
    let pool = Pool::new(&platform);
    let (mut local, mut random) = (pool.local(), Random::new(4));
    let live = store_some(&pool, &mut local, &mut random, 20_000).unwrap();
    let data_pages = (pool.memory() / PAGE_SIZE) as i64;
    // SAFETY: the child uses the pool and memory that it has, takes no lock of the C library, and
    // leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let before = faults();
        // Every other object: no segment empties, so whatever is touched stays.
        live.iter().step_by(2).for_each(|stored| pool.free(*stored));
        let cheap = faults() - before < data_pages / 20;
        let whole = pool.check().is_ok();
        live.iter().skip(1).step_by(2).for_each(|stored| pool.free(*stored));
        pool.settle_all(&mut local);
        let works = pool.memory() == 0 && pool.store(&mut local, &[7; 100]).is_ok();
        // SAFETY: ends this process and runs nothing of its parent's.
        unsafe { libc::_exit(i32::from(cheap) | i32::from(whole) << 1 | i32::from(works) << 2) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made; it ends by itself.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status));
    assert_eq!(libc::WEXITSTATUS(status), 0b111, "cheap, whole and working, from the right");
    // What the child did is the child's.
    pool.check().unwrap();
    for stored in live {
        // SAFETY: the object is alive here.
        assert!(unsafe { pool.bytes(stored) }.iter().all(|&byte| byte == 0x5a));
        pool.free(stored);
    }
    pool.retire(local);
    assert_eq!(pool.memory(), 0);
}
