//! A server of AJP13 that answers as a request's path says, right or wrong; written from
//! the protocol's description, and sharing nothing with the balancer's side.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Netns;
use crate::process::{BOUND, came_true};

/// What it does about CPING.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pongs {
    /// CPONG.
    #[default]
    Right,
    /// Nothing.
    None,
    /// Something else.
    Wrong,
    /// CPONG, and something behind it.
    Surplus,
    /// The end of the connection.
    Close,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Number of its connection, from 0.
    pub connection: usize,
    /// Code of its method.
    pub method: u8,
    /// Path.
    pub path: String,
    /// Headers in their order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Attributes with a string, by their code; those with a name of their own by that.
    pub attributes: BTreeMap<String, String>,
    /// Bytes of data in each packet of the body; 0 is the empty one.
    pub packets: Vec<usize>,
    /// The body.
    pub body: Vec<u8>,
}

impl Seen {
    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(known, _)| known == name);
        all.next().map(|(_, value)| &**value)
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    pings: AtomicUsize,
    pongs: Mutex<Pongs>,
    log: Mutex<Vec<Seen>>,
    /// Requests that are not in the log yet.
    running: AtomicUsize,
    /// The other side has done what it may not.
    wrong: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

/// The server. Dropped, it ends.
pub struct AjpServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl AjpServer {
    /// Listens on an address of a namespace.
    #[track_caller]
    pub fn start(ns: &Netns, at: SocketAddr) -> Self {
        let listener = ns.enter(|| TcpListener::bind(at));
        let listener = listener.unwrap_or_else(|error| panic!("listen on {at}: {error}"));
        listener.set_nonblocking(true).expect("a listener");
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !ours.stop.load(SeqCst) {
                match listener.accept() {
                    Ok((socket, _)) => serve(socket, &ours),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// What becomes of CPING from now on.
    pub fn pongs(&self, pongs: Pongs) {
        *self.shared.pongs.lock().expect("a lock") = pongs;
    }

    /// Connections on which a request came, and all CPINGs, up to now.
    pub fn counts(&self) -> (usize, usize) {
        self.settle();
        let log = self.shared.log.lock().expect("a lock");
        let mut connections: Vec<usize> = log.iter().map(|seen| seen.connection).collect();
        connections.sort_unstable();
        connections.dedup();
        (connections.len(), self.shared.pings.load(SeqCst))
    }

    /// Waits for the end of requests that are being answered: clients may have the answer
    /// already.
    fn settle(&self) {
        came_true(BOUND, || self.shared.running.load(SeqCst) == 0);
    }

    /// The requests so far; forgets them.
    pub fn take(&self) -> Vec<Seen> {
        self.settle();
        std::mem::take(&mut self.shared.log.lock().expect("a lock"))
    }

    /// The only request so far; forgets it.
    #[track_caller]
    pub fn only(&self) -> Seen {
        let mut log = self.take();
        assert_eq!(log.len(), 1, "{log:#?}");
        log.remove(0)
    }

    /// Closes all connections.
    pub fn close_connections(&self) {
        for socket in self.shared.sockets.lock().expect("a lock").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for AjpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.close_connections();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !std::thread::panicking() {
            let wrong = self.shared.wrong.load(SeqCst);
            assert!(!wrong, "what came was not AJP13: see above");
        }
    }
}

fn serve(socket: TcpStream, shared: &Arc<Shared>) {
    let number = shared.connections.fetch_add(1, SeqCst);
    socket.set_nonblocking(false).expect("a socket");
    socket.set_nodelay(true).expect("a socket");
    let kept = socket.try_clone().expect("duplicate a socket");
    shared.sockets.lock().expect("a lock").push(kept);
    let shared = Arc::clone(shared);
    // It ends with its socket.
    std::thread::spawn(move || {
        let mut talk = Talk {
            socket,
            number,
            shared,
        };
        // The socket's errors show in what the client gets.
        let run = std::panic::AssertUnwindSafe(|| drop(talk.run()));
        if std::panic::catch_unwind(run).is_err() {
            talk.shared.wrong.store(true, SeqCst);
        }
        let _ = talk.socket.shutdown(Shutdown::Both);
    });
}

/// A request that is being answered.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

struct Talk {
    socket: TcpStream,
    number: usize,
    shared: Arc<Shared>,
}

/// A packet of the server's with this payload.
pub fn packet(payload: &[u8]) -> Vec<u8> {
    let mut out = b"AB".to_vec();
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend(payload);
    out
}

/// SEND_HEADERS.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u16).to_be_bytes());
        out.extend(text.bytes());
        out.push(0);
    };
    let mut payload = vec![4];
    payload.extend(status.to_be_bytes());
    text(&mut payload, "as it is");
    payload.extend((headers.len() as u16).to_be_bytes());
    for (name, value) in headers {
        text(&mut payload, name);
        text(&mut payload, value);
    }
    packet(&payload)
}

/// SEND_BODY_CHUNK.
pub fn chunk(data: &str) -> Vec<u8> {
    let mut payload = vec![3];
    payload.extend((data.len() as u16).to_be_bytes());
    payload.extend(data.bytes());
    payload.push(0);
    packet(&payload)
}

/// END_RESPONSE.
pub fn end(reuse: u8) -> Vec<u8> {
    packet(&[5, reuse])
}

impl Talk {
    fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn packet(&mut self) -> io::Result<Vec<u8>> {
        let head = self.bytes(4)?;
        assert_eq!(&head[..2], b"\x12\x34", "what came is no packet: {head:x?}");
        self.bytes(usize::from(u16::from_be_bytes([head[2], head[3]])))
    }

