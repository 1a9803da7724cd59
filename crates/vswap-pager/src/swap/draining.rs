//! swapon and swapoff while the program runs, as the coordinator says in the run page.
//!
//! The watcher follows what devices the run has. The reclaimer moves objects off those that are to go: it
//! walks the descriptors, and no page table is touched. When a device holds nothing it is forgotten
//! here; the coordinator sees that, and closes it when no member has it any more.

use core::sync::atomic::{AtomicU32, Ordering};

use vswap_core::Cursor;
use vswap_core::device::set::DEVICES_MAX;

use crate::context::Context;
use crate::engine::Engine;
use crate::lock::SpinLock;
use crate::run_devices::DeviceState;
use crate::run_page::Member;
use crate::swap::{SWAP_DEVICES, SwapDevice, writeback};
use crate::sys::socket;
use crate::wire::{self, NewDevice};

/// Objects that are moved before the reclaimer looks at what else there is to do.
const STEP: usize = 64;

/// Where the walk over the descriptors is, by device.
static AT: [SpinLock<Walk>; DEVICES_MAX] = [const { SpinLock::new(Walk::START) }; DEVICES_MAX];

/// Devices that objects are moved off, one bit each.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy)]
struct Walk {
    cursor: Cursor,
    /// Objects that no other place took since the walk began.
    stuck: u64,
}

impl Walk {
    const START: Self = Self { cursor: Cursor::START, stuck: 0 };
}

/// Frees the locks in the child of a fork, which begins anew.
pub fn reset_after_fork() {
    UNDER_WAY.store(0, Ordering::Relaxed);
    for walk in &AT {
        walk.reset_after_fork();
        *walk.lock() = Walk::START;
    }
}

/// Follows the run page. On the watcher.
pub fn follow(engine: &Engine) {
    let (Some(run), Some(member)) = (engine.run_page(), engine.member()) else { return };
    let mut busy = member.kept_dropped.load(Ordering::Relaxed) != run.devices.kept_dropped();
    for number in 0..DEVICES_MAX {
        let (Some(wanted), Some(device)) = (run.devices.get(number), SWAP_DEVICES.get(number))
        else {
            continue;
        };
        let is_another = device.is_attached() && device.serial() != wanted.serial();
        let state = if is_another || !run.uses(member.group(), wanted) {
            DeviceState::None
        } else {
            wanted.state()
        };
        match (state, device.is_attached()) {
            (DeviceState::On | DeviceState::Draining, false) => receive(engine),
            (DeviceState::On, true) => set_draining(engine, (number, device), false),
            // One that is gone was its parent's, for a child that had nothing there.
            (DeviceState::Draining | DeviceState::None, true) => {
                set_draining(engine, (number, device), true);
                busy = true;
            }
            (DeviceState::None, false) => {}
        }
    }
    publish(member);
    SWAP_DEVICES.look_at_use(engine, run, member);
    if busy {
        engine.mailbox.ring();
    }
}

/// Gives up what resident pages have kept, if the coordinator asked for that. On the reclaimer.
pub fn drop_kept(engine: &Engine, context: &mut Context) {
    let (Some(run), Some(member)) = (engine.run_page(), engine.member()) else { return };
    let asked = run.devices.kept_dropped();
    if member.kept_dropped.load(Ordering::Relaxed) != asked {
        let passage = engine.gate.pass();
        engine.free_kept();
        drop(passage);
        context.idle();
        engine.contexts.idle_shared();
        member.kept_dropped.store(asked, Ordering::Release);
    }
}

/// Takes devices into use that the coordinator has sent.
fn receive(engine: &Engine) {
    let coordinator = engine.fds.coordinator.load(Ordering::Relaxed);
    let mut packet = [0; wire::PACKET_MAX];
    while let Ok((len, fds)) = socket::receive_now(coordinator, &mut packet) {
        let Some(new) = NewDevice::from_bytes(&packet[..len]) else { return };
        let (number, mut fds) = (usize::from(new.number), fds.into_iter().flatten());
        let current = engine.run_page().and_then(|run| run.devices.get(number));
        let is_current = current.is_some_and(|device| device.serial() == new.serial);
        if let (true, Some(fd)) = (is_current, fds.next()) {
            let closed = engine.gate.close();
            // Without memory it is not used here; the coordinator is told so by `publish`.
            SWAP_DEVICES.attach(engine, number, fd.into_raw(), Some(&closed));
        }
    }
}

fn set_draining(engine: &Engine, (number, device): (usize, &SwapDevice), draining: bool) {
    let bit = 1 << number;
    let before = if draining {
        UNDER_WAY.fetch_or(bit, Ordering::AcqRel)
    } else {
        UNDER_WAY.fetch_and(!bit, Ordering::AcqRel)
    };
    if (before & bit != 0) != draining {
        *AT[number].lock() = Walk::START;
        SWAP_DEVICES.set_draining(engine, number, device, draining);
    }
}

/// Says what this process has on each device.
fn publish(member: &Member) {
    let mut attached = 0;
    for (number, walk) in AT.iter().enumerate() {
        let Some(device) = SWAP_DEVICES.get(number) else { continue };
        attached |= u32::from(device.is_attached()) << number;
        member.on_device[number].store(device.used(), Ordering::Relaxed);
        member.stuck_on_device[number].store(walk.lock().stuck, Ordering::Relaxed);
    }
    member.devices.store(attached, Ordering::Release);
}

/// Moves some objects off the devices that are to go; gives whether there is more to do. On the
/// reclaimer.
pub fn step(engine: &Engine, context: &mut Context) -> bool {
    if UNDER_WAY.load(Ordering::Acquire) == 0 {
        return false;
    }
    let mut goes_on = false;
    for (number, device) in SWAP_DEVICES.all() {
        if UNDER_WAY.load(Ordering::Acquire) & (1 << number) != 0 {
            goes_on |= drain(engine, context, number, device);
        }
    }
    goes_on
}

fn drain(
    engine: &Engine,
    context: &mut Context,
    number: usize,
    device: &'static SwapDevice,
) -> bool {
    writeback::make_room(engine, context);
    let _passage = engine.gate.pass();
    let walk = *AT[number].lock();
    let id = device.backing();
    let Ok(done) = engine.space.rehome(&mut context.worker, id, walk.cursor, STEP) else {
        return false;
    };
    let stuck = walk.stuck + done.failed as u64;
    let next = Walk { cursor: done.next.unwrap_or(Cursor::START), stuck };
    if done.next.is_some() {
        *AT[number].lock() = next;
        return true;
    }
    // Who reads from it is not waited for here: there is another look.
    if !device.is_held() && engine.space.remove_backing(id).is_ok() {
        while device.discard() {}
        UNDER_WAY.fetch_and(!(1 << number), Ordering::AcqRel);
        device.detach();
        return false;
    }
    // What was stuck is tried again at the next look, 10 ms from now; so is what was stored behind the
    // walk just before the device was closed.
    *AT[number].lock() = Walk { stuck, ..Walk::START };
    false
}
