//! A frontend on loopback with a handler that does what the path says.

use std::future::pending;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::model::http::{ClientTimeouts, Forwarded, Http, HttpFrontend, Limits, Tls, Versions};
use crate::proxy::downstream::{
    FrontendLive, Handler, Inform, Listeners, PreparedListeners, TlsStore,
};
use crate::proxy::types::{Body, Cause, Connection};

/// What the handler saw.
#[derive(Default)]
pub struct Log {
    pub refused: Mutex<Vec<(u16, Vec<u8>, Cause)>>,
    pub dropped: Mutex<usize>,
    pub broken_bodies: Mutex<usize>,
    pub connections: Mutex<Vec<String>>,
}

pub struct Paths {
    log: Arc<Log>,
}

/// Counts a handler's future that is dropped before it was ready.
struct Dropped(Option<Arc<Log>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            *log.dropped.lock().unwrap() += 1;
        }
    }
}

impl Handler for Paths {
    async fn handle(
        self: Rc<Self>,
        mut request: Request<Body>,
        connection: Rc<Connection>,
        inform: Inform,
    ) -> Response<Body> {
        let mut guard = Dropped(Some(Arc::clone(&self.log)));
        let path = request.uri().path().to_owned();
        let response = match path.as_str() {
            "/echo" => match request.into_body().collect().await {
                Ok(body) => Response::new(Body::full(body.to_bytes())),
                Err(_) => {
                    *self.log.broken_bodies.lock().unwrap() += 1;
                    let mut response = Response::new(Body::Empty);
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    response
                }
            },
            "/trailers" => {
                let body = request.into_body().collect().await;
                let trailers = body.ok().and_then(|b| b.trailers().cloned());
                Response::new(Body::full(format!("{trailers:?}")))
            }
            "/never" => pending().await,
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Response::new(Body::full("slow"))
            }
            "/slower" => {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                Response::new(Body::full("slower"))
            }
            "/big" => Response::new(Body::full(vec![b'x'; 64 << 20])),
            "/ignore" => Response::new(Body::full("ignored")),
            "/hints" => {
                let mut headers = HeaderMap::new();
                headers.insert("link", HeaderValue::from_static("</a>; rel=preload"));
                inform.send(StatusCode::EARLY_HINTS, &headers);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Response::new(Body::full("hinted"))
            }
            "/upgrade" => {
                let on = hyper::upgrade::on(&mut request);
                tokio::task::spawn_local(async move {
                    let Ok(upgraded) = on.await else { return };
                    let mut io = TokioIo::new(upgraded);
                    let mut place = [0; 100];
                    while let Ok(n) = io.read(&mut place).await {
                        if n == 0 || io.write_all(&place[..n]).await.is_err() {
                            break;
                        }
                    }
                });
                Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "echo")
                    .body(Body::Empty)
                    .unwrap()
            }
            "/who" => Response::new(Body::full(format!(
                "{} {} {} {:?}",
                connection.client, connection.local, connection.peer, connection.tls
            ))),
            other => Response::new(Body::full(format!("you asked for {other}"))),
        };
        guard.0 = None;
        response
    }

    fn refused(&self, connection: &Connection, head: &[u8], status: u16, cause: Cause) {
        let mut refused = self.log.refused.lock().unwrap();
        refused.push((status, head.to_vec(), cause));
        let client = connection.client.to_string();
        self.log.connections.lock().unwrap().push(client);
    }
}

/// Reads certificates and binds.
fn prepare(http: &Http, previous: Option<&Listeners>) -> PreparedListeners {
    let stores = http.frontends.iter().map(|frontend| {
        let old = previous.and_then(|previous| previous.tls(frontend));
        let tls = frontend.tls.as_ref()?;
        let store = TlsStore::load(tls, frontend.versions, old.as_deref()).unwrap();
        Some(Arc::new(store))
    });
    Listeners::prepare(http, stores.collect(), previous).unwrap()
}

/// A frontend and what belongs to it. Dropping it drains, with nothing left.
pub struct Server {
    pub address: SocketAddr,
    pub listeners: Listeners,
    pub log: Arc<Log>,
    pub http: Http,
    threads: Vec<JoinHandle<()>>,
}

