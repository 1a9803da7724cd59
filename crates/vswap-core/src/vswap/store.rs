//! Where a page goes: zero, same-filled, pool, RAM backings and devices, in this order. What does not
//! compress waits in the pool for the next [writeback](VirtualSwap::write_back), which is one write for
//! many pages; it goes to a device at once if the pool is full, and to a RAM backing last.
//!
//! A place that refuses is passed over, so that a failing backing costs a counter and never the
//! page. Nothing is published here: the caller gets a [`Place`] that owns its object and its
//! charge, and either puts it into a descriptor or hands it to `release_place`.

use super::VirtualSwap;
use crate::backing::{Backing, BackingError, Form, Medium, Outgoing};
use crate::counters::{Counter, Counters, RecordId};
use crate::descriptor::{Encoding, Place};
use crate::entry::{BackingId, GroupId, Handle, SwapEntry};
use crate::error::StoreError;
use crate::group::Resource;
use crate::page::{PAGE_SIZE, Page};
use crate::platform::Platform;
use crate::pool::{PoolLocal, Stored};
use crate::same_filled::repeated_word;
use crate::worker::Worker;

/// An object longer than this is not worth decompressing for: the page is kept as it is.
pub(super) const COMPRESSED_MAX: usize = PAGE_SIZE - PAGE_SIZE / 64;

/// Whose an object is.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    pub(super) entry: SwapEntry,
    pub(super) group: GroupId,
}

/// The object that is looking for a place.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) owner: Owner,
    pub(super) bytes: &'a [u8],
    pub(super) encoding: Encoding,
}

impl<P: Platform> VirtualSwap<P> {
    /// Finds a place for a page and puts it there.
    #[inline]
    pub(super) fn place_page(
        &self,
        worker: &mut Worker,
        owner: Owner,
        page: &Page,
    ) -> Result<Place, StoreError> {
        if let Some(word) = repeated_word(page)
            && let Some(place) = self.place_word(worker, owner, word)
        {
            return Ok(place);
        }
        self.place_object(worker, owner, page)
            .inspect_err(|_| self.counters.add(&worker.record, Counter::StoreFull, 1))
    }

    /// Finds a place for a page that needs an object.
    fn place_object(
        &self,
        worker: &mut Worker,
        owner: Owner,
        page: &Page,
    ) -> Result<Place, StoreError> {
        let Worker { pool, record, coder, .. } = worker;
        if !self.groups.has_room(owner.group, Resource::Zswap) {
            self.counters.add(record, Counter::ZswapMax, 1);
            return self.place_on(record, Medium::Device, Object::raw(owner, page), page);
        }
        if let Some((bytes, encoding)) = coder.compress(page, COMPRESSED_MAX) {
            let object = Object { owner, bytes, encoding };
            self.place_in_pool(pool, record, object)
                .or_else(|_| self.place_on(record, Medium::Ram, object, page))
                .or_else(|_| self.place_on(record, Medium::Device, object, page))
        } else {
            self.counters.add(record, Counter::RejectCompressPoor, 1);
            let object = Object::raw(owner, page);
            self.place_in_pool(pool, record, object)
                .or_else(|_| self.place_on(record, Medium::Device, object, page))
                .or_else(|_| self.place_on(record, Medium::Ram, object, page))
        }
    }

    /// The place of a page that repeats `word`; `None` if the word needs pool memory that is not
    /// to be had, so that the page is treated as any other.
    fn place_word(&self, worker: &mut Worker, owner: Owner, word: u64) -> Option<Place> {
        let Worker { pool, record, .. } = worker;
        let place = if let Some(place) = Place::same_filled(word) {
            place
        } else {
            let bytes = &word.to_ne_bytes();
            let object = Object { owner, bytes, encoding: Encoding::Raw };
            Place::SameFilledInPool(self.keep(pool, record, object).ok()?)
        };
        let counter =
            if place == Place::Zero { Counter::SwpoutZero } else { Counter::SameFilledOut };
        self.counters.add(record, counter, 1);
        Some(place)
    }

