//! The whole path from an entry to a file and back, with a device that fails as it is told.
//!
//! The space and the devices are those of the process, so the tests take turns. Faults belong to
//! the thread whose transfers they hit.

extern crate std;

mod batches;
mod compaction;
mod faults;
mod fetches;
mod lost_writes;
mod machine;

use std::boxed::Box;
use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::{env, format, fs, thread_local};

use vswap_core::device::object::{KEY, Protection};
use vswap_core::device::space::Geometry;
use vswap_core::group::shared::GroupIndex;

use super::*;
use crate::io::faulty::FaultyIo;
use crate::io::{Choice, DeviceIo, DirectBuffers, PlainIo, ThreadIo};
use crate::run_page::RunPage;
use crate::sys::task;

/// The number would be some file of the program's in a child that does not get the device.
#[test]
fn a_child_does_not_take_its_parents_descriptor_for_its_own() {
    static DEVICE: SwapDevice = SwapDevice::new(7);
    DEVICE.fd(Side::Pager).store(0, Ordering::Relaxed);
    DEVICE.reset_after_fork();
    assert_eq!(DEVICE.fd(Side::Pager).load(Ordering::Relaxed), NO_FD);
}

#[test]
fn refusals_survive_as_words() {
    for refusal in [Refusal::Full, Refusal::NoSpace, Refusal::Failed(5)] {
        assert_eq!(Refusal::from_word(refusal.to_word()), Some(refusal));
    }
    assert_eq!(Refusal::from_word(NOT_REFUSED), None);
}

#[test]
fn only_an_error_of_the_device_is_for_good() {
    assert_eq!(Refusal::Failed(5).error(), BackingError::Io(5));
    assert_eq!(Refusal::NoSpace.error(), BackingError::Full);
    assert_eq!(Refusal::of(IoError::Short(512)), Refusal::NoSpace);
}

#[test]
fn a_device_has_the_memory_of_the_numbers_earlier_one() {
    let mut run = Run::begin();
    let mut attach = || {
        let device = run.attach(0, Geometry::new(9, 8192).expect("sizes"), false);
        let entry = SwapEntry::from_raw(1).expect("an entry");
        let handle = device.store(Outgoing { entry, bytes: &[7; 900] }).expect("room");
        device.free(handle, 900);
        let attached = ptr::from_ref(device.attached().expect("it is attached"));
        run.detach(0, device);
        attached
    };
    let first = attach();
    for _ in 0..20 {
        assert_eq!(attach(), first);
    }
}

type Faulty = FaultyIo<ThreadIo<'static>>;

thread_local! {
    static FAULTS: RefCell<Option<Faulty>> = const { RefCell::new(None) };
}

/// What devices of a test do their transfers with: the thread's faults, and one engine or the other.
pub struct FaultyThreadIo(PlainIo<'static>);

impl FaultyThreadIo {
    pub const fn new(buffers: &'static DirectBuffers) -> Self {
        Self(PlainIo::new(buffers))
    }
}

impl DeviceIo<'static> for FaultyThreadIo {
    fn buffers(&self) -> &'static DirectBuffers {
        self.0.buffers()
    }

    fn transfer(&mut self, direction: Direction, requests: &mut [Request<'_, 'static>]) {
        FAULTS.with_borrow_mut(|faults| match faults {
            Some(faulty) => faulty.transfer(direction, requests),
            None => self.0.transfer(direction, requests),
        });
    }

    fn can_time_out(&self) -> bool {
        self.0.can_time_out()
    }

    fn settle(&mut self, report: &mut dyn FnMut(Late)) -> usize {
        self.0.settle(report)
    }
}

/// Has this thread's transfers fail as told, from now on; gives how often they did until now.
fn set_faults(told: Option<impl FnOnce(Faulty) -> Faulty>) -> u64 {
    static TOLD: AtomicU32 = AtomicU32::new(0);
    let buffers = SWAP_DEVICES.buffers().expect("a device is attached");
    let even = TOLD.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
    let choice = if even { Choice::Best } else { Choice::Plain };
    let io = ThreadIo::new(buffers, choice, 600_000_000_000);
    let before = FAULTS.replace(told.map(|told| told(FaultyIo::new(io))));
    before.map_or(0, |before| before.injected())
}

/// No faults from now on.
fn end_faults() -> u64 {
    set_faults(None::<fn(Faulty) -> Faulty>)
}

/// A turn with the devices of the process, of which there are none at first.
struct Run {
    page: &'static RunPage,
    files: [Option<File>; 2],
    _turn: MutexGuard<'static, ()>,
}

impl Run {
    fn begin() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static BEGIN: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        BEGIN.call_once(|| {
            // SAFETY: all-zero bytes are a valid page.
            let run: Box<RunPage> = unsafe { Box::new_zeroed().assume_init() };
            let run: &'static RunPage = Box::leak(run);
            run.devices.protect([7; KEY], Protection::Checked);
            engine().join_run(run, &run.members[3]);
            engine().pager.store(task::process_id(), Ordering::Relaxed);
            // SAFETY: no device was attached yet, and nobody else seals.
            unsafe { SEALING.begin(&run.devices) };
        });
        let page = engine().run_page().expect("the run was joined");
        Self { page, files: [const { None }; 2], _turn: turn }
    }

    /// Takes a new file of so many blocks into use.
    fn attach(&mut self, number: usize, geometry: Geometry, direct: bool) -> &'static SwapDevice {
        let name = format!("vswap-device-test-{}-{number}", task::process_id());
        let path = env::temp_dir().join(name);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).expect("a new file");
        fs::remove_file(path).expect("our file");
        let direct = direct && io::Geometry::prefer_direct(file.as_raw_fd()).expect("open").direct;
        self.page.devices.get(number).expect("a number").set(
            Description {
                priority: -1,
                geometry,
                has_header: false,
                discard: DiscardBy::PunchHole,
                direct,
            },
            GroupIndex::ROOT,
        );
        let fd = fd::duplicate(file.as_raw_fd(), 0).expect("a descriptor").into_raw();
        let closed = engine().gate.close();
        assert!(SWAP_DEVICES.attach(engine(), number, fd, Some(&closed)));
        drop(closed);
        self.files[number] = Some(file);
        SWAP_DEVICES.get(number).expect("a number")
    }

    /// Takes a device out of use, which holds nothing; and nothing of it is left.
    fn detach(&mut self, number: usize, device: &'static SwapDevice) {
        assert_eq!(device.used(), 0, "a slot was lost");
        SWAP_DEVICES.set_draining(engine(), number, device, true);
        engine().space.remove_backing(device.backing()).expect("it is empty");
        while device.discard() {}
        device.detach();
        let described = self.page.devices.get(number).expect("a number");
        assert_eq!(described.leased(), 0, "a lease was lost");
        described.set_state(crate::run_devices::DeviceState::None);
        self.files[number] = None;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        FAULTS.take();
    }
}
