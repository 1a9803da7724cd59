//! The members' end of the coordinator: who they are, what they say, and how they end.
//!
//! See `vswap_pager::wire` for the protocol. A connection goes through two stages. Before its hello
//! it is a stranger who only proved to be the same user. The hello makes it a member: it gets a
//! slot of the run page, and its userfaultfd is kept here, so that evicted pages wait instead of
//! reading as zeros if the pager dies. The slot is free again when the connection is at its end,
//! because only then nobody counts in it any more.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    listen, recvmsg, sendmsg, socket_with, sockopt,
};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use vswap_core::group::shared::GroupIndex;
use vswap_pager::config::SocketName;
use vswap_pager::pages_file::Identity;
use vswap_pager::run_devices::RunDevice;
use vswap_pager::run_page::{MEMBERS_MAX, Member, MemberState, RunPage};
use vswap_pager::wire::{self, CoreSaved, Hello, NewDevice, Unmanaged, Welcome};

use super::groups::Groups;
use super::swap::{Device, Devices};
use super::totals::Totals;
use crate::args::SwapPlace;
use crate::core_fix::place::PagesFile;
use crate::refusal::{Refusal, reason};

mod nested_runs;

/// How long a program may take to be seen dead after its pager is: they often die of one cause, and
/// then there is nothing to report.
const DYING: Duration = Duration::from_millis(50);

/// Something the rest of the coordinator has to know.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// A line for the user.
    Line(String),
    /// vswap ended, or is about to end, this process; the line says why.
    Ended(Pid, String),
}

/// A member, unlike its slot and its process ID never another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberId(u64);

/// A member as others in the coordinator see it.
pub struct MemberView<'a> {
    pub id: MemberId,
    pub pid: u32,
    pub program: &'a str,
    pub slot: &'static Member,
}

/// All connections, and the groups.
pub struct Members {
    listener: OwnedFd,
    name: SocketName,
    page: &'static RunPage,
    memfd: OwnedFd,
    devices: Devices,
    connections: Vec<Connection>,
    groups: Groups,
    joined: u64,
    /// What was said of programs that cannot be paged.
    told: Vec<Unmanaged>,
}

struct Connection {
    socket: OwnedFd,
    pid: Pid,
    pidfd: OwnedFd,
    stage: Stage,
}

enum Stage {
    Stranger,
    /// A `vswap run` in this one.
    Nested {
        /// Of its group.
        token: u32,
        /// It waits for the account of its group.
        asks_account: bool,
    },
    Member {
        id: MemberId,
        index: usize,
        program: String,
        said_bye: bool,
        /// Only held.
        _uffd: Option<OwnedFd>,
        /// Its program left a core dump, and what that lacks is being written here.
        pages: Option<PagesFile>,
    },
}

impl Connection {
    fn writes_pages(&self) -> bool {
        matches!(self.stage, Stage::Member { pages: Some(_), .. })
    }
}

/// What came out of reading a connection.
enum Received {
    Packet(Vec<u8>, Option<OwnedFd>),
    Nothing,
    End,
}

impl Members {
    /// Listens on a socket with a name that nobody can guess.
    pub fn listen(
        page: &'static RunPage,
        memfd: OwnedFd,
        devices: Devices,
        group: String,
    ) -> anyhow::Result<Self> {
        let text = format!("vswap-{}-{:016x}", std::process::id(), random()?);
        let name = SocketName::new(&text).context("the socket's name is too long")?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context("cannot create a socket")?;
        bind(&listener, &SocketAddrUnix::new_abstract_name(text.as_bytes())?)
            .context("cannot bind the socket")?;
        listen(&listener, MEMBERS_MAX as i32).context("cannot listen on the socket")?;
        let (connections, groups) = (Vec::new(), Groups::new(page, group));
        let told = Vec::new();
        Ok(Self { listener, name, page, memfd, devices, connections, groups, joined: 0, told })
    }

    /// Where members connect to.
    pub fn socket_name(&self) -> SocketName {
        self.name
    }

    /// The groups of the run.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// How many processes have had a pager.
    pub fn joined(&self) -> u64 {
        self.joined
    }

    /// How many have one now.
    pub fn live(&self) -> usize {
        self.slots().count()
    }

    /// Sums over all members, ended and live.
    pub fn totals(&mut self) -> Totals {
        self.totals_of(GroupIndex::ROOT)
    }

    /// The same, of a group with its descendants.
    pub fn totals_of(&mut self, group: GroupIndex) -> Totals {
        self.groups.totals(group)
    }

    /// Takes note of what is held now, for the peaks.
    pub fn sample(&mut self) {
        let all: Vec<GroupIndex> = self.groups.iter().map(|group| group.index).collect();
        for group in all {
            self.groups.totals(group);
        }
    }

