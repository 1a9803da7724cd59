use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::platform::MmapPlatform;

const CLUSTER: u32 = 64;

fn set_of(priorities: &[i16]) -> (DeviceSet, Vec<DeviceId>) {
    let set = DeviceSet::new();
    let ids = priorities.iter().map(|&priority| set.add(&MmapPlatform, priority).unwrap());
    let ids = ids.collect();
    (set, ids)
}

fn choose(set: &DeviceSet, turn: &mut Turn, allowed: TierMask, blocks: u32) -> Option<DeviceId> {
    set.choose(&MmapPlatform, turn, allowed, blocks, CLUSTER)
}

/// The device of each of the next `n` clusters, all of one worker.
fn clusters(set: &DeviceSet, n: usize) -> Vec<Option<DeviceId>> {
    let mut turn = Turn::default();
    (0..n).map(|_| choose(set, &mut turn, TierMask::ALL, CLUSTER)).collect()
}

#[test]
fn a_set_without_devices_has_no_choice() {
    let (set, _) = set_of(&[]);
    assert_eq!(clusters(&set, 2), [None, None]);
    let (set, _) = set_of(&[5; DEVICES_MAX]);
    assert_eq!(set.add(&MmapPlatform, 5), Err(TooManyDevices));
}

#[test]
fn the_highest_priority_comes_first_until_it_is_full() {
    let (set, ids) = set_of(&[-2, 10, 5]);
    assert_eq!(clusters(&set, 2), [Some(ids[1]); 2]);
    assert!(set.bar(&MmapPlatform, ids[1], Bar::Full));
    assert!(!set.bar(&MmapPlatform, ids[1], Bar::Full), "known already");
    assert_eq!(clusters(&set, 2), [Some(ids[2]); 2]);
    set.bar(&MmapPlatform, ids[2], Bar::Failed);
    assert_eq!(clusters(&set, 2), [Some(ids[0]); 2]);
    set.bar(&MmapPlatform, ids[0], Bar::Draining);
    assert_eq!(clusters(&set, 1), [None]);
}

#[test]
fn equal_priorities_alternate_by_cluster() {
    let (set, ids) = set_of(&[3, 3, 1, 3]);
    let mut turn = Turn::default();
    let devices: Vec<_> =
        (0..6 * CLUSTER / 8).map(|_| choose(&set, &mut turn, TierMask::ALL, 8).unwrap()).collect();
    for (cluster, devices) in devices.chunks((CLUSTER / 8) as usize).enumerate() {
        let expected = [ids[0], ids[1], ids[3]][cluster % 3];
        assert!(devices.iter().all(|&device| device == expected), "cluster {cluster}");
    }
}

#[test]
fn workers_share_one_round() {
    let (set, ids) = set_of(&[0, 0]);
    let (mut first, mut second) = (Turn::default(), Turn::default());
    assert_eq!(choose(&set, &mut first, TierMask::ALL, 1), Some(ids[0]));
    assert_eq!(choose(&set, &mut second, TierMask::ALL, 1), Some(ids[1]));
    assert_eq!(choose(&set, &mut first, TierMask::ALL, 1), Some(ids[0]));
}

#[test]
fn room_on_a_better_device_is_used_at_once() {
    let (set, ids) = set_of(&[9, 1]);
    set.bar(&MmapPlatform, ids[0], Bar::Full);
    let mut turn = Turn::default();
    assert_eq!(choose(&set, &mut turn, TierMask::ALL, 1), Some(ids[1]));
    assert!(set.unbar(&MmapPlatform, ids[0], Bar::Full));
    assert_eq!(choose(&set, &mut turn, TierMask::ALL, 1), Some(ids[0]));
}

