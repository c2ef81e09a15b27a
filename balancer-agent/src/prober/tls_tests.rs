//! Checks over TLS and over HTTP/2, against real servers on loopback.

use super::health::Outcome;
use super::probe::{self, Report};
use super::{CheckTls, Wire};
use crate::config;
use crate::model::{Check, CheckKind};
use crate::proxy::upstream::endpoint::Speech;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const LONG: Duration = Duration::from_secs(20);

/// An authority, with its certificate as `ca.pem` in a directory of its own.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
type Pair = (CertificateDer<'static>, KeyPair);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), key)
    }

    fn good(&self) -> Pair {
        self.sign(&["app.example"], |_| {})
    }

    /// What is spoken by a pool with these keys of its `[pool.tls]`; `@` is the directory.
    fn wire(&self, protocol: &str, tls: &str) -> Wire {
        let text = format!(
            "[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"\npool = \"app\"\n\
             [[pool]]\nname = \"app\"\nprotocol = \"{protocol}\"\n[pool.tls]\n{tls}\n\
             [[pool.backend]]\nname = \"s1\"\naddress = \"127.0.0.1:81\"\n"
        );
        let text = text.replace('@', self.dir.path().to_str().unwrap());
        let config = config::parse("test", &text).unwrap_or_else(|error| panic!("{error}"));
        let speech = Speech::prepare(&config.pools[0], &mut Vec::new()).unwrap();
        let tls = speech.tls.unwrap();
        Wire {
            tls: Some(CheckTls::new(&tls.config, tls.server_name)),
            ..Wire::default()
        }
    }

    /// As [`Self::wire`] for HTTP/1.1, trusting this authority and asking for that name.
    fn asking(&self, name: &str) -> Wire {
        let tls = format!("authorities = \"@/ca.pem\"\nserver_name = \"{name}\"");
        self.wire("http1", &tls)
    }
}

fn serving(pair: &Pair, client_ca: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.issuer.der().clone()).unwrap();
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.1.serialize_der()));
    builder.with_single_cert(vec![pair.0.clone()], key).unwrap()
}

/// What a server has seen of a request: its head as HTTP/1.1 has it, or `h2` with what
/// stands in the pseudo headers; and the name that TLS asked for.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

struct Server {
    address: SocketAddr,
    /// What the next connection is served with; none: in the clear.
    tls: Arc<Mutex<Option<Arc<ServerConfig>>>>,
    seen: Seen,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Arc::new(Mutex::new(tls.map(Arc::new)));
        let seen = Seen::default();
        let (next, note) = (Arc::clone(&tls), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let config = next.lock().unwrap().clone();
                let note = Arc::clone(&note);
                tokio::spawn(async move {
                    let Some(config) = config else {
                        return answer(stream, None, &note).await;
                    };
                    // A client that does not like the certificate goes away.
                    if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                        let name = stream.get_ref().1.server_name().map(str::to_owned);
                        answer(stream, name, &note).await;
                    }
                });
            }
        });
        Self {
            address,
            tls,
            seen,
            task,
        }
    }

    fn requests(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// Answers a request with 204, whichever version it is of.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    name: Option<String>,
    seen: &Seen,
) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    if head != PREFACE {
        let head = String::from_utf8(head).unwrap().to_lowercase();
        seen.lock().unwrap().push((head, name));
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        return;
    }
    let stream = Again {
        first: std::io::Cursor::new(head),
        stream,
    };
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let head = format!("h2 {} {}", request.method(), request.uri());
        seen.lock().unwrap().push((head, name.clone()));
        // An informational response is not the answer.
        let hints = http::Response::builder().status(103).body(()).unwrap();
        let _ = respond.send_informational(hints);
        let response = http::Response::builder().status(204).body(()).unwrap();
        let _ = respond.send_response(response, true);
    }
}

