//! HTTP/1.1 by hand: every byte of a request is seen, and any bytes can be the answer.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::behave::{self, Act, Payload, Reply};
use super::wire::Wire;
use super::{About, Seen, State};

/// Piece by which long bodies are written.
const PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];

/// Answers requests until the client or a behaviour ends the connection.
pub(super) async fn serve<S>(state: &Rc<State>, mut wire: Wire<S>, about: About) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(head) = wire.until(b"\r\n\r\n").await? {
        let mut seen = parse(state, &about, &head)?;
        let running = state.begin(&seen);
        let act = behave::act(&seen.target);
        if act == Act::AnswerFirst {
            state.note(seen);
            wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly")
                .await?;
            return wire.stream.shutdown().await;
        }
        if let Act::NoRead(time) = act {
            tokio::time::sleep(time).await;
        }
        let expects = seen.all("expect");
        if expects
            .iter()
            .any(|e| e.eq_ignore_ascii_case("100-continue"))
        {
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = read_body(&mut wire, &mut seen).await;
        seen.cut = body.is_err();
        state.note(seen.clone());
        body?;
        let close = seen
            .all("connection")
            .iter()
            .any(|c| c.eq_ignore_ascii_case("close"));
        match act {
            Act::Reply | Act::NoRead(_) | Act::Early => {
                if act == Act::Early {
                    wire.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")
                        .await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let mut reply = behave::reply(state, &seen).await;
                reply.close |= close;
                answer(&mut wire, &seen, &reply).await?;
                if reply.close {
                    return wire.stream.shutdown().await;
                }
            }
            Act::WebSocket => {
                drop(running);
                return websocket(wire, &seen, state).await;
            }
            Act::Cut { announced, sent } => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n");
                wire.send(head.as_bytes()).await?;
                wire.send(&vec![b'x'; sent]).await?;
                return wire.stream.shutdown().await;
            }
            Act::CutChunk => {
                let bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                wire.send(bytes).await?;
                return wire.stream.shutdown().await;
            }
            Act::Abort => return Ok(()),
            Act::Raw(bytes) => {
                wire.send(bytes.as_bytes()).await?;
                return wire.stream.shutdown().await;
            }
            Act::Hang | Act::AnswerFirst => std::future::pending().await,
        }
    }
    Ok(())
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a head the strict way: what comes through a balancer has to be clean.
fn parse(state: &State, about: &About, head: &[u8]) -> io::Result<Seen> {
    let text: String = head.iter().map(|&byte| char::from(byte)).collect();
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = words[..] else {
        return Err(bad(format!("request line {first:?}")));
    };
    let mut headers = Vec::new();
    for line in lines {
        let field = line.split_once(':').filter(|(name, _)| !name.is_empty());
        let Some((name, value)) = field else {
            return Err(bad(format!("field {line:?}")));
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Seen {
        server: state.name.clone(),
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        headers,
        framing: "none".to_owned(),
        peer: about.peer.clone(),
        proxied: about.proxied.clone(),
        connection: about.number,
        server_name: about.server_name.clone(),
        ..Seen::default()
    })
}

async fn read_body<S>(wire: &mut Wire<S>, seen: &mut Seen) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut sum = digest::Context::new(&digest::SHA256);
    let chunked = seen.one("transfer-encoding").map(str::to_owned);
    let length = seen.one("content-length").map(str::to_owned);
    match (chunked, length) {
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
            seen.framing = "chunked".to_owned();
            loop {
                let size = chunk_size(wire).await?;
                take(wire, size, &mut sum, &mut seen.body).await?;
                if size == 0 {
                    break;
                }
                let end = wire.exactly(2).await?;
                if end[..] != *b"\r\n" {
                    return Err(bad(format!("after a chunk: {end:?}")));
                }
            }
            loop {
                let line = line(wire).await?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').ok_or_else(|| bad(line.clone()))?;
                seen.trailers
                    .push((name.to_owned(), value.trim().to_owned()));
            }
        }
        (None, Some(length)) => {
            seen.framing = "length".to_owned();
            let length = length.parse().map_err(|_| bad(length))?;
            take(wire, length, &mut sum, &mut seen.body).await?;
        }
        (None, None) => {}
        other => return Err(bad(format!("framing {other:?}"))),
    }
    seen.digest = hex(sum.finish().as_ref());
    Ok(())
}

