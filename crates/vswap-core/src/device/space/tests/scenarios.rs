use std::vec;
use std::vec::Vec;

use super::check::check;
use super::*;

#[test]
fn an_object_is_used_until_it_is_freed() {
    let source = Source::default();
    let space = space_of(&source, small(64));
    let mut local = space.local();
    let first = space.take(&mut local, 9).unwrap();
    let second = space.take(&mut local, 9).unwrap();
    assert_eq!(second.raw(), first.raw() + 9, "a cluster is filled in order");
    assert!((0..18).all(|n| space.is_used(first.plus(n))));
    assert!(!space.is_used(first.plus(18)));
    assert_eq!(space.used_blocks(), 18);
    space.free(first, 9);
    assert!(!space.is_used(first) && space.is_used(second));
    assert_eq!(space.used_blocks(), 9);
    check(&space);
}

#[test]
fn classes_have_clusters_of_their_own() {
    let source = Source::default();
    let space = space_of(&source, small(64));
    let mut local = space.local();
    let places: Vec<u32> =
        (1..=9).map(|blocks| space.take(&mut local, blocks).unwrap().raw() / 512).collect();
    assert_eq!(places, (0..9).collect::<Vec<_>>());
    let occupancy = space.occupancy();
    assert_eq!((occupancy.used_blocks, occupancy.cluster_blocks), (45, 9 * 512));
    assert_eq!(occupancy.free_clusters, 16 - 9);
    assert_eq!(occupancy.classes[8], ClassUse { clusters: 1, objects: 1, free_slots: 55 });
    check(&space);
}

#[test]
fn a_batch_is_one_write() {
    let source = Source::default();
    let space = space_of(&source, small(64));
    let mut local = space.local();
    let mut out = [Placed::default(); 200];
    space.take_run(&mut local, &[8; 200], &mut out).unwrap();
    assert_eq!(Placed::runs(&out).count(), 1, "clusters follow each other too");
    let mut objects: Vec<u32> = out.iter().map(|placed| placed.object).collect();
    objects.sort_unstable();
    assert_eq!(objects, (0..200).collect::<Vec<_>>());

    let sizes: Vec<u8> = (0..90).map(|n| n % 9 + 1).collect();
    let mut out = [Placed::default(); 90];
    space.take_run(&mut local, &sizes, &mut out).unwrap();
    assert_eq!(Placed::runs(&out).count(), 9, "one write per class");
    assert!(out.iter().all(|placed| sizes[placed.object as usize] == placed.blocks));
    check(&space);
}

#[test]
fn a_batch_prefers_a_free_cluster_and_a_single_object_a_partial_one() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    let mut local = space.local();
    let mut first = [Placed::default(); 64];
    space.take_run(&mut local, &[8; 64], &mut first).unwrap();
    for placed in first.iter().step_by(2) {
        space.free(placed.block, 8);
    }
    let mut out = [Placed::default(); 32];
    space.take_run(&mut local, &[8; 32], &mut out).unwrap();
    assert_eq!(Placed::runs(&out).count(), 1);
    let mut other = space.local();
    assert_eq!(space.take(&mut other, 8).unwrap(), first[0].block);
    check(&space);
}

/// Fills a device and frees every second object.
fn one_free_in_two(geometry: Geometry, source: &Source, blocks: u8) -> TestSpace<'_> {
    let space = space_of(source, geometry);
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, blocks);
    space.retire(local);
    assert_eq!(space.occupancy().classes[usize::from(blocks) - 1].free_slots, 0);
    for &block in objects.iter().step_by(2) {
        space.free(block, blocks);
    }
    check(&space);
    space
}

#[test]
fn a_unit_of_512_pages_finds_512_discontiguous_slots() {
    for (geometry, blocks) in [(small(4), 8), (small(5), 9), (large(4), 1)] {
        let source = Source::default();
        let space = one_free_in_two(geometry, &source, blocks);
        let free = space.occupancy().classes[usize::from(blocks) - 1].free_slots;
        assert!(free >= 448, "{free}");
        let unit = (free as usize).min(512);
        let mut out = vec![Placed::default(); unit];
        let mut local = space.local();
        space.take_run(&mut local, &vec![blocks; unit], &mut out).unwrap();
        assert!(Placed::runs(&out).all(|run| run.len() == 1), "nothing was contiguous");
        assert_eq!(space.take(&mut local, blocks).is_ok(), free as usize > unit);
        check(&space);
    }
}