#[test]
fn a_drain_that_is_called_off_leaves_the_device_full() {
    let (set, ids) = set_of(&[0]);
    set.bar(&MmapPlatform, ids[0], Bar::Full);
    set.bar(&MmapPlatform, ids[0], Bar::Draining);
    set.unbar(&MmapPlatform, ids[0], Bar::Draining);
    assert!(set.is_barred(&MmapPlatform, ids[0], Bar::Full));
    assert_eq!(clusters(&set, 1), [None]);
    set.unbar(&MmapPlatform, ids[0], Bar::Full);
    assert_eq!(clusters(&set, 1), [Some(ids[0])]);
}

#[test]
fn the_mask_is_heeded_within_a_turn_too() {
    let (set, ids) = set_of(&[9, 1]);
    let slow = set.tier_with(&MmapPlatform, 1).unwrap().mask();
    let mut turn = Turn::default();
    assert_eq!(choose(&set, &mut turn, TierMask::ALL, 1), Some(ids[0]));
    assert_eq!(choose(&set, &mut turn, slow, 1), Some(ids[1]));
    assert_eq!(choose(&set, &mut turn, TierMask::NONE, 1), None);
}

#[test]
fn tiers_are_ordered_and_keep_their_numbers() {
    let (set, ids) = set_of(&[5, 20, 5, 1]);
    let tier = |n: usize| set.tier(&MmapPlatform, ids[n]).unwrap();
    assert_eq!(tier(0), tier(2));
    assert_eq!(set.below(&MmapPlatform, tier(1)), tier(0).mask().or(tier(3).mask()));
    assert_eq!(set.below(&MmapPlatform, tier(3)), TierMask::NONE);
    assert_eq!(set.above(&MmapPlatform, tier(0)), tier(1).mask());

    let middle = tier(0);
    set.remove(&MmapPlatform, ids[0]);
    assert_eq!(tier(2), middle);
    set.remove(&MmapPlatform, ids[2]);
    assert_eq!(set.above(&MmapPlatform, middle), TierMask::NONE, "the tier is gone");
    let added = set.add(&MmapPlatform, 7).unwrap();
    assert_eq!(set.tier(&MmapPlatform, added), Some(middle), "its number is free again");
}

#[test]
fn a_removed_device_is_not_chosen_by_an_old_turn() {
    let (set, ids) = set_of(&[9, 1]);
    let mut turn = Turn::default();
    assert_eq!(choose(&set, &mut turn, TierMask::ALL, 1), Some(ids[0]));
    set.remove(&MmapPlatform, ids[0]);
    assert_eq!(choose(&set, &mut turn, TierMask::ALL, 1), Some(ids[1]));
}

proptest! {
    /// What is chosen is allowed, not barred, and nothing of a higher priority was to be had;
    /// and nobody waits for a second round.
    #[test]
    fn the_choice_is_the_best_and_fair(
        priorities in proptest::collection::vec(-3..3i16, 1..DEVICES_MAX + 1),
        bars in proptest::collection::vec(0..12u8, DEVICES_MAX),
        allowed in any::<u8>(),
    ) {
        let (set, ids) = set_of(&priorities);
        for (&id, &bar) in ids.iter().zip(&bars) {
            match bar {
                0 => set.bar(&MmapPlatform, id, Bar::Full),
                1 => set.bar(&MmapPlatform, id, Bar::Draining),
                2 => set.bar(&MmapPlatform, id, Bar::Failed),
                _ => true,
            };
        }
        let allowed = TierMask(allowed);
        let usable = |n: usize| {
            bars[n] > 2 && allowed.contains(set.tier(&MmapPlatform, ids[n]).unwrap())
        };
        let best = (0..ids.len()).filter(|&n| usable(n)).map(|n| priorities[n]).max();
        let equals: Vec<DeviceId> =
            (0..ids.len()).filter(|&n| usable(n) && Some(priorities[n]) == best).map(|n| ids[n])
            .collect();
        let mut turn = Turn::default();
        for n in 0..3 * DEVICES_MAX {
            let chosen = choose(&set, &mut turn, allowed, CLUSTER);
            prop_assert_eq!(chosen, equals.get(n % equals.len().max(1)).copied());
        }
    }
}
