//! Walking all entries, and coding cold ones again with a stronger codec.

use super::VirtualSwap;
use super::store::{COMPRESSED_MAX, Object, Owner};
use crate::codec::CodecKind;
use crate::counters::Counter;
use crate::descriptor::{AtomicDescriptor, Descriptor, Place};
use crate::entry::{CLUSTER_SLOTS, ClusterId, SwapEntry};
use crate::error::OutOfMemory;
use crate::platform::Platform;
use crate::worker::{Worker, encoding_of};

/// A position in the order of slots, which is roughly the order of storing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(u32);

impl Cursor {
    /// Before the first entry.
    pub const START: Self = Self(0);

    /// Behind the last entry.
    pub const END: Self = Self(u32::MAX);

    /// At an entry.
    pub const fn at(entry: SwapEntry) -> Self {
        Self(entry.raw())
    }

    /// The entry that it is at; `None` before the first one.
    pub const fn entry(self) -> Option<SwapEntry> {
        SwapEntry::from_raw(self.0)
    }

    /// Right behind an entry.
    pub const fn behind(entry: SwapEntry) -> Self {
        Self(entry.raw() + 1)
    }
}

/// How far [`VirtualSwap::recompress`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompression {
    /// Where to go on; `None` when all entries were looked at.
    pub next: Option<Cursor>,
    /// Objects that were tried.
    pub tried: usize,
    /// Objects that became smaller.
    pub recompressed: usize,
    /// Bytes by which they did.
    pub saved: usize,
}

/// An object has to shrink by this much to be worth the move: size classes are this far apart.
const WORTHWHILE: usize = 64;

impl<P: Platform> VirtualSwap<P> {
    /// The descriptors from `from` on, in the order of their entries.
    pub(super) fn walk(
        &self,
        from: Cursor,
    ) -> impl Iterator<Item = (SwapEntry, &AtomicDescriptor)> {
        self.walk_where(from, |_| true)
    }

    /// Those of the descriptors from `from` on that are as `wanted` at a look. It is asked row by row,
    /// which takes half the time of a filter on all of them.
    pub(super) fn walk_where<'a>(
        &'a self,
        from: Cursor,
        wanted: impl Fn(Descriptor) -> bool + Copy + 'a,
    ) -> impl Iterator<Item = (SwapEntry, &'a AtomicDescriptor)> {
        let first = SwapEntry::from_raw(from.0).map_or(ClusterId(1), SwapEntry::cluster);
        self.slots.clusters_from(first).flat_map(move |cluster| {
            let skip = if cluster == first { from.0 as usize % CLUSTER_SLOTS } else { 0 };
            let row = self.slots.row(cluster).iter().enumerate().skip(skip);
            row.filter(move |(_, slot)| wanted(slot.peek()))
                .map(move |(index, slot)| (cluster.entry(index), slot))
        })
    }

    /// Codes objects of the pool again with another codec, from `from` on, and keeps those that
    /// shrink. Tries up to `budget` objects; entries that are in use at the moment are passed over.
    ///
    /// # Errors
    /// If there is no memory for the codec.
    pub fn recompress(
        &self,
        worker: &mut Worker,
        from: Cursor,
        budget: usize,
        codec: CodecKind,
    ) -> Result<Recompression, OutOfMemory> {
        let stronger = encoding_of(codec);
        let mut done = Recompression { next: None, tried: 0, recompressed: 0, saved: 0 };
        for (entry, slot) in self.walk(from) {
            let could_shrink = |word: Descriptor| match word.place() {
                Some(place @ Place::Compressed { object, encoding }) if encoding != stronger => {
                    Some((place, self.pool.len(object)))
                }
                _ => None,
            };
            if could_shrink(slot.peek()).is_none() {
                continue;
            }
            if done.tried == budget {
                done.next = Some(Cursor::at(entry));
                break;
            }
            let Ok(Some(word)) = slot.try_lock() else { continue };
            let copy = match could_shrink(word) {
                Some((place, length)) => {
                    done.tried += 1;
                    let owner = Owner { entry, group: word.group() };
                    self.smaller_copy(worker, owner, place, length, codec)
                }
                None => Ok(None),
            };
            match copy {
                Ok(Some((place, saved))) => {
                    done.recompressed += 1;
                    done.saved += saved;
                    self.move_to(entry, slot, word, place);
                }
                Ok(None) => self.unlock(entry, slot),
                Err(error) => {
                    self.unlock(entry, slot);
                    return Err(error);
                }
            }
        }
        self.note_memory(&mut worker.coder, &worker.record);
        self.counters.add(&worker.record, Counter::Recompressed, done.recompressed as u64);
        Ok(done)
    }

    /// A copy of a compressed object that another codec made sufficiently smaller, and by how much.
    /// The caller holds the entry lock.
    fn smaller_copy(
        &self,
        worker: &mut Worker,
        owner: Owner,
        place: Place,
        length: usize,
        codec: CodecKind,
    ) -> Result<Option<(Place, usize)>, OutOfMemory> {
        let Worker { pool, record, coder, page, .. } = worker;
        if self.decode_place(coder, record, (owner.entry, place), page).is_err() {
            return Ok(None);
        }
        let limit = length.saturating_sub(WORTHWHILE).min(COMPRESSED_MAX);
        let coded = coder.compress_with(self.platform(), codec, page, limit)?;
        let Some((bytes, encoding)) = coded else { return Ok(None) };
        let copy = self.keep(pool, record, Object { owner, bytes, encoding });
        Ok(copy.ok().map(|object| (Place::Compressed { object, encoding }, length - bytes.len())))
    }
}
