//! Writing a batch of objects: with one call, where they lie together or nearly so.
//!
//! Objects of one size lie side by side, but a cluster seldom is a multiple of their size. What is left at
//! its end is written too, as zeros: one long write takes the time of a short one. Nothing of anybody's
//! is there, and nothing gets there while the cluster has an object. Other gaps are left alone: another
//! thread may take a slot there meanwhile.

use vswap_core::Outgoing;
use vswap_core::device::space::{Block, OBJECT_BLOCKS_MAX, Placed};

use super::unanswered::Silence;
use super::{Attached, Refusal, SwapDevice};
use crate::io::{Batch, Buffer, Direction, RUN_BYTES_MAX};
use crate::swap::SWAP_DEVICES;
use crate::swap::fetched::FETCHED;

/// Blocks of a gap that is written, at most: what a cluster has too few for one more object.
const GAP_MAX: u32 = OBJECT_BLOCKS_MAX as u32 - 1;

/// Objects that go into one buffer, and the blocks that it covers.
struct Part<'a> {
    placed: &'a [Placed],
    blocks: u32,
}

impl SwapDevice {
    /// Writes all objects of a batch, which is sorted by place. With an error, what was written of it is
    /// of no use, and `silence` says what may still be written.
    pub(super) fn write_batch(
        &self,
        attached: &Attached,
        placed: &[Placed],
        objects: &[Outgoing<'_>],
        silence: &mut Silence,
    ) -> Result<(), Refusal> {
        let writing = self.read_ahead.begin_write();
        let device = self.device(attached);
        let mut batch = Batch::new();
        let mut rest = placed;
        while let Some(first) = rest.first().map(|first| first.block) {
            let part = next_part(attached, first, rest);
            rest = &rest[part.placed.len()..];
            let bytes = part.blocks as usize * attached.block_bytes();
            let mut buffer = buffer(&mut batch, bytes, silence)?;
            self.fill(attached, &part, objects, &mut buffer)?;
            writing.forget(first.raw(), part.blocks);
            FETCHED.forget(self.number, first.raw(), part.blocks);
            if let Err(buffer) = batch.push(&device, attached.offset(first), buffer) {
                write_out(&mut batch, silence)?;
                let pushed = batch.push(&device, attached.offset(first), buffer);
                debug_assert!(pushed.is_ok(), "an empty batch takes a request");
            }
        }
        write_out(&mut batch, silence)
    }

    /// Seals the objects of a part into its buffer.
    fn fill(
        &self,
        attached: &Attached,
        part: &Part<'_>,
        objects: &[Outgoing<'_>],
        buffer: &mut [u8],
    ) -> Result<(), Refusal> {
        let Some(first) = part.placed.first().map(|place| place.block.raw()) else { return Ok(()) };
        let mut filled = 0;
        for place in part.placed {
            let start = (place.block.raw() - first) as usize * attached.block_bytes();
            let end = start + usize::from(place.blocks) * attached.block_bytes();
            buffer[filled..start].fill(0);
            self.seal(&objects[place.object as usize], place, &mut buffer[start..end])?;
            filled = end;
        }
        buffer[filled..].fill(0);
        Ok(())
    }
}

/// As many objects of `rest` as a buffer holds, and the gap behind them if they go on there.
fn next_part<'a>(attached: &Attached, first: Block, rest: &'a [Placed]) -> Part<'a> {
    let blocks_max = (RUN_BYTES_MAX / attached.block_bytes()) as u32;
    let (mut count, mut blocks) = (0, 0);
    for place in rest {
        let start = place.block.raw() - first.raw();
        if start > blocks_max || !is_small_gap(attached, first.raw() + blocks..place.block.raw()) {
            break;
        }
        if start + u32::from(place.blocks) > blocks_max {
            // The next part adjoins.
            blocks = start;
            break;
        }
        blocks = start + u32::from(place.blocks);
        count += 1;
    }
    Part { placed: &rest[..count], blocks }
}

fn is_small_gap(attached: &Attached, mut gap: core::ops::Range<u32>) -> bool {
    let is_slack = |block| Block::new(block).is_some_and(|block| attached.slots.is_slack(block));
    gap.len() as u32 <= GAP_MAX && gap.all(is_slack)
}

/// A buffer; if there is none beside those of the batch, the batch is written first.
fn buffer(
    batch: &mut Batch<'_, 'static>,
    bytes: usize,
    silence: &mut Silence,
) -> Result<Buffer<'static>, Refusal> {
    if let Some(buffer) = SWAP_DEVICES.buffers().and_then(|buffers| buffers.take(bytes)) {
        return Ok(buffer);
    }
    write_out(batch, silence)?;
    SWAP_DEVICES.buffer(bytes).ok_or(Refusal::Full)
}

/// Writes what a batch has, and makes it empty.
fn write_out(batch: &mut Batch<'_, 'static>, silence: &mut Silence) -> Result<(), Refusal> {
    SWAP_DEVICES.transfer(Direction::Write, batch);
    silence.note(batch);
    let written = batch.result().map_err(Refusal::of);
    batch.clear();
    written
}
