//! The swap devices of a run: what is opened for each `--swap`, and its entry in the run page.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use vswap_core::Page;
use vswap_core::device::header::{self, SwapArea};
use vswap_core::device::object::{KEY, Protection};
use vswap_core::device::set::DEVICES_MAX;
use vswap_core::device::space::Geometry;
use vswap_core::group::shared::GroupIndex;
use vswap_pager::io;
use vswap_pager::run_devices::{
    DEVICE_BYTES_MAX, Description, DeviceState, DiscardBy, RunDevice, RunDevices,
};
use vswap_pager::run_page::RunPage;

use super::swap_area::{self, Area, AreaKind};
use super::swap_file;
use crate::args::SwapPlace;
use crate::refusal::{Refusal, reason};
use crate::size::Size;

/// The first priority that is given to a device without one; each further one gets one less, as by
/// swapon(8).
const FIRST_DEFAULT_PRIORITY: i16 = -2;

/// Characters of the path of a nested run's device that are shown: a packet has to hold them.
const PATH_SHOWN: usize = 64;

/// What a device is, as /proc/swaps has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A file without a name, made for the run.
    Temporary,
    /// A file that `mkswap` formatted.
    File,
    /// A block device that `mkswap` formatted.
    Partition,
}

impl Kind {
    /// Its name there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Temporary | Self::File => "file",
            Self::Partition => "partition",
        }
    }
}

/// What a nested run says of a device that it has opened for itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedOver {
    path: String,
    kind: Kind,
    in_ram: bool,
    priority: i16,
    tier: Option<String>,
    block_shift: u32,
    blocks: u32,
    has_header: bool,
    discard: u32,
    direct: bool,
}

impl HandedOver {
    /// The device; `None` if its sizes make no sense.
    fn device(self, file: OwnedFd) -> Option<Device> {
        let description = Description {
            priority: self.priority,
            geometry: Geometry::new(self.block_shift, self.blocks)?,
            has_header: self.has_header,
            discard: DiscardBy::from_word(self.discard),
            direct: self.direct,
        };
        let (path, kind, in_ram) = (PathBuf::from(self.path), self.kind, self.in_ram);
        Some(Device { number: 0, path, kind, in_ram, tier: self.tier, description, file })
    }
}

/// A swap device of the run.
#[derive(Debug)]
pub struct Device {
    /// Its number in the run page.
    pub number: usize,
    /// As it was named.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Whether it is on tmpfs, that is, in RAM after all.
    pub in_ram: bool,
    /// Name of its tier, if it was given one.
    tier: Option<String>,
    description: Description,
    file: OwnedFd,
}

impl Device {
    /// Opens what an option names: an existing swap area, or a place for a temporary file.
    fn open(place: &SwapPlace, priority: i16) -> Result<Self, Refusal> {
        let existing = fs::metadata(&place.path).is_ok_and(|found| !found.is_dir());
        if existing { Self::open_area(place, priority) } else { Self::create(place, priority) }
    }

    /// Opens all that options name, for a nested run.
    pub fn open_all(places: &[SwapPlace]) -> Result<Vec<Self>, Refusal> {
        if places.len() > DEVICES_MAX {
            return Err(too_many(places.len()));
        }
        let mut devices: Vec<Self> = Vec::new();
        for place in places {
            let priority = priority_of(place, devices.iter())?;
            devices.push(Self::open(place, priority)?);
        }
        Ok(devices)
    }

    /// What it is, for the coordinator of the run around this one.
    pub fn hand_over(&self) -> HandedOver {
        let Description { priority, geometry, has_header, discard, direct } = self.description;
        HandedOver {
            path: self.path.display().to_string().chars().take(PATH_SHOWN).collect(),
            kind: self.kind,
            in_ram: self.in_ram,
            priority,
            tier: self.tier.clone(),
            block_shift: geometry.block_shift(),
            blocks: geometry.blocks(),
            has_header,
            discard: discard as u32,
            direct,
        }
    }

