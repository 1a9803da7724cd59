//! The lists of clusters, by state and class.

use super::cluster::{Header, State};
use super::geometry::{ClusterId, Extent, OBJECT_BLOCKS_MAX};
use crate::sync::Ordering;

/// Ends a list: there are fewer clusters.
const NONE: u32 = u32::MAX;

const OWNED: usize = 0;
const FREE: usize = 1;
const DIRTY: usize = 2;
const PARTIAL: usize = 3;
const SCATTERED: usize = PARTIAL + OBJECT_BLOCKS_MAX;
const LISTS: usize = SCATTERED + OBJECT_BLOCKS_MAX;

/// The list of a state and class.
fn list_of(state: State, class: u8) -> Option<usize> {
    match state {
        State::Owned => Some(OWNED),
        State::Free => Some(FREE),
        State::Dirty => Some(DIRTY),
        State::Partial => Some(PARTIAL + usize::from(class) - 1),
        State::Scattered => Some(SCATTERED + usize::from(class) - 1),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

#[derive(Debug)]
pub(super) struct Lists {
    ends: [Ends; LISTS],
    /// The extent that is kept though all of it is free, if that is still so.
    pub(super) spare: Option<Extent>,
}

/// Finds the header of a cluster that is or was leased.
pub(super) trait Headers {
    fn header(&self, cluster: ClusterId) -> &Header;
}

impl Lists {
    pub(super) const fn new() -> Self {
        Self { ends: [Ends { first: NONE, last: NONE }; LISTS], spare: None }
    }

    /// The clusters of a state, and of a class if the state has lists by class.
    pub(super) fn iter<'a, H: Headers>(
        &self,
        headers: &'a H,
        state: State,
        class: u8,
    ) -> impl Iterator<Item = ClusterId> + use<'a, H> {
        let id = |number: u32| (number != NONE).then_some(ClusterId(number));
        let first = list_of(state, class).and_then(|list| id(self.ends[list].first));
        core::iter::successors(first, move |&cluster| {
            id(headers.header(cluster).next.load(Ordering::Relaxed))
        })
    }

    /// Gives a cluster another state, which puts it at the end of that state's list.
    pub(super) fn set_state(&mut self, headers: &impl Headers, cluster: ClusterId, state: State) {
        let class = headers.header(cluster).now().class;
        self.change(headers, cluster, state, class);
    }

    /// The same, with another class.
    pub(super) fn change(
        &mut self,
        headers: &impl Headers,
        cluster: ClusterId,
        state: State,
        class: u8,
    ) {
        let header = headers.header(cluster);
        let now = header.now();
        if let Some(list) = list_of(now.state, now.class) {
            self.unlink(headers, list, header);
        }
        header.change(|word| (word.state, word.class) = (state, class));
        if let Some(list) = list_of(state, class) {
            self.link_last(headers, list, cluster);
        }
    }

    fn link_last(&mut self, headers: &impl Headers, list: usize, cluster: ClusterId) {
        let ends = &mut self.ends[list];
        let header = headers.header(cluster);
        header.next.store(NONE, Ordering::Relaxed);
        header.previous.store(ends.last, Ordering::Relaxed);
        match ends.last {
            NONE => ends.first = cluster.0,
            last => headers.header(ClusterId(last)).next.store(cluster.0, Ordering::Relaxed),
        }
        ends.last = cluster.0;
    }

    fn unlink(&mut self, headers: &impl Headers, list: usize, header: &Header) {
        let previous = header.previous.load(Ordering::Relaxed);
        let next = header.next.load(Ordering::Relaxed);
        match previous {
            NONE => self.ends[list].first = next,
            previous => headers.header(ClusterId(previous)).next.store(next, Ordering::Relaxed),
        }
        match next {
            NONE => self.ends[list].last = previous,
            next => headers.header(ClusterId(next)).previous.store(previous, Ordering::Relaxed),
        }
    }
}
