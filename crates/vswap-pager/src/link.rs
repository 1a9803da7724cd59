//! The member's side of the link to its coordinator: joining the run, and telling the user.

use core::fmt;
use core::sync::atomic::Ordering;

use vswap_core::device::set::DEVICES_MAX;
use vswap_core::group::shared::{GroupIndex, SharedLimits};
use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;
use crate::engine::{Engine, Side};
use crate::lock::SpinLock;
use crate::pages_file::Identity;
use crate::run_page::{MEMBERS_MAX, RUN_PAGE_SIZE, RunPage};
use crate::sys::fd::{self, Fd};
use crate::sys::{Errno, memory, socket, task};
use crate::text::Line;
use crate::wire;

const SIGKILL: u32 = 9;

/// How long the coordinator may take to answer, in milliseconds.
const PATIENCE_MS: i64 = 10_000;

/// Joins the run: hands over the userfaultfd, if there is one, gets the shared memory and the swap devices. Without a
/// coordinator the member has the whole budget to itself.
///
/// # Errors
/// Only if there is no memory for a run page of its own.
pub fn join(engine: &Engine, uffd: Option<i32>) -> Result<Joined, Errno> {
    let socket = engine.config().and_then(|config| match config.socket.as_str() {
        "" => None,
        name => socket::connect(name).ok(),
    });
    if let Some(joined) = socket.and_then(|socket| introduce(engine, socket, uffd)) {
        return Ok(joined);
    }
    // Of the arena: what else is private and anonymous is taken for the program's, and paged.
    let page = Arena.reserve(RUN_PAGE_SIZE, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    share(engine, page.cast().as_ptr(), 0);
    if let (Some(run), Some(config)) = (engine.run_page(), engine.config()) {
        let limits = SharedLimits { memory_max: Some(config.ram), ..SharedLimits::default() };
        run.groups.set_limits(GroupIndex::ROOT, limits);
    }
    Ok(Joined { coordinator: None, devices: [const { None }; DEVICES_MAX] })
}

/// What joining brought.
#[derive(Debug)]
pub struct Joined {
    /// The connection, for the pager.
    pub coordinator: Option<Fd>,
    /// The run's swap devices, by their numbers.
    pub devices: [Option<Fd>; DEVICES_MAX],
}

fn introduce(engine: &Engine, socket: Fd, uffd: Option<i32>) -> Option<Joined> {
    let mut name = [0; 16];
    if let Ok(comm) = fd::open(c"/proc/self/comm", linux_raw_sys::general::O_RDONLY) {
        let len = fd::read(comm.raw(), &mut name).unwrap_or(0);
        name[len.saturating_sub(1)..].fill(0);
    }
    let group = engine.config().map_or(0, |config| config.group);
    let hello = wire::Hello { pid: task::process_id(), group, name };
    socket::send(socket.raw(), &hello.to_bytes(), uffd).ok()?;
    let mut packet = [0; wire::PACKET_MAX];
    let (len, fds) = socket::receive(socket.raw(), &mut packet).ok()?;
    let welcome = wire::Welcome::from_bytes(&packet[..len])?;
    let index = welcome.index as usize;
    let mut fds = fds.into_iter().flatten();
    let page = memory::map_shared(fds.next()?.raw(), RUN_PAGE_SIZE).ok()?;
    if index >= MEMBERS_MAX {
        return None;
    }
    share(engine, page.cast().as_ptr(), index);
    let mut devices = [const { None }; DEVICES_MAX];
    for number in welcome.devices() {
        devices[number] = Some(fds.next()?);
    }
    Some(Joined { coordinator: Some(socket), devices })
}

fn share(engine: &Engine, page: *const RunPage, index: usize) {
    // SAFETY: the mapping is as large as a run page, is never unmapped, and any bytes are valid
    // atomics.
    let run: &'static RunPage = unsafe { &*page };
    engine.join_run(run, &run.members[index]);
}

/// Tells the user one line, through the coordinator: standard error is the program's own. For the
/// pager, whose descriptor the coordinator's is.
pub fn say(engine: &Engine, text: fmt::Arguments<'_>) {
    Message::new(wire::MESSAGE, text).send(engine);
}

#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    line: Line<{ wire::PACKET_MAX - 1 }>,
}

impl Message {
    fn new(kind: u8, text: fmt::Arguments<'_>) -> Self {
        Self { kind, line: Line::format(text) }
    }

    fn send(&self, engine: &Engine) {
        let mut packet = [self.kind; wire::PACKET_MAX];
        let len = 1 + self.line.as_bytes().len();
        packet[1..len].copy_from_slice(self.line.as_bytes());
        // A coordinator that is gone cannot tell anybody anything.
        let _ = socket::send(engine.fds.coordinator.load(Ordering::Relaxed), &packet[..len], None);
    }
}

