//! The space against a map: random operations, and after each one everything is compared.
//!
//! `VSWAP_TEST_LONG=1` runs many more.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use common::any_page;
use common::backings::{RamBacking, TestDevice};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    BackingId, BackingSetError, BackingState, CacheError, CodecKind, Cursor, DupError, Form,
    GroupId, GroupLimits, Limits, LoadError, PAGE_SIZE, Page, Pooled, StoreError, SwapEntry,
    Target, TransferError, VirtualSwap, Worker,
};

const WORKERS: usize = 2;
const RUNS_MAX: u32 = 4;
const SLOTS: u32 = 4096;
const DEVICES_MAX: usize = 3;
/// A number that no backing has.
const GONE: BackingId = BackingId::from_raw(7);

#[derive(Clone, Copy, Debug)]
enum Op {
    SwapOut { page: u64 },
    Load { at: usize },
    LoadErasing { at: usize },
    Free { at: usize },
    FreeMany { at: usize, n: usize },
    Dup { at: usize, n: usize },
    Holds { at: usize, page: u64 },
    Renew { at: usize },
    AllocRun { order: u32 },
    Store { at: usize, page: u64, n: usize },
    CacheAdd { at: usize },
    CacheRemove { at: usize },
    Write { at: usize, page: u64 },
    Transfer { at: usize, target: usize },
    WriteBack { at: usize, behind: usize, target: usize, pages: usize },
    Compact { bytes: usize },
    Recompress { codec: i32 },
    PoolLimit { bytes: Option<usize> },
    RamCapacity { bytes: u64 },
    Device(DeviceOp),
    GroupMax { bytes: Option<u64> },
    Poison { at: usize },
    Switch,
    Retire,
}

#[derive(Clone, Copy, Debug)]
enum DeviceOp {
    Slots { device: usize, slots: usize },
    Fails { device: usize, stores: bool, loads: bool },
    State { device: usize, open: bool },
    Prefer { device: usize },
    Swapon { objects: bool, slots: usize },
    Swapoff { device: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let at = any::<usize>;
    let page = || 0..200u64;
    prop_oneof![
        12 => page().prop_map(|page| Op::SwapOut { page }),
        8 => at().prop_map(|at| Op::Load { at }),
        3 => at().prop_map(|at| Op::LoadErasing { at }),
        8 => at().prop_map(|at| Op::Free { at }),
        1 => (at(), 1..20usize).prop_map(|(at, n)| Op::FreeMany { at, n }),
        6 => (at(), 1..9usize).prop_map(|(at, n)| Op::Dup { at, n }),
        3 => (at(), page()).prop_map(|(at, page)| Op::Holds { at, page }),
        5 => at().prop_map(|at| Op::Renew { at }),
        3 => (0..=RUNS_MAX).prop_map(|order| Op::AllocRun { order }),
        6 => (at(), page(), 1..17usize).prop_map(|(at, page, n)| Op::Store { at, page, n }),
        4 => at().prop_map(|at| Op::CacheAdd { at }),
        4 => at().prop_map(|at| Op::CacheRemove { at }),
        2 => (at(), page()).prop_map(|(at, page)| Op::Write { at, page }),
        5 => (at(), 0..3 + DEVICES_MAX).prop_map(|(at, target)| Op::Transfer { at, target }),
        3 => (at(), 0..40usize, 0..=DEVICES_MAX, 1..20usize).prop_map(|(at, behind, target, pages)| {
            Op::WriteBack { at, behind, target, pages }
        }),
        1 => (0..100_000usize).prop_map(|bytes| Op::Compact { bytes }),
        1 => (-1..3i32).prop_map(|codec| Op::Recompress { codec }),
        2 => proptest::option::of(0..200_000usize).prop_map(|bytes| Op::PoolLimit { bytes }),
        2 => (0..60_000u64).prop_map(|bytes| Op::RamCapacity { bytes }),
        7 => device_ops().prop_map(Op::Device),
        1 => proptest::option::of(0..30_000u64).prop_map(|bytes| Op::GroupMax { bytes }),
        1 => at().prop_map(|at| Op::Poison { at }),
        2 => Just(Op::Switch),
        1 => Just(Op::Retire),
    ]
}

fn device_ops() -> impl Strategy<Value = DeviceOp> {
    let at = any::<usize>;
    prop_oneof![
        1 => (at(), 0..30usize).prop_map(|(device, slots)| DeviceOp::Slots { device, slots }),
        1 => any::<(usize, bool, bool)>()
            .prop_map(|(device, stores, loads)| DeviceOp::Fails { device, stores, loads }),
        1 => any::<(usize, bool)>().prop_map(|(device, open)| DeviceOp::State { device, open }),
        1 => at().prop_map(|device| DeviceOp::Prefer { device }),
        2 => (any::<bool>(), 0..30usize).prop_map(|(objects, slots)| DeviceOp::Swapon { objects, slots }),
        1 => at().prop_map(|device| DeviceOp::Swapoff { device }),
    ]
}

/// What the model knows of an entry: pages are known by their number.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    count: u64,
    /// The resident page.
    cached: Option<u64>,
    /// What the backing holds.
    stored: Stored,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Nothing,
    Page(u64),
    Poison,
}

