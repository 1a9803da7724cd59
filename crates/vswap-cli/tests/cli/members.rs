//! The coordinator and its members. A member is this test program, run by `vswap run` with a part to
//! play, which it finds in the environment: it talks to the coordinator as an engine does. It is
//! started without `LD_PRELOAD`, or an engine of its own would be one more member: the test harness
//! has threads, and malloc reserves 64 MiB of address space for each.

use std::io::{IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect, recvmsg, send, sendmsg,
    socket,
};
use serde_json::Value;
use vswap_core::device::space::Extent;
use vswap_core::group::shared::GroupIndex;
use vswap_pager::config::{Config, ENV_NAME};
use vswap_pager::run_page::{Counter, Gauge, MEMBERS_MAX, RUN_PAGE_SIZE, RunPage};
use vswap_pager::wire::{BYE, Hello, MESSAGE, OUT_OF_MEMORY, Welcome};

use crate::support::{Output, finish, is_root, skip, vswap, wait};

/// A signal that is sent with a value.
const QUEUED: libc::c_int = 40;

const PART: &str = "VSWAP_TEST_PART";

/// `vswap run` of a member that plays a part.
fn with_member(part: &str, options: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let role = ["members::play", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let without_engine = ["--", "env", "-u", "LD_PRELOAD", own.to_str().unwrap()];
    let program = [&without_engine[..], &role].concat();
    let mut command = vswap(&[&["run", "--ram", "64M"], options, &program].concat());
    command.env(PART, part);
    command
}

fn run_member(part: &str) -> Output {
    finish(&mut with_member(part, &[]))
}

#[test]
#[ignore = "a part that the other tests play in a process of its own"]
fn play() {
    let part = std::env::var(PART).expect("started by another test");
    match part.as_str() {
        "lose the pager" => {
            Member::join(None).expect("welcome");
            std::thread::sleep(Duration::from_secs(60));
        }
        "say bye" => {
            Member::join(None).expect("welcome").say(BYE, "");
            std::thread::sleep(Duration::from_millis(200));
            std::process::exit(3);
        }
        "die with the pager" => {
            let _member = Member::join(None).expect("welcome");
            die();
        }
        "count and die" => {
            let member = Member::join(None).expect("welcome");
            let page = member.map();
            let slot = &page.members[member.index];
            slot.count(Counter::Zswpout, 1234);
            slot.count(Counter::FaultNs, 1_500_000_000);
            slot.set_gauge(Gauge::Resident, 3 << 20);
            slot.set_gauge(Gauge::Resident, 1 << 20);
            slot.set_gauge(Gauge::UnpageableShared, 1 << 20);
            assert_eq!((page.ram(GroupIndex::ROOT), member.descriptors.len()), (64 << 20, 2));
            let device = page.devices.get(0).expect("a number");
            assert_eq!(device.lease(member.index), Some(Extent(0)));
            die();
        }
        "run out of memory" => {
            let member = Member::join(None).expect("welcome");
            member.say(MESSAGE, "something to know\x1b[31m");
            member.say(OUT_OF_MEMORY, "out of everything; give --swap");
            die();
        }
        "receive a value" => receive_a_value(),
        "fill the slots" => fill_the_slots(),
        "keep a descriptor" => keep_a_descriptor(),
        "be another user" => {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            std::process::exit(i32::from(Member::join(None).is_some()));
        }
        _ => panic!("unknown part"),
    }
}

fn die() -> ! {
    crate::support::send(std::process::id() as i32, libc::SIGKILL);
    unreachable!("SIGKILL came back");
}

/// The signal is blocked in all threads, from the start.
fn receive_a_value() {
    // SAFETY: a set that is filled before it is used, and a structure that the call fills.
    let value = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, QUEUED);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        assert_eq!(libc::sigwaitinfo(&raw const set, &raw mut info), QUEUED);
        info.si_value().sival_ptr as usize
    };
    std::process::exit(value as i32);
}

