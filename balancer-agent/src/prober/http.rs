//! The HTTP check: one GET over HTTP/1.1, judged by the status line.
//!
//! The head of the response is bounded; the body is not read.

use super::probe::{ProbeError, Progress};
use super::tcp;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::net::SocketAddr;

/// Most bytes of a response's head.
pub const HEAD_BYTES: usize = 16 * 1024;
/// Most header lines of a response.
pub const HEADER_LINES: usize = 128;

/// What to ask for, and what to expect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub path: &'a str,
    pub host: Option<&'a str>,
    pub expect: &'a [(u16, u16)],
}

/// Asks, and judges the answer. Returns the status code.
pub(super) async fn check(
    address: SocketAddr,
    ask: Ask<'_>,
    progress: &Progress,
) -> Result<u16, ProbeError> {
    let request = request(address, ask)?;
    let stream = tcp::connect(address).await?;
    progress.connected();
    let status = exchange(stream, request).await?.status().as_u16();
    if ask
        .expect
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&status))
    {
        Ok(status)
    } else {
        Err(ProbeError::Status {
            got: status,
            expected: ask.expect.into(),
        })
    }
}

fn request(address: SocketAddr, ask: Ask<'_>) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let host = match ask.host {
        Some(host) => host.to_owned(),
        None => address.to_string(),
    };
    Request::get(ask.path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .header(
            header::USER_AGENT,
            concat!("balancer/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::ACCEPT, "*/*")
        .body(Empty::new())
        .map_err(|error| ProbeError::Request(error.to_string()))
}

async fn exchange(
    stream: tokio::net::TcpStream,
    request: Request<Empty<Bytes>>,
) -> Result<Response<hyper::body::Incoming>, ProbeError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADER_LINES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| explain(&error))?;
    let mut connection = std::pin::pin!(connection);
    let mut response = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut response => answer,
        // The connection ends before the caller has its answer when the server
        // closes; the answer, or the error, is then ready.
        ended = &mut connection => match ended {
            Ok(()) => response.await,
            Err(error) => Err(error),
        },
    };
    answer.map_err(|error| explain(&error))
}

fn explain(error: &hyper::Error) -> ProbeError {
    if error.is_parse_too_large() {
        return ProbeError::TooLarge;
    }
    if error.is_parse() {
        let detail = error
            .source()
            .map_or(error.to_string(), ToString::to_string);
        return ProbeError::Malformed(detail);
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return ProbeError::Closed;
    }
    match error
        .source()
        .and_then(|s| s.downcast_ref::<std::io::Error>())
    {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionReset => ProbeError::Reset,
        _ => ProbeError::Malformed(error.to_string()),
    }
}
