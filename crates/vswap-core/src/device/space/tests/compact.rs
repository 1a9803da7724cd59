//! Passes of compaction, with a map of what lies where.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::check::check;
use super::*;

/// Objects by place.
type Objects = BTreeMap<u32, u8>;

fn block(number: u32) -> Block {
    Block::new(number).unwrap()
}

/// A device full of objects of one size.
fn full_of(space: &TestSpace<'_>, blocks: u8) -> Objects {
    let mut local = space.local();
    let places = fill_up(space, &mut local, blocks);
    space.retire(local);
    places.into_iter().map(|place| (place.raw(), blocks)).collect()
}

fn free_where(space: &TestSpace<'_>, objects: &mut Objects, gone: impl Fn(usize) -> bool) {
    let mut number = 0;
    objects.retain(|&at, &mut blocks| {
        let stays = !gone(number);
        number += 1;
        if !stays {
            space.free(block(at), blocks);
        }
        stays
    });
}

/// What a pass moved.
#[derive(Debug, Default)]
struct Moved {
    reads: u32,
    writes: u32,
    refused: u32,
}

/// Moves all that is to leave, as its owner does.
fn compact(space: &TestSpace<'_>, local: &mut DeviceLocal, objects: &mut Objects) -> Moved {
    let mut moved = Moved::default();
    let all: Vec<(u32, u8)> = objects.iter().map(|(&at, &blocks)| (at, blocks)).collect();
    for (at, blocks) in all {
        if !space.is_leaving(block(at)) {
            continue;
        }
        moved.reads += 1;
        let mut out = [Placed::default()];
        match space.take_run_by(local, Fill::Holes, &[blocks], &mut out) {
            Ok(()) => {
                moved.writes += 1;
                objects.remove(&at);
                assert_eq!(objects.insert(out[0].block.raw(), blocks), None);
                space.free(block(at), blocks);
            }
            Err(Full) => moved.refused += 1,
        }
    }
    moved
}

#[test]
fn half_a_device_becomes_dense_with_one_move_for_each_object_at_most() {
    for (geometry, blocks) in [(small(64), 8), (small(64), 9), (small(64), 3), (large(64), 1)] {
        let source = Source::default();
        let space = space_of(&source, geometry);
        let mut objects = full_of(&space, blocks);
        free_where(&space, &mut objects, |number| number % 2 == 0);
        check(&space);
        let found = space.fragmentation();
        assert_eq!((found.extents, found.surplus), (16, 8), "{found:?}");
        let mut local = space.local();
        assert_eq!(space.begin_compaction(&mut local), found);
        check(&space);
        let count = objects.len() as u32;
        let moved = compact(&space, &mut local, &mut objects);
        // It needs no place beside the holes: no extent was to be had.
        assert_eq!((moved.reads, moved.writes, moved.refused), (found.objects, found.objects, 0));
        assert!(found.objects <= count, "{found:?} of {count}");
        assert!(space.end_compaction());
        space.retire(local);
        check(&space);
        assert_eq!(objects.len() as u32, count);
        assert_eq!(space.used_blocks(), count * u32::from(blocks));
        assert!(space.occupancy().density() >= 95, "{:?}", space.occupancy());
        assert!(source.held().len() <= 9, "extents went back, but for a spare one");
        assert_eq!(space.fragmentation().surplus, 0, "there is nothing left to do");
    }
}

/// Objects of all sizes, and a third to two thirds of them free.
#[test]
fn objects_of_all_sizes_become_dense() {
    for (third, seed) in [(1, 3), (2, 5), (2, 11)] {
        let source = Source::default();
        let space = space_of(&source, small(256));
        let mut objects = Objects::new();
        let mut local = space.local();
        let mut number = 0_u32;
        'full: loop {
            let sizes: Vec<u8> = (0..64).map(|n| ((number + n) * seed % 9) as u8 + 1).collect();
            let mut out = vec![Placed::default(); sizes.len()];
            if space.take_run(&mut local, &sizes, &mut out).is_err() {
                break 'full;
            }
            objects.extend(out.iter().map(|placed| (placed.block.raw(), placed.blocks)));
            number += 64;
        }
        space.retire(local);
        // A hash of the number, so that there is no order in it.
        let is_gone = |number: usize| number.wrapping_mul(0x9e37_79b9) >> 7 & 0xff < third * 85;
        free_where(&space, &mut objects, is_gone);
        let before = space.occupancy().density();
        let mut local = space.local();
        let chosen = space.begin_compaction(&mut local);
        let moved = compact(&space, &mut local, &mut objects);
        space.end_compaction();
        space.retire(local);
        check(&space);
        assert_eq!(moved.refused, 0, "{chosen:?}");
        assert!(moved.writes <= objects.len() as u32);
        let after = space.occupancy().density();
        assert!(after >= 95, "{before} % became {after} %, {chosen:?}, {moved:?}");
    }
}

#[test]
fn what_is_freed_and_stored_meanwhile_stays_out_of_what_is_emptied() {
    let source = Source::default();
    let space = space_of(&source, small(32));
    let mut objects = full_of(&space, 8);
    free_where(&space, &mut objects, |number| number % 2 == 0);
    let mut local = space.local();
    space.begin_compaction(&mut local);
    let is_leaving = |&at: &u32| space.is_leaving(block(at));
    let leaving = objects.keys().copied().filter(is_leaving).collect::<Vec<_>>();
    assert_eq!(leaving.len(), objects.len() / 2);
    for at in leaving.into_iter().step_by(3) {
        objects.remove(&at);
        space.free(block(at), 8);
        let new = space.take(&mut local, 8).unwrap();
        assert!(!space.is_leaving(new));
        objects.insert(new.raw(), 8);
    }
    check(&space);
    assert_eq!(compact(&space, &mut local, &mut objects).refused, 0);
    space.end_compaction();
    space.retire(local);
    assert!(space.occupancy().density() >= 95, "{:?}", space.occupancy());
    check(&space);
}

