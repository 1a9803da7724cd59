//! The groups of a run: what each may use and does use, with the kernel's names for both.

use serde::{Serialize, Serializer};
use vswap_core::group::shared::{GroupIndex, SwapEvent};
use vswap_pager::run_page::{Counter, Gauge};

use super::{Subject, status};
use crate::coordinator::Totals;

/// A group, its descendants included. The keys are the kernel's files of a memory cgroup, without the
/// first word where that is `memory` and something follows.
#[derive(Serialize)]
pub struct GroupLine {
    name: String,
    /// How deep it is in the tree; parents come before their children.
    depth: usize,
    /// Process ID of its `vswap run`.
    pid: u32,
    /// What it runs, without the outermost, of which more is said.
    command: String,
    /// Its processes that have a pager.
    pagers: usize,
    swapped_bytes: u64,
    #[serde(rename = "memory.current")]
    memory_current: u64,
    #[serde(rename = "memory.max")]
    memory_max: Max,
    #[serde(rename = "swap.current")]
    swap_current: u64,
    #[serde(rename = "swap.max")]
    swap_max: Max,
    #[serde(rename = "swap.events")]
    swap_events: SwapEvents,
    #[serde(rename = "zswap.current")]
    zswap_current: u64,
    #[serde(rename = "zswap.max")]
    zswap_max: Max,
    /// As it was set; an ancestor's 0 counts more.
    #[serde(rename = "zswap.writeback")]
    zswap_writeback: u8,
    stat: Stat,
}

/// How often swap space was refused.
#[derive(Serialize)]
struct SwapEvents {
    /// Because of a maximum.
    max: u64,
    /// For whatever reason.
    fail: u64,
}

/// Counters, as in memory.stat.
#[derive(Serialize)]
struct Stat {
    zswpout: u64,
    zswpin: u64,
    zswpwb: u64,
    pswpout: u64,
    pswpin: u64,
    pool_limit_hit: u64,
}

impl Stat {
    fn of(totals: &Totals) -> Self {
        let counter = |counter| totals.counter(counter);
        Self {
            zswpout: counter(Counter::Zswpout),
            zswpin: counter(Counter::Zswpin),
            zswpwb: counter(Counter::WrittenBack),
            pswpout: counter(Counter::Pswpout),
            pswpin: counter(Counter::Pswpin),
            pool_limit_hit: counter(Counter::PoolLimitHit),
        }
    }
}

/// A limit, which may be none.
struct Max(Option<u64>);

impl Serialize for Max {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(bytes) => serializer.serialize_u64(bytes),
            None => serializer.serialize_str("max"),
        }
    }
}

/// The group of a name or process ID; the whole run without one.
pub fn find(name: Option<&str>, subject: &Subject<'_>) -> Option<GroupIndex> {
    let Some(name) = name else { return Some(GroupIndex::ROOT) };
    subject.members.groups().called(name).map(|group| group.index).next()
}

/// A group and all below it, in the order of a tree.
pub fn lines(from: GroupIndex, subject: &mut Subject<'_>) -> Vec<GroupLine> {
    let tree = &subject.page.groups;
    let above = tree.path(from).count();
    let groups = subject.members.groups().iter();
    let groups = groups.filter(|group| tree.is_within(group.index, from));
    let mut paths: Vec<Vec<GroupIndex>> = groups
        .map(|group| {
            let mut path: Vec<GroupIndex> = tree.path(group.index).collect();
            path.reverse();
            path
        })
        .collect();
    paths.sort_by_key(|path| path.iter().map(|group| group.raw()).collect::<Vec<_>>());
    paths.iter().filter_map(|path| line(subject, *path.last()?, path.len() - above)).collect()
}

fn line(subject: &mut Subject<'_>, index: GroupIndex, depth: usize) -> Option<GroupLine> {
    let totals = subject.members.totals_of(index);
    let (page, mut groups) = (subject.page, subject.members.groups().iter());
    let group = groups.find(|group| group.index == index)?;
    let about = group.about.as_ref();
    let limits = page.groups.limits(index);
    let events = |event| page.groups.counted(index, event);
    Some(GroupLine {
        name: group.name.clone(),
        depth,
        pid: group.pid,
        command: about.map(status::command).unwrap_or_default(),
        pagers: page.members_within(index).count(),
        swapped_bytes: totals.gauge(Gauge::Swapped),
        memory_current: totals.charged(),
        memory_max: Max(limits.memory_max),
        swap_current: page.swap_held(index),
        swap_max: Max(limits.swap_max),
        swap_events: SwapEvents { max: events(SwapEvent::Max), fail: events(SwapEvent::Fail) },
        zswap_current: totals.gauge(Gauge::Pool),
        zswap_max: Max(limits.zswap_max),
        zswap_writeback: limits.zswap_writeback.into(),
        stat: Stat::of(&totals),
    })
}
