//! Whole TCP connections per second: connect, a request, a response of 1 KiB, close.
//! Routed through a namespace, translated there by nftables, and through the balancer:
//! three labs built alike, measured in turn.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use socket2::{Domain, Socket, Type};

use super::clock::{self, Samples};
use super::figure::{Figure, Report, Target};
use crate::agent::{AUTO, Agent};
use crate::topology::Lab;

const PORT: u16 = 8080;
const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
const RESPONSE: usize = 1024;
/// Connections that the client has open at any time.
const CONCURRENT: usize = 64;
/// Longest wait for anything to happen before the connections count as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Measures and reports.
///
/// # Errors
/// When a connection failed.
pub fn run(report: &mut Report, quick: bool) -> Result<()> {
    let (rounds, window) = if quick {
        (3, Duration::from_millis(500))
    } else {
        (9, Duration::from_millis(1500))
    };
    let ways = [Way::direct(), Way::dnat(), Way::balanced(AUTO)];
    let mut rates: [Samples; 3] = Default::default();
    for round in 0..=rounds {
        for (way, rates) in ways.iter().zip(&mut rates) {
            let rate = way.run(window)?;
            if round > 0 {
                rates.add(rate);
            }
        }
    }
    let mut figures = Vec::new();
    for (way, rates) in ways.iter().zip(&rates) {
        // The middle of all runs: what a rate promises.
        let middle = rates.median()?;
        figures.push(Figure::new(way.name, middle, middle, "conn/s"));
    }
    let [direct, dnat, ours] = figures.try_into().map_err(|_| anyhow::anyhow!("three"))?;
    let dnat = dnat.against(&direct);
    let ours = ours.against(&direct).target(Target::AtLeast(0.85));
    let title = format!(
        "TCP connections per second (connect, {RESPONSE} bytes, close), {CONCURRENT} at a time, \
         median of {rounds}"
    );
    report.section(&title, vec![direct, dnat, ours]);
    Ok(())
}

/// One lab with its server, and what forwards in it. Dropped in this order.
struct Way {
    name: &'static str,
    target: SocketAddr,
    _agent: Option<Agent>,
    _server: Server,
    lab: Lab,
}

impl Way {
    fn new(
        name: &'static str,
        target: impl FnOnce(&Lab) -> SocketAddr,
        forward: impl FnOnce(&Lab) -> Option<Agent>,
    ) -> Self {
        let lab = Lab::new(1);
        for ns in [&lab.client, &lab.servers[0].ns] {
            ns.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
            ns.sysctl("net.core.somaxconn", "4096");
        }
        Self {
            name,
            target: target(&lab),
            _server: Server::start(&lab),
            _agent: forward(&lab),
            lab,
        }
    }

    /// Connections per second.
    fn run(&self, window: Duration) -> Result<f64> {
        let rate = self.lab.client.enter(|| {
            clock::pin_to(0)?;
            connections(self.target, window)
        });
        rate.with_context(|| format!("{}: connections to {}", self.name, self.target))
    }

    fn direct() -> Self {
        Self::new("direct (routed)", |lab| lab.servers[0].at4(PORT), |_| None)
    }

    fn dnat() -> Self {
        Self::new("nftables DNAT", vip, |lab| {
            lab.balancer.nft(&format!(
                "table ip bench {{\n  chain pre {{\n    type nat hook prerouting priority dstnat;\
                 \n    ip daddr {} tcp dport 80 dnat to {}\n  }}\n}}\n",
                lab.vip4(1),
                lab.servers[0].at4(PORT),
            ));
            None
        })
    }

    /// With further keys of `[xdp]`.
    fn balanced(xdp: &str) -> Self {
        Self::new("balancer", vip, |lab| {
            let config = format!(
                "[[frontend]]\nname = \"bench\"\naddress = \"{}\"\npool = \"bench\"\n\n\
                 [[pool]]\nname = \"bench\"\n\n[pool.check]\ntype = \"none\"\n\n\
                 [[pool.backend]]\nname = \"s0\"\naddress = \"{}\"\n",
                vip(lab),
                lab.servers[0].at4(PORT),
            );
            let agent = Agent::start_with(lab, xdp, &config);
            agent.wait_all_up();
            Some(agent)
        })
    }
}

/// Whole connections through the balancer for a while, from one core to a server on the
/// other, as many as go; how many per second. The packets of one connection come by both
/// cores. `xdp`: further keys of `[xdp]`.
///
/// # Errors
/// When one of them failed.
pub fn soak(xdp: &str, window: Duration) -> Result<f64> {
    Way::balanced(xdp).run(window)
}

