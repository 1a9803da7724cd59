use std::vec::Vec;

use super::check::check;
use super::*;
use crate::page::PAGE_SIZE;

#[test]
fn metadata_is_a_bit_per_block_and_16_bytes_per_cluster() {
    for (geometry, blocks, most) in [(small(1024), 8, 1.26), (large(1024), 1, 0.38)] {
        let source = Source::default();
        let space = space_of(&source, geometry);
        let itself = size_of_val(&space);
        assert!(itself < 4 * PAGE_SIZE, "{itself}");
        assert_eq!(space.metadata(), itself, "nothing before the first object");
        let mut local = space.local();
        let objects = fill_up(&space, &mut local, blocks);
        assert_eq!(objects.len(), 1 << 18, "a page in each");
        let bytes = space.metadata() - itself;
        let by_rule = geometry.blocks() / 8 + geometry.blocks() / geometry.cluster_blocks() * 16;
        assert_eq!(bytes, by_rule as usize);
        let per_object = bytes as f64 / objects.len() as f64;
        std::println!("metadata per object of {blocks} blocks: {per_object:.3} bytes");
        assert!(per_object <= most, "{per_object}");

        space.retire(local);
        let objects: Vec<(Block, u8)> = objects.into_iter().map(|block| (block, blocks)).collect();
        space.free_many(&objects);
        assert!(space.metadata() - itself <= 2 * PAGE_SIZE, "one spare extent");
        space.trim();
        assert_eq!(space.metadata(), itself, "all of it went back");
        assert_eq!(space.used_blocks(), 0);
        check(&space);
    }
}

#[test]
fn a_page_of_metadata_goes_back_when_nothing_of_it_is_in_use() {
    let source = Source::default();
    let space = space_of(&source, small(128));
    let itself = space.metadata();
    let mut local = space.local();
    let objects = fill_up(&space, &mut local, 8);
    // 128 MiB: 2 pages of headers and 8 of bits.
    assert_eq!(space.metadata() - itself, 10 * PAGE_SIZE);
    space.retire(local);
    let second = 1 << 17;
    objects.iter().filter(|block| block.raw() >= second).for_each(|&block| space.free(block, 8));
    space.trim();
    assert_eq!(space.metadata() - itself, 5 * PAGE_SIZE);
    check(&space);
}

#[test]
fn geometries_have_limits() {
    assert!(Geometry::new(8, 100).is_none());
    assert!(Geometry::new(13, 100).is_none());
    assert!(Geometry::new(9, 0).is_none());
    assert!(Geometry::new(9, (1 << 30) + 1).is_none());
    assert_eq!(Geometry::new(9, 1 << 30).unwrap().object_blocks_max(), 9);
    assert_eq!(Geometry::new(12, 1 << 30).unwrap().object_blocks_max(), 2);
    assert_eq!(Geometry::new(9, 8193).unwrap().extents(), 2);
}

#[test]
fn the_last_block_of_the_largest_device_can_be_taken() {
    /// Leases the last extent only.
    struct Last(Mutex<Option<Extent>>);
    impl ExtentSource for Last {
        fn lease(&self) -> Option<Extent> {
            self.0.lock().unwrap().take()
        }
        fn give_back(&self, extent: Extent) {
            *self.0.lock().unwrap() = Some(extent);
        }
    }
    for shift in [9, 12] {
        let geometry = Geometry::new(shift, 1 << 30).unwrap();
        let source = Last(Mutex::new(Some(Extent(geometry.extents() - 1))));
        let space = Space::new(MmapPlatform, &source, geometry);
        let mut local = space.local();
        let blocks = std::iter::from_fn(|| space.take(&mut local, 1).ok());
        assert_eq!(blocks.last().map(Block::raw), Some((1 << 30) - 1));
        check(&space);
    }
}

#[test]
fn ranges_of_bad_blocks_have_a_limit() {
    let source = Source::default();
    let mut space = space_of(&source, small(64));
    let mut add =
        |n: u32| space.mark_bad(Block::new(2 * n).unwrap()..Block::new(2 * n + 1).unwrap());
    (0..1024).for_each(|n| add(n).unwrap());
    assert_eq!(add(1024), Err(TooManyBadRanges));
    let mut local = space.local();
    assert_eq!(fill_up(&space, &mut local, 2).len(), (64 * 2048 - 2048) / 2);
}
