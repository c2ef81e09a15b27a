//! The few system calls that no crate offers: what a pinned link is attached to,
//! detaching it, and the cookie of our network namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// From `enum bpf_cmd` in linux/bpf.h, as are the layouts below.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_LINK_TYPE_XDP: u32 = 6;

/// What the kernel says of an XDP link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The program that runs.
    pub program_id: u32,
    /// The device; 0 when it is gone and the link defunct.
    pub ifindex: u32,
}

/// A pinned XDP link.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    /// Opens the link pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            pathname: u64,
            bpf_fd: u32,
            file_flags: u32,
        }
        let name = CString::new(path.as_os_str().as_bytes())?;
        let attr = Attr {
            pathname: name.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        };
        let fd = bpf(BPF_OBJ_GET, &attr)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What it is attached to.
    ///
    /// # Errors
    /// `InvalidData` when the pin is not an XDP link; else what the kernel says.
    pub fn info(&self) -> io::Result<LinkInfo> {
        #[repr(C)]
        struct Attr {
            bpf_fd: u32,
            info_len: u32,
            info: u64,
        }
        // `struct bpf_link_info`: type, id, prog_id, padding, then by type; for
        // XDP the interface index. The kernel wants the rest zero.
        let mut info = [0u32; 32];
        let attr = Attr {
            bpf_fd: self.0.as_raw_fd().cast_unsigned(),
            info_len: size_of_val(&info) as u32,
            info: info.as_mut_ptr() as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
        // SAFETY: the kernel wrote behind the compiler's back, into memory that
        // `info` still owns.
        let info = unsafe { (&raw const info).read_volatile() };
        if info[0] != BPF_LINK_TYPE_XDP {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not an XDP link",
            ));
        }
        Ok(LinkInfo {
            program_id: info[2],
            ifindex: info[4],
        })
    }

    /// Takes the program off the device at once, whoever else holds the link.
    pub fn detach(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
        }
        let attr = Attr {
            link_fd: self.0.as_raw_fd().cast_unsigned(),
        };
        bpf(BPF_LINK_DETACH, &attr).map(drop)
    }
}

/// A socket of the calling thread's network namespace, to ask the kernel by: the loopback
/// device may be down, or there may be no IPv4.
fn any_socket() -> io::Result<OwnedFd> {
    std::net::UdpSocket::bind(("127.0.0.1", 0))
        .map(OwnedFd::from)
        .or_else(|_| std::os::unix::net::UnixDatagram::unbound().map(OwnedFd::from))
}

/// Whether a device of our network namespace is one end of a veth pair; `false` also when
/// the kernel does not say.
pub(super) fn is_veth(interface: &str) -> bool {
    /// From linux/ethtool.h: the command, and `struct ethtool_drvinfo`, of which only the
    /// driver's name matters here.
    const ETHTOOL_GDRVINFO: u32 = 3;
    #[repr(C)]
    struct DrvInfo {
        cmd: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let Ok(socket) = any_socket() else {
        return false;
    };
    let mut info = DrvInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: all zeros is a valid value of this structure of the kernel's.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return false;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: name and structure are as the request wants them, and outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    // SAFETY: the kernel wrote behind the compiler's back, into memory that `info` owns.
    let driver = unsafe { (&raw const info.driver).read_volatile() };
    result == 0 && driver.starts_with(b"veth\0")
}

/// Names our network namespace: a number that is never used twice while the host
/// is up, or on kernels before 5.14, the inode of the namespace, which a later
/// namespace may have again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    /// `SO_NETNS_COOKIE`.
    Cookie(u64),
    /// Inode number of `/proc/thread-self/ns/net`.
    Inode(u64),
}

impl Netns {
    /// That of the calling thread.
    pub fn current() -> io::Result<Self> {
        let socket = any_socket()?;
        let mut cookie = 0u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: `cookie` and `len` are as large as the kernel is told.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        if result == 0 {
            return Ok(Self::Cookie(cookie));
        }
        use std::os::unix::fs::MetadataExt;
        Ok(Self::Inode(
            std::fs::metadata("/proc/thread-self/ns/net")?.ino(),
        ))
    }

    /// The number in the header of the maps.
    pub fn number(self) -> u64 {
        match self {
            Self::Cookie(number) | Self::Inode(number) => number,
        }
    }

    /// The name of its pin directory.
    pub fn dir_name(self) -> String {
        match self {
            Self::Cookie(cookie) => format!("{DIR_PREFIX}{cookie}"),
            Self::Inode(inode) => format!("{DIR_PREFIX}inode-{inode}"),
        }
    }
}

/// What the pin directory of every namespace begins with.
pub(super) const DIR_PREFIX: &str = "netns-";

/// Lifts the limit on locked memory, which kernels before 5.11 count maps
/// against. Without the right to do so newer kernels work all the same.
pub(super) fn lift_memlock_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "the limit on locked memory stays as it is");
    }
}

fn bpf<A>(command: libc::c_int, attr: &A) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` as the command reads it, and
    // the size that the kernel is told is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_name() {
        let (a, b) = (Netns::current().unwrap(), Netns::current().unwrap());
        assert_eq!(a, b);
        assert!(a.dir_name().starts_with(DIR_PREFIX));
        assert_ne!(Netns::Cookie(5).dir_name(), Netns::Inode(5).dir_name());
    }
}
