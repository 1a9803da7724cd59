//! A space over the devices of a run, and a map that says what it should hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use vswap_core::descriptor::Place;
use vswap_core::page::Page;
use vswap_core::{
    CodecKind, Cursor, GroupId, LoadError, Relocation, StoreError, Target, TransferError, Worker,
};

use super::*;
use crate::swap::fetched::{Fetched, Wanted};

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A page of a number: no two are alike, and they compress to all sizes or not at all.
pub fn page_of(number: u64) -> Page {
    let mut random = Random(number);
    let mut page = Page::ZERO;
    let random_bytes = [4096, 3400, 2600, 1900, 1400, 900, 400, 64][(number % 8) as usize];
    for word in page.0[..random_bytes].as_chunks_mut().0 {
        *word = random.next().to_ne_bytes();
    }
    page
}

/// What the faults of a machine can do to its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Nothing: what fails says so, and before anything depends on it.
    None,
    /// Loads fail, and succeed when they are tried again without faults.
    Passing,
    /// What is on a device may be gone, but is never taken for something else.
    Lasting,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    page: u64,
    count: usize,
}

/// What a machine saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Faults.
    pub injected: u64,
    /// Loads that failed because of them.
    pub failed_loads: u64,
    /// Loads that gave what the entry held earlier, since a later write was lost.
    pub missed: u64,
    /// Objects that writeback moved.
    pub written: u64,
    /// Objects that swapoff moved.
    pub moved: u64,
    /// Windows that were read with one batch.
    pub fetched: u64,
    /// Objects that compaction moved.
    pub compacted: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.injected += other.injected;
        self.failed_loads += other.failed_loads;
        self.missed += other.missed;
        self.written += other.written;
        self.moved += other.moved;
        self.fetched += other.fetched;
        self.compacted += other.compacted;
    }
}

/// The pages that an entry had before the one that it has, since the devices are in use.
pub type Earlier = Arc<Mutex<HashMap<SwapEntry, Vec<u64>>>>;

/// Reads what a window wants from devices.
pub fn fetch(window: &[SwapEntry]) -> Option<Fetched> {
    let mut wanted = Wanted::new();
    for entry in window {
        if let Some(Place::Backing { id, handle, length, .. }) = engine().space.peek(*entry).place()
        {
            wanted.add(id, handle, length.into());
        }
    }
    wanted.fetch()
}

