//! The space against a map of what is taken: random operations, checked after each one.

use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::check::check;
use super::*;

const WORKERS: usize = 2;
const MIB: u32 = 12;

#[derive(Clone, Debug)]
enum Op {
    Take { worker: usize, blocks: u8, count: usize },
    TakeRun { worker: usize, sizes: Vec<u8> },
    TakeUnit { worker: usize, blocks: u8 },
    Free { at: usize },
    FreeMany { at: usize, count: usize, step: usize },
    Seal { child: bool },
    SetDiscard { on: bool },
    NextDiscard,
    Discarded,
    Refuse { refuse: bool },
    BeginCompaction { worker: usize },
    Compact { worker: usize, budget: usize },
    EndCompaction,
    Retire { worker: usize },
    Trim,
}

fn ops() -> impl Strategy<Value = Op> {
    let at = any::<usize>;
    let worker = || 0..WORKERS;
    let blocks = || prop_oneof![1..10u8, Just(8u8)];
    prop_oneof![
        8 => (worker(), blocks(), 1..200usize)
            .prop_map(|(worker, blocks, count)| Op::Take { worker, blocks, count }),
        8 => (worker(), proptest::collection::vec(blocks(), 0..100))
            .prop_map(|(worker, sizes)| Op::TakeRun { worker, sizes }),
        4 => (worker(), blocks()).prop_map(|(worker, blocks)| Op::TakeUnit { worker, blocks }),
        4 => at().prop_map(|at| Op::Free { at }),
        8 => (at(), 1..2000usize, 1..4usize)
            .prop_map(|(at, count, step)| Op::FreeMany { at, count, step }),
        1 => (0..4u8).prop_map(|side| Op::Seal { child: side == 0 }),
        1 => any::<bool>().prop_map(|on| Op::SetDiscard { on }),
        2 => Just(Op::NextDiscard),
        2 => Just(Op::Discarded),
        1 => any::<bool>().prop_map(|refuse| Op::Refuse { refuse }),
        2 => worker().prop_map(|worker| Op::BeginCompaction { worker }),
        4 => (worker(), 1..3000usize)
            .prop_map(|(worker, budget)| Op::Compact { worker, budget }),
        1 => Just(Op::EndCompaction),
        1 => worker().prop_map(|worker| Op::Retire { worker }),
        1 => Just(Op::Trim),
    ]
}

struct Model<'a> {
    source: &'a Source,
    space: TestSpace<'a>,
    locals: Vec<DeviceLocal>,
    bad: Vec<u32>,
    taken: BTreeMap<u32, u8>,
    /// Blocks that belonged to an object at a seal, and the extents whose return ends that.
    sealed: BTreeSet<u32>,
    /// Being discarded.
    discards: Vec<Discard>,
}

impl<'a> Model<'a> {
    fn new(source: &'a Source, geometry: Geometry, bad: Vec<u32>) -> Self {
        let mut space = space_of(source, geometry);
        for &block in &bad {
            space.mark_bad(Block::new(block).unwrap()..Block::new(block + 1).unwrap()).unwrap();
        }
        let locals = (0..WORKERS).map(|_| space.local()).collect();
        let (taken, sealed) = (BTreeMap::new(), BTreeSet::new());
        Self { source, space, locals, bad, taken, sealed, discards: Vec::new() }
    }

    fn apply(&mut self, op: &Op) {
        let most = self.space.geometry().object_blocks_max();
        match *op {
            Op::Take { worker, blocks, count } => {
                (0..count).for_each(|_| self.take(worker, blocks.min(most)));
            }
            Op::TakeRun { worker, ref sizes } => {
                self.take_run(worker, &sizes.iter().map(|&n| n.min(most)).collect::<Vec<_>>());
            }
            Op::TakeUnit { worker, blocks } => self.take_run(worker, &[blocks.min(most); 512]),
            Op::Free { at } => self.free(at, 1, 1),
            Op::FreeMany { at, count, step } => self.free(at, count, step),
            Op::Seal { child } => self.seal(child),
            Op::SetDiscard { on } => self.space.set_discard(on),
            Op::NextDiscard => self.next_discard(),
            Op::Discarded => {
                self.discards.pop().into_iter().for_each(|range| self.space.discarded(range));
            }
            Op::Refuse { refuse } => self.source.refuse(refuse),
            Op::BeginCompaction { worker } => {
                self.space.begin_compaction(&mut self.locals[worker]);
            }
            Op::Compact { worker, budget } => self.compact(worker, budget),
            Op::EndCompaction => drop(self.space.end_compaction()),
            Op::Retire { worker } => {
                let new = self.space.local();
                self.space.retire(std::mem::replace(&mut self.locals[worker], new));
            }
            Op::Trim => self.space.trim(),
        }
    }

