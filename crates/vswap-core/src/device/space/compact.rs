//! Compaction: which extents are emptied, so that what they hold comes to lie with the rest.
//!
//! Only whole extents go back to the run, so a pass chooses extents. It keeps the fullest ones, as many
//! as have room for all objects, and empties the others: each object moves once at most, into holes
//! of what is kept, and the pass needs no place beside that. Of the last extent that is kept it empties
//! the clusters that are not needed. Which objects lie in the others only the
//! owners of the objects can tell: they ask [`Space::is_leaving`] for each, and store it anew with
//! [`Fill::Holes`].
//!
//! Clusters of a chosen extent are *draining*, or *vacant* when they hold nothing. Nothing gets in there
//! for as long as the pass lasts. So who finds an object at the same place of the same draining
//! cluster twice, and chose the clusters itself, has found the same object.
//!
//! An extent that other processes hold too, after a fork, is free when each has left it. With an n-th of
//! it in use by each of n processes that would gain nothing, so it is left when less than three quarters
//! of that are in use.

#[cfg(doc)]
use super::Fill;
use super::cluster::{State, Use};
use super::extents::ExtentSource;
use super::geometry::{Block, EXTENT_CLUSTERS_SHIFT, Extent, Geometry, OBJECT_BLOCKS_MAX};
use super::lists::{Headers, Lists};
use super::{DeviceLocal, Space};
use crate::platform::Platform;
use crate::sync::Ordering;

/// Steps in which the fill of extents is told apart.
const STEPS: usize = 64;

/// The step of extents that are not to be emptied.
const FIXED: usize = STEPS + 1;

/// What an extent may have lost to seals and be kept, as its n-th part.
const LOST_PART: u32 = 20;

/// What could be gained by a pass of compaction, or was begun to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragmentation {
    /// Extents that hold something.
    pub extents: u32,
    /// Those of them that would not be needed.
    pub surplus: u32,
    /// Objects in the extents that would be emptied.
    pub objects: u32,
}

fn sum(sums: &mut [u32; OBJECT_BLOCKS_MAX], more: &[u32; OBJECT_BLOCKS_MAX]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Room for objects.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Slots, those with objects included, by class.
    slots: [u32; OBJECT_BLOCKS_MAX],
    clusters: u32,
}

impl Room {
    const NONE: Self = Self { slots: [0; OBJECT_BLOCKS_MAX], clusters: 0 };

    fn add(&mut self, other: &Self) {
        sum(&mut self.slots, &other.slots);
        self.clusters += other.clusters;
    }

    /// Clusters that these objects would need beyond those that there are. Less than half a cluster of a
    /// class does not count: it is not worth an extent, and goes into a new cluster or larger slots.
    fn lacks(&self, objects: &[u32; OBJECT_BLOCKS_MAX], geometry: Geometry) -> u32 {
        let by_class = (1..=geometry.object_blocks_max()).zip(self.slots.iter().zip(objects));
        let needed = by_class.map(|(class, (slots, objects))| {
            let in_cluster = geometry.slots(class);
            (objects.saturating_sub(*slots) + in_cluster / 2) / in_cluster
        });
        needed.sum::<u32>().saturating_sub(self.clusters)
    }
}

/// What becomes of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It holds nothing.
    Empty,
    /// It is kept, or emptied, by its fill: a step below [`FIXED`].
    Filled(usize),
    /// It is kept.
    Fixed,
    /// It is emptied: what others have freed there cannot be used.
    Left,
}

/// An extent at a look.
#[derive(Debug)]
struct ExtentUse {
    fate: Fate,
    objects: [u32; OBJECT_BLOCKS_MAX],
    room: Room,
}

/// An extent but for the first few of its clusters.
#[derive(Clone, Copy, Debug)]
struct Part {
    extent: Extent,
    kept: usize,
}

/// Which extents are kept: all above a step, and of those at it the first ones, until there is room.
#[derive(Debug)]
struct Plan {
    extents: u32,
    objects: [u32; OBJECT_BLOCKS_MAX],
    /// Of the extents above the step.
    room: Room,
    step: usize,
    /// Extents that have to be leased.
    new: u32,
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// How much a pass of compaction would gain. It walks the clusters.
    pub fn fragmentation(&self) -> Fragmentation {
        self.count_leaving(&self.plan())
    }