/// An object is refused only if no slot anywhere can hold it, pass or no pass.
#[test]
fn a_pass_ends_before_an_object_is_refused() {
    let source = Source::default();
    let space = space_of(&source, small(16));
    let mut objects = full_of(&space, 8);
    let all = objects.len();
    free_where(&space, &mut objects, |number| number % 2 == 0);
    let mut local = space.local();
    space.begin_compaction(&mut local);
    assert_eq!(fill_up(&space, &mut local, 8).len(), all - objects.len());
    assert!(!space.is_compacting() && !space.end_compaction());
    assert!(!objects.keys().any(|&at| space.is_leaving(block(at))));
    check(&space);
}

#[test]
fn an_extent_is_discarded_as_a_whole_before_it_goes_back() {
    let source = Source::default();
    let space = space_of(&source, small(16));
    space.set_discard(true);
    let mut objects = full_of(&space, 8);
    free_where(&space, &mut objects, |number| number % 2 == 0);
    let mut local = space.local();
    assert_eq!(space.begin_compaction(&mut local).surplus, 2);
    compact(&space, &mut local, &mut objects);
    assert_eq!(source.held().len(), 4, "not before the discard");
    for _ in 0..2 {
        let discard = space.next_discard().expect("an extent");
        assert_eq!(discard.blocks().len(), 8192);
        space.discarded(discard);
    }
    assert!(space.next_discard().is_none());
    assert_eq!(source.held().len(), 3, "all but a spare one");
    space.end_compaction();
    space.retire(local);
    check(&space);
}

/// The parent of a child that has ended: what it rewrote is lost to it until it moves the rest.
#[test]
fn holes_that_a_fork_left_come_back() {
    let source = Source::default();
    let space = space_of(&source, small(64));
    let mut local = space.local();
    let mut objects = Objects::new();
    for _ in 0..6 * 1024 {
        objects.insert(space.take(&mut local, 8).unwrap().raw(), 8);
    }
    source.state.lock().unwrap().held.values_mut().for_each(|holders| *holders += 1);
    space.seal(Side::Parent);
    free_where(&space, &mut objects, |number| number % 2 == 0);
    assert_eq!(space.begin_compaction(&mut local).surplus, 0, "the child may have all of it");
    assert!(!space.is_compacting());
    source.state.lock().unwrap().held.values_mut().for_each(|holders| *holders -= 1);
    let found = space.begin_compaction(&mut local);
    assert_eq!((found.extents, found.surplus, found.objects), (6, 3, 3 * 1024), "{found:?}");
    let moved = compact(&space, &mut local, &mut objects);
    assert_eq!((moved.writes, moved.refused), (3 * 1024, 0));
    space.end_compaction();
    space.retire(local);
    check(&space);
    assert!(space.occupancy().density() >= 95, "{:?}", space.occupancy());
    space.trim();
    assert_eq!(source.held().len(), 3);
}

/// Where each of two processes has an eighth, both gain if each moves its part.
#[test]
fn a_child_leaves_what_it_hardly_uses() {
    for (part, leaves) in [(8, true), (2, false)] {
        let source = Source::default();
        let space = space_of(&source, small(64));
        let mut objects = Objects::new();
        let mut local = space.local();
        for _ in 0..6 * 1024 {
            objects.insert(space.take(&mut local, 8).unwrap().raw(), 8);
        }
        source.state.lock().unwrap().held.values_mut().for_each(|holders| *holders += 1);
        space.seal(Side::Child);
        free_where(&space, &mut objects, |number| number % part != 0);
        let mut local = space.local();
        let found = space.begin_compaction(&mut local);
        assert_eq!(found.surplus > 0, leaves, "{found:?}");
        compact(&space, &mut local, &mut objects);
        check(&space);
        space.end_compaction();
        space.retire(local);
        check(&space);
        let shared = source.state.lock().unwrap().held.values().filter(|&&n| n == 2).count();
        assert_eq!(shared, if leaves { 0 } else { 6 });
        assert_eq!(space.used_blocks(), objects.len() as u32 * 8);
    }
}

/// A fork in the middle: the parent goes on, the child has a device without a pass.
#[test]
fn a_pass_goes_on_in_the_parent_of_a_fork() {
    for side in [Side::Parent, Side::Child] {
        let source = Source::default();
        let space = space_of(&source, small(32));
        let mut objects = full_of(&space, 8);
        free_where(&space, &mut objects, |number| number % 4 != 0);
        let mut local = space.local();
        space.begin_compaction(&mut local);
        source.state.lock().unwrap().held.values_mut().for_each(|holders| *holders += 1);
        space.seal(side);
        check(&space);
        assert_eq!(space.is_compacting(), side == Side::Parent);
        assert_eq!(compact(&space, &mut local, &mut objects).writes > 0, side == Side::Parent);
        assert_eq!(space.end_compaction(), side == Side::Parent);
        check(&space);
        for (&at, &blocks) in &objects {
            space.free(block(at), blocks);
        }
        space.retire(local);
        space.trim();
        let held = source.state.lock().unwrap().held.values().copied().collect::<Vec<_>>();
        assert!(held.iter().all(|&holders| holders == 1), "only the other process: {held:?}");
    }
}
