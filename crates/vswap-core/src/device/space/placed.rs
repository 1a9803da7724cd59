//! Where the objects of a batch are.

use super::Space;
use super::extents::ExtentSource;
use super::geometry::Block;
use super::lists::Headers as _;
use crate::platform::Platform;

/// The place of one object of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Which object of the batch, by its index.
    pub object: u32,
    /// Its first block.
    pub block: Block,
    /// Its blocks.
    pub blocks: u8,
}

impl Placed {
    /// The contiguous parts of a batch that is sorted by place: what one write can cover.
    pub fn runs(batch: &[Self]) -> impl Iterator<Item = &[Self]> {
        batch.chunk_by(|a, b| a.block.plus(a.blocks.into()) == b.block)
    }
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// Whether a block lies behind the last slot of its cluster and is not bad: who has an object in that
    /// cluster can write there what it likes.
    pub fn is_slack(&self, block: Block) -> bool {
        let cluster = self.geometry.cluster_of(block);
        if !self.is_leased(cluster) || self.is_used(block) {
            return false;
        }
        let class = self.header(cluster).now().class;
        class > 0 && self.geometry.index(block) >= self.geometry.slots(class) * u32::from(class)
    }
}
