//! Where the objects of a batch are.

use super::geometry::Block;

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
