//! A client that sends any bytes and says exactly what came back: answers with their
//! fields in order, interim answers, trailers, and whether the connection was closed.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::process::BOUND;

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// A connection.
pub struct Raw {
    tcp: TcpStream,
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
    /// Protocol that ALPN agreed on.
    pub alpn: Option<String>,
    /// Leaf certificate that the server showed, DER.
    pub certificate: Option<Vec<u8>>,
}

/// Name and value.
pub type Field = (String, String);

/// An answer, read whole.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `HTTP/1.1`.
    pub version: String,
    /// Fields in their order; names in lower case.
    pub headers: Vec<Field>,
    /// Without framing.
    pub body: Vec<u8>,
    /// Fields after a chunked body.
    pub trailers: Vec<Field>,
    /// Interim answers that came before: status and fields.
    pub interim: Vec<(u16, Vec<Field>)>,
    /// The body ended with the connection.
    pub until_close: bool,
}

impl Answer {
    /// Values of all fields of a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(have, _)| have == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Value of the only field of a name; nothing when there is none.
    ///
    /// # Panics
    /// When there are several.
    #[track_caller]
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "several {name} in {self:?}");
        all.first().copied()
    }

    /// The server that answered.
    #[track_caller]
    pub fn server(&self) -> &str {
        let server = self.one("x-server");
        server.unwrap_or_else(|| panic!("no backend answered: {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Name and value of every cookie that is set, with its attributes.
    pub fn cookies(&self) -> Vec<(&str, &str, &str)> {
        let lines = self.all("set-cookie").into_iter();
        lines
            .map(|line| {
                let (pair, attributes) = line.split_once(';').unwrap_or((line, ""));
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name.trim(), value.trim(), attributes.trim())
            })
            .collect()
    }

    /// The value that a cookie is set to.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let all = self.cookies();
        all.iter().find(|(have, ..)| *have == name).map(|c| c.1)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection was closed, or reset, before the first byte.
    Closed,
    /// It ended within an answer, after so many bytes of body.
    Cut(usize),
    /// Nothing came in time.
    Silent,
    /// What came is not HTTP.
    Nonsense(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed without an answer"),
            Self::Cut(bytes) => write!(f, "cut after {bytes} bytes of body"),
            Self::Silent => f.write_str("no answer in time"),
            Self::Nonsense(what) => write!(f, "not HTTP: {what}"),
        }
    }
}

impl Raw {
    /// Connects from inside a namespace.
    #[track_caller]
    pub fn connect(ns: &Netns, to: SocketAddr) -> Self {
        Self::plain(tcp(ns, None, to).unwrap_or_else(|error| panic!("connect to {to}: {error}")))
    }

    /// Connects from a source address.
    ///
    /// # Errors
    /// Of the socket.
    pub fn connect_from(ns: &Netns, from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        Ok(Self::plain(tcp(ns, Some(from), to)?))
    }

    /// Connects, and shakes hands for a name.
    ///
    /// # Errors
    /// Of the socket, or of the handshake.
    pub fn tls(
        ns: &Netns,
        to: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<Self> {
        let tcp = tcp(ns, None, to)?;
        Self::over_tls(tcp, config, name)
    }

    /// Shakes hands on a connection that has sent something before, such as a PROXY header.
    ///
    /// # Errors
    /// Of the handshake.
    pub fn over_tls(tcp: TcpStream, config: &Arc<ClientConfig>, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, tcp.try_clone()?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let alpn = stream.conn.alpn_protocol();
        let alpn = alpn.map(|name| String::from_utf8_lossy(name).into_owned());
        let chain = stream.conn.peer_certificates();
        let certificate = chain
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.to_vec());
        Ok(Self {
            tcp,
            stream: Box::new(stream),
            buffer: Vec::new(),
            alpn,
            certificate,
        })
    }

    /// Takes a connected socket.
    pub fn plain(tcp: TcpStream) -> Self {
        let stream = Box::new(tcp.try_clone().expect("duplicate a socket"));
        Self {
            tcp,
            stream,
            buffer: Vec::new(),
            alpn: None,
            certificate: None,
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        &self.tcp
    }

    /// Sends bytes. That the other side has closed shows when its answer is read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
        let _ = self.stream.flush();
    }

    /// Sends bytes, and says how it went.
    ///
    /// # Errors
    /// Of the socket.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Closes the sending side.
    pub fn finish(&self) {
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    /// How long a read or a write waits.
    pub fn patience(&self, time: Duration) {
        self.tcp.set_read_timeout(Some(time)).expect("a timeout");
        self.tcp.set_write_timeout(Some(time)).expect("a timeout");
    }

    /// Sends a GET and reads its answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    /// Sends a GET with further fields and reads its answer.
    #[track_caller]
    pub fn get_with(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.request("GET", path, fields, b"")
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let result = self.try_request(method, path, fields, body);
        result.unwrap_or_else(|trouble| panic!("{method} {path}: {trouble}"))
    }

    /// Like [`request`](Self::request).
    ///
    /// # Errors
    /// When no whole answer came.
    pub fn try_request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Trouble> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head += "Host: test.example\r\n";
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.send([head.as_bytes(), b"\r\n", body].concat());
        self.try_answer(method == "HEAD")
    }