#[test]
fn a_smaller_object_takes_a_larger_slot() {
    let source = Source::default();
    let space = one_free_in_two(small(4), &source, 8);
    let free = space.occupancy().classes[7].free_slots as usize;
    let mut local = space.local();
    for n in 0..free {
        let blocks = n as u8 % 8 + 1;
        let block = space.take(&mut local, blocks).unwrap();
        assert!(!space.is_used(block.plus(blocks.into())) || blocks == 8, "the rest is unused");
    }
    assert_eq!(space.take(&mut local, 1), Err(Full));
    assert_eq!(space.take(&mut local, 9), Err(Full));
    check(&space);
}

#[test]
fn the_free_slots_of_other_workers_are_found() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    let (mut first, mut second) = (space.local(), space.local());
    let block = space.take(&mut first, 8).unwrap();
    let filled = fill_up(&space, &mut second, 8);
    assert_eq!(filled.len(), 16 * 64 - 1, "the first worker's cluster too");
    assert_eq!(space.take(&mut first, 8), Err(Full));
    space.free(block, 8);
    assert_eq!(space.take(&mut second, 2), Ok(block), "of the owner's, for a smaller object");
    check(&space);
}

#[test]
fn a_batch_that_does_not_fit_takes_nothing() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 8);
    space.free_many(&objects[100..110].iter().map(|&block| (block, 8)).collect::<Vec<_>>());
    let mut out = [Placed::default(); 11];
    assert_eq!(space.take_run(&mut local, &[8; 11], &mut out), Err(Full));
    assert_eq!(space.used_blocks(), (objects.len() as u32 - 10) * 8);
    check(&space);
    // Sizes in an order that would spend the large slots on small objects.
    let sizes = [1, 2, 1, 8, 8, 8, 8, 8, 8, 8];
    space.take_run(&mut local, &sizes, &mut out[..10]).unwrap();
    check(&space);
}

#[test]
fn extents_go_back_save_for_one() {
    let source = Source::default();
    let space = space_of(&source, small(16));
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 8);
    assert_eq!(source.held(), [0, 1, 2, 3]);
    space.retire(local);
    for &block in &objects {
        space.free(block, 8);
    }
    assert_eq!(source.held().len(), 1);
    check(&space);
    space.trim();
    assert_eq!(source.held(), []);
    let mut local = space.local();
    assert_eq!(fill_up(&space, &mut local, 8).len(), objects.len());
}

#[test]
fn a_refused_lease_is_asked_for_again() {
    let source = Source::default();
    let space = space_of(&source, small(16));
    source.refuse(true);
    let mut local = space.local();
    assert_eq!(space.take(&mut local, 1), Err(Full));
    source.refuse(false);
    assert!(space.take(&mut local, 1).is_ok());
}

#[test]
fn bad_blocks_are_never_handed_out() {
    let source = Source::default();
    let mut space = space_of(&source, small(8));
    let range = |range: std::ops::Range<u32>| {
        Block::new(range.start).unwrap()..Block::new(range.end).unwrap()
    };
    space.mark_bad(range(0..8)).unwrap();
    space.mark_bad(range(8..16)).unwrap();
    // Over the border of two clusters, and of a word.
    space.mark_bad(range(1020..1030)).unwrap();
    assert_eq!(space.bad.len(), 2, "neighbours are one");
    for blocks in [8, 3, 1] {
        let mut local = space.local();
        let objects = fill_up(&space, &mut local, blocks);
        let bad = |block: u32| block < 16 || (1020..1030).contains(&block);
        for &block in &objects {
            assert!((0..blocks.into()).all(|n| !bad(block.plus(n).raw())), "{block:?}");
        }
        if blocks == 1 {
            assert_eq!(objects.len(), 8 * 2048 - 26);
        }
        check(&space);
        space.retire(local);
        for &block in &objects {
            space.free(block, blocks);
        }
        space.trim();
        assert_eq!(source.held(), [], "an extent with bad blocks is free as others are");
    }
}

