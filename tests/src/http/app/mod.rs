//! The application server of the tests: HTTP/1.1 written by hand, so that it sees every
//! byte and can answer what no library would; HTTP/2 by h2. What it does is said by
//! the request's path ([`behave`]); what it saw can be read over a control socket, and
//! requests with a nonce are noted in a journal that outlives a `kill -9`.
//!
//! Control lines, each answered with one line: `log` (JSON, what came since the last
//! `clear`), `stats`, `clear`, `health STATUS`, `hang on|off`, `close`.

pub mod behave;
mod h1;
mod h2;
mod proxied;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use wire::Wire;

/// Requests that the log keeps.
const LOG: usize = 20_000;
/// Name of the header by which requests are told apart.
pub const NONCE: &str = "x-nonce";

/// An application server.
#[derive(clap::Parser)]
pub struct Arguments {
    /// What it answers with, in `x-server`.
    #[arg(long)]
    name: String,
    /// Suffix of the session ids that it gives out; none when empty.
    #[arg(long, default_value = "")]
    route: String,
    /// Where it takes commands.
    #[arg(long)]
    control: PathBuf,
    /// Where it listens: HTTP/1.1, and HTTP/2 by prior knowledge or ALPN.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Every request with a nonce is appended to this file before it is answered.
    #[arg(long)]
    journal: Option<PathBuf>,
    /// A PROXY protocol header comes first.
    #[arg(long)]
    proxy_protocol: bool,
    /// Speaks TLS with this certificate chain.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Key of the certificate.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Takes no CONNECT with a protocol in HTTP/2.
    #[arg(long)]
    no_protocols: bool,
    /// Clients must show a certificate of these authorities.
    #[arg(long)]
    client_ca: Option<PathBuf>,
}

/// A request as the server saw it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The server's name.
    pub server: String,
    /// Method.
    pub method: String,
    /// Target, byte for byte.
    pub target: String,
    /// `HTTP/1.1` and so on.
    pub version: String,
    /// Fields in their order; names as they came.
    pub headers: Vec<(String, String)>,
    /// Fields after a body.
    pub trailers: Vec<(String, String)>,
    /// Bytes of the body, without framing.
    pub body: u64,
    /// SHA-256 of the body, in hexadecimal digits.
    pub digest: String,
    /// How the body came: `none`, `length`, `chunked`, `h2`.
    pub framing: String,
    /// The body ended early.
    pub cut: bool,
    /// The peer's address.
    pub peer: String,
    /// What its PROXY header said: `TCP4 1.2.3.4:5 6.7.8.9:10`, `LOCAL`.
    pub proxied: Option<String>,
    /// Number of the connection, from 1.
    pub connection: u64,
    /// Name asked for in TLS.
    pub server_name: Option<String>,
}

impl Seen {
    /// Values of all headers of a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter();
        let named = named.filter(|(have, _)| have.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Value of the only header of a name; nothing when there is none.
    ///
    /// # Panics
    /// When there are several.
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "several {name}: {all:?}");
        all.first().copied()
    }
}

/// Numbers of a server.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Requests whose head was read.
    pub requests: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Requests being answered now.
    pub running: u64,
    /// Most requests that were being answered at once.
    pub most_running: u64,
}

struct State {
    name: String,
    route: String,
    journal: Option<File>,
    log: RefCell<VecDeque<Seen>>,
    stats: RefCell<Stats>,
    health: Cell<u16>,
    hang: Cell<bool>,
    closings: watch::Sender<u64>,
    /// CONNECT may name a protocol in HTTP/2.
    protocols: bool,
    /// Requests by session id, and by nonce for answers that depend on the attempt.
    visits: RefCell<BTreeMap<String, u64>>,
    attempts: RefCell<BTreeMap<String, u64>>,
    sessions: Cell<u64>,
}

impl State {
    /// A request's head is there.
    fn begin(self: &Rc<Self>, seen: &Seen) -> Running {
        if let (Some(mut journal), Some(nonce)) = (self.journal.as_ref(), seen.one(NONCE)) {
            let line = format!("{nonce} {} {}\n", seen.method, self.name);
            // One write of a short line to a file opened for appending is whole.
            if let Err(error) = journal.write_all(line.as_bytes()) {
                eprintln!("journal: {error}");
            }
        }
        let mut stats = self.stats.borrow_mut();
        stats.requests += 1;
        stats.running += 1;
        stats.most_running = stats.most_running.max(stats.running);
        Running(Rc::clone(self))
    }

    fn note(&self, seen: Seen) {
        let mut log = self.log.borrow_mut();
        if log.len() == LOG {
            log.pop_front();
        }
        log.push_back(seen);
    }
}