    /// Reads an answer.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let result = self.try_answer(false);
        result.unwrap_or_else(|trouble| panic!("{trouble}"))
    }

    /// Reads an answer, to HEAD or to something else.
    ///
    /// # Errors
    /// When no whole answer came.
    pub fn try_answer(&mut self, to_head: bool) -> Result<Answer, Trouble> {
        let mut answer = Answer::default();
        loop {
            (answer.version, answer.status, answer.headers) = self.head()?;
            if !(100..200).contains(&answer.status) || answer.status == 101 {
                break;
            }
            let headers = std::mem::take(&mut answer.headers);
            answer.interim.push((answer.status, headers));
        }
        if to_head || matches!(answer.status, 101 | 204 | 304) {
            return Ok(answer);
        }
        let codings = answer.all("transfer-encoding").join(",");
        let lengths = answer.all("content-length").join(",");
        if codings.eq_ignore_ascii_case("chunked") {
            if !lengths.is_empty() {
                return Err(Trouble::Nonsense("both framings".into()));
            }
            self.chunks(&mut answer)?;
        } else if !codings.is_empty() {
            return Err(Trouble::Nonsense(codings));
        } else if lengths.is_empty() {
            answer.until_close = true;
            while self.fill(answer.body.len())? {
                answer.body.append(&mut self.buffer);
            }
        } else {
            let length = lengths.parse().map_err(|_| Trouble::Nonsense(lengths))?;
            answer.body = self.exactly(length, 0)?;
        }
        Ok(answer)
    }

    /// Reads the head of an answer: version, status, fields.
    ///
    /// # Errors
    /// When no whole head came.
    pub fn head(&mut self) -> Result<(String, u16, Vec<Field>), Trouble> {
        let first = self.line(true)?;
        let mut words = first.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|status| status.parse().ok());
        let (Some(status), true) = (status, version.starts_with("HTTP/1.")) else {
            return Err(Trouble::Nonsense(first));
        };
        Ok((version, status, self.fields()?))
    }

    /// Reads one chunk; an empty one is the last, and trailers follow.
    ///
    /// # Errors
    /// When none came.
    pub fn chunk(&mut self) -> Result<Vec<u8>, Trouble> {
        let line = self.line(false)?;
        let size = usize::from_str_radix(&line, 16).map_err(|_| Trouble::Nonsense(line))?;
        let bytes = self.exactly(size, 0)?;
        if size > 0 {
            self.exactly(2, 0)?;
        }
        Ok(bytes)
    }

    fn chunks(&mut self, answer: &mut Answer) -> Result<(), Trouble> {
        loop {
            let chunk = self.chunk();
            let chunk = chunk.map_err(|trouble| match trouble {
                Trouble::Cut(bytes) => Trouble::Cut(answer.body.len() + bytes),
                other => other,
            })?;
            if chunk.is_empty() {
                answer.trailers = self.fields()?;
                return Ok(());
            }
            answer.body.extend(chunk);
        }
    }

    fn fields(&mut self) -> Result<Vec<Field>, Trouble> {
        let mut fields = Vec::new();
        loop {
            let line = self.line(false)?;
            if line.is_empty() {
                return Ok(fields);
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(Trouble::Nonsense(line));
            };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self, first: bool) -> Result<String, Trouble> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Ok(line[..at].iter().map(|&byte| char::from(byte)).collect());
            }
            if self.buffer.len() > 1 << 20 {
                return Err(Trouble::Nonsense("a line without an end".into()));
            }
            if !self.fill(0)? {
                return Err(match first && self.buffer.is_empty() {
                    true => Trouble::Closed,
                    false => Trouble::Cut(0),
                });
            }
        }
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// When fewer came.
    pub fn exactly(&mut self, count: usize, before: usize) -> Result<Vec<u8>, Trouble> {
        while self.buffer.len() < count {
            if !self.fill(before + self.buffer.len())? {
                return Err(Trouble::Cut(before + self.buffer.len()));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self, so_far: usize) -> Result<bool, Trouble> {
        let mut bytes = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    return Ok(true);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Err(Trouble::Silent);
                    }
                    // In the middle of a body without framing a reset must not pass for
                    // its end.
                    _ if so_far > 0 => return Err(Trouble::Cut(so_far)),
                    _ => return Ok(false),
                },
            }
        }
    }

    /// Bytes that have come and were not taken.
    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether the other side closes (or resets) within this time; what it still sends
    /// is kept in [`rest`](Self::rest).
    pub fn closes(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.patience(left);
            let result = self.fill(0);
            self.patience(BOUND);
            match result {
                Ok(true) => {}
                Ok(false) | Err(Trouble::Cut(_)) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// A connected socket with the usual patience.
///
/// # Errors
/// Of the socket.
pub fn tcp(ns: &Netns, from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    ns.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&to.into(), BOUND)?;
        let tcp = TcpStream::from(socket);
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(BOUND))?;
        tcp.set_write_timeout(Some(BOUND))?;
        Ok(tcp)
    })
}
