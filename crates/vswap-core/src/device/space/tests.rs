mod check;
mod compact;
mod limits;
mod model;
mod scenarios;
mod stress;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use super::*;
use crate::platform::MmapPlatform;

/// Extents of a device, and how many hold each.
#[derive(Debug, Default)]
struct Source {
    state: Mutex<SourceState>,
}

#[derive(Debug, Default)]
struct SourceState {
    extents: u32,
    held: BTreeMap<u32, u32>,
    refuses: bool,
    /// Extents that nobody holds any more, in order.
    ended: Vec<u32>,
}

impl Source {
    fn held(&self) -> Vec<u32> {
        self.state.lock().unwrap().held.keys().copied().collect()
    }

    fn refuse(&self, refuses: bool) {
        self.state.lock().unwrap().refuses = refuses;
    }
}

impl ExtentSource for Source {
    fn lease(&self) -> Option<Extent> {
        let mut state = self.state.lock().unwrap();
        if state.refuses {
            return None;
        }
        let free = (0..state.extents).find(|extent| !state.held.contains_key(extent))?;
        state.held.insert(free, 1);
        Some(Extent(free))
    }

    fn holders(&self, extent: Extent) -> u32 {
        self.state.lock().unwrap().held.get(&extent.0).copied().unwrap_or(0)
    }

    fn give_back(&self, extent: Extent) {
        let mut state = self.state.lock().unwrap();
        let holders = state.held.get_mut(&extent.0).expect("only what is held is given back");
        *holders -= 1;
        if *holders == 0 {
            state.held.remove(&extent.0);
            state.ended.push(extent.0);
        }
    }
}

type TestSpace<'a> = Space<MmapPlatform, &'a Source>;

/// The size of a device of this many MiB, in blocks of 512 bytes or of a page.
fn small(mib: u32) -> Geometry {
    Geometry::new(9, mib << 11).unwrap()
}

fn large(mib: u32) -> Geometry {
    Geometry::new(12, mib << 8).unwrap()
}

fn space_of(source: &Source, geometry: Geometry) -> TestSpace<'_> {
    source.state.lock().unwrap().extents = geometry.extents();
    Space::new(MmapPlatform, source, geometry)
}

/// Takes objects of one size until there is no place.
fn fill_up(space: &TestSpace<'_>, local: &mut DeviceLocal, blocks: u8) -> Vec<Block> {
    std::iter::from_fn(|| space.take(local, blocks).ok()).collect()
}
