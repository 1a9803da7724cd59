//! What the kernel's userfaultfd offers to this user, found by asking it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use linux_raw_sys::general as uapi;
use rustix::io::Errno;
use rustix::ioctl;
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use vswap_pager::config::Engine;

use crate::refusal::Refusal;

/// A descriptor that only serves faults taken in user mode; rustix has no name for it.
const USER_MODE_ONLY: UserfaultfdFlags =
    UserfaultfdFlags::from_bits_retain(uapi::UFFD_USER_MODE_ONLY);

/// A feature bit, its name and what it is for.
pub struct Feature {
    pub bit: u64,
    pub name: &'static str,
    /// What is lost without it, and the kernel that brought it.
    pub without: &'static str,
    /// Whether `vswap run` needs it.
    pub required: bool,
}

/// The features that matter to the pager.
pub const FEATURES: &[Feature] = &[
    Feature {
        bit: uapi::UFFD_FEATURE_MOVE as u64,
        name: "MOVE",
        without: "pages cannot be taken out safely: use Linux 6.8 or later",
        required: true,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_WP_ASYNC as u64,
        name: "WP_ASYNC",
        without: "unchanged pages are compressed again: use Linux 6.7 or later",
        required: false,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_POISON as u64,
        name: "POISON",
        without: "a damaged page ends the program instead of the access: use Linux 6.6 or later",
        required: false,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_SIGBUS as u64,
        name: "SIGBUS",
        without: "the inline engine cannot work: use Linux 4.14 or later",
        required: false,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_THREAD_ID as u64,
        name: "THREAD_ID",
        without: "the pager cannot follow the faulting thread's CPU: use Linux 4.14 or later",
        required: false,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_EVENT_REMAP as u64,
        name: "EVENT_REMAP",
        without: "a moving mremap would lose data: use Linux 4.11 or later",
        required: true,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_EVENT_REMOVE as u64,
        name: "EVENT_REMOVE",
        without: "MADV_DONTNEED would bring back old data: use Linux 4.11 or later",
        required: true,
    },
    Feature {
        bit: uapi::UFFD_FEATURE_EVENT_UNMAP as u64,
        name: "EVENT_UNMAP",
        without: "munmap would bring back old data: use Linux 4.11 or later",
        required: true,
    },
];

/// How a userfaultfd that also serves faults inside system calls was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// /dev/userfaultfd.
    Device,
    /// The system call.
    Call,
}

/// What was found.
pub struct Probe {
    /// Through /dev/userfaultfd.
    pub device: Result<(), Errno>,
    /// Through the system call, for any fault.
    pub call: Result<(), Errno>,
    /// Through the system call, for faults in user mode only.
    pub user_mode_only: Result<(), Errno>,
    /// Feature bits of the best of these.
    pub features: u64,
    /// Whether fork events, which are a privilege, are allowed.
    pub fork_events: bool,
}

impl Probe {
    /// Asks the kernel.
    pub fn new() -> Self {
        let device = open_device();
        let call = open_call(UserfaultfdFlags::empty());
        let user_mode_only = open_call(USER_MODE_ONLY);
        let best = [&device, &call, &user_mode_only].into_iter().find_map(|fd| fd.as_ref().ok());
        let features = best.and_then(|fd| handshake(fd, 0).ok()).unwrap_or(0);
        let another = match (&device, &call) {
            (Ok(_), _) => open_device(),
            (_, Ok(_)) => open_call(UserfaultfdFlags::empty()),
            _ => open_call(USER_MODE_ONLY),
        };
        let fork = u64::from(uapi::UFFD_FEATURE_EVENT_FORK);
        let fork_events = another.is_ok_and(|fd| handshake(&fd, fork).is_ok());
        Self {
            device: device.map(drop),
            call: call.map(drop),
            user_mode_only: user_mode_only.map(drop),
            features,
            fork_events,
        }
    }

    /// How faults inside system calls can be served, if at all.
    pub fn way(&self) -> Option<Way> {
        match (&self.device, &self.call) {
            (Ok(()), _) => Some(Way::Device),
            (_, Ok(())) => Some(Way::Call),
            _ => None,
        }
    }

    /// The first feature that is needed and missing.
    pub fn missing(&self) -> Option<&'static Feature> {
        FEATURES.iter().find(|feature| feature.required && self.features & feature.bit == 0)
    }

    /// Refuses to start a program whose pager could not work.
    pub fn check(&self, engine: Engine) -> Result<(), Refusal> {
        let possible = match engine {
            Engine::Handoff => self.way().is_some(),
            Engine::Inline => self.way().is_some() || self.user_mode_only.is_ok(),
        };
        if !possible {
            return Err(Refusal::cannot_run("no permission to use userfaultfd", self.remedy()));
        }
        match self.missing() {
            Some(feature) => Err(Refusal::cannot_run(
                format!("this kernel's userfaultfd has no {}", feature.name),
                feature.without,
            )),
            None => Ok(()),
        }
    }

    /// What to do when there is no way.
    pub fn remedy(&self) -> &'static str {
        match (self.device, self.call) {
            (Err(Errno::ACCESS | Errno::PERM), _) => {
                "as root, run 'setfacl -m u:USER:rw /dev/userfaultfd' or 'sysctl vm.unprivileged_userfaultfd=1'"
            }
            (_, Err(Errno::NOSYS)) => "use a kernel built with CONFIG_USERFAULTFD",
            _ => {
                "make /dev/userfaultfd available (containers: --device /dev/userfaultfd), or allow the userfaultfd system call (seccomp profile, sysctl vm.unprivileged_userfaultfd=1)"
            }
        }
    }
}

fn open_device() -> Result<OwnedFd, Errno> {
    let open = File::options().read(true).write(true).open("/dev/userfaultfd");
    let device = open.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let request = libc::Ioctl::from(uapi::USERFAULTFD_IOC << 8);
    // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and touches no memory; what it returns is a
    // new descriptor or -1.
    unsafe {
        match libc::ioctl(device.as_raw_fd(), request, libc::O_CLOEXEC | libc::O_NONBLOCK) {
            -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn open_call(kind: UserfaultfdFlags) -> Result<OwnedFd, Errno> {
    // SAFETY: nothing is ever registered with this descriptor, so it changes no memory's meaning.
    unsafe { userfaultfd(kind | UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
}

/// Agrees on the API with `features` switched on; gives what the kernel has.
fn handshake(fd: impl AsFd, features: u64) -> Result<u64, Errno> {
    const UFFDIO_API: ioctl::Opcode =
        ioctl::opcode::read_write::<uapi::uffdio_api>(uapi::USERFAULTFD_IOC as u8, 0x3f);
    let mut api = uapi::uffdio_api { api: u64::from(uapi::USERFAULTFD_IOC), features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
    unsafe { ioctl::ioctl(fd, ioctl::Updater::<UFFDIO_API, _>::new(&mut api))? };
    Ok(api.features)
}
