//! What a member may use of the [run page](crate::run_page)'s limits: those of its group and of all groups above it,
//! which its members and all their descendants keep together.
//!
//! A member says what it is going to use before it does: of RAM and of the pool it *claims* a part, of swap devices
//! it takes an extent. Of two that do so at once each writes first and reads then, so that one sees the
//! other's, and steps back. Sums are made anew each time, over members that live.

use core::ptr;
use core::sync::atomic::Ordering;

use vswap_core::device::space::{EXTENT_BYTES_SHIFT, Extent};
use vswap_core::group::shared::{GroupIndex, Limit, SwapEvent};

use crate::run_devices::{Holders, RunDevice};
use crate::run_page::{Gauge, MEMBERS_MAX, Member, RunPage};

/// A member among several claims what it uses and this part of a limit, to grow into.
const CLAIM_GROWTH_PART: u64 = 16;

/// What other members have of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// How many they are.
    pub members: u64,
    /// Bytes that they claim.
    pub claimed: u64,
    /// Bytes that they claim, or use where that is more.
    pub held: u64,
}

impl RunPage {
    /// The slots that were ever handed out.
    fn used_slots(&self) -> &[Member] {
        let used = self.members_used.load(Ordering::Acquire) as usize;
        &self.members[..used.min(MEMBERS_MAX)]
    }

    /// The live members of a group and of its descendants.
    pub fn members_within(&self, group: GroupIndex) -> impl Iterator<Item = &Member> {
        let is_within = move |member: &&Member| {
            self.groups.is_within(member.group(), group) && member.is_live()
        };
        self.used_slots().iter().filter(is_within)
    }

    fn others(
        &self,
        me: &Member,
        group: GroupIndex,
        claim_and_use: impl Fn(&Member) -> (u64, u64),
    ) -> Others {
        let mut others = Others::default();
        for member in self.members_within(group).filter(|member| !ptr::eq(*member, me)) {
            let (claim, used) = claim_and_use(member);
            others.members += 1;
            others.claimed += claim;
            others.held += used.max(claim);
        }
        others
    }

    /// What the live members other than `me` have of the RAM of a group.
    pub fn others_in_ram(&self, me: &Member, group: GroupIndex) -> Others {
        self.others(me, group, |member| {
            (member.claim.load(Ordering::SeqCst), member.charged.load(Ordering::Relaxed))
        })
    }

    fn others_in_pool(&self, me: &Member, group: GroupIndex) -> Others {
        self.others(me, group, |member| {
            (member.pool_claim.load(Ordering::SeqCst), member.gauge(Gauge::Pool))
        })
    }

    /// The RAM that a group may use, of its own limit and of those above it.
    pub fn ram(&self, group: GroupIndex) -> u64 {
        self.groups.tightest(group, Limit::Memory).unwrap_or(u64::MAX)
    }

    /// Sets the claim of a member that uses `used` bytes, and gives its allowance.
    ///
    /// A member claims what it uses and a little more, up to what the others have not claimed, or
    /// its equal share if that is more: then the others, who see this, claim less. Beyond its share
    /// it may use only what they have given up already. Up to its share it does not wait for them:
    /// after a fork both count the pages that they share, so their sum is too high for long.
    pub fn divide(&self, me: &Member, used: u64) -> u64 {
        let limits = || self.groups.bounds(me.group(), Limit::Memory);
        let bound = |ram: u64, others: &Others| {
            ram.saturating_sub(others.claimed).max(ram / (others.members + 1))
        };
        let wanted = limits().map(|(group, ram)| {
            let others = self.others_in_ram(me, group);
            let growth = ram / CLAIM_GROWTH_PART;
            let wanted = if others.members == 0 { ram } else { used + growth };
            wanted.min(bound(ram, &others))
        });
        let wanted = wanted.min().unwrap_or(u64::MAX);
        me.claim.store(wanted, Ordering::SeqCst);
        let left = limits().map(|(group, ram)| {
            let others = self.others_in_ram(me, group);
            let share = ram / (others.members + 1);
            (bound(ram, &others), ram.saturating_sub(others.held).max(share))
        });
        let (claim, allowance) = left
            .fold((wanted, wanted), |(claim, allowance), (bound, left)| {
                (claim.min(bound), allowance.min(bound).min(left))
            });
        me.claim.store(claim, Ordering::SeqCst);
        allowance
    }