#[test]
fn the_last_cluster_can_be_short() {
    let source = Source::default();
    // 4 MiB, a cluster and 21 blocks.
    let geometry = Geometry::new(9, 8192 + 512 + 21).unwrap();
    let space = space_of(&source, geometry);
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 4);
    assert_eq!(objects.len(), 2048 + 128 + 5);
    assert!(objects.iter().all(|block| block.raw() + 4 <= geometry.blocks()));
    assert_eq!(fill_up(&space, &mut local, 1).len(), 0, "the last block is in no slot of four");
}

#[test]
fn freed_clusters_are_discarded_before_they_are_used() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    space.set_discard(true);
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 8);
    space.retire(local);
    // Clusters 3, 4, 5, 9.
    for &block in objects.iter().filter(|block| [3, 4, 5, 9].contains(&(block.raw() / 512))) {
        space.free(block, 8);
    }
    let discard = space.next_discard().unwrap();
    assert_eq!(discard.blocks(), 3 * 512..6 * 512);
    let mut local = space.local();
    let taken = fill_up(&space, &mut local, 8);
    assert_eq!(taken.len(), 64, "under pressure without a discard, but not during one");
    assert!(taken.iter().all(|block| block.raw() / 512 == 9));
    assert!(space.next_discard().is_none());
    space.discarded(discard);
    assert_eq!(fill_up(&space, &mut local, 8).len(), 3 * 64);
    check(&space);
}

#[test]
fn a_device_that_cannot_discard_is_no_longer_asked() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    space.set_discard(true);
    let mut local = space.local();
    let block = space.take(&mut local, 8).unwrap();
    space.retire(local);
    space.free(block, 8);
    space.trim();
    assert_eq!(source.held(), [0], "what is to be discarded does not go back");
    let discard = space.next_discard().unwrap();
    space.set_discard(false);
    space.discarded(discard);
    assert!(space.next_discard().is_none());
    space.trim();
    assert_eq!(source.held(), []);
}

#[test]
fn what_was_there_at_a_seal_is_not_used_again() {
    let source = Source::default();
    let space = space_of(&source, small(4));
    let mut local = space.local();
    let objects: Vec<Block> = (0..640).map(|_| space.take(&mut local, 8).unwrap()).collect();
    space.seal(Side::Parent);
    check(&space);
    objects.iter().skip(1).for_each(|&block| space.free(block, 8));
    assert_eq!(space.used_blocks(), 8);
    // The local value is from before; it forgets its cluster by itself.
    let after = fill_up(&space, &mut local, 8);
    assert!(after.iter().all(|block| !objects.contains(block)));
    assert_eq!(after.len(), 1024 - 640);
    check(&space);
    space.free(objects[0], 8);
    space.retire(local);
    for &block in &after {
        space.free(block, 8);
    }
    assert_eq!(source.held(), [], "a sealed extent without objects goes back");
    assert_eq!(space.used_blocks(), 0);
    check(&space);
}

#[test]
fn a_child_uses_no_slot_of_its_parent() {
    let source = Source::default();
    let space = space_of(&source, small(16));
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 8);
    for &block in objects.iter().filter(|block| block.raw() >= 8192) {
        space.free(block, 8);
    }
    let spare = source.held().len();
    assert!(spare >= 2, "the first extent, and one that is free");
    // The fork: from here on the space is the child's copy, which holds what the parent held.
    source.state.lock().unwrap().held.values_mut().for_each(|holders| *holders += 1);
    space.seal(Side::Child);
    check(&space);
    let holders = |extent| source.state.lock().unwrap().held.get(&extent).copied();
    assert_eq!(holders(0), Some(2));
    assert!((1..4).all(|extent| holders(extent) != Some(2)), "only what holds something");
    space.free(objects[0], 8);
    let block = space.take(&mut local, 8).unwrap();
    assert_eq!(holders(block.raw() / 8192), Some(1), "an extent of its own");
    objects[1..1024].iter().for_each(|&block| space.free(block, 8));
    assert_eq!(holders(0), Some(1), "the parent's alone");
    check(&space);
}