/// A stream whose first bytes were read already.
struct Again<S> {
    first: std::io::Cursor<Vec<u8>>,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Again<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let first = std::pin::Pin::new(&mut self.first).poll_read(cx, buffer);
        match buffer.filled().len() > before {
            true => first,
            false => std::pin::Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Again<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn tcp(timeout: Duration) -> Check {
    Check {
        kind: CheckKind::Tcp,
        interval: LONG,
        fast_interval: LONG,
        timeout,
        fall: 3,
        rise: 2,
        port: None,
        tls: true,
        as_requests: true,
    }
}

fn http(host: Option<&str>) -> Check {
    Check {
        kind: CheckKind::Http {
            path: "/health?full=1".into(),
            host: host.map(Into::into),
            expect: vec![(204, 204)],
        },
        ..tcp(LONG)
    }
}

#[track_caller]
fn passed(report: &Report, text: &str) {
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    assert_eq!(&*report.text, text);
}

#[track_caller]
fn failed(report: &Report, text: &str) {
    assert_eq!(report.outcome, Outcome::Failure, "{report:?}");
    assert!(
        report.text.starts_with(text),
        "{:?}, not {text:?}",
        report.text
    );
}

/// Closes; what still comes is read, so that it is no reset.
async fn hang_up(mut stream: TcpStream) {
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_completed_handshake_is_the_proof() {
    let ca = Authority::new("ca");
    let server = Server::start(Some(serving(&ca.good(), None))).await;
    let report = probe::run(server.address, &tcp(LONG), &ca.asking("app.example")).await;
    passed(&report, "TLS handshake done");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn requests_name_the_host_that_tls_asks_for() {
    let ca = Authority::new("ca");
    let server = Server::start(Some(serving(&ca.good(), None))).await;
    let wire = ca.asking("app.example");
    for (host, sent) in [
        (None, "app.example"),
        (Some("shop.example"), "shop.example"),
    ] {
        let report = probe::run(server.address, &http(host), &wire).await;
        passed(&report, "status 204");
        let [(head, name)] = &server.requests()[..] else {
            panic!("not one request");
        };
        assert!(
            head.starts_with("get /health?full=1 http/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains(&format!("\r\nhost: {sent}\r\n")), "{head}");
        assert_eq!(name.as_deref(), Some("app.example"));
    }
    // Without a name the address is verified, and is the host.
    let pair = ca.sign(&["127.0.0.1"], |_| {});
    let server = Server::start(Some(serving(&pair, None))).await;
    let wire = ca.wire("http1", "authorities = \"@/ca.pem\"");
    passed(
        &probe::run(server.address, &http(None), &wire).await,
        "status 204",
    );
    let (head, name) = server.requests().remove(0);
    let host = format!("\r\nhost: {}\r\n", server.address);
    assert!(head.contains(&host) && name.is_none(), "{head} {name:?}");
}

#[tokio::test]
async fn certificates_are_judged_in_words() {
    let ca = Authority::new("ca");
    let (other, again) = (Authority::new("other"), Authority::new("ca"));
    let day = rcgen::date_time_ymd;
    let expired = ca.sign(&["app.example"], |params| {
        (params.not_before, params.not_after) = (day(2001, 1, 1), day(2002, 1, 1));
    });
    let early = ca.sign(&["app.example"], |params| {
        params.not_before = day(2999, 1, 1)
    });
    let many: Vec<String> = (0..9).map(|i| format!("host{i}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let rows = [
        (expired, "certificate expired on Tue, 01 Jan 2002"),
        (early, "certificate not valid before Tue, 01 Jan 2999"),
        (other.good(), "certificate of an unknown issuer"),
        (
            again.good(),
            "certificate not signed by the authority that it names",
        ),
        (
            ca.sign(&["shop.example", "www.example"], |_| {}),
            "certificate for shop.example, www.example, not for app.example",
        ),
        (
            ca.sign(&many, |_| {}),
            "certificate for host0.example, host1.example, host2.example, 6 more, not for app.example",
        ),
        (
            ca.sign(&[], |_| {}),
            "certificate for no name, not for app.example",
        ),
    ];
    for (pair, text) in rows {
        let server = Server::start(Some(serving(&pair, None))).await;
        for check in [tcp(LONG), http(None)] {
            let report = probe::run(server.address, &check, &ca.asking("app.example")).await;
            failed(&report, &format!("TLS: {text}"));
            assert!(server.requests().is_empty());
            // Whoever does not ask does not hear of it.
            let blind = ca.wire("http1", "verify = false");
            let report = probe::run(server.address, &check, &blind).await;
            assert_eq!(report.outcome, Outcome::Success, "{report:?}");
            server.requests();
        }
    }
    // Without a name, the certificate has to be for the address.
    let server = Server::start(Some(serving(&ca.good(), None))).await;
    let wire = ca.wire("http1", "authorities = \"@/ca.pem\"");
    let report = probe::run(server.address, &tcp(LONG), &wire).await;
    failed(
        &report,
        "TLS: certificate for app.example, not for 127.0.0.1",
    );
}

#[tokio::test]
async fn what_is_not_tls_is_told() {
    let ca = Authority::new("ca");
    let wire = ca.asking("app.example");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let answers: [&[u8]; 2] = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""];
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            hang_up(stream).await;
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        // Until the check gives up.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let check = http(None);
    let report = probe::run(address, &check, &wire).await;
    failed(&report, "TLS: the server does not speak TLS");
    let report = probe::run(address, &check, &wire).await;
    failed(&report, "TLS: connection closed in the handshake");
    let report = probe::run(address, &tcp(Duration::from_millis(200)), &wire).await;
    failed(
        &report,
        "timeout after 200ms while waiting for the TLS handshake",
    );
    server.await.unwrap();
}

#[tokio::test]
async fn the_pools_certificate_is_shown() {
    let ca = Authority::new("ca");
    let own = ca.sign(&["balancer.example"], |_| {});
    let pem = |name: &str| ca.dir.path().join(name);
    let text = |der: &[u8]| {
        use base64::Engine;
        let lines = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    };
    std::fs::write(pem("own.pem"), text(&own.0)).unwrap();
    std::fs::write(pem("own.key"), own.1.serialize_pem()).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(pem("own.key"), closed).unwrap();
    let server = Server::start(Some(serving(&ca.good(), Some(&ca)))).await;
    let report = probe::run(server.address, &http(None), &ca.asking("app.example")).await;
    failed(&report, "TLS: the server refuses: CertificateRequired");
    let wire = ca.wire(
        "http1",
        "authorities = \"@/ca.pem\"\nserver_name = \"app.example\"\n\
         certificate = \"@/own.pem\"\nkey = \"@/own.key\"",
    );
    let report = probe::run(server.address, &http(None), &wire).await;
    passed(&report, "status 204");
}

#[tokio::test]
async fn every_check_sees_the_certificate() {
    let ca = Authority::new("ca");
    let server = Server::start(Some(serving(&ca.good(), None))).await;
    let wire = ca.asking("app.example");
    passed(
        &probe::run(server.address, &http(None), &wire).await,
        "status 204",
    );
    // Another certificate, behind the same memory of sessions.
    let mut late = serving(
        &ca.sign(&["app.example"], |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }),
        None,
    );
    let old = server.tls.lock().unwrap().clone().unwrap();
    late.session_storage = Arc::clone(&old.session_storage);
    late.ticketer = Arc::clone(&old.ticketer);
    *server.tls.lock().unwrap() = Some(Arc::new(late));
    let report = probe::run(server.address, &http(None), &wire).await;
    failed(&report, "TLS: certificate expired");
}

#[tokio::test]
async fn http2_is_spoken_where_requests_are() {
    let ca = Authority::new("ca");
    // Agreed on by ALPN.
    let mut config = serving(&ca.good(), None);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = Server::start(Some(config)).await;
    let tls = "authorities = \"@/ca.pem\"\nserver_name = \"app.example\"";
    for (protocol, head) in [
        ("http2", "h2 GET https://app.example/health?full=1"),
        ("http1", "get /health?full=1 http/1.1\r\n"),
    ] {
        let report = probe::run(server.address, &http(None), &ca.wire(protocol, tls)).await;
        passed(&report, "status 204");
        let seen = server.requests().remove(0).0;
        assert!(seen.starts_with(head), "{protocol}: {seen}");
    }
    // Known beforehand.
    let prior = Wire {
        http2: true,
        ..Wire::default()
    };
    let server = Server::start(None).await;
    let report = probe::run(server.address, &http(Some("shop.example")), &prior).await;
    passed(&report, "status 204");
    let seen = server.requests().remove(0).0;
    assert_eq!(seen, "h2 GET http://shop.example/health?full=1");
    let strict = Check {
        kind: CheckKind::Http {
            path: "/".into(),
            host: None,
            expect: vec![(200, 200)],
        },
        ..tcp(LONG)
    };
    let report = probe::run(server.address, &strict, &prior).await;
    failed(&report, "status 204, expected 200");
}

#[tokio::test]
async fn a_proxy_header_goes_first() {
    use crate::model::http::ProxyVersion;
    let ca = Authority::new("ca");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(serving(&ca.good(), None)));
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        for tls in [true, false] {
            let base = match tls {
                true => ca.asking("app.example"),
                false => Wire::default(),
            };
            let wire = Wire {
                proxy: Some(version),
                ..base
            };
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut header = match version {
                    ProxyVersion::V1 => vec![0; 15],
                    ProxyVersion::V2 => vec![0; 16],
                };
                stream.read_exact(&mut header).await.unwrap();
                match version {
                    ProxyVersion::V1 => assert_eq!(header, b"PROXY UNKNOWN\r\n"),
                    ProxyVersion::V2 => {
                        let read = ppp::v2::Header::try_from(&header[..]).unwrap();
                        assert_eq!(read.command, ppp::v2::Command::Local);
                    }
                }
                match tls {
                    true => {
                        let stream = acceptor.accept(stream).await.unwrap();
                        answer(stream, None, &Seen::default()).await;
                    }
                    false => answer(stream, None, &Seen::default()).await,
                }
            };
            let check = http(None);
            let (report, ()) = tokio::join!(probe::run(address, &check, &wire), server);
            passed(&report, "status 204");
        }
    }
}

#[tokio::test]
async fn what_is_not_http2_is_told() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let answers: [&[u8]; 2] = [
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            b"",
        ];
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            hang_up(stream).await;
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let prior = Wire {
        http2: true,
        ..Wire::default()
    };
    let report = probe::run(address, &http(None), &prior).await;
    failed(&report, "malformed response: not HTTP/2");
    let report = probe::run(address, &http(None), &prior).await;
    failed(&report, "connection closed before a complete response");
    let mut short = http(None);
    short.timeout = Duration::from_millis(200);
    let report = probe::run(address, &short, &prior).await;
    failed(
        &report,
        "timeout after 200ms while waiting for the response",
    );
    server.await.unwrap();
}

#[tokio::test]
async fn new_authorities_are_tried_at_once() {
    use super::{Limits, Prober, Target};
    use crate::model::{BackendName, Health, Passive};

    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server = Server::start(Some(serving(&new.good(), None))).await;
    let (prober, handle, mut verdicts) = Prober::new(Limits::default());
    let running = tokio::spawn(prober.run());
    let target = |wire| Target {
        name: BackendName {
            pool: "web".into(),
            backend: "s1".into(),
        },
        address: server.address,
        // Down and known to be, it is not due again for long.
        check: Check {
            interval: Duration::from_secs(3600),
            fast_interval: Duration::from_millis(40),
            fall: 1,
            rise: 1,
            ..tcp(LONG)
        },
        passive: Passive {
            refused: true,
            unanswered: None,
        },
        wire,
    };
    let wait = async {
        handle.configure(vec![target(old.asking("app.example"))]);
        let name = target(Wire::default()).name;
        while handle.status(&name).is_none_or(|status| status.checks == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let found = handle.status(&name).unwrap();
        let text = found.last.unwrap();
        assert!(text.contains("unknown issuer"), "{text}");
        handle.configure(vec![target(new.asking("app.example"))]);
        loop {
            let found = verdicts.recv().await;
            if let Some(up) = found.into_iter().find(|v| v.health == Health::Up) {
                return up;
            }
        }
    };
    let up = tokio::time::timeout(Duration::from_secs(60), wait);
    let up = up.await.expect("not up");
    assert_eq!(&*up.reason, "TLS handshake done");
    running.abort();
}
