//! Cables between devices, and frames on them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// Two ends of a cable, both up, with as many queues each way as native XDP needs.
pub fn veth(one: &str, two: &str) {
    let queues = "numrxqueues 1 numtxqueues 1";
    ip(&format!(
        "link add {one} {queues} type veth peer name {two} {queues}"
    ));
    ip(&format!("link set {one} up"));
    ip(&format!("link set {two} up"));
}

/// Runs `ip` of iproute2 in this thread's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("the command `ip` of iproute2");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {complaint}");
}

/// What `ip link show` says of an interface.
pub fn link_line(interface: &str) -> String {
    let output = Command::new("ip")
        .args(["link", "show", "dev", interface])
        .output()
        .expect("the command `ip` of iproute2");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The program that the kernel runs on an interface, as the kernel tells it.
pub fn program_on(interface: &str) -> Option<u32> {
    let line = link_line(interface);
    let (_, rest) = line.split_once("prog/xdp id ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// An interface's index.
pub fn index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

/// Waits for a condition, at most half a minute.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends frames of a protocol that nobody speaks from one end of a cable to the
/// other, one at a time.
pub struct Wire {
    from: OwnedFd,
    to: OwnedFd,
    serial: u64,
}

/// IEEE 802 local experimental ethertype 2.
const ETHERTYPE: u16 = 0x88b6;

impl Wire {
    /// A wire between two ends of one cable.
    pub fn new(from: &str, to: &str) -> Self {
        Self {
            from: packet_socket(from),
            to: packet_socket(to),
            serial: 0,
        }
    }

    /// Sends a frame and waits until it has come through.
    pub fn pass(&mut self) {
        self.serial += 1;
        let mut frame = [0u8; 60];
        frame[..6].copy_from_slice(&[0xff; 6]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[14..22].copy_from_slice(&self.serial.to_be_bytes());
        // SAFETY: the buffer is as long as is said.
        let sent =
            unsafe { libc::send(self.from.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, 60, "{}", io::Error::last_os_error());
        loop {
            let mut got = [0u8; 128];
            // SAFETY: as above.
            let n =
                unsafe { libc::recv(self.to.as_raw_fd(), got.as_mut_ptr().cast(), got.len(), 0) };
            assert!(n > 0, "no frame came: {}", io::Error::last_os_error());
            if got[14..22] == self.serial.to_be_bytes() {
                return;
            }
        }
    }
}

fn packet_socket(interface: &str) -> OwnedFd {
    let protocol = i32::from(ETHERTYPE.to_be());
    // SAFETY: plain system calls; the address is as long as is said.
    unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        );
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE.to_be();
        address.sll_ifindex = index(interface).cast_signed();
        let bound = libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        );
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        let patience = libc::timeval {
            tv_sec: 10,
            tv_usec: 0,
        };
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of_val(&patience) as u32,
        );
        fd
    }
}
