//! The rules that a space keeps while nobody changes it.

use std::vec::Vec;

use super::super::lists::Headers;
use super::*;

/// Walks a space and says which of its rules is broken.
pub(super) fn check<S: ExtentSource>(space: &Space<MmapPlatform, S>) {
    let lists = space.lists.lock(&MmapPlatform);
    let mut listed: Vec<ClusterId> = Vec::new();
    let max = space.geometry.object_blocks_max();
    for state in [State::Owned, State::Free, State::Dirty] {
        let clusters = lists.iter(space, state, 0);
        listed.extend(clusters.inspect(|&cluster| {
            assert_eq!(space.header(cluster).now().state, state, "a list has one state");
        }));
    }
    for state in [State::Partial, State::Scattered] {
        for class in 1..=max {
            let clusters = lists.iter(space, state, class);
            listed.extend(clusters.inspect(|&cluster| {
                let now = space.header(cluster).now();
                assert_eq!((now.state, now.class), (state, class), "a list has one class");
            }));
        }
    }
    let is_listed = |&cluster: &ClusterId| {
        use State::{Dirty, Free, Owned, Partial, Scattered};
        let state = space.header(cluster).now().state;
        matches!(state, Owned | Free | Dirty | Partial | Scattered)
    };
    assert_eq!(listed.len(), space.leased().filter(is_listed).count(), "all are on their lists");
    drop(lists);
    space.leased().for_each(|cluster| check_cluster(space, cluster));
}

fn check_cluster<S: ExtentSource>(space: &Space<MmapPlatform, S>, cluster: ClusterId) {
    let now = space.header(cluster).now();
    assert_eq!(now.settling(space.geometry), Settling::Stay, "the state fits: {now:?}");
    if now.state.in_use() {
        let (class, slots) = (u32::from(now.class), space.geometry.slots(now.class));
        let bits = space.bits(cluster);
        let taken = (0..slots).filter(|slot| !bits.are_clear(slot * class, class)).count() as u32;
        assert_eq!(taken, now.objects + now.lost, "counts fit the bits: {now:?}");
    } else {
        assert_eq!(now.objects, 0, "{now:?}");
    }
}
