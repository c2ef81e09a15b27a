//! One request per HTTP/2 connection, which h2load can't do: preface, settings and
//! request in one write, the answer, the end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::frames::{END_HEADERS, END_STREAM, get, kind};
use crate::netns::Netns;

/// Keeps so many connections busy for a while; how long each request took, connecting
/// included.
///
/// # Errors
/// When one was not answered by 200.
pub fn load(
    ns: &Netns,
    to: SocketAddr,
    connections: usize,
    window: Duration,
) -> Result<Vec<Duration>> {
    ns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let end = Instant::now() + window;
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..connections {
                clients.spawn(async move {
                    let request = opening();
                    let mut times = Vec::new();
                    while Instant::now() < end {
                        let begin = Instant::now();
                        let patience = Duration::from_secs(10);
                        let asked = tokio::time::timeout(patience, once(to, &request)).await;
                        asked.context("no answer in time")??;
                        times.push(begin.elapsed());
                    }
                    Ok::<_, anyhow::Error>(times)
                });
            }
            let mut all = Vec::new();
            while let Some(times) = clients.join_next().await {
                all.extend(times??);
            }
            ensure!(!all.is_empty(), "nothing was asked");
            Ok(all)
        })
    })
}

fn opening() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0]);
    let block = get("/");
    let length = (block.len() as u32).to_be_bytes();
    bytes.extend([
        length[1],
        length[2],
        length[3],
        kind::HEADERS,
        END_HEADERS | END_STREAM,
    ]);
    bytes.extend([0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

async fn once(to: SocketAddr, request: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(to).await.context("connect")?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    let mut buffer = Vec::with_capacity(4096);
    let mut good = false;
    loop {
        while let Some((kind, flags, stream_id, payload)) = take(&buffer) {
            let used = 9 + payload.len();
            match kind {
                // Indexed field 8 is `:status: 200`; a size update of the table may come
                // before it.
                kind::HEADERS if stream_id == 1 => {
                    let first = payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                    ensure!(first == Some(&0x88), "not 200: {payload:?}");
                    good = true;
                }
                kind::RST_STREAM | kind::GOAWAY => bail!("ended by a frame of type {kind}"),
                _ => {}
            }
            let last = stream_id == 1 && flags & END_STREAM != 0;
            let answered = last && matches!(kind, kind::HEADERS | kind::DATA);
            buffer.drain(..used);
            if answered {
                ensure!(good, "data before headers");
                return Ok(());
            }
        }
        let n = stream.read_buf(&mut buffer).await.context("read")?;
        ensure!(n > 0, "closed before the answer");
    }
}

fn take(buffer: &[u8]) -> Option<(u8, u8, u32, &[u8])> {
    let head = buffer.get(..9)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, buffer.get(9..9 + length)?))
}