    /// Puts an object into the pool.
    pub(super) fn place_in_pool(
        &self,
        pool: &mut PoolLocal,
        record: &RecordId,
        object: Object<'_>,
    ) -> Result<Place, StoreError> {
        let stored = self.keep(pool, record, object)?;
        self.counters.add(record, Counter::Zswpout, 1);
        if object.encoding == Encoding::Raw {
            self.counters.add(record, Counter::IncompressibleStored, 1);
        }
        Ok(Place::Compressed { object: stored, encoding: object.encoding })
    }

    /// Charges for an object and stores it in the pool.
    pub(super) fn keep(
        &self,
        pool: &mut PoolLocal,
        record: &RecordId,
        object: Object<'_>,
    ) -> Result<Stored, StoreError> {
        let length = object.bytes.len() as u64;
        if !self.groups.charge(object.owner.group, Resource::Zswap, length) {
            self.counters.add(record, Counter::ZswapMax, 1);
            return Err(StoreError::GroupLimit);
        }
        self.pool.store(pool, object.bytes).map_err(|_| {
            self.groups.uncharge(object.owner.group, Resource::Zswap, length);
            self.counters.add(record, Counter::PoolLimitHit, 1);
            StoreError::Full
        })
    }

    /// Puts an object, or the page if a backing wants that, on the first backing of a medium that
    /// takes it.
    pub(super) fn place_on(
        &self,
        record: &RecordId,
        medium: Medium,
        object: Object<'_>,
        page: &Page,
    ) -> Result<Place, StoreError> {
        let mut refusal = StoreError::Full;
        for (id, backing) in self.backings.of(self.platform(), medium) {
            let object = match backing.form() {
                Form::Objects => object,
                Form::Pages => Object::raw(object.owner, page),
            };
            match self.place_in_backing(record, id, backing, object) {
                Ok(place) => return Ok(place),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Charges for an object and stores it in a backing.
    pub(super) fn place_in_backing(
        &self,
        record: &RecordId,
        id: BackingId,
        backing: &dyn Backing,
        object: Object<'_>,
    ) -> Result<Place, StoreError> {
        let device = backing.medium() == Medium::Device;
        let (group, length) = (object.owner.group, object.bytes.len());
        if !self.charge_backing(group, backing, length) {
            let counter = if device { Counter::SwapMax } else { Counter::ZswapMax };
            self.counters.add(record, counter, 1);
            return Err(StoreError::GroupLimit);
        }
        let outgoing = Outgoing { entry: object.owner.entry, bytes: object.bytes };
        let mut handle = [Handle::default()];
        match self.backings.store(self.platform(), (id, backing), &[outgoing], &mut handle) {
            Ok(()) => {
                let counter = if device { Counter::Pswpout } else { Counter::ExternalOut };
                self.counters.add(record, counter, 1);
                let length = length as u16;
                Ok(Place::Backing {
                    device,
                    id,
                    handle: handle[0],
                    length,
                    encoding: object.encoding,
                })
            }
            Err(error) => {
                self.uncharge_backing(group, backing, length);
                count_refusal(&self.counters, record, error);
                Err(StoreError::Full)
            }
        }
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Charges a group for an object in a backing, if it may have one there.
    pub(super) fn charge_backing(
        &self,
        group: GroupId,
        backing: &dyn Backing,
        length: usize,
    ) -> bool {
        let (resource, amount) = backing_charge(backing.medium() == Medium::Device, length);
        self.groups.has_room(group, resource) && self.groups.charge(group, resource, amount)
    }

    /// Takes that back.
    pub(super) fn uncharge_backing(&self, group: GroupId, backing: &dyn Backing, length: usize) {
        let (resource, amount) = backing_charge(backing.medium() == Medium::Device, length);
        self.groups.uncharge(group, resource, amount);
    }
}

impl<'a> Object<'a> {
    /// A page as it is.
    pub(super) fn raw(owner: Owner, page: &'a Page) -> Self {
        Self { owner, bytes: &page.0, encoding: Encoding::Raw }
    }
}

/// What an object in a backing is charged as.
pub(super) fn backing_charge(device: bool, length: usize) -> (Resource, u64) {
    if device { (Resource::Swap, PAGE_SIZE as u64) } else { (Resource::Zswap, length as u64) }
}

pub(super) fn count_refusal(counters: &Counters, record: &RecordId, error: BackingError) {
    let counter = match error {
        BackingError::Full => Counter::BackingFull,
        BackingError::Io(_) => Counter::WriteFail,
    };
    counters.add(record, counter, 1);
}
