use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::vec::Vec;

use super::check::check;
use super::*;

const OBJECTS_MAX: usize = 3000;

/// Which worker has each block, kept beside the space.
struct Shadow(Vec<AtomicU8>);

impl Shadow {
    fn take(&self, block: Block, blocks: u8, worker: u8) {
        for n in 0..u32::from(blocks) {
            let before = self.0[block.plus(n).raw() as usize].swap(worker, Relaxed);
            assert_eq!(before, 0, "{block:?} + {n} was handed out twice");
        }
    }

    fn free(&self, block: Block, blocks: u8) {
        for n in 0..u32::from(blocks) {
            assert_ne!(self.0[block.plus(n).raw() as usize].swap(0, Relaxed), 0);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

struct Worker<'a> {
    number: u8,
    space: &'a TestSpace<'a>,
    shadow: &'a Shadow,
    /// What either worker may free.
    shared: &'a Mutex<VecDeque<(Block, u8)>>,
    random: Random,
    refused: usize,
}

impl Worker<'_> {
    fn take(&mut self, local: &mut DeviceLocal) {
        let sizes: Vec<u8> =
            (0..=self.random.below(20)).map(|_| 1 + self.random.below(9) as u8).collect();
        let mut out = vec_of(sizes.len());
        let taken = match sizes[..] {
            [blocks] => self.space.take(local, blocks).map(|block| {
                out[0] = Placed { object: 0, block, blocks };
            }),
            _ => self.space.take_run(local, &sizes, &mut out),
        };
        if taken.is_err() {
            self.refused += 1;
            return;
        }
        for placed in &out {
            self.shadow.take(placed.block, placed.blocks, self.number);
        }
        self.shared.lock().unwrap().extend(out.iter().map(|placed| (placed.block, placed.blocks)));
    }

    fn free(&mut self, least: usize) {
        let mut shared = self.shared.lock().unwrap();
        let count = (least + self.random.below(20)).min(shared.len());
        let at = self.random.below(shared.len() - count + 1);
        let freed: Vec<(Block, u8)> = shared.drain(at..at + count).collect();
        drop(shared);
        for &(block, blocks) in &freed {
            self.shadow.free(block, blocks);
        }
        self.space.free_many(&freed);
    }

    fn run(&mut self, turns: usize) {
        let mut local = self.space.local();
        for turn in 0..turns {
            match self.random.below(40) {
                0 => self.space.retire(std::mem::replace(&mut local, self.space.local())),
                1 => {
                    if let Some(discard) = self.space.next_discard() {
                        self.space.discarded(discard);
                    }
                }
                2 => self.space.trim(),
                3 => self.space.set_discard(turn % 2 == 0),
                4..22 => self.free(0),
                _ => self.take(&mut local),
            }
            let count = self.shared.lock().unwrap().len();
            if count > OBJECTS_MAX {
                self.free(count / 2);
            }
        }
        self.space.retire(local);
    }
}

fn vec_of(len: usize) -> Vec<Placed> {
    std::iter::repeat_n(Placed::default(), len).collect()
}

#[test]
fn two_threads_never_share_a_block() {
    run_two(small(8));
}

/// There is one cluster, so that each takes slots of the other's.
#[test]
fn two_threads_never_share_a_block_of_one_cluster() {
    run_two(Geometry::new(9, 512).unwrap());
}

fn run_two(geometry: Geometry) {
    let source = Source::default();
    let space = space_of(&source, geometry);
    let shadow = Shadow((0..geometry.blocks()).map(|_| AtomicU8::new(0)).collect());
    let shared = Mutex::default();
    let turns = if std::env::var_os("VSWAP_TEST_LONG").is_some() { 500_000 } else { 10_000 };
    let refused: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=2u8)
            .map(|number| {
                let random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number.into()));
                let (space, shadow, shared) = (&space, &shadow, &shared);
                let mut worker = Worker { number, space, shadow, shared, random, refused: 0 };
                scope.spawn(move || {
                    worker.run(turns);
                    worker.refused
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(refused > 0, "the device was full at times");
    check(&space);
    let left = shared.into_inner().unwrap();
    assert_eq!(space.used_blocks(), left.iter().map(|&(_, blocks)| u32::from(blocks)).sum());
    for (block, user) in shadow.0.iter().enumerate() {
        assert_eq!(
            space.is_used(Block::new(block as u32).unwrap()),
            user.load(Relaxed) != 0,
            "block {block}"
        );
    }
    for (block, blocks) in left {
        space.free(block, blocks);
    }
    space.set_discard(false);
    space.trim();
    assert_eq!(source.held(), []);
}