    fn can_lease(&self) -> bool {
        let state = self.source.state.lock().unwrap();
        !state.refuses && (state.held.len() as u32) < state.extents
    }

    /// Whether the slots that there are hold these objects, if no cluster can be had.
    fn fit(occupancy: &Occupancy, sizes: &[u8]) -> bool {
        (1..=OBJECT_BLOCKS_MAX).all(|least| {
            let objects = sizes.iter().filter(|&&blocks| usize::from(blocks) >= least).count();
            let classes = &occupancy.classes[least - 1..];
            objects <= classes.iter().map(|class| class.free_slots as usize).sum()
        })
    }

    fn take(&mut self, worker: usize, blocks: u8) {
        let fits = self.space.used_blocks() > 0 && Self::fit(&self.space.occupancy(), &[blocks]);
        match self.space.take(&mut self.locals[worker], blocks) {
            Ok(block) => self.add(block, blocks),
            Err(Full) => {
                assert!(!fits, "a slot could have held it");
                assert!(!self.can_lease());
                assert_eq!(self.space.occupancy().free_clusters, 0);
            }
        }
    }

    fn take_run(&mut self, worker: usize, sizes: &[u8]) {
        let before = self.space.occupancy();
        let fits = Self::fit(&before, sizes);
        let mut out = vec![Placed::default(); sizes.len()];
        match self.space.take_run(&mut self.locals[worker], sizes, &mut out) {
            Ok(()) => {
                assert!(out.is_sorted_by_key(|placed| placed.block));
                let mut objects: Vec<u32> = out.iter().map(|placed| placed.object).collect();
                objects.sort_unstable();
                assert!(objects.into_iter().eq(0..sizes.len() as u32));
                for placed in &out {
                    assert_eq!(placed.blocks, sizes[placed.object as usize]);
                    self.add(placed.block, placed.blocks);
                }
            }
            Err(Full) => {
                assert!(!fits, "slots could have held them");
                assert_eq!(self.space.used_blocks(), before.used_blocks, "all or nothing");
            }
        }
    }

    fn add(&mut self, block: Block, blocks: u8) {
        // A take may return an extent and lease it anew.
        self.forget_ended();
        let (first, end) = (block.raw(), block.raw() + u32::from(blocks));
        assert!(end <= self.space.geometry().blocks());
        assert!(self.source.held().contains(&self.extent_of(first)), "the extent is not ours");
        if let Some((&other, &length)) = self.taken.range(..end).next_back() {
            assert!(other + u32::from(length) <= first, "{first} is taken");
        }
        assert!(!self.bad.iter().any(|bad| (first..end).contains(bad)), "{first} is bad");
        assert!(self.sealed.range(first..end).next().is_none(), "{first} is sealed");
        for range in self.discards.iter().map(Discard::blocks) {
            assert!(end <= range.start || range.end <= first, "{first} is being discarded");
        }
        self.taken.insert(first, blocks);
    }

    fn extent_of(&self, block: u32) -> u32 {
        block / self.space.geometry().extent_blocks(Extent(0)).end
    }

    fn free(&mut self, at: usize, count: usize, step: usize) {
        let at = at % self.taken.len().max(1);
        let objects = self.taken.iter().skip(at).step_by(step).take(count);
        let objects: Vec<(Block, u8)> =
            objects.map(|(&block, &blocks)| (Block::new(block).unwrap(), blocks)).collect();
        for (block, _) in &objects {
            self.taken.remove(&block.raw());
        }
        self.space.free_many(&objects);
    }

    /// Moves objects as their owner does it.
    fn compact(&mut self, worker: usize, budget: usize) {
        let objects = self.taken.iter().map(|(&block, &blocks)| (block, blocks));
        let leaving = objects.filter(|(n, _)| self.space.is_leaving(Block::new(*n).unwrap()));
        for (block, blocks) in leaving.take(budget).collect::<Vec<_>>() {
            let mut out = [Placed::default()];
            let local = &mut self.locals[worker];
            if self.space.take_run_by(local, Fill::Holes, &[blocks], &mut out).is_err() {
                return;
            }
            assert!(!self.space.is_leaving(out[0].block), "it was put where it cannot stay");
            self.add(out[0].block, blocks);
            self.taken.remove(&block);
            self.space.free(Block::new(block).unwrap(), blocks);
        }
    }