    /// Sets what the pool of a member may take, which takes `used` bytes now; `None` if no group limits it. Nobody
    /// has a right to a share: who comes first has it, as with the kernel's zswap.max.
    pub fn claim_pool(&self, me: &Member, used: u64) -> Option<u64> {
        let max = self.groups.tightest(me.group(), Limit::Zswap)?;
        let room = || {
            let held = |group| self.others_in_pool(me, group).held;
            self.groups.room(me.group(), Limit::Zswap, held).unwrap_or(u64::MAX)
        };
        let mut limits = self.groups.bounds(me.group(), Limit::Zswap);
        let alone = limits.all(|(group, _)| self.others_in_pool(me, group).members == 0);
        let wanted = if alone { max } else { used + max / CLAIM_GROWTH_PART };
        let claim = wanted.min(room());
        me.pool_claim.store(claim, Ordering::SeqCst);
        let claim = claim.min(room());
        me.pool_claim.store(claim, Ordering::SeqCst);
        Some(claim)
    }

    /// Leases an extent of a device to a member, if none of its groups has all it may have.
    pub fn lease(&self, number: usize, me: &Member) -> Option<Extent> {
        let (device, group) = (self.devices.get(number)?, me.group());
        let member = self.number_of(me)?;
        let leased = device.lease(member);
        let fits = || self.groups.fits(group, Limit::Swap, |group| self.swap_held(group));
        if leased.is_some() && fits() {
            return leased;
        }
        if let Some(extent) = leased {
            device.give_back(extent, member);
            self.groups.count(group, SwapEvent::Max);
        }
        self.groups.count(group, SwapEvent::Fail);
        None
    }

    /// Whether the groups of a member would let it have one more extent.
    pub fn may_lease(&self, me: &Member) -> bool {
        let extent = 1 << EXTENT_BYTES_SHIFT;
        self.groups.fits(me.group(), Limit::Swap, |group| self.swap_held(group) + extent)
    }

    /// Bytes on swap devices that the members of a group and of its descendants hold, shared ones once.
    pub fn swap_held(&self, group: GroupIndex) -> u64 {
        if group == GroupIndex::ROOT {
            return self.devices.leased_by(&Holders::ALL);
        }
        let mut holders = Holders::NONE;
        let numbers = self.members_within(group).filter_map(|member| self.number_of(member));
        numbers.for_each(|number| holders.insert(number));
        self.devices.leased_by(&holders)
    }

    /// Bytes on swap devices that a group may have.
    pub fn swap_limit(&self, group: GroupIndex) -> u64 {
        let all = self.devices.all().filter(|(_, device)| self.uses(group, device));
        let all = all.map(|(_, device)| device.limit()).sum();
        let whole = |max: u64| max >> EXTENT_BYTES_SHIFT << EXTENT_BYTES_SHIFT;
        self.groups.tightest(group, Limit::Swap).map_or(all, |max| all.min(whole(max)))
    }

    /// Whether more than half of what any of a member's groups may have on swap devices is taken.
    pub fn swap_is_half_full(&self, me: &Member) -> bool {
        let group = me.group();
        let all: u64 = self.devices.all().map(|(_, device)| device.limit()).sum();
        self.devices.leased_by(&Holders::ALL) * 2 > all
            || !self.groups.fits(group, Limit::Swap, |group| self.swap_held(group) * 2)
    }

    /// The group whose devices the members of a group see: the nearest one above them that brought any,
    /// themselves included.
    pub fn nearest_devices(&self, group: GroupIndex) -> Option<GroupIndex> {
        let brings = |one| self.devices.all().any(|(_, device)| device.group() == one);
        self.groups.path(group).find(|&one| brings(one))
    }