    /// Begins a pass, or chooses anew: from here on nothing is put into the extents that are to be
    /// emptied, until all of it is gone or the pass ends. A worker that is given may go on after this.
    pub fn begin_compaction(&self, local: &mut DeviceLocal) -> Fragmentation {
        self.end_compaction();
        self.give_up_all(local);
        let plan = self.plan();
        let chosen = self.count_leaving(&plan);
        let lists = self.lists.lock(&self.platform);
        self.compacting.store(chosen.objects > 0, Ordering::Relaxed);
        drop(lists);
        if chosen.objects > 0 {
            self.each_leaving(&plan, |part, _| self.drain(part));
        }
        chosen
    }

    /// Ends the pass, if one is under way: what could not be moved stays. It ends by itself before an
    /// object is refused.
    pub fn end_compaction(&self) -> bool {
        let lists = self.lists.lock(&self.platform);
        let was = self.compacting.swap(false, Ordering::Relaxed);
        drop(lists);
        if was {
            self.extents().for_each(|extent| self.stop_draining(extent));
        }
        was
    }

    /// Whether a pass is under way.
    pub fn is_compacting(&self) -> bool {
        self.compacting.load(Ordering::Relaxed)
    }

    /// Whether what lies here is to be moved.
    #[inline]
    pub fn is_leaving(&self, block: Block) -> bool {
        let header = self.headers.get(self.geometry.cluster_of(block).0 as usize);
        header.is_some_and(|header| header.now().state.is_draining())
    }

    /// Objects of a cluster by class, and room for more.
    fn look_at_cluster(&self, now: Use) -> ([u32; OBJECT_BLOCKS_MAX], Room) {
        let (mut objects, mut room) = ([0; OBJECT_BLOCKS_MAX], Room::NONE);
        if matches!(now.state, State::Free | State::Dirty | State::Vacant) {
            room.clusters = 1;
        } else if now.state.in_use() {
            let class = usize::from(now.class) - 1;
            objects[class] = now.objects;
            room.slots[class] = now.objects + self.fillable(now);
        }
        (objects, room)
    }

    fn look_at(&self, extent: Extent) -> ExtentUse {
        let blocks = self.geometry.extent_blocks(extent).len() as u32;
        let (mut used, mut lost, mut fixed) = (0, 0, false);
        let (mut objects, mut room) = ([0; OBJECT_BLOCKS_MAX], Room::NONE);
        for cluster in self.geometry.extent_clusters(extent) {
            let now = self.header(cluster).now();
            let (held, more) = self.look_at_cluster(now);
            room.add(&more);
            sum(&mut objects, &held);
            used += now.objects * u32::from(now.class);
            fixed |= matches!(now.state, State::Owned | State::Discarding);
            if now.state == State::Dead {
                lost += self.geometry.cluster_blocks();
            } else if now.sealed {
                let usable = more.slots.iter().sum();
                lost +=
                    self.geometry.slots(now.class).saturating_sub(usable) * u32::from(now.class);
            }
        }
        let holders = self.source.holders(extent);
        let fate = match (used, holders) {
            (0, _) => Fate::Empty,
            _ if fixed => Fate::Fixed,
            (_, 2..) if used.saturating_mul(holders) > blocks / 4 * 3 => Fate::Fixed,
            (_, 2..) => Fate::Left,
            _ if lost > blocks / LOST_PART => Fate::Left,
            _ => Fate::Filled((used as usize * STEPS / blocks.max(1) as usize).min(STEPS)),
        };
        ExtentUse { fate, objects, room }
    }

    fn plan(&self) -> Plan {
        let mut by_fill = [Room::NONE; FIXED + 1];
        let mut extents = 0;
        let mut objects = [0; OBJECT_BLOCKS_MAX];
        for extent in self.extents() {
            let seen = self.look_at(extent);
            match seen.fate {
                Fate::Empty => continue,
                Fate::Left => {}
                Fate::Fixed => by_fill[FIXED].add(&seen.room),
                Fate::Filled(step) => by_fill[step].add(&seen.room),
            }
            extents += 1;
            sum(&mut objects, &seen.objects);
        }
        let mut room = by_fill[FIXED];
        for step in (0..FIXED).rev() {
            let mut with = room;
            with.add(&by_fill[step]);
            if with.lacks(&objects, self.geometry) == 0 {
                return Plan { extents, objects, room, step, new: 0 };
            }
            room = with;
        }
        let new = room.lacks(&objects, self.geometry).div_ceil(1 << EXTENT_CLUSTERS_SHIFT);
        Plan { extents, objects, room, step: 0, new }
    }

