//! Backings for tests: the whole of what a new kind of place has to bring.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use vswap_core::{
    Backing, BackingError, Form, Handle, Medium, Outgoing, PAGE_SIZE, Relocation, Room, SwapEntry,
};

/// RAM with a capacity of its own that can shrink, like compressed CXL memory.
#[derive(Debug, Default)]
pub struct RamBacking {
    objects: Mutex<Objects>,
    capacity: AtomicU64,
}

#[derive(Debug, Default)]
struct Objects {
    bytes: HashMap<u32, (SwapEntry, Vec<u8>)>,
    next: u32,
    used: u64,
}

impl RamBacking {
    /// A backing that lives as long as the process.
    pub fn new(capacity: u64) -> &'static Self {
        Box::leak(Box::new(Self { capacity: capacity.into(), ..Self::default() }))
    }

    /// Changes the capacity. What is beyond it stays until the space moves it.
    pub fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes, Ordering::Relaxed);
    }

    /// Damages an object, and says whether there was one.
    pub fn damage_one(&self) -> bool {
        let mut objects = self.objects.lock().unwrap();
        objects.bytes.values_mut().next().map(|(_, object)| object.fill(0xff)).is_some()
    }
}

impl Backing for RamBacking {
    fn medium(&self) -> Medium {
        Medium::Ram
    }

    fn form(&self) -> Form {
        Form::Objects
    }

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        let data = object.bytes;
        let mut objects = self.objects.lock().unwrap();
        if objects.used + data.len() as u64 > self.capacity.load(Ordering::Relaxed) {
            return Err(BackingError::Full);
        }
        let handle = Handle::new(objects.next).ok_or(BackingError::Full)?;
        objects.next += 1;
        objects.used += data.len() as u64;
        objects.bytes.insert(handle.raw(), (object.entry, data.to_vec()));
        Ok(handle)
    }

    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        let objects = self.objects.lock().unwrap();
        let (owner, object) = objects.bytes.get(&handle.raw()).ok_or(BackingError::Io(2))?;
        assert_eq!(
            *owner, entry,
            "the space asks for an object by the entry that it stored it for"
        );
        assert_eq!(object.len(), out.len(), "the space asks for an object as it was stored");
        out.copy_from_slice(object);
        Ok(())
    }

    fn free(&self, handle: Handle, length: usize) {
        let mut objects = self.objects.lock().unwrap();
        let (_, object) = objects.bytes.remove(&handle.raw()).expect("freed once");
        assert_eq!(object.len(), length, "the space frees an object as it was stored");
        objects.used -= length as u64;
    }

    fn room(&self) -> Room {
        let capacity = self.capacity.load(Ordering::Relaxed);
        Room { capacity, used: self.objects.lock().unwrap().used, metadata: 0 }
    }
}

/// A page or an object, and whose it is.
type Slot = (SwapEntry, Vec<u8>);

/// A swap device of slots for pages, or for objects, that fails on demand.
#[derive(Debug)]
pub struct TestDevice {
    form: Form,
    slots: Mutex<Vec<Option<Slot>>>,
    /// Slots that may be in use.
    pub slots_max: AtomicUsize,
    /// Stores that succeed before the device says that it is full.
    pub stores_left: AtomicUsize,
    /// Stores fail with an I/O error.
    pub fail_stores: AtomicBool,
    /// Loads fail with an I/O error.
    pub fail_loads: AtomicBool,
}

impl TestDevice {
    /// A device for pages that lives as long as the process.
    pub fn new(slots: usize) -> &'static Self {
        Self::of(Form::Pages, slots)
    }

    /// A device for what is of this form.
    pub fn of(form: Form, slots: usize) -> &'static Self {
        Box::leak(Box::new(Self {
            form,
            slots: Mutex::default(),
            slots_max: slots.into(),
            stores_left: usize::MAX.into(),
            fail_stores: false.into(),
            fail_loads: false.into(),
        }))
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.slots.lock().unwrap().iter().flatten().count()
    }
}

impl Backing for TestDevice {
    fn medium(&self) -> Medium {
        Medium::Device
    }

    fn form(&self) -> Form {
        self.form
    }

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        let data = object.bytes;
        assert!(
            self.form == Form::Objects || data.len() == PAGE_SIZE,
            "a device for pages gets pages"
        );
        if self.fail_stores.load(Ordering::Relaxed) {
            return Err(BackingError::Io(5));
        }
        let left = self.stores_left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(1) else { return Err(BackingError::Full) };
        self.stores_left.store(left, Ordering::Relaxed);
        let mut slots = self.slots.lock().unwrap();
        let used = slots.iter().flatten().count();
        if used >= self.slots_max.load(Ordering::Relaxed) {
            return Err(BackingError::Full);
        }
        let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        if free == slots.len() {
            slots.push(None);
        }
        slots[free] = Some((object.entry, data.to_vec()));
        Ok(Handle::new(free as u32).expect("few slots"))
    }

    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        if self.fail_loads.load(Ordering::Relaxed) {
            return Err(BackingError::Io(5));
        }
        let slots = self.slots.lock().unwrap();
        let (owner, page) = slots[handle.raw() as usize].as_ref().expect("the slot is in use");
        assert_eq!(*owner, entry, "the space asks for a page by the entry that it stored it for");
        assert_eq!(page.len(), out.len(), "the space asks for an object as it was stored");
        out.copy_from_slice(page);
        Ok(())
    }

    fn free(&self, handle: Handle, _length: usize) {
        let freed = self.slots.lock().unwrap()[handle.raw() as usize].take();
        assert!(freed.is_some(), "a slot is freed once");
    }

    fn room(&self) -> Room {
        let capacity = (self.slots_max.load(Ordering::Relaxed) * PAGE_SIZE) as u64;
        Room { capacity, used: (self.used() * PAGE_SIZE) as u64, metadata: 0 }
    }
}

/// Of a device for tests every object is to be moved.
impl Relocation for TestDevice {
    fn is_leaving(&self, _: Handle) -> bool {
        true
    }

    fn store_elsewhere(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        self.store_many(objects, handles)
    }
}
