//! What can go wrong, by operation.

/// The host has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for the virtual swap space's own tables")]
pub struct OutOfMemory;

/// Why a page was not stored. The page is where it was, and so is everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The pool is at its limit, and no other backing took the page.
    #[error("no backing has room for the page")]
    Full,
    /// The limits of the page's group leave no place for it.
    #[error("the limits of the group leave no place for the page")]
    GroupLimit,
    /// All virtual slots are in use.
    #[error("the limit on virtual slots is reached")]
    NoSlots,
    /// There is no memory for the space's own tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The entry is not live, or its page is not in the swap cache.
    #[error("the swap entry is not in the swap cache")]
    NotCached,
}

/// Why a page was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The entry is not live.
    #[error("no such swap entry")]
    NoEntry,
    /// The data is in the resident page alone; the caller has it.
    #[error("the data of the swap entry is in memory")]
    Resident,
    /// A backing could not read the object; it is still there. Carries the error number.
    #[error("a backing failed to read the page (error {0})")]
    Io(i32),
    /// The object did not decode to a page.
    #[error("the stored object is damaged")]
    Corrupt,
    /// The data was given up earlier.
    #[error("the page was lost earlier")]
    Poisoned,
}

/// Why an entry was not counted once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DupError {
    /// The entry is not live.
    #[error("no such swap entry")]
    NoEntry,
    /// There is no memory for a large count.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why an entry was not put into the swap cache, or not taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The entry is not live.
    #[error("no such swap entry")]
    NoEntry,
    /// It is in the swap cache already: another thread has the page, or is reading it.
    #[error("the swap entry is in the swap cache already")]
    Exists,
    /// It is not in the swap cache.
    #[error("the swap entry is not in the swap cache")]
    NotCached,
    /// Only the resident page has the data, and the entry is still counted.
    #[error("the swap entry has no backing yet")]
    NoBacking,
}

/// Why an object was not moved. It is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The object could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The target did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a backing was not added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackingSetError {
    /// There are as many as a descriptor can tell apart.
    #[error("no more backings can be added")]
    TooMany,
    /// There is no such backing.
    #[error("no such backing")]
    Unknown,
    /// It still holds objects.
    #[error("the backing still holds objects")]
    InUse,
}

/// Why a group was not made, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// There are as many as a descriptor can tell apart.
    #[error("no more groups can be made")]
    TooMany,
    /// There is no such group.
    #[error("no such group")]
    Unknown,
    /// It still has entries or children.
    #[error("the group still has entries or children")]
    InUse,
    /// There is no memory for the table of groups.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