/// A request that is being answered.
struct Running(Rc<State>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stats.borrow_mut().running -= 1;
    }
}

/// Serves until the process is killed.
///
/// # Errors
/// When it can't listen, or a file can't be read.
pub async fn run(arguments: Arguments) -> Result<()> {
    let journal = arguments.journal.map(|path| {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.with_context(|| format!("open {}", path.display()))
    });
    let state = Rc::new(State {
        name: arguments.name,
        route: arguments.route,
        journal: journal.transpose()?,
        log: RefCell::default(),
        stats: RefCell::default(),
        health: Cell::new(200),
        hang: Cell::new(false),
        closings: watch::Sender::new(0),
        protocols: !arguments.no_protocols,
        visits: RefCell::default(),
        attempts: RefCell::default(),
        sessions: Cell::new(0),
    });
    let tls = match (&arguments.certificate, &arguments.key) {
        (Some(certificate), Some(key)) => {
            Some(acceptor(certificate, key, arguments.client_ca.as_deref())?)
        }
        _ => None,
    };
    for at in arguments.listen {
        let listener = listen(at).with_context(|| format!("listen on {at}"))?;
        let (state, tls) = (Rc::clone(&state), tls.clone());
        let proxied = arguments.proxy_protocol;
        spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let talk =
                            connection(Rc::clone(&state), stream, peer, tls.clone(), proxied);
                        spawn_local(talk);
                    }
                    Err(error) => {
                        eprintln!("accept on {at}: {error}");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
    }
    // Last: whoever finds the control socket finds the ports too.
    let control = UnixListener::bind(&arguments.control)
        .with_context(|| format!("bind {}", arguments.control.display()))?;
    obey(state, control).await
}

fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

fn acceptor(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let builder = ServerConfig::builder();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in CertificateDer::pem_file_iter(path)? {
                roots.add(authority?)?;
            }
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// What is known of a connection before its first request.
#[derive(Clone, Default)]
struct About {
    peer: String,
    number: u64,
    proxied: Option<String>,
    server_name: Option<String>,
}

async fn connection(
    state: Rc<State>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    proxied: bool,
) {
    let mut about = About {
        peer: peer.to_string(),
        ..About::default()
    };
    {
        let mut stats = state.stats.borrow_mut();
        stats.connections += 1;
        stats.open += 1;
        about.number = stats.connections;
    }
    let _ = stream.set_nodelay(true);
    let mut closings = state.closings.subscribe();
    closings.mark_unchanged();
    let talk = async {
        let mut wire = Wire::new(stream);
        if proxied {
            about.proxied = Some(proxied::read(&mut wire).await?);
        }
        let Some(tls) = tls else {
            return converse(&state, wire, about).await;
        };
        let stream = tls.accept(wire).await?;
        let session = stream.get_ref().1;
        about.server_name = session.server_name().map(str::to_owned);
        converse(&state, Wire::new(stream), about).await
    };
    tokio::select! {
        result = talk => if let Err(error) = result {
            // A client that goes away is no news; one that speaks nonsense is.
            if error.kind() == std::io::ErrorKind::InvalidData {
                eprintln!("{peer}: {error}");
            }
        },
        _ = closings.changed() => {}
    }
    state.stats.borrow_mut().open -= 1;
}

async fn converse<S>(state: &Rc<State>, mut wire: Wire<S>, about: About) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if wire
        .begins_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await?
    {
        h2::serve(state, wire, about).await
    } else {
        h1::serve(state, wire, about).await
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
                let answer = command(&state, &line).unwrap_or_else(|| format!("unknown: {line}"));
                let sent = write.write_all(format!("{answer}\n").as_bytes()).await;
                if sent.is_err() {
                    return;
                }
            }
        });
    }
}

fn command(state: &State, line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    match (words.next()?, words.next()) {
        ("log", None) => return Some(json!(*state.log.borrow()).to_string()),
        ("stats", None) => return Some(json!(*state.stats.borrow()).to_string()),
        ("clear", None) => {
            state.log.borrow_mut().clear();
            let mut stats = state.stats.borrow_mut();
            *stats = Stats {
                open: stats.open,
                running: stats.running,
                most_running: stats.running,
                ..Stats::default()
            };
        }
        ("health", Some(status)) => state.health.set(status.parse().ok()?),
        ("hang", Some("on")) => state.hang.set(true),
        ("hang", Some("off")) => state.hang.set(false),
        ("close", None) => state.closings.send_modify(|n| *n += 1),
        _ => return None,
    }
    Some("ok".to_owned())
}
