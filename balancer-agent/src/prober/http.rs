//! The HTTP check: one GET over HTTP/1.1 or HTTP/2, judged by the status.
//!
//! The head of the response is bounded; the body is not read.

use super::Wire;
use super::probe::{Phase, ProbeError, Progress};
use super::{tcp, tls};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of a response's head.
pub const HEAD_BYTES: usize = 16 * 1024;
/// Most header lines of a response.
pub const HEADER_LINES: usize = 128;
const USER_AGENT: &str = concat!("balancer/", env!("CARGO_PKG_VERSION"));

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
    wire: &Wire,
    progress: &Progress,
) -> Result<u16, ProbeError> {
    let host = match (ask.host, &wire.tls) {
        (Some(host), _) => Some(host.to_owned()),
        // A server that has several names wants one of them in both places.
        (None, Some(tls)) => tls.host(),
        (None, None) => None,
    };
    let host = host.unwrap_or_else(|| address.to_string());
    let stream = tcp::open(address, wire).await?;
    let status = match &wire.tls {
        None if wire.http2 => {
            let request = request_http2("http", &host, ask.path)?;
            exchange_http2(stream, request, progress).await?
        }
        None => exchange(stream, request(&host, ask.path)?, progress).await?,
        Some(tls) => {
            let stream = tls.handshake(address.ip(), stream, progress).await?;
            match stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                true => {
                    let request = request_http2("https", &host, ask.path)?;
                    exchange_http2(stream, request, progress).await?
                }
                false => exchange(stream, request(&host, ask.path)?, progress).await?,
            }
        }
    };
    let status = status.as_u16();
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

fn request(host: &str, path: &str) -> Result<Request<Empty<Bytes>>, ProbeError> {
    Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .body(Empty::new())
        .map_err(|error| ProbeError::Request(error.to_string()))
}

/// Scheme and host are pseudo headers, made from the whole URI (RFC 9113, 8.3.1).
fn request_http2(scheme: &str, host: &str, path: &str) -> Result<Request<()>, ProbeError> {
    Request::get(format!("{scheme}://{host}{path}"))
        .version(hyper::Version::HTTP_2)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .body(())
        .map_err(|error| ProbeError::Request(error.to_string()))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
    progress: &Progress,
) -> Result<StatusCode, ProbeError> {
    progress.reached(Phase::Responding);
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
    let answer = answer.map_err(|error| explain(&error))?;
    Ok(answer.status())
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
    match error.source().and_then(|s| s.downcast_ref::<io::Error>()) {
        Some(io) => broken(io).unwrap_or_else(|| ProbeError::Malformed(error.to_string())),
        None => ProbeError::Malformed(error.to_string()),
    }
}

/// What has become of a connection.
pub(super) fn broken(error: &io::Error) -> Option<ProbeError> {
    match error.kind() {
        io::ErrorKind::ConnectionReset => Some(ProbeError::Reset),
        // The latter is what h2 says for an end.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Some(ProbeError::Closed),
        _ => tls::alert(error),
    }
}

/// By `h2` itself, not by way of hyper, whose connections live on as tasks of their own:
/// all of this ends with the check.
async fn exchange_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<()>,
    progress: &Progress,
) -> Result<StatusCode, ProbeError> {
    progress.reached(Phase::Responding);
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(HEAD_BYTES as u32)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| explain_http2(&error))?;
    let mut connection = std::pin::pin!(connection);
    let mut asking = std::pin::pin!(async {
        let mut sender = sender.ready().await?;
        let (response, _) = sender.send_request(request, true)?;
        response.await
    });
    let answer = tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => match ended {
            // Both know why the connection has ended.
            Ok(()) => asking.await,
            Err(error) => Err(error),
        },
    };
    let answer = answer.map_err(|error| explain_http2(&error))?;
    Ok(answer.status())
}

fn explain_http2(error: &h2::Error) -> ProbeError {
    if let Some(io) = error.get_io() {
        return broken(io).unwrap_or_else(|| ProbeError::Malformed(error.to_string()));
    }
    match error.reason() {
        Some(h2::Reason::NO_ERROR) => ProbeError::Closed,
        // What an answer of HTTP/1.1 is read as.
        Some(h2::Reason::FRAME_SIZE_ERROR) if !error.is_remote() => {
            ProbeError::Malformed("not HTTP/2".into())
        }
        _ => ProbeError::Malformed(format!("HTTP/2: {error}")),
    }
}
