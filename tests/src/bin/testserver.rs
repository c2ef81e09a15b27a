//! A small real server for tests: TCP echo, HTTP/1.1 and UDP echo, each answering
//! with the server's name, steered through a control socket.
//!
//! TCP: the name and a newline at once, then everything received, until the client
//! closes its side. UDP: the name, a colon, then the datagram. HTTP: `/health`
//! answers with the status that `health` set, anything else with the name in the
//! header `x-server` and a body of the size that `body` set.
//!
//! Control lines, each answered with one line: `mode normal|hang|refuse`,
//! `health STATUS`, `body BYTES`, `close` (every open connection), `stats`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::watch;
use tokio::task::spawn_local;

/// A server that says its name.
#[derive(Parser)]
struct Arguments {
    /// What it answers with.
    #[arg(long)]
    name: String,
    /// Where it takes commands.
    #[arg(long)]
    control: PathBuf,
    /// Where it speaks TCP echo.
    #[arg(long)]
    tcp: Vec<SocketAddr>,
    /// Where it speaks HTTP.
    #[arg(long)]
    http: Vec<SocketAddr>,
    /// Where it speaks UDP echo.
    #[arg(long)]
    udp: Vec<SocketAddr>,
}

/// What a server does with those who come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Answers.
    Normal,
    /// Accepts, and never says a word.
    Hang,
    /// Has no listening sockets.
    Refuse,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Echo,
    Http,
}

struct State {
    name: String,
    mode: watch::Sender<Mode>,
    /// How many listeners there are, and how often one of them has taken a mode over.
    listeners: Cell<u64>,
    taken_over: Cell<u64>,
    /// Counted up to close every open connection.
    closings: watch::Sender<u64>,
    health: Cell<u16>,
    body: Cell<usize>,
    open: Cell<u64>,
    tcp: Cell<u64>,
    http: Cell<u64>,
    udp: Cell<u64>,
    sources: RefCell<BTreeMap<IpAddr, u64>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let state = Rc::new(State {
        name: arguments.name,
        mode: watch::Sender::new(Mode::Normal),
        listeners: Cell::new(0),
        taken_over: Cell::new(0),
        closings: watch::Sender::new(0),
        health: Cell::new(200),
        body: Cell::new(0),
        open: Cell::new(0),
        tcp: Cell::new(0),
        http: Cell::new(0),
        udp: Cell::new(0),
        sources: RefCell::default(),
    });
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let echo = arguments.tcp.iter().map(|&at| (at, Speaks::Echo));
            let http = arguments.http.iter().map(|&at| (at, Speaks::Http));
            for (at, speaks) in echo.chain(http) {
                let listener = listen(at).with_context(|| format!("listen on {at}"))?;
                state.listeners.set(state.listeners.get() + 1);
                let mode = state.mode.subscribe();
                spawn_local(serve(Rc::clone(&state), at, speaks, listener, mode));
            }
            for &at in &arguments.udp {
                let socket = UdpSocket::bind(at)
                    .await
                    .with_context(|| format!("bind UDP {at}"))?;
                spawn_local(answer_datagrams(Rc::clone(&state), socket));
            }
            // Last, so that whoever finds the control socket finds the ports too.
            let control = UnixListener::bind(&arguments.control)
                .with_context(|| format!("bind {}", arguments.control.display()))?;
            obey(state, control).await
        })
        .await
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the mode says to refuse; then closes the listening socket, and
/// opens it again when the mode changes back.
async fn serve(
    state: Rc<State>,
    at: SocketAddr,
    speaks: Speaks,
    listener: TcpListener,
    mut mode: watch::Receiver<Mode>,
) {
    let mut listener = Some(listener);
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = accepted => match result {
                Ok((stream, peer)) => {
                    spawn_local(converse(Rc::clone(&state), stream, peer, speaks));
                }
                Err(error) => {
                    eprintln!("accept on {at}: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            changed = mode.changed() => {
                if changed.is_err() {
                    return;
                }
                if *mode.borrow_and_update() == Mode::Refuse {
                    listener = None;
                } else if listener.is_none() {
                    match listen(at) {
                        Ok(opened) => listener = Some(opened),
                        Err(error) => eprintln!("listen on {at} again: {error}"),
                    }
                }
                state.taken_over.set(state.taken_over.get() + 1);
            }
        }
    }
}