fn vip(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.vip4(1).into(), 80)
}

/// A server on one thread. It closes first, so that the client's ports are free again
/// at once.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ns = &lab.servers[0].ns;
        let listener = ns
            .enter(|| -> io::Result<Socket> {
                let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
                socket.set_reuse_address(true)?;
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
                socket.bind(&any.into())?;
                socket.listen(4096)?;
                Ok(socket)
            })
            .unwrap_or_else(|error| panic!("listen on {PORT}: {error}"));
        let stopped = stop.clone();
        let thread = ns.spawn("bench-server", move || {
            clock::pin_to(1)?;
            serve(&listener, &stopped)
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the server: {error:#}"),
            Some(Err(_)) => eprintln!("the server's thread panicked"),
            _ => {}
        }
    }
}

const LISTENER: u64 = u64::MAX;

fn serve(listener: &Socket, stop: &AtomicBool) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut open: Vec<Option<Socket>> = Vec::new();
    let response = [b'x'; RESPONSE];
    let mut events = [EpollEvent::empty(); 256];
    while !stop.load(Ordering::Relaxed) {
        let ready = wait(&epoll, &mut events, EpollTimeout::from(50u8))?;
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut open)?;
                continue;
            }
            let slot = event.data() as usize;
            let Some(socket) = open.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            let mut request = [0; 512];
            // A client that has gone is not the server's error; the client counts it.
            if matches!((&socket).read(&mut request), Ok(n) if n > 0) {
                let _ = (&socket).write_all(&response);
            }
        }
    }
    Ok(())
}

/// Waits for events, however often something else wakes the thread.
fn wait(epoll: &Epoll, events: &mut [EpollEvent], patience: EpollTimeout) -> Result<usize> {
    loop {
        match epoll.wait(events, patience) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

fn accept_all(listener: &Socket, epoll: &Epoll, open: &mut Vec<Option<Socket>>) -> Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    while let Ok(fd) = accept4(listener.as_raw_fd(), flags) {
        // SAFETY: just made, and owned by nobody else.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let slot = socket.as_raw_fd() as usize;
        if open.len() <= slot {
            open.resize_with(slot + 1, || None);
        }
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, slot as u64))?;
        open[slot] = Some(socket);
    }
    Ok(())
}

/// One connection of the client.
struct Connection {
    socket: Socket,
    asked: bool,
    received: usize,
}

impl Connection {
    fn open(target: SocketAddr, epoll: &Epoll, slot: usize) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).context("connect");
            }
            _ => {}
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(flags, slot as u64))?;
        Ok(Self {
            socket,
            asked: false,
            received: 0,
        })
    }

    /// Goes on as far as it can; whether the whole response is there.
    fn advance(&mut self, flags: EpollFlags) -> Result<bool> {
        if !self.asked && flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR) {
            if let Some(error) = self.socket.take_error()? {
                return Err(error).context("connect");
            }
            let sent = match (&self.socket).write(REQUEST) {
                // An event of the slot's last connection: a process that another thread
                // was starting held a copy of its socket for a moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                sent => sent.context("send")?,
            };
            ensure!(sent == REQUEST.len(), "sent {sent} bytes only");
            self.asked = true;
        }
        if !self.asked || !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP) {
            return Ok(false);
        }
        let mut buffer = [0; 2 * RESPONSE];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(0) => {
                    let received = self.received;
                    ensure!(received == RESPONSE, "closed after {received} bytes");
                    return Ok(true);
                }
                Ok(n) => self.received += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
}

/// Opens connections for a while; how many per second were completed.
fn connections(target: SocketAddr, window: Duration) -> Result<f64> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let open = |slot| Connection::open(target, &epoll, slot);
    let mut active = (0..CONCURRENT).map(open).collect::<Result<Vec<_>>>()?;
    let mut events = [EpollEvent::empty(); CONCURRENT];
    let (begin, mut done) = (Instant::now(), 0u64);
    while begin.elapsed() < window {
        let patience = EpollTimeout::try_from(PATIENCE)?;
        let ready = wait(&epoll, &mut events, patience)?;
        ensure!(
            ready > 0,
            "no answer within {PATIENCE:?} after {done} connections"
        );
        for event in &events[..ready] {
            let slot = event.data() as usize;
            let whole = active[slot].advance(event.events());
            if whole.with_context(|| format!("after {done} connections"))? {
                done += 1;
                active[slot] = open(slot)?;
            }
        }
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}
