//! Sizes: blocks, clusters, extents. All conversions between them are here.

use core::ops::Range;

use crate::page::PAGE_SHIFT;

/// Blocks of an object, at most: a page in the smallest blocks, and one more for its header.
pub const OBJECT_BLOCKS_MAX: usize = 9;

/// Binary logarithm of a cluster's bytes.
pub const CLUSTER_BYTES_SHIFT: u32 = 18;

/// Binary logarithm of an extent's bytes.
pub const EXTENT_BYTES_SHIFT: u32 = 22;

pub(super) const EXTENT_CLUSTERS_SHIFT: u32 = EXTENT_BYTES_SHIFT - CLUSTER_BYTES_SHIFT;
const BLOCK_BITS: u32 = crate::entry::Handle::BITS;

/// A logical block of a device: the place of an object is its first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(u32);

impl Block {
    /// A block; `None` if the number is too large.
    pub const fn new(number: u32) -> Option<Self> {
        if number >> BLOCK_BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The block's number, below 2^30.
    pub const fn raw(self) -> u32 {
        self.0
    }

    pub(super) const fn of(cluster: ClusterId, index: u32, geometry: Geometry) -> Self {
        Self((cluster.0 << geometry.cluster_shift()) + index)
    }

    pub(super) const fn plus(self, blocks: u32) -> Self {
        Self(self.0 + blocks)
    }
}

/// The number of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClusterId(pub(super) u32);

/// 4 MiB of a device at a multiple of that; the last one can be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(pub u32);

impl Extent {
    pub(super) const fn of(cluster: ClusterId) -> Self {
        Self(cluster.0 >> EXTENT_CLUSTERS_SHIFT)
    }
}

/// How large a device and its blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    block_shift: u32,
    blocks: u32,
}

impl Geometry {
    /// A device of `blocks` blocks of 2^`block_shift` bytes. Blocks have 512 bytes to a page, and
    /// there are at most 2^30 of them.
    pub const fn new(block_shift: u32, blocks: u32) -> Option<Self> {
        let fits = block_shift >= 9 && block_shift <= PAGE_SHIFT && blocks <= 1 << BLOCK_BITS;
        if fits && blocks > 0 { Some(Self { block_shift, blocks }) } else { None }
    }

    /// Blocks of the device.
    pub const fn blocks(self) -> u32 {
        self.blocks
    }

    /// Binary logarithm of a block's bytes.
    pub const fn block_shift(self) -> u32 {
        self.block_shift
    }

    /// The most blocks that an object takes.
    pub const fn object_blocks_max(self) -> u8 {
        (1 << (PAGE_SHIFT - self.block_shift)) + 1
    }

    /// Blocks of a cluster.
    pub const fn cluster_blocks(self) -> u32 {
        1 << self.cluster_shift()
    }

    /// Blocks of an extent of the device.
    pub fn extent_blocks(self, extent: Extent) -> Range<u32> {
        let shift = EXTENT_BYTES_SHIFT - self.block_shift;
        let first = u64::from(extent.0) << shift;
        let clamp = |block: u64| block.min(self.blocks.into()) as u32;
        clamp(first)..clamp(first + (1 << shift))
    }

    /// Extents of the device.
    pub const fn extents(self) -> u32 {
        self.blocks.div_ceil(1 << (EXTENT_BYTES_SHIFT - self.block_shift))
    }

    pub(super) const fn cluster_shift(self) -> u32 {
        CLUSTER_BYTES_SHIFT - self.block_shift
    }

    pub(super) const fn slots(self, class: u8) -> u32 {
        self.cluster_blocks() / class as u32
    }

    /// Words of a cluster's bitmap.
    pub(super) const fn words(self) -> usize {
        1 << (self.cluster_shift() - 6)
    }

    pub(super) const fn cluster_of(self, block: Block) -> ClusterId {
        ClusterId(block.0 >> self.cluster_shift())
    }

    /// The block's index in its cluster.
    pub(super) const fn index(self, block: Block) -> u32 {
        block.0 & (self.cluster_blocks() - 1)
    }

    const fn clusters(self) -> u32 {
        self.blocks.div_ceil(self.cluster_blocks())
    }

    pub(super) fn extent_clusters(self, extent: Extent) -> impl Iterator<Item = ClusterId> + Clone {
        let first = extent.0 << EXTENT_CLUSTERS_SHIFT;
        (first..self.clusters().min(first + (1 << EXTENT_CLUSTERS_SHIFT))).map(ClusterId)
    }

    pub(super) fn cluster_range(self, cluster: ClusterId) -> Range<u32> {
        let first = cluster.0 << self.cluster_shift();
        first..self.blocks.min(first + self.cluster_blocks())
    }
}