    /// The open file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn open_area(place: &SwapPlace, priority: i16) -> Result<Self, Refusal> {
        let path = place.path.clone();
        if place.size.is_some() {
            let what = format!("--swap: {} has a size of its own", path.display());
            return Err(Refusal::usage(what, "leave :SIZE out"));
        }
        let area = swap_area::open(&path, |first, pages, kind| {
            let kind = match kind {
                AreaKind::File => header::AreaKind::File,
                AreaKind::BlockDevice => header::AreaKind::BlockDevice,
            };
            SwapArea::parse(&Page(*first), pages, kind).map(|area| area.pages)
        })?;
        let Area { file, kind, header: pages, geometry, discards, .. } = area;
        let len = pages * vswap_core::PAGE_SIZE as u64;
        let (kind, by) = match kind {
            AreaKind::File => (Kind::File, DiscardBy::PunchHole),
            AreaKind::BlockDevice => (Kind::Partition, DiscardBy::Ioctl),
        };
        let discard = if discards { by } else { DiscardBy::Nothing };
        let description = Description {
            priority,
            geometry: geometry_of(len, geometry, &path)?,
            has_header: true,
            discard,
            direct: geometry.direct,
        };
        let tier = place.tier.clone();
        Ok(Self { number: 0, path, kind, in_ram: false, tier, description, file: file.into() })
    }

    fn create(place: &SwapPlace, priority: i16) -> Result<Self, Refusal> {
        let swap_file::SwapFile { file, limit, in_ram } = swap_file::create(place)?;
        let path = place.path.clone();
        let alignment = io::Geometry::prefer_direct(file.as_raw_fd()).map_err(|error| {
            let error = reason(std::io::Error::from_raw_os_error(error.0));
            let what = format!("--swap: cannot use a file in {}: {error}", path.display());
            Refusal::usage(what, "name another place")
        })?;
        let description = Description {
            priority,
            geometry: geometry_of(limit, alignment, &path)?,
            has_header: false,
            discard: DiscardBy::PunchHole,
            direct: alignment.direct,
        };
        let (kind, tier) = (Kind::Temporary, place.tier.clone());
        Ok(Self { number: 0, path, kind, in_ram, tier, description, file })
    }

    /// Bytes that can be used.
    pub fn limit(&self) -> u64 {
        let geometry = self.description.geometry;
        u64::from(geometry.blocks()) << geometry.block_shift()
    }

    /// Objects go to devices of high priority first.
    pub fn priority(&self) -> i16 {
        self.description.priority
    }
}

/// What of a device of `len` bytes can be used.
fn geometry_of(
    len: u64,
    alignment: io::Geometry,
    path: &std::path::Path,
) -> Result<Geometry, Refusal> {
    let shift = alignment.block.trailing_zeros();
    let blocks = len.min(DEVICE_BYTES_MAX) >> shift;
    u32::try_from(blocks).ok().and_then(|blocks| Geometry::new(shift, blocks)).ok_or_else(|| {
        let what = format!("--swap: {} has no room", path.display());
        Refusal::usage(what, "name another place")
    })
}

/// All devices of the run.
#[derive(Debug)]
pub struct Devices {
    opened: Vec<Device>,
    masks: Vec<TierMask>,
    page: &'static RunPage,
}

/// The tiers that a group may use.
#[derive(Debug)]
struct TierMask {
    group: GroupIndex,
    tiers: Vec<String>,
}

impl Devices {
    /// Opens what the command line names, and says how objects are protected.
    pub fn open(
        places: &[SwapPlace],
        tiers: Option<&[String]>,
        protection: Protection,
        page: &'static RunPage,
    ) -> anyhow::Result<Self> {
        if places.len() > DEVICES_MAX {
            return Err(too_many(places.len()).into());
        }
        page.devices.protect(random_key()?, protection);
        let mut all = Self { opened: Vec::new(), masks: Vec::new(), page };
        for place in places {
            all.add(place)?;
        }
        if let Some(tiers) = tiers {
            all.restrict(GroupIndex::ROOT, tiers)?;
        }
        Ok(all)
    }

    /// Opens one more.
    pub fn add(&mut self, place: &SwapPlace) -> Result<&Device, Refusal> {
        let priority = priority_of(place, self.devices_of(GroupIndex::ROOT))?;
        self.insert(Device::open(place, priority)?, GroupIndex::ROOT)
    }