pub struct Machine {
    seed: u64,
    random: Random,
    worker: Option<Worker>,
    devices: [&'static SwapDevice; 2],
    harm: Harm,
    /// Whether nobody else uses the space, as a fork needs it.
    is_alone: bool,
    model: BTreeMap<SwapEntry, Known>,
    earlier: Earlier,
    buffer: Vec<u8>,
    seen: Seen,
}

impl Machine {
    pub fn new(
        seed: u64,
        devices: [&'static SwapDevice; 2],
        (harm, earlier): (Harm, Earlier),
        is_alone: bool,
    ) -> Self {
        let worker = engine().space.worker(CodecKind::Lz4).expect("memory");
        Self {
            seed,
            random: Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            worker: Some(worker),
            devices,
            harm,
            is_alone,
            model: BTreeMap::new(),
            earlier,
            buffer: vec![0; 64 * PAGE_SIZE],
            seen: Seen::default(),
        }
    }

    fn worker(&mut self) -> &mut Worker {
        self.worker.as_mut().expect("it has not ended")
    }

    fn pick(&mut self) -> Option<SwapEntry> {
        let at = self.random.below(self.model.len().max(1));
        self.model.keys().nth(at).copied()
    }

    fn device(&mut self) -> &'static SwapDevice {
        self.devices[self.random.below(2)]
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn step(&mut self) {
        match self.random.below(25) {
            0..8 => self.swap_out(),
            8..11 => self.write_back(),
            11..14 => drop(self.pick().map(|entry| self.load(entry))),
            14..18 => drop(self.pick().map(|entry| self.free(entry))),
            18 => self.load_in_order(false),
            19 | 20 => self.transfer(),
            21 => self.dup(),
            22 => match self.random.below(8) {
                0 | 1 => self.swapoff(),
                3 | 4 => self.compact(),
                2 if self.is_alone => self.fork(),
                _ => drop(self.device().discard()),
            },
            23 => self.load_in_order(true),
            _ => self.load_erasing(),
        }
    }

    fn swap_out(&mut self) {
        for _ in 0..=self.random.below(12) {
            let number = self.random.next();
            let stored = engine().space.swap_out(self.worker(), GroupId::ROOT, &page_of(number));
            match stored {
                Ok(entry) => {
                    let known = Known { page: number, count: 1 };
                    assert!(self.model.insert(entry, known).is_none(), "{entry:?} was taken");
                }
                Err(StoreError::Full) => {}
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
        }
    }

    fn write_back(&mut self) {
        let device = self.device();
        let from = self.pick().map_or(Cursor::START, Cursor::at);
        let worker = self.worker.as_mut().expect("it has not ended");
        let all = from..Cursor::END;
        let done =
            engine().space.write_back(worker, device.backing(), all, &mut self.buffer, |_| true);
        let done = done.expect("it is attached");
        assert!(done.written == 0 || done.refused.is_none(), "seed {}: {done:?}", self.seed);
        assert!(done.raced == 0 || !self.is_alone, "seed {}: {done:?}", self.seed);
        self.seen.written += done.written as u64;
    }

    fn load(&mut self, entry: SwapEntry) -> bool {
        let mut page = Page::ZERO;
        let loaded = engine().space.load(self.worker(), entry, &mut page);
        self.judge(entry, loaded.map(drop), &page)
    }

    /// Whether a load was what it had to be, and gave the page.
    fn judge(&mut self, entry: SwapEntry, loaded: Result<(), LoadError>, page: &Page) -> bool {
        let seed = self.seed;
        let known = self.model[&entry];
        match loaded {
            Ok(()) if page.0 == page_of(known.page).0 => true,
            Ok(()) => {
                let earlier = self.earlier.lock().expect("no thread failed");
                let mut before = earlier.get(&entry).into_iter().flatten();
                let stale = before.any(|number| page.0 == page_of(*number).0);
                drop(earlier);
                assert!(stale && self.harm == Harm::Lasting, "seed {seed}: {entry:?} is wrong");
                self.seen.missed += 1;
                true
            }
            Err(LoadError::Io(error)) => {
                let place = engine().space.peek(entry).place();
                let on_device = matches!(place, Some(Place::Backing { .. }));
                assert!(on_device || !self.is_alone, "seed {seed}: {place:?} failed");
                assert!(self.harm != Harm::None, "seed {seed}: {entry:?} fails with {error}");
                self.seen.failed_loads += 1;
                false
            }
            Err(error) => panic!("seed {seed}: {entry:?}: {error}"),
        }
    }

    /// Loads a row of entries, in windows as a fault does, or one by one.
    fn load_in_order(&mut self, in_windows: bool) {
        let Some(first) = self.pick() else { return };
        let row: Vec<_> = self.model.range(first..).map(|(entry, _)| *entry).take(80).collect();
        for window in row.chunks(if in_windows { 40 } else { 1 }) {
            let fetched = fetch(window);
            self.seen.fetched += u64::from(fetched.is_some());
            for entry in window {
                self.load(*entry);
            }
        }
    }

    /// Reads a page for good, and sends another one out under the same entry.
    fn load_erasing(&mut self) {
        let Some(entry) = self.pick() else { return };
        let mut page = Page::ZERO;
        let loaded = engine().space.load_erasing(self.worker(), entry, &mut page);
        if !self.judge(entry, loaded.map(drop), &page) {
            return;
        }
        let number = self.random.next();
        let stored = engine().space.store_run(self.worker(), entry, &[&page_of(number)]);
        let known = self.model.get_mut(&entry).expect("picked");
        let before = known.page;
        if stored.is_ok() {
            known.page = number;
            engine().space.cache_remove(entry).expect("it is stored");
        } else {
            // No place takes it: it stays resident, until it is freed.
            let count = known.count;
            self.model.remove(&entry);
            (0..count).for_each(|_| engine().space.free(entry));
            engine().space.cache_remove(entry).expect("it is resident");
        }
        self.remember(entry, before);
    }

    fn free(&mut self, entry: SwapEntry) {
        engine().space.free(entry);
        let known = self.model.get_mut(&entry).expect("picked");
        known.count -= 1;
        if known.count == 0 {
            let page = known.page;
            self.model.remove(&entry);
            self.remember(entry, page);
        }
    }

    fn remember(&self, entry: SwapEntry, page: u64) {
        self.earlier.lock().expect("no thread failed").entry(entry).or_default().push(page);
    }

    fn transfer(&mut self) {
        let Some(entry) = self.pick() else { return };
        let to = Target::Backing(self.device().backing());
        let target = [Target::Pool, to, to, Target::Anywhere][self.random.below(4)];
        match engine().space.transfer(self.worker(), entry, target) {
            Ok(_) | Err(TransferError::Store(_)) => {}
            Err(TransferError::Load(error)) => {
                assert!(self.harm != Harm::None, "seed {}: {error}", self.seed);
            }
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn dup(&mut self) {
        if let Some(entry) = self.pick() {
            engine().space.dup(entry).expect("it lives");
            self.model.get_mut(&entry).expect("picked").count += 1;
        }
    }

    /// Moves everything off a device, as far as that goes, and takes it into use again.
    fn swapoff(&mut self) {
        let device = self.device();
        SWAP_DEVICES.set_draining(engine(), device.number.into(), device, true);
        let mut from = Some(Cursor::START);
        while let Some(cursor) = from {
            let done = engine().space.rehome(self.worker(), device.backing(), cursor, 50);
            let done = done.expect("it is attached");
            self.seen.moved += done.moved as u64;
            from = done.next;
        }
        SWAP_DEVICES.set_draining(engine(), device.number.into(), device, false);
    }

    /// A part of a pass at least: another one may have begun anew by then.
    fn compact(&mut self) {
        /// One thread moves objects at a time.
        static TURN: Mutex<()> = Mutex::new(());
        let Ok(_turn) = TURN.try_lock() else { return };
        let device = self.device();
        device.begin_compaction();
        let mut from = Some(Cursor::START);
        while let Some(cursor) = from.filter(|_| self.random.below(8) > 0) {
            let worker = self.worker.as_mut().expect("it has not ended");
            let moving = (device.backing(), device as &dyn Relocation);
            let done = engine().space.relocate(worker, moving, cursor, 50, &mut self.buffer);
            let done = done.expect("it is attached");
            assert!(done.raced == 0 || !self.is_alone, "seed {}: {done:?}", self.seed);
            assert!(done.moved == 0 || done.refused.is_none(), "seed {}: {done:?}", self.seed);
            self.seen.compacted += done.moved as u64;
            from = done.next;
        }
        if self.random.below(3) > 0 {
            device.end_compaction();
        }
    }

    /// Goes on as one of the two processes that a fork makes.
    fn fork(&mut self) {
        let side = [Fork::Parent, Fork::Child][self.random.below(2)];
        let forking = SWAP_DEVICES.before_fork();
        if side == Fork::Child {
            let fd = |device: &SwapDevice| device.fd(Side::Pager).load(Ordering::Relaxed);
            let given: Vec<_> = self.devices.iter().map(|device| fd(device)).collect();
            SWAP_DEVICES.reset_after_fork();
            // As the run gives them to a child that joins it.
            for (device, fd) in self.devices.iter().zip(given) {
                device.fd(Side::Pager).store(fd, Ordering::Relaxed);
            }
        }
        self.devices.iter().for_each(|device| device.seal_after_fork(side));
        if side == Fork::Parent {
            SWAP_DEVICES.after_fork(forking);
        }
    }

    /// Without faults: every page that can be there is there. Then all goes.
    pub fn finish(mut self) -> Seen {
        self.seen.injected += end_faults();
        if self.harm == Harm::Passing {
            self.harm = Harm::None;
        }
        for entry in self.model.keys().copied().collect::<Vec<_>>() {
            self.load(entry);
            (0..self.model[&entry].count).for_each(|_| self.free(entry));
        }
        engine().space.retire(self.worker.take().expect("once"));
        self.seen
    }
}