async fn line<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> io::Result<String> {
    let line = wire.until(b"\r\n").await?;
    let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
}

async fn chunk_size<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> io::Result<u64> {
    let line = line(wire).await?;
    u64::from_str_radix(&line, 16).map_err(|_| bad(format!("chunk size {line:?}")))
}

async fn take<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    mut left: u64,
    sum: &mut digest::Context,
    count: &mut u64,
) -> io::Result<()> {
    while left > 0 {
        let bytes = wire
            .some(usize::try_from(left).unwrap_or(usize::MAX))
            .await?;
        sum.update(&bytes);
        left -= bytes.len() as u64;
        *count += bytes.len() as u64;
    }
    Ok(())
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn answer<S>(wire: &mut Wire<S>, seen: &Seen, reply: &Reply) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = format!("HTTP/1.1 {} Test\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if reply.close {
        head += "connection: close\r\n";
    }
    let bodiless = seen.method == "HEAD" || matches!(reply.status, 204 | 304);
    match &reply.body {
        _ if matches!(reply.status, 204 | 304) => head += "\r\n",
        Payload::Whole(body) => {
            head += &format!("content-length: {}\r\n\r\n", body.len());
            if !bodiless {
                let whole = [head.as_bytes(), body].concat();
                return wire.send(&whole).await;
            }
        }
        Payload::Length(length) => {
            head += &format!("content-length: {length}\r\n\r\n");
            wire.stream.write_all(head.as_bytes()).await?;
            let mut left = if bodiless { 0 } else { *length };
            while left > 0 {
                let n = left.min(PIECE.len() as u64);
                wire.stream.write_all(&PIECE[..n as usize]).await?;
                left -= n;
            }
            return wire.stream.flush().await;
        }
        Payload::Pieces {
            piece,
            count,
            pause,
            trailers,
        } => {
            head += "transfer-encoding: chunked\r\n\r\n";
            wire.send(head.as_bytes()).await?;
            if bodiless {
                return Ok(());
            }
            for _ in 0..*count {
                let size = format!("{:x}\r\n", piece.len());
                let chunk = [size.as_bytes(), piece, b"\r\n"].concat();
                wire.send(&chunk).await?;
                if !pause.is_zero() {
                    tokio::time::sleep(*pause).await;
                }
            }
            let mut end = "0\r\n".to_owned();
            for (name, value) in trailers {
                end += &format!("{name}: {value}\r\n");
            }
            return wire.send((end + "\r\n").as_bytes()).await;
        }
    }
    wire.send(head.as_bytes()).await
}

/// Echoes the frames of RFC 6455: text and binary as they come, a close by a close.
async fn websocket<S>(mut wire: Wire<S>, seen: &Seen, state: &State) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = seen
        .one("upgrade")
        .is_some_and(|u| u.eq_ignore_ascii_case("websocket"));
    let (true, Some(key)) = (asked, seen.one("sec-websocket-key")) else {
        let bytes =
            b"HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n";
        return wire.send(bytes).await;
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {}\r\nx-server: {}\r\n\r\n",
        accept_key(key),
        state.name
    );
    wire.send(head.as_bytes()).await?;
    echo(wire).await
}

/// The frames of a WebSocket.
pub(super) async fn echo<S>(mut wire: Wire<S>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let start = wire.exactly(2).await?;
        let length = match start[1] & 0x7f {
            126 => {
                let bytes = wire.exactly(2).await?;
                usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            }
            127 => return Err(bad("a frame that is too long".into())),
            n => usize::from(n),
        };
        let mask = wire.exactly(4).await?;
        let mut payload = wire.exactly(length).await?;
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[i % 4];
        }
        let mut frame = vec![start[0]];
        match u8::try_from(length) {
            Ok(n) if n < 126 => frame.push(n),
            _ => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&payload);
        wire.send(&frame).await?;
        if start[0] & 0x0f == 8 {
            return wire.stream.shutdown().await;
        }
    }
}

/// `Sec-WebSocket-Accept` for a key.
pub(in crate::http) fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let sum = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(sum)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_key_of_the_standard() {
        // RFC 6455, 1.3.
        let accept = super::accept_key("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