    /// Whether a device is of a tier that a group may not use: all its ancestors have to allow it.
    pub fn is_closed(&self, group: GroupIndex, device: &RunDevice) -> bool {
        self.groups.path(group).any(|one| device.is_closed_to(one))
    }

    /// Whether the members of a group write to a device: to what they see and may use, and to none where
    /// writeback is forbidden.
    pub fn uses(&self, group: GroupIndex, device: &RunDevice) -> bool {
        self.groups.writes_back(group)
            && self.nearest_devices(group) == Some(device.group())
            && !self.is_closed(group, device)
    }

    /// Whether a member that uses so many bytes of a device may store more there: in what it holds, or in an
    /// extent more.
    pub fn has_room_on(&self, number: usize, me: &Member, used: u64) -> bool {
        let holds = || {
            let mut holders = Holders::NONE;
            holders.insert(self.number_of(me)?);
            Some(self.devices.get(number)?.leased_by(&holders))
        };
        self.may_lease(me) || holds().is_some_and(|bytes| used < bytes)
    }

    /// Bytes in use by all members on the tier of a device, and bytes that there are.
    pub fn fill_of_tier(&self, device: &RunDevice) -> (u64, u64) {
        let priority = |device: &RunDevice| device.description().map(|it| it.priority);
        let group = device.group();
        let same = self
            .devices
            .all()
            .filter(|(_, other)| other.group() == group && priority(other) == priority(device));
        same.fold((0, 0), |(used, limit), (number, device)| {
            let members = self.members_within(group);
            let here = members.map(|member| member.on_device[number].load(Ordering::Relaxed));
            (used + here.sum::<u64>(), limit + device.limit())
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use vswap_core::device::space::Geometry;
    use vswap_core::group::shared::SharedLimits;

    use super::*;
    use crate::run_devices::{Description, DiscardBy};
    use crate::run_page::MemberState;

    fn run(limits: SharedLimits) -> Box<RunPage> {
        // SAFETY: all-zero bytes are a valid page.
        let run: Box<RunPage> = unsafe { Box::new_zeroed().assume_init() };
        run.groups.set_limits(GroupIndex::ROOT, limits);
        run.members_used.store(4, Ordering::Relaxed);
        run
    }

    fn ram(bytes: u64) -> SharedLimits {
        SharedLimits { memory_max: Some(bytes), ..SharedLimits::default() }
    }

    fn join(member: &Member) {
        member.state.store(MemberState::Live as u32, Ordering::Relaxed);
    }

    fn join_group(run: &RunPage, number: usize, group: GroupIndex) -> &Member {
        let member = &run.members[number];
        member.set_group(group);
        join(member);
        member
    }

    fn add_device(run: &RunPage, number: usize, extents: u32, group: GroupIndex) -> &RunDevice {
        let device = run.devices.get(number).unwrap();
        let geometry = Geometry::new(9, extents << (EXTENT_BYTES_SHIFT - 9)).unwrap();
        let discard = DiscardBy::Nothing;
        let description =
            Description { priority: 0, geometry, has_header: false, discard, direct: false };
        device.set(description, group);
        device
    }

    #[test]
    fn one_member_has_all_and_gives_way_to_a_second() {
        let run = run(ram(1600));
        let [one, two] = [&run.members[0], &run.members[1]];
        join(one);
        assert_eq!(run.divide(one, 10), 1600);
        one.charged.store(1500, Ordering::Relaxed);
        join(two);
        assert_eq!(run.divide(two, 0), 100);
        assert_eq!(run.divide(one, 1500), 1500);
        one.charged.store(1400, Ordering::Relaxed);
        assert_eq!(run.divide(two, 90), 190);
        assert_eq!(run.divide(one, 1400), 1410);
    }

    #[test]
    fn two_that_grow_never_claim_more_than_there_is() {
        let run = run(ram(1600));
        let members = [&run.members[0], &run.members[1]];
        members.into_iter().for_each(join);
        for round in 0..100 {
            for member in members {
                let used = run.divide(member, member.charged.load(Ordering::Relaxed));
                member.charged.store(used, Ordering::Relaxed);
            }
            let sum: u64 = members.iter().map(|m| m.claim.load(Ordering::Relaxed)).sum();
            assert!(sum <= 1600, "round {round}: {sum}");
        }
        assert!(members.iter().all(|m| m.charged.load(Ordering::Relaxed) >= 700));
    }

    #[test]
    fn a_group_divides_its_own_ram_within_that_of_the_run() {
        let run = run(ram(1600));
        let group = run.groups.add(GroupIndex::ROOT, ram(320)).unwrap();
        let outside = join_group(&run, 0, GroupIndex::ROOT);
        let inside = [1, 2].map(|number| join_group(&run, number, group));
        for _ in 0..50 {
            for member in [outside, inside[0], inside[1]] {
                let used = run.divide(member, member.charged.load(Ordering::Relaxed));
                member.charged.store(used, Ordering::Relaxed);
            }
        }
        let charged = |member: &Member| member.charged.load(Ordering::Relaxed);
        let of_group = charged(inside[0]) + charged(inside[1]);
        assert!((300..=320).contains(&of_group), "{of_group}");
        assert!(charged(outside) >= 1600 - 320 - 100, "{}", charged(outside));
        assert_eq!(run.ram(group), 320);
    }

    /// A pool limit binds those that are below it together, and nobody else.
    #[test]
    fn pools_claim_what_the_limit_of_their_group_leaves() {
        let run = run(ram(1 << 20));
        let limits = SharedLimits { zswap_max: Some(1600), ..SharedLimits::default() };
        let group = run.groups.add(GroupIndex::ROOT, limits).unwrap();
        let child = run.groups.add(group, SharedLimits::default()).unwrap();
        let outside = join_group(&run, 0, GroupIndex::ROOT);
        assert_eq!(run.claim_pool(outside, 500), None);
        let one = join_group(&run, 1, group);
        assert_eq!(run.claim_pool(one, 0), Some(1600));
        let other = join_group(&run, 2, child);
        assert_eq!(run.claim_pool(other, 0), Some(0));
        assert_eq!(run.claim_pool(one, 700), Some(800));
        assert_eq!(run.claim_pool(other, 0), Some(100));
        assert_eq!(run.claim_pool(other, 100), Some(200));
        // What is in a pool already counts, whatever was claimed.
        one.set_gauge(Gauge::Pool, 1550);
        assert_eq!(run.claim_pool(other, 100), Some(50));
        one.state.store(MemberState::Ended as u32, Ordering::Relaxed);
        assert_eq!(run.claim_pool(other, 100), Some(1600));
    }

    #[test]
    fn extents_are_charged_to_all_groups_above_and_shared_ones_once() {
        let run = run(SharedLimits { swap_max: Some(3 << 22), ..SharedLimits::default() });
        let limits = SharedLimits { swap_max: Some((2 << 22) + 5), ..SharedLimits::default() };
        let group = run.groups.add(GroupIndex::ROOT, limits).unwrap();
        let device = add_device(&run, 0, 10, GroupIndex::ROOT);
        let outside = join_group(&run, 0, GroupIndex::ROOT);
        let [parent, child] = [1, 2].map(|number| join_group(&run, number, group));
        let shared = run.lease(0, parent).unwrap();
        device.hold(shared, 2);
        assert!(!run.swap_is_half_full(outside) && !run.swap_is_half_full(parent));
        assert!(run.may_lease(child) && run.lease(0, child).is_some());
        assert_eq!((run.may_lease(child), run.lease(0, child)), (false, None));
        assert_eq!((run.swap_held(group), run.swap_limit(group)), (2 << 22, 2 << 22));
        let counted =
            |group| [SwapEvent::Max, SwapEvent::Fail].map(|event| run.groups.counted(group, event));
        assert_eq!((counted(group), counted(GroupIndex::ROOT)), ([1, 1], [1, 1]));
        // The run has one left, which is not the group's.
        assert!(run.lease(0, outside).is_some() && run.lease(0, outside).is_none());
        assert_eq!((counted(group), counted(GroupIndex::ROOT)), ([1, 1], [2, 2]));
        assert!(run.swap_is_half_full(outside));
    }

    #[test]
    fn a_group_uses_the_nearest_devices_and_none_without_writeback() {
        let run = run(ram(1));
        let outer = add_device(&run, 0, 1, GroupIndex::ROOT);
        let group = run.groups.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let child = run.groups.add(group, SharedLimits::default()).unwrap();
        assert!(run.uses(child, outer) && run.uses(GroupIndex::ROOT, outer));
        let own = add_device(&run, 1, 1, group);
        assert!(run.uses(child, own) && !run.uses(child, outer));
        assert!(!run.uses(GroupIndex::ROOT, own));
        run.groups.set_limits(group, SharedLimits { zswap_writeback: false, ..ram(1) });
        assert!(!run.uses(child, own) && !run.uses(child, outer));
    }

    #[test]
    fn what_is_closed_to_a_group_is_closed_to_all_below_it() {
        let run = run(ram(1));
        let [fast, slow] = [0, 1].map(|number| add_device(&run, number, 1, GroupIndex::ROOT));
        let group = run.groups.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let child = run.groups.add(group, SharedLimits::default()).unwrap();
        fast.set_closed_to(group, true);
        for (one, uses) in
            [(GroupIndex::ROOT, [true; 2]), (group, [false, true]), (child, [false, true])]
        {
            assert_eq!([fast, slow].map(|device| run.uses(one, device)), uses, "{one:?}");
        }
        slow.set_closed_to(child, true);
        assert!(!run.uses(child, slow) && run.uses(group, slow));
        fast.set_closed_to(group, false);
        assert!(run.uses(child, fast));
        // The next device of the number is another.
        add_device(&run, 1, 1, GroupIndex::ROOT);
        assert!(run.uses(child, slow));
    }

    /// The tiers of two groups have nothing in common but a number.
    #[test]
    fn a_tier_is_as_full_as_live_members_make_it() {
        let run = run(ram(1));
        let group = run.groups.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let outer = add_device(&run, 0, 4, GroupIndex::ROOT);
        let own = [1, 2].map(|number| add_device(&run, number, 2, group));
        let outside = join_group(&run, 0, GroupIndex::ROOT);
        let inside = [1, 2].map(|number| join_group(&run, number, group));
        outside.on_device[0].store(7, Ordering::Relaxed);
        for (member, used) in inside.into_iter().zip([30, 500]) {
            member.on_device[1].store(used, Ordering::Relaxed);
            member.on_device[2].store(used * 2, Ordering::Relaxed);
        }
        let extents = |count: u64| count << EXTENT_BYTES_SHIFT;
        assert_eq!(run.fill_of_tier(outer), (7, extents(4)));
        assert_eq!(run.fill_of_tier(own[0]), (1590, extents(4)));
        inside[1].state.store(MemberState::Ended as u32, Ordering::Relaxed);
        assert_eq!(run.fill_of_tier(own[1]), (90, extents(4)));
    }

    #[test]
    fn a_member_at_its_limit_has_the_room_that_it_holds() {
        let extent = 1 << EXTENT_BYTES_SHIFT;
        let run = run(SharedLimits { swap_max: Some(extent), ..ram(1) });
        add_device(&run, 0, 4, GroupIndex::ROOT);
        add_device(&run, 1, 4, GroupIndex::ROOT);
        let member = join_group(&run, 0, GroupIndex::ROOT);
        assert!(run.has_room_on(0, member, 0) && run.has_room_on(1, member, 0));
        run.lease(0, member).unwrap();
        assert!(run.has_room_on(0, member, extent - 1) && !run.has_room_on(0, member, extent));
        assert!(!run.has_room_on(1, member, 0));
    }
}