    fn say(&mut self, parts: &[Vec<u8>]) -> io::Result<()> {
        self.socket.write_all(&parts.concat())
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let packet = self.packet()?;
            match packet.first() {
                Some(10) => {
                    self.shared.pings.fetch_add(1, SeqCst);
                    let pongs = *self.shared.pongs.lock().expect("a lock");
                    match pongs {
                        Pongs::Right => self.say(&[b"AB\0\x01\x09".to_vec()])?,
                        Pongs::None => {}
                        Pongs::Wrong => self.say(&[end(1)])?,
                        Pongs::Surplus => self.say(&[b"AB\0\x01\x09".to_vec(), end(1)])?,
                        Pongs::Close => return Ok(()),
                    }
                }
                Some(2) => {
                    let running = Running::new(&self.shared);
                    let mut seen = read(&packet);
                    seen.connection = self.number;
                    let go_on = self.answer(&mut seen);
                    self.shared.log.lock().expect("a lock").push(seen);
                    drop(running);
                    if !go_on? {
                        return Ok(());
                    }
                }
                other => panic!("a packet of the kind {other:?}"),
            }
        }
    }

    /// A packet of the body: whether there was data in it.
    fn body(&mut self, seen: &mut Seen) -> io::Result<bool> {
        let packet = self.packet()?;
        if packet.is_empty() {
            seen.packets.push(0);
            return Ok(false);
        }
        let length = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
        assert_eq!(packet.len(), length + 2, "lengths that do not fit");
        assert!(length > 0, "a packet of nothing that is not the end");
        seen.packets.push(length);
        seen.body.extend(&packet[2..]);
        Ok(true)
    }

    /// Asks for so much, and takes it.
    fn ask(&mut self, bytes: u16, seen: &mut Seen) -> io::Result<bool> {
        let [high, low] = bytes.to_be_bytes();
        self.say(&[packet(&[6, high, low])])?;
        self.body(seen)
    }

    /// Takes all of the body, asking for so much at a time.
    fn all(&mut self, bytes: u16, seen: &mut Seen) -> io::Result<()> {
        let length = seen.header("content-length").map(|text| {
            let length: usize = text.parse().expect("a length");
            length
        });
        match length {
            Some(0) => {}
            Some(length) => {
                self.body(seen)?;
                while seen.body.len() < length {
                    self.ask(bytes, seen)?;
                }
            }
            None => while self.ask(bytes, seen)? {},
        }
        Ok(())
    }