    /// The live ones.
    pub fn views(&self) -> impl Iterator<Item = MemberView<'_>> {
        let page = self.page;
        self.connections.iter().filter_map(|connection| match &connection.stage {
            Stage::Member { id, index, program, .. } => {
                let pid = connection.pid.as_raw_nonzero().get() as u32;
                Some(MemberView { id: *id, pid, program, slot: &page.members[*index] })
            }
            Stage::Stranger | Stage::Nested { .. } => None,
        })
    }

    /// Bytes that live members have on a swap device.
    pub fn used_on(&self, device: usize) -> u64 {
        self.views().map(|view| view.slot.on_device[device].load(Ordering::Relaxed)).sum()
    }

    /// Opens one more swap device and hands it to the members.
    pub fn add_device(&mut self, place: &SwapPlace) -> Result<&Device, Refusal> {
        let number = self.devices.add(place)?.number;
        let file: Vec<_> = self.devices.file(number).into_iter().collect();
        let serial = self.page.devices.get(number).map_or(0, RunDevice::serial);
        let packet = NewDevice { number: number as u8, serial }.to_bytes();
        for connection in &self.connections {
            let Stage::Member { index, .. } = connection.stage else { continue };
            let group = self.page.members[index].group();
            let uses = |device| self.page.uses(group, device);
            if self.page.devices.get(number).is_some_and(uses) {
                // One that is gone is found at its end of file.
                let _ = send(&connection.socket, &packet, &file);
            }
        }
        let mut all = self.devices.iter();
        Ok(all.find(|device| device.number == number).expect("it was just added"))
    }

    /// Whether no member, nor a child that is about to be one, uses a device.
    pub fn has_left(&self, device: usize) -> bool {
        let uses =
            |view: MemberView<'_>| view.slot.devices.load(Ordering::Acquire) & (1 << device) != 0;
        !self.views().any(uses) && self.devices.is_free(device)
    }

    /// Objects that members tried in vain to move off a device.
    pub fn stuck_on(&self, device: usize) -> u64 {
        self.views().map(|view| view.slot.stuck_on_device[device].load(Ordering::Relaxed)).sum()
    }

    /// Closes a device that has been left.
    pub fn remove_device(&mut self, device: usize) {
        self.devices.remove(device);
    }

    /// The swap devices of the run.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.connections.iter().map(|c| c.socket.as_fd()))
    }

    /// Takes what has arrived. `ready` answers [`descriptors`](Self::descriptors), in its order.
    pub fn serve(&mut self, ready: &[bool]) -> Vec<News> {
        let mut news = Vec::new();
        // From the back, so that removing one leaves the places of those still to come.
        for index in (0..self.connections.len()).rev() {
            if ready.get(index + 1) == Some(&true) && !self.read(index, &mut news) {
                let connection = self.connections.swap_remove(index);
                news.extend(self.end(&connection));
            }
        }
        if ready.first() == Some(&true) {
            self.accept();
        }
        self.look_after_groups();
        news
    }

    /// Waits until the pagers of processes that ended are gone too, and have counted all there is.
    pub fn settle(&mut self, patience: Duration) -> Vec<News> {
        let deadline = std::time::Instant::now() + patience;
        let mut news = Vec::new();
        loop {
            let dead: Vec<bool> =
                self.connections.iter().map(|c| is_dead(&c.pidfd, Duration::ZERO)).collect();
            let mut left = deadline.saturating_duration_since(std::time::Instant::now());
            if self.connections.iter().any(Connection::writes_pages) {
                // As a parent waits for the kernel to write the core. A pager that gets stuck is ended.
                left = left.max(patience);
            }
            if !dead.contains(&true) || left.is_zero() {
                return news;
            }
            let mut ready = vec![false];
            let mut fds: Vec<PollFd<'_>> =
                self.connections.iter().map(|c| PollFd::new(&c.socket, PollFlags::IN)).collect();
            let _ = poll(&mut fds, Some(&timespec(left)));
            ready.extend(fds.iter().map(|fd| !fd.revents().is_empty()));
            news.extend(self.serve(&ready));
        }
    }

    fn slots(&self) -> impl Iterator<Item = usize> {
        self.connections.iter().filter_map(|connection| match connection.stage {
            Stage::Member { index, .. } => Some(index),
            Stage::Stranger | Stage::Nested { .. } => None,
        })
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            // Members share the swap devices and the run page: neither is for another user.
            let Ok(peer) = sockopt::socket_peercred(&socket) else { continue };
            if peer.uid != geteuid() {
                continue;
            }
            let Ok(pidfd) = pidfd_of(&socket, peer.pid) else { continue };
            let stage = Stage::Stranger;
            self.connections.push(Connection { socket, pid: peer.pid, pidfd, stage });
        }
    }

    /// Reads all packets of a connection; false if it is at its end.
    fn read(&mut self, index: usize, news: &mut Vec<News>) -> bool {
        loop {
            match receive(&self.connections[index].socket) {
                Received::Nothing => return true,
                Received::End => return false,
                Received::Packet(bytes, fd) => {
                    if !self.packet(index, &bytes, fd, news) {
                        return false;
                    }
                }
            }
        }
    }

    /// Acts on one packet; false if the connection is to be closed.
    fn packet(
        &mut self,
        index: usize,
        bytes: &[u8],
        fd: Option<OwnedFd>,
        news: &mut Vec<News>,
    ) -> bool {
        let connection = &mut self.connections[index];
        let pid = connection.pid;
        match (&mut connection.stage, bytes.first()) {
            (Stage::Stranger, Some(&wire::HELLO)) => match Hello::from_bytes(bytes) {
                Some(hello) => return self.welcome(index, &hello, fd),
                None => return false,
            },
            (Stage::Stranger, Some(&wire::UNMANAGED)) => {
                news.extend(self.tell_unmanaged(&bytes[1..]));
                return false;
            }
            (Stage::Stranger | Stage::Nested { .. }, Some(&wire::NESTED)) => {
                return self.hear_nested(index, &bytes[1..], fd);
            }
            (Stage::Member { said_bye, .. }, Some(&wire::BYE)) => *said_bye = true,
            (Stage::Member { .. }, Some(&wire::MESSAGE)) => {
                news.push(News::Line(text(&bytes[1..])));
            }
            (Stage::Member { pages, program, .. }, Some(&wire::CORE_DUMPED)) => {
                let Some(identity) = bytes[1..].try_into().ok().map(Identity::from_bytes) else {
                    return false;
                };
                match PagesFile::create(identity) {
                    Ok(file) => *pages = Some(file),
                    Err(error) => {
                        let line = lacks(program, pid, format!("they cannot be kept: {error:#}"));
                        news.push(News::Line(line));
                    }
                }
                let files: Vec<_> = pages.iter().map(|pages| pages.file.as_fd()).collect();
                // One that is gone is found at its end of file.
                let _ = send(&connection.socket, &[wire::CORE_DUMPED], &files);
            }
            (Stage::Member { pages, program, .. }, Some(&wire::CORE_SAVED)) => {
                let (Some(file), Some(saved)) = (pages.take(), CoreSaved::from_bytes(bytes)) else {
                    return false;
                };
                news.extend(keep(file, saved).map(|what| News::Line(lacks(program, pid, what))));
            }
            (Stage::Member { .. }, Some(&wire::OUT_OF_MEMORY)) => {
                news.push(News::Ended(pid, text(&bytes[1..])));
            }
            _ => return false,
        }
        true
    }

    /// A line about a program that cannot be paged, if it is the first of its kind.
    fn tell_unmanaged(&mut self, bytes: &[u8]) -> Option<News> {
        let (&kind, path) = bytes.split_first()?;
        let kind = *Unmanaged::ALL.get(usize::from(kind))?;
        if self.told.contains(&kind) {
            return None;
        }
        self.told.push(kind);
        let what = match kind {
            Unmanaged::Static => "is a static program",
            Unmanaged::Foreign => "is a 32-bit or foreign program",
            Unmanaged::Privileged => "gains privileges",
        };
        let path = text(path);
        Some(News::Line(format!(
            "{path} {what}: it runs unmanaged, beyond the budget; others of its kind are not named"
        )))
    }

    /// Makes a member of a stranger. If there is no slot the connection is closed, and the process
    /// goes on without a coordinator.
    fn welcome(&mut self, connection: usize, hello: &Hello, uffd: Option<OwnedFd>) -> bool {
        let taken: Vec<usize> = self.slots().collect();
        let Some(index) = (0..MEMBERS_MAX).find(|index| !taken.contains(index)) else {
            return false;
        };
        let connection = &mut self.connections[connection];
        let member = &self.page.members[index];
        let group = self.groups.index_of(hello.group);
        member.reset();
        member.set_group(group);
        member.pid.store(connection.pid.as_raw_nonzero().get() as u32, Ordering::Relaxed);
        // Others see the slot only with the counters of its new owner.
        member.state.store(MemberState::Live as u32, Ordering::Release);
        self.page.members_used.fetch_max(index as u32 + 1, Ordering::AcqRel);
        let program = text(hello.name.split(|&byte| byte == 0).next().unwrap_or_default());
        self.joined += 1;
        self.groups.note_joined(group);
        let id = MemberId(self.joined);
        connection.stage =
            Stage::Member { id, index, program, said_bye: false, _uffd: uffd, pages: None };
        let (devices, files) = self.devices.for_member(|device| self.page.uses(group, device));
        let descriptors: Vec<_> = std::iter::once(self.memfd.as_fd()).chain(files).collect();
        let welcome = Welcome { index: index as u32, devices }.to_bytes();
        // A peer that is gone already is found at its end of file.
        let _ = send(&connection.socket, &welcome, &descriptors);
        true
    }

    /// Takes leave of a connection at its end, and ends the program if its pager died.
    fn end(&mut self, connection: &Connection) -> Option<News> {
        let (index, program, said_bye) = match &connection.stage {
            Stage::Member { index, program, said_bye, .. } => (index, program, said_bye),
            Stage::Nested { token, .. } => {
                self.groups.let_go(*token);
                return None;
            }
            Stage::Stranger => return None,
        };
        let orphaned =
            !said_bye && !is_dead(&connection.pidfd, DYING) && has_memory(connection.pid);
        if orphaned {
            // It cannot refuse, and it cannot be another process: the pidfd names it for good.
            let _ = pidfd_send_signal(&connection.pidfd, Signal::KILL);
        }
        let member = &self.page.members[*index];
        self.groups.harvest(member);
        self.devices.release(*index);
        member.state.store(MemberState::Ended as u32, Ordering::Release);
        orphaned.then(|| {
            let pid = connection.pid;
            let line = format!(
                "the pager of {program} (pid {pid}) died; the program was ended, since its swapped-out memory is lost",
                pid = pid.as_raw_nonzero()
            );
            News::Ended(pid, line)
        })
    }
}