    /// Takes a device that a nested run has opened, for its group.
    pub fn adopt(
        &mut self,
        device: HandedOver,
        file: OwnedFd,
        group: GroupIndex,
    ) -> Result<&Device, Refusal> {
        let refuse = || Refusal::usage("--swap: its size makes no sense", "name another place");
        self.insert(device.device(file).ok_or_else(refuse)?, group)
    }

    fn insert(&mut self, mut device: Device, group: GroupIndex) -> Result<&Device, Refusal> {
        device.number = self.run().free_number().ok_or_else(|| {
            let what = format!("--swap: the run has {DEVICES_MAX} swap devices already");
            Refusal::usage(what, "take one away first")
        })?;
        self.run().get(device.number).expect("a free number").set(device.description, group);
        self.opened.push(device);
        let device = self.opened.last().expect("it was just added");
        // No member has its descriptor yet.
        self.masks.iter().for_each(|mask| self.apply(mask, device));
        Ok(device)
    }

    /// Lets a group, and all below it, use only these tiers of the devices that are brought for it; what a group
    /// below it brings is none of its business.
    pub fn restrict(&mut self, group: GroupIndex, tiers: &[String]) -> Result<(), Refusal> {
        for name in tiers {
            let brought = self.opened.iter().filter(|&device| {
                Some(self.group_of(device)) == self.page.nearest_devices(group)
                    && self.tier_of(device) == Some(name)
            });
            let mut closed = brought.map(|device| self.is_closed(group, device));
            let (what, remedy) = match closed.next() {
                Some(false) => continue,
                Some(true) => (
                    format!("the run around this one does without tier '{name}'"),
                    "leave it out".to_owned(),
                ),
                None => (
                    format!("no --swap is in tier '{name}'"),
                    format!("write --swap PATH,tier={name}"),
                ),
            };
            return Err(Refusal::usage(format!("--tiers: {what}"), remedy));
        }
        let mask = TierMask { group, tiers: tiers.to_vec() };
        self.opened.iter().for_each(|device| self.apply(&mask, device));
        self.masks.push(mask);
        Ok(())
    }

    fn apply(&self, mask: &TierMask, device: &Device) {
        let concerns = self.page.groups.is_within(mask.group, self.group_of(device));
        let is_in = |tier: &str| mask.tiers.iter().any(|name| name == tier);
        if concerns && !self.tier_of(device).is_some_and(is_in) {
            let device = self.run().get(device.number);
            device.inspect(|device| device.set_closed_to(mask.group, true));
        }
    }

    /// Forgets what groups might use that are gone: their numbers are given to others.
    pub fn forget_masks(&mut self) {
        let (run, groups) = (self.run(), &self.page.groups);
        for mask in self.masks.extract_if(.., |mask| !groups.exists(mask.group)) {
            run.all().for_each(|(_, device)| device.set_closed_to(mask.group, false));
        }
    }

    /// Whether a device is of a tier that a group may not use.
    pub fn is_closed(&self, group: GroupIndex, device: &Device) -> bool {
        self.run().get(device.number).is_some_and(|device| self.page.is_closed(group, device))
    }

    /// What the tier of a device is called.
    pub fn tier_of(&self, device: &Device) -> Option<&str> {
        name_of_tier(self.devices_of(self.group_of(device)), device.priority())
    }

    /// The group that brought a device.
    pub fn group_of(&self, device: &Device) -> GroupIndex {
        self.run().get(device.number).map_or(GroupIndex::ROOT, RunDevice::group)
    }

    /// Those that a group has brought.
    pub fn devices_of(&self, group: GroupIndex) -> impl Iterator<Item = &Device> + Clone {
        self.opened.iter().filter(move |device| self.group_of(device) == group)
    }