struct Machine {
    space: VirtualSwap<MmapPlatform>,
    workers: Vec<Worker>,
    at: usize,
    ram: (&'static RamBacking, BackingId),
    devices: Vec<(&'static TestDevice, BackingId)>,
    /// Some page may find no place although there is one.
    limited: [bool; 2],
    group: GroupId,
    model: BTreeMap<SwapEntry, Known>,
}

impl Machine {
    fn new() -> Self {
        let space = VirtualSwap::new(MmapPlatform, Limits { slots: SLOTS });
        let (ram, device) = (RamBacking::new(20_000), TestDevice::new(8));
        let workers = (0..WORKERS).map(|_| space.worker(CodecKind::Lz4).expect("memory")).collect();
        let group = space.create_group(GroupId::ROOT, GroupLimits::default()).expect("room");
        Self {
            ram: (ram, space.add_backing(ram).expect("room")),
            devices: vec![(device, space.add_backing(device).expect("room"))],
            limited: [false; 2],
            space,
            workers,
            at: 0,
            group,
            model: BTreeMap::new(),
        }
    }

    /// An entry that is known, if there is one.
    fn pick(&self, at: usize) -> Option<SwapEntry> {
        self.model.keys().nth(at.checked_rem(self.model.len())?).copied()
    }

    /// Up to `n` entries with consecutive numbers, from a known one on.
    fn pick_run(&self, at: usize, n: usize) -> Option<(SwapEntry, usize)> {
        let first = self.pick(at)?;
        let n = (1..=n).take_while(|&n| self.model.contains_key(&first.nth(n - 1))).count();
        Some((first, n))
    }

    fn forget_if_dead(&mut self, entry: SwapEntry) {
        if self.model.get(&entry).is_some_and(|known| known.count == 0 && known.cached.is_none()) {
            self.model.remove(&entry);
        }
    }

    fn step(&mut self, op: Op) {
        let worker = &mut self.workers[self.at];
        match op {
            Op::SwapOut { page } => {
                let group = if page % 3 == 0 { self.group } else { GroupId::ROOT };
                match self.space.swap_out(worker, group, &any_page(page)) {
                    Ok(entry) => {
                        let known = Known { count: 1, cached: None, stored: Stored::Page(page) };
                        assert_eq!(self.model.insert(entry, known), None, "{entry:?} was taken");
                    }
                    Err(StoreError::Full | StoreError::GroupLimit | StoreError::NoSlots) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Load { at } => {
                if let Some(entry) = self.pick(at) {
                    self.load(entry);
                }
            }
            Op::LoadErasing { at } => self.load_erasing(at),
            Op::Free { at } => {
                if let Some(entry) = self.pick(at) {
                    self.space.free(entry);
                    self.uncount(entry);
                }
            }
            Op::FreeMany { at, n } => {
                let entries: Vec<_> =
                    (0..n).filter_map(|i| self.pick(at.wrapping_add(i))).collect();
                self.space.free_many(&entries);
                for entry in entries {
                    self.uncount(entry);
                }
            }
            Op::Dup { at, n } => self.dup(at, n),
            Op::Holds { at, page } => self.holds(at, page),
            Op::Renew { at } => self.renew(at),
            Op::AllocRun { order } => {
                if let Ok(first) = self.space.alloc_run(worker, GroupId::ROOT, 1 << order) {
                    assert_eq!(first.raw() % (1 << order), 0, "runs are aligned");
                    for index in 0..1 << order {
                        let known =
                            Known { count: 0, cached: Some(index), stored: Stored::Nothing };
                        let entry = first.nth(index as usize);
                        assert_eq!(self.model.insert(entry, known), None, "{entry:?} was taken");
                    }
                }
            }
            Op::Store { at, page, n } => self.store(at, page, n),
            Op::CacheAdd { at } => self.cache_add(at),
            Op::CacheRemove { at } => self.cache_remove(at),
            Op::Write { at, page } => {
                if let Some(entry) = self.pick(at) {
                    self.space.drop_copy(entry);
                    let known = self.model.get_mut(&entry).expect("picked");
                    if known.cached.is_some() {
                        (known.cached, known.stored) = (Some(page), Stored::Nothing);
                    }
                }
            }
            Op::Transfer { at, target } => self.transfer(at, target),
            Op::WriteBack { at, behind, target, pages } => {
                self.write_back(at, behind, target, pages);
            }
            Op::Compact { bytes } => {
                self.space.compact(worker, bytes);
            }
            Op::Recompress { codec } => {
                let codec = if codec == 0 { CodecKind::Lz4 } else { CodecKind::Zstd(codec) };
                let mut from = Some(Cursor::START);
                while let Some(cursor) = from {
                    from = self.space.recompress(worker, cursor, 7, codec).expect("memory").next;
                }
            }
            Op::PoolLimit { bytes } => {
                self.limited[0] = bytes.is_some();
                self.space.set_pool_limit(bytes.unwrap_or(usize::MAX));
            }
            Op::RamCapacity { bytes } => self.shrink(bytes),
            Op::Device(op) => self.change_device(op),
            Op::GroupMax { bytes } => {
                let limits =
                    GroupLimits { zswap_max: bytes.unwrap_or(u64::MAX), ..Default::default() };
                self.limited[1] = bytes.is_some();
                self.space.set_group_limits(self.group, limits).expect("known");
            }
            Op::Poison { at } => self.poison(at),
            Op::Switch => self.at = (self.at + 1) % WORKERS,
            Op::Retire => {
                let fresh = self.space.worker(CodecKind::Zstd(1)).expect("memory");
                self.space.retire(std::mem::replace(worker, fresh));
            }
        }
        self.compare();
    }

    fn change_device(&mut self, op: DeviceOp) {
        match op {
            DeviceOp::Slots { device, slots } => {
                if let Some((device, _)) = self.device(device) {
                    device.slots_max.store(slots, Relaxed);
                }
            }
            DeviceOp::Fails { device, stores, loads } => {
                if let Some((device, _)) = self.device(device) {
                    device.fail_stores.store(stores, Relaxed);
                    device.fail_loads.store(loads, Relaxed);
                }
            }
            DeviceOp::State { device, open } => self.set_device_state(device, open),
            DeviceOp::Prefer { device } => {
                let preferred = self.device(device).map(|(_, id)| id);
                self.space.prefer_backings(preferred.as_slice());
            }
            DeviceOp::Swapon { objects, slots } => {
                if self.devices.len() < DEVICES_MAX {
                    let form = if objects { Form::Objects } else { Form::Pages };
                    let device = TestDevice::of(form, slots);
                    let id = self.space.add_backing(device).expect("room");
                    self.devices.push((device, id));
                }
            }
            DeviceOp::Swapoff { device } => self.swapoff(device),
        }
    }

    fn uncount(&mut self, entry: SwapEntry) {
        if let Some(known) = self.model.get_mut(&entry) {
            known.count = known.count.saturating_sub(1);
        }
        self.forget_if_dead(entry);
    }

    fn load(&mut self, entry: SwapEntry) {
        let known = self.model[&entry];
        let mut page = Page::ZERO;
        let loaded = self.space.load(&mut self.workers[self.at], entry, &mut page);
        self.compare_load(entry, known, &page, loaded.map(|_| ()));
    }

    fn compare_load(
        &self,
        entry: SwapEntry,
        known: Known,
        page: &Page,
        loaded: Result<(), LoadError>,
    ) {
        match (known.stored, loaded) {
            (Stored::Page(number), Ok(())) => {
                assert!(page.0 == any_page(number).0, "{entry:?} is not page {number}");
            }
            (Stored::Nothing, Err(LoadError::Resident))
            | (Stored::Poison, Err(LoadError::Poisoned)) => {}
            (Stored::Page(_), Err(LoadError::Io(5))) => {
                assert!(self.loads_fail(), "the device did not fail");
            }
            (stored, loaded) => panic!("{entry:?} is {stored:?} but gave {loaded:?}"),
        }
    }

    fn load_erasing(&mut self, at: usize) {
        let Some(entry) = self.pick(at) else { return };
        let known = self.model[&entry];
        let mut page = Page::ZERO;
        let loaded = self.space.load_erasing(&mut self.workers[self.at], entry, &mut page);
        self.compare_load(entry, known, &page, loaded.map(|_| ()));
        if let (Ok(_), Stored::Page(number)) = (loaded, known.stored) {
            let known = self.model.get_mut(&entry).expect("picked");
            (known.cached, known.stored) = (Some(number), Stored::Nothing);
        }
    }

    fn poison(&mut self, at: usize) {
        let Some(entry) = self.pick(at) else { return };
        self.space.poison(entry);
        self.model.get_mut(&entry).expect("picked").stored = Stored::Poison;
    }

    fn holds(&mut self, at: usize, page: u64) {
        let Some(entry) = self.pick(at) else { return };
        let stored = self.model[&entry].stored;
        let asked = match stored {
            Stored::Page(held) if at.is_multiple_of(2) => held,
            _ => page,
        };
        let held = self.space.holds(&mut self.workers[self.at], entry, &any_page(asked));
        let same = matches!(stored, Stored::Page(page) if any_page(page).0 == any_page(asked).0);
        assert!(same || !held, "{entry:?} is said to hold page {asked}, not {stored:?}");
        // A device can fail to read, and then nothing is known to be the same.
        assert!(held || !same || self.loads_fail(), "{entry:?} holds {asked}");
    }

    fn renew(&mut self, at: usize) {
        let Some(entry) = self.pick(at) else { return };
        let renewed = self.space.renew(&mut self.workers[self.at], entry);
        if renewed != entry {
            let known = self.model.remove(&entry).expect("picked");
            assert!(known.count == 1 && known.cached.is_none(), "{known:?} was not alone");
            assert_eq!(self.model.insert(renewed, known), None, "{renewed:?} was in use");
        }
    }

    fn write_back(&mut self, at: usize, behind: usize, target: usize, pages: usize) {
        let id = self.devices.get(target).map_or(self.ram.1, |(_, id)| *id);
        let from = self.pick(at).map_or(Cursor::START, Cursor::at);
        let until = self.pick(at.wrapping_add(behind)).map_or(Cursor::END, Cursor::behind);
        let mut buffer = vec![0; pages * PAGE_SIZE];
        let wanted = |object: Pooled| !object.entry.raw().is_multiple_of(5);
        let worker = &mut self.workers[self.at];
        let done = self.space.write_back(worker, id, from..until, &mut buffer, wanted);
        let done = done.expect("known");
        assert!(done.raced == 0 && (done.written == 0 || done.refused.is_none()), "{done:?}");
    }

    fn dup(&mut self, at: usize, n: usize) {
        let Some((first, there)) = self.pick_run(at, n) else { return };
        match self.space.dup_run(first, n) {
            Ok(()) => {
                assert_eq!(there, n, "an entry was counted that nobody has");
                for index in 0..n {
                    self.model.get_mut(&first.nth(index)).expect("in the run").count += 1;
                }
            }
            Err(error) => assert!(error == DupError::NoEntry && there < n, "{error}"),
        }
    }

    fn store(&mut self, at: usize, page: u64, n: usize) {
        let Some((first, n)) = self.pick_run(at, n) else { return };
        let numbers: Vec<u64> = (0..n as u64).map(|index| page + index).collect();
        let contents: Vec<Page> = numbers.iter().map(|&number| any_page(number)).collect();
        let sources: Vec<&Page> = contents.iter().collect();
        let all_cached = (0..n).all(|index| self.model[&first.nth(index)].cached.is_some());
        let stored = self.space.store_run(&mut self.workers[self.at], first, &sources);
        if stored == Err(StoreError::NotCached) {
            assert!(!all_cached);
        }
        for (index, number) in numbers.into_iter().enumerate() {
            let known = self.model.get_mut(&first.nth(index)).expect("in the run");
            // The caller's page is what is resident, whatever became of the store.
            if known.cached.is_some() {
                known.cached = Some(number);
                known.stored = if stored.is_ok() { Stored::Page(number) } else { Stored::Nothing };
            }
        }
    }

    fn cache_add(&mut self, at: usize) {
        let Some(entry) = self.pick(at) else { return };
        let known = self.model.get_mut(&entry).expect("picked");
        match self.space.cache_add(entry) {
            Ok(()) => {
                assert_eq!(known.cached, None);
                let Stored::Page(number) = known.stored else {
                    // Nothing to read: the page that the caller brings is the new content.
                    known.cached = Some(0);
                    return;
                };
                known.cached = Some(number);
            }
            Err(error) => assert!(error == CacheError::Exists && known.cached.is_some()),
        }
    }

    fn cache_remove(&mut self, at: usize) {
        let Some(entry) = self.pick(at) else { return };
        let known = self.model.get_mut(&entry).expect("picked");
        let only_copy = known.stored == Stored::Nothing && known.count > 0;
        match self.space.cache_remove(entry) {
            Ok(()) => {
                assert!(known.cached.is_some() && !only_copy, "{entry:?} lost its data");
                known.cached = None;
            }
            Err(CacheError::NoBacking) => assert!(only_copy),
            Err(CacheError::NotCached) => assert_eq!(known.cached, None),
            Err(error) => panic!("{entry:?}: {error}"),
        }
        self.forget_if_dead(entry);
    }

    fn transfer(&mut self, at: usize, target: usize) {
        let Some(entry) = self.pick(at) else { return };
        let target = match target {
            0 => Target::Pool,
            1 => Target::Backing(self.ram.1),
            2 => Target::Anywhere,
            // A device that has gone takes nothing.
            device => Target::Backing(self.devices.get(device - 3).map_or(GONE, |(_, id)| *id)),
        };
        match self.space.transfer(&mut self.workers[self.at], entry, target) {
            Ok(_) | Err(TransferError::Store(_)) => {}
            Err(TransferError::Load(error)) => {
                assert!(self.loads_fail(), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Shrinks the RAM backing; with room elsewhere, everything that is too much moves on.
    fn shrink(&mut self, bytes: u64) {
        self.ram.0.set_capacity(bytes);
        self.rehome(self.ram.1);
    }

    /// A device that is in use, if there is one.
    fn device(&self, at: usize) -> Option<(&'static TestDevice, BackingId)> {
        self.devices.get(at.checked_rem(self.devices.len())?).copied()
    }

    fn loads_fail(&self) -> bool {
        self.devices.iter().any(|(device, _)| device.fail_loads.load(Relaxed))
    }

    fn set_device_state(&mut self, device: usize, open: bool) {
        let Some((_, id)) = self.device(device) else { return };
        let state = if open { BackingState::Active } else { BackingState::Draining };
        self.space.set_backing_state(id, state).expect("known");
        if !open {
            self.rehome(id);
        }
    }

    /// Empties a device and forgets it, or uses it again.
    fn swapoff(&mut self, device: usize) {
        let Some((device, id)) = self.device(device) else { return };
        self.space.set_backing_state(id, BackingState::Draining).expect("known");
        self.rehome(id);
        if device.used() == 0 {
            self.space.remove_backing(id).expect("it is empty");
            assert_eq!(self.space.remove_backing(id), Err(BackingSetError::Unknown));
            self.devices.retain(|(_, other)| *other != id);
        } else {
            assert!(self.limited.contains(&true) || self.loads_fail(), "there was room");
            assert_eq!(self.space.remove_backing(id), Err(BackingSetError::InUse));
            self.space.set_backing_state(id, BackingState::Active).expect("known");
        }
    }

    fn rehome(&mut self, backing: BackingId) {
        let mut from = Some(Cursor::START);
        while let Some(cursor) = from {
            let worker = &mut self.workers[self.at];
            from = self.space.rehome(worker, backing, cursor, 3).expect("known").next;
        }
    }

    /// Every visible property of every entry, and the space's own invariants.
    fn compare(&self) {
        self.space.check();
        assert_eq!(self.space.usage().live_slots, self.model.len() as u64);
        for (&entry, known) in &self.model {
            let word = self.space.peek(entry);
            assert_eq!(self.space.swap_count(entry), known.count, "{entry:?}: {word:?}");
            assert_eq!(word.is_cached(), known.cached.is_some(), "{entry:?}: {word:?}");
        }
    }

    /// Every page comes back; then everything goes, and nothing is left.
    fn finish(mut self) {
        for (device, _) in &self.devices {
            device.fail_loads.store(false, Relaxed);
        }
        for entry in self.model.keys().copied().collect::<Vec<_>>() {
            self.load(entry);
            let known = self.model[&entry];
            for _ in 0..known.count {
                self.space.free(entry);
            }
            if known.cached.is_some() {
                self.space.cache_remove(entry).expect("cached");
            }
        }
        self.space.check();
        for worker in self.workers.drain(..) {
            self.space.retire(worker);
        }
        self.space.check();
        let usage = self.space.usage();
        assert_eq!((usage.live_slots, usage.clusters, usage.payload), (0, 0, 0));
        assert_eq!((usage.external, usage.device, usage.pool_memory), (0, 0, 0));
        assert!(self.devices.iter().all(|(device, _)| device.used() == 0));
    }
}

#[test]
fn random_operations_agree_with_a_map() {
    let long = std::env::var_os("VSWAP_TEST_LONG").is_some();
    let config = Config { cases: if long { 20_000 } else { 500 }, ..Config::default() };
    let sequences = proptest::collection::vec(ops(), 1..400);
    TestRunner::new(config)
        .run(&sequences, |sequence| {
            let mut machine = Machine::new();
            for op in sequence {
                machine.step(op);
            }
            machine.finish();
            Ok(())
        })
        .unwrap();
}