/// A line about a core dump.
fn lacks(program: &str, pid: Pid, what: impl std::fmt::Display) -> String {
    let pid = pid.as_raw_nonzero();
    format!("the core dump of {program} (pid {pid}) lacks the pages that were swapped out; {what}")
}

/// Keeps pages that were written; what there is to say of them, if there are any.
fn keep(file: PagesFile, saved: CoreSaved) -> Option<String> {
    if saved.error != 0 {
        let error = std::io::Error::from_raw_os_error(saved.error);
        return Some(format!("they could not be kept: {}", reason(error)));
    }
    if saved.pages == 0 && saved.lost == 0 {
        return None;
    }
    if let Err(error) = file.publish() {
        return Some(format!("they could not be kept: {error:#}"));
    }
    let lost = match saved.lost {
        0 => String::new(),
        lost => format!("; {lost} more could not be read"),
    };
    Some(format!("'vswap core-fix CORE' puts all {} in{lost}", saved.pages))
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)
        .context("cannot read /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

fn is_dead(pidfd: &OwnedFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&timespec(patience))).is_ok_and(|ready| ready > 0)
}

/// Whether a process still has memory, in any of its threads: what has none can read nothing wrong.
/// The first process of a namespace kills all others there when it ends, its pager too, and is a
/// zombie only after the last of them is gone.
fn has_memory(process: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()));
    tasks.into_iter().flatten().flatten().any(|task| {
        let sizes = std::fs::read_to_string(task.path().join("statm"));
        sizes.is_ok_and(|sizes| !sizes.starts_with("0 "))
    })
}