/// A port that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A frontend with nothing special.
pub fn frontend(address: SocketAddr) -> HttpFrontend {
    HttpFrontend {
        name: "web".into(),
        address,
        tls: None,
        versions: Versions {
            http1: true,
            http2: true,
        },
        proxy_protocol_from: Vec::new(),
        trusted_proxies: Vec::new(),
        forwarded: Forwarded {
            x_forwarded: true,
            rfc7239: false,
        },
        via: None,
        request_id: None,
        hsts: None,
        redirect_https: None,
        limits: Limits::default(),
        timeouts: ClientTimeouts::default(),
        log: None,
        sites: Vec::new(),
    }
}

pub fn http(frontends: Vec<HttpFrontend>) -> Http {
    Http {
        threads: 1,
        pin_threads: false,
        learned_max: 0,
        max_connections: 100_000,
        drain_timeout: Duration::from_secs(10),
        frontends: frontends.into_iter().map(Arc::new).collect(),
    }
}

impl Server {
    pub fn start(change: impl FnOnce(&mut HttpFrontend)) -> Self {
        let mut front = frontend(free());
        change(&mut front);
        Self::run(http(vec![front]))
    }

    pub fn with_tls(tls: Tls, change: impl FnOnce(&mut HttpFrontend)) -> Self {
        Self::start(|f| {
            f.tls = Some(tls);
            change(f);
        })
    }

    pub fn run(http: Http) -> Self {
        let log = Arc::new(Log::default());
        let listeners = prepare(&http, None);
        let listeners = Listeners::new(listeners);
        let threads = (0..listeners.threads())
            .map(|thread| {
                let listeners = listeners.clone();
                let log = Arc::clone(&log);
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    let local = LocalSet::new();
                    local.block_on(&runtime, async {
                        let handler = |_: &Arc<str>| {
                            Rc::new(Paths {
                                log: Arc::clone(&log),
                            })
                        };
                        listeners.serve(thread, handler).await;
                    });
                })
            })
            .collect();
        Self {
            address: http.frontends[0].address,
            listeners,
            log,
            http,
            threads,
        }
    }

    /// Goes over to a changed configuration.
    pub fn reload(&mut self, change: impl FnOnce(&mut Http)) {
        change(&mut self.http);
        let prepared = prepare(&self.http, Some(&self.listeners));
        self.listeners.apply(prepared);
    }

    pub fn live(&self) -> Arc<FrontendLive> {
        Arc::clone(&self.listeners.live()[0].1)
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Waits for the drain to be over.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listeners.drain();
        if !std::thread::panicking() {
            self.join();
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// A response as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn closes(&self) -> bool {
        self.head.to_lowercase().contains("\r\nconnection: close")
    }
}

/// Reads a head, byte by byte, so that nothing after it is lost.
pub fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            let so_far = String::from_utf8_lossy(&head).into_owned();
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                so_far,
            ));
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// Reads a response that has a Content-Length.
pub fn try_answer(stream: &mut impl Read) -> std::io::Result<Answer> {
    let head = read_head(stream)?;
    let status = head[9..12].parse().unwrap();
    let length = head
        .lines()
        .find_map(|l| {
            l.to_lowercase()
                .strip_prefix("content-length: ")
                .map(str::to_owned)
        })
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer { status, head, body })
}

pub fn answer(stream: &mut impl Read) -> Answer {
    try_answer(stream).unwrap()
}

/// Sends bytes, reads one response.
pub fn ask(stream: &mut (impl Read + Write), bytes: impl AsRef<[u8]>) -> Answer {
    stream.write_all(bytes.as_ref()).unwrap();
    answer(stream)
}

pub fn get(stream: &mut (impl Read + Write), path: &str) -> Answer {
    ask(stream, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
}

/// The other side has closed, without a reset.
pub fn at_end(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

/// Waits until something is so; panics after a long time.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A body that is not allowed to be empty.
pub fn bytes(n: usize) -> Bytes {
    (0..n).map(|i| b'a' + (i % 26) as u8).collect()
}
