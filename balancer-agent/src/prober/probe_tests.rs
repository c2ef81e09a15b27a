//! The checks against real servers on loopback.

use super::Wire;
use super::health::Outcome;
use super::probe::{self, Report};
use crate::model::{Check, CheckKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

fn tcp(timeout: Duration) -> Check {
    Check {
        kind: CheckKind::Tcp,
        interval: LONG,
        fast_interval: LONG,
        timeout,
        fall: 3,
        rise: 2,
        port: None,
        tls: false,
        as_requests: true,
    }
}

fn http(timeout: Duration) -> Check {
    Check {
        kind: CheckKind::Http {
            path: "/health?full=1".into(),
            host: None,
            expect: vec![(200, 299), (304, 304)],
        },
        ..tcp(timeout)
    }
}

async fn run(address: SocketAddr, check: &Check) -> Report {
    probe::run(address, check, &Wire::default()).await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Asks a server that reads the request and then does `answer`.
async fn ask<F>(timeout: Duration, answer: impl FnOnce(TcpStream) -> F + Send + 'static) -> Report
where
    F: Future<Output = ()> + Send,
{
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        answer(stream).await;
    });
    let report = run(address, &http(timeout)).await;
    server.abort();
    report
}

async fn says(bytes: impl Into<Vec<u8>>) -> Report {
    let bytes = bytes.into();
    ask(LONG, async move |mut stream| {
        // The check may have had enough before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    })
    .await
}

#[track_caller]
fn failed(report: &Report, text: &str) {
    assert_eq!(report.outcome, Outcome::Failure, "{report:?}");
    assert!(report.text.contains(text), "{:?}", report.text);
}

#[tokio::test]
async fn tcp_connects_and_resets() {
    let (listener, address) = listen().await;
    let report = run(address, &tcp(LONG)).await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    let (mut stream, _) = listener.accept().await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn another_port_can_be_checked() {
    let (_listener, address) = listen().await;
    let closed = {
        let (_listener, address) = listen().await;
        address
    };
    let check = Check {
        port: Some(address.port()),
        ..tcp(LONG)
    };
    assert_eq!(run(closed, &check).await.outcome, Outcome::Success);
    let check = Check {
        port: Some(closed.port()),
        ..tcp(LONG)
    };
    failed(&run(address, &check).await, "connection refused");
}

#[tokio::test]
async fn tcp_refused() {
    let address = {
        let (_listener, address) = listen().await;
        address
    };
    let report = run(address, &tcp(LONG)).await;
    assert_eq!(report.outcome, Outcome::Failure);
    assert_eq!(&*report.text, "connection refused");
}

#[tokio::test]
async fn tcp_not_answered() {
    // A listener whose queue is full lets SYNs go unanswered.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fill = Vec::new();
    loop {
        match tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
            Ok(stream) => fill.push(stream.unwrap()),
            Err(_) => break,
        }
        assert!(fill.len() < 16, "the queue does not fill");
    }
    let report = run(address, &tcp(SHORT)).await;
    failed(&report, "timeout after 200ms while connecting");
}

#[tokio::test]
async fn ipv6_is_checked() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        // A host without IPv6 has nothing to check over it.
        return;
    };
    let address = listener.local_addr().unwrap();
    assert_eq!(run(address, &tcp(LONG)).await.outcome, Outcome::Success);
}

/// An AJP13 check of a server that reads CPING and says these bytes, in steps.
async fn cping(timeout: Duration, answer: &'static [&'static [u8]]) -> Report {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 5];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"\x12\x34\0\x01\x0A");
        for part in answer {
            // The check may have had enough.
            let _ = stream.write_all(part).await;
            let _ = stream.flush().await;
            tokio::task::yield_now().await;
        }
        if !answer.is_empty() {
            let _ = stream.shutdown().await;
        }
        let _ = stream.read_u8().await;
    });
    let check = Check {
        kind: CheckKind::Ajp,
        ..tcp(timeout)
    };
    let report = run(address, &check).await;
    server.abort();
    report
}

#[tokio::test]
async fn ajp_asks_for_cpong() {
    let right: [&'static [&'static [u8]]; 2] = [&[b"AB\0\x01\x09"], &[b"A", b"B\0", b"\x01\x09"]];
    for answer in right {
        let report = cping(LONG, answer).await;
        assert_eq!(report.outcome, Outcome::Success, "{report:?}");
        assert_eq!(&*report.text, "answers CPING");
    }
    let wrong: [&'static [&'static [u8]]; 3] =
        [&[b"HTTP/1.1 400"], &[b"AB\0\x02\x05"], &[b"AB\0\x01\x05"]];
    for answer in wrong {
        failed(&cping(LONG, answer).await, "in answer to CPING: not AJP13");
    }
    failed(&cping(LONG, &[b"AB\0"]).await, "connection closed");
    let report = cping(SHORT, &[]).await;
    failed(
        &report,
        "timeout after 200ms while waiting for the response",
    );
}