/// One more than there are slots; then all again, in slots that had an owner.
fn fill_the_slots() {
    for _ in 0..2 {
        let members: Vec<Member> =
            std::iter::repeat_with(|| Member::join(None)).take(MEMBERS_MAX + 1).flatten().collect();
        assert_eq!(members.len(), MEMBERS_MAX);
        for member in &members {
            let slot = &member.map().members[member.index];
            assert_eq!(slot.counter(Counter::Faults), 0, "counted by an earlier owner");
            slot.count(Counter::Faults, 1);
            member.say(BYE, "");
        }
    }
    std::process::exit(0);
}

/// The coordinator holds what came with the hello until the connection ends, and no longer.
fn keep_a_descriptor() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let member = Member::join(Some(writer.into())).expect("welcome");
    let at_end = std::thread::spawn(move || reader.read(&mut [0; 1]).unwrap());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!at_end.is_finished(), "the descriptor is closed");
    member.say(BYE, "");
    drop(member);
    assert_eq!(at_end.join().unwrap(), 0);
    std::process::exit(0);
}

struct Member {
    socket: OwnedFd,
    index: usize,
    descriptors: Vec<OwnedFd>,
}

impl Member {
    fn join(uffd: Option<OwnedFd>) -> Option<Self> {
        let config = Config::parse(&std::env::var(ENV_NAME).unwrap()).unwrap();
        let address = SocketAddrUnix::new_abstract_name(config.socket.as_str().as_bytes()).unwrap();
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &address).unwrap();
        let mut name = [0; 16];
        name[..6].copy_from_slice(b"player");
        let hello = Hello { pid: std::process::id(), group: config.group, name }.to_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let passed: Vec<_> = uffd.iter().map(AsFd::as_fd).collect();
        if !passed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&passed));
        }
        // Of no use to a stranger who was turned away already.
        let _ = sendmsg(&socket, &[IoSlice::new(&hello)], &mut control, SendFlags::NOSIGNAL);
        drop(uffd);
        let (index, descriptors) = receive_welcome(&socket)?;
        Some(Self { socket, index, descriptors })
    }

    fn say(&self, kind: u8, text: &str) {
        let packet = [&[kind][..], text.as_bytes()].concat();
        send(&self.socket, &packet, SendFlags::NOSIGNAL).unwrap();
    }

    fn map(&self) -> &'static RunPage {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of the coordinator's memory, which is a RunPage and is never
        // unmapped here; any bytes are a valid one.
        unsafe {
            let flags = MapFlags::SHARED;
            let address = mmap(
                std::ptr::null_mut(),
                RUN_PAGE_SIZE,
                protection,
                flags,
                &self.descriptors[0],
                0,
            );
            &*address.unwrap().cast()
        }
    }
}

fn receive_welcome(socket: &OwnedFd) -> Option<(usize, Vec<OwnedFd>)> {
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let descriptors = control.drain().flat_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    let welcome = Welcome::from_bytes(&bytes[..received.bytes])?;
    Some((welcome.index as usize, descriptors))
}

fn statistics(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_program_whose_pager_died_is_ended() {
    let output = run_member("lose the pager");
    assert_eq!(output.end(), 137, "{output:?}");
    let line = output.line();
    assert!(line.starts_with("vswap: the pager of player (pid "), "{line}");
    assert!(line.ends_with(") died; the program was ended, since its swapped-out memory is lost"));
}

#[test]
fn a_pager_that_takes_its_leave_does_no_harm() {
    let output = run_member("say bye");
    assert_eq!((output.end(), output.stderr.as_str()), (3, ""), "{output:?}");
}

#[test]
fn a_program_that_dies_with_its_pager_is_not_the_pagers_victim() {
    let output = run_member("die with the pager");
    assert_eq!((output.end(), output.stderr.as_str()), (-libc::SIGKILL, ""), "{output:?}");
}

#[test]
fn a_member_speaks_through_vswap_and_its_end_has_a_code() {
    let output = run_member("run out of memory");
    assert_eq!(output.end(), 137, "{output:?}");
    let expected = "vswap: something to know [31m\nvswap: out of everything; give --swap\n";
    assert_eq!(output.stderr, expected);
}

#[test]
fn only_the_process_that_lost_its_pager_is_ended() {
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "env -u LD_PRELOAD {} members::play --exact --ignored --nocapture >/dev/null; echo \"ended with $?\"",
        own.display()
    );
    let mut command = vswap(&["run", "--ram", "64M", "--", "sh", "-c", &script]);
    let output = finish(command.env(PART, "lose the pager"));
    assert_eq!((output.end(), output.stdout.as_str()), (0, "ended with 137\n"), "{output:?}");
    assert!(output.stderr.contains("the pager of player"), "{output:?}");
}