    fn seal(&mut self, child: bool) {
        let objects = self.taken.iter();
        self.sealed.extend(objects.flat_map(|(&block, &n)| block..block + u32::from(n)));
        if child {
            let held = &mut self.source.state.lock().unwrap().held;
            for holders in held.values_mut() {
                *holders += 1;
            }
            let held: BTreeSet<u32> = held.keys().copied().collect();
            let extent = self.space.geometry().extent_blocks(Extent(0)).end;
            // All that the parent held is the parent's.
            let blocks = 0..self.space.geometry().blocks();
            self.sealed.extend(blocks.filter(|n| held.contains(&(n / extent))));
        }
        self.space.seal(if child { Side::Child } else { Side::Parent });
        if child {
            self.discards.clear();
            // The parent ends some day, so that the device does not fill up for good.
            self.parent_ends();
        }
    }

    fn parent_ends(&mut self) {
        let held = &mut self.source.state.lock().unwrap().held;
        for holders in held.values_mut() {
            *holders -= 1;
        }
        held.retain(|_, holders| *holders > 0);
        let held: BTreeSet<u32> = held.keys().copied().collect();
        let extent = self.space.geometry().extent_blocks(Extent(0)).end;
        self.sealed.retain(|block| held.contains(&(block / extent)));
    }

    fn next_discard(&mut self) {
        let Some(discard) = self.space.next_discard() else { return };
        let range = discard.blocks();
        assert!(self.taken.range(range.clone()).next().is_none());
        assert!(self.sealed.range(range).next().is_none());
        self.discards.push(discard);
    }

    /// What was sealed ends with the return of its extent.
    fn forget_ended(&mut self) {
        let ended = std::mem::take(&mut self.source.state.lock().unwrap().ended);
        for blocks in ended.into_iter().map(|n| self.space.geometry().extent_blocks(Extent(n))) {
            let objects = self.taken.range(blocks.clone()).next();
            assert_eq!(objects, None, "an extent with objects was given back");
            self.sealed.retain(|block| !blocks.contains(block));
        }
    }

    fn compare(&mut self) {
        check(&self.space);
        self.forget_ended();
        let used = self.taken.values().map(|&blocks| u32::from(blocks)).sum::<u32>();
        assert_eq!(self.space.used_blocks(), used);
        let occupancy = self.space.occupancy();
        let objects: u32 = occupancy.classes.iter().map(|class| class.objects).sum();
        assert_eq!(objects as usize, self.taken.len());
        assert!(used <= occupancy.cluster_blocks);
        for (&block, &blocks) in self.taken.iter().step_by(self.taken.len() / 50 + 1) {
            assert!((0..blocks.into()).all(|n| self.space.is_used(Block::new(block + n).unwrap())));
        }
    }

    fn end(mut self) {
        self.free(0, usize::MAX, 1);
        self.discards.drain(..).for_each(|range| self.space.discarded(range));
        for local in self.locals.drain(..) {
            self.space.retire(local);
        }
        self.space.set_discard(false);
        self.space.trim();
        check(&self.space);
        assert_eq!(self.source.held(), [], "all extents went back");
        assert_eq!(self.space.occupancy(), Occupancy::default());
        let bad = if self.bad.is_empty() { 0 } else { crate::PAGE_SIZE };
        assert_eq!(self.space.metadata(), size_of::<TestSpace<'_>>() + bad);
    }
}

#[test]
fn a_space_does_what_a_map_does() {
    let cases = if std::env::var_os("VSWAP_TEST_LONG").is_some() { 3000 } else { 60 };
    let bad = proptest::collection::btree_set(0..MIB << 8, 0..12);
    let ops = proptest::collection::vec(ops(), 1..80);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let run = |(shift, bad, ops): (u32, BTreeSet<u32>, Vec<Op>)| {
        let source = Source::default();
        // The last extent and the last cluster are short.
        let geometry = Geometry::new(shift, (MIB << (20 - shift)) - 3333 / (1 << (shift - 9)));
        let geometry = geometry.unwrap();
        let mut model = Model::new(&source, geometry, bad.into_iter().collect());
        for op in &ops {
            model.apply(op);
            model.compare();
        }
        model.end();
        Ok(())
    };
    let shift = prop_oneof![3 => Just(9u32), 1 => Just(12), 1 => Just(11)];
    TestRunner::new(config).run(&(shift, bad, ops), run).unwrap();
}