#[tokio::test]
async fn http_asks_as_it_should() {
    let (listener, address) = listen().await;
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tell.send(head(&mut stream).await).unwrap();
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    });
    let report = run(address, &http(LONG)).await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    assert_eq!(&*report.text, "status 204");
    let request = told.await.unwrap().to_lowercase();
    assert!(
        request.starts_with("get /health?full=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nhost: {address}\r\n")),
        "{request}"
    );
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
}

#[tokio::test]
async fn http_sends_the_host_that_was_asked_for() {
    let (listener, address) = listen().await;
    let check = Check {
        kind: CheckKind::Http {
            path: "/".into(),
            host: Some("shop.example".into()),
            expect: vec![(200, 200)],
        },
        ..tcp(LONG)
    };
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = head(&mut stream).await;
        let answer = b"HTTP/1.0 200 OK\r\n\r\nbody";
        stream.write_all(answer).await.unwrap();
        request
    });
    let report = run(address, &check).await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    let request = server.await.unwrap().to_lowercase();
    assert!(request.contains("\r\nhost: shop.example\r\n"), "{request}");
}

#[tokio::test]
async fn http_statuses_are_judged() {
    let report = says("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    failed(&report, "status 503, expected 200-299, 304");
    let report = says("HTTP/1.1 304 Not Modified\r\n\r\n").await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    let report = says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
}

#[tokio::test]
async fn http_does_not_wait_for_the_body() {
    let report = ask(LONG, async |mut stream| {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
}

#[tokio::test]
async fn http_that_does_not_answer() {
    let report = ask(SHORT, async |_stream| std::future::pending().await).await;
    failed(
        &report,
        "timeout after 200ms while waiting for the response",
    );
}

#[tokio::test]
async fn http_that_answers_too_slowly() {
    let report = ask(SHORT, async |mut stream| {
        for byte in b"HTTP/1.1 200 OK\r\nSlow: ".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    failed(
        &report,
        "timeout after 200ms while waiting for the response",
    );
}

#[tokio::test]
async fn http_that_is_not_http() {
    failed(
        &says("SSH-2.0-OpenSSH_9.2\r\n\r\n").await,
        "malformed response",
    );
    failed(&says([0xff; 64]).await, "malformed response");
    failed(&says("HTTP/1.1 2x0 OK\r\n\r\n").await, "malformed response");
    failed(&says("HTTP/3.7 200 OK\r\n\r\n").await, "malformed response");
}

#[tokio::test]
async fn http_that_breaks_off() {
    let text = "connection closed before a complete response";
    failed(&says("").await, text);
    failed(&says("HTTP/1.1 200 OK\r\nServer: x").await, text);
    let report = ask(LONG, async |stream| {
        #[expect(deprecated, reason = "a linger of zero does not block")]
        stream.set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    failed(&report, "connection reset");
}

#[tokio::test]
async fn http_heads_are_bounded() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    failed(&says(long).await, "head larger than");
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(1000));
    failed(&says(many).await, "too many headers");
}

#[tokio::test]
async fn the_prober_sees_a_server_come_and_go() {
    use super::{Limits, Prober, Target, Verdict};
    use crate::model::{BackendName, Health, Passive};

    let (listener, address) = listen().await;
    let (prober, handle, mut verdicts) = Prober::new(Limits::default());
    let running = tokio::spawn(prober.run());
    let name = BackendName {
        pool: "web".into(),
        backend: "s1".into(),
    };
    handle.configure(vec![Target {
        name: name.clone(),
        address,
        check: Check {
            interval: Duration::from_millis(20),
            fast_interval: Duration::from_millis(5),
            ..tcp(LONG)
        },
        passive: Passive {
            refused: true,
            unanswered: None,
        },
        wire: Wire::default(),
    }]);
    let mut until = async |health| -> Verdict {
        loop {
            let found = verdicts.recv().await;
            if let Some(verdict) = found.into_iter().find(|v| v.health == health) {
                return verdict;
            }
        }
    };
    const BOUND: Duration = Duration::from_secs(60);
    let up = tokio::time::timeout(BOUND, until(Health::Up))
        .await
        .expect("not up");
    assert_eq!((&up.name, &*up.reason), (&name, "connected"));
    drop(listener);
    let down = tokio::time::timeout(BOUND, until(Health::Down))
        .await
        .expect("not down");
    assert_eq!(&*down.reason, "connection refused (3 checks in a row)");
    running.abort();
}