    fn run(&self) -> &'static RunDevices {
        &self.page.devices
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.opened.iter()
    }

    /// Says whether members are to move what they have on a device elsewhere.
    pub fn set_draining(&self, number: usize, draining: bool) {
        let state = if draining { DeviceState::Draining } else { DeviceState::On };
        self.run().get(number).inspect(|device| device.set_state(state));
    }

    /// Whether no member holds any part of a device.
    pub fn is_free(&self, number: usize) -> bool {
        self.run().get(number).is_none_or(|device| device.leased() == 0)
    }

    /// Closes a device that no member uses any more.
    pub fn remove(&mut self, number: usize) {
        self.run().get(number).inspect(|device| device.set_state(DeviceState::None));
        for device in self.opened.extract_if(.., |device| device.number == number) {
            if device.kind == Kind::File {
                // A program that faults inline may keep its descriptor for a while.
                let _ = flock(&device.file, FlockOperation::Unlock);
            }
        }
    }

    /// The numbers as bits, and the descriptors in this order, of those that a member uses.
    pub fn for_member(&self, uses: impl Fn(&RunDevice) -> bool) -> (u8, Vec<BorrowedFd<'_>>) {
        let is_used = |device: &&Device| self.run().get(device.number).is_some_and(&uses);
        let mut devices: Vec<&Device> = self.opened.iter().filter(is_used).collect();
        devices.sort_unstable_by_key(|device| device.number);
        let bits = devices.iter().fold(0, |bits, device| bits | 1 << device.number);
        (bits, devices.iter().map(|device| device.file.as_fd()).collect())
    }

    /// The open file of a device.
    pub fn file(&self, number: usize) -> Option<BorrowedFd<'_>> {
        let device = self.opened.iter().find(|device| device.number == number)?;
        Some(device.file.as_fd())
    }

    /// Takes back what a member holds, which has ended.
    pub fn release(&self, member: usize) {
        self.run().all().for_each(|(_, device)| device.release(member));
    }
}

fn too_many(devices: usize) -> Refusal {
    let what = format!("--swap: {devices} of them; a run has {DEVICES_MAX} at most");
    Refusal::usage(what, "leave some out")
}

/// The priority of a device that comes to others of its group.
fn priority_of<'a>(
    place: &SwapPlace,
    others: impl Iterator<Item = &'a Device> + Clone,
) -> Result<i16, Refusal> {
    let in_tier = |device: &&Device| device.tier.is_some() && device.tier == place.tier;
    let of_tier = others.clone().find(in_tier).map(Device::priority);
    let given = place.priority.or(of_tier).unwrap_or_else(|| next_priority(others.clone()));
    let refuse = |what: String| {
        let remedy = "the devices of one priority are one tier: leave prio out, or change it";
        Err(Refusal::usage(format!("--swap: {what}"), remedy))
    };
    match (of_tier, name_of_tier(others, given), &place.tier) {
        (Some(other), _, Some(tier)) if other != given => {
            refuse(format!("tier {tier} has priority {other}, not {given}"))
        }
        (None, Some(other), Some(tier)) if other != tier => {
            refuse(format!("priority {given} is that of tier {other}, not {tier}"))
        }
        _ => Ok(given),
    }
}

/// What the tier of a priority is called among the devices of a group.
fn name_of_tier<'a>(
    mut devices: impl Iterator<Item = &'a Device>,
    priority: i16,
) -> Option<&'a str> {
    devices.find_map(|device| device.tier.as_deref().filter(|_| device.priority() == priority))
}

/// The priority of a device without one, behind these.
fn next_priority<'a>(devices: impl Iterator<Item = &'a Device>) -> i16 {
    let priorities = devices.map(Device::priority);
    let lowest = priorities.filter(|&priority| priority < 0).min();
    lowest.map_or(FIRST_DEFAULT_PRIORITY, |lowest| lowest.saturating_sub(1))
}

fn random_key() -> anyhow::Result<[u8; KEY]> {
    let mut key = [0; KEY];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut key))
        .context("cannot read /dev/urandom")?;
    Ok(key)
}

/// What `-v` says of a device.
pub fn explain(device: &Device) -> Vec<String> {
    let (size, place) = (Size(device.limit()), device.path.display());
    let mut lines = vec![match device.kind {
        Kind::Temporary => format!("swap file of up to {size} at {place}"),
        Kind::File => format!("swap file {place} of {size}"),
        Kind::Partition => format!("swap device {place} of {size}"),
    }];
    if device.in_ram {
        lines.push(format!("{place} is on tmpfs: what is swapped there stays in RAM"));
    }
    lines
}