/// The process at the other end. By its socket where the kernel can (6.5), which no reuse of process
/// IDs can deceive.
fn pidfd_of(socket: &OwnedFd, pid: Pid) -> Result<OwnedFd, Errno> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut pidfd: libc::c_int = -1;
    let mut size = size_of_val(&pidfd) as libc::socklen_t;
    // SAFETY: the option is an int, written to `pidfd`; a success makes it a new descriptor.
    unsafe {
        let socket = socket.as_raw_fd();
        let value = (&raw mut pidfd).cast();
        if libc::getsockopt(socket, libc::SOL_SOCKET, SO_PEERPIDFD, value, &raw mut size) == 0 {
            return Ok(OwnedFd::from_raw_fd(pidfd));
        }
    }
    pidfd_open(pid, PidfdFlags::empty())
}

fn receive(socket: &OwnedFd) -> Received {
    let mut bytes = vec![0; wire::PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) if message.bytes == 0 => Received::End,
        Ok(message) => {
            let length = message.bytes;
            let fd = control.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            bytes.truncate(length);
            Received::Packet(bytes, fd)
        }
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::End,
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_has_no_memory() {
        assert!(has_memory(rustix::process::getpid()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        // Not reaped yet: it still has its process ID.
        assert!(is_dead(&pidfd_open(pid, PidfdFlags::empty()).unwrap(), Duration::from_secs(60)));
        assert!(!has_memory(pid));
        child.wait().unwrap();
    }
}
