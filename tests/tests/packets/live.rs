//! Frames that really leave: out of the right device, with live test runs over
//! veth pairs, and with the routing table's help where there is no hop.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_tests::case::{Rig, redirect};
use balancer_tests::setup::{CLIENTS, ROUTER_MAC, SERVERS, SERVERS_MAC, frontend, server_mac};
use balancer_tests::xdp::{command, settings_for};
use common::counters::Reason;

/// A raw socket on one device.
struct Listener(OwnedFd);

impl Listener {
    fn on(device: &str) -> Result<Self> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: plain system calls; the descriptor is owned from here on.
        let fd = unsafe {
            let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, flags, protocol);
            ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let index = nix::net::if_::if_nametoindex(device)?;
        // SAFETY: the address is a whole sockaddr_ll that lives through the call.
        let bound = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol as u16;
            address.sll_ifindex = index as i32;
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        ensure!(bound == 0, "bind: {}", std::io::Error::last_os_error());
        Ok(Self(fd))
    }

    /// Whether `frame` arrives within a few seconds; others are passed over.
    fn gets(&self, frame: &[u8]) -> Result<bool> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut buffer = [0u8; 2048];
        while Instant::now() < end {
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd, one buffer of the length given.
            let len = unsafe {
                libc::poll(&raw mut poll, 1, 100);
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if len > 0 && &buffer[..len as usize] == frame {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A veth end hands over redirected frames only when it runs NAPI, which generic
/// receive offload switches on.
fn receive_with_napi(device: &str) -> Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    let mut value = [ETHTOOL_SGRO, 1];
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the request names the device and points at a whole ethtool_value.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request)
    };
    if done != 0 {
        bail!("gro on {device}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn frames_leave_by_the_right_device() -> Result<()> {
    let mut rig = Rig::start()?;
    receive_with_napi("client0")?;
    receive_with_napi("server0")?;
    let clients = Listener::on("client0")?;
    let servers = Listener::on("server0")?;
    for slot in 0..8u16 {
        let v4 = slot.is_multiple_of(2);
        let talk = rig.open((balancer_tests::case::client(v4, 1), 14_000), slot);
        let ask = rig.ask(&talk).data(format!("ask {slot}").as_bytes());
        let want = rig.asked(&talk, &ask).bytes();
        rig.xdp.run_live(&ask.bytes(), CLIENTS)?;
        ensure!(
            servers.gets(&want)?,
            "frontend {slot}: nothing at the server"
        );
        let answer = rig.answer(&talk).data(format!("answer {slot}").as_bytes());
        let want = rig.answered(&talk, &answer).bytes();
        rig.xdp.run_live(&answer.bytes(), SERVERS)?;
        ensure!(
            clients.gets(&want)?,
            "frontend {slot}: nothing at the client"
        );
    }
    rig.finish();
    Ok(())
}

#[test]
fn the_routing_table_stands_in_for_a_hop() -> Result<()> {
    let mut rig = Rig::alone(settings_for(64))?;
    let server = server_mac(1).map(|b| format!("{b:02x}")).join(":");
    let router = ROUTER_MAC.map(|b| format!("{b:02x}")).join(":");
    for line in [
        "ip address add 10.1.0.254/24 dev servers".to_owned(),
        "ip address add fd00:1::254/64 dev servers nodad".to_owned(),
        "ip route add 198.51.100.0/24 dev stranger".to_owned(),
        "ip route add 2001:db8:c::/64 dev stranger".to_owned(),
    ] {
        command(&line)?;
    }
    for (v4, slot) in [(true, frontend::TCP4), (false, frontend::TCP6)] {
        let talk = rig.open((balancer_tests::case::client(v4, 2), 14_100), slot);
        let address = rig.world().server(talk.backend).0;
        command(&format!(
            "ip neigh replace {address} lladdr {server} nud permanent dev servers"
        ))?;
        let (client, _) = talk.client;
        command(&format!(
            "ip neigh replace {client} lladdr {router} nud permanent dev stranger"
        ))?;
        let forwarding = if v4 {
            "/proc/sys/net/ipv4/ip_forward"
        } else {
            "/proc/sys/net/ipv6/conf/all/forwarding"
        };
        std::fs::write(forwarding, "1").with_context(|| forwarding.to_owned())?;

        rig.backend(talk.backend, |b| b.hop = None);
        let ask = rig.ask(&talk);
        let want = ask
            .clone()
            .to(rig.world().server(talk.backend))
            .ttl(63)
            .macs(server_mac(1), SERVERS_MAC);
        let before = rig.xdp.reasons();
        let got = rig.xdp.run(&ask.bytes(), CLIENTS)?;
        let counted = balancer_tests::xdp::delta(&before, &rig.xdp.reasons());
        let result = (got, counted);
        let by_route = [Reason::FibFallback];
        rig.compare(
            "by route",
            &ask.bytes(),
            CLIENTS,
            &result,
            redirect(&want),
            &by_route,
        );
    }
    rig.both("unrelated", &[0; 60], CLIENTS);
    rig.finish();
    Ok(())
}