#[test]
fn a_value_that_comes_with_a_signal_gets_through() {
    let mut command = with_member("receive a value", &[]);
    // SAFETY: a set that is filled before it is used; system calls only.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, QUEUED);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Ok(())
        })
    };
    let child = command.spawn().unwrap();
    let value = libc::sigval { sival_ptr: 77 as *mut libc::c_void };
    // SAFETY: a process of ours and plain data.
    unsafe { libc::sigqueue(child.id() as i32, QUEUED, value) };
    assert_eq!(wait(child).end(), 77);
}

#[test]
fn counters_outlive_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let stats = directory.path().join("stats.json");
    let pressure = directory.path().join("pressure");
    let swap = format!("{}:64M", directory.path().display());
    let options = [
        &["--stats", stats.to_str().unwrap(), "--pressure", pressure.to_str().unwrap()][..],
        &["--swap", &swap, "--codec", "zstd:3", "-v"],
    ];
    let output = finish(&mut with_member("count and die", &options.concat()));
    assert_eq!(output.end(), -libc::SIGKILL, "{output:?}");
    assert!(output.stderr.contains("1 of its processes had a pager"), "{output:?}");
    assert!(output.stderr.contains("1234 compressed"), "{output:?}");

    let json = statistics(&stats);
    let expected = serde_json::json!({
        "version": 1, "exit_code": 137, "signal": 9, "pagers": 1, "fault_seconds": 1.5,
        "ram_bytes": 64 << 20, "engine": "handoff", "codec": "zstd:3",
        "swap_limit_bytes": 64 << 20, "swap_leased_bytes": 4 << 20,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&json[key], value, "{key}");
    }
    assert_eq!(json["counters"]["zswpout"], 1234);
    assert_eq!(json["now"]["resident_bytes"], 1 << 20);
    assert_eq!(json["peak"]["resident_bytes"], 3 << 20);
    assert_eq!(json["unpageable"]["shared"], 0.25);
    assert_eq!(json["unpageable"]["locked"], 0.0);
    assert!(json["wall_seconds"].as_f64().is_some_and(|wall| wall > 0.0));
    for counter in Counter::ALL {
        assert!(json["counters"][counter.name()].is_u64(), "{}", counter.name());
    }
    for gauge in Gauge::ALL {
        assert!(json["now"][gauge.name()].is_u64(), "{}", gauge.name());
    }
    let text = std::fs::read_to_string(pressure).unwrap();
    assert!(text.starts_with("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull "), "{text}");
}

#[test]
fn slots_are_reused_and_nothing_that_was_counted_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let output = finish(&mut with_member("fill the slots", &["--stats", path.to_str().unwrap()]));
    assert_eq!(output.end(), 0, "{output:?}");
    let json = statistics(&path);
    assert_eq!(json["counters"]["pgfault"], 2 * MEMBERS_MAX);
    assert_eq!(json["pagers"], 2 * MEMBERS_MAX);
}

#[test]
fn the_coordinator_keeps_what_came_with_the_hello() {
    assert_eq!(run_member("keep a descriptor").end(), 0);
}

#[test]
fn another_user_is_no_member() {
    if !is_root() {
        return skip("another_user_is_no_member", "only root can become another user");
    }
    let output = run_member("be another user");
    assert_eq!((output.end(), output.stderr.as_str()), (0, ""), "{output:?}");
}