async fn converse(state: Rc<State>, mut stream: TcpStream, peer: SocketAddr, speaks: Speaks) {
    let counter = match speaks {
        Speaks::Echo => &state.tcp,
        Speaks::Http => &state.http,
    };
    counter.set(counter.get() + 1);
    *state
        .sources
        .borrow_mut()
        .entry(peer.ip().to_canonical())
        .or_default() += 1;
    state.open.set(state.open.get() + 1);
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut closings = state.closings.subscribe();
    closings.mark_unchanged();
    let hang = *state.mode.borrow() == Mode::Hang;
    let talk = async {
        if hang {
            return std::future::pending().await;
        }
        match speaks {
            Speaks::Echo => echo(&state, &mut stream).await,
            Speaks::Http => answer_requests(&state, &mut stream).await,
        }
    };
    tokio::select! {
        // A client that goes away is no news here: it reports what it missed.
        _ = talk => {}
        _ = closings.changed() => {}
    }
    state.open.set(state.open.get() - 1);
}

async fn echo(state: &State, stream: &mut TcpStream) -> io::Result<()> {
    stream
        .write_all(format!("{}\n", state.name).as_bytes())
        .await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn answer_requests(state: &State, stream: &mut TcpStream) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Some(request) = lines.next_line().await? {
        let mut close = false;
        loop {
            match lines.next_line().await? {
                None => return Ok(()),
                Some(header) if header.is_empty() => break,
                Some(header) => close |= header.eq_ignore_ascii_case("connection: close"),
            }
        }
        let mut words = request.split_whitespace();
        let method = words.next().unwrap_or_default();
        let health = words.next().is_some_and(|path| path.starts_with("/health"));
        let (status, size) = match health {
            true => (state.health.get(), 0),
            false => (200, state.body.get()),
        };
        let connection = if close { "close" } else { "keep-alive" };
        let mut response = format!(
            "HTTP/1.1 {status} Test\r\nx-server: {}\r\ncontent-length: {size}\r\n\
             connection: {connection}\r\n\r\n",
            state.name
        )
        .into_bytes();
        if method != "HEAD" {
            response.resize(response.len() + size, b'x');
        }
        write.write_all(&response).await?;
        if close {
            return write.shutdown().await;
        }
    }
    Ok(())
}

async fn answer_datagrams(state: Rc<State>, socket: UdpSocket) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // ICMP errors of earlier answers arrive here.
        let Ok((n, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        state.udp.set(state.udp.get() + 1);
        if *state.mode.borrow() != Mode::Normal {
            continue;
        }
        let mut answer = format!("{}:", state.name).into_bytes();
        answer.extend_from_slice(&buffer[..n]);
        if let Err(error) = socket.send_to(&answer, peer).await {
            eprintln!("answer to {peer}: {error}");
        }
    }
}

async fn obey(state: Rc<State>, control: UnixListener) -> Result<()> {
    loop {
        let (stream, _) = control.accept().await?;
        let state = Rc::clone(&state);
        spawn_local(async move {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = match line.strip_prefix("mode ").map(parse_mode) {
                    Some(Some(mode)) => {
                        change_mode(&state, mode).await;
                        Some("ok".to_owned())
                    }
                    Some(None) => None,
                    None => command(&state, &line),
                };
                let answer = answer.unwrap_or_else(|| format!("unknown: {line}"));
                if write
                    .write_all(format!("{answer}\n").as_bytes())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
    }
}

fn parse_mode(word: &str) -> Option<Mode> {
    Some(match word {
        "normal" => Mode::Normal,
        "hang" => Mode::Hang,
        "refuse" => Mode::Refuse,
        _ => return None,
    })
}

/// Returns when every listener has taken the mode over: the answer to the order
/// then means that it is done.
async fn change_mode(state: &State, mode: Mode) {
    let wanted = state.taken_over.get() + state.listeners.get();
    state.mode.send_replace(mode);
    while state.taken_over.get() < wanted {
        tokio::task::yield_now().await;
    }
}

fn command(state: &State, line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let verb = words.next()?;
    let value = words.next();
    match (verb, value) {
        ("health", Some(status)) => state.health.set(status.parse().ok()?),
        ("body", Some(bytes)) => state.body.set(bytes.parse().ok()?),
        ("close", None) => state.closings.send_modify(|n| *n += 1),
        ("stats", None) => {
            return Some(
                json!({
                    "tcp": state.tcp.get(),
                    "http": state.http.get(),
                    "udp": state.udp.get(),
                    "open": state.open.get(),
                    "sources": *state.sources.borrow(),
                })
                .to_string(),
            );
        }
        _ => return None,
    }
    Some("ok".to_owned())
}
