//! A SEQPACKET socket to the coordinator, with descriptors attached.

use linux_raw_sys::general as k;
use linux_raw_sys::net;

use super::fd::Fd;
use super::{Errno, result};
use crate::syscall;

/// Descriptors that one packet can carry here.
const FDS_MAX: usize = 10;

#[repr(C)]
struct ControlMessage {
    header: net::cmsghdr,
    fds: [i32; FDS_MAX],
}

/// Connects to an abstract socket.
///
/// # Errors
/// As socket(2) and connect(2).
pub fn connect(name: &str) -> Result<Fd, Errno> {
    let kind = net::SOCK_SEQPACKET | k::O_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = result(unsafe { syscall!(k::__NR_socket, net::AF_UNIX, kind, 0) })?;
    let fd = Fd::new(fd as i32);
    let mut address = [0u8; 110];
    address[..2].copy_from_slice(&(net::AF_UNIX as u16).to_ne_bytes());
    let len = 3 + name.len();
    address.get_mut(3..len).ok_or(Errno::EINVAL)?.copy_from_slice(name.as_bytes());
    // SAFETY: the address lives across the call and is as long as stated.
    result(unsafe { syscall!(k::__NR_connect, fd.raw(), address.as_ptr(), len) })?;
    Ok(fd)
}

/// Sends a packet, with a descriptor if there is one. Never raises SIGPIPE.
///
/// # Errors
/// As sendmsg(2).
pub fn send(socket: i32, packet: &[u8], attached: Option<i32>) -> Result<(), Errno> {
    let mut vector =
        k::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() as _ };
    let mut control = ControlMessage {
        header: net::cmsghdr {
            cmsg_len: (size_of::<net::cmsghdr>() + size_of::<i32>()) as _,
            cmsg_level: net::SOL_SOCKET as _,
            cmsg_type: net::SCM_RIGHTS as _,
        },
        fds: core::array::from_fn(|index| if index == 0 { attached.unwrap_or(-1) } else { 0 }),
    };
    let mut message = empty_message(&mut vector);
    if attached.is_some() {
        message.msg_control = (&raw mut control).cast();
        // One descriptor, padded to the size of a word.
        message.msg_controllen = (size_of::<net::cmsghdr>() + size_of::<usize>()) as _;
    }
    // SAFETY: the message and all that it points to live across the call.
    let sent = unsafe { syscall!(k::__NR_sendmsg, socket, &raw const message, net::MSG_NOSIGNAL) };
    result(sent).map(drop)
}

/// Receives a packet and the descriptors attached to it.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: i32, packet: &mut [u8]) -> Result<(usize, [Option<Fd>; FDS_MAX]), Errno> {
    receive_with(socket, packet, 0)
}

/// The same without waiting for a packet.
///
/// # Errors
/// As recvmsg(2): `EAGAIN` if there is none.
pub fn receive_now(
    socket: i32,
    packet: &mut [u8],
) -> Result<(usize, [Option<Fd>; FDS_MAX]), Errno> {
    receive_with(socket, packet, net::MSG_DONTWAIT)
}

fn receive_with(
    socket: i32,
    packet: &mut [u8],
    flags: u32,
) -> Result<(usize, [Option<Fd>; FDS_MAX]), Errno> {
    let mut vector = k::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() as _ };
    let mut control = ControlMessage {
        header: net::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 },
        fds: [-1; FDS_MAX],
    };
    let mut message = empty_message(&mut vector);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<ControlMessage>() as _;
    // SAFETY: the message and all that it points to live across the call.
    let got = result(unsafe {
        syscall!(k::__NR_recvmsg, socket, &raw mut message, net::MSG_CMSG_CLOEXEC | flags)
    })?;
    let bytes = control.header.cmsg_len.saturating_sub(size_of::<net::cmsghdr>());
    let count = bytes / size_of::<i32>();
    let fds = core::array::from_fn(|index| {
        (index < count && control.fds[index] >= 0).then(|| Fd::new(control.fds[index]))
    });
    Ok((got, fds))
}

fn empty_message(vector: &mut k::iovec) -> net::msghdr {
    net::msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: core::ptr::from_mut(vector).cast(),
        msg_iovlen: 1,
        msg_control: core::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}