    /// Says each extent that is to be emptied, and the objects there; of the last one that is kept, all
    /// but the first few clusters.
    fn each_leaving(&self, plan: &Plan, mut say: impl FnMut(Part, u32)) {
        let mut room = plan.room;
        for extent in self.extents() {
            let seen = self.look_at(extent);
            match seen.fate {
                Fate::Filled(step) if step > plan.step => {}
                Fate::Filled(step)
                    if step == plan.step && room.lacks(&plan.objects, self.geometry) > 0 =>
                {
                    let (part, objects) = self.last_part(plan, &mut room, extent);
                    if objects > 0 {
                        say(part, objects);
                    }
                }
                Fate::Filled(_) | Fate::Left => {
                    say(Part { extent, kept: 0 }, seen.objects.iter().sum());
                }
                Fate::Empty | Fate::Fixed => {}
            }
        }
    }

    /// What of an extent is not needed any more, when the rest of it is kept.
    fn last_part(&self, plan: &Plan, room: &mut Room, extent: Extent) -> (Part, u32) {
        let (mut kept, mut unneeded) = (0, 0);
        for cluster in self.geometry.extent_clusters(extent) {
            let (objects, more) = self.look_at_cluster(self.header(cluster).now());
            if room.lacks(&plan.objects, self.geometry) > 0 {
                room.add(&more);
                kept += 1;
            } else {
                unneeded += objects.iter().sum::<u32>();
            }
        }
        (Part { extent, kept }, unneeded)
    }

    fn count_leaving(&self, plan: &Plan) -> Fragmentation {
        let mut found = Fragmentation { extents: plan.extents, surplus: 0, objects: 0 };
        self.each_leaving(plan, |part, objects| {
            found.surplus += u32::from(part.kept == 0);
            found.objects += objects;
        });
        found.surplus = found.surplus.saturating_sub(plan.new);
        found
    }

    /// Lets nothing into a part any more.
    fn drain(&self, Part { extent, kept }: Part) {
        let mut lists = self.lists.lock(&self.platform);
        let clusters = self.geometry.extent_clusters(extent);
        let busy = |now: State| matches!(now, State::Owned | State::Discarding | State::Unleased);
        // The look that chose it was without the lock.
        if !self.is_compacting() || clusters.clone().any(|one| busy(self.header(one).now().state)) {
            return;
        }
        let mut surplus = None;
        for cluster in clusters.skip(kept) {
            let state = match self.header(cluster).now().state {
                State::Full | State::Scattered | State::Partial => State::Draining,
                State::Foreign => State::ForeignDraining,
                State::Free | State::Dirty if kept == 0 => State::Vacant,
                _ => continue,
            };
            lists.set_state(self, cluster, state);
            surplus = self.settle_locked(&mut lists, cluster).or(surplus);
        }
        drop(lists);
        self.return_surplus(surplus);
    }

    fn stop_draining(&self, extent: Extent) {
        let mut lists = self.lists.lock(&self.platform);
        let mut surplus = None;
        for cluster in self.geometry.extent_clusters(extent) {
            let state = match self.header(cluster).now().state {
                State::Draining => State::Full,
                State::ForeignDraining => State::Foreign,
                State::Vacant => self.unused(),
                _ => continue,
            };
            lists.set_state(self, cluster, state);
            surplus = self.settle_locked(&mut lists, cluster).or(surplus);
        }
        surplus = surplus.or_else(|| self.surplus(&mut lists, extent));
        drop(lists);
        self.return_surplus(surplus);
    }

    /// Makes the clusters of an extent that compaction has emptied what other empty ones are.
    pub(super) fn release_vacated(&self, lists: &mut Lists, extent: Extent) {
        let clusters = || self.geometry.extent_clusters(extent);
        let state = |cluster| self.header(cluster).now().state;
        if clusters().all(|one| matches!(state(one), State::Vacant | State::Dead)) {
            for cluster in clusters().filter(|&one| state(one) == State::Vacant) {
                lists.set_state(self, cluster, self.unused());
            }
        }
    }
}