/// Why a thread of the program is about to end it.
static LAST_WORDS: SpinLock<Option<Message>> = SpinLock::new(None);

/// Says why the program ends. In a thread of the program the coordinator's descriptor would be some
/// file of the program's, so the pager says it there, when it sees the program gone.
fn say_last(engine: &Engine, kind: u8, text: fmt::Arguments<'_>) {
    let message = Message::new(kind, text);
    match engine.side() {
        Side::Pager => message.send(engine),
        Side::Program => *LAST_WORDS.lock() = Some(message),
    }
}

/// Says what a thread of the program left to say. For the pager, behind the program's end.
pub fn say_last_words(engine: &Engine) {
    // The program may have been killed with the lock.
    let message = LAST_WORDS.try_lock().and_then(|mut words| words.take());
    message.inspect(|message| message.send(engine));
}

/// Frees the lock in the child of a fork.
pub fn reset_after_fork() {
    LAST_WORDS.reset_after_fork();
}

/// Says goodbye, so that the end of this connection does not count as the pager's death.
pub fn say_bye(engine: &Engine) {
    let _ = socket::send(engine.fds.coordinator.load(Ordering::Relaxed), &[wire::BYE], None);
}

/// Asks for a file for the pages that a core dump lacks.
pub fn ask_for_pages_file(engine: &Engine, identity: Identity) -> Option<Fd> {
    let coordinator = engine.fds.coordinator.load(Ordering::Relaxed);
    let mut packet = [wire::CORE_DUMPED; 1 + Identity::SIZE];
    packet[1..].copy_from_slice(&identity.to_bytes());
    socket::send(coordinator, &packet, None).ok()?;
    // Swap devices that were added meanwhile come first.
    loop {
        if !matches!(fd::wait_readable([coordinator], PATIENCE_MS), Ok([true])) {
            return None;
        }
        let mut packet = [0; wire::PACKET_MAX];
        let (len, fds) = socket::receive_now(coordinator, &mut packet).ok()?;
        match packet[..len] {
            [] => return None,
            [wire::CORE_DUMPED] => return fds.into_iter().flatten().next(),
            _ => {}
        }
    }
}

/// Says what became of these pages.
pub fn say_core_saved(engine: &Engine, saved: wire::CoreSaved) {
    let coordinator = engine.fds.coordinator.load(Ordering::Relaxed);
    let _ = socket::send(coordinator, &saved.to_bytes(), None);
}

/// Says that a page is lost.
pub fn say_lost_page(engine: &Engine, address: usize) {
    say(
        engine,
        format_args!(
            "the page at {address:#x} of process {} could not be restored; \
             using it raises SIGBUS",
            engine.program.load(Ordering::Relaxed)
        ),
    );
}

/// Ends the program because its data does not fit, with one line that says so.
pub fn end_out_of_memory(engine: &Engine, text: fmt::Arguments<'_>) -> ! {
    say_last(engine, wire::OUT_OF_MEMORY, text);
    end_program(engine)
}

/// Ends the program because going on could give it wrong data.
pub fn die(engine: &Engine, reason: &str) -> ! {
    let program = engine.program.load(Ordering::Relaxed);
    say_last(engine, wire::MESSAGE, format_args!("process {program} was ended: {reason}"));
    end_program(engine)
}

/// Ends the program because the engine found itself broken.
pub fn end_broken(engine: &Engine, what: fmt::Arguments<'_>) -> ! {
    let program = engine.program.load(Ordering::Relaxed);
    let text = format_args!("process {program} was ended by an error in vswap: {what}");
    say_last(engine, wire::MESSAGE, text);
    end_program(engine)
}

fn end_program(engine: &Engine) -> ! {
    task::kill(engine.program.load(Ordering::Relaxed), SIGKILL);
    loop {
        // The pager goes when it sees that the program is gone; a thread of the program does not
        // return from the kill.
        task::sleep_us(10_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::engine;

    #[test]
    fn a_thread_of_the_program_leaves_its_last_words_to_the_pager() {
        // Number 0 is standard input here, as it may be anything in the program.
        engine().fds.coordinator.store(0, Ordering::Relaxed);
        say_last(engine(), wire::MESSAGE, format_args!("process 7 was ended"));
        let message = LAST_WORDS.lock().take().expect("kept");
        assert_eq!(
            (message.kind, message.line.as_bytes()),
            (wire::MESSAGE, &b"process 7 was ended"[..])
        );
    }
}
