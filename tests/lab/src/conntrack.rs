//! Makes a router forget every flow that it tracks, as a reboot or a carrier's timer does.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SUBSYSTEM_CTNETLINK: u16 = 1;
const MESSAGE_DELETE: u16 = 2;

/// Deletes all connection-tracking entries of the calling thread's namespace.
pub(crate) fn flush() -> io::Result<()> {
    // SAFETY: socket takes no pointer; the descriptor is owned at once.
    let socket = unsafe {
        let fd = libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_NETFILTER,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // The request is nlmsghdr (length, type, flags, sequence, port) and nfgenmsg (family, version,
    // resource id) without any attribute. A delete that names no flow deletes all flows.
    let mut request = Vec::with_capacity(20);
    request.extend_from_slice(&20u32.to_ne_bytes());
    request.extend_from_slice(&(SUBSYSTEM_CTNETLINK << 8 | MESSAGE_DELETE).to_ne_bytes());
    request.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend_from_slice(&[0; 12]);
    let mut answer = [0u8; 256];
    // SAFETY: both buffers outlive the calls and their lengths are theirs.
    let received = unsafe {
        if libc::send(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
        ) < 0
        {
            return Err(io::Error::last_os_error());
        }
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast(),
            answer.len(),
            0,
        )
    };
    const HEADER: usize = mem::size_of::<libc::nlmsghdr>();
    if received < (HEADER + 4) as isize {
        return Err(io::Error::other("short answer from the connection tracker"));
    }
    // NLMSG_ERROR carries a negative errno, 0 for success.
    match i32::from_ne_bytes([
        answer[HEADER],
        answer[HEADER + 1],
        answer[HEADER + 2],
        answer[HEADER + 3],
    ]) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