    /// Answers as the path says; whether the connection goes on.
    fn answer(&mut self, seen: &mut Seen) -> io::Result<bool> {
        let path = seen.path.clone();
        let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u16>().ok());
        let known = |n: &'static str| head(200, &[("Content-Length", n)]);
        let plain = head(200, &[("X-A", "b")]);
        if !matches!(words[0], "unread" | "ask-twice") {
            self.all(number(1).unwrap_or(8186), seen)?;
        }
        match words[0] {
            // The end of the body is asked for as well.
            "more" => {
                for _ in 0..2 {
                    assert!(!self.ask(8186, seen)?, "more body than there is");
                }
                self.say(&[known("2"), chunk("ok"), end(1)])?;
            }
            // Likewise, between the response's head and its body.
            "more-between" => {
                self.say(&[known("2")])?;
                for _ in 0..2 {
                    assert!(!self.ask(8186, seen)?, "more body than there is");
                }
                self.say(&[chunk("ok"), end(1)])?;
            }
            // Answers first; takes the packet that comes unasked, so that what follows it
            // is read as what it is.
            "unread" => {
                if seen.header("content-length").is_some_and(|n| n != "0") {
                    self.body(seen)?;
                }
                self.say(&[known("2"), chunk("ok"), end(1)])?;
            }
            "status" => {
                let status = number(1).unwrap_or(200);
                self.say(&[head(status, &[]), end(1)])?;
            }
            "unknown" => self.say(&[plain, chunk("ab"), chunk("cd"), end(1)])?,
            "flush" => self.say(&[plain, chunk(""), chunk("ab"), chunk(""), end(1)])?,
            "bytes" => {
                let all = [plain, chunk("ab"), chunk(""), chunk("cd"), end(1)].concat();
                for byte in all {
                    self.say(&[vec![byte]])?;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            "close-flag" => self.say(&[known("2"), chunk("ok"), end(0)])?,
            // The end comes later than all of the body.
            "late-end" => {
                self.say(&[known("2"), chunk("ok")])?;
                std::thread::sleep(Duration::from_millis(200));
                self.say(&[end(1)])?;
            }
            // And asks for the end of the request's body in between.
            "late-ask" => {
                self.say(&[known("2"), chunk("ok")])?;
                std::thread::sleep(Duration::from_millis(200));
                assert!(!self.ask(8186, seen)?, "more body than there is");
                self.say(&[end(1)])?;
            }
            "surplus" => self.say(&[known("2"), chunk("ok"), end(1), end(1)])?,
            "late-surplus" => {
                self.say(&[known("2"), chunk("ok"), end(1)])?;
                std::thread::sleep(Duration::from_millis(50));
                self.say(&[head(200, &[]), chunk("another's"), end(1)])?;
            }
            "hop" => {
                let headers = [
                    ("Connection", "X-Hop, close"),
                    ("X-Hop", "1"),
                    ("Keep-Alive", "5"),
                    ("Transfer-Encoding", "chunked"),
                    ("Set-Cookie", "a=1"),
                    ("Set-Cookie", "b=2"),
                    ("Trailer", "X-T"),
                ];
                self.say(&[head(200, &headers), chunk("ok"), end(1)])?;
            }
            // From here on it does what nobody may do.
            "close" => return Ok(false),
            "close-head" => {
                self.say(&[plain[..9].to_vec()])?;
                return Ok(false);
            }
            "close-body" => {
                self.say(&[plain, chunk("ab")])?;
                return Ok(false);
            }
            "close-chunk" => {
                self.say(&[known("4"), chunk("abcd")[..9].to_vec()])?;
                return Ok(false);
            }
            "close-end" => {
                self.say(&[known("2"), chunk("ok")])?;
                return Ok(false);
            }
            "garbage" => self.say(&[b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()])?,
            "kind" => self.say(&[packet(&[7, 7])])?,
            "empty" => self.say(&[packet(&[])])?,
            "large" => self.say(&[b"AB\x1F\xFD\x04".to_vec()])?,
            "lengths" => self.say(&[plain, packet(b"\x03\0\x09ab\0")])?,
            "string" => self.say(&[packet(b"\x04\0\xC8\0\x05OK\0\0\0")])?,
            "short" => self.say(&[known("5"), chunk("ab"), end(1)])?,
            "long" => self.say(&[known("2"), chunk("abcd"), end(1)])?,
            "two-lengths" => {
                let two = [("Content-Length", "2"), ("Content-Length", "3")];
                self.say(&[head(200, &two), chunk("ab"), end(1)])?;
            }
            "no-length" => self.say(&[head(200, &[("Content-Length", "2x")]), end(1)])?,
            "end-first" => self.say(&[end(1)])?,
            "body-first" => self.say(&[chunk("ab"), plain, end(1)])?,
            "two-heads" => self.say(&[plain.clone(), plain, end(1)])?,
            "pong" => self.say(&[b"AB\0\x01\x09".to_vec(), plain, end(1)])?,
            "interim" => self.say(&[head(103, &[("Link", "x")]), plain, end(1)])?,
            "split" => self.say(&[head(200, &[("X-A", "b\r\nSet-Cookie: c=d")]), end(1)])?,
            "name" => self.say(&[head(200, &[("X A", "b")]), end(1)])?,
            "ask-twice" => {
                self.say(&[packet(&[6, 0, 9]), packet(&[6, 0, 9])])?;
                for _ in 0..2 {
                    self.body(seen)?;
                }
                self.say(&[known("2"), chunk("ok"), end(1)])?;
            }
            "ask-nothing" => self.say(&[packet(&[6, 0, 0])])?,
            // Waits for the other side's end.
            "silent" => {
                let _ = self.packet();
                return Ok(false);
            }
            "stalls" => {
                self.say(&[plain, chunk("ab")])?;
                let _ = self.packet();
                return Ok(false);
            }
            _ => self.say(&[known("2"), chunk("ok"), end(1)])?,
        }
        Ok(true)
    }
}

/// Reads FORWARD_REQUEST.
fn read(packet: &[u8]) -> Seen {
    struct Reader<'a>(&'a [u8]);
    impl Reader<'_> {
        fn byte(&mut self) -> u8 {
            let (byte, rest) = self.0.split_first().expect("more of a request");
            self.0 = rest;
            *byte
        }
        fn number(&mut self) -> u16 {
            u16::from_be_bytes([self.byte(), self.byte()])
        }
        fn rest(&mut self, length: u16) -> String {
            let text = (0..length).map(|_| char::from(self.byte())).collect();
            assert_eq!(self.byte(), 0, "a string without its end");
            text
        }
        fn text(&mut self) -> String {
            let length = self.number();
            self.rest(length)
        }
    }
    const CODED: [&str; 14] = [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "authorization",
        "connection",
        "content-type",
        "content-length",
        "cookie",
        "cookie2",
        "host",
        "pragma",
        "referer",
        "user-agent",
    ];
    let mut reader = Reader(&packet[1..]);
    let mut seen = Seen {
        method: reader.byte(),
        ..Seen::default()
    };
    let protocol = reader.text();
    seen.path = reader.text();
    let mut note = |name: &str, value: String| {
        let before = seen.attributes.insert(name.to_owned(), value);
        assert!(before.is_none(), "{name} twice");
    };
    note("protocol", protocol);
    for name in ["remote_addr", "remote_host", "server_name"] {
        note(name, reader.text());
    }
    note("port", reader.number().to_string());
    note("ssl", reader.byte().to_string());
    for _ in 0..reader.number() {
        let name = match reader.number() {
            code if code >> 8 == 0xA0 => CODED[usize::from(code & 0xFF) - 1].to_owned(),
            length => reader.rest(length).to_lowercase(),
        };
        seen.headers.push((name, reader.text()));
    }
    loop {
        match reader.byte() {
            0xFF => break,
            0x0A => {
                let name = reader.text();
                note(&name, reader.text());
            }
            0x0B => note("0b", reader.number().to_string()),
            code => note(&format!("{code:02x}"), reader.text()),
        }
    }
    assert_eq!(reader.0, b"", "bytes behind a request");
    seen
}
